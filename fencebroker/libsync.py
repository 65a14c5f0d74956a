"""libsync and sw_sync for ordinary processes: the same names, raw int descriptors in and out, failures raise OSError with C's errno.

    timeline = sw_sync_timeline_create()
    fence = sw_sync_fence_create(timeline, "frame", 1)
    sw_sync_timeline_inc(timeline, 1)
    sync_wait(fence, 1000)

Follows Android's libsync (sync.h, sw_sync.h) and the kernel's drivers/dma-buf/{sync_file,sw_sync}.c; ``docs/parity.md`` has every row.
Descriptors are the caller's: pass, inherit, dup and close them like any other.  They are inherited by fork as in the kernel, and
close-on-exec.  There is one connection per process, made when first needed; a forked child gets its own.  Thread-safe.

Facts
  A timeline's descriptor is known by SO_COOKIE: the same for every copy, never reused.  So a number that was closed and came back as
  something else is never taken for what it was.
  sw_sync counts in 32 bits and wraps; the broker counts in 64.  A u32 here stands for the nearest 64-bit value of which it is the low half,
  as the kernel's signed comparison has it; where that would lie before the timeline's beginning it lies ahead instead.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from fencebroker import requests, wire
from fencebroker.connection import Connection
from fencebroker.errors import NotASyncFile
from fencebroker.fds import OwnedFd, new_fence_eventfd, send_packet
from fencebroker.finding import default_connection
from fencebroker.model import U64_MAX

if TYPE_CHECKING:
    from fencebroker.model import SyncFileInfo

__all__ = [
    "sw_sync_fence_create",
    "sw_sync_get_deadline",
    "sw_sync_timeline_create",
    "sw_sync_timeline_inc",
    "sync_file_info",
    "sync_merge",
    "sync_set_deadline",
    "sync_wait",
]

_SO_COOKIE: Final = 57
_U32: Final = 2**32 - 1
_DRIVER: Final = "sw_sync"

_lock = threading.Lock()
_holder = secrets.randbits(64)
_counter = 0
#: Cookie of a timeline's descriptor -> its context, for the session that has shown it; forgotten with the session.
_contexts: dict[int, int] = {}
_contexts_of: object = None


def _start_over() -> None:
    """A forked child is another holder: its packets must not look like its parent's."""
    global _lock, _holder, _counter  # noqa: PLW0603 - a forked child starts over
    _lock = threading.Lock()
    _holder = secrets.randbits(64)
    _counter = 0


os.register_at_fork(after_in_child=_start_over)


def _error(error: int, text: str) -> OSError:
    return OSError(error, f"{os.strerror(error)}: {text}")


def _fd(value: object, argument: str, negative: int = errno.EBADF) -> int:
    if type(value) is not int:
        raise TypeError(f"{argument} must be a descriptor (an int), not {type(value).__name__}")
    if value < 0:
        raise _error(negative, f"{argument} must not be negative: {value}")
    if value > 2**31 - 1:
        raise _error(errno.EBADF, f"{argument} is no descriptor: {value}")
    return value


