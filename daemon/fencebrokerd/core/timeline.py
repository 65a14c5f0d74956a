"""A timeline: a u64 that only grows, and the fences of its points."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from fencebrokerd.core.past import Past

if TYPE_CHECKING:
    from fencebrokerd.core.account import Charge
    from fencebrokerd.core.fence import Fence

__all__ = ["Ring", "Timeline"]

READ = 4
WRITE = 2


class Ring:
    """What the broker knows of the ring through which a timeline's only owner signals.

    ``taken`` entries of it are decided.  ``awaited`` is a heap of the seqnos that its producer must ring for.  ``frozen``: for good.
    """

    __slots__ = ("awaited", "charge", "frozen", "holder", "socket", "taken")

    def __init__(self, socket: int, holder: int, charge: Charge) -> None:
        self.socket = socket
        self.holder = holder
        self.charge = charge
        self.taken = 0
        self.frozen = False
        self.awaited: list[int] = []


class Timeline:
    """State of one timeline.

    ``points`` has the fence of every point that is active or still on record; ``pending`` is a heap of the seqnos that may be active.
    A point leaves the heap when an advance passes it, so signalling costs O(log n) a fence and nothing for the others.
    ``sockets`` are the timeline's descriptors, with the inode of the end that travels: when the last is closed, the timeline ends.
    ``creator`` is the session that made it; while ``creator_alive`` its process lives.
    """

    __slots__ = (
        "advanced_at",
        "charge",
        "comm",
        "context",
        "created",
        "creator",
        "creator_alive",
        "driver",
        "expiry",
        "failures",
        "gid",
        "highest",
        "minters",
        "mode",
        "n_active",
        "name",
        "past",
        "pending",
        "pid",
        "points",
        "ring",
        "sockets",
        "uid",
        "value",
    )

    def __init__(
        self,
        context: int,
        name: str | None,
        driver: str,
        mode: int,
        expiry: int | None,
        owner: tuple[int, int, int, str],
        creator: int,
        created: int,
        charge: Charge,
    ) -> None:
        self.context = context
        self.name = name
        self.driver = driver
        self.mode = mode
        self.expiry = expiry
        self.uid, self.gid, self.pid, self.comm = owner
        self.creator = creator
        self.creator_alive = True
        self.created = created
        self.charge = charge
        self.value = 0
        self.advanced_at = created
        self.past = Past()
        self.highest = 0
        self.n_active = 0
        self.points: dict[int, Fence] = {}
        self.pending: list[int] = []
        self.failures: dict[int, tuple[int, int]] = {}
        self.sockets: dict[int, int] = {}
        self.ring: Ring | None = None
        self.minters: set[int] = set()

    @property
    def label(self) -> str:
        """The name as others read it; an unnamed timeline is called by its creator's command, as sw_sync does."""
        return self.comm if self.name is None else self.name

    @property
    def oldest(self) -> Fence | None:
        """The active fence that was asked for first."""
        return next((fence for fence in self.points.values() if not fence.status), None) if self.n_active else None

    def add_pending(self, seqno: int) -> None:
        """Note that ``seqno`` is active."""
        heapq.heappush(self.pending, seqno)
        self.n_active += 1
        if len(self.pending) > 2 * self.n_active + 64:  # points that were forgotten leave their seqno behind
            self.pending = [n for n, fence in self.points.items() if not fence.status]
            heapq.heapify(self.pending)

    def pop_passed(self, value: int) -> list[Fence]:
        """Take the active fences at or below ``value`` off the heap, lowest first."""
        passed: list[Fence] = []
        pending = self.pending
        while pending and pending[0] <= value:
            fence = self.points.get(heapq.heappop(pending))
            # A point that was signalled by itself, or forgotten, left its seqno behind.
            if fence is not None and not fence.status and (not passed or passed[-1] is not fence):
                passed.append(fence)
        return passed

    def allows(self, uid: int, gid: int, groups: frozenset[int], right: int) -> bool:
        """Check the mode like a file's: owner, then group, then others; root passes."""
        if uid == 0:
            return True
        if uid == self.uid:
            bits = self.mode >> 6
        elif gid == self.gid or self.gid in groups:
            bits = self.mode >> 3
        else:
            bits = self.mode
        return bool(bits & right)
