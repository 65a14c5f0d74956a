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
Rules
  The order of complaints is the kernel's: whatever its system call finds before it looks at the arguments comes first (EBADF, ENOTTY), then
  the descriptor it reserves (EMFILE), then the arguments.  Beyond its ladders there are two of a broker's own: EDQUOT (QuotaExceeded) when a
  quota is used up, and ENOTCONN (BrokerUnavailable) when the broker is gone.  A wrong type is a TypeError, as everywhere in Python.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fencebroker import requests, wire
from fencebroker.connection import Connection, Request
from fencebroker.errors import BrokerUnavailable, NotASyncFile
from fencebroker.fds import MAX_FD, NOWAIT, OwnedFd, new_fence_eventfd, peek_status, send_packet
from fencebroker.finding import current_default, default_connection
from fencebroker.model import ACTIVE, U64_MAX

if TYPE_CHECKING:
    from fencebroker.model import SyncFileInfo

T = TypeVar("T")

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
_holder = int.from_bytes(os.urandom(8))
_counter = 0
#: Cookie of a timeline's descriptor -> its context, for the session that has shown it; forgotten with the session.
_contexts: dict[int, int] = {}
_contexts_of: object = None


def _start_over() -> None:
    """A forked child is another holder: its packets must not look like its parent's."""
    global _lock, _holder, _counter  # noqa: PLW0603 - a forked child starts over
    _lock = threading.Lock()
    _holder = int.from_bytes(os.urandom(8))
    _counter = 0


os.register_at_fork(after_in_child=_start_over)


def _error(error: int, text: str) -> OSError:
    return OSError(error, f"{os.strerror(error)}: {text}")


def _number(value: object, argument: str) -> int:
    if type(value) is not int:
        raise TypeError(f"{argument} must be a descriptor (an int), not {type(value).__name__}")
    return value


def _fd(value: object, argument: str, negative: int = errno.EBADF) -> int:
    value = _number(value, argument)
    if value < 0:
        raise _error(negative, f"{argument} must not be negative: {value}")
    if value > MAX_FD:
        raise _error(errno.EBADF, f"{argument} is no descriptor: {value}")
    return value


