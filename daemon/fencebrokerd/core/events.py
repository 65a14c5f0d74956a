"""Every change of state there is.  State is the fold of these values; the same list feeds subscribers and a journal.

Ids in events (fences, handles, sockets) are given by the decision that emits them; they grow and are never reused.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

__all__ = ["EVENTS", "Event"]


class SessionOpened(NamedTuple):
    """A client said hello and was accepted."""

    session: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    comm: str
    at: int


class SessionClosed(NamedTuple):
    """A client is gone, with its handles and its right to mint."""

    session: int
    at: int


class TimelineCreated(NamedTuple):
    """A timeline, at value 0, with its first socket."""

    context: int
    socket: int
    session: int
    name: str | None
    driver: str
    mode: int
    expiry: int | None
    at: int


class TimelineOpened(NamedTuple):
    """Another socket of a timeline, for a second producer."""

    context: int
    socket: int
    session: int
    at: int


class TimelineShown(NamedTuple):
    """A session showed a timeline's descriptor: it may mint."""

    context: int
    session: int


class TimelineForgotten(NamedTuple):
    """A session gave its right to mint back."""

    context: int
    session: int


class TimelineModeSet(NamedTuple):
    """Its owner changed who may open a timeline; whoever has a descriptor keeps it."""

    context: int
    mode: int


class SocketMade(NamedTuple):
    """A timeline's socketpair exists; ``inode`` is that of the end that travels, by which /proc shows who holds it."""

    context: int
    socket: int
    inode: int


class RingOpened(NamedTuple):
    """A timeline's only owner signals through a ring from now on; ``holder`` is the number in its packets."""

    context: int
    socket: int
    holder: int


class RingDrained(NamedTuple):
    """The entries up to this serial were decided; what they brought about stands before."""

    context: int
    serial: int


class RingFrozen(NamedTuple):
    """Somebody else may signal: the producer sends packets, and its ring is only read to its end."""

    context: int


class RingClosed(NamedTuple):
    """Nothing more comes through the ring: its producer said so, or it could not be made."""

    context: int


class CreatorDied(NamedTuple):
    """The process that opened this session is gone; timelines it created may live on in other hands."""

    session: int
    at: int


class SocketClosed(NamedTuple):
    """The last copy of one of a timeline's sockets was closed."""

    context: int
    socket: int


class TimelineClosed(NamedTuple):
    """A timeline ended; its context is never used again."""

    context: int
    at: int


class TimelineAdvanced(NamedTuple):
    """A timeline's value grew.  The fences it signals follow as events of their own."""

    context: int
    value: int
    at: int


class TimelineExported(NamedTuple):
    """Its producer exported a higher point than ever; the next one is above.  A consumer that waits ahead does not move this."""

    context: int
    highest: int
    session: int
    at: int


class PointFailed(NamedTuple):
    """A point failed, so that a later export of it has the error too."""

    context: int
    seqno: int
    status: int
    at: int


class FenceCreated(NamedTuple):
    """A point's fence; ``status`` is not 0 when it was born signalled."""

    fence: int
    context: int
    seqno: int
    status: int
    timestamp: int
    uid: int
    expires: int | None
    at: int


class StubCreated(NamedTuple):
    """A fence that was signalled before it was made: what a merge of signalled ones yields, or a descriptor the broker forgot."""

    fence: int
    status: int
    timestamp: int
    uid: int
    detached: bool
    at: int


class ArrayCreated(NamedTuple):
    """A fence of several, or one fence with an expiry of its own."""

    fence: int
    context: int
    members: tuple[int, ...]
    any: bool
    uid: int
    expires: int | None
    at: int


class PlaceholderCreated(NamedTuple):
    """A fence for a point of a timeline that does not exist yet."""

    fence: int
    context: int
    owner: int
    name: str
    seqno: int
    uid: int
    at: int


class PlaceholderBound(NamedTuple):
    """The timeline came; what carried the placeholder carries the point's fence now."""

    fence: int
    point: int


class FenceSignalled(NamedTuple):
    """A fence signalled: 1, or a negative errno.  Once per fence."""

    fence: int
    status: int
    at: int


class DeadlineSet(NamedTuple):
    """Somebody wants the fence by then; only a sooner one replaces it."""

    fence: int
    deadline: int


class FenceForgotten(NamedTuple):
    """The record of a fence is gone."""

    fence: int


class SyncFileCreated(NamedTuple):
    """A descriptor that carries a fence, asked for by a session."""

    handle: int
    fence: int
    session: int
    name: str
    private: bool
    at: int


class SyncFileReleased(NamedTuple):
    """The session closed its handle; others may still have the descriptor."""

    handle: int


class SyncFileDropped(NamedTuple):
    """The broker closes its copy of the descriptor; if it comes back it is detached."""

    handle: int


class SyncFileTampered(NamedTuple):
    """Somebody who holds the descriptor wrote to it."""

    handle: int


class Subscribed(NamedTuple):
    """A session follows the events from here on."""

    session: int


Event: TypeAlias = (
    SessionOpened
    | SessionClosed
    | TimelineCreated
    | TimelineOpened
    | TimelineShown
    | TimelineForgotten
    | TimelineModeSet
    | SocketMade
    | CreatorDied
    | SocketClosed
    | TimelineClosed
    | TimelineAdvanced
    | TimelineExported
    | PointFailed
    | FenceCreated
    | StubCreated
    | ArrayCreated
    | PlaceholderCreated
    | PlaceholderBound
    | FenceSignalled
    | DeadlineSet
    | FenceForgotten
    | SyncFileCreated
    | SyncFileReleased
    | SyncFileDropped
    | SyncFileTampered
    | Subscribed
    | RingOpened
    | RingDrained
    | RingFrozen
    | RingClosed
)

#: By the number under which a journal knows each kind.  The next version reads what this one wrote: add at the end, change and remove nothing.
EVENTS: Final[tuple[type[Event], ...]] = (
    SessionOpened,
    SessionClosed,
    TimelineCreated,
    TimelineOpened,
    TimelineShown,
    TimelineForgotten,
    SocketMade,
    CreatorDied,
    SocketClosed,
    TimelineClosed,
    TimelineAdvanced,
    TimelineExported,
    PointFailed,
    FenceCreated,
    StubCreated,
    ArrayCreated,
    PlaceholderCreated,
    PlaceholderBound,
    FenceSignalled,
    DeadlineSet,
    FenceForgotten,
    SyncFileCreated,
    SyncFileReleased,
    SyncFileDropped,
    SyncFileTampered,
    Subscribed,
    TimelineModeSet,
    RingOpened,
    RingDrained,
    RingFrozen,
    RingClosed,
)
