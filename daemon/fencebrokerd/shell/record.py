"""What a record of the journal says: the events of a turn, what became of descriptors in it, the packet that brought it about, and its answer.

The core's events know handles, sockets and sessions by number; *entries* say which descriptor each of them is.  Both kinds have a number of
their own in ``KINDS``, and the next version reads what this one wrote: add at the end, change and remove nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from fencebroker.limits import Limits
from fencebrokerd import __version__
from fencebrokerd.config import Config
from fencebrokerd.core.events import EVENTS

__all__ = ["Answer", "Entry", "Packet", "Record", "Snapshot", "config_entry", "config_of", "decode", "encode", "encode_snapshot"]


class Configured(NamedTuple):
    """The configuration in force: a crash must not change it, whatever has become of the file."""

    version: str
    values: tuple[tuple[str, Any], ...]
    limits: tuple[tuple[str, int | float], ...]


class Listening(NamedTuple):
    """A listening socket; ``path``, ``lock`` and the file's identity are None where a service manager passed it."""

    fd: int
    path: str | None
    lock: int | None
    device: int | None
    inode: int | None


class PeerAccepted(NamedTuple):
    """A connection."""

    session: int
    fd: int


class PeerEnded(NamedTuple):
    """A connection is about to be closed."""

    session: int


class EventfdsMade(NamedTuple):
    """The broker's copies for the handles from ``first`` on."""

    first: int
    fds: tuple[int, ...]


class SocketMade(NamedTuple):
    """A timeline's socketpair: our end, and the client's until it is sent; ``cookie`` is the client's."""

    socket: int
    ours: int
    theirs: int
    cookie: int


class RingMade(NamedTuple):
    """The memory of the ring of a timeline's socket."""

    socket: int
    fd: int


class EndSent(NamedTuple):
    """The client has its end of a timeline's socketpair; our copy of it is about to be closed."""

    socket: int


class CreatorWatched(NamedTuple):
    """The pidfd of the process behind a session that has created timelines."""

    session: int
    fd: int


class CreatorForgotten(NamedTuple):
    """That pidfd is about to be closed."""

    session: int


class Unread(NamedTuple):
    """Answers with descriptors that a session may not have taken yet, the newest last: what each uses of the kernel's memory, and how many."""

    session: int
    packets: tuple[tuple[int, int], ...]


class PeerKept(NamedTuple):
    """The socket of a session that has ended, with so many descriptors of that user unread."""

    fd: int
    uid: int
    n: int


class PeerLetGo(NamedTuple):
    """That socket is about to be closed."""

    fd: int


Entry: TypeAlias = (
    Configured
    | Listening
    | PeerAccepted
    | PeerEnded
    | EventfdsMade
    | SocketMade
    | EndSent
    | CreatorWatched
    | CreatorForgotten
    | RingMade
    | Unread
    | PeerKept
    | PeerLetGo
)

#: The core's events from 0, ours from 128.
_ENTRIES: Final = (
    Configured,
    Listening,
    PeerAccepted,
    PeerEnded,
    EventfdsMade,
    SocketMade,
    EndSent,
    CreatorWatched,
    CreatorForgotten,
    RingMade,
    Unread,
    PeerKept,
    PeerLetGo,
)
KINDS: Final[dict[int, type[Any]]] = {**dict(enumerate(EVENTS)), **{128 + i: kind for i, kind in enumerate(_ENTRIES)}}
_NUMBER_OF: Final[dict[type[Any], int]] = {kind: number for number, kind in KINDS.items()}
_number_of: Final = _NUMBER_OF.__getitem__


class Packet(NamedTuple):
    """Which packet: of a session (``a`` is its serial, ``b`` 0), or of a timeline's socket (holder and counter)."""

    is_timeline: bool
    id: int
    a: int
    b: int


class Answer(NamedTuple):
    """What was answered: the packet, and the handles, or the socket, or the ring of one, whose descriptors go with it."""

    packet: bytes
    handles: Sequence[int]
    socket: int | None
    ring: int | None = None


class Record(NamedTuple):
    """One turn's worth."""

    packet: Packet | None
    changes: list[Any]
    answer: Answer | None


class Snapshot(NamedTuple):
    """Everything so far: the core's rows, the entries that still hold, what is owed to sessions that have not taken their answer yet."""

    rows: Sequence[Any]
    entries: list[Any]
    owed: list[tuple[Packet, Answer | None]]
    next_session: int


#: Kept, for making one costs more than packing a record.
_pack: Final = msgpack.Packer().pack


def config_entry(config: Config) -> Configured:
    """Put a configuration as plain values."""
    values = dataclasses.asdict(config)
    limits = values.pop("limits")
    values["listen"] = None if config.listen is None else str(config.listen)
    values["quotas"] = tuple((uid, tuple(own.items())) for uid, own in config.quotas.items())
    return Configured(__version__, tuple(values.items()), tuple(limits.items()))


def config_of(entry: Configured) -> Config:
    """Build the configuration again; what this version does not know any more is left out, and what is new has its default."""
    values: dict[str, Any] = dict(entry.values)
    limits: dict[str, Any] = dict(entry.limits)
    values["listen"] = None if values.get("listen") is None else Path(values["listen"])
    values["quotas"] = {uid: dict(own) for uid, own in values.get("quotas", ())}
    known = {f.name for f in dataclasses.fields(Config)}
    known_limits = {f.name for f in dataclasses.fields(Limits)}
    return Config(
        **{name: value for name, value in values.items() if name in known},
        limits=Limits(**{name: value for name, value in limits.items() if name in known_limits}),
    )


def encode(packet: Packet | None, changes: Sequence[Any], answer: Answer | None) -> bytes:
    """Return the payload of a record."""
    packed: bytes = _pack((packet, bytes(map(_number_of, map(type, changes))), changes, answer))
    return packed


def encode_snapshot(rows: Sequence[Any], entries: Sequence[Any], owed: Iterable[tuple[Packet, Answer | None]], next_session: int) -> bytes:
    """Return the payload of the record that stands for all before it."""
    numbers = bytes([_NUMBER_OF[type(entry)] for entry in entries])
    packed: bytes = _pack((None, numbers, entries, None, rows, list(owed), next_session))
    return packed


def decode(payload: bytes) -> Record | Snapshot:
    """Read either kind; ValueError, or another exception, for what this version does not know."""
    packet, numbers, values, answer, *more = msgpack.unpackb(payload, use_list=False)
    changes = []
    for number, value in zip(numbers, values, strict=True):
        kind = KINDS.get(number)
        if kind is None:
            raise ValueError(f"the journal has a change of kind {number}, which this version does not know")
        changes.append(kind(*value))
    if not more:
        return Record(None if packet is None else Packet(*packet), changes, None if answer is None else Answer(*answer))
    rows, owed, next_session = more
    return Snapshot(rows, changes, [(Packet(*p), None if a is None else Answer(*a)) for p, a in owed], next_session)
