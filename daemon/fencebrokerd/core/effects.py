"""What a decision wants done outside, and what the shell says of descriptors that came in.  Frozen values; the shell acts in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Effect", "Reference"]


class CreateEventfds(NamedTuple):
    """Make eventfds for the handles ``first`` .. ``first + n - 1``.  If that fails, tell the core and drop the rest of the effects."""

    session: int
    serial: int
    first: int
    n: int


class CreateSocket(NamedTuple):
    """Make a timeline's socketpair: one end is watched as ``socket``, the other goes out with the answer that names it."""

    session: int
    serial: int
    socket: int


class CreateRing(NamedTuple):
    """Make the ring of a timeline's ``socket``; it goes out with the answer that names it."""

    session: int
    serial: int
    socket: int


class FreezeRing(NamedTuple):
    """Somebody else is about to be let in: have the producer use its socket from now on, and drain what it has committed."""

    socket: int


class CloseRing(NamedTuple):
    """Let go of a ring, of which nothing more is to come."""

    socket: int


class Signal(NamedTuple):
    """Write ``status`` to the eventfds of these handles.  ``written``: their producer does so by itself, so most of them have it."""

    handles: Sequence[int]
    status: int
    written: bool = False


class CloseHandles(NamedTuple):
    """Close the broker's copies of these eventfds."""

    handles: Sequence[int]


class CloseSocket(NamedTuple):
    """Stop watching a timeline's socket and close it.  ``last_of``: this session's process created no other timeline that still exists."""

    socket: int
    last_of: int | None = None


class Send(NamedTuple):
    """Send a message to a session, with copies of these handles' eventfds, with the other end of a timeline's ``socket``, or with the ``ring`` of
    one.
    """

    session: int
    message: list[Any]
    handles: Sequence[int] = ()
    socket: int | None = None
    ring: int | None = None


class Disconnect(NamedTuple):
    """End a session that broke a rule."""

    session: int
    reason: str


Effect: TypeAlias = (
    CreateEventfds | CreateSocket | CreateRing | FreezeRing | CloseRing | Signal | CloseHandles | CloseSocket | Send | Disconnect
)


class KnownFence(NamedTuple):
    """The descriptor is one of ours, while we hold our copy.  ``carried`` is the status its count says, None if no broker left it so."""

    handle: int
    carried: int | None


class DetachedFence(NamedTuple):
    """The descriptor carries a status that a broker wrote, but no record of it is left."""

    status: int


class KnownTimeline(NamedTuple):
    """The descriptor is the other end of this timeline socket."""

    socket: int


class Foreign(NamedTuple):
    """Anything else; ``what`` says what it is in words."""

    what: str


Reference: TypeAlias = KnownFence | DetachedFence | KnownTimeline | Foreign
