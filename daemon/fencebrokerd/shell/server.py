"""The loop: epoll, sessions, timelines' sockets, and the carrying out of effects.  One thread; nothing blocks; nothing polls.

Facts
  epoll does not report in the order in which descriptors became ready.  A client that acted on a timeline's socket (or just closed it) and
  then asks on its session must be answered as if the action came first, for it did.
Rule
  Timelines' sockets are in an epoll of their own too.  After a session's packet is received and before it is handled, it is emptied.
  It also keeps a busy crowd's requests from delaying other people's signals.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.fds import NOWAIT, OwnedFd, Truncated, is_hung_up, recv_packet
from fencebroker.protocol import Move, Violation
from fencebrokerd import __version__
from fencebrokerd.config import Config, ConfigError
from fencebrokerd.core import effects as fx
from fencebrokerd.core.broker import Broker
from fencebrokerd.shell.admission import admit, check_room
from fencebrokerd.shell.creators import Creators
from fencebrokerd.shell.door import Door
from fencebrokerd.shell.eventfds import Eventfds
from fencebrokerd.shell.fairness import EVERYBODY, NOBODY, Fairness
from fencebrokerd.shell.identity import Identity
from fencebrokerd.shell.log import Log, escape
from fencebrokerd.shell.notify import notify
from fencebrokerd.shell.peer import Flight, Peer, TooSlow, printable
from fencebrokerd.shell.reaper import Reaper
from fencebrokerd.shell.signals import Signals
from fencebrokerd.shell.sockets import Sockets
from fencebrokerd.shell.supervisor import Supervisor

__all__ = ["Server"]

#: Packets taken from timelines' sockets in one sweep: more than a default socket can queue, so what was sent before is seen.
SWEEP: Final = 600
#: How many of them may be another user's than the asker's; of a busy one it is one, so that a flood delays nobody's question.
FOREIGN: Final = 64
#: Descriptors that no session may take: the last ones are for receiving and looking at what clients send, the others for telling a session
#: that there is no room, until the reaper has closed it.
MARGIN: Final = 48
LAST: Final = 16
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
#: epoll takes no timeout of more than 24 days: what is due later is looked at again after one.
DAY: Final = 86_400.0
_LINES: Final = 24  # rendered events in one packet
Effects = list[fx.Effect]


class Server:
    """Owns every descriptor of the broker and runs until it is told to stop."""

    def __init__(self, config: Config, core: Broker, listeners: list[socket.socket], log: Log, reload: Callable[[], Config]) -> None:
        """Take the listening sockets.  ``reload`` reads the configuration again for SIGHUP; ConfigError leaves everything as it is."""
        self._config = config
        self._core = core
        self._log = log
        self._reload = reload
        self._started = time.monotonic_ns()
        self._epoll = select.epoll()
        self._door = Door(listeners, self._epoll, log)
        self._identity = Identity()
        self._eventfds = Eventfds(self._identity)
        self._reaper = Reaper()
        self._sockets = Sockets(self._identity, self._reaper, self._epoll)
        self._creators = Creators(self._epoll)
        self._fairness = Fairness()
        self._flight = Flight(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._supervisor = Supervisor(self._epoll, listeners[0].getsockname(), self._describe)
        self._peers: dict[int, Peer] = {}  # by session
        self._by_fd: dict[int, Peer] = {}
        self._silent: dict[int, Peer] = {}  # before their hello
        self._queued: dict[int, Peer] = {}  # with unsent output
        self._own: set[int] = set()  # sessions of our own watchdog
        self._next_session = 1
        self._is_idle_for_good = False
        core.configure(config.limits, config.limits_of_users())
        self._idle_since: int | None = None
        self._depth = 0
        self._signals = Signals()
        self._full = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - MARGIN
        self._act: dict[type, Callable[[Any], bool]] = {
            fx.CreateEventfds: self._create_eventfds,
            fx.CreateSocket: self._create_socket,
            fx.Signal: self._signal,
            fx.CloseHandles: self._close_handles,
            fx.CloseSocket: self._close_socket,
            fx.Send: self._send,
            fx.Disconnect: self._disconnect_effect,
        }

    # -- life

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until SIGTERM or SIGINT, or until idle for long enough.  Calls ``ready`` when clients can connect.

        Returns how many active fences were completed with -ECANCELED.
        """
        self._signals.watch()
        self._epoll.register(self._signals.fileno(), select.EPOLLIN)
        signals = self._signals.fileno()
        ready()
        while not self._signals.stop and not self._is_idle_for_good:
            # What was put off stands in the queue like anything else that a user wants.
            left: list[tuple[int, int]] = [(-uid - 1, 0) for uid in self._eventfds.put_off()]
            for fd, events in self._fairness.order(self._epoll.poll(0 if left else self._timeout()) + left, self._uid_of):
                if fd < 0:
                    self._note_signalled(*self._eventfds.resume(-fd - 1, self._core.uid_of))
                elif (socket_id := self._sockets.id_of(fd)) is not None:
                    self._take(socket_id)
                elif (peer := self._by_fd.get(fd)) is not None:
                    self._turn(peer, events)
                elif fd in self._door:
                    for guest in self._door.guests(fd):
                        self._add_peer(guest)
                elif fd == signals:
                    self._signals.drain()
                elif self._flight.keeps(fd):
                    if self._flight.is_settled(fd):
                        self._let_go(fd)
                elif (session := self._creators.session_of(fd)) is not None:
                    self._core.creator_died(session, time.monotonic_ns())
                    self._creators.forget(session)
                elif self._supervisor.owns(fd):
                    self._supervisor.come_back()
            self._pass_time()
            self._supervisor.say_status()
            if self._signals.reload:
                self._reload_now()
        return self._stop()

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
        effects, n = self._core.stop(now)
        self._carry_out(effects)
        self._carry_out(self._core.end(time.monotonic_ns()))
        self._signals.ignore()
        for peer in list(self._peers.values()):
            self._drop_peer(peer)
        for sock in self._flight.close():
            self._reaper.close_fd(sock.detach())
        self._sockets.close_all()
        self._eventfds.close_all()
        self._creators.close()
        self._supervisor.close()
        self._door.close()
        self._signals.close()
        self._epoll.close()
        self._reaper.stop(1.0)
        return n

    # -- time

    def _timeout(self) -> float | None:
        """Seconds until something is due; None: nothing ever, unless somebody speaks."""
        wake_at = self._core.wake_at
        config, limits = self._config, self._config.limits
        watchdog = self._supervisor.due
        if wake_at is None and watchdog is None and not self._silent and not self._queued and (self._peers or not config.idle_exit):
            return None
        due = [wake_at, watchdog]
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
        wake_at = self._core.wake_at
        if wake_at is None and not self._silent and not self._queued and self._idle_since is None and self._supervisor.due is None:
            return
        now = time.monotonic_ns()
        self._supervisor.pass_time(now)
        if wake_at is not None and wake_at <= now:
            self._sweep()  # what was signalled in time counts
            self._carry_out(self._core.expire(now))
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
        limits = self._config.limits
        if sock.fileno() >= self._full + MARGIN - LAST:
            self._log.once(-1, "full", "a connection was turned away: the descriptor limit is used up")
            sock.close()
            return
        peer = Peer(self._next_session, sock, time.monotonic_ns(), limits.queued_bytes, limits.unread_descriptors, self._flight)
        peer.limit_user = self._core.limits_of(peer.credentials.uid).unread_per_uid
        self._next_session += 1
        self._peers[peer.session] = self._silent[peer.session] = peer
        self._by_fd[sock.fileno()] = peer
        self._idle_since = None
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        if len(self._silent) > limits.half_open:
            crowd = Counter(each.credentials.uid for each in self._silent.values())
            uid = crowd.most_common(1)[0][0]
            oldest = next(each for each in self._silent.values() if each.credentials.uid == uid)
            self._end_peer(oldest, "half-open", "it had sent no hello when many others came")

    def _end_peer(self, peer: Peer, cause: str, reason: str) -> None:
        """Disconnect a client that broke a rule, with one line per uid and cause: the reason may hold words of the client's."""
        who = peer.credentials
        self._log.once(who.uid, cause, f"disconnected pid {who.pid} ({escape(who.comm)}): {reason}")
        self._forget_peer(peer)

    def _forget_peer(self, peer: Peer) -> None:
        if peer.session in self._peers:
            self._drop_peer(peer)
            self._carry_out(self._core.disconnect(peer.session, time.monotonic_ns()))

    def _drop_peer(self, peer: Peer) -> None:
        fd = peer.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd], self._peers[peer.session]
        self._own.discard(peer.session)
        self._silent.pop(peer.session, None)
        self._queued.pop(peer.session, None)
        if peer.leave():
            # Its queue may hold files of the client's, whose closing can block.
            self._reaper.close_fd(peer.sock.detach())
        else:
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        self._door.open_again()

    def _let_go(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._reaper.close_fd(self._flight.let_go(fd).detach())
        self._door.open_again()

    # -- sessions

    def _turn(self, peer: Peer, events: int) -> None:
        if events & select.EPOLLOUT and self._flush(peer):
            return
        if not events & (select.EPOLLIN | _GONE):
            return
        try:
            packet, fds = recv_packet(peer.sock, NOWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # it died with an answer unread; what it sent before is still to come, then end-of-file
        except Truncated as err:
            self._reap(err.fds)
            self._explain(peer, err)
            self._end_peer(peer, "truncated", str(err))
            return
        if not packet:
            self._reap(fds)
            if is_hung_up(peer.sock.fileno()):
                self._forget_peer(peer)
            else:
                self._end_peer(peer, "empty packet", "it sent an empty packet")
            return
        self._sweep(peer.credentials.uid)
        if peer.session in self._peers:
            self._receive(peer, packet, fds)
        else:
            self._reap(fds)

    def _explain(self, peer: Peer, err: Truncated) -> None:
        """Descriptors were lost because this process has no room: it is not the client's fault, so it hears why before it is disconnected."""
        serial = wire.serial_of(err.packet)
        if err.descriptors_lost and serial and peer.conversation.is_open:
            limit, used = self._config.limits.descriptors, self._core.state.n_descriptors
            quota = "descriptors of the broker (received)"
            text = f"{quota}: {used} of {limit} are in use and those of this message did not fit; the session ends"
            self._send(fx.Send(peer.session, [serial, errno.EMFILE, text, [quota, limit, used]]))

    def _receive(self, peer: Peer, packet: bytes, fds: list[OwnedFd]) -> None:
        try:
            message, _ = wire.decode_request(packet, len(fds))
            peer.conversation.move(Move.HELLO if message[1] == wire.HELLO else Move.REQUEST)
        except (wire.Malformed, Violation) as err:
            self._reap(fds)
            self._end_peer(peer, "malformed", escape(str(err)))
            return
        if message[1] == wire.HELLO:
            self._greet(peer, message)
            return
        self._core.count_beside(len(self._silent) + len(self._flight))
        references = self._identify(fds) if fds else ()
        now = time.monotonic_ns()
        effects = self._core.handle(peer.session, message, references, now)
        if message[1] == wire.STATUS:
            self._add_own_status(effects)
        elif message[1] in (wire.LIST, wire.LOOKUP):
            self._add_eventfd_ids(message, effects)
        self._carry_out(effects)

    def _identify(self, fds: list[OwnedFd]) -> list[fx.Reference]:
        """Say what was received, and close it: our own files here, foreign ones elsewhere."""
        references = []
        for fd in fds:
            reference = self._identity.identify(fd.fileno())
            if isinstance(reference, fx.KnownFence) and self._eventfds.put_off():
                self._eventfds.settle((reference.handle,))
                reference = self._identity.identify(fd.fileno())
            references.append(reference)
            if isinstance(reference, fx.Foreign):
                self._reaper.close_fd(fd.detach())
            else:
                fd.close()
        return references

    def _reap(self, fds: Any) -> None:
        for fd in fds:
            self._reaper.close_fd(fd.detach())

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
            if peer.session in self._peers:
                self._forget_peer(peer)
            return
        peer.conversation.move(Move.ACCEPT)
        if who.pid == os.getpid():
            self._own.add(peer.session)
        self._send(fx.Send(peer.session, [serial, 0, wire.VERSION, __version__, os.getpid(), peer.session]))

    def _add_own_status(self, effects: Effects) -> None:
        """The core knows counts; the process adds what only it knows."""
        for effect in effects:
            if isinstance(effect, fx.Send) and effect.message[1] == 0:
                uptime = time.monotonic_ns() - self._started
                effect.message[2] += [["pid", os.getpid()], ["version", __version__], ["uptime_ns", uptime], ["uid", os.getuid()]]

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
        return not done

    # -- timelines

    def _sweep(self, asker: int = NOBODY) -> None:
        """Take what waits on timelines' sockets, in turns, a packet each: all of the asker's, of others what is no flood."""
        fairness, n = self._fairness, 0
        foreign: dict[int, int] = {}
        while n < SWEEP:
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
                return

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

    def _take(self, socket_id: int) -> None:
        now = time.monotonic_ns()
        try:
            message = self._sockets.receive(socket_id)
        except (BlockingIOError, ConnectionResetError):
            return
        except wire.Malformed as err:
            timeline = self._core.state.sockets[socket_id]
            self._log.once(timeline.uid, "timeline", f"timeline {escape(timeline.label)} fails with EPROTO: {escape(str(err))}")
            self._carry_out(self._core.break_timeline(socket_id, now))
            return
        if message is None:
            self._carry_out(self._core.end_socket(socket_id, now))
        else:
            self._carry_out(self._core.handle_timeline(socket_id, message, now))

    # -- effects

    def _carry_out(self, effects: Effects) -> None:
        """Act in order.  What an action brings about (a refusal, a poisoned eventfd) is carried out within; tidying comes when all is done,
        for it may close what is still to be signalled.
        """
        act = self._act
        self._depth += 1
        for effect in effects:
            if not act[type(effect)](effect):
                break
        self._depth -= 1
        if self._depth:
            return
        self._identity.catch_up()
        if self._core.is_untidy:
            self._carry_out(self._core.tidy(time.monotonic_ns()))
        if self._core.is_traced:
            self._publish()

    def _create_eventfds(self, effect: fx.CreateEventfds) -> bool:
        try:
            self._eventfds.create(effect.first, effect.n)
        except OSError as err:
            self._carry_out(self._core.eventfds_failed(effect, err.errno or 0, time.monotonic_ns()))
            return False
        return True

    def _create_socket(self, effect: fx.CreateSocket) -> bool:
        try:
            end = self._sockets.create(effect.socket)
        except OSError as err:
            self._carry_out(self._core.socket_failed(effect, err.errno or 0, time.monotonic_ns()))
            return False
        self._carry_out(self._core.socket_made(effect.socket, os.fstat(end.fileno()).st_ino, time.monotonic_ns()))
        if self._core.creator_of(effect.socket) == effect.session and effect.session in self._peers:
            self._creators.watch(effect.session, self._peers[effect.session].sock)
        return True

    def _signal(self, effect: fx.Signal) -> bool:
        self._note_signalled(*self._eventfds.signal(effect.handles, effect.status, self._core.uid_of))
        return True

    def _note_signalled(self, tampered: list[int], poisoned: list[int]) -> None:
        for handle in tampered:
            self._carry_out(self._core.tampered(handle, time.monotonic_ns()))
        if poisoned:
            uid = self._core.uid_of(poisoned[0])
            self._log.once(uid, "poison", "a sync_file of this user was made to block the broker; its sessions are ended")
            self._carry_out(self._core.poison(poisoned, time.monotonic_ns()))

    def _close_handles(self, effect: fx.CloseHandles) -> bool:
        self._eventfds.close(effect.handles)
        return True

    def _close_socket(self, effect: fx.CloseSocket) -> bool:
        self._sockets.close(effect.socket)
        if effect.last_of is not None:
            self._creators.forget(effect.last_of)
        return True

    def _send(self, send: fx.Send) -> bool:
        peer = self._peers.get(send.session)
        end = None if send.socket is None else self._sockets.take(send.socket)
        try:
            if peer is None:
                return True
            fds = [end.fileno()] if end is not None else self._eventfds.numbers(send.handles) if send.handles else []
            if peer.send(wire.encode(send.message), fds, time.monotonic_ns()):
                self._queued[peer.session] = peer
                self._epoll.modify(peer.sock.fileno(), select.EPOLLOUT)
        except TooSlow as slow:
            assert peer is not None
            self._end_peer(peer, "slow", str(slow))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the peer is gone; its end-of-file follows and ends the session
        except OSError as err:
            if send.handles or end is not None:
                self._carry_out(self._core.send_failed(send, err.errno or 0, time.monotonic_ns()))
            else:
                assert peer is not None
                self._end_peer(peer, "no answer", f"it could not be answered: {err.strerror}")
        finally:
            if end is not None:
                end.close()
        return True

    def _disconnect_effect(self, effect: fx.Disconnect) -> bool:
        peer = self._peers.get(effect.session)
        if peer is not None:
            self._end_peer(peer, "blocks the broker", effect.reason)
        return True

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
            sees_all = known.uid in (0, self._core.state.own_uid)
            wanted = [list(line) for line in lines if sees_all or line.uid == known.uid]
            while wanted:
                chunk, wanted = wanted[:_LINES], wanted[_LINES:]
                if peer.queue:
                    peer.lost += len(chunk)
                else:
                    self._send(fx.Send(session, [0, peer.lost, chunk]))
                    peer.lost = 0
