"""What a signal costs when there are many fences."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebrokerd.core.broker import Broker
from fencebrokerd.core.minting import mint
from tests.core.world import ROOT, limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fencebrokerd.core.timeline import Timeline


class Counted(int):
    """A seqno that counts how often it was compared: that does not depend on what else the machine does."""

    comparisons = 0

    def __lt__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int.__lt__(self, other)  # type: ignore[operator]


def with_fences(seqnos: Iterable[int]) -> tuple[Broker, Timeline]:
    """A core with one timeline and these fences, which nobody holds."""
    core = Broker(limits(retained_records=1), ROOT)
    core.connect(1, ROOT, ROOT, frozenset(), 1, "test", 1)
    core.handle(1, [1, wire.CREATE_TIMELINE, None, "test", 0o600, None], (), 1)
    core.socket_made(1, 1, 1)
    timeline = core.state.timelines[1]
    for seqno in seqnos:
        mint(core._turn, timeline, seqno, ROOT)
    return core, timeline


def advance(core: Broker, value: int) -> None:
    core.handle_timeline(1, [7, 1, wire.ADVANCE, value], value)
    core.tidy(value)


@pytest.mark.parametrize("size", [2**10, 2**13, 2**16])
def test_an_advance_takes_the_logarithm_of_what_is_active(size: int) -> None:
    seqnos = [Counted(seqno) for seqno in range(1, size + 1)]
    random.Random(1).shuffle(seqnos)
    core, timeline = with_fences(seqnos)
    Counted.comparisons = 0
    steps = 512
    for value in range(1, steps + 1):
        advance(core, value)
    assert timeline.n_active == size - steps
    # Taking the lowest off a heap sifts down once and up a little.
    assert Counted.comparisons / steps <= math.log2(size) + 6
    Counted.comparisons = 0
    advance(core, size)
    assert timeline.n_active == 0
    assert Counted.comparisons / (size - steps) <= math.log2(size) + 6


def test_an_advance_over_many_takes_each_once() -> None:
    def seconds(size: int) -> float:
        core, timeline = with_fences(range(1, size + 1))
        started = time.process_time()
        advance(core, size)
        took = time.process_time() - started
        assert timeline.n_active == 0
        assert len(core.state.fences) == 1
        return took

    # Sixteen times as many: 16 times as long if each is looked at once, and 256 times if all are looked at for each.
    small = min(seconds(10_000) for _ in range(3))
    assert seconds(160_000) < 80 * small
