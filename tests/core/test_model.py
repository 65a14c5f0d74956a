"""The core against a small model of what a fence is, in random programs.

The model knows statuses, errors, expiries and deadlines, and nothing of events, effects, accounts or records.  After every step the two
must agree, and ``World.check`` must hold: the state is the fold of its events, accounts balance, each descriptor says what its fence says.

Where the rules leave a choice (two members fail in one instant, with different errors) the model takes the core's word after checking that
it is one of the possible ones.

``FENCEBROKER_TEST_EXAMPLES=10000`` runs that many programs instead of the few that every run can afford.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fencebroker import wire
from fencebroker.errors import Refusal
from tests.core.world import ALICE, BOB, ROOT, Client, Line, World, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fencebrokerd.core.fence import Fence

EXAMPLES: Final = int(os.environ.get("FENCEBROKER_TEST_EXAMPLES", "200"))
STEPS: Final = 50
SMALL: Final = st.integers(0, 9)
SEQNO: Final = st.integers(0, 6)
#: What no retention limit of these worlds reaches.
ALL_RECORDS: Final = 10**6


@dataclass(eq=False)
class Model:
    """A fence.  ``at`` is (when, how many arrays deep the signal came)."""

    core: Fence
    status: int = 0
    at: tuple[int, int] = (0, 0)
    expires: int | None = None
    deadline: int | None = None


@dataclass(eq=False)
class MPoint(Model):
    line: MLine | None = None
    seqno: int = 0


@dataclass(eq=False)
class MArray(Model):
    members: list[Model] = field(default_factory=list)
    any: bool = False
    #: Errors that were there when it was made; the earliest of them.
    born_with: set[int] = field(default_factory=set)


@dataclass(eq=False)
class MPlaceholder(Model):
    bound: MPoint | None = None


@dataclass(eq=False)
class MLine:
    """A timeline."""

    line: Line
    uid: int
    name: str | None
    mode: int
    expiry: int | None
    value: int = 0
    failed: dict[int, int] = field(default_factory=dict)
    failed_at: dict[int, int] = field(default_factory=dict)
    advanced_at: int = 0
    points: dict[int, MPoint] = field(default_factory=dict)
    minters: set[int] = field(default_factory=set)
    alive: bool = True


def real(fence: Model) -> Model:
    """What a placeholder became."""
    return fence.bound if isinstance(fence, MPlaceholder) and fence.bound is not None else fence


class Machine(RuleBasedStateMachine):
    """Everything a client can do, with everything on record."""

    retained = ALL_RECORDS

    def __init__(self) -> None:
        super().__init__()
        self.world = World(limits(retained_records=self.retained, remembered_failures=ALL_RECORDS, merge_members=12))
        self.clients: list[Client] = [self.world.connect(ALICE), self.world.connect(BOB)]
        self.lines: list[MLine] = []
        self.placeholders: dict[tuple[int, str], dict[tuple[int, int], MPlaceholder]] = {}
        self.arrays: list[MArray] = []
        #: handle -> its fence, for each descriptor somebody may have; and the session that has its handle.
        self.files: dict[int, Model] = {}
        self.owner: dict[int, int | None] = {}
        self.create(0, "a", 0o644, None)
        self.create(1, None, 0o600, 20 if self.retained == ALL_RECORDS else None)

    # -- picking

    def client(self, i: int) -> Client:
        return self.clients[i % len(self.clients)]

    def living(self) -> list[MLine]:
        return [line for line in self.lines if line.alive]

    def shown(self) -> list[int]:
        """Handles whose descriptor the broker still knows."""
        return [handle for handle in self.files if handle in self.world.eventfds]

    # -- sessions and timelines

    @rule(what=st.sampled_from(["connect", "disconnect", "show", "show", "close", "cancel"]), i=SMALL, j=SMALL)
    def upset(self, what: str, i: int, j: int) -> None:
        """What would end a program early if it came as often as the rest."""
        if what == "connect" and len(self.clients) < 5:
            self.clients.append(self.world.connect([ALICE, BOB, ROOT][i % 3]))
        elif what == "disconnect" and len(self.clients) > 1:
            self.disconnect(i)
        elif what == "show" and self.living():
            self.show(i, j)
        elif what == "close" and self.living():
            self.close(j)
        elif what == "cancel" and self.living() and self.retained == ALL_RECORDS:
            self.cancel(j)

    def disconnect(self, i: int) -> None:
        client = self.clients.pop(i % len(self.clients))
        client.disconnect()
        for handle, owner in self.owner.items():
            if owner == client.session:
                self.owner[handle] = None
        for line in self.lines:
            line.minters.discard(client.session)

    @precondition(lambda self: len(self.living()) < 3)
    @rule(
        i=SMALL,
        name=st.sampled_from([None, "a", "b"]),
        mode=st.sampled_from([0o600, 0o644]),
        expiry=st.sampled_from([None, None, 20, 100]),
    )
    def create(self, i: int, name: str | None, mode: int, expiry: int | None) -> None:
        client = self.client(i)
        taken = name is not None and any(line.name == name and line.uid == client.uid for line in self.living())
        if taken:
            with pytest.raises(Refusal, match="is in use by pid 4242"):
                client.create(name, mode, expiry)
            return
        line = client.create(name, mode, expiry)
        model = MLine(line, client.uid, name, mode, expiry, advanced_at=self.world.now, minters={client.session})
        self.lines.append(model)
        if name is not None:
            self.bind(model, name)
        self.settle()

    def bind(self, line: MLine, name: str) -> None:
        waiting = self.placeholders.get((line.uid, name), {})
        for (seqno, uid), placeholder in list(waiting.items()):
            if uid in (ROOT, line.uid) or line.mode & 4:
                point = self.mint(line, seqno)
                placeholder.bound = point
                del waiting[seqno, uid]
                if not point.status:
                    self.hint(point, placeholder.deadline)

    def mint(self, line: MLine, seqno: int) -> MPoint:
        """The model's fence of a point, made if need be, just after the core did so."""
        point = line.points.get(seqno)
        if point is None:
            point = MPoint(self.world.state.timelines[line.line.context].points[seqno], line=line, seqno=seqno)
            if seqno <= line.value:
                point.status = line.failed.get(seqno, 1)
                point.at = (line.failed_at.get(seqno, line.advanced_at), 0)
            elif line.expiry is not None:
                point.expires = self.world.now + line.expiry
            line.points[seqno] = point
        return point

    def show(self, i: int, j: int) -> None:
        line = self.living()[j % len(self.living())]
        self.client(i).show(line.line)
        line.minters.add(self.client(i).session)

    def close(self, j: int) -> None:
        line = self.living()[j % len(self.living())]
        self.world.close(line.line)
        self.cancel_all(line, errno.ENOENT)
        line.alive = False

    # -- signalling

    @precondition(lambda self: self.living())
    @rule(j=SMALL, op=st.sampled_from(["advance", "inc", "fail", "fail"]), n=SEQNO, error=st.sampled_from([1, 5, 4095]))
    def move(self, j: int, op: str, n: int, error: int) -> None:
        line = self.living()[j % len(self.living())]
        if op == "fail":
            self.world.fail(line.line, n, error)
        else:
            self.world.signal(line.line, {"advance": wire.ADVANCE, "inc": wire.INC}[op], n)
        value = line.value + n if op == "inc" else n
        if value <= line.value:
            return
        line.value, line.advanced_at = value, self.world.now
        if op == "fail":
            line.failed[value], line.failed_at[value] = -error, self.world.now
        for seqno, point in line.points.items():
            if seqno <= value:
                self.set(point, line.failed.get(seqno, 1) if seqno == value and op == "fail" else 1)
        self.settle()

    @precondition(lambda self: self.living() and self.retained == ALL_RECORDS)
    @rule(j=SMALL, n=SEQNO, error=st.sampled_from([0, 5]))
    def signal_one(self, j: int, n: int, error: int) -> None:
        line = self.living()[j % len(self.living())]
        self.world.signal(line.line, wire.SIGNAL, n, error)
        if n in line.points:
            self.set(line.points[n], -error or 1)
        self.settle()

    def cancel(self, j: int) -> None:
        line = self.living()[j % len(self.living())]
        self.world.signal(line.line, wire.CANCEL, errno.ECANCELED)
        self.cancel_all(line, errno.ECANCELED)

    def cancel_all(self, line: MLine, error: int) -> None:
        for point in line.points.values():
            self.set(point, -error)
        self.settle()

    @precondition(lambda self: self.retained == ALL_RECORDS)
    @rule(by=st.integers(1, 60))
    def pass_time(self, by: int) -> None:
        to, now = self.world.now + by, self.world.now
        self.world.pass_time(to)
        while late := [fence.expires for fence in self.active() if fence.expires is not None and fence.expires <= to]:
            now = max(now, min(late))
            for fence in list(self.active()):
                if fence.expires is not None and fence.expires <= now:
                    self.set(fence, -errno.ETIME, now)
            self.settle(now)

    def active(self) -> Iterable[Model]:
        for line in self.lines:
            yield from (point for point in line.points.values() if not point.status)
        yield from (array for array in self.arrays if not array.status)

    def set(self, fence: Model, status: int, now: int | None = None) -> None:
        if not fence.status:
            fence.status, fence.at = status, (self.world.now if now is None else now, 0)

    def settle(self, now: int | None = None) -> None:
        """Let arrays follow their members, a wave at a time, then let go of what nobody can see."""
        moment = self.world.now if now is None else now
        for wave in range(1, 1_000):
            done = []
            for array in self.arrays:
                members = [real(member) for member in array.members]
                ended = [member for member in members if member.status and (member.at[0] < moment or member.at[1] < wave)]
                if not array.status and (ended if array.any else len(ended) == len(members)):
                    done.append((array, ended))
            if not done:
                break
            for array, ended in done:
                pool = ended if array.any else [member for member in ended if member.status < 0]
                possible = array.born_with or {member.status for member in pool if member.at == min(other.at for other in pool)} or {1}
                assert array.core.status in possible, f"{array.core.status} is none of {possible}"
                array.status, array.at = array.core.status, (moment, wave)
        self.collect()

    def collect(self) -> None:
        """An active fence goes when neither a descriptor nor an active array needs it."""
        needed: set[int] = set()
        work = [real(fence) for fence in self.files.values()]
        while work:
            fence = work.pop()
            if id(fence) not in needed:
                needed.add(id(fence))
                if isinstance(fence, MArray) and not fence.status:
                    work += [real(member) for member in fence.members]
        for line in self.lines:
            line.points = {seqno: point for seqno, point in line.points.items() if point.status or id(point) in needed}
        self.arrays = [array for array in self.arrays if not array.status and id(array) in needed]
        for waiting in self.placeholders.values():
            for key, placeholder in list(waiting.items()):
                if id(placeholder) not in needed:
                    del waiting[key]

    # -- descriptors

    def got(self, client: Client, handle: int, fence: Model) -> None:
        assert handle not in self.files
        self.files[handle] = fence
        self.owner[handle] = client.session

    @precondition(lambda self: self.living())
    @rule(i=SMALL, j=SMALL, seqnos=st.lists(SEQNO, min_size=1, max_size=3), refuse=st.booleans())
    def export(self, i: int, j: int, seqnos: list[int], refuse: bool) -> None:
        line = self.living()[j % len(self.living())]
        may = [client for client in self.clients if client.session in line.minters] or self.clients
        client = may[i % len(may)]
        self.world.refuse_eventfds = errno.EMFILE if refuse and len(seqnos) == 3 else 0
        if self.world.refuse_eventfds or client.session not in line.minters:
            with pytest.raises(Refusal, match=r"the kernel refused|not a timeline of this session"):
                client.export_many(line.line, seqnos)
            self.world.refuse_eventfds = 0
            return
        handles = client.export_many(line.line, seqnos)
        for handle, seqno in zip(handles, seqnos, strict=True):
            self.got(client, handle, self.mint(line, seqno))

    @rule(
        i=SMALL,
        owner=st.sampled_from([ALICE, BOB]),
        name=st.sampled_from(["a", "b"]),
        seqno=SEQNO,
        expiry=st.sampled_from([None, None, 30]),
    )
    def by_name(self, i: int, owner: int, name: str, seqno: int, expiry: int | None) -> None:
        client = self.client(i)
        expiry = expiry if self.retained == ALL_RECORDS else None
        handle = client.sync_file(f"{owner}/{name}@{seqno}", expiry)
        line = next((line for line in self.living() if (line.uid, line.name) == (owner, name)), None)
        fence: Model
        if line is not None and (client.uid in (ROOT, owner) or line.mode & 4):
            fence = self.mint(line, seqno)
        else:
            waiting = self.placeholders.setdefault((owner, name), {})
            key = seqno, client.uid
            if key not in waiting:
                waiting[key] = MPlaceholder(self.world.state.placeholders[owner, name][key])
            fence = waiting[key]
        if expiry is not None and not fence.status:
            fence = self.array(handle, [fence], any=False)
            fence.expires = self.world.now + expiry
        self.got(client, handle, fence)

    def array(self, handle: int, members: list[Model], any: bool) -> MArray:
        failed = [member for member in members if member.status < 0]
        born_with = {member.status for member in failed if member.at[0] == min(other.at[0] for other in failed)}
        array = MArray(self.world.fence(handle), members=members, any=any, born_with=born_with)
        self.arrays.append(array)
        return array

    @precondition(lambda self: self.shown())
    @rule(i=SMALL, j=st.integers(0, 99))
    def import_(self, i: int, j: int) -> None:
        client, source = self.client(i), self.shown()[j % len(self.shown())]
        handle = client.import_(self.world.reference(source))
        self.got(client, handle, real(self.files[source]))

    @precondition(lambda self: self.shown())
    @rule(i=SMALL, picks=st.lists(st.integers(0, 99), min_size=1, max_size=5), any=st.booleans(), by_handle=st.booleans())
    def merge(self, i: int, picks: list[int], any: bool, by_handle: bool) -> None:
        client, shown = self.client(i), self.shown()
        sources = [shown[pick % len(shown)] for pick in picks]
        arguments = [s if by_handle and self.owner[s] == client.session else self.world.reference(s) for s in sources]
        flat = self.flatten([real(self.files[source]) for source in sources], any)
        try:
            handle = client.merge(*arguments, any=any)
        except Refusal:
            assert len(flat) > 12
            return
        assert len(flat) <= 12
        self.got(client, handle, self.merged(handle, flat, any))

    def flatten(self, fences: list[Model], any: bool) -> list[Model]:
        flat: dict[Model, None] = {}
        for fence in map(real, fences):
            if isinstance(fence, MArray) and fence.expires is None and fence.any == any and not (any and fence.status):
                flat.update(dict.fromkeys(self.flatten(fence.members, any)))
            else:
                flat[fence] = None
        return list(flat)

    def merged(self, handle: int, flat: list[Model], any: bool) -> Model:
        """What a merge is, by the rules."""
        core = self.world.fence(handle)
        failed = [fence for fence in flat if fence.status < 0]
        active = [fence for fence in flat if not fence.status]
        ended = [fence for fence in flat if fence.status] if any else failed
        if (any and ended) or not active:
            first = [fence for fence in ended if fence.at[0] == min(other.at[0] for other in ended)]
            # A point that was forgotten and is asked for again has the time of the latest advance.
            possible = {fence.status for fence in (first if self.retained == ALL_RECORDS else ended)} or {1}
            assert core.status in possible
            latest = max(fence.at[0] for fence in flat)
            return Model(core, core.status, at=first[0].at if first else (latest, 0))
        best: dict[object, Model] = {}
        for fence in active:
            key: object = fence.line if isinstance(fence, MPoint) else fence
            rival = best.get(key)
            if rival is None or (isinstance(fence, MPoint) and isinstance(rival, MPoint) and (fence.seqno < rival.seqno) == any):
                best[key] = fence
        members = [*failed, *best.values()]
        if len(members) == 1:
            assert core is members[0].core, "one survivor is the result itself"
            return members[0]
        return self.array(handle, members, any)

    @precondition(lambda self: self.files)
    @rule(j=st.integers(0, 99), exposed=st.booleans())
    def release(self, j: int, exposed: bool) -> None:
        handle = list(self.files)[j % len(self.files)]
        client = next((client for client in self.clients if client.session == self.owner[handle]), None)
        if client is None:
            return
        client.release(handle, exposed=exposed)
        self.owner[handle] = None
        if not exposed:
            del self.files[handle], self.owner[handle]
        self.settle()

    @precondition(lambda self: self.shown())
    @rule(i=SMALL, j=st.integers(0, 99), deadline=st.integers(0, 5))
    def set_deadline(self, i: int, j: int, deadline: int) -> None:
        handle = self.shown()[j % len(self.shown())]
        self.client(i).set_deadline(self.world.reference(handle), deadline)
        self.hint(real(self.files[handle]), deadline)

    def hint(self, fence: Model, deadline: int | None) -> None:
        if fence.status or deadline is None:
            return
        fence.deadline = deadline if fence.deadline is None else min(fence.deadline, deadline)
        if isinstance(fence, MArray):
            for member in fence.members:
                self.hint(real(member), deadline)

    # -- agreement

    @invariant()
    def agrees(self) -> None:
        world = self.world
        world.check()
        for handle, fence in self.files.items():
            fence = real(fence)
            if handle in world.eventfds:
                assert world.eventfds[handle] == fence.status
                core = world.fence(handle)
                assert core.status == fence.status
                if not fence.status:
                    assert (core.expires, core.deadline) == (fence.expires, fence.deadline)
            else:
                assert fence.status, "an active fence's descriptor was given up"
                assert self.owner[handle] is None, "a descriptor in use was given up"
        active_files = sum(1 for fence in self.files.values() if not real(fence).status)
        assert active_files == sum(1 for s in world.state.sync_files.values() if not s.fence.status)
        for line in self.living():
            core_line = world.state.timelines[line.line.context]
            assert core_line.value == line.value
            assert core_line.n_active == sum(1 for point in line.points.values() if not point.status)
        waiting = {key: set(places) for key, places in self.placeholders.items() if places}
        assert waiting == {key: set(places) for key, places in world.state.placeholders.items()}

    def teardown(self) -> None:
        self.world.end()
        self.world.check()


class ForgetfulMachine(Machine):
    """The same, keeping almost no records.  What a timeline's value does not tell is left out: it would be forgotten with its record."""

    retained = 2


PROFILE: Final[dict[str, Any]] = {
    "max_examples": EXAMPLES,
    "stateful_step_count": STEPS,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}

TestEverythingOnRecord: Callable[[], None] = Machine.TestCase  # type: ignore[assignment]
TestEverythingOnRecord.settings = settings(**PROFILE)  # type: ignore[attr-defined]
TestHardlyAnyRecords: Callable[[], None] = ForgetfulMachine.TestCase  # type: ignore[assignment]
TestHardlyAnyRecords.settings = settings(**PROFILE)  # type: ignore[attr-defined]
