"""One client connection: packets in, a bounded queue out.

A session with unsent output is not read, so what it can make us keep is bounded by one answer and by the events it asked for.
Descriptors that an unread answer carries count against the broker's own limit until the client takes them, or closes its end, also when the
session is long over.  The kernel does not say how many those are, only how many bytes of its memory unread packets use (SIOCOUTQ).  What a
packet of a given size uses is measured once; the newest packets that fit into that number are taken for unread, which is never too few.
So they are counted for a session and, in ``Flight``, for a user; and the socket of a session that ends with some is kept until then.
The next broker goes on counting, from the answers that are in the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from fencebroker.fds import NOWAIT, OwnedFd, close_all, send_packet
from fencebroker.protocol import Conversation
from fencebrokerd.core.account import allowance
from fencebrokerd.shell.ledger import Owed

if TYPE_CHECKING:
    from fencebrokerd.shell.reaper import ForeignFd

__all__ = ["REMEMBERED", "Credentials", "Flight", "Peer", "TooSlow", "cost_of", "printable", "user_of"]

SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77  # Linux 6.5
#: After so many packets those that were taken are let go of; a socket's buffer holds a few hundred.
REMEMBERED: Final = 1024
_UCRED: Final = struct.Struct("3i")


class TooSlow(Exception):
    """A client asks for more than it takes; it is disconnected."""


class Credentials:
    """Who is at the other end, as the kernel knew it when it connected."""

    __slots__ = ("comm", "gid", "groups", "pid", "uid")

    def __init__(self, sock: socket.socket) -> None:
        self.pid, self.uid, self.gid = _credentials(sock)
        self.groups = frozenset(_peer_groups(sock))
        self.comm = _comm_of(sock, self.pid)


def user_of(sock: socket.socket) -> int:
    """The uid of whoever connected."""
    return _credentials(sock)[1]


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * 256)
    except OSError:  # more than 256 groups: none of them counts, rather than some
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def printable(name: str) -> str:
    """A process chooses its own name: what could move a terminal's cursor is replaced before anybody prints it."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _comm_of(sock: socket.socket, pid: int) -> str:
    """The command name of the process that connected.  Its number may be another's by now: only while its pidfd says that it lives, what
    /proc has under that number is its own.
    """
    try:
        pidfd = OwnedFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError:  # before Linux 6.5, or it is gone, or no descriptor is left: the number is all there is
        return _comm(pid)
    with pidfd:
        comm = _comm(pid)
        poll = select.poll()
        poll.register(pidfd.fileno(), select.POLLIN)
        return "?" if poll.poll(0) else comm


def _comm(pid: int) -> str:
    """The command name, for people; pid 0 is a process of another pid namespace."""
    if pid <= 0:
        return "?"
    try:
        with open(f"/proc/{pid}/comm", "rb") as stream:
            return printable(stream.read(64).rstrip(b"\n").decode(errors="backslashreplace"))
    except OSError:
        return "?"


def cost_of(size: int) -> int:
    """What a packet of ``size`` bytes uses of the kernel's memory while it is unread, or somewhat less."""
    try:
        return _measured_cost(max(1, size - size % 64))  # the kernel rounds up, in steps of its own
    except OSError:
        return size


@functools.cache
def _measured_cost(size: int) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_packet(ours, bytes(size), (), NOWAIT)
        return _bytes_unread(ours)