def _u(value: object, argument: str, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise _error(errno.EINVAL, f"{argument} must be between 0 and {most}, not {value}")
    return value


def _is_open(fd: int) -> bool:
    if not 0 <= fd <= MAX_FD:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _reserve() -> None:
    """The kernel reserves the result's descriptor before it looks at the arguments: EMFILE comes before complaints about them."""
    OwnedFd(new_fence_eventfd()).close()


def _connection() -> Connection:
    try:
        return default_connection()
    except BrokerUnavailable as err:
        raise _gone(err) from err


def _call(connection: Connection, request: Request[T]) -> T:
    try:
        return connection.call(request)
    except BrokerUnavailable as err:
        raise _gone(err) from err


def _gone(err: BrokerUnavailable) -> BrokerUnavailable:
    return BrokerUnavailable(errno.ENOTCONN, str(err))


# -- sync.h


def sync_wait(fd: int, timeout: int) -> None:
    """Wait until the fence of ``fd`` has signalled; one that failed has signalled too.

    ``timeout`` is in ms: -1 (or any negative) for ever, 0 asks now.  One absolute deadline holds through every interruption.  What this
    process did before it asks is seen, including a bare close of a timeline.
    OSError: ETIME when the time is over; EINVAL when ``fd`` is negative or no sync_file; ENOENT when it is of another broker or of none;
    EBADF when it is not open; ENOTCONN when the broker went away before the fence signalled.
    """
    fd = _fd(fd, "fd", errno.EINVAL)
    if type(timeout) is not int:
        raise TypeError(f"timeout must be an int of milliseconds, not {type(timeout).__name__}")
    deadline = None if timeout < 0 else time.monotonic() + timeout / 1000
    forged = False
    if _poll(_poller(fd), 0, fd):
        if not _is_forged(fd):
            return
        forged = True
    # Not yet, as far as this process can see: the broker has read all that this process did when it answers.
    connection = _connection()
    try:
        if timeout == 0:
            if not _row(connection, fd, forged)[1]:
                raise _error(errno.ETIME, f"fd {fd} has not signalled")
            return
        status, wait = _call(connection, requests.wait_start(connection, fd))
    except NotASyncFile as err:
        is_eventfd = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
        raise _error(errno.ENOENT if is_eventfd else errno.EINVAL, str(err)) from err
    if status:
        return
    try:
        if not forged:
            _sleep(fd, connection, deadline)
            forged = _is_forged(fd)
        if forged:
            with _call(connection, requests.import_sync_file(connection, fd)) as private:
                _sleep(private.fileno(), connection, deadline)
    finally:
        if wait:  # somebody follows the broker's events
            connection.tell(wire.WAIT_END, wait)


def _sleep(fd: int, connection: Connection, deadline: float | None) -> None:
    poller = _poller(fd)
    broker = connection.peer_fd()
    if broker is not None:
        poller.register(broker, 0)  # POLLHUP comes unasked
    while True:
        remaining = None if deadline is None else max(0, -int(-(deadline - time.monotonic()) * 1000 // 1))
        happened = _poll(poller, remaining, fd)
        if happened:
            return
        if happened is None and broker is not None:
            if _poll(_poller(fd), 0, fd):
                return  # the broker signalled it before it went
            if connection.peer_fd() == broker:
                raise BrokerUnavailable(errno.ENOTCONN, f"the broker at {connection.path} went away; fd {fd} may never signal")
            poller.unregister(broker)  # closed on purpose: the fence is still the broker's to signal
            broker = None
        elif deadline is not None and time.monotonic() >= deadline:
            raise _error(errno.ETIME, f"fd {fd} did not signal in time")


def _is_forged(fd: int) -> bool:
    """Readable and no status: somebody who holds it wrote to it, so what it says is worth nothing."""
    try:
        return not peek_status(fd)
    except OSError:
        return False  # another thread closed it meanwhile; it was readable


def _poller(fd: int) -> select.poll:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return poller


def _poll(poller: select.poll, timeout: int | None, fd: int) -> bool | None:
    """Whether ``fd`` is readable; None: only something else happened.  OSError for what libsync takes for no fence."""
    ready = dict(poller.poll(None if timeout is None else min(timeout, 2**31 - 1)))
    events = ready.get(fd)
    if events is None:
        return None if ready else False
    if events & select.POLLNVAL:
        raise _error(errno.EBADF, f"fd {fd} is not open")
    if events & select.POLLERR:
        raise _error(errno.EINVAL, f"fd {fd} has an error; it is no sync_file")
    return True


def sync_merge(name: str, fd1: int, fd2: int) -> int:
    """Return a new descriptor, the caller's, that signals when both fences have; the inputs stay as they are.

    ``name`` is cut to 31 bytes; empty: named after the fence.
    OSError, in this order: EBADF (``fd1`` is not open) or ENOTTY (it is no eventfd); EMFILE; ENOTTY (``fd1`` is an eventfd of another broker
    or of none); ENOENT (``fd2`` is not open or no sync_file).
    """
    first = _fd(fd1, "fd1")
    one = _active_handle(first)
    if one is None:
        _open_fd(first, "fd1")
    second = _number(fd2, "fd2")
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"name must be a str or bytes, not {type(name).__name__}")
    reason = f"fd2 is not open: {second}"
    try:
        if 0 <= second <= MAX_FD:
            return _merge(_cut(name), first, one, second, _active_handle(second))
    except NotASyncFile as err:
        reason = f"fd2: {err}"
    except OSError as err:
        if err.errno != errno.EBADF:
            raise
    # Something is wrong: find what the kernel would have found first.
    _check_eventfd(_open_fd(first, "fd1"), "fd1")
    _reserve()
    _check_sync_file(_connection(), first, "fd1")
    raise _error(errno.ENOENT, reason)


def _merge(name: str, first: int, one: int | None, second: int, two: int | None) -> int:
    """Merge two sync_files; each is named by its handle, or shown where that is None."""
    connection = _connection()
    shown = [fd for fd, handle in ((first, one), (second, two)) if handle is None]
    try:
        fd, handle = _call(connection, requests.merge_raw([one, two], shown, name))
    except OSError as err:
        if err.errno != errno.EBADF or len(shown) == 2:
            raise
        # The broker has forgotten what was named, or it was of an earlier session.
        fd, handle = _call(connection, requests.merge_raw([None, None], [first, second], name))
    connection.known.add(fd, handle)
    return fd


def _active_handle(fd: int) -> int | None:
    """The handle of an active sync_file that this process's session asked for.

    What is readable is shown instead: the broker looks whether it carries what it should.
    """
    connection = current_default()
    handle = None if connection is None else connection.known.find(fd)
    return handle if handle is not None and _carries(fd) == ACTIVE else None


def _carries(fd: int) -> int | None:
    """The status that a descriptor carries; None if it carries none."""
    try:
        return peek_status(fd)
    except OSError:  # another thread closed it
        return None


def _cut(name: str | bytes) -> str:
    """What fits into struct sync_merge_data: 31 bytes, up to a NUL."""
    if type(name) is str and len(name) <= 31 and name.isascii() and "\0" not in name:
        return name
    raw = name if isinstance(name, bytes) else name.encode(errors="surrogateescape")
    return raw.split(b"\0")[0][:31].decode(errors="ignore")


def _check_eventfd(fd: int, argument: str) -> None:
    """An ioctl of sync_file on anything else is ENOTTY, before its arguments are looked at."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    if target != "anon_inode:[eventfd]":
        raise _error(errno.ENOTTY, f"{argument} is no sync_file: {fd} is {target}")


def _check_sync_file(connection: Connection, fd: int, argument: str) -> None:
    try:
        _call(connection, requests.info_raw(None, (fd,), 0))
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, f"{argument}: {err}") from err


def sync_file_info(fd: int) -> SyncFileInfo:
    """Return name, status and the fences of ``fd``.  OSError: EBADF when it is not open, ENOTTY when it is no sync_file."""
    fd = _fd(fd, "fd")
    info = _info_by_name(fd)
    if info is not None:
        return info
    _open_fd(fd)
    try:
        return requests.sync_file_info(*_pages(_connection(), None, (fd,)))
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, str(err)) from err


def _info_by_name(fd: int) -> SyncFileInfo | None:
    """Ask for a sync_file that this process's session asked for; None if it has to be shown.

    So it is when it does not carry the status that the broker knows: the broker looks at what it is shown, and notes who wrote to it.
    """
    connection = current_default()
    handle = None if connection is None else connection.known.find(fd)
    if connection is None or handle is None:
        return None
    carried = _carries(fd)
    try:
        row, rows = _pages(connection, handle, ())
    except OSError as err:
        if err.errno != errno.EBADF:
            raise
        return None  # the broker has forgotten it
    return requests.sync_file_info(row, rows) if row[1] == carried else None


def _row(connection: Connection, fd: int, show: bool) -> list[Any]:
    """The row of a sync_file that does not look as if it had signalled; ``show`` it to the broker, or name it if possible."""
    handle = None if show else connection.known.find(fd)
    if handle is not None:
        try:
            return _call(connection, requests.info_raw(handle, (), 0))[0]
        except OSError as err:
            if err.errno != errno.EBADF:
                raise
    return _call(connection, requests.info_raw(None, (fd,), 0))[0]


def _pages(connection: Connection, ref: int | None, fds: tuple[int, ...]) -> tuple[list[Any], list[list[Any]]]:
    row, following, rows = _call(connection, requests.info_raw(ref, fds, 0))
    while following is not None:
        row, following, more = _call(connection, requests.info_raw(ref, fds, following))
        rows += more
    return row, rows


def _open_fd(value: int, argument: str = "fd") -> int:
    fd = _fd(value, argument)
    if not _is_open(fd):
        raise _error(errno.EBADF, f"{argument} is not open: {fd}")
    return fd


def sync_set_deadline(fd: int, deadline_ns: int) -> None:
    """Say by when (ns of CLOCK_MONOTONIC) the fence is wanted; a hint, to every member of a merged one.  Signalled: nothing.

    OSError: EBADF, ENOTTY, EINVAL (``deadline_ns`` out of range).
    """
    fd = _open_fd(fd)
    connection = _connection()
    try:
        _call(connection, requests.set_deadline(connection, fd, _u(deadline_ns, "deadline_ns", U64_MAX)))
    except NotASyncFile as err:
        raise _error(errno.ENOTTY, str(err)) from err


# -- sw_sync.h


def sw_sync_timeline_create() -> int:
    """Return the descriptor of a new timeline at value 0, the caller's.  When its last copy is closed, active fences get -ENOENT.

    OSError: EMFILE, EDQUOT.
    """
    connection = _connection()
    context, fd = _call(connection, requests.create_timeline(None, _DRIVER, 0o600, None))
    with fd:
        _remember(connection, _cookie(fd.fileno()), context)
        return fd.detach()


def sw_sync_timeline_inc(fd: int, count: int) -> None:
    """Raise the value by ``count`` (u32; 0 is legal) and signal every fence it passes.

    OSError: EBADF, ENOTTY (no timeline), EINVAL (``count`` out of range), ENOTCONN (the broker ended the timeline, or went away).
    """
    global _counter  # noqa: PLW0603 - counts this process's packets
    fd = _open_fd(fd)
    _context(fd)
    count = _u(count, "count", _U32)
    with _lock:
        _counter += 1
        packet = wire.encode((_holder, _counter, wire.INC, count))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
    try:
        _send(sock, packet)
    except (BrokenPipeError, ConnectionResetError) as err:
        raise BrokerUnavailable(errno.ENOTCONN, f"the broker ended the timeline of fd {fd}, or went away") from err
    finally:
        sock.detach()


def _send(sock: socket.socket, packet: bytes) -> None:
    """Send, and wait for room while the broker is slow; every copy shares O_NONBLOCK, so whether the socket waits by itself is unknown."""
    while True:
        try:
            return send_packet(sock, packet, (), NOWAIT)
        except BlockingIOError:
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            poller.poll()


def sw_sync_fence_create(fd: int, name: str, value: int) -> int:
    """Return a sync_file for ``value`` (u32) of the timeline, the caller's; at or below the timeline's value it is born signalled.

    ``name`` is ignored, as the kernel ignores it.  OSError, in this order: EBADF, ENOTTY (no timeline), EMFILE, EINVAL (``value`` out of
    range), EDQUOT.
    """
    fd = _open_fd(fd)
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"name must be a str or bytes, not {type(name).__name__}")
    context = _context(fd)
    try:
        value = _u(value, "value", _U32)
    except (OSError, TypeError):
        _reserve()
        raise
    connection = _connection()
    try:
        return _create(connection, context, value)
    except OSError as err:
        if err.errno != errno.EBADF:
            raise
        # The session's right to mint ended with the last descriptor it had shown; this one is another copy.
        with _lock:
            _contexts.pop(_cookie(fd), None)
        return _create(connection, _context(fd), value)


def _create(connection: Connection, context: int, value: int) -> int:
    fd, handle, current = _call(connection, requests.export_raw(context, value))
    seqno = nearest(value, current)
    if seqno != value:  # the timeline has counted past 2**31; at its value or below, what was made has signalled and costs nobody anything
        os.close(fd)
        fd, handle, _ = _call(connection, requests.export_raw(context, seqno))
    connection.known.add(fd, handle)
    return fd


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
    number = _number(fd, "fd")
    if not _is_open(number):
        raise _error(errno.EINVAL, f"fd is not open: {number}")
    connection = _connection()
    try:
        info = requests.sync_file_info(*_pages(connection, None, (number,)))
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
    connection = _connection()
    cookie = _cookie(fd)
    with _lock:
        known = _contexts.get(cookie) if _contexts_of is connection.epoch else None
    if known is not None:
        return known
    try:
        context = _call(connection, requests.show_timeline(fd))[0]
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
