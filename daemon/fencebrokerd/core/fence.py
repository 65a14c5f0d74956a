"""Fences and the sync_files that carry them.

A fence signals once: ``status`` goes from 0 to 1 or to a negative errno and never back.  Kinds:
  Point        one seqno of a timeline; one fence per (context, seqno) while it is on record
  Array        several fences, or one with an expiry of its own; has a fresh context and seqno 1, as dma_fence_array has
  Stub         signalled before it was made; context 0, seqno 0, as dma_fence_get_stub() has
  Placeholder  a point of a timeline that does not exist yet
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fencebrokerd.core.account import Charge
    from fencebrokerd.core.timeline import Timeline

__all__ = ["NO_ARRAYS", "Array", "Fence", "Placeholder", "Stub", "SyncFile", "automatic_name"]

#: Shared by all fences that are in no array, which are most, and never filled: an empty dict each would be a tenth of what a fence takes.
NO_ARRAYS: Final[dict[int, Array]] = {}


class Fence:
    """A point's fence, and what every kind has.

    ``arrays`` are the arrays that wait for it, by id; ``sync_files`` are those that carry it, by handle.
    ``n_open`` counts the sync_files whose session still has its handle.
    """

    __slots__ = (
        "arrays",
        "context",
        "created",
        "deadline",
        "expires",
        "id",
        "n_open",
        "seqno",
        "status",
        "sync_files",
        "timeline",
        "timestamp",
        "uid",
    )

    def __init__(self, id: int, context: int, seqno: int, uid: int, created: int, timeline: Timeline | None = None) -> None:
        self.id = id
        self.context = context
        self.seqno = seqno
        self.uid = uid
        self.created = created
        self.timeline = timeline
        self.status = 0
        self.timestamp = 0
        self.deadline: int | None = None
        self.expires: int | None = None
        self.n_open = 0
        self.arrays = NO_ARRAYS
        self.sync_files: dict[int, SyncFile] = {}

    def add_array(self, array: Array) -> None:
        """Note that ``array`` waits for this fence."""
        if self.arrays is NO_ARRAYS:
            self.arrays = {}
        self.arrays[array.id] = array

    @property
    def names(self) -> tuple[str, str]:
        """Driver and timeline name."""
        assert self.timeline is not None
        return self.timeline.driver, self.timeline.label

    @property
    def shown_seqno(self) -> int:
        """The seqno as others read it."""
        return self.seqno

    @property
    def is_unused(self) -> bool:
        """Nobody can see whether it signals."""
        return not self.sync_files and not self.arrays


class Stub(Fence):
    """Signalled at birth."""

    __slots__ = ("detached",)

    def __init__(self, id: int, status: int, timestamp: int, uid: int, created: int, detached: bool) -> None:
        super().__init__(id, 0, 0, uid, created)
        self.status = status
        self.timestamp = timestamp
        self.detached = detached

    @property
    def names(self) -> tuple[str, str]:
        return ("detached-driver", "signaled-timeline") if self.detached else ("stub", "stub")


class Array(Fence):
    """Signals with its last member (``any``: with its first).

    ``members`` is a set in order.  ``error`` is the first error among them so far, 0 for none.
    """

    __slots__ = ("any", "charge", "error", "members", "n_pending")

    def __init__(self, id: int, context: int, members: tuple[Fence, ...], any: bool, uid: int, created: int, charge: Charge) -> None:
        super().__init__(id, context, 1, uid, created)
        self.charge = charge
        self.members = dict.fromkeys(members)
        self.any = any
        self.n_pending = 0
        first: Fence | None = None
        for member in members:
            if not member.status:
                self.n_pending += 1
            elif member.status < 0 and (first is None or member.timestamp < first.timestamp):
                first = member
        self.error = 0 if first is None else first.status

    @property
    def names(self) -> tuple[str, str]:
        return "dma_fence_array", "unbound"

    @property
    def is_flat(self) -> bool:
        """A merge may take its members instead of itself: it waits for all, and adds no expiry."""
        return not self.any and self.expires is None


class Placeholder(Fence):
    """Stands for ``name@wanted`` of the uid ``owner`` until that timeline exists."""

    __slots__ = ("name", "owner", "wanted")

    def __init__(self, id: int, context: int, owner: int, name: str, wanted: int, uid: int, created: int) -> None:
        super().__init__(id, context, 0, uid, created)
        self.owner = owner
        self.name = name
        self.wanted = wanted

    @property
    def names(self) -> tuple[str, str]:
        return "placeholder", self.name

    @property
    def shown_seqno(self) -> int:
        """It has none of its own yet, and shows the one it waits for."""
        return self.wanted


class SyncFile:
    """A descriptor that carries a fence.  ``asker`` is the session that asked for it, ``session`` too until its handle was closed, then None."""

    __slots__ = ("asker", "charge", "comm", "created", "fence", "handle", "name", "pid", "private", "session", "tampered", "uid")

    def __init__(
        self, handle: int, fence: Fence, name: str, session: int, who: tuple[int, int, str], created: int, private: bool, charge: Charge
    ) -> None:
        self.handle = handle
        self.fence = fence
        self.name = name
        self.asker = session
        self.session: int | None = session
        self.uid, self.pid, self.comm = who
        self.created = created
        self.private = private
        self.charge = charge
        self.tampered = False

    @property
    def label(self) -> str:
        """The name, or the kernel's automatic one."""
        return self.name or automatic_name(self.fence)


def automatic_name(fence: Fence) -> str:
    """What the kernel calls a sync_file without a name of its own, after the fence that it carries."""
    driver, timeline = fence.names
    name = f"{driver}-{timeline}{fence.context}-{fence.seqno}"
    return name[:31] if name.isascii() else name.encode()[:31].decode(errors="ignore")
