"""One connection to a broker, blocking, for any number of threads.

Facts
  The broker answers every request but the one-way ones, in order, with the request's serial.
  After fork both processes would read each other's answers: so the child closes its copy (``os.register_at_fork``) and connects anew when
  it is next used.  What the parent's session knew by handle, the child's shows by descriptor.
Rules
  One request is under way at a time, under the lock.  What is released is told in batches: a release has no answer, and except for an
  unexposed descriptor of an active fence the broker frees nothing by it at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fencebroker import wire
from fencebroker.errors import BrokerUnavailable, QuotaExceeded, exception_from_refusal
from fencebroker.fds import OwnedFd, Truncated, close_all, recv_packet, send_packet
from fencebroker.known import KnownFds
from fencebroker.protocol import Conversation, Move

__all__ = ["Connection", "Request", "Session", "forks", "generation", "open_connections"]

T = TypeVar("T")

#: Releases wait until there are so many, or until the next request whose answer they could change.
_BATCH = 64
_QUIET = frozenset((wire.EXPORT, wire.MERGE, wire.IMPORT, wire.INFO, wire.SYNC_FILE, wire.SET_DEADLINE, wire.WAIT_START))
_generation = 0
_forks = 0
_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def generation() -> int:
    """How many forks lie between the process that imported the library and this one."""
    return _generation


def forks() -> int:
    """How often this process, or one it was forked from, has forked: what existed before then is held by another process too."""
    return _forks


def open_connections() -> Iterator[Connection]:
    """Yield the connections of this process that are open now."""
    for connection in list(_open):
        if connection.is_open:
            yield connection


class Session(Protocol):
    """What an object needs of the connection that made it: its handle is good there, and is given back there."""

    path: Path
    epoch: object

    @property
    def is_open(self) -> bool: ...
    @property
    def is_lost(self) -> bool: ...
    def peer_fd(self) -> int | None: ...
    def release(self, handle: int, *, exposed: bool, at_once: bool) -> None: ...
    def tell(self, op: int, *arguments: Any) -> None: ...


class Request(NamedTuple, Generic[T]):
    """A request and how its answer is read.

    ``fds`` are borrowed; ``finish`` gets the results and owns the received descriptors.  ``makes`` so many handles, from the first result on.
    """

    op: int
    arguments: tuple[Any, ...]
    finish: Callable[[Session, list[Any], list[OwnedFd]], T]
    fds: Sequence[int] = ()
    makes: int = 0


def connect_socket(path: Path) -> socket.socket:
    """Connect to the broker at ``path``; OSError is the kernel's."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def hello(serial: int) -> bytes:
    """The first packet of a session."""
    name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m", "-") else "python"
    return wire.encode([serial, wire.HELLO, wire.VERSION, name.encode(errors="replace")[:200].decode(errors="ignore")])


def read_answer(path: Path, packet: bytes, fds: list[OwnedFd]) -> list[Any]:
    """Decode a packet of the broker; BrokerUnavailable when it ended, or sent nonsense."""
    if not packet:
        raise BrokerUnavailable(f"the broker at {path} went away")
    try:
        return wire.decode_answer(packet)
    except wire.Malformed as err:
        close_all(fds)
        raise BrokerUnavailable(f"what listens at {path} does not speak this protocol: {err}") from err


def lost_handles(request: Request[Any], serial: int, packet: bytes) -> range:
    """The handles of an answer whose descriptors were lost: nobody has them, so they are to be given back."""
    with contextlib.suppress(wire.Malformed):
        answer = wire.decode_answer(packet)
        if answer[0] == serial and answer[1] == 0 and request.makes:
            return range(answer[2], answer[2] + request.makes)
    return range(0)


def no_room() -> OSError:
    """What is raised when an answer's descriptors were lost."""
    return OSError(errno.EMFILE, "an answer's descriptors did not fit: this process is at its descriptor limit (RLIMIT_NOFILE)")


def refusal_of(answer: list[Any]) -> Exception | None:
    """The exception for an answer that refuses; None for one that does not."""
    if answer[1] == 0:
        return None
    return exception_from_refusal(answer[1], answer[2], tuple(answer[3]))


