"""The loop: epoll, sessions, timelines' sockets, and the carrying out of effects.  One thread; nothing blocks; nothing polls.

Facts
  epoll does not report in the order in which descriptors became ready.  A client that acted on a timeline's socket (or just closed it) and
  then asks on its session must be answered as if the action came first, for it did.
Rule
  Timelines' sockets are in an epoll of their own too.  After a session's packet has come and before it is read, it is emptied.
  It also keeps a busy crowd's requests from delaying other people's signals.
Order, so that a broker that is killed anywhere leaves what the next one can go on with
  peek      the packet stays in its socket
  decide    the core's events and effects
  create    descriptors that the effects ask for: what nobody knows of is closed by the next broker
  append    events, descriptors and the answer to the journal; from here on it has happened
  act       write eventfds, close what was given up, answer: what may be missing can be done twice
  consume   the packet leaves its socket; only now is what it brought closed
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.fds import NOWAIT, PEEK, OwnedFd, Truncated, close_all, drop_packet, is_hung_up, look_at_packet, recv_packet
from fencebroker.model import OK
from fencebroker.protocol import Move, Violation
from fencebroker.ring import Nonsense
from fencebrokerd import __version__
from fencebrokerd.config import Config, ConfigError
from fencebrokerd.core import effects as fx
from fencebrokerd.core import snapshot
from fencebrokerd.core.broker import Broker
from fencebrokerd.keeper import ARMED, CONDEMNED, GENERATION, HAND, READY, RECOVERIES, RELOADS, STARTED, TURN, Keeper
from fencebrokerd.shell import failpoints
from fencebrokerd.shell import record as r
from fencebrokerd.shell.admission import MAKING, admit, check_room
from fencebrokerd.shell.creators import Creators
from fencebrokerd.shell.door import Door, take_descriptors
from fencebrokerd.shell.eventfds import Eventfds
from fencebrokerd.shell.fairness import EVERYBODY, NOBODY, Fairness
from fencebrokerd.shell.identity import Identity
from fencebrokerd.shell.journal import Journal
from fencebrokerd.shell.ledger import Ledger, Owed
from fencebrokerd.shell.log import Log, escape
from fencebrokerd.shell.notify import notify
from fencebrokerd.shell.peer import Flight, Peer, TooSlow, printable
from fencebrokerd.shell.reaper import ForeignFd, Reaper
from fencebrokerd.shell.record import Listening, config_entry
from fencebrokerd.shell.recovery import Inheritance
from fencebrokerd.shell.rings import Rings
from fencebrokerd.shell.signals import Signals
from fencebrokerd.shell.sockets import Sockets
from fencebrokerd.shell.supervisor import Supervisor

__all__ = ["Server"]

#: Packets taken from timelines' sockets in one sweep: more than a default socket can queue, so what was sent before is seen.
SWEEP: Final = 600
#: So many of them in one turn.
SLICE: Final = 16
#: How many of them may be another user's than the asker's; of a busy one it is one, so that a flood delays nobody's question.
FOREIGN: Final = 64
#: Descriptors that no session may take: the last ones are for receiving and looking at what clients send, the others for telling a session
#: that there is no room, until the reaper has closed it.
MARGIN: Final = 48
LAST: Final = 16
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
#: After so many new objects that were not let go of the collector looks; what makes it look at all of them grows with their number.
COLLECT: Final = 20_000
#: epoll takes no timeout of more than 24 days: what is due later is looked at again after one.
DAY: Final = 86_400.0
_LINES: Final = 24  # rendered events in one packet
Effects = list[fx.Effect]


class Server:
    """Owns every descriptor of the broker and runs until it is told to stop."""

    def __init__(
        self,
        config: Config,
        core: Broker,
        listeners: Sequence[Listening],
        log: Log,
        reload: Callable[[], Config],
        keeper: Keeper,
        journal: Journal | None = None,
    ) -> None:
        """Take the listening sockets.  ``reload`` reads the configuration again for SIGHUP; ConfigError leaves everything as it is.

        Without a ``journal`` nothing outlives this broker.
        """
        self._config = config
        self._core = core
        self._log = log
        self._reload = reload
        self._keeper = keeper
        self._words = keeper.page.words
        self._ledger = Ledger(self._words, journal, self._snapshot)
        self._is_kept = journal is not None
        self._listeners = listeners
        self._epoll = select.epoll()
        doors = [socket.socket(fileno=listener.fd) for listener in listeners]
        self._reaper = Reaper(keeper, core.charge_closing)
        self._door = Door(doors, self._epoll, log, self._words, self._reaper)
        self._identity = Identity()
        self._eventfds = Eventfds(self._identity)
        self._rings = Rings()
        self._sockets = Sockets(self._identity, self._reaper, self._epoll)
        self._creators = Creators(self._epoll)
        self._fairness = Fairness()
        self._flight = Flight(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._supervisor = Supervisor(self._epoll, doors[0].getsockname(), self._describe, keeper.page.keeper)
        self._peers: dict[int, Peer] = {}  # by session
        self._by_fd: dict[int, Peer] = {}
        self._silent: dict[int, Peer] = {}  # before their hello
        self._queued: dict[int, Peer] = {}  # with unsent output
        self._own: set[int] = set()  # sessions of our own watchdog
        self._next_session = 1
        #: While this broker takes over: by session, the newest packet that the journal has, and its answer.
        self._inherited: Mapping[int, Owed] = {}
        self._is_short = False  # of memory for the journal
        self._is_idle_for_good = False
        core.configure(config.limits, config.limits_of_users())
        self._idle_since: int | None = None
        self._depth = 0
        #: What the packet in hand brought and is not ours: closed when the packet is gone, for its last close may block.
        self._foreign: list[ForeignFd] = []
        #: Whose packet was looked at and is still in its socket.
        self._looked_at: Peer | None = None
        self._signals = Signals()
        self._full = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - MARGIN
        self._act: dict[type, Callable[[Any], None]] = {
            fx.FreezeRing: self._freeze_ring,
            fx.CloseRing: self._close_ring,
            fx.Signal: self._signal,
            fx.CloseHandles: self._close_handles,
            fx.CloseSocket: self._close_socket,
            fx.Send: self._send,
            fx.Disconnect: self._disconnect_effect,
        }

    # -- life

    def run(self, ready: Callable[[], None]) -> int | None:
        """Serve until SIGTERM or SIGINT, or until idle for long enough.  Calls ``ready`` when clients can connect.

        Returns how many active fences were completed with -ECANCELED; None when it stepped aside for the next broker.
        """
        self._signals.watch()
        self._epoll.register(self._signals.fileno(), select.EPOLLIN)
        self._epoll.register(self._reaper.fileno(), select.EPOLLIN)
        if not len(self._ledger):
            self.write_anew()
        # What the loop makes is let go of when the last name for it goes; the collector is for what exceptions leave, and looks seldom.
        gc.freeze()
        gc.set_threshold(COLLECT, *gc.get_threshold()[1:])
        ready()
        words = self._words
        words[READY] = 1
        words[TURN] += words[TURN] % 2
        while not self._signals.stop and not self._is_idle_for_good:
            # What was put off stands in the queue like anything else that a user wants.
            left = self._eventfds.put_off()
            timeout = None if self._is_calm() else self._timeout()
            happened = self._epoll.poll(0 if left else timeout)
            words[TURN] += 1
            if self._is_kept and not words[ARMED]:
                self._keeper.page.arm()
            if left:
                happened += [(-uid - 1, 0) for uid in left]
            self._take_turn(happened)
            if timeout is not None:
                self._pass_time()
            if self._ledger.is_long:
                with contextlib.suppress(OSError):  # no memory for it: it goes on as it is, and this is tried again
                    self.write_anew()
            if self._signals.reload:
                if self._is_kept:
                    self._step_aside()
                    return None
                self._reload_now()
            words[TURN] += 1
        return self._stop()

    def _take_turn(self, happened: list[tuple[int, int]]) -> None:
        for fd, events in self._fairness.order(happened, self._uid_of):
            if fd < 0:
                self._note_signalled(*self._eventfds.resume(-fd - 1, self._core.uid_of))
            elif (socket_id := self._sockets.id_of(fd)) is not None:
                self._take(socket_id)
            elif (peer := self._by_fd.get(fd)) is not None:
                self._turn(peer, events)
                self._words[HAND] = 0
            elif fd in self._door:
                for guest in self._door.guests(fd):
                    self._add_peer(guest)
            elif fd == self._signals.fileno():
                self._signals.drain()
            elif fd == self._reaper.fileno():
                self._reaper.look()
                self._door.open_again()
            elif self._flight.keeps(fd):
                if self._flight.is_settled(fd):
                    self._let_go(fd)
            elif (session := self._creators.session_of(fd)) is not None:
                self._core.creator_died(session, time.monotonic_ns())
                self._ledger.note(r.CreatorForgotten(session))
                self._carry_out([])
                self._creators.forget(session)
            elif self._supervisor.owns(fd):
                self._supervisor.come_back()
        if self._supervisor.listens:
            self._supervisor.say_status()

    # -- for the next broker

    def adopt(self, found: Inheritance, adopted: Sequence[int]) -> None:
        """Go on with what another broker left, and with connections that it took in and did not note."""
        state = self._core.state
        self._inherited, self._ledger.inherited = found.owed, found.timeline
        self._next_session = found.next_session
        self._eventfds.adopt(found.eventfds)
        for socket_id, (ours, theirs, cookie) in found.sockets.items():
            self._sockets.adopt(socket_id, ours, theirs, cookie, self._payer_of(socket_id))
        for socket_id, fd in found.rings.items():
            timeline = state.rings[socket_id]
            assert timeline.ring is not None
            self._rings.adopt(socket_id, fd, timeline.ring.taken, timeline.advanced_at)
        for session, fd in found.creators.items():
            self._creators.adopt(session, fd)
        for session, fd in found.peers.items():
            self._watch_peer(session, socket.socket(fileno=fd))
            known = state.sessions.get(session)
            if known is not None:
                peer = self._peers[session]
                del self._silent[session]
                peer.conversation.move(Move.HELLO)
                peer.conversation.move(Move.ACCEPT)
                peer.credentials.comm = known.comm
                peer.lost = (
                    sum(1 for line in found.untold if state.sees_all(known.uid) or line.uid == known.uid)
                    if session in state.subscribers
                    else 0
                )
        for session, packets in found.sent.items():
            # A subscriber's events are not among them, and would be taken for them.
            if session in self._peers and session not in state.subscribers:
                self._peers[session].resume(packets)
        for fd, (uid, n) in found.kept.items():
            self._flight.count(uid, n)
            self._flight.keep(socket.socket(fileno=fd), uid, n)
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        for fd in adopted:
            self._add_peer(socket.socket(fileno=fd))
        now = time.monotonic_ns()
        for session in [session for session in state.sessions if session not in self._peers]:
            self._carry_out(self._core.disconnect(session, now))
        for socket_id in [socket_id for socket_id in state.sockets if socket_id not in found.sockets]:
            self._carry_out(self._core.end_socket(socket_id, now))
        missing = [handle for handle in state.sync_files if handle not in found.eventfds]
        self._carry_out(self._core.lose(missing, now))
        for timeline in state.timelines.values():
            watched = timeline.creator in self._creators or timeline.creator not in self._peers or not timeline.creator_alive
            if not watched:
                self._watch_creator(timeline.creator)

    def close_unknown(self, fds: Sequence[int], table: dict[int, str]) -> None:
        """Close descriptors that nobody knows: those whose closing cannot block here, the others elsewhere."""
        for fd in fds:
            if table[fd].startswith("anon_inode:"):
                os.close(fd)
            else:
                owner = self._reaper.owner_of(fd)
                self._reaper.close_fd(fd, os.getuid() if owner is None else owner)

    def redo(self, found: Inheritance) -> None:
        """Do again what the last broker may not have done: statuses, and the packets that it had in hand."""
        state = self._core.state
        newest = {handle for id in found.signalled if (fence := state.fences.get(id)) is not None for handle in fence.sync_files}
        forged = {handle for handle in newest if self._eventfds.carries(handle) != state.sync_files[handle].fence.status}
        missing = self._eventfds.unsignalled(handle for handle, file in state.sync_files.items() if file.fence.status)
        late: dict[int, list[int]] = {}
        for handle in sorted(forged | missing):
            late.setdefault(state.sync_files[handle].fence.status, []).append(handle)
        if failpoints.BUG != "no-recovery":
            self._carry_out([fx.Signal(handles, status) for status, handles in late.items() if status])
        if failpoints.IS_ARMED:
            failpoints.hit("recover.signalled")
        self._resume_rings()
        self._condemn()
        if failpoints.BUG not in ("no-recovery", "forget-last-serial"):
            for session, (packet, answer) in found.owed.items():
                if session in self._peers:
                    self._recognise(self._peers[session], packet, answer)
            if found.timeline is not None and found.timeline.id in state.sockets:
                self._recognise_timeline(found.timeline)
        for socket_id, _, theirs, _ in list(self._sockets.entries()):
            if theirs >= 0 and not any(peer.owed and (a := peer.owed[1]) and a.socket == socket_id for peer in self._peers.values()):
                self._give_end(socket_id)  # its packet is gone: the client has it, or has gone too
        self._inherited, self._ledger.inherited = {}, None
        if failpoints.IS_ARMED:
            failpoints.hit("recover.recognised")

    def _recognise(self, peer: Peer, packet: r.Packet, answer: r.Answer | None) -> None:
        """If the packet that waits is the one whose effect is in the journal, only its answer is still due."""
        try:
            try:
                waiting, fds = recv_packet(peer.sock, NOWAIT | PEEK)
            except ConnectionResetError:  # said once, ahead of what waits
                waiting, fds = recv_packet(peer.sock, NOWAIT | PEEK)
        except (OSError, Truncated) as err:
            self._reap(err.fds if isinstance(err, Truncated) else (), peer)
            return
        if not waiting or wire.serial_of(waiting) != packet.a:
            self._reap(fds, peer)
            return
        self._foreign += [self._reaper.own(fd.detach(), peer.credentials.uid) for fd in fds]
        if answer is not None:
            self._answer_again(peer, answer)
        self._settle(peer, (packet, answer))

    def _answer_again(self, peer: Peer, answer: r.Answer) -> None:
        end = None if answer.socket is None else self._sockets.end_of(answer.socket)
        if (answer.socket is not None and end is None) or (answer.ring is not None and answer.ring not in self._rings):
            return
        try:
            fds = [end.fileno()] if end is not None else self._eventfds.numbers(answer.handles)
            if answer.ring is not None:
                fds = [self._rings.number(answer.ring)]
            if peer.send(answer.packet, fds, time.monotonic_ns()):
                self._queue(peer)
        except (KeyError, OSError, TooSlow):
            return  # a handle was lost, or the client is: it hears from its end-of-file

    def _recognise_timeline(self, packet: r.Packet) -> None:
        try:
            message = self._sockets.receive(packet.id)
        except (OSError, wire.Malformed):
            return
        if message is not None and message[0] == packet.a and message[1] == packet.b:
            self._sockets.consume(packet.id)

    def _condemn(self) -> None:
        """A packet that ended two brokers in a row costs its sender the session, or fails its timeline."""
        words = self._words
        kind, id, serial = words[CONDEMNED], words[CONDEMNED + 1], words[CONDEMNED + 2]
        words[CONDEMNED] = 0
        peer = self._peers.get(id)
        if kind == 1 and peer is not None and _waiting_serial(peer.sock) in (serial, 0):
            self._end_peer(peer, "ends brokers", f"its packet {serial} ended two brokers in a row")
        elif kind == 2 and id in self._core.state.sockets:
            timeline = self._core.state.sockets[id]
            self._log.once(
                timeline.uid, "ends brokers", f"timeline {escape(timeline.label)} fails with EPROTO: a packet ended two brokers in a row"
            )
            self._carry_out(self._core.break_timeline(id, time.monotonic_ns()))

    def write_anew(self) -> None:
        """Begin the journal again with everything that holds now.  OSError when there is no memory for it: then all is as before."""
        self._ledger.rewrite()
        self._core.take_events()

    def _snapshot(self) -> bytes:
        """What holds now.  Of a turn that is under way: what was decided, of which something may still have to be closed or sent."""
        sockets = self._core.state.sockets
        entries: list[r.Entry] = [config_entry(self._config), *self._listeners]
        entries += [r.PeerAccepted(session, peer.sock.fileno()) for session, peer in self._peers.items()]
        entries += self._eventfds.entries()
        entries += [r.SocketMade(*entry) for entry in self._sockets.entries() if entry[0] in sockets]
        entries += [r.RingMade(socket_id, fd) for socket_id, fd in self._rings.entries().items()]
        entries += [r.CreatorWatched(session, fd) for session, fd in self._creators.entries().items()]
        entries += [r.Unread(session, packets) for session, peer in self._peers.items() if (packets := peer.unread_packets())]
        entries += [r.PeerKept(*kept) for kept in self._flight.kept()]
        owed = [owed for session, peer in self._peers.items() if (owed := peer.owed or self._inherited.get(session)) is not None]
        return r.encode_snapshot(snapshot.dump(self._core.state), entries, owed, self._next_session)

    def _step_aside(self) -> None:
        """Make way for the next broker, which finds everything in the journal."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.write_anew()

    def _describe(self) -> str:
        """One line for people who look at the service."""
        sessions, timelines = len(self._core.state.sessions) - len(self._own), len(self._core.state.timelines)
        return f"{sessions} {'client' if sessions == 1 else 'clients'}, {timelines} {'timeline' if timelines == 1 else 'timelines'}"

    def _reload_now(self) -> None:
        """Take over what can change while we run; sessions, timelines and fences stay.  A wrong configuration changes nothing."""
        self._signals.reload = False
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = self._reload()
        except ConfigError as err:
            self._log.write("error", f"the configuration stays as it was: {err}")
        else:
            fixed = [name for name in ("listen", "socket_mode") if getattr(config, name) != getattr(self._config, name)]
            if fixed:
                self._log.write("warning", f"needs a restart to change: {', '.join(fixed)}")
            descriptors = min(config.limits.descriptors, self._config.limits.descriptors)
            limits = dataclasses.replace(config.limits, descriptors=descriptors)
            self._config = dataclasses.replace(config, limits=limits)
            self._core.configure(limits, self._config.limits_of_users())
            self._log.set_level(config.log_level)
            self._log.write("notice", "the configuration was read again")
        notify("READY=1")

    def _stop(self) -> int:
        notify("STOPPING=1")
        now = time.monotonic_ns()
        self._sweep()
        self._freeze(list(self._core.state.rings))
        effects, n = self._core.stop(now)
        self._carry_out(effects)
        self._reaper.stop()
        self._carry_out(self._core.end(time.monotonic_ns()))
        self._signals.ignore()
        for peer in list(self._peers.values()):
            self._forget_peer(peer)
        for sock in self._flight.close():
            self._reaper.close_socket(sock)
        self._sockets.close_all()
        self._rings.close_all()
        self._eventfds.close_all()
        self._creators.close()
        self._supervisor.close()
        self._door.close()
        self._signals.close()
        self._epoll.close()
        return n

    # -- time

    def _is_calm(self) -> bool:
        """Nothing is due, ever, unless somebody speaks: nearly always, and asked in each turn."""
        return (
            not self._core.state.expiries
            and not self._silent
            and not self._queued
            and self._idle_since is None
            and self._supervisor.due is None
            and bool(self._peers or not self._config.idle_exit)
        )

    def _timeout(self) -> float | None:
        """Seconds until something is due; None: nothing ever, unless somebody speaks."""
        config, limits = self._config, self._config.limits
        due = [self._core.wake_at, self._supervisor.due]
        if self._silent:
            due.append(next(iter(self._silent.values())).connected_at + int(limits.hello_seconds * 1e9))
        if self._queued:
            due.append(min(peer.stalled_at for peer in self._queued.values()) + int(limits.stalled_seconds * 1e9))
        if config.idle_exit and not self._peers:
            if self._idle_since is None and self._core.state.is_idle:
                self._idle_since = time.monotonic_ns()
            if self._idle_since is not None:
                due.append(self._idle_since + int(config.idle_exit * 1e9))
        moments = [moment for moment in due if moment is not None]
        return min(max(0.0, (min(moments) - time.monotonic_ns()) / 1e9), DAY) if moments else None

    def _pass_time(self) -> None:
        wake_at, now = self._core.wake_at, time.monotonic_ns()
        self._supervisor.pass_time(now)
        if wake_at is not None and wake_at <= now:
            self._sweep()  # what was signalled in time counts
            rings = self._core.expiring(now)
            self._freeze(rings)
            self._carry_out(self._core.expire(now))
            self._thaw(rings)
        limits = self._config.limits
        if self._silent:
            for peer in [p for p in self._silent.values() if p.connected_at + limits.hello_seconds * 1e9 <= now]:
                self._end_peer(peer, "no hello", f"it sent no hello within {limits.hello_seconds:g} s")
        if self._queued:
            for peer in [p for p in self._queued.values() if p.stalled_at + limits.stalled_seconds * 1e9 <= now]:
                self._end_peer(peer, "slow", f"it took nothing for {limits.stalled_seconds:g} s")
        if self._idle_since is not None:
            if self._peers or not self._config.idle_exit:
                self._idle_since = None
            elif self._idle_since + self._config.idle_exit * 1e9 <= now:
                self._is_idle_for_good = True

    # -- connections

    def _add_peer(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.fileno() >= self._full + MARGIN - LAST:
            self._log.once(-1, "full", "a connection was turned away: the descriptor limit is used up")
            self._reaper.close_socket(sock)
            return
        session = self._next_session
        self._next_session += 1
        self._ledger.note(r.PeerAccepted(session, sock.fileno()))
        self._ledger.record([])
        if failpoints.IS_ARMED:
            failpoints.hit("accept.journalled")
        self._watch_peer(session, sock)
        if len(self._silent) > self._config.limits.half_open:
            crowd = Counter(each.credentials.uid for each in self._silent.values())
            uid = crowd.most_common(1)[0][0]
            oldest = next(each for each in self._silent.values() if each.credentials.uid == uid)
            self._end_peer(oldest, "half-open", "it had sent no hello when many others came")

    def _watch_peer(self, session: int, sock: socket.socket) -> None:
        limits = self._config.limits
        peer = Peer(session, sock, time.monotonic_ns(), limits.queued_bytes, limits.unread_descriptors, self._flight)
        peer.limit_user = self._core.limits_of(peer.credentials.uid).unread_per_uid
        self._peers[session] = self._silent[session] = peer
        self._by_fd[sock.fileno()] = peer
        self._idle_since = None
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _end_peer(self, peer: Peer, cause: str, reason: str) -> None:
        """Disconnect a client that broke a rule, with one line per uid and cause: the reason may hold words of the client's."""
        who = peer.credentials
        self._log.once(who.uid, cause, f"disconnected pid {who.pid} ({escape(who.comm)}): {reason}")
        self._forget_peer(peer)

    def _forget_peer(self, peer: Peer) -> None:
        """End a session: first on record, then for real."""
        if peer.session not in self._peers:
            return
        fd = peer.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd], self._peers[peer.session]
        self._own.discard(peer.session)
        self._silent.pop(peer.session, None)
        self._queued.pop(peer.session, None)
        self._ledger.note(r.PeerEnded(peer.session))
        self._carry_out(self._core.disconnect(peer.session, time.monotonic_ns()))
        if failpoints.IS_ARMED:
            failpoints.hit("end.before")
        if peer.owed is not None and (answer := peer.owed[1]) is not None and answer.socket is not None:
            self._give_end(answer.socket)
        if self._looked_at is peer and self._ledger.peek:
            drop_packet(peer.sock)  # else whoever is refused hears of a reset before he hears why
        if peer.leave():
            self._reaper.close_socket(peer.sock, peer.credentials.uid)
        else:
            self._ledger.note(r.PeerKept(fd, peer.credentials.uid, peer.unread))
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        self._close_foreign(peer.foreign)
        peer.foreign = []
        self._door.open_again()

    def _let_go(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._ledger.note(r.PeerLetGo(fd))
        self._ledger.record(self._core.take_events())
        self._reaper.close_socket(self._flight.let_go(fd))
        self._door.open_again()

    # -- sessions

    def _turn(self, peer: Peer, events: int) -> None:
        if events & select.EPOLLOUT and self._flush(peer):
            return
        if not events & (select.EPOLLIN | _GONE):
            return
        # What was sent before this packet comes before it; whoever has sent very much has it taken in slices, and others' turns in between.
        if self._sockets.is_any_ready() and not self._sweep(peer.credentials.uid, SLICE) and peer.swept < SWEEP:
            peer.swept += SLICE
            return
        peer.swept = 0
        if peer.session not in self._peers:
            return
        if self._reaper.pending and self._is_too_much(peer):
            return
        try:
            packet, fds = recv_packet(peer.sock, NOWAIT | self._ledger.peek)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # it died with an answer unread; what it sent before is still to come, then end-of-file
        except Truncated as err:
            # What was lost of its descriptors has no owner but the packet, so that must not go here: it goes with the socket.
            self._explain(peer, err)
            self._end_peer(peer, "truncated", str(err))
            self._reap(err.fds, peer)
            return
        if not packet:
            if is_hung_up(peer.sock.fileno()):
                self._forget_peer(peer)
            else:
                self._end_peer(peer, "empty packet", "it sent an empty packet")
            self._reap(fds, peer)
            return
        self._looked_at = peer
        self._receive(peer, packet, fds)
        self._looked_at = None

    def _is_too_much(self, peer: Peer) -> bool:
        """End a session that sends descriptors while too many of its user's are still open.  They are not received: closing one that was may
        be stuck for ever, while those of a packet that nobody took can be given up with its socket.
        """
        try:
            self._core.check_closing(peer.credentials.uid)
        except Refusal as refusal:
            try:
                packet, has_descriptors = look_at_packet(peer.sock)
            except (OSError, Truncated):
                return False  # the one who reads it sees that as well
            if not has_descriptors:
                return False
            if (serial := wire.serial_of(packet)) and peer.conversation.is_open:
                text = f"{refusal.text}; the session ends"
                self._send(fx.Send(peer.session, [serial, refusal.error, text, list(refusal.detail)]))
            self._end_peer(peer, "closing", refusal.text)
            return True
        return False

    def _explain(self, peer: Peer, err: Truncated) -> None:
        """Descriptors were lost because this process has no room: it is not the client's fault, so it hears why before it is disconnected."""
        serial = wire.serial_of(err.packet)
        if err.descriptors_lost and serial and peer.conversation.is_open:
            limit, used = self._config.limits.descriptors, self._core.state.n_descriptors
            quota = "descriptors of the broker (received)"
            text = f"{quota}: {used} of {limit} are in use and those of this message did not fit; the session ends"
            self._send(fx.Send(peer.session, [serial, errno.EMFILE, text, [quota, limit, used]]))

    def _receive(self, peer: Peer, packet: bytes, fds: list[OwnedFd]) -> None:
        self._ledger.look_at(peer.session)
        try:
            message, spec = wire.decode_request(packet, len(fds))
            if message[1] == wire.HELLO:
                peer.conversation.move(Move.HELLO)
            elif not peer.conversation.is_open:  # while it is, requests leave it so
                peer.conversation.move(Move.REQUEST)
        except (wire.Malformed, Violation) as err:
            self._end_peer(peer, "malformed", escape(str(err)))
            self._reap(fds, peer)
            return
        references: Sequence[fx.Reference] = ()
        if message[1] != wire.HELLO:
            references = self._identify(fds, peer) if fds else ()
            # After the look at what the descriptors carry: a producer commits before it writes, so what was seen there is drained here.
            self._drain(self._core.concerned(peer.session, message, references))
            if peer.session not in self._peers:
                return
        is_answered = spec is None or spec.answered
        refusal = self._refuse_for_room() if message[1] in MAKING else None
        self._ledger.take(r.Packet(False, peer.session, message[0], 0), is_answered=is_answered)
        if failpoints.BUG == "consume-before-append":
            self._consume(peer)
        if message[1] == wire.HELLO:
            self._greet(peer, message)
        elif refusal is not None:
            self._carry_out([fx.Send(peer.session, [message[0], refusal.error, refusal.text, []])])
        else:
            self._core.count_beside(len(self._silent) + len(self._flight) + self._reaper.overdue())
            effects = self._core.handle(peer.session, message, references, time.monotonic_ns())
            if message[1] == wire.STATUS:
                self._add_own_status(effects)
            elif message[1] in (wire.LIST, wire.LOOKUP):
                self._add_eventfd_ids(message, effects)
            self._carry_out(effects)
        self._settle(peer, self._ledger.put_down())

    def _refuse_for_room(self) -> Refusal | None:
        """Why nothing new can be made now: what the journal has memory for is kept for what becomes of what there is."""
        ledger = self._ledger
        if ledger.has_room and not self._is_short:
            return None
        if not ledger.has_room and ledger.is_worth_it:
            with contextlib.suppress(OSError):
                self.write_anew()
        if ledger.has_room:
            if self._is_short:
                self._is_short = False
                self._log.write("notice", "there is memory for the journal again")
            return None
        if not self._is_short:
            self._is_short = True
            text = "requests that would make something are refused with ENOMEM, all else goes on"
            self._log.write("error", f"there is no memory for the journal ({ledger.shortage}): {text}")
        text = f"the broker's machine has no memory to remember anything new ({ledger.shortage}); what there is goes on"
        return Refusal(errno.ENOMEM, text)

    def _settle(self, peer: Peer, owed: Owed | None) -> None:
        """The packet is handled: it leaves its socket, as soon as its answer is sent."""
        if peer.session not in self._peers:
            self._close_foreign(self._foreign)
            self._foreign = []
            if owed is not None and (answer := owed[1]) is not None and answer.socket is not None:
                self._give_end(answer.socket)
        elif peer.queue:
            peer.owed = owed
            peer.foreign, self._foreign = self._foreign, []
        else:
            if self._looked_at is not None or not failpoints.BUG:  # a seeded bug may have taken it already
                self._consume(peer)
            if owed is not None and (answer := owed[1]) is not None and answer.socket is not None:
                self._give_end(answer.socket)
            if self._foreign:
                self._close_foreign(self._foreign)
                self._foreign = []

    def _consume(self, peer: Peer) -> None:
        if self._ledger.peek:
            if failpoints.IS_ARMED:
                failpoints.hit("consume.before")
            drop_packet(peer.sock)
            self._looked_at = None
            if failpoints.IS_ARMED:
                failpoints.hit("consume.after")

    def _give_end(self, socket_id: int) -> None:
        """The client has its end of a timeline's socketpair, or will never have it."""
        if self._sockets.end_of(socket_id) is not None:
            self._ledger.note(r.EndSent(socket_id))
            self._ledger.record(self._core.take_events())
            self._sockets.close_end(socket_id)

    def _identify(self, fds: list[OwnedFd], peer: Peer) -> list[fx.Reference]:
        """Say what was received; what is ours is closed here, what is foreign elsewhere, and later."""
        references = []
        for fd in fds:
            reference = self._identity.identify(fd.fileno())
            if isinstance(reference, fx.KnownFence) and self._eventfds.put_off():
                self._eventfds.settle((reference.handle,))
                reference = self._identity.identify(fd.fileno())
            references.append(reference)
            if isinstance(reference, fx.Foreign):
                self._foreign.append(self._reaper.own(fd.detach(), peer.credentials.uid))
            else:
                fd.close()
        return references

    def _reap(self, fds: Iterable[OwnedFd], peer: Peer) -> None:
        for fd in fds:
            self._reaper.close_fd(fd.detach(), peer.credentials.uid)

    def _close_foreign(self, fds: Iterable[ForeignFd]) -> None:
        for fd in fds:
            self._reaper.close(fd)

    def _greet(self, peer: Peer, message: list[Any]) -> None:
        serial, _, version, client = message
        who = peer.credentials
        if client and (who.comm == "?" or who.comm.startswith("python")):
            # A script's name tells more than its interpreter's, and a process of another pid namespace has none here; pid and uid stay the
            # kernel's word.
            who.comm = printable(client[:64])
        refusal: Refusal | None = None
        try:
            admit(version, who, self._config, self._log)
            check_room(peer.sock.fileno(), self._full, self._config, self._core.state.n_descriptors)
            self._core.connect(peer.session, who.uid, who.gid, who.groups, who.pid, who.comm, time.monotonic_ns())
        except Refusal as err:
            refusal = err
        del self._silent[peer.session]
        if refusal is not None:
            peer.conversation.move(Move.REFUSE)
            self._send(fx.Send(peer.session, [serial, refusal.error, refusal.text, list(refusal.detail)]))
            self._forget_peer(peer)
            return
        peer.conversation.move(Move.ACCEPT)
        take_descriptors(peer.sock, True)
        if who.pid == os.getpid():
            self._own.add(peer.session)
        self._carry_out([fx.Send(peer.session, [serial, 0, wire.VERSION, __version__, os.getpid(), peer.session])])

    def _add_own_status(self, effects: Effects) -> None:
        """The core knows counts; the process adds what only it knows."""
        for effect in effects:
            if isinstance(effect, fx.Send) and effect.message[1] == 0:
                effect.message[2] += self._own_status(self._core.state.sees_all(self._peers[effect.session].credentials.uid))

    def _own_status(self, sees_all: bool) -> list[list[Any]]:
        """``sees_all``: with what takes long to count where there are many descriptors, which is for those who look after the broker."""
        page, words = self._keeper.page, self._words
        pairs: list[list[Any]] = [
            ["pid", os.getpid()],
            ["version", __version__],
            ["uptime_ns", time.monotonic_ns() - words[STARTED]],
            ["uid", os.getuid()],
            ["keeper_pid", page.keeper if self._is_kept else None],
            ["keeper_version", page.version if self._is_kept else None],
            ["generation", words[GENERATION]],
            ["recoveries", words[RECOVERIES]],
            ["reloads", words[RELOADS]],
            ["last_reason", page.reason or None],
            ["journal_bytes", len(self._ledger)],
        ]
        if sees_all:
            pairs += [["open_descriptors", len(os.listdir("/proc/self/fd")) - 1], ["known_descriptors", self._n_known()]]
        return pairs

    def _n_known(self) -> int:
        """Descriptors that our books account for."""
        n = 3 + len(self._keeper.descriptors) + self._listener_descriptors() + 2 + 2 + 1  # streams, epolls, signals, the door's spare
        n += len(self._peers) + len(self._eventfds) + len(self._flight) + len(self._creators.entries()) + self._reaper.pending
        n += len(self._rings)
        n += sum(1 if theirs < 0 else 2 for _, _, theirs, _ in self._sockets.entries())
        return n + sum(sum(len(fds) for _, fds in peer.queue) for peer in self._peers.values()) + self._supervisor.n_open

    def _listener_descriptors(self) -> int:
        return sum(1 if listener.lock is None else 2 for listener in self._listeners)

    def _add_eventfd_ids(self, request: list[Any], effects: Effects) -> None:
        """The core knows sync_files by their handles; the eventfd's id, by which /proc shows who holds one, is known here."""
        for effect in effects:
            if isinstance(effect, fx.Send) and effect.message[1] == 0:
                kind, found = effect.message[2:] if request[1] == wire.LOOKUP else (request[2], effect.message[3])
                for row in found if kind == "sync_files" else [found] if kind == "sync_file" else ():
                    row.append(self._identity.eventfd_id(row[0]))

    def _flush(self, peer: Peer) -> bool:
        """Send what is queued; True if the peer is to be left alone for now."""
        try:
            done = peer.flush(time.monotonic_ns())
        except OSError:
            self._forget_peer(peer)
            return True
        if done:
            self._queued.pop(peer.session, None)
            self._epoll.modify(peer.sock.fileno(), select.EPOLLIN)
            if peer.owed is not None or peer.foreign:
                owed, peer.owed = peer.owed, None
                self._foreign, peer.foreign = peer.foreign, []
                self._settle(peer, owed)
        return not done

    # -- timelines

    def _sweep(self, asker: int = NOBODY, most: int = SWEEP) -> bool:
        """Take what waits on timelines' sockets, in turns, a packet each: all of the asker's, of others what is no flood; True when it is all."""
        fairness, n = self._fairness, 0
        foreign: dict[int, int] = {}
        while n < most:
            began = n
            for socket_id in self._sockets.ready():
                uid = self._core.payer_of(socket_id)
                if uid != asker:
                    taken = foreign.get(uid, 0)
                    if taken >= (1 if fairness.is_busy(uid) else FOREIGN):
                        continue
                    foreign[uid] = taken + 1
                n += 1
                before = fairness.work_for(uid)
                self._take(socket_id)
                fairness.work_for(before)
            if n == began:
                return True
        return False

    def _uid_of(self, fd: int) -> int:
        """For whom the work on a descriptor's event is."""
        if fd < 0:
            return -fd - 1
        socket_id = self._sockets.id_of(fd)
        if socket_id is not None:
            return self._core.payer_of(socket_id)
        peer = self._by_fd.get(fd)
        if peer is not None:
            uid: int = peer.credentials.uid
            return uid
        return EVERYBODY if fd in self._door else NOBODY

    def _payer_of(self, socket_id: int) -> int:
        """Who pays for what comes in on a timeline's socket."""
        uid = self._core.payer_of(socket_id)
        return os.getuid() if uid < 0 else uid

    def _take(self, socket_id: int) -> None:
        try:
            message = self._sockets.receive(socket_id)
        except (BlockingIOError, ConnectionResetError):
            return
        except wire.Malformed as err:
            self._freeze((socket_id,))
            self._break(socket_id, err)
            return
        if socket_id in self._rings:  # what is in it was committed before this was sent
            self._drain((socket_id,))
            if socket_id not in self._core.state.sockets:
                return
        if message is None:
            self._carry_out(self._core.end_socket(socket_id, time.monotonic_ns()))
            return
        if message:
            self._handle_signal(socket_id, message)
        if failpoints.IS_ARMED:
            failpoints.hit("consume.before")
        self._sockets.consume(socket_id)
        if failpoints.IS_ARMED:
            failpoints.hit("consume.after")
        if message and socket_id in self._rings and self._is_owners(socket_id, message):
            self._rings.saw(socket_id, message[1])

    def _handle_signal(self, socket_id: int, message: list[Any]) -> None:
        if socket_id in self._rings and not self._is_owners(socket_id, message):
            self._carry_out(self._core.let_in(socket_id, time.monotonic_ns()))
        self._ledger.take(r.Packet(True, socket_id, message[0], message[1]))
        self._carry_out(self._core.handle_timeline(socket_id, message, time.monotonic_ns()))
        self._ledger.put_down()

    def _is_owners(self, socket_id: int, message: list[Any]) -> bool:
        """Whether the one who has the ring says this, and not somebody into whose hands the descriptor came."""
        timeline = self._core.state.rings.get(socket_id)
        return timeline is not None and timeline.ring is not None and timeline.ring.holder == message[0]

    def _break(self, socket_id: int, err: Exception) -> None:
        timeline = self._core.state.sockets.get(socket_id)
        if timeline is not None:
            self._log.once(timeline.uid, "timeline", f"timeline {escape(timeline.label)} fails with EPROTO: {escape(str(err))}")
            self._carry_out(self._core.break_timeline(socket_id, time.monotonic_ns()))

    # -- rings

    def _drain(self, socket_ids: Iterable[int]) -> None:
        """Handle what producers have committed to these rings.  Never with a packet in hand that is not on record: what comes to be on record
        here is not its doing.
        """
        for socket_id in socket_ids:
            try:
                if not self._rings.has_more(socket_id):
                    continue
                now = time.monotonic_ns()
                entries = self._rings.read(socket_id, now)
            except Nonsense as err:
                self._rings.freeze((socket_id,))
                self._break(socket_id, err)
                continue
            if entries:
                self._carry_out(self._core.drain(socket_id, entries, now))
                if failpoints.IS_ARMED:
                    failpoints.hit("ring.drained")
                self._rings.free(socket_id)

    def _freeze(self, socket_ids: Collection[int]) -> None:
        """Before the broker decides by itself: what was committed counts, and nothing is written by a producer until ``_thaw``."""
        if socket_ids:
            self._rings.freeze(socket_ids)
            if failpoints.IS_ARMED:
                failpoints.hit("ring.frozen")
            self._drain(socket_ids)

    def _thaw(self, socket_ids: Iterable[int]) -> None:
        """Let producers go on, when every eventfd says what was decided."""
        rings = self._core.state.rings
        for socket_id in socket_ids:
            timeline = rings.get(socket_id)
            if timeline is not None and timeline.ring is not None and not timeline.ring.frozen:
                if self._eventfds.put_off():
                    self._eventfds.settle([handle for fence in timeline.points.values() for handle in fence.sync_files])
                self._rings.thaw(socket_id)

    def _arm(self) -> None:
        """Tell producers when to ring, and look again at what they committed before they could see it."""
        lowered = self._rings.arm(self._core.take_arms())
        if lowered and failpoints.IS_ARMED:
            failpoints.hit("ring.armed")
        self._drain(lowered)

    def _resume_rings(self) -> None:
        """Put the pages right that the last broker left: statuses are written again, so producers may go on where they may."""
        rings = self._core.state.rings
        for socket_id in [socket_id for socket_id in rings if socket_id not in self._rings]:
            self._break(socket_id, OSError(errno.EIO, "its ring is gone"))
        self._freeze([socket_id for socket_id, timeline in rings.items() if timeline.ring is not None and timeline.ring.frozen])
        for socket_id in list(rings):
            self._rings.free(socket_id)
        self._thaw(list(rings))
        self._core.rearm()
        self._arm()

    # -- effects

    def _carry_out(self, effects: Effects) -> None:
        """Create, append, act: in order.  What an action brings about (a refusal, a poisoned eventfd) is carried out within; tidying comes when
        all is done, for it may close what is still to be signalled.
        """
        act = self._act
        self._depth += 1
        if not _BEFORE.isdisjoint(map(type, effects)):
            effects = self._create(effects)
        if failpoints.BUG:
            effects = self._blunder(effects)
        self._ledger.record(self._core.take_events(), effects)
        for effect in effects:
            act[type(effect)](effect)
        self._depth -= 1
        if self._depth:
            return
        if self._core.state.rearm:
            self._arm()
        self._identity.catch_up()
        if self._core.is_untidy:
            following = self._core.tidy(time.monotonic_ns())
            if following or self._core.has_events:
                self._carry_out(following)
                return
        if self._core.is_traced:
            self._publish()
            self._ledger.tell()

    def _blunder(self, effects: Effects) -> Effects:
        """Make the mistake that a test asked for; returns what is left to do."""
        early = {"act-before-append": fx.Signal, "answer-before-append": fx.Send}.get(failpoints.BUG)
        for effect in effects:
            if type(effect) is early:
                self._act[early](effect)
        return [effect for effect in effects if type(effect) is not early]

    def _create(self, effects: Effects) -> Effects:
        """Make the descriptors that effects ask for, and return the other effects.  If the kernel refuses, those of the refusal take their place.

        Copies that give way to new ones are closed first, for there may be no room before: they had signalled and were given back, so a
        journal that still lists them misleads nobody.
        """
        left: Effects = []
        for index, effect in enumerate(effects):
            now = time.monotonic_ns()
            if type(effect) is fx.CreateEventfds:
                try:
                    fds = self._eventfds.create(effect.first, effect.n)
                except OSError as err:
                    return self._create(self._core.eventfds_failed(effect, err.errno or 0, now))
                if failpoints.IS_ARMED:
                    failpoints.hit("eventfds.after")
                self._ledger.note(r.EventfdsMade(effect.first, fds))
            elif type(effect) is fx.CreateSocket:
                try:
                    left += self._create_socket(effect, now)
                except OSError as err:
                    return self._create(self._core.socket_failed(effect, err.errno or 0, now))
            elif type(effect) is fx.CreateRing:
                try:
                    fd = self._rings.create(effect.socket)
                except OSError as err:
                    return self._create(self._core.ring_failed(effect, err.errno or 0, now))
                if failpoints.IS_ARMED:
                    failpoints.hit("ring.after")
                self._ledger.note(r.RingMade(effect.socket, fd))
            elif type(effect) is fx.CloseHandles and any(type(later) in _CREATES for later in effects[index:]):
                self._eventfds.close(effect.handles)
            else:
                left.append(effect)
        return self._note_ends(left)

    def _note_ends(self, effects: Effects) -> Effects:
        for effect in effects:
            if type(effect) is fx.CloseSocket and effect.last_of is not None and effect.last_of in self._creators:
                self._ledger.note(r.CreatorForgotten(effect.last_of))
        return effects

    def _create_socket(self, effect: fx.CreateSocket, now: int) -> Effects:
        if failpoints.IS_ARMED:
            failpoints.hit("timeline.before")
        ours, theirs, cookie = self._sockets.create(effect.socket, self._payer_of(effect.socket))
        if failpoints.IS_ARMED:
            failpoints.hit("timeline.after")
        self._ledger.note(r.SocketMade(effect.socket, ours, theirs, cookie))
        following = self._core.socket_made(effect.socket, os.fstat(theirs).st_ino, now)
        if self._core.creator_of(effect.socket) == effect.session:
            self._watch_creator(effect.session)
        return following

    def _watch_creator(self, session: int) -> None:
        peer = self._peers.get(session)
        pidfd = None if peer is None else self._creators.watch(session, peer.sock)
        if pidfd is not None:
            self._ledger.note(r.CreatorWatched(session, pidfd))

    def _freeze_ring(self, effect: fx.FreezeRing) -> None:
        self._freeze((effect.socket,))

    def _close_ring(self, effect: fx.CloseRing) -> None:
        self._rings.close(effect.socket)

    def _signal(self, effect: fx.Signal) -> None:
        if failpoints.IS_ARMED:
            failpoints.hit("act.before")
        handles = effect.handles
        if effect.written and effect.status == OK:
            handles = self._eventfds.not_ok(handles)
        tampered, poisoned = self._eventfds.signal(handles, effect.status, self._core.uid_of) if handles else ((), ())
        if failpoints.IS_ARMED:
            failpoints.hit("act.after")
        if tampered or poisoned:
            self._note_signalled(tampered, poisoned)

    def _note_signalled(self, tampered: Sequence[int], poisoned: Sequence[int]) -> None:
        for handle in tampered:
            self._carry_out(self._core.tampered(handle, time.monotonic_ns()))
        if poisoned:
            uid = self._core.uid_of(poisoned[0])
            self._log.once(uid, "poison", "a sync_file of this user was made to block the broker; its sessions are ended")
            self._carry_out(self._core.poison(poisoned, time.monotonic_ns()))

    def _close_handles(self, effect: fx.CloseHandles) -> None:
        if failpoints.IS_ARMED:
            failpoints.hit("act.before")
        self._eventfds.close(effect.handles)
        if failpoints.IS_ARMED:
            failpoints.hit("act.after")

    def _close_socket(self, effect: fx.CloseSocket) -> None:
        if failpoints.IS_ARMED:
            failpoints.hit("act.before")
        self._rings.close(effect.socket)
        self._sockets.close(effect.socket)
        if effect.last_of is not None:
            self._creators.forget(effect.last_of)
        if failpoints.IS_ARMED:
            failpoints.hit("act.after")

    def _send(self, send: fx.Send) -> None:
        peer = self._peers.get(send.session)
        if peer is None:
            if send.socket is not None:
                self._give_end(send.socket)
            return
        if failpoints.IS_ARMED and send.message[0]:
            failpoints.hit("answer.before")
        try:
            end = None if send.socket is None else self._sockets.end_of(send.socket)
            fds = [end.fileno()] if end is not None else self._eventfds.numbers(send.handles) if send.handles else []
            if send.ring is not None:
                fds = [self._rings.number(send.ring)]
            if failpoints.BUG == "consume-before-answer" and send.message[0]:
                self._consume(peer)
            if peer.send(self._ledger.encode(send), fds, time.monotonic_ns()):
                self._queue(peer)
        except TooSlow as slow:
            self._end_peer(peer, "slow", str(slow))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the peer is gone; its end-of-file follows and ends the session
        except OSError as err:
            if send.handles or send.socket is not None or send.ring is not None:
                self._carry_out(self._core.send_failed(send, err.errno or 0, time.monotonic_ns()))
            else:
                self._end_peer(peer, "no answer", f"it could not be answered: {err.strerror}")
        if send.socket is not None and not self._ledger.peek:
            self._sockets.close_end(send.socket)
        if failpoints.IS_ARMED and send.message[0]:
            failpoints.hit("answer.after")

    def _queue(self, peer: Peer) -> None:
        self._queued[peer.session] = peer
        self._epoll.modify(peer.sock.fileno(), select.EPOLLOUT)

    def _disconnect_effect(self, effect: fx.Disconnect) -> None:
        peer = self._peers.get(effect.session)
        if peer is not None:
            self._end_peer(peer, "blocks the broker", effect.reason)

    def _publish(self) -> None:
        """Push rendered events to who asked for them; what does not fit is counted, never silent."""
        sessions, lines = self._core.take_lines()
        if not lines:
            return
        for session in list(sessions):
            peer = self._peers.get(session)
            known = self._core.state.sessions.get(session)
            if peer is None or known is None:
                continue
            sees_all = self._core.state.sees_all(known.uid)
            wanted = [list(line) for line in lines if sees_all or line.uid == known.uid]
            while wanted:
                chunk, wanted = wanted[:_LINES], wanted[_LINES:]
                if peer.queue:
                    peer.lost += len(chunk)
                else:
                    self._send(fx.Send(session, [0, peer.lost, chunk]))
                    peer.lost = 0


_CREATES: Final = frozenset((fx.CreateEventfds, fx.CreateSocket, fx.CreateRing))
#: Effects of which something has to be done, or noted, before they are on record.
_BEFORE: Final = _CREATES | {fx.CloseSocket}


def _waiting_serial(sock: socket.socket) -> int:
    """The serial of the packet that waits; 0 when it cannot be read."""
    try:
        packet, fds = recv_packet(sock, NOWAIT | PEEK)
    except Truncated as err:
        close_all(err.fds)
        return 0
    except OSError:
        return -1
    close_all(fds)
    return wire.serial_of(packet)
