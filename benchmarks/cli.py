"""The command: options, progress, output, exit code."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks import sections
from benchmarks.hostile import TARGET, measure_hostile
from benchmarks.hostile import as_markdown as as_table
from benchmarks.journal import JOURNAL, QUICK_JOURNAL, measure_journal
from benchmarks.journal import as_markdown as journal_as_markdown
from benchmarks.measure import FULL, QUICK, measure
from benchmarks.plots import draw, why_no_plots
from benchmarks.processes import BenchmarkError
from benchmarks.profiling import WORKLOADS, profile
from benchmarks.recovery import QUICK_RECOVERY, RECOVERY, measure_recovery
from benchmarks.recovery import as_markdown as recovery_as_markdown
from benchmarks.report import as_json, as_markdown, machine, replace_between_markers, verdicts
from benchmarks.rest import IdleBroker
from benchmarks.scale import SIZES, measure_scale
from benchmarks.scale import as_markdown as scale_as_markdown
from benchmarks.scan import measure_scan

__all__ = ["main"]

BROKEN, MISSED = 1, 3


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit code: 0 measured; 1 something broke; 2 wrong usage; 3 a target was missed and --check was given.",
)
@click.option("--quick", is_flag=True, help="A few samples of everything: shows that it works, not how fast.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Also write all figures to this file."
)
@click.option(
    "--docs",
    type=click.Path(exists=True, dir_okay=False, writable=True, path_type=Path),
    help="Also put the tables between the markers of this Markdown file (docs/performance.md), and the plots beside it.",
)
@click.option("--check", is_flag=True, help="Exit with 3 if a target is missed.")
@click.option(
    "--profile", "workload", type=click.Choice(WORKLOADS), help="Measure nothing; show where the broker and its client spend their time."
)
@click.option("--hostile", is_flag=True, help="Measure only a pipeline beside twenty clients that attack the broker (root).")
@click.option("--scale", is_flag=True, help="Measure only the core by itself, with up to a million active fences.")
@click.option("--scan", is_flag=True, help="Measure only how long fencectl takes to look at 500 processes.")
@click.option(
    "--recovery", is_flag=True, help="Measure only how long a client notices that the broker was killed, with 10,000 active fences."
)
@click.option("--journal", is_flag=True, help="Measure only what the journal costs: the same rates with it and without.")
def main(
    *,
    quick: bool,
    json_file: Path | None,
    docs: Path | None,
    check: bool,
    workload: str | None,
    scale: bool,
    scan: bool,
    recovery: bool,
    journal: bool,
    hostile: bool,
) -> None:
    """Measure fencebroker beside what it stands on, all in one run.

    Signal to wake: from the call that signals until poll() returns in another process that was asleep. Rates: export + advance + close,
    one at a time and in batches, and questions. Then one signal for many waiters, a pipeline, many clients, many fences, memory, start-up,
    and what an idle broker does. The peers: raw eventfd, pipe, a bare Python relay, multiprocessing, ZeroMQ, Redis, and a broker that only
    parses and sends; what is not installed is NOT RUN. A full run takes up to ten minutes; nothing else should run on the machine meanwhile.
    """
    if scale:
        click.echo(scale_as_markdown([measure_scale(size) for size in (SIZES[:2] if quick else SIZES)]))
        return
    if scan:
        click.echo(measure_scan(*((20, 1) if quick else ())))
        return
    if hostile:
        _measure_hostile(quick, check)
        return
    if docs is not None:
        _fill(docs, None)  # so that a wrong file is refused before the measurement, not after it
    try:
        if workload is not None:
            click.echo(profile(workload))
            return
        if recovery or journal:
            met = _of_the_keeper(quick, recovery, journal)
            sys.exit(MISSED if check and not met else 0)
        settings, size = (QUICK, sections.QUICK) if quick else (FULL, sections.FULL)
        facts = machine()  # before this run adds to the load
        with IdleBroker() as idle:
            with click.progressbar(length=settings.rounds + 1, label="rounds", file=sys.stderr) as bar:
                results = measure(settings, lambda: bar.update(1))
            others = sections.measure_sections(size, idle, lambda what: click.echo(f"measuring {what}", err=True))
    except BenchmarkError as err:
        click.echo(f"benchmarks: {err}", err=True)
        sys.exit(BROKEN)
    pictures = {}
    if docs is not None:
        why = why_no_plots()
        if why is None:
            pictures = {key: path.name for key, path in draw(results, others, docs.parent).items()}
        else:
            click.echo(f"NOT RUN: the plots ({why})", err=True)
    tables = as_markdown(results, settings.rounds, facts, others, pictures)
    click.echo(tables)
    if json_file is not None:
        values = as_json(results, {"quick": quick, **asdict(settings), **asdict(size)}, facts, others)
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(values, indent=1) + "\n")
    if docs is not None:
        _fill(docs, tables)
    if check and not all(verdicts(results, others)):
        sys.exit(MISSED)


def _of_the_keeper(quick: bool, recovery: bool, journal: bool) -> bool:
    """Measure what it gives and what it costs that the broker may be killed; whether the targets are met."""
    met = True
    if recovery:
        felt = measure_recovery(QUICK_RECOVERY if quick else RECOVERY)
        met = felt.met
        click.echo(recovery_as_markdown(felt))
    if journal:
        prices = measure_journal(*(QUICK_JOURNAL if quick else JOURNAL))
        met = met and all(price.met for price in prices)
        click.echo(journal_as_markdown(prices))
    return met


def _measure_hostile(quick: bool, check: bool) -> None:
    rounds, wakes = (2, 50) if quick else (7, 500)
    try:
        with click.progressbar(length=5 * (rounds + 1), label="rounds", file=sys.stderr) as bar:
            attacks = measure_hostile(rounds, wakes, lambda: bar.update(1))
    except BenchmarkError as err:
        click.echo(f"benchmarks: {err}", err=True)
        sys.exit(BROKEN)
    click.echo(as_table(attacks))
    if check and not all(attack.ratio <= TARGET and not attack.lost for attack in attacks):
        sys.exit(MISSED)


def _fill(docs: Path, tables: str | None) -> None:
    """Put the tables into the document, or (None) only see whether it has a place for them."""
    try:
        text = replace_between_markers(docs.read_text(), tables or "")
    except ValueError as err:
        raise click.BadParameter(f"{docs}: {err}", param_hint="--docs") from err
    if tables is not None:
        docs.write_text(text)
