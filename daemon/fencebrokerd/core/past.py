"""What a timeline has behind it: the latest of what happened, and counts.  Folded from events like everything else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from fencebroker.latency import bucket_of

if TYPE_CHECKING:
    from fencebrokerd.core.fence import Fence

__all__ = ["Past"]

#: Of each timeline; enough to see what it was doing when it stopped doing it.
KEPT: Final = 16

#: pid, uid, comm
Who = tuple[int, int, str]


#: Something that happened: when, what (created, opened, exported, advanced, failed, orphaned), seqno, status, and who.  ``who`` is None for
#: what came over the timeline's socket: its sender has no name there.  A plain tuple, for one is made with each signal.
Entry = tuple[int, str, int, int, Who | None]


class Past:
    """``n_fences`` counts the points that were asked for; ``latencies``, by bucket, how long those were active that signalled as OK."""

    __slots__ = ("entries", "latencies", "n_failed", "n_fences", "n_signalled")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.latencies: dict[int, int] = {}
        self.n_fences = 0
        self.n_signalled = 0
        self.n_failed = 0

    def note(self, at: int, what: str, seqno: int = 0, status: int = 0, who: Who | None = None) -> None:
        """Keep in mind that something happened."""
        self.entries.append((at, what, seqno, status, who))

    def advanced(self, value: int, at: int) -> None:
        """Keep in mind that the value grew, unless that was because the point of that value failed."""
        last = self.entries[-1]
        if last[0] != at or last[1:3] != ("failed", value):
            self.entries.append((at, "advanced", value, 0, None))

    def signalled(self, fence: Fence, status: int, at: int) -> None:
        """Count a point's fence that has just signalled.  Of several that fail at once the first is in the entries."""
        if status > 0:
            self.n_signalled += 1
            latencies, bucket = self.latencies, bucket_of(at - fence.created)
            latencies[bucket] = latencies.get(bucket, 0) + 1
            return
        self.n_failed += 1
        last = self.entries[-1]
        if (last[0], last[3]) != (at, status):
            self.note(at, "failed", fence.seqno, status)
