"""A timeline as its owner holds it: mint points, signal them.

The timeline's descriptor is one end of a SOCK_SEQPACKET pair whose other end the broker keeps.  What is sent on it is one-way; when its
last copy is closed, by ``close()`` or by death, the broker fails every active fence with -ENOENT.  So that a worker does not keep a dead
producer's timeline alive by accident, the object is closed in a forked child; ``share()`` and pickling hand it out on purpose.
Until then its creator is the only one who signals, and does so by itself where it can (``exclusive.py``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Self

from fencebroker import requests, ring, wire
from fencebroker.errors import BrokerUnavailable
from fencebroker.fds import NOWAIT, OwnedFd, send_packet
from fencebroker.model import U64_MAX, check_error, check_seqno, check_sync_file_name
from fencebroker.pickling import duplicate, is_multiprocessing_at_it

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fencebroker.connection import Connection, Session
    from fencebroker.exclusive import Exclusive
    from fencebroker.sync_file import SyncFile

__all__ = ["Signaller", "Timeline", "can_use_ring", "check_bool", "ended_if_refused", "no_ring_if_refused", "tell_if_lost"]

_ENDED = "the broker ended this timeline, or went away; its active fences were failed"
_open: weakref.WeakSet[Signaller] = weakref.WeakSet()


class Signaller:
    """Owns a timeline's descriptor and signals through it: by the ring while nobody else can, else by packets.  Thread-safe.

    Every packet carries a random holder id and a counter, for several processes may send on one socket.
    """

    def __init__(self, fd: OwnedFd, value: int = 0) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd.detach())
        self._lock = threading.RLock()
        self.holder = int.from_bytes(os.urandom(8))
        self._counter = 0
        self._own: Exclusive | None = None
        self._sent = value  # the value as far as this object knows: the timeline is at least there
        self._wanted = value
        _open.add(self)

    @property
    def value(self) -> int:
        return self._sent

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def advance(self, value: int) -> None:
        """Raise the value.  While the broker is slow only the newest value is kept, and this waits for room."""
        self._wanted = max(self._wanted, value)
        with self._lock:
            wanted = self._wanted
            # Otherwise another thread has sent it, or a later one.
            if wanted > self._sent and not self._by_ring(ring.ADVANCE, wanted, 0, wanted):
                self._send_newest()

    def advance_nowait(self, value: int) -> bool:
        """Like advance, but False instead of waiting; the value is kept and goes with the next one."""
        self._wanted = max(self._wanted, value)
        with self._lock:
            wanted = self._wanted
            if wanted <= self._sent or self._by_ring(ring.ADVANCE, wanted, 0, wanted):
                return True
            try:
                self._put(wire.ADVANCE, (wanted,), NOWAIT)
            except BlockingIOError:
                return False
            self._passed(wanted)
            return True

    def inc(self, n: int, flags: int = 0) -> None:
        """Raise the value by ``n``."""
        with self._lock:
            value = min(self._sent + n, U64_MAX)
            if not self._by_ring(ring.INC, n, 0, value):
                self._put(wire.INC, (n,), flags)
                self._passed(value)

    def fail(self, seqno: int, error: int, flags: int = 0) -> None:
        """Fail a point; ValueError when it has been passed."""
        with self._lock:
            if seqno <= self._sent:
                raise ValueError(f"seqno must be above the timeline's value {self._sent} to fail, not {seqno}: what has signalled stays so")
            if not self._by_ring(ring.FAIL, seqno, error, seqno):
                self._put(wire.FAIL, (seqno, error), flags)
                self._passed(seqno)

    def signal(self, seqno: int, error: int) -> None:
        """Signal one point by itself."""
        with self._lock:
            self._put(wire.SIGNAL, (seqno, error), 0)

    def cancel(self, error: int, flags: int = 0) -> None:
        """Fail every active fence."""
        with self._lock:
            self._put(wire.CANCEL, (error,), flags)
            if self._own is not None:
                self._own.leave_all()

    def _send_newest(self) -> None:
        while True:
            value = self._wanted
            try:
                self._put(wire.ADVANCE, (value,), NOWAIT)
            except BlockingIOError:
                _wait_for_room(self._sock)  # meanwhile other threads may want a later value
                continue
            self._passed(value)
            return

    def _passed(self, value: int) -> None:
        """The broker was told so far.  A larger wanted value stays wanted: it is still to be sent."""
        self._sent = value
        self._wanted = max(self._wanted, value)
        if self._own is not None:
            self._own.leave(value)  # what the ring has passed is gone from there

    def _put(self, op: int, arguments: tuple[int, ...], flags: int) -> None:
        if self.closed:
            raise ValueError("this timeline is closed (a forked child does not inherit it; see Timeline.share)")
        packet = wire.encode((self.holder, self._counter + 1, op, *arguments))
        try:
            send_packet(self._sock, packet, (), flags)
        except (BrokenPipeError, ConnectionResetError) as err:
            raise BrokerUnavailable(_ENDED) from err
        self._counter += 1
        if self._own is not None:
            self._own.sent(self._counter)

    # -- while nobody else has the descriptor

    def use_ring(self, memory: OwnedFd) -> None:
        """Signal through the ring in ``memory``, which is taken, from now on.  Where it cannot be used everything stays as it is."""
        from fencebroker.exclusive import Exclusive

        with memory, self._lock:
            if not self.closed:
                self._own = Exclusive(memory)

    def _by_ring(self, op: int, number: int, error: int, value: int) -> bool:
        """Signal through the ring; False when this one has to be a packet."""
        own = self._own
        if own is None:
            return False
        before = own.committed
        try:
            bell = own.signal(op, number, error, value)
        except BaseException:  # an interrupt, at any point: what was committed counts, and the broker writes the rest
            if own.committed != before:
                self._sent = value
                self.ring_the_bell()
            raise
        if bell is None:
            return False
        self._sent = value
        self._wanted = max(self._wanted, value)
        if bell:
            self.ring_the_bell()
        return True

    def ring_the_bell(self) -> None:
        """Have the broker look into the ring; BrokerUnavailable when there is none any more, or it has ended the timeline."""
        try:
            send_packet(self._sock, wire.DOORBELL, (), NOWAIT)
        except BlockingIOError:
            pass  # what is queued there wakes the broker as well
        except (BrokenPipeError, ConnectionResetError) as err:
            raise BrokerUnavailable(_ENDED) from err

    def keep(self, handle: int, seqno: int, fd: int) -> None:
        """Note an export, to be written here when its point is passed.  ``fd`` is borrowed."""
        with self._lock:
            if self._own is not None and self._own.keep(handle, seqno, fd, self._sent):
                self.ring_the_bell()

    def forget(self, handle: int) -> None:
        """Nobody can see this export any more.  From any thread, and while objects are collected: it takes no lock."""
        own = self._own
        if own is not None:
            own.forget(handle)

    def hand_out(self) -> int:
        """Return the descriptor's number, to be copied for others, who may signal from here on."""
        with self._lock:
            if self.closed:
                raise ValueError("this timeline is closed")
            own, self._own = self._own, None
            if own is not None:
                own.hand_out()
            return self.fileno()

    def share(self) -> socket.socket:
        """Return another descriptor, for others."""
        with self._lock:
            made = self.dup()  # first: where there is no room for it nothing has changed
            self.hand_out()
            return made

    # -- the descriptor

    def dup(self) -> socket.socket:
        """Return another descriptor of the timeline for this process, close-on-exec."""
        with self._lock:
            if self.closed:
                raise ValueError("this timeline is closed")
            return self._sock.dup()

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        with self._lock:
            self._sock.close()
            own, self._own = self._own, None
            if own is not None:
                own.close()

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._sock.close()
        own, self._own = self._own, None
        if own is not None:
            own.abandon()


