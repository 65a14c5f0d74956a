"""The whole broker as one object: what comes in, and when -> what is to be done.

``handle`` takes a session's decoded request, ``handle_timeline`` a timeline's message; both return effects.  Every other method is
something that happens outside: a connection, an end-of-file, a clock, a failure to do what an effect asked for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fencebroker import ring, wire
from fencebroker.errors import Refusal
from fencebroker.limits import Limits
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core import inspection, minting, rings, signalling, trace
from fencebrokerd.core.account import Charge, Slot
from fencebrokerd.core.state import Session, State
from fencebrokerd.core.turn import Turn

__all__ = ["Broker"]

#: Waits of one session that are kept in mind at a time, for whoever follows the events; those beyond are not told of.
MAX_WAITS: Final = 256


class Broker:
    """Owns the state.  ``own_uid`` is the broker's user, who may inspect everything."""

    def __init__(self, limits: Limits, own_uid: int, state: State | None = None) -> None:
        """Begin with nothing, or go on with a ``state`` that was built again."""
        self.limits = limits
        self.state = State(limits.remembered_failures, own_uid, limits.failures_per_uid) if state is None else state
        self._turn = Turn(self.state, limits)

    def configure(self, limits: Limits, quotas: Mapping[int, Limits] | None = None) -> None:
        """Use other limits from now on, and for some users their own; what is over them already stays."""
        self.limits = limits
        self._turn.limits = limits
        self._turn.quotas = quotas or {}

    def limits_of(self, uid: int) -> Limits:
        """The limits of one user."""
        return self._turn.limits_of(uid)

    def count_beside(self, n: int) -> None:
        """Note how many descriptors are in use that the state does not know of: they are as good as taken."""
        self._turn.beside = n

    def charge_closing(self, uid: int) -> Charge:
        """Charge a descriptor that ``uid`` sent, and that is not ours, until it is closed."""
        return Charge(self.state.account(uid), Slot.CLOSING)

    def check_closing(self, uid: int) -> None:
        """Refusal when a user has sent so many of them that are still open that no more are taken."""
        self._turn.check_share(uid, Slot.CLOSING)

    # -- clients

    def connect(self, session: int, uid: int, gid: int, groups: frozenset[int], pid: int, comm: str, now: int) -> None:
        """Accept a client after its hello.  Refusal with EDQUOT when its uid, or the broker, has too many."""
        limits, state = self.limits, self.state
        own = self._turn.limits_of(uid).sessions_per_uid
        if len(state.sessions) >= limits.sessions and state.account(uid).sessions < own:
            quota, used = "sessions in all", len(state.sessions)
            raise Refusal(errno.EDQUOT, f"{quota}: {used} of {limits.sessions} are in use", (quota, limits.sessions, used))
        self._turn.check_share(uid, Slot.SESSIONS)
        self.check_closing(uid)
        self._begin(now)
        self._turn.emit(e.SessionOpened(session, uid, gid, tuple(sorted(groups)), pid, comm, now))

    def disconnect(self, session: int, now: int) -> list[fx.Effect]:
        """A client is gone."""
        turn = self._begin(now)
        known = self.state.sessions.get(session)
        if known is not None:
            for wait in list(turn.waits.get(session, ())):
                _end_wait(turn, known, wait)
            minting.end_session(turn, known)
        return turn.effects

    def handle(self, session: int, message: list[Any], references: Sequence[fx.Reference], now: int) -> list[fx.Effect]:
        """Handle one request, already checked by ``wire.decode_request``.  A refusal is an answer; any exception is a bug."""
        turn = self._begin(now)
        turn.session = self.state.sessions[session]
        turn.serial = message[0]
        verb = VERBS.get(message[1])
        try:
            if verb is None:
                raise Refusal(errno.ENOSYS, f"this broker does not know request {message[1]}")
            verb(turn, message, references)
        except Refusal as refusal:
            turn.effects.append(fx.Send(session, [turn.serial, refusal.error, refusal.text, list(refusal.detail)]))
        return turn.effects

    def creator_died(self, session: int, now: int) -> None:
        """The process that opened ``session`` is gone."""
        self._begin(now).emit(e.CreatorDied(session, now))

    # -- timelines

    def socket_made(self, socket: int, inode: int, now: int) -> list[fx.Effect]:
        """The socketpair of a timeline exists."""
        turn = self._begin(now)
        minting.socket_made(turn, socket, inode)
        return turn.effects

    def creator_of(self, socket: int) -> int:
        """Which session created the timeline of this socket."""
        return self.state.sockets[socket].creator

    def payer_of(self, socket: int) -> int:
        """Who asked for the descriptor of this socket; -1 for one that is closed."""
        charge = self.state.socket_charges.get(socket)
        uid: int = -1 if charge is None else charge.uid
        return uid

    def handle_timeline(self, socket: int, message: list[Any], now: int) -> list[fx.Effect]:
        """Handle one message of a timeline's socket, already checked by ``wire.decode_timeline``."""
        turn = self._begin(now)
        timeline = self.state.sockets[socket]
        SIGNALS[message[2]](turn, timeline, *message[3:])
        return turn.effects

    def end_socket(self, socket: int, now: int) -> list[fx.Effect]:
        """The last copy of a timeline's descriptor was closed."""
        turn = self._begin(now)
        minting.end_socket(turn, socket)
        return turn.effects

    def break_timeline(self, socket: int, now: int) -> list[fx.Effect]:
        """Somebody sent nonsense on a timeline's socket: who is unknown, so the timeline fails with EPROTO and ends."""
        turn = self._begin(now)
        timeline = self.state.sockets[socket]
        signalling.cancel(turn, timeline, errno.EPROTO)
        for other in sorted(timeline.sockets):
            minting.end_socket(turn, other)
        return turn.effects

    # -- rings: what their producers have committed and nobody has looked at yet

    def concerned(self, session: int, message: list[Any], references: Sequence[fx.Reference]) -> Iterable[int]:
        """The sockets whose rings have to be drained before this request is handled."""
        turn = self._turn
        turn.session = self.state.sessions[session]
        return rings.concerned(turn, message, references)

    def expiring(self, now: int) -> set[int]:
        """The sockets whose rings have to be frozen and drained before ``expire``."""
        return rings.expiring(self.state, now)

    def drain(self, socket: int, entries: Sequence[ring.Entry], now: int) -> list[fx.Effect]:
        """Handle what a timeline's only owner has committed."""
        turn = self._begin(now)
        rings.drain(turn, self.state.rings[socket], entries, now)
        return turn.effects

    def let_in(self, socket: int, now: int) -> list[fx.Effect]:
        """Another holder than the one with the ring has spoken on this socket: the descriptor got into other hands."""
        turn = self._begin(now)
        minting.freeze_ring(turn, self.state.sockets[socket])
        return turn.effects

    def ring_failed(self, effect: fx.CreateRing, error: int, now: int) -> list[fx.Effect]:
        """There is no ring to be had, and its sender goes on without."""
        turn = self._begin(now)
        turn.emit(e.RingClosed(self.state.sockets[effect.socket].context))
        if error == errno.ENOSYS:
            turn.do(fx.Send(effect.session, [effect.serial, error, "this broker's machine has no barrier for rings (membarrier)", []]))
            return turn.effects
        return self._failed(effect.session, effect.serial, error, "rings")

    def rearm(self) -> None:
        """Have all rings told, because the last broker may not have."""
        self.state.rearm.update((timeline.context, None) for timeline in self.state.rings.values())

    def take_arms(self) -> list[tuple[int, int]]:
        """Take the rings for which it may have changed when their producers are to ring the doorbell: the socket, and the value; 0 is never."""
        found = []
        for context in self.state.rearm:
            timeline = self.state.timelines[context]
            known = timeline.ring
            assert known is not None
            found.append((known.socket, 1 if self.is_traced else rings.lowest_awaited(timeline, known)))
        self.state.rearm.clear()
        return found

    # -- after the effects

    @property
    def is_untidy(self) -> bool:
        """Whether ``tidy`` has something to do."""
        return bool(self._turn.crowded)

    def tidy(self, now: int) -> list[fx.Effect]:
        """Forget what is over the quota of records; called when effects were carried out, so that it delays nobody's wake."""
        turn = self._begin(now)
        signalling.tidy(turn)
        return turn.effects

    # -- time, failures, the end

    def expire(self, now: int) -> list[fx.Effect]:
        """Time has passed."""
        turn = self._begin(now)
        signalling.expire(turn)
        return turn.effects

    @property
    def wake_at(self) -> int | None:
        """When ``expire`` is needed next; None: never."""
        return signalling.next_expiry(self._turn)

    def eventfds_failed(self, effect: fx.CreateEventfds, error: int, now: int) -> list[fx.Effect]:
        """The kernel refused an eventfd: nothing of the request stays, and its sender hears why."""
        turn = self._begin(now)
        minting.drop(turn, range(effect.first, effect.first + effect.n))
        return self._failed(effect.session, effect.serial, error, "sync_files")

    def socket_failed(self, effect: fx.CreateSocket, error: int, now: int) -> list[fx.Effect]:
        """The kernel refused a socketpair."""
        turn = self._begin(now)
        minting.end_socket(turn, effect.socket)
        return self._failed(effect.session, effect.serial, error, "timelines")

    def _failed(self, session: int, serial: int, error: int, what: str) -> list[fx.Effect]:
        effects = self._turn.effects
        limit, used = self.limits.descriptors, self.state.n_descriptors
        text = f"the kernel refused another descriptor for {what}; the broker uses {used} of {limit}"
        error = error if error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETOOMANYREFS) else errno.ENOMEM
        detail: list[int | str] = [f"descriptors of the broker ({what})", limit, used] if error == errno.EMFILE else []
        effects.append(fx.Send(session, [serial, error, text, detail]))
        return effects

    def send_failed(self, send: fx.Send, error: int, now: int) -> list[fx.Effect]:
        """Descriptors could not be sent: what was made for them goes, and a refusal takes the answer's place."""
        turn = self._begin(now)
        minting.drop(turn, send.handles)
        if send.socket is not None and send.socket in self.state.sockets:
            minting.end_socket(turn, send.socket)
        if send.ring is not None and send.ring in self.state.rings:
            turn.emit(e.RingClosed(self.state.rings[send.ring].context))
            turn.do(fx.CloseRing(send.ring))
        return self._failed(send.session, send.message[0], error, "descriptors in flight")

    def tampered(self, handle: int, now: int) -> list[fx.Effect]:
        """The shell found a forged count on this handle's eventfd when it signalled."""
        turn = self._begin(now)
        sync_file = self.state.sync_files.get(handle)
        if sync_file is not None and not sync_file.tampered:
            turn.emit(e.SyncFileTampered(handle))
        return turn.effects

    def lose(self, handles: Sequence[int], now: int) -> list[fx.Effect]:
        """The broker's copies of these are gone, by a fault of its own."""
        turn = self._begin(now)
        minting.drop(turn, handles)
        return turn.effects

    def poison(self, handles: Sequence[int], now: int) -> list[fx.Effect]:
        """Holders made these eventfds block: close our copies, and end the sessions of the uid that asked for them."""
        turn = self._begin(now)
        uids = {self.state.sync_files[handle].uid for handle in handles if handle in self.state.sync_files}
        minting.drop(turn, handles)
        for session in list(self.state.sessions.values()):
            if session.uid in uids:
                turn.do(fx.Disconnect(session.id, "a sync_file of this user was made to block the broker"))
        return turn.effects

    def uid_of(self, handle: int) -> int:
        """Whose sync_file this is."""
        sync_file = self.state.sync_files.get(handle)
        return -1 if sync_file is None else sync_file.uid

    def stop(self, now: int) -> tuple[list[fx.Effect], int]:
        """Complete every active fence with -ECANCELED; returns the effects and how many there were."""
        turn = self._begin(now)
        n = signalling.cancel_all(turn, errno.ECANCELED)
        return turn.effects, n

    def end(self, now: int) -> list[fx.Effect]:
        """Close everything and assert that every account is zero: a leak of accounting ends the broker loudly."""
        turn = self._begin(now)
        for socket in list(self.state.sockets):
            minting.end_socket(turn, socket)
        # Those who follow the events come last: they hear of every end.
        followers = [session for session in self.state.sessions.values() if session.id in self.state.subscribers]
        for session in [session for session in self.state.sessions.values() if session not in followers]:
            minting.end_session(turn, session)
        signalling.tidy(turn)
        minting.forget_everything(turn)
        for session in followers:
            minting.end_session(turn, session)
        self.state.assert_empty()
        return turn.effects

    def take_events(self) -> list[e.Event]:
        """Take what has changed since the last call."""
        turn = self._turn
        events, turn.events = turn.events, []
        return events

    @property
    def has_events(self) -> bool:
        """Whether anything has changed since ``take_events``."""
        return bool(self._turn.events)

    @property
    def is_traced(self) -> bool:
        """Whether anybody follows the events."""
        return bool(self.state.subscribers)

    def take_lines(self) -> tuple[Sequence[int], list[Any]]:
        """Take the rendered events since the last call, and the sessions that follow them."""
        lines, self._turn.lines = self._turn.lines, []
        return tuple(self.state.subscribers), lines

    def _begin(self, now: int) -> Turn:
        turn = self._turn
        turn.now = now
        turn.effects = []
        return turn


