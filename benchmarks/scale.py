"""The core alone with many active fences on one timeline: no sockets, no descriptors; processor time, so that a busy machine matters less.

What an advance costs per fence should grow as the logarithm of how many are active: a heap gives the lowest.
"""

from __future__ import annotations

import gc
import random
from time import process_time_ns
from typing import NamedTuple

from fencebroker import wire
from fencebroker.limits import Limits
from fencebrokerd.core.broker import Broker
from fencebrokerd.core.minting import mint

__all__ = ["SIZES", "Scale", "as_markdown", "measure_scale"]

SIZES = (1_000, 10_000, 100_000, 1_000_000)
#: Fences signalled per size, one advance each.
STEPS = 100_000


class Scale(NamedTuple):
    """What was measured with ``size`` active fences; times in microseconds per fence."""

    size: int
    mint: float
    advance: float  #: one advance for each fence
    sweep: float  #: one advance for all that are left


def measure_scale(size: int) -> Scale:
    """Measure one size; the best of three, where that takes no time."""
    return min((_measure(size) for _ in range(3 if size < 1_000_000 else 1)), key=lambda scale: scale.advance)


def _measure(size: int) -> Scale:
    """Make ``size`` active fences in random order, and signal them from the lowest."""
    core = Broker(Limits(retained_records=1), own_uid=0)
    core.connect(1, 0, 0, frozenset(), 1, "benchmark", 1)
    core.handle(1, [1, wire.CREATE_TIMELINE, None, "benchmark", 0o600, None], (), 1)
    core.socket_made(1, 1, 1)
    timeline = core.state.timelines[1]
    turn = core._turn
    seqnos = list(range(1, size + 1))
    random.Random(0).shuffle(seqnos)
    gc.disable()  # its full collections grow with everything that exists, here a million records that a real broker never has
    try:
        started = process_time_ns()
        for seqno in seqnos:
            turn.events.clear()
            mint(turn, timeline, seqno, 0)
        made = process_time_ns() - started
        steps = min(STEPS, size // 2)
        started = process_time_ns()
        for seqno in range(1, steps + 1):
            core.handle_timeline(1, [7, seqno, wire.ADVANCE, seqno], seqno)
            core.tidy(seqno)
        advanced = process_time_ns() - started
        assert timeline.n_active == size - steps
        started = process_time_ns()
        core.handle_timeline(1, [7, size, wire.ADVANCE, size], size)
        core.tidy(size)
        swept = process_time_ns() - started
        assert timeline.n_active == 0
    finally:
        gc.enable()
    return Scale(size, made / size / 1e3, advanced / steps / 1e3, swept / (size - steps) / 1e3)


def as_markdown(scales: list[Scale]) -> str:
    """Write the table; the last column compares with the smallest size."""
    first = scales[0].advance
    lines = ["| active fences | make one | advance by one | advance over the rest, each | against the first row |", "|--:|--:|--:|--:|--:|"]
    lines += [f"| {s.size:,} | {s.mint:.1f} us | {s.advance:.1f} us | {s.sweep:.1f} us | {s.advance / first:.2f} |" for s in scales]
    return "\n".join(lines) + "\n"
