"""Messages <-> packets.  Pure; one packet is one message; exact.

Facts
  A packet is one MessagePack array.  Requests are ``[serial, op, args...]``, answers ``[serial, 0, results...]`` or
  ``[serial, errno, text, detail]``, pushed events ``[0, event...]``.  On a timeline's own socket a packet is
  ``[holder, counter, op, args...]`` and nothing is ever answered there.
Rules
  Every element has one type and one range, and the number of elements and of descriptors is exact.  Whatever does not match is
  *malformed*: the sender is disconnected (``docs/protocol.md`` says what that means on which socket).  An op that is not in the
  table is not malformed: it is refused with ENOSYS, so that a newer client can find out.
  ``True`` is no integer here, and ``1.0`` is none either.
Plan
  One table per direction: op -> name, fields, descriptors.  The documentation and the golden packets are checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from fencebroker.model import MAX_ERRNO, MAX_SYNC_FILE_NAME, MAX_TIMELINE_NAME, PACKET_BYTES, PACKET_DESCRIPTORS, U64_MAX

__all__ = [
    "PACKET_BYTES",
    "PACKET_DESCRIPTORS",
    "REQUESTS",
    "TIMELINE_OPS",
    "VERSION",
    "Malformed",
    "decode_answer",
    "decode_request",
    "decode_timeline",
    "encode",
]

#: Changes when a message changes its meaning or its form; new ops do not change it (they are refused with ENOSYS by old brokers).
VERSION: Final = 1

Message: TypeAlias = list[Any]
Check: TypeAlias = Callable[[Any], bool]

# Requests of a session.
HELLO: Final = 1
CREATE_TIMELINE: Final = 2
OPEN_TIMELINE: Final = 3
SHOW_TIMELINE: Final = 4
FORGET_TIMELINE: Final = 5
EXPORT: Final = 6
IMPORT: Final = 7
MERGE: Final = 8
SYNC_FILE: Final = 9
INFO: Final = 10
SET_DEADLINE: Final = 11
RELEASE: Final = 12
LIST: Final = 13
LOOKUP: Final = 14
STATUS: Final = 15
SUBSCRIBE: Final = 16
WAIT_START: Final = 17
WAIT_END: Final = 18
HISTORY: Final = 19
RECLAIM: Final = 20
CHMOD: Final = 21
QUOTAS: Final = 22
RING: Final = 23

# Messages on a timeline's socket.
ADVANCE: Final = 1
INC: Final = 2
FAIL: Final = 3
SIGNAL: Final = 4
CANCEL: Final = 5
#: On a timeline's socket, in place of a message: there is something in the ring.
DOORBELL: Final = b"\0"

# What LIST can list.
KINDS: Final = ("timelines", "fences", "sync_files", "sessions")


class Malformed(ValueError):
    """A packet is out of form; the text says where, for the log of the side that received it."""


class Field(NamedTuple):
    """One element of a message: its name in the documentation, what it must be in words, and the check."""

    name: str
    what: str
    check: Check


class Spec(NamedTuple):
    """One message: its name, its fields, how many descriptors come with it (None: one per nil among the refs), whether it is answered."""

    name: str
    fields: tuple[Field, ...]
    descriptors: int | None = 0
    answered: bool = True


def _is_positive_or_nil(x: Any) -> bool:
    return x is None or (type(x) is int and 1 <= x <= U64_MAX)


def _is_u64(x: Any) -> bool:
    return type(x) is int and 0 <= x <= U64_MAX


def _is_positive(x: Any) -> bool:
    return type(x) is int and 1 <= x <= U64_MAX


def _is_version(x: Any) -> bool:
    return type(x) is int and 0 <= x <= 0xFFFF


def _is_mode(x: Any) -> bool:
    return type(x) is int and 0 <= x <= 0o777


def _is_bool(x: Any) -> bool:
    return x is True or x is False


def _is_errno(x: Any) -> bool:
    return type(x) is int and 1 <= x <= MAX_ERRNO


def _is_errno_or_0(x: Any) -> bool:
    return type(x) is int and 0 <= x <= MAX_ERRNO


def _text(limit: int) -> Check:
    def check(x: Any) -> bool:
        return type(x) is str and len(x) <= limit and "\0" not in x and (x.isascii() or len(x.encode()) <= limit)

    return check


def _optional(check: Check) -> Check:
    return lambda x: x is None or check(x)


def _list_of(check: Check, least: int, most: int) -> Check:
    def check_list(x: Any) -> bool:
        if type(x) is not list or not least <= len(x) <= most:
            return False
        return all(map(check, x))

    return check_list


def _seqnos(x: Any) -> bool:
    if x is None:
        return True
    if type(x) is not list or not 1 <= len(x) <= PACKET_DESCRIPTORS:
        return False
    for seqno in x:
        if type(seqno) is not int or not 0 <= seqno <= U64_MAX:
            return False
    return True


_is_timeline_name = _text(MAX_TIMELINE_NAME)
_is_file_name = _text(MAX_SYNC_FILE_NAME)

CONTEXT: Final = Field("context", "u64", _is_u64)
REF: Final = Field("ref", "handle, or nil for the descriptor that comes along", _is_positive_or_nil)
NAME: Final = Field("name", "str, at most 31 bytes; empty: named by the broker", _is_file_name)
CURSOR: Final = Field("cursor", "u64; 0 for the first page", _is_u64)
MODE: Final = Field("mode", "permission bits 0..0o777", _is_mode)
OPENED: Final = Field("name", "str: name or uid/name", _text(2 * MAX_TIMELINE_NAME + 1))
EXPIRY: Final = Field("expiry_ns", "u64 from now, or nil for none", _is_positive_or_nil)

REQUESTS: Final[dict[int, Spec]] = {
    HELLO: Spec("hello", (Field("version", "u16", _is_version), Field("client", "str, at most 255 bytes", _text(255)))),
    CREATE_TIMELINE: Spec(
        "create_timeline",
        (
            Field("name", "str of 1 to 255 bytes, or nil", _optional(_is_timeline_name)),
            Field("driver", "str, at most 31 bytes", _is_file_name),
            MODE,
            EXPIRY,
        ),
    ),
    OPEN_TIMELINE: Spec("open_timeline", (OPENED,)),
    SHOW_TIMELINE: Spec("show_timeline", (), descriptors=1),
    FORGET_TIMELINE: Spec("forget_timeline", (CONTEXT,), answered=False),
    EXPORT: Spec(
        "export",
        (
            CONTEXT,
            Field("seqnos", "list of 1 to 253 u64, or nil for the next one", _seqnos),
            NAME,
            Field("private", "bool: only the broker may write it", _is_bool),
        ),
    ),
    IMPORT: Spec("import", (NAME, REF), descriptors=None),
    MERGE: Spec(
        "merge",
        (
            Field("refs", "list of 1 to 1024 handles; nil stands for the next descriptor", _list_of(_is_positive_or_nil, 1, 1024)),
            NAME,
            Field("any", "bool: signal with the first member, not the last", _is_bool),
        ),
        descriptors=None,
    ),
    SYNC_FILE: Spec("sync_file", (Field("point", "str: name@N or uid/name@N", _text(2 * MAX_TIMELINE_NAME + 22)), EXPIRY)),
    INFO: Spec("info", (REF, CURSOR), descriptors=None),
    SET_DEADLINE: Spec("set_deadline", (REF, Field("deadline_ns", "u64 of CLOCK_MONOTONIC", _is_u64)), descriptors=None),
    RELEASE: Spec(
        "release",
        (
            Field("unexposed", "list of at most 512 handles whose descriptor nobody else can have", _list_of(_is_positive, 0, 512)),
            Field("exposed", "list of at most 512 handles", _list_of(_is_positive, 0, 512)),
        ),
        answered=False,
    ),
    LIST: Spec("list", (Field("kind", "one of " + ", ".join(KINDS), lambda x: type(x) is str and x in KINDS), CURSOR)),
    LOOKUP: Spec(
        "lookup", (Field("name", "str: name, name@N, uid/name, uid/name@N, context:seqno or #id", _text(2 * MAX_TIMELINE_NAME + 22)),)
    ),
    STATUS: Spec("status", ()),
    SUBSCRIBE: Spec("subscribe", ()),
    WAIT_START: Spec("wait_start", (REF,), descriptors=None),
    WAIT_END: Spec("wait_end", (Field("wait", "what wait_start answered with", _is_positive),), answered=False),
    HISTORY: Spec("history", (CONTEXT,)),
    RECLAIM: Spec("reclaim", (Field("handles", "list of at most 512 handles, of any session", _list_of(_is_positive, 0, 512)),)),
    CHMOD: Spec("chmod", (OPENED, MODE)),
    RING: Spec("ring", (CONTEXT, Field("holder", "u64: the holder of your packets on the timeline's socket", _is_u64))),
    QUOTAS: Spec("quotas", (Field("cursor", "u64: the uid to begin with; 0 for the first page", _is_u64),)),
}

TIMELINE_OPS: Final[dict[int, Spec]] = {
    ADVANCE: Spec("advance", (Field("value", "u64", _is_u64),), answered=False),
    INC: Spec("inc", (Field("n", "u64", _is_u64),), answered=False),
    FAIL: Spec("fail", (Field("seqno", "u64", _is_u64), Field("error", "errno 1..4095", _is_errno)), answered=False),
    SIGNAL: Spec("signal", (Field("seqno", "u64", _is_u64), Field("error", "errno 1..4095, or 0", _is_errno_or_0)), answered=False),
    CANCEL: Spec("cancel", (Field("error", "errno 1..4095", _is_errno),), answered=False),
}

#: One packer for all: making one costs more than packing.  It makes no container and runs no code of Python's while it packs, so neither
#: another thread nor the garbage collector can come in between.
encode: Final[Callable[[Sequence[Any]], bytes]] = msgpack.Packer().pack


def _decode(packet: bytes) -> Message:
    try:
        # No hooks and no reused Unpacker: both have been sources of memory errors.  The sizes bound what a packet may cost: no message has a
        # longer array, and one more lets the check of the field say so.
        message = msgpack.unpackb(packet, max_array_len=1025, max_map_len=0, max_bin_len=0, max_ext_len=0)
    except Exception as err:  # the C extension raises ValueError, msgpack's own classes, UnicodeDecodeError and RecursionError
        raise Malformed(f"not a MessagePack array ({type(err).__name__})") from err
    if type(message) is not list:
        raise Malformed(f"not an array but {type(message).__name__}")
    return message


def _check_fields(spec: Spec, message: Message, first: int) -> None:
    fields = spec.fields
    if len(message) != first + len(fields):
        raise Malformed(f"{spec.name} has {len(message) - first} arguments, not {len(fields)}")
    for name, what, check in fields:
        if not check(message[first]):
            raise Malformed(f"{spec.name}: {name} must be {what}")
        first += 1


def decode_request(packet: bytes, n_descriptors: int) -> tuple[Message, Spec | None]:
    """Decode a session's packet.  Returns the message and its spec (None: an op this version does not know).

    Raises Malformed.  ``n_descriptors`` is how many descriptors came with the packet.
    """
    message = _decode(packet)
    if len(message) < 2 or type(message[0]) is not int or not 1 <= message[0] <= U64_MAX or type(message[1]) is not int:
        raise Malformed("a request starts with a serial of 1..2**64-1 and an op")
    spec = REQUESTS.get(message[1])
    if spec is None:
        return message, None
    _check_fields(spec, message, 2)
    expected = spec.descriptors
    if expected is None:
        expected = _count_refs(message)
    if n_descriptors != expected:
        raise Malformed(f"{spec.name} came with {n_descriptors} descriptors, not {expected}")
    return message, spec


def _count_refs(message: Message) -> int:
    op = message[1]
    if op == MERGE:
        count: int = message[2].count(None)
        return count
    return 1 if message[3 if op == IMPORT else 2] is None else 0


def decode_timeline(packet: bytes) -> Message:
    """Decode a packet of a timeline's socket: ``[holder, counter, op, args...]``.  Raises Malformed, also for an unknown op."""
    message = _decode(packet)
    if len(message) < 3 or not _is_u64(message[0]) or not _is_u64(message[1]) or type(message[2]) is not int:
        raise Malformed("a timeline message starts with holder, counter and op")
    spec = TIMELINE_OPS.get(message[2])
    if spec is None:
        raise Malformed(f"unknown timeline op {message[2]}")
    _check_fields(spec, message, 3)
    return message


def serial_of(packet: bytes) -> int:
    """The serial of a request that cannot be handled, for a refusal; 0 if it has none."""
    try:
        message = _decode(packet)
    except Malformed:
        return 0
    return message[0] if message and _is_positive(message[0]) else 0


def decode_answer(packet: bytes) -> Message:
    """Decode what a broker sent: ``[serial, errno, ...]``, or ``[0, ...]`` for an event.  Raises Malformed."""
    message = _decode(packet)
    if len(message) < 2 or not _is_u64(message[0]):
        raise Malformed("an answer starts with a serial and an errno")
    if message[0]:
        error = message[1]
        if type(error) is not int or not 0 <= error <= MAX_ERRNO:
            raise Malformed("an answer's second element is an errno or 0")
        if error and not (len(message) == 4 and type(message[2]) is str and type(message[3]) is list):
            raise Malformed("a refusal is [serial, errno, text, detail]")
    return message
