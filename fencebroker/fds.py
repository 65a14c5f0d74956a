"""Descriptors: their one owner type, the one place that sends and receives them, and the status that an eventfd carries.

Facts (Linux; ``docs/design.md`` 3.1 has the measurements)
  An eventfd with EFD_SEMAPHORE that is written once with a large value stays readable for every holder: a read takes 1.
  Two status values always overflow the counter, so the kernel keeps the first and refuses the second with EAGAIN.
  The status is in the top 16 bits of ``eventfd-count`` in /proc/self/fdinfo: ``ffff`` OK, ``8000 | e`` error e.  POLLOUT is off only
  while the count is 2**64-2, so POLLIN without POLLOUT is OK for certain.
  socket.recv_fds() ignores its flags: descriptors it receives are inheritable.  recvmsg with MSG_CMSG_CLOEXEC is not.
  At RLIMIT_NOFILE a message arrives without (all of) its descriptors and with MSG_CTRUNC; what did arrive is ours to close.
Rules
  Every received descriptor is owned before anything looks at flags or payload.  Truncated in any way: close them, raise.
  Nothing else in the tree calls sendmsg or recvmsg, or encodes a status.
"""

from __future__ import annotations

import array
import fcntl
import functools
import os
import re
import select
import socket
import warnings
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, Self, TypeAlias

from fencebroker.model import ACTIVE, MAX_ERRNO, OK

__all__ = [
    "NOWAIT",
    "PEEK",
    "HasFileno",
    "OwnedFd",
    "Truncated",
    "borrow",
    "close_all",
    "drop_packet",
    "look_at_packet",
    "new_fence_eventfd",
    "peek_status",
    "recv_packet",
    "send_packet",
    "signal_and_close",
    "status_word",
]

_SPACE: Final = socket.CMSG_SPACE(253 * 4)  # a descriptor is an int of four bytes
# Plain ints: or-ing the enum's members costs more than some of the system calls they are for.
#: For send_packet and recv_packet: BlockingIOError instead of waiting.
NOWAIT: Final = int(socket.MSG_DONTWAIT)
#: For recv_packet: the packet stays in its socket, to be received again or dropped.
PEEK: Final = int(socket.MSG_PEEK)
_NOSIGNAL: Final = int(socket.MSG_NOSIGNAL)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_DESCRIPTORS_CUT: Final = int(socket.MSG_CTRUNC)
_SOL_SOCKET: Final = int(socket.SOL_SOCKET)
_SCM_RIGHTS: Final = int(socket.SCM_RIGHTS)
_array: Final = array.array
_FLAGS: Final = os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE
_POLLIN: Final = select.POLLIN
_POLLOUT: Final = select.POLLOUT
_POLLNVAL: Final = select.POLLNVAL
_INOUT: Final = _POLLIN | _POLLOUT
_poller: Final = select.poll
#: As much as any packet may have; a larger one shows as truncated.
_RECEIVE: Final = 16 * 1024
#: A descriptor is a C int.
MAX_FD: Final = 2**31 - 1
_FIELDS: Final = re.compile(rb"^eventfd-(count|id|semaphore):\s*(\w+)", re.MULTILINE)
#: fcntl: are two descriptors the same open file?  Linux 6.10.
F_DUPFD_QUERY: Final = 1024 + 3
#: Written for OK.  2**64 - 1 would be EINVAL.
OK_WORD: Final = 2**64 - 2


class HasFileno(Protocol):
    """Anything with a ``fileno()``."""

    def fileno(self) -> int: ...


Fd: TypeAlias = "int | HasFileno"


class Truncated(ConnectionError):
    """A message (``packet``) or its descriptors did not fit.  ``fds`` owns what did arrive; whoever catches this closes it."""

    def __init__(self, text: str, fds: Sequence[OwnedFd] = (), packet: bytes = b"", descriptors_lost: bool = False) -> None:
        super().__init__(text)
        self.fds = fds
        self.packet = packet
        self.descriptors_lost = descriptors_lost