def _u(value: object, argument: str, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise _error(errno.EINVAL, f"{argument} must be between 0 and {most}, not {value}")
    return value


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _reserve() -> None:
    """The kernel reserves the result's descriptor first: EMFILE comes before any other complaint."""
    OwnedFd(new_fence_eventfd()).close()


# -- sync.h


def sync_wait(fd: int, timeout: int) -> None:
    """Wait until the fence of ``fd`` has signalled; one that failed has signalled too.

    ``timeout`` is in ms: -1 (or any negative) for ever, 0 asks now.  One absolute deadline holds through every interruption.  What this
    process did before it asks is seen, including a bare close of a timeline.
    OSError: ETIME when the time is over; EINVAL when ``fd`` is negative or no sync_file; ENOENT when it is of another broker or of none;
    EBADF when it is not open.
    """
    fd = _fd(fd, "fd", errno.EINVAL)
    if type(timeout) is not int:
        raise TypeError(f"timeout must be an int of milliseconds, not {type(timeout).__name__}")
    deadline = None if timeout < 0 else time.monotonic() + timeout / 1000
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if _happened(poller, 0, fd):
        return
    # Not yet, as far as this process can see: the broker has read all that this process did when it answers.
    if _ask(fd, errno.ENOENT).status or timeout == 0:
        if _happened(poller, 0, fd):
            return
        raise _error(errno.ETIME, f"fd {fd} has not signalled")
    while True:
        remaining = None if deadline is None else max(0, -int(-(deadline - time.monotonic()) * 1000 // 1))
        if _happened(poller, remaining, fd):
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise _error(errno.ETIME, f"fd {fd} did not signal within {timeout} ms")


def _happened(poller: select.poll, timeout: int | None, fd: int) -> bool:
    for _, events in poller.poll(None if timeout is None else min(timeout, 2**31 - 1)):
        if events & select.POLLNVAL:
            raise _error(errno.EBADF, f"fd {fd} is not open")
        if events & select.POLLERR:
            raise _error(errno.EINVAL, f"fd {fd} has an error; it is no sync_file")
        return True
    return False


def _ask(fd: int, foreign_eventfd: int) -> SyncFileInfo:
    """Ask the broker about ``fd``.  An eventfd that is not the broker's is ``foreign_eventfd``, anything else EINVAL."""
    if not _is_open(fd):
        raise _error(errno.EBADF, f"fd {fd} is not open")
    try:
        return requests.call_info(default_connection(), fd)
    except NotASyncFile as err:
        is_eventfd = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
        raise _error(foreign_eventfd if is_eventfd else errno.EINVAL, str(err)) from err


def sync_merge(name: str, fd1: int, fd2: int) -> int:
    """Return a new descriptor, the caller's, that signals when both fences have; the inputs stay as they are.

    ``name`` is cut to 31 bytes; empty: named after the fence.
    OSError, in this order: EMFILE; EBADF (``fd1`` is not open) or ENOTTY (it is no sync_file); ENOENT (``fd2`` is not open or no sync_file).
    """
    _reserve()
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"name must be a str or bytes, not {type(name).__name__}")
    first, second = _fd(fd1, "fd1"), _fd(fd2, "fd2", errno.ENOENT)
    if not _is_open(first):
        raise _error(errno.EBADF, f"fd1 is not open: {first}")
    if not _is_open(second):
        raise _error(errno.ENOENT, f"fd2 is not open: {second}")
    connection = default_connection()
    try:
        return connection.call(requests.merge(connection, [first, second], _cut(name), False)).detach()
    except NotASyncFile as err:
        _ask_kind(connection, first, "fd1")
        raise _error(errno.ENOENT, f"fd2: {err}") from err


def _cut(name: str | bytes) -> str:
    """What fits into struct sync_merge_data: 31 bytes, up to a NUL."""
    raw = name if isinstance(name, bytes) else name.encode(errors="surrogateescape")
    return raw.split(b"\0")[0][:31].decode(errors="ignore")


def _ask_kind(connection: Connection, fd: int, argument: str) -> None:
    """An ioctl of sync_file on anything else is ENOTTY."""
    try:
        connection.call(requests.info_page(connection, fd, 0))
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, f"{argument}: {err}") from err


def sync_file_info(fd: int) -> SyncFileInfo:
    """Return name, status and the fences of ``fd``.  OSError: EBADF when it is not open, ENOTTY when it is no sync_file."""
    fd = _open_fd(fd)
    connection = default_connection()
    try:
        return requests.call_info(connection, fd)
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, str(err)) from err


def _open_fd(value: int) -> int:
    fd = _fd(value, "fd")
    if not _is_open(fd):
        raise _error(errno.EBADF, f"fd is not open: {fd}")
    return fd


def sync_set_deadline(fd: int, deadline_ns: int) -> None:
    """Say by when (ns of CLOCK_MONOTONIC) the fence is wanted; a hint, to every member of a merged one.  Signalled: nothing.

    OSError: EBADF, ENOTTY, EINVAL (``deadline_ns`` out of range).
    """
    fd = _open_fd(fd)
    connection = default_connection()
    try:
        connection.call(requests.set_deadline(connection, fd, _u(deadline_ns, "deadline_ns", U64_MAX)))
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, str(err)) from err


# -- sw_sync.h


def sw_sync_timeline_create() -> int:
    """Return the descriptor of a new timeline at value 0, the caller's.  When its last copy is closed, active fences get -ENOENT."""
    connection = default_connection()
    context, fd = connection.call(requests.create_timeline(None, _DRIVER, 0o600, None))
    with fd:
        _remember(connection, _cookie(fd.fileno()), context)
        return fd.detach()


