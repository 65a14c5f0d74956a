"""The same verbs for asyncio: ``await aio.connect()``, ``await aio.wait(fence)``.

Finding (or starting) a broker happens in a thread; after the hello the connection's socket belongs to the event loop.  One request is
under way at a time, as in the blocking client, which bounds the descriptors that wait to be read.
asyncio's ``add_reader`` replaces a reader silently, so each waiter watches a duplicate of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from fencebroker import requests, wire
from fencebroker.client import check_expiry, check_mode, read_events, wire_name, wire_point
from fencebroker.connection import Connection, Request, lost_handles, no_room, read_answer, refusal_of
from fencebroker.errors import BrokerUnavailable, FenceError, NotASyncFile
from fencebroker.fds import NOWAIT, HasFileno, OwnedFd, Truncated, close_all, recv_packet, send_packet
from fencebroker.finding import find
from fencebroker.model import ACTIVE, check_error, check_seqno, check_sync_file_name, check_timeline_name
from fencebroker.sync_file import SyncFile, deadline_of, error_from_info
from fencebroker.timeline import Signaller, can_use_ring, check_bool, ended_if_refused, no_ring_if_refused, tell_if_lost

if TYPE_CHECKING:
    from fencebroker.model import Event, SyncFileInfo

__all__ = ["Broker", "Timeline", "connect", "wait"]

T = TypeVar("T")
Answer = tuple[list[Any], list[OwnedFd]]


async def connect(path: str | os.PathLike[str] | None = None, *, autostart: bool = True) -> Broker:
    """Connect to a broker, found or started as ``fencebroker.connect`` does.  The caller closes the result."""
    search = _Search()
    try:
        connection = await asyncio.to_thread(search.run, path, autostart)
    except BaseException:
        search.abandon()
        raise
    return Broker(LoopConnection(connection))


class _Search:
    """Owns the connection that a thread opens until somebody takes it.

    The thread cannot be cancelled, and a loop that ends forgets what its threads will return: whoever comes second, the thread with
    its connection or the caller who no longer wants it, closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Connection | None = None
        self._abandoned = False

    def run(self, path: str | os.PathLike[str] | None, autostart: bool) -> Connection:
        found = find(path, autostart)
        with self._lock:
            self._found = found
            if self._abandoned:
                found.close()
        return found

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            if self._found is not None:
                self._found.close()