class OwnedFd:
    """One descriptor and the duty to close it: live, then closed or handed over (``detach``).  Not safe to close in two threads at once."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take ownership of ``fd``."""
        self._fd = fd

    def fileno(self) -> int:
        """Return the number; ValueError after it was closed or handed over, for then it may be somebody else's."""
        if self._fd < 0:
            raise ValueError("this descriptor was closed or handed over")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach(self) -> int:
        """Hand the number over; the caller closes it."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close it; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def dup(self) -> OwnedFd:
        """Return another descriptor of the same file, close-on-exec."""
        return OwnedFd(os.dup(self.fileno()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd if self._fd >= 0 else 'closed'}>"

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"descriptor {self._fd} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()


def borrow(fd: Fd, argument: str = "fd") -> int:
    """Return the number of ``fd`` without taking it.  TypeError or ValueError name ``argument``; nothing is asked of the kernel."""
    if type(fd) is int:
        number = fd
    elif isinstance(fd, (bool, float, str, bytes)) or not hasattr(fd, "fileno"):
        raise TypeError(f"{argument} must be a descriptor (an int) or have a fileno() method, not {type(fd).__name__}")
    else:
        number = fd.fileno()
        if type(number) is not int:
            raise TypeError(f"{argument} must have a fileno() that returns an int, not {type(number).__name__}")
    if not 0 <= number <= MAX_FD:
        raise ValueError(f"{argument} must be an open descriptor, not {number}")
    return number


def send_packet(sock: socket.socket, packet: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send one packet with borrowed descriptors.  Errors are the kernel's (BlockingIOError, ETOOMANYREFS, BrokenPipeError ...)."""
    if not packet:
        raise ValueError("packet must not be empty: it would read like end-of-file")
    if fds:
        sock.sendmsg((packet,), ((_SOL_SOCKET, _SCM_RIGHTS, _array("i", fds)),), flags | _NOSIGNAL)
    else:
        sock.send(packet, flags | _NOSIGNAL)


def recv_packet(sock: socket.socket, flags: int = 0, size: int = _RECEIVE) -> tuple[bytes, list[OwnedFd]]:
    """Receive one packet and own its descriptors.  ``b""`` is end-of-file.

    Raises Truncated when the packet was larger than ``size`` bytes or descriptors were lost (the descriptor limit of this process,
    or a refusal by a security module); the exception owns what arrived.
    """
    packet, control, happened, _ = sock.recvmsg(size, _SPACE, flags | _CLOEXEC)
    if not control and not happened & _CUT:
        return packet, []
    fds = _own(control)
    if happened & _CUT:
        if happened & _DESCRIPTORS_CUT:
            text = "descriptors of a message were lost: this process is at its descriptor limit (RLIMIT_NOFILE)"
            raise Truncated(text, fds, packet, descriptors_lost=True)
        raise Truncated(f"a message was longer than {size} bytes", fds)
    return packet, fds


def look_at_packet(sock: socket.socket, size: int = _RECEIVE) -> tuple[bytes, bool]:
    """Look at a packet that stays in its socket, and whether descriptors are with it, which are not received.  Never waits.

    Truncated when it was larger than ``size`` bytes.
    """
    packet, _, happened, _ = sock.recvmsg(size, 0, NOWAIT | PEEK)
    if happened & _CUT & ~_DESCRIPTORS_CUT:
        raise Truncated(f"a message was longer than {size} bytes")
    return packet, bool(happened & _DESCRIPTORS_CUT)


def drop_packet(sock: socket.socket) -> None:
    """Take the packet that was peeked at off its socket.

    Its descriptors are closed by that, so whoever peeked still holds them: the last close of a foreign file may block.
    """
    try:
        sock.recv(1, NOWAIT)  # of zero bytes CPython makes no system call
    except ConnectionResetError:  # the peer died with an answer unread: that is said once, ahead of what it had sent
        sock.recv(1, NOWAIT)


def close_all(fds: Iterable[OwnedFd]) -> None:
    """Close each of ``fds``."""
    for fd in fds:
        fd.close()


def _own(control: Iterable[tuple[int, int, bytes]]) -> list[OwnedFd]:
    numbers: list[int] = []
    for level, kind, data in control:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            numbers += _array("i", data[: len(data) & ~3])
    return [OwnedFd(number) for number in numbers]


def new_fence_eventfd() -> int:
    """Return a new eventfd in the form of a sync_file: close-on-exec, non-blocking, semaphore, count 0.  The caller owns it."""
    return os.eventfd(0, _FLAGS)


@functools.cache
def can_compare() -> bool:
    """Say whether this kernel has F_DUPFD_QUERY."""
    with OwnedFd(new_fence_eventfd()) as fd:
        try:
            return fcntl.fcntl(fd.fileno(), F_DUPFD_QUERY, fd.fileno()) == 1
        except OSError:
            return False


def status_word(status: int) -> int:
    """Return the value to write for a fence that signalled with ``status`` (1, or a negative errno)."""
    if status == OK:
        return OK_WORD
    if not 1 <= -status <= MAX_ERRNO:
        raise ValueError(f"status must be 1 or -1..-{MAX_ERRNO}, not {status}")
    return int(2**63 + (-status << 48) + 2**47)


def status_from_count(count: int) -> int | None:
    """Decode ``eventfd-count``: 0 active, 1 OK, a negative errno; None if no broker left it so."""
    if count == 0:
        return ACTIVE
    top = count >> 48
    if top == 0xFFFF:
        return OK
    error = top & 0x7FFF
    if top & 0x8000 and 1 <= error <= MAX_ERRNO:
        return -error
    return None