# -- the verbs of a session: message -> call


def _create_timeline(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.create_timeline(turn, m[2], m[3], m[4], m[5])


def _ring(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    rings.open_ring(turn, m[2], m[3])


def _open_timeline(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.open_timeline(turn, m[2])


def _show_timeline(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.show_timeline(turn, references[0])


def _forget_timeline(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.forget_timeline(turn, m[2])


def _export(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.export(turn, m[2], m[3], m[4], m[5])


def _import(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.import_sync_file(turn, m[2], m[3], references[0] if references else None)


def _merge(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.merge(turn, m[2], references, m[3], m[4])


def _sync_file(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.sync_file(turn, m[2], m[3])


def _info(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.info(turn, m[2], references[0] if references else None, m[3])


def _set_deadline(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    if not references or not isinstance(references[0], fx.DetachedFence):  # a detached one has signalled: nothing to do
        fence = minting.find_fence(turn, m[2], references[0] if references else None)
        signalling.set_deadline(turn, fence, m[3])
    turn.answer()


def _release(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.release(turn, m[2], m[3])


def _list(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.list_objects(turn, m[2], m[3])


def _lookup(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.lookup(turn, m[2])


def _status(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.status(turn)


def _history(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.history(turn, m[2])


def _reclaim(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.reclaim(turn, m[2])


def _subscribe(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    uid, subscribers = turn.session.uid, turn.state.subscribers
    used = sum(1 for session in subscribers if turn.state.sessions[session].uid == uid)
    limit = turn.limits_of(uid).subscriptions_per_uid
    if turn.session.id not in subscribers:
        if used >= limit:
            turn.refuse(errno.EDQUOT, "subscriptions per user", limit, used, 1)
        turn.emit(e.Subscribed(turn.session.id))
    turn.answer()


def _chmod(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    minting.chmod(turn, m[2], m[3])


def _quotas(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    inspection.quotas(turn, m[2])


def _wait_start(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    """Answer with the status; a wait is only kept in mind while somebody follows the events."""
    fence = minting.find_fence(turn, m[2], references[0] if references else None)
    wait = 0
    if turn.state.subscribers and not fence.status:
        waits = turn.waits.setdefault(turn.session.id, {})
        if len(waits) < MAX_WAITS:
            wait = turn.serial
            waits[wait] = fence
            turn.lines.append(trace.wait(False, fence, turn.session, turn.now))
    turn.answer(fence.status, wait)


def _wait_end(turn: Turn, m: list[Any], references: Sequence[fx.Reference]) -> None:
    _end_wait(turn, turn.session, m[2])


def _end_wait(turn: Turn, session: Session, wait: int) -> None:
    waits = turn.waits.get(session.id, {})
    fence = waits.pop(wait, None)
    if not waits:
        turn.waits.pop(session.id, None)
    if fence is not None and turn.state.subscribers:
        turn.lines.append(trace.wait(True, fence, session, turn.now))


Verb = Callable[[Turn, list[Any], Sequence[fx.Reference]], None]

VERBS: Final[dict[int, Verb]] = {
    wire.CREATE_TIMELINE: _create_timeline,
    wire.RING: _ring,
    wire.OPEN_TIMELINE: _open_timeline,
    wire.SHOW_TIMELINE: _show_timeline,
    wire.FORGET_TIMELINE: _forget_timeline,
    wire.EXPORT: _export,
    wire.IMPORT: _import,
    wire.MERGE: _merge,
    wire.SYNC_FILE: _sync_file,
    wire.INFO: _info,
    wire.SET_DEADLINE: _set_deadline,
    wire.RELEASE: _release,
    wire.LIST: _list,
    wire.LOOKUP: _lookup,
    wire.STATUS: _status,
    wire.SUBSCRIBE: _subscribe,
    wire.WAIT_START: _wait_start,
    wire.WAIT_END: _wait_end,
    wire.HISTORY: _history,
    wire.RECLAIM: _reclaim,
    wire.CHMOD: _chmod,
    wire.QUOTAS: _quotas,
}

SIGNALS: Final[dict[int, Callable[..., None]]] = {
    wire.ADVANCE: signalling.advance,
    wire.INC: signalling.inc,
    wire.FAIL: signalling.fail,
    wire.SIGNAL: signalling.signal_point,
    wire.CANCEL: signalling.cancel,
}
