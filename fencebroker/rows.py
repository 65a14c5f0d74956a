"""The rows that LIST and LOOKUP answer with, by column.  Pure; the one table that gives the columns of the wire their names.

A broker may append columns to a row without a new protocol version; a reader takes those it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from fencebroker.model import ProcessInfo

__all__ = ["ROWS", "FenceRow", "Row", "SessionRow", "SyncFileRow", "TimelineRow", "read_row"]


class TimelineRow(NamedTuple):
    """A timeline."""

    context: int
    name: str | None  #: None: it has none, and its points have none
    driver: str
    value: int
    highest: int  #: the highest point that its producer exported
    n_active: int
    pid: int
    uid: int
    comm: str
    created_ns: int
    mode: int
    expiry_ns: int | None  #: how long after it was first asked for an active point fails with ETIME
    n_descriptors: int  #: how many different descriptors of it are open; copies of one count once
    creator_alive: bool
    inodes: tuple[int, ...]  #: of those descriptors, as /proc/PID/fd shows them to whoever holds one; at most 16
    advanced_ns: int  #: when the value last grew, or the timeline was made
    oldest_ns: int | None  #: since when the oldest active point is waited for
    n_fences: int  #: how many of its points were asked for, since it was made
    n_signalled: int  #: how many of those were active and then signalled as OK
    n_failed: int  #: how many of those were active and then failed
    latencies: tuple[int, ...]  #: how long the n_signalled were active: a bucket and how many are in it, and so on

    @property
    def owner(self) -> ProcessInfo:
        """The process that created it."""
        return ProcessInfo(self.pid, self.uid, self.comm)


class FenceRow(NamedTuple):
    """A fence."""

    id: int
    kind: str  #: point, all, any, placeholder (a point whose timeline does not exist yet), stub (signalled before it was made)
    n_sync_files: int
    uid: int  #: who asked for it first
    obj_name: str  #: the timeline's name, or what stands for it, as in struct sync_fence_info
    driver_name: str
    status: int
    timestamp_ns: int  #: when it signalled; 0 while active
    context: int
    seqno: int
    owner: ProcessInfo | None  #: who created the timeline
    created_ns: int
    deadline_ns: int | None
    expires_ns: int | None
    timeline: str | None  #: the name under which it can be asked for
    timeline_uid: int | None  #: whose name that is
    members: tuple[int, ...]  #: ids of the fences that an array waits for


class SyncFileRow(NamedTuple):
    """A sync_file, and the fence that it carries."""

    id: int
    name: str
    status: int
    context: int
    seqno: int
    pid: int
    uid: int
    comm: str
    created_ns: int
    timestamp_ns: int
    tampered: bool
    is_open: bool  #: whoever asked for it has not closed its handle
    fence: int
    kind: str
    timeline: str | None
    timeline_uid: int | None
    eventfd_id: int  #: as /proc/PID/fdinfo shows it to whoever holds the descriptor; 0: it could not be looked up

    @property
    def creator(self) -> ProcessInfo:
        """The process that asked for it."""
        return ProcessInfo(self.pid, self.uid, self.comm)


class SessionRow(NamedTuple):
    """A client's connection."""

    id: int
    pid: int
    uid: int
    comm: str
    n_sync_files: int
    n_timelines: int  #: timelines on which it may mint
    created_ns: int

    @property
    def client(self) -> ProcessInfo:
        """The process that connected."""
        return ProcessInfo(self.pid, self.uid, self.comm)


Row: TypeAlias = TimelineRow | FenceRow | SyncFileRow | SessionRow

#: The names that LOOKUP answers with -> the row.  LIST uses their plurals.
ROWS: Final[dict[str, type[Row]]] = {"timeline": TimelineRow, "fence": FenceRow, "sync_file": SyncFileRow, "session": SessionRow}

#: Columns that travel as lists.
_NESTED: Final[dict[str, Callable[[list[Any]], tuple[Any, ...]]]] = {
    "inodes": tuple,
    "latencies": tuple,
    "members": tuple,
    "owner": lambda owner: ProcessInfo(*owner),
}


def read_row(kind: str, columns: Sequence[Any]) -> Row:
    """Give the columns of one row their names.  ValueError when there are fewer than this version knows."""
    cls = ROWS[kind]
    if len(columns) < len(cls._fields):
        raise ValueError(f"a {kind} has {len(columns)} columns and should have {len(cls._fields)}; the broker is older than this program")
    known = zip(cls._fields, columns, strict=False)
    return cls._make(_NESTED[field](value) if field in _NESTED and value is not None else value for field, value in known)
