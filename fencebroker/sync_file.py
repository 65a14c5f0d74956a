"""A sync_file as a user holds it: a descriptor that carries one fence.

The descriptor tells its own status (``fds.peek_status``): waiting and asking need no broker.  Where an open connection is known, it adds
who should have signalled, and notices when the broker is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from fencebroker import requests
from fencebroker.connection import Connection, Session, forks, open_connections
from fencebroker.errors import BrokerUnavailable, FenceError, NotASyncFile
from fencebroker.fds import MAX_FD, OwnedFd, eventfd_info, is_signalled, peek_status
from fencebroker.model import ACTIVE, OK, check_seqno
from fencebroker.pickling import duplicate, is_multiprocessing_at_it

if TYPE_CHECKING:
    from fencebroker.model import SyncFileInfo
    from fencebroker.timeline import Signaller

__all__ = ["SyncFile"]

#: Guards number and use of every descriptor against a close in another thread.  Reentrant: collecting one SyncFile may happen inside.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - a forked child starts over
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class SyncFile:
    """Owns one sync_file descriptor.  Any number of threads and tasks may wait on it; close it once, or use ``with``.

    ``fileno()`` makes it usable in select, poll, epoll, selectors, asyncio and trio: readable means signalled, OK or not.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_connection",
        "_epoch",
        "_exposed",
        "_fd",
        "_forks",
        "_handle",
        "_n_waits",
        "_name",
        "_origin",
        "_point",
    )

    def __init__(
        self, fd: OwnedFd, *, name: str = "", point: str | None = None, connection: Session | None = None, handle: int | None = None
    ) -> None:
        """For the library; users get theirs from ``export``, ``recv_sync_file``, ``from_fd`` ..."""
        self._fd = fd
        self._name = name
        self._point = point
        self._connection = connection
        self._handle = handle
        self._epoch = None if connection is None else connection.epoch
        self._forks = forks()
        self._exposed = handle is None
        self._n_waits = 0
        self._origin: tuple[Signaller, int] | None = None  # where and which point it is, if this process signals it
        self._closed = False

    @classmethod
    def from_fd(cls, fd: int) -> SyncFile:
        """Take ownership of a raw sync_file descriptor.

        NotASyncFile if it is open but no sync_file, OSError EBADF if it is not open; it is not taken then.
        """
        if type(fd) is not int:
            raise TypeError(f"fd must be a descriptor (an int), not {type(fd).__name__}")
        if not 0 <= fd <= MAX_FD:
            raise OSError(errno.EBADF, f"fd must be an open descriptor, not {fd}")
        info = eventfd_info(fd)
        if info is None or not info.semaphore:
            what = "not an eventfd" if info is None else "an eventfd of another kind"
            raise NotASyncFile(f"fd {fd} is no sync_file: it is {what}", fd)
        return cls(OwnedFd(fd))

    # -- the descriptor

    def fileno(self) -> int:
        """Return the descriptor's number, for poll() and for passing on.  It stays owned by this object; ValueError when closed."""
        with _lock:
            self._exposed = True
            return self._number()

    def _number(self) -> int:
        if self._closed:
            raise ValueError("this SyncFile is closed")
        return self._fd.fileno()

    def dup(self) -> SyncFile:
        """Return another SyncFile with a descriptor of its own for the same file."""
        with _lock:
            self._exposed = True
            self._number()
            return SyncFile(self._fd.dup(), name=self._name, point=self._point, connection=self._connection)

    @staticmethod
    def _peek(fd: OwnedFd) -> int | None:
        return peek_status(fd.fileno())

    @contextlib.contextmanager
    def _dup_fd(self) -> Iterator[OwnedFd]:
        """A descriptor for one wait, which nobody else can close.  Meanwhile the broker must keep its copy."""
        with _lock:
            self._number()
            own = self._fd.dup()
            self._n_waits += 1
        try:
            yield own
        finally:
            own.close()
            with _lock:
                self._n_waits -= 1

    def detach(self) -> int:
        """Give the descriptor away: returns its number, which the caller closes; this object is closed then."""
        with _lock:
            self._exposed = True
            self._number()
            self._release(at_once=False)
            self._closed = True
            return self._fd.detach()

    def close(self) -> None:
        """Close the descriptor; a second time does nothing.  Waits in other threads go on until the fence signals.

        Where multiprocessing queues or pools are in use, one of them may still have to send this object: the descriptor is then closed
        when the last reference is gone.
        """
        with _lock:
            if self._closed:
                return
            self._closed = True
            if "multiprocessing.queues" in sys.modules or "multiprocessing.pool" in sys.modules:
                return
            self._close_now()

    def _close_now(self) -> None:
        self._release(at_once=None)
        self._fd.close()

    def _release(self, at_once: bool | None) -> None:
        """Give the handle back.  Only for an active fence whose descriptor nobody else has does the broker wait for this."""
        connection = self._connection
        handle, self._handle = self._handle, None
        if handle is None or connection is None or connection.epoch is not self._epoch or not connection.is_open:
            return
        exposed = self._exposed or self._n_waits > 0 or self._forks != forks()  # a child may wait on it
        if at_once is None:
            # A point that this process has passed will be signalled before the broker reads anything that is sent now.
            passed = self._origin is not None and self._origin[0].value >= self._origin[1]
            at_once = not exposed and not passed and not is_signalled(self._fd.fileno())
        if not exposed and self._origin is not None:
            self._origin[0].forget(handle)
        connection.release(handle, exposed=exposed, at_once=at_once)

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)
        if fd is None or fd.closed:
            return
        if not self._closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        self._closed = True
        self._close_now()

    # -- the fence

    def status(self) -> int:
        """Return 0 while active, 1 when signalled, a negative errno when signalled with an error."""
        with _lock:
            status = peek_status(self._number())
        return self._ask_status() if status is None else status

    def _status_of(self, own: OwnedFd) -> int:
        """The status, read from a duplicate of this object's descriptor."""
        status = peek_status(own.fileno())
        return self._ask_status() if status is None else status

    def check(self) -> bool:
        """Return True if the fence has signalled, False if not yet; FenceError if it signalled with an error."""
        status = self.status()
        if status < 0:
            raise self._error(-status)
        return status == OK

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the fence signals.  ``timeout`` is seconds; None: for ever; 0: ask now.

        Raises TimeoutError when the time is over, FenceError when the fence signalled with an error, BrokerUnavailable when the
        connection this sync_file came from has lost its broker.
        """
        deadline = deadline_of(timeout)
        with _lock:
            status = peek_status(self._number())
        if status == ACTIVE:
            status = self._wait_until(deadline)
        if status is None:
            self._wait_truly(deadline)
        elif status < 0:
            raise self._error(-status)

    def _wait_until(self, deadline: float | None) -> int | None:
        with self._dup_fd() as fd:
            poller = select.poll()
            poller.register(fd.fileno(), select.POLLIN)
            connection = self._connection
            watched = None if connection is None else connection.peer_fd()
            if watched is not None:
                poller.register(watched, 0)  # POLLHUP comes unasked
            elif connection is not None and connection.is_lost:
                raise self._broker_gone(connection)
            while True:
                ready = dict(poller.poll(milliseconds_until(deadline)))
                if fd.fileno() in ready:
                    return peek_status(fd.fileno())
                if ready and connection is not None:
                    status = peek_status(fd.fileno())  # what the broker signalled before it went
                    if status != ACTIVE:
                        return status
                    if connection.is_open or connection.is_lost:
                        raise self._broker_gone(connection)
                    for watched in ready:
                        poller.unregister(watched)  # closed on purpose: the fence is still the broker's to signal
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"{self.label} did not signal in time")

    def _broker_gone(self, connection: Session) -> BrokerUnavailable:
        return BrokerUnavailable(f"the broker at {connection.path} went away; {self.label} may never signal")

    def set_deadline(self, deadline_ns: int) -> None:
        """Say by when (ns of time.monotonic_ns()) you would like the fence; a hint to its producer, never a timeout.  The soonest stands."""
        check_seqno(deadline_ns, "deadline_ns")
        connection = self._find_connection()
        if connection is None:
            raise BrokerUnavailable(
                "a deadline goes through the broker, and this process has no open connection; use fencebroker.connect()"
            )
        connection.call(requests.set_deadline(connection, self, deadline_ns))

    @property
    def label(self) -> str:
        """What it is called in messages: its point, its name, or its number."""
        return self._point or self._name or (f"fd {self._fd.fileno()}" if not self._fd.closed else "a closed sync_file")

    def __repr__(self) -> str:
        if self._closed:
            return f"<SyncFile {self._point or self._name or ''} closed>"
        try:
            status = peek_status(self._fd.fileno())
        except (OSError, ValueError):
            return "<SyncFile closed outside>"
        word = (
            "tampered" if status is None else {ACTIVE: "active", OK: "signalled"}.get(status) or errno.errorcode.get(-status, str(status))
        )
        return f"<SyncFile {self.label} {word}>"

    # -- what only a broker knows

    def _handle_for(self, connection: Session) -> int | None:
        """The handle on ``connection``, if it is the one that made this object."""
        return self._handle if connection is self._connection and connection.epoch is self._epoch else None

    def _find_connection(self) -> Connection | None:
        if isinstance(self._connection, Connection) and self._connection.is_open:
            return self._connection
        return next(open_connections(), None)

    def _info(self) -> SyncFileInfo | None:
        connection = self._find_connection()
        if connection is None:
            return None
        with contextlib.suppress(OSError, NotASyncFile):
            return requests.call_info(connection, self)
        return None

    def _ask_status(self) -> int:
        info = self._info()
        if info is None:
            raise FenceError(errno.EBADMSG, self.label, why=_TAMPERED)
        return info.status

    def _wait_truly(self, deadline: float | None) -> None:
        """The descriptor was tampered with: wait on a private one."""
        with self._private() as private:
            private.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _private(self) -> SyncFile:
        connection = self._find_connection()
        if connection is None:
            raise FenceError(errno.EBADMSG, self.label, why=_TAMPERED)
        private = connection.call(requests.import_sync_file(connection, self))
        private._point = self._point or self._name or None
        return private

    def _error(self, error: int) -> FenceError:
        info = self._info()
        if info is None or info.detached:
            return FenceError(error, self._point or self._name or None)
        return error_from_info(error, info, self._point)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_multiprocessing_at_it():
            return _reduce(self)
        raise TypeError(
            "a SyncFile is a descriptor of this process and can only be pickled towards another process by multiprocessing "
            "(Queue, Pipe, Process arguments, ProcessPoolExecutor); over a socket use fencebroker.send_sync_file()"
        )


_TAMPERED = "somebody who holds this descriptor wrote to it or emptied it; connect to the broker and import it to learn the truth"


def error_from_info(error: int, info: SyncFileInfo, point: str | None) -> FenceError:
    """The error of a fence, with the member that caused it and that member's owner."""
    culprit = next((fence for fence in info.fences if fence.status == -error), None)
    if culprit is None:
        return FenceError(error, point or info.name)
    if info.num_fences > 1:
        point = None
    return FenceError(error, point or (f"{culprit.obj_name}@{culprit.seqno}" if culprit.owner else info.name), culprit.owner)


def deadline_of(timeout: float | None) -> float | None:
    """Turn a timeout into a moment of time.monotonic(); checked once, at the edge."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, or None for no limit, not {timeout}")
    return None if timeout > 1e9 else time.monotonic() + timeout  # thirty years, or infinity: no limit


def milliseconds_until(deadline: float | None) -> int | None:
    """What poll() wants: milliseconds, rounded up so that it never wakes early, and within an int."""
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    return max(0, min(-int(-remaining * 1000 // 1), 2**31 - 1))


def _reduce(sync_file: SyncFile) -> Any:
    """For multiprocessing's pickler, which may run in a queue's thread after ``close()``."""
    with _lock:
        sync_file._exposed = True
        return _rebuild, (duplicate(sync_file._fd.fileno()), sync_file._name, sync_file._point)


def _rebuild(shared: Any, name: str, point: str | None) -> SyncFile:
    fd = shared.detach()
    os.set_inheritable(fd, False)
    return SyncFile(OwnedFd(fd), name=name, point=point)
