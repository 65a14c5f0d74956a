"""What a broker finds when it takes over: the journal read, and the table of descriptors held against it.

Facts
  Whoever was killed had done what is in the journal but for the end of one turn: eventfds not written, descriptors not closed, an answer not
  sent, a packet not taken from its socket.  All of that can be done again: a status is written once whoever writes it, and a client drops an
  answer that it has.
  Descriptors that the journal does not know were made, received or given up in that turn, or are the last broker's own epolls and pipes.
Rules
  Nothing that a client waits for is closed: only what nobody knows.  Closing it may block, so a reaper does that.
  What the journal knows and the table does not have is a fault of ours; it is said, and costs the object that it belonged to.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Any, Final

from fencebrokerd.config import Config
from fencebrokerd.core import events as e
from fencebrokerd.core import snapshot
from fencebrokerd.core.state import State, nobody
from fencebrokerd.core.trace import Line, render
from fencebrokerd.shell import record as r
from fencebrokerd.shell.journal import Journal, JournalError
from fencebrokerd.shell.peer import REMEMBERED, cost_of

__all__ = ["Inheritance", "inherit", "open_descriptors"]

#: Of what signalled in the newest records it is looked whether the status is right; of the rest, whether anything is there.
NEWEST: Final = 8


class Inheritance:
    """What the last broker left: the core's state, which descriptor everything is, and what may not have been done.

    ``eventfds``: handle -> descriptor; ``sockets``: socket -> (our end, the client's end or -1, its cookie); ``peers`` and ``creators``: session ->
    descriptor; ``rings``: socket -> descriptor.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.config = Config()
        #: The version of the broker that wrote it.
        self.version = ""
        self.listeners: list[r.Listening] = []
        self.eventfds: dict[int, int] = {}
        self.sockets: dict[int, tuple[int, int, int]] = {}
        self.peers: dict[int, int] = {}
        self.creators: dict[int, int] = {}
        self.rings: dict[int, int] = {}
        #: By session: answers with descriptors, the newest last, each with what it uses of the kernel's memory while it is unread.
        self.sent: dict[int, deque[tuple[int, int]]] = {}
        #: Sockets of sessions that have ended, with descriptors unread: whose, and how many.
        self.kept: dict[int, tuple[int, int]] = {}
        self.next_session = 1
        #: By session: the newest packet of it that the journal has, and its answer.
        self.owed: dict[int, tuple[r.Packet, r.Answer | None]] = {}
        #: The newest packet of any timeline's socket.
        self.timeline: r.Packet | None = None
        #: Lines of events that those who follow them may not have been told of.
        self.untold: list[Line] = []
        #: Fences that signalled in the newest records.
        self.signalled: list[int] = []
        self.faults: list[str] = []
        #: Objects whose change could not be folded in; they are failed when all is there.
        self.broken: set[int] = set()

    def descriptors(self) -> Iterable[int]:
        """Every descriptor that the journal knows."""
        yield from self.eventfds.values()
        for ours, theirs, _ in self.sockets.values():
            yield ours
            if theirs >= 0:
                yield theirs
        yield from self.peers.values()
        yield from self.creators.values()
        yield from self.rings.values()
        yield from self.kept
        for listener in self.listeners:
            yield listener.fd
            if listener.lock is not None:
                yield listener.lock

    # -- the fold

    def take_snapshot(self, found: r.Snapshot, own_uid: int) -> None:
        """Begin with a whole state."""
        self.config = r.config_of(next(entry for entry in found.entries if isinstance(entry, r.Configured)))
        limits = self.config.limits
        self.state = snapshot.load(found.rows, limits.remembered_failures, own_uid, limits.failures_per_uid)
        for entry in found.entries:
            self._entry(entry)
        self.owed = {packet.id: (packet, answer) for packet, answer in found.owed}
        self.next_session = found.next_session

    def take_record(self, found: r.Record, advance: Callable[[], None], *, is_told: bool) -> None:
        """Fold one turn in.  A change that does not fit what is there costs the object that it speaks of, never the rest."""
        state = self.state
        assert state is not None
        for change in found.changes:
            try:
                if type(change) in _ENTRIES:
                    self._entry(change)
                else:
                    if state.subscribers and not is_told:
                        self.untold += render(state, change, 0, nobody())
                    state.apply(change)
                    self._follow(change)
            except Exception as err:  # noqa: BLE001 - whatever it is, every other object must survive it
                self.faults.append(f"{type(change).__name__} could not be replayed: {type(err).__name__}: {err}")
                fence = getattr(change, "fence", None)
                if fence is not None:
                    self.broken.add(fence)
        packet = found.packet
        if packet is not None and packet.is_timeline:
            self.timeline = packet
        elif packet is not None:
            self.owed[packet.id] = packet, found.answer
            if (answer := found.answer) is not None and (
                n := len(answer.handles) + (answer.socket is not None) + (answer.ring is not None)
            ):
                self.sent.setdefault(packet.id, deque(maxlen=REMEMBERED)).append((cost_of(len(answer.packet)), n))
        advance()

    def _follow(self, event: Any) -> None:
        match event:
            case e.SyncFileDropped():
                self.eventfds.pop(event.handle, None)
            case e.SocketClosed():
                self.sockets.pop(event.socket, None)
            case e.SessionClosed():
                self.owed.pop(event.session, None)

    def _entry(self, entry: r.Entry) -> None:
        match entry:
            case r.Configured():
                self.config, self.version = r.config_of(entry), entry.version
            case r.Listening():
                self.listeners.append(entry)
            case r.PeerAccepted():
                self.peers[entry.session] = entry.fd
                self.next_session = max(self.next_session, entry.session + 1)
            case r.PeerEnded():
                self.peers.pop(entry.session, None)
                self.owed.pop(entry.session, None)
                self.sent.pop(entry.session, None)
            case r.EventfdsMade():
                assert self.state is not None
                # A kernel that refused the next one made the core drop what was made before.
                known = self.state.sync_files
                self.eventfds.update((handle, fd) for handle, fd in enumerate(entry.fds, entry.first) if handle in known)
            case r.SocketMade():
                self.sockets[entry.socket] = entry.ours, entry.theirs, entry.cookie
            case r.EndSent():
                if entry.socket in self.sockets:
                    ours, _, cookie = self.sockets[entry.socket]
                    self.sockets[entry.socket] = ours, -1, cookie
            case r.RingMade():
                self.rings[entry.socket] = entry.fd
            case r.CreatorWatched():
                self.creators[entry.session] = entry.fd
            case r.CreatorForgotten():
                self.creators.pop(entry.session, None)
            case r.Unread():
                self.sent[entry.session] = deque(entry.packets, REMEMBERED)
            case r.PeerKept():
                self.kept[entry.fd] = entry.uid, entry.n
            case r.PeerLetGo():
                self.kept.pop(entry.fd, None)


_ENTRIES: Final[frozenset[type[Any]]] = frozenset(
    (
        r.Configured,
        r.Listening,
        r.PeerAccepted,
        r.PeerEnded,
        r.EventfdsMade,
        r.SocketMade,
        r.EndSent,
        r.CreatorWatched,
        r.CreatorForgotten,
        r.RingMade,
        r.Unread,
        r.PeerKept,
        r.PeerLetGo,
    )
)


def inherit(journal: Journal, own_uid: int, told: int, advance: Callable[[], None]) -> Inheritance | None:
    """Read the journal; None when there is nothing in it yet, JournalError when it cannot be believed.  ``advance`` is called now and then: it goes on, however long it takes.

    Up to the byte ``told`` those who follow the events were told of them.
    """
    found = Inheritance()
    newest: deque[r.Record] = deque(maxlen=NEWEST)
    for at, payload in journal.records():
        try:
            read = r.decode(payload)
            if isinstance(read, r.Snapshot):
                found.take_snapshot(read, own_uid)
                continue
            found.take_record(read, advance, is_told=at < told)
        except Exception as err:
            raise JournalError(f"the record at byte {at} of {len(journal)} makes no sense: {type(err).__name__}: {err}") from err
        newest.append(read)
    if found.state is None:
        return None
    if any(type(fd) is not int for fd in found.descriptors()):
        raise JournalError("a descriptor of it is no number")
    found.signalled = [change.fence for one in newest for change in one.changes if isinstance(change, e.FenceSignalled)]
    return found


# -- the table of descriptors


def open_descriptors() -> dict[int, str]:
    """Return every descriptor of this process and what it refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def reconcile(
    found: Inheritance, table: dict[int, str], known: Container[int], is_accepting: bool, addresses: Container[Any]
) -> tuple[list[int], list[int]]:
    """Hold the journal against the table of descriptors.

    Returns the connections to adopt, and the descriptors that nobody knows, to be closed.  What is missing goes out of ``found`` and into
    ``found.faults``.
    """
    for handle, fd in list(found.eventfds.items()):
        if table.get(fd) != "anon_inode:[eventfd]":
            del found.eventfds[handle]
            _miss(found, f"sync_file {handle}", fd, table)
    for kind in ("peers", "creators"):
        fds: dict[int, int] = getattr(found, kind)
        for session, fd in list(fds.items()):
            if fd not in table:
                del fds[session]
                _miss(found, f"session {session} ({kind})", fd, table)
    for fd in list(found.kept):
        if not table.get(fd, "").startswith("socket:"):
            del found.kept[fd]
            _miss(found, "socket of a session that has ended", fd, table)
    for socket_id, (ours, theirs, cookie) in list(found.sockets.items()):
        if not table.get(ours, "").startswith("socket:"):
            del found.sockets[socket_id]
            _miss(found, f"timeline socket {socket_id}", ours, table)
        elif theirs >= 0 and not table.get(theirs, "").startswith("socket:"):
            found.sockets[socket_id] = ours, -1, cookie
            _miss(found, f"client's end of timeline socket {socket_id}", theirs, table)
    rings = () if found.state is None else found.state.rings
    found.rings = {socket_id: fd for socket_id, fd in found.rings.items() if socket_id in rings}
    for socket_id, fd in list(found.rings.items()):
        if not table.get(fd, "").startswith("/memfd:"):
            del found.rings[socket_id]
            _miss(found, f"ring of timeline socket {socket_id}", fd, table)
    ours_now = set(found.descriptors())
    unknown = [fd for fd in table if fd > 2 and fd not in ours_now and fd not in known]
    adopted = [fd for fd in unknown if is_accepting and _is_accepted(fd, table[fd], addresses)]
    return adopted, [fd for fd in unknown if fd not in adopted]


def _miss(found: Inheritance, what: str, fd: int, table: dict[int, str]) -> None:
    found.faults.append(f"missing descriptor: {what} was {fd}, which is {table.get(fd, 'closed')}")


def _is_accepted(fd: int, target: str, addresses: Container[Any]) -> bool:
    """A connection that was taken in and not noted: a socket with the listener's address that does not listen."""
    if not target.startswith("socket:"):
        return False
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return (
            sock.family == socket.AF_UNIX
            and sock.type == socket.SOCK_SEQPACKET
            and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and sock.getsockname() in addresses
        )
    finally:
        sock.detach()