class Connection:
    """Owns one socket to one broker, and remembers the path to connect anew after a fork."""

    def __init__(self, path: Path) -> None:
        """Connect and say hello.  OSError if nothing listens; BrokerUnavailable if what listens refuses."""
        self.path = path
        self.pid = 0
        self._setup()
        self._connect()
        _open.add(self)

    def _setup(self) -> None:
        self._lock = threading.RLock()
        self._serial = 0
        self._sock: socket.socket | None = None
        self._closed = False
        self._unexposed: list[int] = []
        self._exposed: list[int] = []
        self.epoch = object()  # handles belong to one epoch: to one session
        self.known = KnownFds()
        self.conversation = Conversation()

    def _connect(self) -> None:
        self._sock = connect_socket(self.path)
        self.known = KnownFds()
        self.conversation = Conversation()
        try:
            self.conversation.move(Move.HELLO)
            self._serial = 1
            send_packet(self._sock, hello(1))
            answer, fds = self._receive()
            close_all(fds)
        except OSError as err:
            self._lose()
            if isinstance(err, BrokerUnavailable):
                raise
            raise BrokerUnavailable(f"the broker at {self.path} went away: {err.strerror}") from err
        refusal = refusal_of(answer)
        if refusal is not None:
            self._lose()
            raise refusal
        if len(answer) != 6:
            self._lose()
            raise BrokerUnavailable(
                f"what listens at {self.path} does not speak this protocol: its hello has {len(answer)} elements, not 6"
            )
        self.conversation.move(Move.ACCEPT)
        self.pid = answer[4]

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    @property
    def is_lost(self) -> bool:
        """The broker went away, or ended this session."""
        return self._sock is None and not self._closed and self.conversation.is_open

    @property
    def may_reconnect(self) -> bool:
        """Whether the next call connects anew: in a forked child, where the session was the parent's."""
        return not self._closed and not self.conversation.is_open and self._sock is None

    def peer_fd(self) -> int | None:
        """The socket's number, to notice the broker's end; None when closed."""
        sock = self._sock
        return None if sock is None else sock.fileno()

    def call(self, request: Request[T]) -> T:
        """Send a request and read its answer.

        The broker's refusal is raised as the exception that stands for it; BrokerUnavailable when the broker is gone or the connection was
        closed.
        """
        with self._lock:
            if self._sock is None:
                self._reconnect()
            if request.op not in _QUIET:
                self.flush()
            try:
                results, fds = self._exchange(request)
            except OSError as err:
                if err.errno not in (errno.EDQUOT, errno.EMFILE) or not (self._unexposed or self._exposed):
                    raise
                self.flush()  # what was released but not told may make room
                results, fds = self._exchange(request)
        return request.finish(self, results, fds)

    def _exchange(self, request: Request[Any]) -> tuple[list[Any], list[OwnedFd]]:
        assert self._sock is not None
        self._serial += 1
        serial = self._serial
        try:
            send_packet(self._sock, wire.encode((serial, request.op, *request.arguments)), request.fds)
            while True:
                try:
                    answer, fds = self._receive()
                except Truncated as err:
                    close_all(err.fds)
                    if wire.serial_of(err.packet) not in (serial, 0):
                        continue
                    self._unexposed += lost_handles(request, serial, err.packet)
                    raise no_room() from err
                if answer[0] == serial:
                    break
                # Nobody waits for it any more: its wait was interrupted, or a broker that took over answered again what we had already.
                close_all(fds)
        except (BrokenPipeError, ConnectionResetError) as err:
            self._lose()
            raise BrokerUnavailable(f"the broker at {self.path} went away") from err
        refusal = refusal_of(answer)
        if refusal is not None:
            close_all(fds)
            raise refusal
        return answer[2:], fds

    def tell(self, op: int, *arguments: Any) -> None:
        """Send a one-way request; a broker that is gone does not need to hear it."""
        with self._lock:
            if self._sock is not None:
                self._serial += 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    send_packet(self._sock, wire.encode((self._serial, op, *arguments)))

    def _receive(self) -> tuple[list[Any], list[OwnedFd]]:
        assert self._sock is not None
        try:
            packet, fds = recv_packet(self._sock)
        except ConnectionResetError:  # the broker ended the session; what it said before is still to come
            packet, fds = recv_packet(self._sock)
        try:
            return read_answer(self.path, packet, fds), fds
        except BrokerUnavailable:
            self._lose()
            raise

    def _reconnect(self) -> None:
        if self._closed:
            raise BrokerUnavailable(f"this connection to {self.path} was closed; fencebroker.connect() makes another")
        if self.conversation.is_open:
            raise BrokerUnavailable(f"the broker at {self.path} went away; fencebroker.connect() finds or starts another")
        try:
            self._connect()
        except (BrokerUnavailable, QuotaExceeded, PermissionError):
            raise
        except OSError as err:
            raise BrokerUnavailable(f"no broker answers at {self.path}: {err.strerror}") from err

    def release(self, handle: int, *, exposed: bool, at_once: bool) -> None:
        """Give a handle back.  Also called while objects are collected, so it never waits for the lock."""
        (self._exposed if exposed else self._unexposed).append(handle)
        if (at_once or len(self._unexposed) + len(self._exposed) >= _BATCH) and self._lock.acquire(blocking=False):
            try:
                self.flush()
            finally:
                self._lock.release()

    def flush(self) -> None:
        """Tell the broker what was released."""
        with self._lock:
            while self._unexposed or self._exposed:
                unexposed, exposed = self._unexposed[:500], self._exposed[:500]
                del self._unexposed[: len(unexposed)], self._exposed[: len(exposed)]  # other threads append meanwhile
                self.tell(wire.RELEASE, unexposed, exposed)

    def hand_over(self) -> tuple[int, socket.socket]:
        """Give the socket and the last serial away, to an event loop; this object is closed then."""
        with self._lock:
            assert self._sock is not None
            sock, self._sock = self._sock, None
            self.close()
            return self._serial, sock

    def _lose(self) -> None:
        sock, self._sock = self._sock, None
        self.known.close()
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        with self._lock:
            if self._sock is not None and (self._unexposed or self._exposed):
                self._sock.setblocking(False)
                with contextlib.suppress(OSError):  # a courtesy, for which nobody waits
                    self.flush()
            self._closed = True
            self._lose()
            _open.discard(self)

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None:
            import warnings

            warnings.warn(f"the connection to {self.path} was never closed", ResourceWarning, stacklevel=2, source=self)
            self._lose()

    def _after_fork(self) -> None:
        """In the child: the socket is the parent's.  Close this copy, silently, and start over when next used."""
        closed = self._closed
        sock = self._sock
        self.known.abandon()
        self._setup()
        self._closed = closed
        if sock is not None:
            sock.close()


def _after_fork_in_child() -> None:
    global _generation  # noqa: PLW0603 - a forked child starts over
    _generation += 1
    for connection in list(_open):
        connection._after_fork()


def _before_fork() -> None:
    global _forks  # noqa: PLW0603 - counted before, so that no thread sees a child that is not counted
    _forks += 1


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
