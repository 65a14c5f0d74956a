"""The values both ends share: status words, points, and what a query returns.  Pure.

Terms are the kernel's (``Documentation/driver-api/sync_file.rst``, ``include/linux/dma-fence.h``); ``docs/design.md`` lists
where a meaning differs.  All times are nanoseconds of ``CLOCK_MONOTONIC`` unless a name says otherwise.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "ACTIVE",
    "MAX_ERRNO",
    "OK",
    "PACKET_BYTES",
    "PACKET_DESCRIPTORS",
    "U64_MAX",
    "Event",
    "Point",
    "ProcessInfo",
    "SyncFenceInfo",
    "SyncFileInfo",
    "check_driver_name",
    "check_error",
    "check_seqno",
    "check_sync_file_name",
    "check_timeline_name",
    "parse_point",
    "printable",
]

#: Status of a fence that has not signalled.  A signalled fence has ``OK`` or a negative errno.
ACTIVE: Final = 0
#: Status of a fence that signalled without an error.
OK: Final = 1
#: The kernel's MAX_ERRNO: the largest errno that a status can carry.
MAX_ERRNO: Final = 4095
U64_MAX: Final = 2**64 - 1

#: The largest packet, either way, and the most descriptors in one; ``limits.py`` has the reasons.
PACKET_BYTES: Final = 16 * 1024
PACKET_DESCRIPTORS: Final = 253
#: A sync_file's name is at most 31 bytes and a NUL (struct sync_merge_data.name[32]).
MAX_SYNC_FILE_NAME: Final = 31
MAX_TIMELINE_NAME: Final = 255
#: What a timeline's name may not hold: ``@`` and ``/`` separate the parts of a point, ``:`` those of a fence's number, ``#`` begins a
#: sync_file's, and a NUL ends a C string.
_RESERVED: Final = frozenset("@/:#\0")


class Point(NamedTuple):
    """A point by name: ``camera0@7`` or ``user/camera0@7``.  ``user`` is None for one's own timelines."""

    user: str | None
    timeline: str
    seqno: int

    def __str__(self) -> str:
        prefix = "" if self.user is None else f"{self.user}/"
        return f"{prefix}{self.timeline}@{self.seqno}"


class ProcessInfo(NamedTuple):
    """Who did something: process id (0 if it is in another pid namespace), user id, and command name."""

    pid: int
    uid: int
    comm: str

    def __str__(self) -> str:
        return f"pid {self.pid}, {self.comm}"


class SyncFenceInfo(NamedTuple):
    """One fence of a sync_file (struct sync_fence_info, plus who owns it)."""

    obj_name: str  #: the timeline's name
    driver_name: str
    status: int  #: 0 active, 1 signalled, negative errno
    flags: int  #: always 0, as in the kernel
    timestamp_ns: int  #: when it signalled; 0 while active
    context: int
    seqno: int
    owner: ProcessInfo | None  #: who created the timeline; None for a fence without one
    created_ns: int
    deadline_ns: int | None  #: the soonest deadline anybody set
    expires_ns: int | None  #: when it fails with ETIME


class SyncFileInfo(NamedTuple):
    """What a sync_file is (struct sync_file_info, plus what only a broker knows)."""

    name: str
    status: int  #: 0 active, 1 signalled, negative errno; one meaning for a merged one too
    flags: int
    num_fences: int
    fences: tuple[SyncFenceInfo, ...]
    id: int  #: the broker's number for this sync_file
    context: int  #: of the fence it carries
    seqno: int
    creator: ProcessInfo | None
    created_ns: int
    timestamp_ns: int
    deadline_ns: int | None
    expires_ns: int | None
    tampered: bool  #: somebody who holds the descriptor wrote to it
    detached: bool  #: the broker forgot the fence; the status comes from the descriptor itself


