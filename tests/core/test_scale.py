"""What a signal costs with many fences, in comparisons and not in seconds: the machine's load does not matter."""

from __future__ import annotations

import math
import random

import pytest

from fencebroker import wire
from fencebrokerd.core.minting import mint
from tests.core.world import ROOT, World, limits


class Counted(int):
    """A seqno that counts how often it was compared."""

    comparisons = 0

    def __lt__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int.__lt__(self, other)  # type: ignore[operator]


@pytest.mark.parametrize("size", [2**10, 2**13, 2**16])
def test_an_advance_takes_the_logarithm_of_what_is_active(size: int) -> None:
    world = World(limits(retained_records=1))
    client = world.connect(ROOT)
    line = client.create()
    timeline = world.state.timelines[line.context]
    turn = world.broker._turn
    seqnos = [Counted(seqno) for seqno in range(1, size + 1)]
    random.Random(1).shuffle(seqnos)
    for seqno in seqnos:
        mint(turn, timeline, seqno, ROOT)
    Counted.comparisons = 0
    steps = 512
    for value in range(1, steps + 1):
        world.run(world.broker.handle_timeline(line.socket, [7, 1, wire.ADVANCE, value], world.tick()))
    assert timeline.n_active == size - steps
    # Taking the lowest of a heap sifts down once and up a little.
    assert Counted.comparisons / steps <= math.log2(size) + 6
    Counted.comparisons = 0
    world.advance(line, size)
    assert timeline.n_active == 0
    assert Counted.comparisons / (size - steps) <= math.log2(size) + 6


def test_forgetting_many_at_once_looks_at_each_once() -> None:
    """A dict's first key is found by walking over all that were deleted before it."""
    world = World(limits(retained_records=1, descriptors=1_000_000))
    client = world.connect(ROOT)
    line = client.create()
    n = 40_000  # walked over again for each, these would take a minute
    turn = world.broker._turn
    timeline = world.state.timelines[line.context]
    for seqno in range(1, n + 1):
        mint(turn, timeline, seqno, ROOT)
    world.advance(line, n)
    assert len(world.state.fences) == 1
