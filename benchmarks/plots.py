"""The figures as pictures, for docs/performance.md.  matplotlib is needed for this alone, so it is imported when one is drawn."""

from __future__ import annotations

import importlib.util
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.peers import JUDGED, PEERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.report import Results
    from benchmarks.sections import Section

__all__ = ["draw", "why_no_plots"]

_OURS, _THEIRS = "#2b6cb0", "#a0aec0"


def why_no_plots() -> str | None:
    """What is missing for them."""
    return None if importlib.util.find_spec("matplotlib") else "matplotlib is not installed"


def draw(results: Results, sections: Sequence[Section], folder: Path) -> dict[str, Path]:
    """Write performance-*.svg into a folder; returns them by the section that they belong to."""
    import matplotlib as mpl

    mpl.use("svg")
    # Without a date and with names that stay, the same figures give the same file; text stays text.
    mpl.rcParams.update(
        {"svg.hashsalt": "fencebroker", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    data: dict[str, Any] = {section.key: section.data for section in sections}
    drawn = {
        "fan_out": _lines(data["fan_out"], "waiters", "microseconds until the last is awake", folder / "performance-fan-out.svg"),
        "frames": _bars(
            {title: median(v) for title, v in data["frames"].items()}, "frames per second", folder / "performance-pipeline.svg"
        ),
    }
    if JUDGED in results:
        drawn["wake"] = _wakes(results, folder / "performance-wake.svg")
    return drawn


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return path


def _color(title: str) -> str:
    return _OURS if title.startswith("fencebroker") else _THEIRS


def _wakes(results: Results, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figures = results[JUDGED][0]
    rows = [(peer.title, figures[peer.key]) for peer in PEERS if peer.kind == "wake" and peer.key in figures][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(rows) + 0.8))
    for y, (title, f) in enumerate(rows):
        axes.barh(y, f.p50, color=_color(title))
        axes.plot([f.p50, f.p99], [y, y], color="#4a5568", linewidth=1)
        axes.plot([f.p99], [y], marker="|", color="#4a5568")
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.set_xscale("log")
    axes.set_xlabel("signal to wake, microseconds: bar p50, line to p99")
    return _save(figure, path)


def _lines(data: Mapping[str, Mapping[str, Sequence[float]]], x: str, y: str, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for number, (title, by) in enumerate(data.items()):
        ours = title.startswith("fencebroker")
        axes.plot(
            [int(n) for n in by],
            [median(v) for v in by.values()],
            label=title,
            marker="o" if ours else "osv^Dx*P"[number % 8],
            linewidth=2.2 if ours else 1,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _bars(values: Mapping[str, float], x: str, path: Path) -> Path:
    from matplotlib import pyplot as plt

    titles = list(values)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(titles) + 0.8))
    axes.barh(titles, [values[title] for title in titles], color=[_color(title) for title in titles])
    axes.set_xlabel(x)
    return _save(figure, path)