class LoopConnection:
    """Owns a session's socket on behalf of one event loop."""

    def __init__(self, connection: Connection) -> None:
        """Take the socket of a connection that has said hello."""
        self.path: Path = connection.path
        self.epoch = object()
        self._loop = asyncio.get_running_loop()
        serial, self._sock = connection.hand_over()
        self._serials = itertools.count(serial + 1)  # releases take theirs in any thread
        self._closed = False
        self._telling = False  # releases will be told in this turn of the loop
        self._lock = asyncio.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, tuple[Request[Any], asyncio.Future[Answer]]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._released: dict[bool, list[int]] = {False: [], True: []}  # by whether they were exposed
        self.on_event: Callable[[bytes], None] | None = None
        self._loop.add_reader(self._sock.fileno(), self._read)
        _connections.add(self)

    @property
    def is_open(self) -> bool:
        return self._sock.fileno() >= 0

    @property
    def is_lost(self) -> bool:
        """The broker went away, or ended this session."""
        return not self.is_open and not self._closed

    def peer_fd(self) -> int | None:
        """The socket's number, for a blocking wait in a thread; None when closed."""
        return self._sock.fileno() if self.is_open else None

    async def call(self, request: Request[T]) -> T:
        """Send a request and await its answer; errors as in the blocking client."""
        async with self._lock:
            if not self.is_open:
                raise BrokerUnavailable(f"this connection to {self.path} was closed, or its broker went away")
            self._tell_released()
            serial = next(self._serials)
            future: asyncio.Future[Answer] = self._loop.create_future()
            self._pending[serial] = request, future
            try:
                await self._send(wire.encode((serial, request.op, *request.arguments)), request.fds)
                answer, fds = await future
            except BaseException:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._discard(request, *future.result())
                future.cancel()
                raise
        refusal = refusal_of(answer)
        if refusal is not None:
            close_all(fds)
            raise refusal
        # What is made knows this connection: its handle is good here.
        return request.finish(self, answer[2:], fds)

    async def _send(self, packet: bytes, fds: Any) -> None:
        while True:
            try:
                with self._sending:
                    send_packet(self._sock, packet, fds, NOWAIT)
                return
            except BlockingIOError:
                await _writable(self._loop, self._sock)
            except (BrokenPipeError, ConnectionResetError) as err:
                self._lose()
                raise BrokerUnavailable(f"the broker at {self.path} went away") from err

    def _read(self) -> None:
        try:
            packet, fds = recv_packet(self._sock, NOWAIT)
        except (BlockingIOError, ConnectionResetError):  # after a reset, what the broker said before is still to come
            return
        except Truncated as err:
            close_all(err.fds)
            self._lose_descriptors(err.packet)
            return
        except OSError:
            self._lose()
            return
        try:
            answer = read_answer(self.path, packet, fds)
        except BrokerUnavailable as err:
            self._lose(err)
            return
        if answer[0] == 0:
            close_all(fds)
            if self.on_event is not None:
                self.on_event(packet)
            return
        request, future = self._pending.pop(answer[0], (None, None))
        if request is None or future is None:
            close_all(fds)  # a broker that took over answered again what we had already
        elif future.cancelled():
            self._discard(request, answer, fds)
        else:
            future.set_result((answer, fds))

    def _lose_descriptors(self, packet: bytes) -> None:
        """An answer came without its descriptors.  Only its request fails; what it made is given back."""
        try:
            serial = wire.decode_answer(packet)[0]
        except wire.Malformed:
            self._lose(no_room())
            return
        request, future = self._pending.pop(serial, (None, None))
        if request is None or future is None:
            return  # it came before
        self._released[False] += lost_handles(request, serial, packet)
        if not future.done():
            future.set_exception(no_room())

    def _discard(self, request: Request[Any], answer: list[Any], fds: list[OwnedFd]) -> None:
        """An answer that nobody waits for any more: close what it brought."""
        if refusal_of(answer) is not None:
            close_all(fds)
            return
        made = request.finish(self, answer[2:], fds)
        for thing in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(thing, (SyncFile, OwnedFd)):
                thing.close()

    # -- what objects made here need

    def release(self, handle: int, *, exposed: bool, at_once: bool) -> None:
        """Give a handle back; from any thread, and while objects are collected."""
        self._released[exposed].append(handle)
        if (at_once or len(self._released[False]) + len(self._released[True]) >= 64) and not self._telling:
            self._telling = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the connection goes with it
                self._loop.call_soon_threadsafe(self._tell_released)

    def _tell_released(self) -> None:
        self._telling = False
        if not any(self._released.values()) or not self.is_open or not self._sending.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(OSError):  # full: they go with the next request; gone: nobody needs to know
                while any(self._released.values()):
                    unexposed, exposed = self._released[False][:500], self._released[True][:500]
                    send_packet(self._sock, wire.encode((next(self._serials), wire.RELEASE, unexposed, exposed)), (), NOWAIT)
                    del self._released[False][: len(unexposed)], self._released[True][: len(exposed)]
        finally:
            self._sending.release()

    def tell(self, op: int, *arguments: Any) -> None:
        """Send a one-way request if there is room; each of them is a courtesy."""
        if self.is_open:
            with contextlib.suppress(OSError):
                send_packet(self._sock, wire.encode((next(self._serials), op, *arguments)), (), NOWAIT)

    def watch(self, waiter: asyncio.Future[None]) -> None:
        """Let ``waiter`` fail when the broker goes."""
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)

    def _lose(self, why: Exception | None = None) -> None:
        if not self.is_open:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        why = why or BrokerUnavailable(f"the broker at {self.path} went away")
        for _, future in self._pending.values():
            if not future.done():
                future.set_exception(why)
        self._pending.clear()
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_exception(why)

    def close(self) -> None:
        """Close the socket.  Waits for fences go on, requests fail."""
        self._tell_released()
        self._closed = True
        self._waiters.clear()
        self._lose(BrokerUnavailable(f"this connection to {self.path} was closed"))

    def _after_fork(self) -> None:
        """In the child: socket and event loop are the parent's.  Close this copy and touch nothing else."""
        self._closed = True
        self._sock.close()