class Event(NamedTuple):
    """One change in the broker, in the kernel's trace names where there is one (``dma_fence_signaled`` ...)."""

    name: str
    time_ns: int
    context: int
    seqno: int
    timeline: str
    driver: str
    status: int
    pid: int
    uid: int
    comm: str
    lost: int = 0  #: events that did not fit in the queue before this one

    def __str__(self) -> str:
        """As in the kernel's trace, with the process that the kernel does not name."""
        timeline, driver = printable(self.timeline), printable(self.driver)
        if self.name == "sync_timeline":
            fields = f"name={timeline} value={self.seqno}"
        else:
            fields = f"driver={driver} timeline={timeline} context={self.context} seqno={self.seqno}"
        if self.name == "dma_fence_signaled":
            fields += f" status={self.status}"
        at = f"{self.time_ns // 10**9}.{self.time_ns // 1000 % 10**6:06d}"
        return f"{at}: {self.name}: {fields} pid={self.pid} uid={self.uid} comm={printable(self.comm)}"


def printable(text: str) -> str:
    """Return ``text`` with every character that is not printable written as Python would: control characters, line ends, reading directions."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_seqno(value: object, argument: str = "seqno") -> int:
    """Return ``value`` if it is an integer of 0..2**64-1.  Bools and floats are no seqnos: TypeError; out of range: ValueError."""
    if type(value) is not int:
        raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    if not 0 <= value <= U64_MAX:
        raise ValueError(f"{argument} must be between 0 and 2**64-1, not {value}")
    return value


def check_error(value: object, argument: str = "error") -> int:
    """Return ``value`` if it is a positive errno (1..4095)."""
    if type(value) is not int:
        raise TypeError(f"{argument} must be a positive errno (an int), not {type(value).__name__}")
    if not 1 <= value <= MAX_ERRNO:
        raise ValueError(f"{argument} must be a positive errno between 1 and {MAX_ERRNO}, not {value}")
    return value


def _check_name(value: object, argument: str, limit: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a str, not {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{argument} must be valid Unicode text, not {value!r}") from None
    if size > limit:
        raise ValueError(f"{argument} is {size} bytes long; at most {limit} are allowed")
    if "\0" in value:
        raise ValueError(f"{argument} must not contain a NUL character: {value!r}")
    return value


def check_sync_file_name(value: object, argument: str = "name") -> str:
    """Return ``value`` if it can name a sync_file: at most 31 bytes of UTF-8, no NUL.  Empty means: named by the broker."""
    return _check_name(value, argument, MAX_SYNC_FILE_NAME)


def check_driver_name(value: object, argument: str = "driver") -> str:
    """Return ``value`` if it can name a driver: 1 to 31 bytes of UTF-8, no NUL."""
    name = _check_name(value, argument, MAX_SYNC_FILE_NAME)
    if not name:
        raise ValueError(f"{argument} must not be empty")
    return name


def check_timeline_name(value: object, argument: str = "name") -> str:
    """Return ``value`` if it can name a timeline: 1 to 255 bytes of printable text without ``@``, ``/``, ``:`` and ``#``."""
    name = _check_name(value, argument, MAX_TIMELINE_NAME)
    if not name:
        raise ValueError(f"{argument} must not be empty; leave it out for a timeline without a name")
    if not name.isprintable() or not _RESERVED.isdisjoint(name):
        raise ValueError(f"{argument} must be printable and free of '@', '/', ':' and '#', not {name!r}")
    return name


def parse_point(text: object, argument: str = "point") -> Point:
    """Parse ``camera0@7`` or ``user/camera0@7``; ValueError says what is wrong with it."""
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str such as 'camera0@7', not {type(text).__name__}")
    path, at, number = text.rpartition("@")
    if not at:
        raise ValueError(f"{argument} must look like 'camera0@7', not {text!r}")
    if not (number.isascii() and number.isdigit()) or len(number) > 20:
        raise ValueError(f"{argument} must end in '@' and a seqno such as 'camera0@7', not {text!r}")
    user, slash, name = path.rpartition("/")
    if slash and not user:
        raise ValueError(f"{argument} has an empty user before '/': {text!r}")
    return Point(
        check_user_name(user, argument) if slash else None,
        check_timeline_name(name, f"the timeline in {argument}"),
        check_seqno(int(number), f"the seqno in {argument}"),
    )


def check_user_name(value: str, argument: str) -> str:
    """Return ``value`` if it can be a user's name or number in a point."""
    name = _check_name(value, f"the user in {argument}", MAX_TIMELINE_NAME)
    if not name.isprintable() or not _RESERVED.isdisjoint(name):
        raise ValueError(f"the user in {argument} must be printable and free of '@', '/', ':' and '#', not {name!r}")
    return name