class EventfdInfo:
    """What /proc says of an eventfd: its id (unique while it is open anywhere, reused afterwards), count, and whether it is a semaphore."""

    __slots__ = ("count", "id", "semaphore")

    def __init__(self, id: int, count: int, semaphore: bool) -> None:
        self.id = id
        self.count = count
        self.semaphore = semaphore


def eventfd_info(fd: int) -> EventfdInfo | None:
    """Look at an eventfd through /proc/self/fdinfo, reading at most 4 KiB; None if ``fd`` is open but no eventfd.

    The link is read first: fdinfo of a foreign file runs code of its file system.  OSError (EBADF) if ``fd`` is not open.
    """
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        os.fstat(fd)  # raises EBADF where the descriptor is the reason, and passes where /proc is
        raise OSError(38, "/proc is not mounted; fencebroker reads a fence's status from /proc/self/fdinfo") from None
    return read_fdinfo(fd) if target == "anon_inode:[eventfd]" else None


def read_fdinfo(fd: int) -> EventfdInfo | None:
    """Like eventfd_info for a descriptor known to be an eventfd: one open, read and close.

    None also when a holder has put so many locks on the file that what is looked for is not in the first 4 KiB.
    """
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    fields = dict(_FIELDS.findall(text))
    if b"count" not in fields:
        return None
    return EventfdInfo(int(fields.get(b"id", b"-1")), int(fields[b"count"], 16), fields.get(b"semaphore", b"1") == b"1")


def is_signalled(fd: int) -> bool:
    """Say whether ``fd`` is readable now.  OSError EBADF if it is not open."""
    return bool(_poll(fd, select.POLLIN, 0))


def is_hung_up(fd: int) -> bool:
    """Say whether the other end of a socket is closed: what tells a zero-length read that is end-of-file from an empty packet."""
    return bool(_poll(fd, 0, 0) & select.POLLHUP)


def _poll(fd: int, events: int, timeout_ms: int | None) -> int:
    poller = _poller()
    poller.register(fd, events)
    ready = poller.poll(timeout_ms)
    if not ready:
        return 0
    happened = ready[0][1]
    if happened & _POLLNVAL:
        raise OSError(9, "descriptor is not open")
    return happened


def peek_status(fd: int) -> int | None:
    """Return the status a sync_file descriptor carries: 0, 1 or a negative errno; None if it was tampered with.

    No broker is asked.  0.5 us while active or OK, some 10 us for an error.  OSError EBADF if ``fd`` is not open.
    """
    happened = _poll(fd, _INOUT, 0)
    if not happened & _POLLIN:
        return ACTIVE
    if not happened & _POLLOUT:
        return OK
    info = read_fdinfo(fd)
    return None if info is None else status_from_count(info.count)


class SignalResult:
    """What writing a status to an eventfd came to."""

    WRITTEN: Final = 0
    ALREADY: Final = 1  #: a valid status was there first and stands
    TAMPERED: Final = 2  #: the count is forged and could not be topped up to a status


def write_status(fd: int, word: int) -> int:
    """Signal ``fd`` with a word of ``status_word``.  Returns a SignalResult.

    A forged small count is topped up to the word (three tries, since its forger may go on).  Beside the word of an error there is room for
    a count that would make it another error: so that is looked for first.  InterruptedError when a holder made the file blocking and full:
    the caller arms an interval timer around its writes.
    """
    if word == OK_WORD or not is_signalled(fd):
        try:
            os.eventfd_write(fd, word)
        except BlockingIOError:
            pass
        else:
            return SignalResult.WRITTEN
    for _ in range(3):
        info = read_fdinfo(fd)
        count = 0 if info is None else info.count
        if count and status_from_count(count) is not None:
            return SignalResult.ALREADY
        if count > word:
            break
        try:
            os.eventfd_write(fd, word - count)
        except BlockingIOError:
            continue
        return SignalResult.WRITTEN
    return SignalResult.TAMPERED


def signal_and_close(fd: int, word: int) -> bool:
    """Signal a duplicate of one's own with a word of ``status_word``, and close it.  False: its count is neither that status nor an earlier one."""
    try:
        if word == OK_WORD or not is_signalled(fd):
            os.eventfd_write(fd, word)
            return True
        return bool(peek_status(fd))
    except BlockingIOError:
        return bool(peek_status(fd))  # a status that was there first stands
    except OSError:
        return False  # closed behind our back
    finally:
        try:  # noqa: SIM105 - without the detour of contextlib.suppress: each signal comes through here
            os.close(fd)
        except OSError:
            pass