_connections: weakref.WeakSet[LoopConnection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for connection in list(_connections):
        connection._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def _ready(loop: asyncio.AbstractEventLoop, fd: int, writing: bool, connection: LoopConnection | None = None) -> None:
    """Wait until ``fd``, which must be nobody else's, is ready."""
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    if connection is not None:
        connection.watch(future)
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(fd, done)
    try:
        await future
    finally:
        remove(fd)


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    with sock.dup() as own:
        await _ready(loop, own.fileno(), True)


async def wait(fence: SyncFile, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the same signature as SyncFile.wait
    """Await a fence.  ``timeout`` is seconds, None for no limit.

    Raises TimeoutError, FenceError when it signalled with an error, BrokerUnavailable when the asyncio connection it came from has lost its
    broker.  Any number of tasks may wait on one SyncFile; a wait goes on when another task closes it.
    """
    if not isinstance(fence, SyncFile):
        raise TypeError(f"fence must be a SyncFile, not {type(fence).__name__}; SyncFile.from_fd() makes one of a descriptor")
    connection = fence._connection if isinstance(fence._connection, LoopConnection) else None
    if timeout is None:  # without the limit's machinery, all of which would run between the wake-up and the caller
        await _wait(fence, connection)
        return
    async with _limit(timeout, fence):
        await _wait(fence, connection)


@contextlib.asynccontextmanager
async def _limit(seconds: float | None, fence: SyncFile) -> AsyncIterator[None]:
    deadline = deadline_of(seconds)
    if seconds == 0 and fence.status() == ACTIVE:
        raise TimeoutError(f"{fence.label} has not signalled")
    try:
        async with asyncio.timeout(None if deadline is None or not seconds else seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"{fence.label} did not signal in time") from None


async def _wait(fence: SyncFile, connection: LoopConnection | None) -> None:
    with fence._dup_fd() as own:
        status = fence._peek(own)
        if status == ACTIVE:
            if connection is not None and connection.is_lost:
                raise BrokerUnavailable(f"the broker at {connection.path} went away; {fence.label} may never signal")
            await _ready(asyncio.get_running_loop(), own.fileno(), False, connection)
            status = fence._peek(own)
        if status is None:  # tampered with: only the broker knows
            if connection is None or not connection.is_open:
                await asyncio.to_thread(fence._wait_truly, None)
                return
            with await connection.call(requests.import_sync_file(connection, own)) as private:
                await _wait(private, connection)
            return
        if status < 0:
            raise await _error(-status, fence, own, connection)


async def _error(error: int, fence: SyncFile, own: OwnedFd, connection: LoopConnection | None) -> FenceError:
    if connection is None or not connection.is_open:
        return await asyncio.to_thread(fence._error, error)
    try:
        info = await _info(connection, own)
    except (OSError, NotASyncFile):
        return FenceError(error, fence.label)
    return error_from_info(error, info, fence._point)


async def _info(connection: LoopConnection, source: int | HasFileno) -> SyncFileInfo:
    row, following, rows = await connection.call(requests.info_page(connection, source, 0))
    while following is not None:
        row, following, more = await connection.call(requests.info_page(connection, source, following))
        rows += more
    return requests.sync_file_info(row, rows)


class Broker:
    """A connection to a broker for one event loop.  Use ``async with``, or ``close()``.  Verbs as in ``fencebroker.Broker``."""

    def __init__(self, connection: LoopConnection) -> None:
        """For the library; users await ``connect``."""
        self._connection = connection

    async def create_timeline(self, name: str | None = None, *, mode: int = 0o600, expiry: float | None = None) -> Timeline:
        """Create a timeline, at value 0."""
        if name is not None:
            check_timeline_name(name)
        request = requests.create_timeline(name, "fencebroker", check_mode(mode), check_expiry(expiry))
        context, fd = await self._connection.call(request)
        signaller = Signaller(fd)
        try:
            if can_use_ring():
                with no_ring_if_refused():
                    signaller.use_ring(await self._connection.call(requests.ring(context, signaller.holder)))
        except BaseException:
            signaller.close()
            raise
        return Timeline(self._connection, context, name, signaller)

    async def open_timeline(self, name: str) -> Timeline:
        """Return another producer's handle of a named timeline."""
        context, value, fd = await self._connection.call(requests.open_timeline(wire_name(name)))
        return Timeline(self._connection, context, name, Signaller(fd, value))

    async def sync_file(self, point: str, *, expiry: float | None = None) -> SyncFile:
        """Return a sync_file for a point by name; it may come before the point and the timeline."""
        on_wire, named = wire_point(point)
        return await self._connection.call(requests.sync_file(str(named), on_wire, check_expiry(expiry)))

    async def import_sync_file(self, fd: int | HasFileno) -> SyncFile:
        """Return a private sync_file for the fence that ``fd`` carries."""
        return await self._connection.call(requests.import_sync_file(self._connection, fd))

    async def merge(self, fences: Iterable[int | HasFileno], *, name: str = "", when: Literal["all", "any"] = "all") -> SyncFile:
        """Return one sync_file of several."""
        if when not in ("all", "any"):
            raise ValueError(f"when must be 'all' or 'any', not {when!r}")
        return await self._connection.call(requests.merge(self._connection, fences, check_sync_file_name(name), when == "any"))

    async def info(self, fd: int | HasFileno) -> SyncFileInfo:
        """Return what a sync_file is."""
        return await _info(self._connection, fd)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens in the broker from now on; over a connection of its own."""
        connection = LoopConnection(await asyncio.to_thread(Connection, self._connection.path))
        packets: asyncio.Queue[bytes] = asyncio.Queue()
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            connection.on_event = packets.put_nowait
            connection.watch(lost)
            await connection.call(requests.subscribe())
            while True:
                for event in read_events(await _next(packets, lost)):
                    yield event
        finally:
            connection.close()
            lost.cancel()

    def close(self) -> None:
        """Close the connection; timelines and sync_files live on."""
        self._connection.close()

    @property
    def closed(self) -> bool:
        return not self._connection.is_open

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<aio.Broker {self._connection.path}{' closed' if self.closed else ''}>"


async def _next(packets: asyncio.Queue[bytes], lost: asyncio.Future[None]) -> bytes:
    """The next packet, or the exception that ended the connection."""
    if not packets.empty():
        return packets.get_nowait()
    getting = asyncio.ensure_future(packets.get())
    try:
        waiting: set[asyncio.Future[Any]] = {getting, lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        lost.result()
        raise AssertionError("lost ends with an exception")
    finally:
        getting.cancel()


class Timeline:
    """A timeline on an asyncio connection.  Verbs as in ``fencebroker.Timeline``; leaving ``async with`` closes it the same way."""

    def __init__(self, connection: LoopConnection, context: int, name: str | None, signaller: Signaller) -> None:
        """For the library; users await ``Broker.create_timeline``."""
        self._connection = connection
        self._signaller = signaller
        self._loop = asyncio.get_running_loop()
        self.context = context
        self.name = name

    @property
    def value(self) -> int:
        """The value as far as this process knows."""
        return self._signaller.value

    @property
    def label(self) -> str:
        """What its points are called in messages."""
        return self.name if self.name is not None else str(self.context)

    @property
    def closed(self) -> bool:
        return self._signaller.closed

    async def export(self, seqno: int | None = None, *, name: str = "", private: bool = False) -> SyncFile:
        """Make a sync_file for a point; None: the next one."""
        seqnos = None if seqno is None else [check_seqno(seqno)]
        return (await self._export(seqnos, check_sync_file_name(name), check_bool(private, "private")))[0]

    async def export_many(self, seqnos: Iterable[int]) -> list[SyncFile]:
        """Make a sync_file for each seqno: all, or none."""
        wanted = [check_seqno(seqno, f"seqnos[{i}]") for i, seqno in enumerate(seqnos)]
        made: list[SyncFile] = []
        try:
            for start in range(0, len(wanted), wire.PACKET_DESCRIPTORS):
                made += await self._export(wanted[start : start + wire.PACKET_DESCRIPTORS], "", False)
        except BaseException:
            for sync_file in made:
                sync_file.close()
            raise
        return made

    async def _export(self, seqnos: list[int] | None, name: str, private: bool) -> list[SyncFile]:
        if self.closed:
            raise ValueError("this timeline is closed (a forked child does not inherit it; see Timeline.share)")
        request = requests.export(self.context, seqnos, name, private, self.label, self._signaller)
        try:
            return await self._connection.call(request)
        except OSError as err:
            if err.errno != errno.EBADF:
                raise
        with ended_if_refused():  # another handle of this timeline was closed in this session, or the timeline has ended
            await self._connection.call(requests.show_timeline(self._signaller.fileno()))
        return await self._connection.call(request)

    async def advance(self, seqno: int) -> None:
        """Signal every point up to ``seqno``; awaits only while the socket is full, and sends the newest value then."""
        check_seqno(seqno)
        while not self._signaller.advance_nowait(seqno):
            await self._room()
        tell_if_lost(self._connection, self._signaller)

    async def inc(self, n: int = 1) -> None:
        """Raise the value by ``n``."""
        check_seqno(n, "n")
        await self._insist(lambda: self._signaller.inc(n, NOWAIT))

    async def fail(self, seqno: int, error: int) -> None:
        """Everything below ``seqno`` is OK, ``seqno`` fails with the positive errno ``error``, the value is ``seqno``."""
        check_seqno(seqno)
        check_error(error)
        await self._insist(lambda: self._signaller.fail(seqno, error, NOWAIT))

    async def _insist(self, send: Callable[[], None]) -> None:
        while True:
            try:
                send()
            except BlockingIOError:
                await self._room()
            else:
                return tell_if_lost(self._connection, self._signaller)

    async def _room(self) -> None:
        with self._signaller.dup() as own:
            await _ready(self._loop, own.fileno(), True)

    def share(self) -> socket.socket:
        """Return the timeline's descriptor, to be inherited or sent; the caller owns it."""
        return self._signaller.share()

    def close(self) -> None:
        """Close the descriptor; active fences fail with -ENOENT if no copy is left."""
        if not self.closed:
            self._signaller.close()
            self._connection.tell(wire.FORGET_TIMELINE, self.context)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not self.closed:
            with contextlib.suppress(BrokerUnavailable):
                await self._insist(lambda: self._signaller.cancel(errno.ECANCELED, NOWAIT))
        self.close()

    def __repr__(self) -> str:
        return f"<aio.Timeline {self.label} {'closed' if self.closed else f'at {self.value}'}>"
