"""What the journal costs while nothing goes wrong: one workload, with a broker that can be killed and with one that cannot, side by side."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import fencebroker as fb
from benchmarks.broker import running_broker, take_operations
from benchmarks.waiting import BATCH

__all__ = ["JOURNAL", "QUICK_JOURNAL", "Price", "as_markdown", "measure_journal"]

#: Rounds, and operations in each.
JOURNAL, QUICK_JOURNAL = (40, 400), (3, 32)
#: With the journal at least this part of the rate without it.
TARGET = 0.85
_TITLES = {1: "export + advance + close, one at a time", BATCH: f"the same in batches of {BATCH}"}


class Price(NamedTuple):
    """Rates per second of one workload, round by round."""

    batch: int
    without: list[float]
    with_journal: list[float]

    @property
    def ratios(self) -> list[float]:
        """Each round compared with itself: what the machine does meanwhile meets both."""
        return [a / b for a, b in zip(self.with_journal, self.without, strict=True)]

    @property
    def met(self) -> bool:
        return median(self.ratios) >= TARGET


def measure_journal(rounds: int, operations: int) -> list[Price]:
    """Run both brokers in turns, each first in every other round."""
    with (
        running_broker(arguments=["--no-keeper"]) as plain,
        running_broker() as safe,
        fb.connect(plain.path, autostart=False) as to_plain,
        fb.connect(safe.path, autostart=False) as to_safe,
        to_plain.create_timeline("benchmark") as on_plain,
        to_safe.create_timeline("benchmark") as on_safe,
    ):
        prices = [Price(batch, [], []) for batch in _TITLES]
        first = 1
        for number in range(-1, rounds):  # -1: the warm-up
            for price in prices:
                n = max(4, operations // price.batch)
                both = [(on_plain, price.without), (on_safe, price.with_journal)]
                for timeline, rates in both if number % 2 else both[::-1]:
                    samples = take_operations(timeline, first, n, price.batch)
                    if number >= 0:
                        rates.append(price.batch * n / (sum(samples) / 1e9))
                first += n * price.batch
        return prices


def as_markdown(prices: list[Price]) -> str:
    """Write the table."""
    lines = [
        "| rate per second, median of the rounds | without | with the journal | ratio | target |",
        "|---------------------------------------|--------:|-----------------:|------:|-------:|",
    ]
    for price in prices:
        ratios = price.ratios
        lines.append(
            f"| {_TITLES[price.batch]} | {median(price.without):,.0f} | {median(price.with_journal):,.0f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) | >= {TARGET}: {'met' if price.met else 'MISSED'} |"
        )
    return "\n".join(lines) + "\n"