def _bytes_unread(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"), "little")


class Flight:
    """Descriptors on their way to clients, by user.  What one user may leave unread bounds what others find left of the kernel's limit."""

    def __init__(self, pool: int) -> None:
        #: The kernel lets this process have so many in flight.
        self.pool = pool
        self._unread: dict[int, int] = {}
        self._total = 0
        self._kept: dict[int, tuple[socket.socket, int, int]] = {}

    def count(self, uid: int, n: int) -> None:
        """``n`` more, or fewer, are unread."""
        mine = self._unread.get(uid, 0) + n
        self._total += n
        if mine:
            self._unread[uid] = mine
        else:
            del self._unread[uid]

    def has_room(self, uid: int, n: int, limit: int) -> bool:
        """Whether ``uid`` may leave ``n`` more unread."""
        mine = self._unread.get(uid, 0)
        return mine + n <= min(limit, allowance(self.pool, self.pool - self._total, mine, len(self._unread) - bool(mine)))

    def keep(self, sock: socket.socket, uid: int, n: int) -> None:
        """Own the socket of a session that has ended, with ``n`` descriptors unread, until its client has read them or closes its end.

        It was shut down, so it always hangs up: only an edge of EPOLLOUT or EPOLLHUP says that something has changed.
        """
        self._kept[sock.fileno()] = sock, uid, n

    def kept(self) -> Iterator[tuple[int, int, int]]:
        """Every such socket: its number, whose it is, and how many descriptors."""
        for fd, (_, uid, n) in self._kept.items():
            yield fd, uid, n

    def is_settled(self, fd: int) -> bool:
        """Whether nothing is unread any more."""
        return not _bytes_unread(self._kept[fd][0])

    def let_go(self, fd: int) -> socket.socket:
        """The client has no more of it.  The caller closes the socket."""
        sock, uid, n = self._kept.pop(fd)
        self.count(uid, -n)
        return sock

    def keeps(self, fd: int) -> bool:
        """Whether ``fd`` is such a socket."""
        return fd in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def close(self) -> Iterator[socket.socket]:
        """Give up all of them."""
        for fd in list(self._kept):
            yield self.let_go(fd)


class Peer:
    """Owns one connected socket."""

    __slots__ = (
        "connected_at",
        "conversation",
        "credentials",
        "flight",
        "foreign",
        "limit_bytes",
        "limit_descriptors",
        "limit_user",
        "lost",
        "owed",
        "queue",
        "queued_bytes",
        "sent",
        "session",
        "sock",
        "stalled_at",
        "swept",
        "unread",
    )

    def __init__(
        self, session: int, sock: socket.socket, now: int, limit_bytes: int, limit_descriptors: int, flight: Flight, limit_user: int = 0
    ) -> None:
        self.session = session
        self.flight = flight
        self.limit_user = limit_user
        self.sock = sock
        self.connected_at = now
        self.conversation = Conversation()
        self.credentials = Credentials(sock)
        self.limit_bytes = limit_bytes
        self.limit_descriptors = limit_descriptors
        self.queue: deque[tuple[bytes, list[OwnedFd]]] = deque()
        self.queued_bytes = 0
        #: Packets that may be unread, the newest last: what each uses of the kernel's memory, and its descriptors.
        self.sent: deque[tuple[int, int]] = deque()
        #: Descriptors in ``sent`` and in ``queue``.
        self.unread = 0
        self.stalled_at = 0
        #: Packets taken from timelines' sockets before the next one of this session is read.
        self.swept = 0
        self.lost = 0
        #: The packet whose answer is queued: it stays in its socket until then, and so does what it brought that is not ours.
        self.owed: Owed | None = None
        self.foreign: list[ForeignFd] = []

    def send(self, packet: bytes, fds: list[int], now: int) -> bool:
        """Send, or queue while the client is slow.  True when the queue just became used; TooSlow when a limit is passed.

        ``fds`` are borrowed; a queued packet keeps copies.  Other errors are the kernel's.
        """
        if fds and self.unread + len(fds) > self.limit_descriptors:
            self._forget_taken()
            if self.unread and self.unread + len(fds) > self.limit_descriptors:
                raise TooSlow(f"it left answers with {self.unread} descriptors unread")
        if fds and not self.flight.has_room(self.credentials.uid, len(fds), self.limit_user):
            self._forget_taken()
            if not self.flight.has_room(self.credentials.uid, len(fds), self.limit_user):
                raise TooSlow("its user left too many descriptors unread")
        if not self.queue:
            try:
                send_packet(self.sock, packet, fds, NOWAIT)
            except BlockingIOError:
                self.stalled_at = now
            else:
                if fds or self.unread:  # else it does not matter when this packet is taken
                    self._count(len(fds))
                    self._note(len(packet), len(fds))
                return False
        if self.queued_bytes + len(packet) > self.limit_bytes:
            raise TooSlow(f"it left {self.queued_bytes} bytes unread")
        copies: list[OwnedFd] = []
        try:
            for fd in fds:
                copies.append(OwnedFd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)))  # noqa: PERF401 - each is owned before the next can fail
        except OSError:
            close_all(copies)
            raise
        self.queue.append((packet, copies))
        self.queued_bytes += len(packet)
        self._count(len(copies))
        return len(self.queue) == 1

    def _count(self, n: int) -> None:
        if n:
            self.unread += n
            self.flight.count(self.credentials.uid, n)

    def _note(self, size: int, n_descriptors: int) -> None:
        self.sent.append((cost_of(size), n_descriptors))
        if len(self.sent) > REMEMBERED:
            self._forget_taken()

    def resume(self, packets: Iterable[tuple[int, int]]) -> None:
        """Go on counting what another broker has sent: what each packet uses of the kernel's memory, and its descriptors."""
        for packet in packets:
            self.sent.append(packet)
            self._count(packet[1])
        if self.sent:
            self._forget_taken()

    def unread_packets(self) -> tuple[tuple[int, int], ...]:
        """The packets with descriptors that may be unread, in the same form."""
        if self.unread:
            self._forget_taken()
        return tuple((cost, n) for cost, n in self.sent if n)

    def _forget_taken(self) -> None:
        """Let go of the packets that the client has certainly taken."""
        left, n = _bytes_unread(self.sock), 0
        for cost, _ in reversed(self.sent):
            if left < cost:
                break
            left -= cost
            n += 1
        while len(self.sent) > n:
            self._count(-self.sent.popleft()[1])

    def flush(self, now: int) -> bool:
        """Send what is queued; True when nothing is left."""
        while self.queue:
            packet, fds = self.queue[0]
            try:
                send_packet(self.sock, packet, [fd.fileno() for fd in fds], NOWAIT)
            except BlockingIOError:
                return False
            self.queue.popleft()
            self._note(len(packet), len(fds))
            close_all(fds)
            self.queued_bytes -= len(packet)
            self.stalled_at = now
        self.stalled_at = 0
        return True

    def close_queue(self) -> None:
        """Close the copies that queued packets hold."""
        for _, fds in self.queue:
            self._count(-len(fds))
            close_all(fds)
        self.queue.clear()

    def leave(self) -> bool:
        """End; True when the client has taken every descriptor that was sent, otherwise ``flight`` keeps the socket."""
        self.close_queue()
        if self.unread:
            self._forget_taken()
        if not self.unread:
            return True
        with contextlib.suppress(OSError):  # it has closed its end: nothing is unread any more
            self.sock.shutdown(socket.SHUT_RDWR)
            self.flight.keep(self.sock, self.credentials.uid, self.unread)
            return False
        self._count(-self.unread)
        return True
