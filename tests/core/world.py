"""A world around the core: sessions, descriptors and time, as the broker's shell would provide them, without any of them being real.

It is a fake, not a mock: it keeps what the effects ask for and fails the test for an effect that could not be carried out (a handle made
twice, a signal for an eventfd that is closed or has a status already, an answer with descriptors that do not exist).  After each step it
also folds the emitted events into a second, fresh state, so that ``check`` can compare the two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgpack

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.fds import status_from_count, status_word
from fencebroker.limits import Limits
from fencebroker.ring import Entry
from fencebroker.rows import Row, read_row
from fencebrokerd.core import effects as fx
from fencebrokerd.core import snapshot
from fencebrokerd.core.account import Slot
from fencebrokerd.core.broker import Broker
from fencebrokerd.core.fence import Array, Fence
from fencebrokerd.core.rings import lowest_awaited
from fencebrokerd.core.state import State
from fencebrokerd.core.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fencebrokerd.core.events import Event

__all__ = ["ALICE", "BOB", "CAROL", "ROOT", "Client", "Info", "Line", "MakeWorld", "World", "active", "limits", "table"]

ROOT: Final = 0
ALICE: Final = 1000
BOB: Final = 1001
CAROL: Final = 1002

#: Roomy enough that no test meets a limit it did not ask for.
LIMITS: Final = Limits(descriptors=100_000)


@dataclass(frozen=True)
class Line:
    """A timeline as its producer holds it: its context and one of its sockets."""

    context: int
    socket: int


@dataclass(frozen=True)
class Info:
    """An answer to INFO by name; ``fences`` are (label, driver, status, timestamp, context, seqno, owner, created, deadline, expires)."""

    name: str
    status: int
    n: int
    handle: int
    context: int
    seqno: int
    creator: list[Any] | None
    created: int
    timestamp: int
    deadline: int | None
    expires: int | None
    tampered: bool
    detached: bool
    fences: list[list[Any]]


class MakeWorld(Protocol):
    """The fixture ``make_world``."""

    def __call__(self, limits: Limits | None = None) -> World: ...


class World:
    """A broker, and everything that its effects have made."""

    def __init__(self, limits: Limits = LIMITS, own_uid: int = 999) -> None:
        self.limits = limits
        self.broker = Broker(limits, own_uid)
        self.now = 1_000
        #: Every event so far, and the state that they alone build.
        self.events: list[Event] = []
        self.replayed = State(limits.remembered_failures, own_uid, limits.failures_per_uid)
        #: What eventfds carry: handle -> status.
        self.eventfds: dict[int, int] = {}
        self.sockets: set[int] = set()
        self.rings: set[int] = set()
        #: Sockets whose ring was frozen because somebody else was let in, in order.
        self.frozen: list[int] = []
        #: Handles whose eventfd once existed, so that none is made twice.
        self.made: set[int] = set()
        self.sent: list[fx.Send] = []
        self.disconnected: list[int] = []
        #: (handle, status) in the order in which they were written.
        self.written: list[tuple[int, int]] = []
        #: Set to an errno, the kernel refuses the next descriptors.
        self.refuse_eventfds = 0
        self.refuse_sockets = 0
        self.refuse_rings = 0
        self.refuse_sends = 0
        self._next_session = 1
        self._depth = 0

    @property
    def state(self) -> State:
        return self.broker.state

    # -- acting

    def connect(
        self, uid: int = ALICE, gid: int | None = None, groups: Iterable[int] = (), pid: int = 4242, comm: str = "capture.py"
    ) -> Client:
        """Open a session; Refusal when a quota is used up."""
        session = self._next_session
        self._next_session += 1
        self.broker.connect(session, uid, uid if gid is None else gid, frozenset(groups), pid, comm, self.tick())
        self._collect()
        return Client(self, session, uid)

    def tick(self, by: int = 1) -> int:
        """Let time pass."""
        self.now += by
        return self.now

    def run(self, effects: list[fx.Effect]) -> None:
        """Carry effects out in order, as the shell does."""
        self._collect()
        self._depth += 1
        for effect in effects:
            if not self._carry_out(effect):
                break
        self._depth -= 1
        if not self._depth and self.broker.is_untidy:
            self.run(self.broker.tidy(self.now))

    def _collect(self) -> None:
        for event in self.broker.take_events():
            self.events.append(event)
            self.replayed.apply(event)

    def _carry_out(self, effect: fx.Effect) -> bool:
        match effect:
            case fx.CreateEventfds():
                handles = range(effect.first, effect.first + effect.n)
                assert not self.made.intersection(handles), f"a handle was used twice: {effect}"
                if self.refuse_eventfds:
                    self.run(self.broker.eventfds_failed(effect, self.refuse_eventfds, self.tick()))
                    return False
                self.made.update(handles)
                self.eventfds.update(dict.fromkeys(handles, 0))
            case fx.CreateSocket():
                assert effect.socket not in self.sockets
                if self.refuse_sockets:
                    self.run(self.broker.socket_failed(effect, self.refuse_sockets, self.tick()))
                    return False
                self.sockets.add(effect.socket)
                self.run(self.broker.socket_made(effect.socket, 7_000 + effect.socket, self.now))
            case fx.CreateRing():
                assert effect.socket not in self.rings
                if self.refuse_rings:
                    self.run(self.broker.ring_failed(effect, self.refuse_rings, self.tick()))
                    return False
                self.rings.add(effect.socket)
            case fx.FreezeRing():
                assert effect.socket in self.rings
                self.frozen.append(effect.socket)
            case fx.CloseRing():
                self.rings.remove(effect.socket)
            case fx.Signal():
                assert effect.status
                for handle in effect.handles:
                    assert handle in self.eventfds, f"handle {handle} is signalled and has no eventfd"
                    assert self.eventfds[handle] == 0, f"handle {handle} has {self.eventfds[handle]} and gets {effect.status}"
                    self.eventfds[handle] = effect.status
                    self.written.append((handle, effect.status))
            case fx.CloseHandles():
                for handle in effect.handles:
                    if not self.refuse_eventfds:
                        del self.eventfds[handle]
            case fx.CloseSocket():
                if not self.refuse_sockets:
                    self.sockets.remove(effect.socket)
                    self.rings.discard(effect.socket)
            case fx.Send():
                self._send(effect)
            case fx.Disconnect():
                self.disconnected.append(effect.session)
        return True

    def _send(self, send: fx.Send) -> None:
        packet = wire.encode(send.message)
        assert len(packet) <= wire.PACKET_BYTES, f"an answer of {len(packet)} bytes"
        wire.decode_answer(packet)
        for handle in send.handles:
            assert handle in self.eventfds, f"an answer carries handle {handle}, which has no eventfd"
        if send.socket is not None:
            assert send.socket in self.sockets
        if send.ring is not None:
            assert send.ring in self.rings
        if self.refuse_sends and (send.handles or send.socket is not None or send.ring is not None):
            error, self.refuse_sends = self.refuse_sends, 0
            self.run(self.broker.send_failed(send, error, self.tick()))
            return
        self.sent.append(send)

    def signal(self, line: Line | int, op: int, *arguments: int) -> None:
        """Send a message on a timeline's socket."""
        socket = line.socket if isinstance(line, Line) else line
        message = wire.decode_timeline(wire.encode([7, 1, op, *arguments]))
        self.run(self.broker.handle_timeline(socket, message, self.tick()))

    def advance(self, line: Line, value: int) -> None:
        self.signal(line, wire.ADVANCE, value)

    def fail(self, line: Line, seqno: int, error: int) -> None:
        self.signal(line, wire.FAIL, seqno, error)

    def drain(self, line: Line, *entries: tuple[int, int, int]) -> None:
        """What (op, number, error) the producer has committed to its ring is looked at now; one tick of the clock lies between two of them."""
        known = self.state.rings[line.socket].ring
        assert known is not None
        found = [Entry(known.taken + i, op, number, error, self.tick()) for i, (op, number, error) in enumerate(entries, 1)]
        self.run(self.broker.drain(line.socket, found, self.tick()))

    def arms(self) -> dict[int, int]:
        """What the broker wants stored in its rings since the last call, by socket."""
        return dict(self.broker.take_arms())

    def close(self, line: Line) -> None:
        """The last copy of the timeline's descriptor is closed."""
        self.run(self.broker.end_socket(line.socket, self.tick()))

    def pass_time(self, to: int) -> None:
        """Let the clock reach ``to``, waking the broker whenever it asked for it."""
        while (wake_at := self.broker.wake_at) is not None and wake_at <= to:
            self.now = max(self.now, wake_at)
            self.run(self.broker.expire(self.now))
        self.now = max(self.now, to)

    def end(self) -> None:
        """Stop as the daemon does; the core asserts that every account is empty, and nothing of ours may be left."""
        effects, _ = self.broker.stop(self.tick())
        self.run(effects)
        self.run(self.broker.end(self.tick()))
        assert not self.eventfds, "eventfds were never closed"
        assert not self.sockets, "timelines' sockets were never closed"

    # -- looking

    def reference(self, handle: int) -> fx.KnownFence:
        """What the shell says when the descriptor of ``handle`` comes back; its count is decoded as the real one would be."""
        status = self.eventfds[handle]
        return fx.KnownFence(handle, status_from_count(status_word(status) if status else 0))

    def shown(self, line: Line) -> fx.KnownTimeline:
        """What the shell says when a timeline's descriptor is shown."""
        return fx.KnownTimeline(line.socket)

    def fence(self, handle: int) -> Fence:
        """The fence that a sync_file on record carries."""
        return self.state.sync_files[handle].fence

    def check(self) -> None:
        """Everything that must hold at any moment."""
        state = self.state
        assert table(state) == table(self.replayed), "the fold of the events is not the state"
        rows = wire.encode(snapshot.dump(state))
        loaded = snapshot.load(
            msgpack.unpackb(rows, use_list=False), self.limits.remembered_failures, state.own_uid, self.limits.failures_per_uid
        )
        assert table(state) == table(loaded), "a snapshot is not the state"
        assert wire.encode(snapshot.dump(loaded)) == rows, "a snapshot of a snapshot is another one"
        assert self.eventfds.keys() == state.sync_files.keys(), "the broker's copies are not the sync_files on record"
        assert self.sockets == state.sockets.keys()
        assert self.rings == state.rings.keys()
        for handle, sync_file in state.sync_files.items():
            assert self.eventfds[handle] == sync_file.fence.status, f"handle {handle} does not say what its fence says"
            assert sync_file.fence.sync_files[handle] is sync_file
        for uid, account in state.accounts.items():
            assert account.sessions == sum(1 for session in state.sessions.values() if session.uid == uid)
            assert account.timelines == sum(1 for timeline in state.timelines.values() if timeline.uid == uid)
            assert account.sync_files == sum(1 for sync_file in state.sync_files.values() if sync_file.uid == uid)
            assert account.members == sum(f.charge.n for f in state.fences.values() if isinstance(f, Array) and f.uid == uid)
            assert account.rings == sum(1 for timeline in state.rings.values() if timeline.uid == uid)
            assert account.sockets == sum(1 for charge in state.socket_charges.values() if charge.uid == uid)
            assert account.minters == sum(len(session.minting) for session in state.sessions.values() if session.uid == uid)
            assert account.failures == sum(len(timeline.failures) for timeline in state.timelines.values() if timeline.uid == uid)
        assert state.socket_charges.keys() == state.sockets.keys()
        assert state.creators == Counter(timeline.creator for timeline in state.timelines.values())
        self._check_fences()

    def _check_fences(self) -> None:
        state = self.state
        for fence in state.fences.values():
            n_open = sum(1 for sync_file in fence.sync_files.values() if sync_file.session is not None)
            assert fence.n_open == n_open
            if not fence.status:
                assert fence.timestamp == 0
                assert fence.sync_files or fence.arrays, f"fence {fence.id} is active and nobody can see it"
                assert not isinstance(fence, Array) or _must_be(fence) == 0, "an array is late"
            elif isinstance(fence, Array) and fence.status != -62:
                assert _must_be(fence) != 0 or fence.status < 0, "an array was early"
        for timeline in state.timelines.values():
            assert timeline.n_active == sum(1 for fence in timeline.points.values() if not fence.status)
            for seqno, fence in timeline.points.items():
                assert fence.seqno == seqno
                assert fence.status or seqno > timeline.value, "a point at or below the value is active"


