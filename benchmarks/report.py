"""From figures to what a person and a program read: Markdown tables and JSON.  Pure, apart from asking which machine this is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Comparison, Figures, Ratio, Spread
from benchmarks.peers import JUDGED, PEERS, PLACEMENTS, Peer

if TYPE_CHECKING:
    from benchmarks.sections import Section

__all__ = ["Results", "as_json", "as_markdown", "machine", "replace_between_markers", "verdicts"]

BEGIN, END = "<!-- begin: written by python -m benchmarks --docs -->", "<!-- end -->"

#: What came out, by placement: the figures of every peer by its key, and the ratios.
Results = Mapping[str, tuple[Mapping[str, Figures], list[Ratio]]]

_TITLES = {peer.key: peer.title for peer in PEERS}


def machine() -> dict[str, Any]:
    """Describe the machine as far as it bears on the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def verdicts(results: Results, sections: Sequence[Section] = ()) -> list[bool]:
    """Say of each target whether it is met, from the placement that the targets are for."""
    ratios = results[JUDGED][1] if JUDGED in results else []
    return [ratio.met for ratio in ratios if ratio.met is not None] + [v.met for section in sections for v in section.verdicts]


def as_markdown(
    results: Results, rounds: int, facts: Mapping[str, Any], sections: Sequence[Section] = (), pictures: Mapping[str, str] | None = None
) -> str:
    """Write the tables; `facts` are `machine()`'s from before the run, `pictures` the file that goes with a section, by its key."""
    pictures = pictures or {}
    head = (
        f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, {facts['python']}; load before the run {facts['load_1min']}; {rounds} rounds, all peers in every round. "
        "Times in microseconds. A ratio is the median over the rounds, with the smallest and the largest round behind it."
    )
    parts = [head]
    if sections:
        parts += ["### Targets", _targets(results, sections)]
    for placement in PLACEMENTS:
        if placement.key not in results:
            continue
        figures, ratios = results[placement.key]
        parts.append(f"### {placement.key.capitalize()}: {placement.title}")
        parts.append(_wakes(figures))
        if placement.key == JUDGED and "wake" in pictures:
            parts.append(f"![Signal to wake]({pictures['wake']})")
        parts.append(_operations(figures))
        parts.append(_ratios(ratios, judged=placement.key == JUDGED))
    for section in sections:
        parts += [f"### {section.title}", section.text, _table(section.head, section.rows)]
        if section.key in pictures:
            parts.append(f"![{section.title}]({pictures[section.key]})")
    parts.append("### What each of them cannot do")
    parts.append("\n".join(f"- {peer.title}: {peer.cannot}" for peer in PEERS if peer.cannot))
    missing = [f"- NOT RUN: {peer.title}: {why}." for peer in PEERS if (why := peer.missing()) is not None]
    if missing:
        parts += ["### What was not run", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _targets(results: Results, sections: Sequence[Section]) -> str:
    rows: list[tuple[str, ...]] = []
    for ratio in results[JUDGED][1] if JUDGED in results else []:
        target = ratio.comparison.target
        if target is not None:
            rows.append(
                (_subject(ratio.comparison), _spread(ratio.spread), f"{target.bound} {target.value:,}", "met" if ratio.met else "MISSED")
            )
    rows += [(v.what, v.value, v.target, "met" if v.met else "MISSED") for section in sections for v in section.verdicts]
    return _table(("what", "figure", "target", ""), rows)


def _peers(kind: str, figures: Mapping[str, Figures]) -> Iterable[tuple[Peer, Figures]]:
    return ((peer, figures[peer.key]) for peer in PEERS if peer.kind == kind and peer.key in figures)


def _wakes(figures: Mapping[str, Figures]) -> str:
    return _table(
        ("signal to wake", "p50", "p90", "p99", "max", "samples"),
        [(peer.title, *(f"{x:.1f}" for x in (f.p50, f.p90, f.p99, f.max)), f"{f.n:,}") for peer, f in _peers("wake", figures)],
    )


def _operations(figures: Mapping[str, Figures]) -> str:
    return _table(
        ("rate", "per second", "slowest and fastest round", "p50", "p90", "p99"),
        [
            (
                peer.title,
                f"{f.spread.median:,.0f}",
                f"{f.spread.min:,.0f} - {f.spread.max:,.0f}",
                # One of the batch, not the batch.
                *(f"{x / peer.units:.1f}" for x in (f.p50, f.p90, f.p99)),
            )
            for peer, f in _peers("operation", figures)
        ],
    )


def _ratios(ratios: Iterable[Ratio], *, judged: bool) -> str:
    rows: list[tuple[str, ...]] = []
    for ratio in ratios:
        target = ratio.comparison.target
        verdict = ""
        if target is not None and judged:
            verdict = f"{target.bound} {target.value:,}: {'met' if ratio.met else 'MISSED'}"
        rows.append((_subject(ratio.comparison), _spread(ratio.spread), verdict))
    return _table(("compared", "ratio", "target" if judged else ""), rows)


def _subject(comparison: Comparison) -> str:
    peer = next(peer for peer in PEERS if peer.key == comparison.peer)
    if comparison.base is None:
        return f"{peer.title}, per second"
    what = "signal to wake" if peer.kind == "wake" else "rate"
    return f"{what}: {peer.title} / {_TITLES[comparison.base]}"


def _spread(spread: Spread) -> str:
    form = "{:,.0f}" if spread.median >= 1000 else "{:.2f}"
    return f"{form} ({form} - {form})".format(spread.median, spread.min, spread.max)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out a Markdown table that also reads well as it is: first column left, figures right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def as_json(results: Results, settings: Mapping[str, Any], facts: Mapping[str, Any], sections: Sequence[Section] = ()) -> dict[str, Any]:
    """Return everything as plain values; `format` changes when the meaning of a field does."""
    return {
        "format": 2,
        "machine": dict(facts),
        "settings": dict(settings),
        "placements": {
            key: {
                "peers": {peer.key: _peer_json(peer, figures[peer.key]) for peer in PEERS if peer.key in figures},
                "comparisons": [_ratio_json(ratio, judged=key == JUDGED) for ratio in ratios],
            }
            for key, (figures, ratios) in results.items()
        },
        "sections": {
            section.key: {
                "title": section.title,
                "data": section.data,
                "targets": [{"what": v.what, "value": v.value, "target": v.target, "met": v.met} for v in section.verdicts],
            }
            for section in sections
        },
        "not_run": {peer.key: why for peer in PEERS if (why := peer.missing()) is not None},
    }


def _peer_json(peer: Peer, figures: Figures) -> dict[str, Any]:
    return {
        "title": peer.title,
        "kind": peer.kind,
        "units_per_sample": peer.units,
        "samples": figures.n,
        "p50_us": figures.p50,
        "p90_us": figures.p90,
        "p99_us": figures.p99,
        "max_us": figures.max,
        "per_round": {"what": "p50_us" if peer.kind == "wake" else "per_second", "values": list(figures.rounds)},
    }


def _ratio_json(ratio: Ratio, *, judged: bool) -> dict[str, Any]:
    target = ratio.comparison.target if judged else None
    return {
        "peer": ratio.comparison.peer,
        "base": ratio.comparison.base,
        "median": ratio.spread.median,
        "min": ratio.spread.min,
        "max": ratio.spread.max,
        "target": None if target is None else {"bound": target.bound, "value": target.value},
        "met": ratio.met if judged else None,
    }


def replace_between_markers(text: str, tables: str) -> str:
    """Put the tables between the markers of a document.

    Raises:
        ValueError: the document has no such markers, or not in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it needs a line {BEGIN!r} and after it a line {END!r}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"