def _wait_for_room(sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    poller.poll()


def _after_fork_in_child() -> None:
    for signaller in list(_open):
        signaller._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def tell_if_lost(connection: Session, signaller: Signaller) -> None:
    """After a signal: one's own sync_files have it, but where the broker is gone the others will never hear of it.

    A session that was lost may be all that was: the timeline's own socket tells.
    """
    if connection.is_lost:
        signaller.ring_the_bell()


def can_use_ring() -> bool:
    """Whether this process can take part in the broker's barriers, without which there is no ring."""
    try:
        from fencebroker import exclusive, mapping
    except ImportError:  # no ctypes here, or not within reach of a process that has given up its rights
        return False
    return bool(exclusive) and mapping.has_barrier() and mapping.register()


@contextlib.contextmanager
def no_ring_if_refused() -> Iterator[None]:
    """Around asking for a ring: without one everything is sent, as to a broker that knows none."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except OSError:
        pass


@contextlib.contextmanager
def ended_if_refused() -> Iterator[None]:
    """Around showing a timeline's descriptor: what the broker does not know any more it has ended."""
    try:
        yield
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        raise BrokerUnavailable(_ENDED) from err


class Timeline:
    """A counter that only grows, and the fences of its points.  Leaving ``with`` closes it: normally active fences fail with -ENOENT, by an
    exception with -ECANCELED.
    """

    def __init__(self, connection: Connection, context: int, name: str | None, signaller: Signaller, *, epoch: object) -> None:
        """For the library; users get theirs from ``Broker.create_timeline`` and ``Broker.open_timeline``."""
        self._connection = connection
        self._epoch = epoch  # the session in which this timeline was created or shown
        self._signaller = signaller
        self.context = context
        self.name = name

    @property
    def value(self) -> int:
        """The value as far as this process knows; another holder may have raised it further."""
        return self._signaller.value

    @property
    def label(self) -> str:
        """What its points are called in messages."""
        return self.name if self.name is not None else str(self.context)

    @property
    def closed(self) -> bool:
        return self._signaller.closed

    # -- mint

    def export(self, seqno: int | None = None, *, name: str = "", private: bool = False) -> SyncFile:
        """Make a sync_file for a point.

        ``seqno`` is 0..2**64-1, or None for the next one.  At or below the timeline's value it is born signalled.  ``name`` (at most 31
        bytes) shows in listings.  ``private``: only the broker ever writes to the descriptor.  The caller owns the result.
        Raises QuotaExceeded, BrokerUnavailable; ValueError and TypeError for arguments out of range.
        """
        seqnos = None if seqno is None else [check_seqno(seqno)]
        return self._export(seqnos, check_sync_file_name(name), check_bool(private, "private"))[0]

    def export_many(self, seqnos: Iterable[int]) -> list[SyncFile]:
        """Make a sync_file for each seqno: all, or none.  Up to 253 travel in one message; more go in several."""
        wanted = [check_seqno(seqno, f"seqnos[{i}]") for i, seqno in enumerate(seqnos)]
        made: list[SyncFile] = []
        try:
            for start in range(0, len(wanted), wire.PACKET_DESCRIPTORS):
                made += self._export(wanted[start : start + wire.PACKET_DESCRIPTORS], "", False)
        except BaseException:
            for sync_file in made:
                sync_file.close()
            raise
        return made

    def _export(self, seqnos: list[int] | None, name: str, private: bool) -> list[SyncFile]:
        if self._signaller.closed:
            raise ValueError("this timeline is closed (a forked child does not inherit it; see Timeline.share)")
        request = requests.export(self.context, seqnos, name, private, self.label, self._signaller)
        if self._epoch is self._connection.epoch:
            try:
                return self._connection.call(request)
            except OSError as err:
                if err.errno != errno.EBADF:
                    raise
                # Another handle of this timeline was closed in this session, or the timeline has ended.
        self._show()
        return self._connection.call(request)

    def _show(self) -> None:
        """Show the descriptor to a session that does not know this timeline yet."""
        with ended_if_refused():
            self._connection.call(requests.show_timeline(self._signaller.fileno()))
        self._epoch = self._connection.epoch

    # -- signal

    def advance(self, seqno: int) -> None:
        """Signal every point up to ``seqno``.  At or below the value: nothing.  Asks nobody; waits only while the socket is full."""
        self._signaller.advance(check_seqno(seqno))
        tell_if_lost(self._connection, self._signaller)

    def inc(self, n: int = 1) -> None:
        """Raise the value by ``n`` (0 is allowed) and signal what it passes; it stops at 2**64-1."""
        self._signaller.inc(check_seqno(n, "n"))
        tell_if_lost(self._connection, self._signaller)

    def fail(self, seqno: int, error: int) -> None:
        """Everything below ``seqno`` is OK, ``seqno`` fails with the positive errno ``error``, the value is ``seqno``.

        ValueError when ``seqno`` is at or below the value.  A later export of ``seqno`` has the error too.
        """
        self._signaller.fail(check_seqno(seqno), check_error(error))
        tell_if_lost(self._connection, self._signaller)

    def share(self) -> socket.socket:
        """Return the timeline's descriptor, to be inherited or sent: whoever holds a copy may signal, and the timeline lives until the last
        copy is closed.  The caller owns it (close-on-exec; ``os.set_inheritable`` and ``pass_fds`` as for any other).
        """
        return self._signaller.share()

    # -- the end

    def close(self) -> None:
        """Close the descriptor.  If no copy is left, active fences fail with -ENOENT.  A second time does nothing."""
        if self._signaller.closed:
            return
        self._signaller.close()
        if self._epoch is self._connection.epoch and self._connection.is_open:
            self._connection.tell(wire.FORGET_TIMELINE, self.context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not self._signaller.closed:
            with contextlib.suppress(BrokerUnavailable):
                self._signaller.cancel(errno.ECANCELED)
        self.close()

    def __del__(self) -> None:
        signaller = getattr(self, "_signaller", None)
        if signaller is not None and not signaller.closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            signaller.close()

    def __repr__(self) -> str:
        return f"<Timeline {self.label} {'closed' if self.closed else f'at {self.value}'}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_multiprocessing_at_it():
            return _reduce(self)
        raise TypeError(
            "a Timeline holds a descriptor of this process and can only be pickled towards another process by multiprocessing; "
            "elsewhere send the descriptor of Timeline.share()"
        )


def check_bool(value: object, argument: str) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be a bool, not {type(value).__name__}")
    return value


def _reduce(timeline: Timeline) -> Any:
    shared = duplicate(timeline._signaller.hand_out())
    return _rebuild, (shared, timeline._connection.path, timeline.context, timeline.name, timeline.value)


def _rebuild(shared: Any, path: Any, context: int, name: str | None, value: int) -> Timeline:
    from fencebroker.finding import shared_connection

    fd = shared.detach()
    os.set_inheritable(fd, False)
    signaller = Signaller(OwnedFd(fd), value)
    try:
        return Timeline(shared_connection(path), context, name, signaller, epoch=None)
    except BaseException:
        signaller.close()
        raise
