"""From samples to figures: percentiles, rates, ratios and targets.  Pure.

A ratio is taken inside each round, where both peers met the same machine, and its median over the rounds is the
figure; the smallest and the largest one are its spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Comparison", "Figures", "Kind", "Ratio", "Spread", "Target", "figures_of", "percentile", "ratio_of"]

#: What a sample is: the time from a signal to a wake, or the time of one operation (or of one batch of them).
Kind = Literal["wake", "operation"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One peer's figures; times in microseconds per sample, rates in fences (or round trips) per second."""

    n: int
    p50: float
    p90: float
    p99: float
    max: float
    rounds: tuple[float, ...]  #: p50 of a wake, rate of an operation
    spread: Spread


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to be: at most, or at least."""

    bound: Literal["<=", ">="]
    value: float

    def is_met(self, value: float) -> bool:
        """Tell whether `value` is within the bound."""
        return value <= self.value if self.bound == "<=" else value >= self.value


@dataclass(frozen=True, slots=True)
class Comparison:
    """One peer against another; without a base the peer's own rate."""

    peer: str
    base: str | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison and what came out."""

    comparison: Comparison
    spread: Spread

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        target = self.comparison.target
        return None if target is None else target.is_met(self.spread.median)


def percentile(ordered: Sequence[int], fraction: float) -> int:
    """Return the nearest-rank percentile of an ascending, non-empty sequence."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def figures_of(kind: Kind, units: int, rounds: Sequence[Sequence[int]]) -> Figures:
    """Fold the samples (ns) of every round; one sample of an operation stands for `units` of them."""
    ordered = sorted(sample for samples in rounds for sample in samples)
    if kind == "wake":
        per_round = tuple(percentile(sorted(samples), 0.5) / 1e3 for samples in rounds)
    else:
        per_round = tuple(units * len(samples) / (sum(samples) / 1e9) for samples in rounds)
    return Figures(
        n=len(ordered),
        p50=percentile(ordered, 0.5) / 1e3,
        p90=percentile(ordered, 0.9) / 1e3,
        p99=percentile(ordered, 0.99) / 1e3,
        max=ordered[-1] / 1e3,
        rounds=per_round,
        spread=_spread(per_round),
    )


def ratio_of(figures: Mapping[str, Figures], comparison: Comparison) -> Ratio:
    """Compare two peers round by round: p50 by p50 for wakes, rate by rate for operations."""
    values = figures[comparison.peer].rounds
    if comparison.base is not None:
        values = tuple(a / b for a, b in zip(values, figures[comparison.base].rounds, strict=True))
    return Ratio(comparison, _spread(values))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))
