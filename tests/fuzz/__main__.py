"""Fuzz for long, and say how far it came.

    python -m tests.fuzz                            1,000,000 inputs, 100,000 of them through the sockets of a running broker
    python -m tests.fuzz --inputs 5000 --live 500   fewer
    python -m tests.fuzz --target session --seed 7  one way in, other dice

A failure names the seed and leaves its input in build/fuzz; once it is understood, the input goes into tests/fuzz/corpus.
Where atheris is installed, --atheris TARGET lets it choose the inputs by what they reach.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

import tests.fuzz.targets as folder
from tests.fuzz.live import fire
from tests.fuzz.mutation import CORPUS, corpus, inputs
from tests.helpers import StartBroker

FOUND: Final = Path("build/fuzz")
TARGETS: Final = {
    module.NAME: module
    for module in (importlib.import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__))
}


def run_target(module: Any, n: int, seed: int) -> None:
    """Give one target ``n`` inputs."""
    data = b""
    try:
        with module.Target() as target, click.progressbar(length=n, label=f"{module.NAME:14}", file=sys.stderr) as bar:
            for i, data in enumerate(itertools.islice(inputs(seed, corpus(module.NAME), module.fresh), n), 1):
                target.run(data)
                if i % 1000 == 0 or i == n:
                    bar.update(i % 1000 or 1000)
    except BaseException:
        FOUND.mkdir(parents=True, exist_ok=True)
        path = FOUND / f"{module.NAME}-{seed}"
        path.write_bytes(data)
        click.echo(f"\n{module.NAME}, seed {seed}: failed with the input in {path}", err=True)
        raise


def run_atheris(name: str) -> None:
    """Hand one target to atheris, for as long as it takes; its corpus is ours."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    atheris.instrument_all()
    with TARGETS[name].Target() as target:
        atheris.Setup([sys.argv[0], str(CORPUS / name)], target.run)
        atheris.Fuzz()


@click.command(help=__doc__)
@click.option("--inputs", "n", default=1_000_000, show_default=True, help="How many inputs in all.")
@click.option("--live", default=100_000, show_default=True, help="How many of them through a running broker.")
@click.option("--seed", default=1, show_default=True)
@click.option("--target", "names", multiple=True, type=click.Choice([*sorted(TARGETS), "live"]), help="Only this one.  [default: all]")
@click.option("--atheris", "guided", type=click.Choice(sorted(TARGETS)), help="Let atheris choose the inputs for this target.")
def main(n: int, live: int, seed: int, names: tuple[str, ...], guided: str | None) -> None:
    """Run the command."""
    if guided is not None:
        run_atheris(guided)
        return
    chosen = names or (*TARGETS, "live")
    began = time.monotonic()
    live = min(live, n) if "live" in chosen else 0
    # Packets and rings are what strangers send; a file is written by an administrator, and a journal by ourselves.
    weights = {name: {"configuration": 1, "journal": 1, "ring": 5}.get(name, 20) for name in TARGETS if name in chosen}
    done = {}
    for name, weight in weights.items():
        done[name] = (n - live) * weight // sum(weights.values())
        run_target(TARGETS[name], done[name], seed)
    if live:
        with contextlib.ExitStack() as stack:
            broker = StartBroker(stack)()
            with click.progressbar(length=live, label=f"{'live':14}", file=sys.stderr) as bar:
                figures = fire(broker, live, seed, bar.update)
            broker.check()
        done["live"] = figures.packets
        click.echo(
            f"live: {figures.packets:,} packets, {figures.with_descriptors:,} with descriptors, {figures.on_timelines:,} on timelines' sockets; "
            f"{figures.cut:,} sessions cut, {figures.answers:,} answers"
        )
    click.echo("; ".join(f"{name} {count:,}" for name, count in done.items()))
    click.echo(
        f"{sum(done.values()):,} inputs in {time.monotonic() - began:.0f} s, seed {seed}: no crash, no leaked descriptor, every account at zero"
    )


main()