def sw_sync_timeline_inc(fd: int, count: int) -> None:
    """Raise the value by ``count`` (u32; 0 is legal) and signal every fence it passes.

    OSError: EBADF, ENOTTY (no timeline), EINVAL (``count`` out of range), ENOTCONN (the broker ended the timeline, or went away).
    """
    global _counter  # noqa: PLW0603 - counts this process's packets
    fd = _open_fd(fd)
    count = _u(count, "count", _U32)
    _context(fd)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
    try:
        with _lock:
            _counter += 1
            send_packet(sock, wire.encode((_holder, _counter, wire.INC, count)))
    except (BrokenPipeError, ConnectionResetError) as err:
        raise _error(errno.ENOTCONN, "the broker ended this timeline, or went away") from err
    finally:
        sock.detach()


def sw_sync_fence_create(fd: int, name: str, value: int) -> int:
    """Return a sync_file for ``value`` (u32) of the timeline, the caller's; at or below the timeline's value it is born signalled.

    ``name`` is ignored, as the kernel ignores it.  OSError, in this order: EMFILE, EBADF, ENOTTY, EINVAL.
    """
    _reserve()
    fd = _open_fd(fd)
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"name must be a str or bytes, not {type(name).__name__}")
    value = _u(value, "value", _U32)
    connection = default_connection()
    context = _context(fd)
    try:
        return _create(connection, context, value)
    except OSError as err:
        if err.errno != errno.EBADF:
            raise
        # The session's right to mint ended with the last descriptor it had shown; this one is another copy.
        _contexts.pop(_cookie(fd), None)
        return _create(connection, _context(fd), value)


def _create(connection: Connection, context: int, value: int) -> int:
    made, current = connection.call(requests.export_raw(context, value))
    seqno = nearest(value, current)
    if seqno != value:  # the timeline has counted past 2**31
        made.close()
        made, _ = connection.call(requests.export_raw(context, seqno))
    return made.detach()


def nearest(value: int, current: int) -> int:
    """The 64-bit value that a u32 stands for, on a timeline at ``current``."""
    distance = (value - current) & _U32
    if distance > 2**31 - 1:
        distance -= 2**32
    found = current + distance
    return found + 2**32 if found < 0 else found


def sw_sync_get_deadline(fd: int) -> int:
    """Return the soonest deadline set on a fence of a timeline, in ns of CLOCK_MONOTONIC.

    OSError: EINVAL when ``fd`` is not open, no sync_file, or merged of several; ENOENT when no deadline was set.
    """
    number = _fd(fd, "fd", errno.EINVAL)
    if not _is_open(number):
        raise _error(errno.EINVAL, f"fd is not open: {number}")
    connection = default_connection()
    try:
        info = requests.call_info(connection, number)
    except NotASyncFile as err:
        raise _error(errno.EINVAL, str(err)) from err
    if info.num_fences != 1 or info.fences[0].driver_name != _DRIVER or info.fences[0].context != info.context:
        raise _error(errno.EINVAL, f"fd {number} is no single fence of a sw_sync timeline")
    if info.deadline_ns is None:
        raise _error(errno.ENOENT, f"no deadline was set on fd {number}")
    return info.deadline_ns


# -- timelines by descriptor


def _cookie(fd: int) -> int:
    """SO_COOKIE of a socket; ENOTTY for anything else, as an ioctl of sw_sync would say."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
    except OSError as err:
        raise _error(errno.ENOTTY, f"fd {fd} is no timeline") from err
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
    except OSError as err:
        raise _error(errno.ENOTTY, f"fd {fd} is no timeline") from err
    finally:
        sock.detach()


def _context(fd: int) -> int:
    """The context of a timeline's descriptor; it is shown to the broker the first time."""
    connection = default_connection()
    cookie = _cookie(fd)
    with _lock:
        known = _contexts.get(cookie) if _contexts_of is connection.epoch else None
    if known is not None:
        return known
    try:
        context = connection.call(requests.show_timeline(fd))[0]
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        raise _error(errno.ENOTTY, f"fd {fd} is no timeline of this broker") from err
    _remember(connection, cookie, context)
    return context


def _remember(connection: Connection, cookie: int, context: int) -> None:
    global _contexts_of  # noqa: PLW0603 - the cache belongs to one session
    with _lock:
        if _contexts_of is not connection.epoch:
            _contexts.clear()
            _contexts_of = connection.epoch
        if len(_contexts) >= 4096:  # closed timelines leave theirs behind
            _contexts.clear()
        _contexts[cookie] = context
