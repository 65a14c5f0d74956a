"""The rounds: every peer, in every placement, again and again, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import figures_of, ratio_of
from benchmarks.peers import COMPARISONS, PEERS, PLACEMENTS, Peer, Placement
from benchmarks.processes import Group, Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.report import Results

__all__ = ["FULL", "QUICK", "Settings", "measure"]

#: Samples thrown away after the processes were moved to other cores.
SETTLE = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    rounds: int
    wakes: int  #: samples per round and peer
    operations: int  #: the same; a batch counts as its members

    def samples(self, peer: Peer) -> int:
        """Return how many samples one round takes of this peer."""
        n = self.wakes if peer.kind == "wake" else self.operations // peer.units
        return max(8, int(n * peer.share))


FULL = Settings(rounds=20, wakes=192, operations=800)
QUICK = Settings(rounds=1, wakes=8, operations=64)


def measure(settings: Settings, progress: Callable[[], None]) -> Results:
    """Run all rounds; `progress` is called after each, the warm-up included.  Peers of which something is missing are left out."""
    peers = [peer for peer in PEERS if peer.missing() is None]
    present = {peer.key for peer in peers}
    comparisons = [c for c in COMPARISONS if c.peer in present and (c.base is None or c.base in present)]
    cpus = sorted(os.sched_getaffinity(0))[:2]
    placements = PLACEMENTS if len(cpus) > 1 else [p for p in PLACEMENTS if p.producer == p.others]
    samples: dict[str, dict[str, list[Samples]]] = {p.key: {peer.key: [] for peer in peers} for p in placements}
    with ExitStack() as stack:
        groups: dict[str, Group] = {}
        for peer in peers:
            groups[peer.key] = stack.enter_context(Group(peer.title))
            peer.start(groups[peer.key])
        for number in range(-1, settings.rounds):  # -1: the warm-up
            for placement in placements:
                # Each round begins with another peer, so that none always follows the same one.
                for peer in _rotated(peers, number):
                    taken = _take(groups[peer.key], placement, cpus, settings.samples(peer))
                    if number >= 0:
                        samples[placement.key][peer.key].append(taken)
            progress()
    results = {}
    for placement in placements:
        figures = {peer.key: figures_of(peer.kind, peer.units, samples[placement.key][peer.key]) for peer in peers}
        results[placement.key] = figures, [ratio_of(figures, comparison) for comparison in comparisons]
    return results


def _take(group: Group, placement: Placement, cpus: Sequence[int], n: int) -> Samples:
    group.place(cpus[placement.producer], cpus[placement.others])
    return group.take(SETTLE + n)[SETTLE:]


def _rotated(peers: Sequence[Peer], by: int) -> Sequence[Peer]:
    by %= len(peers)
    return [*peers[by:], *peers[:by]]