def _must_be(array: Array) -> int:
    """What an array's status must be by its members alone, errors counted as -1."""
    statuses = [member.status for member in array.members]
    if array.any:
        return next((1 if status > 0 else -1 for status in statuses if status), 0)
    if 0 in statuses:
        return 0
    return -1 if min(statuses) < 0 else 1


def active(world: World) -> int:
    """How many fences are active."""
    return sum(1 for fence in world.state.fences.values() if not fence.status)


@dataclass
class Client:
    """One session.  Its requests pass through the codec, as they would on the wire."""

    world: World
    session: int
    uid: int
    serial: int = field(default=0)

    def ask(self, op: int, *arguments: Any, references: Sequence[fx.Reference] = ()) -> list[Any]:
        """Send a request and return the results of its answer; Refusal if it was refused, [] for a request without answer."""
        world = self.world
        self.serial += 1
        message, spec = wire.decode_request(wire.encode([self.serial, op, *arguments]), len(references))
        before = len(world.sent)
        world.run(world.broker.handle(self.session, message, references, world.tick()))
        mine = [send for send in world.sent[before:] if send.session == self.session]
        if spec is not None and not spec.answered:
            assert not mine, "a one-way request was answered"
            return []
        assert len(mine) == 1, f"{len(mine)} answers to one request"
        serial, error, *results = mine[0].message
        assert serial == self.serial
        if error:
            raise Refusal(error, results[0], tuple(results[1]))
        return results

    def create(self, name: str | None = None, mode: int = 0o600, expiry: int | None = None, driver: str = "fencebroker") -> Line:
        (context,) = self.ask(wire.CREATE_TIMELINE, name, driver, mode, expiry)
        socket = self.world.sent[-1].socket
        assert socket is not None
        return Line(context, socket)

    def open(self, name: str) -> Line:
        context, _ = self.ask(wire.OPEN_TIMELINE, name)
        socket = self.world.sent[-1].socket
        assert socket is not None
        return Line(context, socket)

    def show(self, line: Line) -> list[Any]:
        return self.ask(wire.SHOW_TIMELINE, references=[self.world.shown(line)])

    def ring(self, line: Line, holder: int = 7) -> None:
        """Signal through a ring from now on."""
        self.ask(wire.RING, line.context, holder)

    def concerned(self, op: int, *arguments: Any, references: Sequence[fx.Reference] = ()) -> set[int]:
        """The sockets whose rings are to be drained before such a request."""
        return set(self.world.broker.concerned(self.session, [self.serial + 1, op, *arguments], references))

    def export(self, line: Line | int, seqno: int | None = None, name: str = "", private: bool = False) -> int:
        """Export one point; returns the handle."""
        context = line.context if isinstance(line, Line) else line
        handle: int = self.ask(wire.EXPORT, context, None if seqno is None else [seqno], name, private)[0]
        return handle

    def export_many(self, line: Line, seqnos: Sequence[int]) -> list[int]:
        first: int = self.ask(wire.EXPORT, line.context, list(seqnos), "", False)[0]
        return list(range(first, first + len(seqnos)))

    def sync_file(self, point: str, expiry: int | None = None) -> int:
        handle: int = self.ask(wire.SYNC_FILE, point, expiry)[0]
        return handle

    def merge(self, *fences: int | fx.Reference, name: str = "", any: bool = False) -> int:
        refs = [fence if isinstance(fence, int) else None for fence in fences]
        references = [fence for fence in fences if not isinstance(fence, int)]
        handle: int = self.ask(wire.MERGE, refs, name, any, references=references)[0]
        return handle

    def import_(self, fence: int | fx.Reference, name: str = "") -> int:
        if isinstance(fence, int):
            handle: int = self.ask(wire.IMPORT, name, fence)[0]
        else:
            handle = self.ask(wire.IMPORT, name, None, references=[fence])[0]
        return handle

    def info(self, fence: int | fx.Reference) -> Info:
        """Ask what a sync_file is, all pages of it."""
        fences: list[list[Any]] = []
        cursor: int | None = 0
        row: list[Any] = []
        while cursor is not None:
            if isinstance(fence, int):
                row, cursor, page = self.ask(wire.INFO, fence, cursor)
            else:
                row, cursor, page = self.ask(wire.INFO, None, cursor, references=[fence])
            fences += page
        return Info(*[*row[:13], fences])

    def set_deadline(self, fence: int | fx.Reference, deadline: int) -> None:
        if isinstance(fence, int):
            self.ask(wire.SET_DEADLINE, fence, deadline)
        else:
            self.ask(wire.SET_DEADLINE, None, deadline, references=[fence])

    def release(self, *handles: int, exposed: bool = False) -> None:
        self.ask(wire.RELEASE, [] if exposed else list(handles), list(handles) if exposed else [])

    def chmod(self, name: str, mode: int) -> int:
        before: int = self.ask(wire.CHMOD, name, mode)[0]
        return before

    def quotas(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(uid, quota) -> (used, limit)."""
        rows: list[Any] = []
        cursor: int | None = 0
        while cursor is not None:
            cursor, page = self.ask(wire.QUOTAS, cursor)
            rows += page
        return {(uid, quota): (used, limit) for uid, quota, used, limit in rows}

    def list(self, kind: str) -> list[Row]:
        """List all pages of one kind."""
        rows: list[Any] = []
        cursor: int | None = 0
        while cursor is not None:
            cursor, page = self.ask(wire.LIST, kind, cursor)
            assert page or not rows, "an empty page"
            rows += page
        return [_read(kind.removesuffix("s"), row) for row in rows]

    def lookup(self, name: str) -> Row:
        return _read(*self.ask(wire.LOOKUP, name))

    def history(self, line: Line) -> Sequence[tuple[Any, ...]]:
        """What happened to a timeline: (time, what, seqno, status, process)."""
        return [tuple(entry) for entry in self.ask(wire.HISTORY, line.context)[0]]

    def reclaim(self, *handles: int) -> Sequence[int]:
        taken: Sequence[int] = self.ask(wire.RECLAIM, [*handles])[0]
        return taken

    def status(self) -> dict[str, int]:
        (pairs,) = self.ask(wire.STATUS)
        return dict(pairs)

    def disconnect(self) -> None:
        self.world.run(self.world.broker.disconnect(self.session, self.world.tick()))


def _read(kind: str, row: list[Any]) -> Row:
    """Read a row; of a sync_file's, the eventfd's id is added by a shell."""
    return read_row(kind, [*row, 9000 + row[0]] if kind == "sync_file" else row)


def table(state: State) -> dict[str, Any]:
    """Everything a state says, as plain values that compare.  Heaps are caches: what they hold of active fences is compared."""
    return {
        "next": (state.next_context, state.next_socket, state.next_fence, state.next_handle, state.n_signalled),
        "accounts": {
            uid: ([getattr(account, slot.value) for slot in Slot], list(account.retained), list(account.returned))
            for uid, account in state.accounts.items()
            if not account.is_empty
        },
        "sessions": {
            session.id: (session.uid, session.gid, session.groups, session.pid, session.comm, sorted(session.handles), sorted(session.minting))
            for session in state.sessions.values()
        },
        "timelines": {
            timeline.context: (
                timeline.name, timeline.driver, timeline.mode, timeline.expiry, timeline.uid, timeline.gid, timeline.pid, timeline.comm,
                timeline.value, timeline.advanced_at, timeline.highest, timeline.n_active, dict(timeline.failures),
                dict(timeline.sockets), sorted(timeline.minters), timeline.creator, timeline.creator_alive, _ring_row(timeline),
                {seqno: fence.id for seqno, fence in timeline.points.items()},
                list(timeline.past.entries), timeline.past.n_fences, timeline.past.n_signalled, timeline.past.n_failed,
                timeline.past.latencies,
                sorted({seqno for seqno in timeline.pending if (f := timeline.points.get(seqno)) is not None and not f.status}),
            )
            for timeline in state.timelines.values()
        },
        "names": {key: timeline.context for key, timeline in state.names.items()},
        "sockets": {socket: timeline.context for socket, timeline in state.sockets.items()},
        "fences": {fence.id: _fence_row(fence) for fence in state.fences.values()},
        "sync_files": {
            handle: (s.fence.id, s.name, s.session, s.uid, s.pid, s.comm, s.created, s.private, s.tampered)
            for handle, s in state.sync_files.items()
        },
        "subscribers": list(state.subscribers),
        "placeholders": {key: {k: fence.id for k, fence in waiting.items()} for key, waiting in state.placeholders.items()},
        "expiries": sorted({(at, id) for at, id in state.expiries if (f := state.fences.get(id)) is not None and not f.status}),
    }  # fmt: skip


def _ring_row(timeline: Timeline) -> tuple[Any, ...]:
    known = timeline.ring
    return () if known is None else (known.socket, known.holder, known.taken, known.frozen, lowest_awaited(timeline, known))


def _fence_row(fence: Fence) -> tuple[Any, ...]:
    array = (fence.any, fence.error, fence.n_pending, [member.id for member in fence.members]) if isinstance(fence, Array) else ()
    return (
        type(fence).__name__, fence.context, fence.seqno, fence.uid, fence.created, fence.status, fence.timestamp, fence.deadline,
        fence.expires, fence.n_open, sorted(fence.arrays), sorted(fence.sync_files), fence.names, array,
    )  # fmt: skip


def limits(**changes: Any) -> Limits:
    """The roomy limits with some of them changed."""
    return replace(LIMITS, **changes)
