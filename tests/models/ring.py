"""The signal ring of ``docs/design.md``, as steps that nothing can divide; ``test_ring.py`` explores them all.

Who takes part
  P  the producer: the only owner of a timeline.  It commits entries to the ring, and writes its own eventfds.
  B  the broker: it drains the ring when something makes it look there, decides, writes every eventfd, and may be killed at any step.
  X  somebody else who may signal: a holder to whom the descriptor was handed, or who opened the timeline by its name.
  The world: a point is imported, expires, is exported while another thread of P advances; P is killed.

Memory
  A store goes into the store buffer of its process first, and from there to memory at any later time.  A load sees its own buffer, then
  memory.  x86-64: a buffer is emptied in order.  ``weak``: in any order (aarch64), so that a head may be seen before its entry.
  membarrier(GLOBAL_EXPEDITED) empties the buffers of caller and producer: the kernel makes every processor that runs one execute a full
  barrier, and one that runs none has had it when it switched.
  A system call whose effect another process sees (send, eventfd write) empties the caller's buffer before: on x86-64 because stores become
  visible in order; elsewhere because the kernel publishes the effect by releasing a lock.  Death empties it too: nothing of a store is lost.

aarch64
  The order that this relies on there: B loads ``head``, then membarrier, then the entry.  P stored the entry before ``head`` in program
  order; the barrier that P executes lies after its store of ``head``, for B has seen that, so the entry is in memory when membarrier
  returns; and B's own barrier keeps its load of the entry from being served early.  P's loads of ``frozen`` and ``armed`` come after its
  store of ``head`` in program order and may be served before it is visible; that is the same hole as on x86-64, and closed by the same
  barrier, which B issues between its store of ``frozen`` or ``armed`` and its look at ``head``.  The checksum of an entry is the second
  net: torn or missing words are seen as such.  The model explores this (``weak``); the program was run on x86-64 only.

What is left out: the contents of entries beyond op and number, time, and everything that is the journal's own (an append is one step here).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from tests.models.checker import Model

__all__ = ["BUGS", "SCENARIOS", "Scenario", "model"]

BELL: Final[Packet] = ("P", "bell", 0, 0)
#: Statuses of a point.  None: such a descriptor does not exist.
ACTIVE, OK, FAILED, ETIME, ENOENT = 0, 1, -5, -62, -2
POINTS: Final = (1, 2, 3)

#: A number of an op: the value to advance to, how much to add, the point that fails.
Op: TypeAlias = tuple[str, int]
Packet: TypeAlias = tuple[str, str, int, int]  # sender, op, number, its counter; the doorbell has none
Store: TypeAlias = tuple[str, int, object]  # which word, its index, its value
Statuses: TypeAlias = tuple[int | None, ...]
Half: TypeAlias = tuple[int, str, int]  # serial, op, number: each entry is two stores of it, so that it can be torn

#: Seeded mistakes: what is left out or done in the wrong order.
BUGS: Final[dict[str, str]] = {
    "arm without a barrier": "B looks at the head while its store of armed, or P's of head, is still in a buffer",
    "arm without a second look": "what P committed before armed was visible is not seen",
    "armed loaded before the commit": "P looks before anybody can have seen its entry",
    "freeze without a barrier": "both decide, each without the other's store",
    "freeze without a drain": "B decides against what is committed",
    "frozen not loaded after the commit": "P writes what B has decided otherwise",
    "unfrozen before its writes": "P finds an eventfd unwritten that B has decided about",
    "recovery unfreezes first": "as above, after a death of B between its decision and its writes",
    "own write before the commit": "P dies in between: its eventfd says OK, the rest ENOENT",
    "head before the entry": "B reads what was in that place before",
    "entry read without a barrier": "weak memory: the head is there and the entry is not",
    "tail before the journal": "P overwrites what B has not recorded, and B dies",
    "tail of the page trusted": "B dies between the record and the tail, and its successor takes the entries again",
    "a full ring is overwritten": "P does not look at the tail",
    "end-of-file without a drain": "ENOENT for what a dead producer had signalled",
    "a packet without a drain": "a packet overtakes entries that were committed before it",
    "the ring after a packet": "an entry overtakes a packet that B has not read",
    "own writes after the hand-out": "P and the new holder signal the same point, each its own way",
    "handed out without CLOSE": "P goes on with a ring while others send packets",
    "a late export is not told of": "P advances past a point whose export is under way: nobody writes it",
    "recovery does not arm": "P does not ring for a descriptor that the dead broker had on record and not yet armed for",
    "a packet is handled again": "the dead broker had recorded it and not taken it from the queue",
    "the doorbell is taken before the drain": "B dies in between, and nobody rings again",
    "opened without a freeze": "a second signaller and the ring side by side",
}


class Scenario(NamedTuple):
    """A program for P, and what else may happen while it runs."""

    program: tuple[Op, ...]
    events: tuple[tuple[str, int], ...] = ()
    foreign: Op | None = None  #: what X sends once it holds the timeline
    exported: frozenset[int] = frozenset()  #: points of which P has the descriptor from the beginning
    capacity: int = 4
    weak: bool = False
    deaths_of_p: int = 1
    deaths_of_b: int = 1
    never: frozenset[tuple[int, int]] = frozenset()  #: statuses that this program rules out for a point


class Journal(NamedTuple):
    """What a new generation of B knows: it is appended to in one step, before anything is acted upon."""

    serial: int = 0  #: entries decided
    value: int = 0
    status: Statuses = (ACTIVE,) * len(POINTS)
    packets: int = 0  #: the counter of P's last packet that was handled
    last: Packet | None = None  #: the last packet of anybody: what is still at the head of the queue after a death
    ringless: bool = False  #: CLOSE was drained
    shared: bool = False  #: frozen for good: somebody else may signal
    ended: bool = False


class State(NamedTuple):
    """Everything, in one value."""

    # the page
    head: int
    tail: int
    armed: int
    frozen: int
    seen: int
    slots: tuple[tuple[Half | None, Half | None], ...]
    stores_of_p: tuple[Store, ...]
    stores_of_b: tuple[Store, ...]
    # P
    op: int  #: which of its program is next or under way
    step: str
    value: int
    committed: int  #: its own copy of head
    sent: int
    quiet: bool  #: no packet of its own is unread
    has_ring: bool
    bell: bool
    duplicates: frozenset[int]
    alive: bool
    # the socket
    queue: tuple[Packet, ...]
    foreign: str  #: X: "", "holds", "done"
    # B
    todo: tuple[tuple[str, object], ...]
    journal: Journal
    page_armed: int  #: what B stored last
    # descriptors
    own: Statuses
    private: Statuses
    exporting: int  #: a point whose export is answered and not yet known to P's lock
    # what may still happen
    events: frozenset[tuple[str, int]]
    deaths_of_p: int
    deaths_of_b: int
    wrong: str


def _set(statuses: Statuses, point: int, status: int) -> Statuses:
    return tuple(status if n == point else old for n, old in zip(POINTS, statuses, strict=True))


def _written(statuses: Statuses, point: int, status: int) -> Statuses:
    """A status write: the first one stands."""
    return _set(statuses, point, status) if statuses[point - 1] == ACTIVE else statuses


def model(scenario: Scenario, bug: str = "") -> Model[State]:
    """The model of one scenario, with one mistake in it or none."""
    assert not bug or bug in BUGS, bug
    ring = _Ring(scenario, bug)
    return Model([ring.initial()], ring.steps, ring.wrong, ring.wrong_at_rest, ring.faults)


class _Ring:
    def __init__(self, scenario: Scenario, bug: str) -> None:
        self.scenario = scenario
        self.bug = bug

    def initial(self) -> State:
        scenario = self.scenario
        own = tuple(ACTIVE if point in scenario.exported else None for point in POINTS)
        return State(
            0, 0, 0, 0, 0, ((None, None),) * scenario.capacity, (), (),
            0, "idle", 0, 0, 0, True, True, False, scenario.exported, True,
            (), "", (), Journal(), 0,
            own, (None,) * len(POINTS), 0, frozenset(scenario.events), scenario.deaths_of_p, scenario.deaths_of_b, "",
        )  # fmt: skip

    # -- what is looked for

    def wrong(self, s: State) -> str | None:
        if s.wrong:
            return s.wrong
        for point in POINTS:
            found = {s.own[point - 1], s.private[point - 1], s.journal.status[point - 1]} - {None, ACTIVE}
            if len(found) > 1:
                return f"two descriptors of point {point} disagree, or one with the record: {sorted(x for x in found if x is not None)}"
            for status in found:
                if (point, status) in self.scenario.never:
                    return f"point {point} has status {status}, which its producer never gave it"
        if s.journal.value > s.value and not s.foreign:
            return f"the broker is at {s.journal.value}, its producer at {s.value}"
        return None

    def wrong_at_rest(self, s: State) -> str | None:
        for point in POINTS:
            is_due = s.journal.ended or point <= max(s.value, s.journal.value)
            for kind, statuses in (("own", s.own), ("private", s.private)):
                if is_due and statuses[point - 1] == ACTIVE:
                    return f"lost wake-up: the {kind} descriptor of point {point} never signals"
        if s.journal.ended and not s.foreign and s.journal.value != s.value:
            return f"the broker ended at {s.journal.value}, its producer at {s.value}"
        if not s.alive and not s.journal.ended and s.foreign != "holds":
            return "the producer is dead and the timeline lives"
        return None

    # -- every step that is possible

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._memory(s)
        if s.alive:
            yield from self._producer(s)
        if s.foreign == "holds" and self.scenario.foreign is not None:
            op, n = self.scenario.foreign
            yield f"X sends {op} {n}", s._replace(queue=(*s.queue, ("X", op, n, 1)), foreign="done")
        yield from self._broker(s)

    def faults(self, s: State) -> Iterator[tuple[str, State]]:
        if s.alive and s.deaths_of_p:
            dead = self._emptied(s, "P")
            yield "P is killed", dead._replace(alive=False, deaths_of_p=s.deaths_of_p - 1, duplicates=frozenset(), exporting=0)
        if s.deaths_of_b and (s.todo or not s.journal.ended):
            dead = self._emptied(s, "B")
            yield "B is killed", dead._replace(todo=(("recover", None),), deaths_of_b=s.deaths_of_b - 1)

    # -- memory

    def _memory(self, s: State) -> Iterator[tuple[str, State]]:
        for who, buffer in (("P", s.stores_of_p), ("B", s.stores_of_b)):
            for i in range(len(buffer) if self.scenario.weak else min(1, len(buffer))):
                word, index, _ = buffer[i]
                if any((other, place) == (word, index) for other, place, _ in buffer[:i]):
                    continue  # two stores to one word stay in order everywhere
                rest = buffer[:i] + buffer[i + 1 :]
                after = self._stored(s, buffer[i])
                after = after._replace(stores_of_p=rest) if who == "P" else after._replace(stores_of_b=rest)
                yield f"{who}'s store of {word} becomes visible", after

    def _stored(self, s: State, store: Store) -> State:
        word, index, value = store
        if word in ("first half", "second half"):
            slot = s.slots[index]
            slot = (value, slot[1]) if word == "first half" else (slot[0], value)  # type: ignore[assignment]  # what a slot holds
            return s._replace(slots=(*s.slots[:index], slot, *s.slots[index + 1 :]))
        return s._replace(**{word: value})  # type: ignore[arg-type]  # a word of the page

    def _emptied(self, s: State, who: str) -> State:
        for store in s.stores_of_p if who == "P" else s.stores_of_b:
            s = self._stored(s, store)
        return s._replace(stores_of_p=()) if who == "P" else s._replace(stores_of_b=())

    def _barrier(self, s: State) -> State:
        return self._emptied(self._emptied(s, "P"), "B")

    # -- P

    def _producer(self, s: State) -> Iterator[tuple[str, State]]:
        bug = self.bug
        if s.step == "idle" and s.exporting:
            point = s.exporting
            if point > s.value:
                yield f"P takes the descriptor of {point}", s._replace(exporting=0, duplicates=s.duplicates | {point})
            elif s.own[point - 1] != ACTIVE or bug == "a late export is not told of":
                yield f"P takes the descriptor of {point}, passed meanwhile", s._replace(exporting=0)
            else:
                s = self._emptied(s, "P")
                yield f"P rings for the descriptor of {point}", s._replace(exporting=0, queue=(*s.queue, BELL))
        if s.op == len(self.scenario.program):
            return
        op, n = self.scenario.program[s.op]
        if s.step == "idle":
            yield from self._begin(s, op, n)
        elif s.step == "entry":
            yield from self._commit(s, op, n)
        elif s.step == "committed":
            yield from self._look(s, op, n)
        elif s.step == "write":
            passed = sorted(point for point in s.duplicates if point <= s.value)
            if not passed:
                yield "P has written", s._replace(step="ring the bell")
                return
            point = passed[0]
            status = FAILED if op == "fail" and point == n else OK
            s = self._emptied(s, "P")
            yield f"P writes {point}", s._replace(own=_written(s.own, point, status), duplicates=s.duplicates - {point})
        elif s.step == "ring the bell":
            if s.bell:
                s = self._emptied(s, "P")
                s = s._replace(queue=(*s.queue, BELL))
            done = s._replace(step="idle", op=s.op + 1, bell=False)
            yield "P rings" if s.bell else "P is done", done

    def _begin(self, s: State, op: str, n: int) -> Iterator[tuple[str, State]]:
        bug = self.bug
        if op == "close":  # the last copy of the descriptor
            s = self._emptied(s, "P")
            yield "P closes", s._replace(alive=False, deaths_of_p=0, duplicates=frozenset(), exporting=0)
            return
        usable = self.scenario.capacity - (op != "hand out")  # a place is kept for CLOSE
        is_full = s.committed - s.tail >= usable and bug != "a full ring is overwritten"
        quiet = s.quiet or s.seen == s.sent or bug == "the ring after a packet"
        if op == "hand out":
            if bug == "handed out without CLOSE":
                yield "P hands out", s._replace(op=s.op + 1, foreign="holds")
                return
            if not s.has_ring:
                yield "P hands out again", s._replace(op=s.op + 1)
                return
            yield "P begins to hand out", s._replace(step="entry")
            return
        if s.has_ring and not s.frozen and quiet and not is_full:
            bell = bool(s.armed and self._value_after(s, op, n) >= s.armed) if bug == "armed loaded before the commit" else False
            after = s._replace(step="entry", quiet=True, bell=bell)
            if bug == "own write before the commit":
                for point in sorted(s.duplicates):
                    if point <= self._value_after(s, op, n):
                        after = after._replace(own=_written(after.own, point, FAILED if op == "fail" and point == n else OK))
            yield f"P begins {op} {n}", after
            return
        s = self._emptied(s, "P")
        value = self._value_after(s, op, n)
        passed = frozenset(point for point in s.duplicates if point <= value)
        own = s.own
        if bug == "own writes after the hand-out":
            for point in passed:
                own = _written(own, point, FAILED if op == "fail" and point == n else OK)
        sent = s._replace(sent=s.sent + 1, quiet=False, value=value, duplicates=s.duplicates - passed, own=own, op=s.op + 1)
        yield f"P sends {op} {n}", sent._replace(queue=(*s.queue, ("P", op, n, s.sent + 1)))

    def _value_after(self, s: State, op: str, n: int) -> int:
        return s.value if op == "hand out" else s.value + n if op == "inc" else max(s.value, n)

    def _commit(self, s: State, op: str, n: int) -> Iterator[tuple[str, State]]:
        index = s.committed % self.scenario.capacity
        half = (s.committed + 1, op, n)
        stores: tuple[Store, ...] = (("first half", index, half), ("second half", index, half), ("head", 0, s.committed + 1))
        if self.bug == "head before the entry":
            stores = stores[2:] + stores[:2]
        after = s._replace(
            stores_of_p=s.stores_of_p + stores, committed=s.committed + 1, value=self._value_after(s, op, n), step="committed"
        )
        yield f"P commits {op} {n}", after

    def _look(self, s: State, op: str, n: int) -> Iterator[tuple[str, State]]:
        if op == "hand out":
            kept = s.duplicates if self.bug == "own writes after the hand-out" else frozenset[int]()
            after = self._emptied(s, "P")  # what is handed out is sent, or forked
            yield "P hands out", after._replace(has_ring=False, duplicates=kept, foreign="holds", step="idle", op=s.op + 1)
            return
        if s.frozen and self.bug != "frozen not loaded after the commit":
            left = frozenset(point for point in s.duplicates if point > s.value)
            yield "P finds it frozen", s._replace(duplicates=left, bell=True, step="ring the bell")
            return
        bell = s.bell if self.bug == "armed loaded before the commit" else bool(s.armed and s.value >= s.armed)
        yield "P looks at armed", s._replace(bell=bell, step="write")

    # -- B: what it has still to do is a list of single steps; an empty one is sleep

    def _broker(self, s: State) -> Iterator[tuple[str, State]]:
        if s.todo:
            yield self._do(s)
            return
        if s.journal.ended:
            return
        drain: tuple[tuple[str, object], ...] = (("head", None),)
        for kind, point in sorted(s.events):
            todo: tuple[tuple[str, object], ...]
            if kind == "import":
                todo = (*drain, ("import", point))
            elif kind == "export":
                todo = (*drain, ("export", point))
            elif kind == "expire":
                todo = (*self._freeze(), ("expire", point))
            elif kind == "open":
                todo = (*(() if self.bug == "opened without a freeze" else self._freeze()), ("open", None))
            else:
                raise AssertionError(kind)
            yield f"{kind} {point}", s._replace(todo=todo)
        if s.queue:
            if self.bug == "the doorbell is taken before the drain" and s.queue[0][1] == "bell":
                yield "B takes the doorbell", s._replace(queue=s.queue[1:], todo=drain)
            else:
                before = () if self.bug == "a packet without a drain" and s.queue[0][1] != "bell" else drain
                yield "B wakes for a packet", s._replace(todo=(*before, ("packet", None)))
        elif not s.alive and s.foreign != "holds":
            before = () if self.bug == "end-of-file without a drain" else drain
            yield "B wakes for the end-of-file", s._replace(todo=(*before, ("end", None)))

    def _freeze(self) -> tuple[tuple[str, object], ...]:
        steps: list[tuple[str, object]] = [("store", ("frozen", 1)), ("barrier", None), ("head", None)]
        if self.bug == "freeze without a barrier":
            del steps[1]
        if self.bug == "freeze without a drain":
            del steps[-1]
        return tuple(steps)

    def _do(self, s: State) -> tuple[str, State]:
        (what, argument), rest = s.todo[0], s.todo[1:]
        s = s._replace(todo=rest)
        return f"B: {what}{'' if argument is None else f' {argument}'}", getattr(self, f"_do_{what}")(s, argument)

    def _do_store(self, s: State, argument: tuple[str, int]) -> State:
        word, value = argument
        return s._replace(stores_of_b=(*s.stores_of_b, (word, 0, value)))

    def _do_barrier(self, s: State, _: None) -> State:
        return self._barrier(s)

    def _do_head(self, s: State, _: None) -> State:
        if s.journal.ringless or s.head == s.journal.serial:
            return s
        steps: list[tuple[str, object]] = [("entries", s.head)]
        if self.scenario.weak and self.bug != "entry read without a barrier":
            steps.insert(0, ("barrier", None))
        if self.bug == "tail before the journal":
            steps.insert(0, ("store", ("tail", s.head)))
        return s._replace(todo=(*steps, *s.todo))

    def _do_entries(self, s: State, head: int) -> State:
        """Copy them, check them, record what they bring about, and then act."""
        journal, changed = s.journal, []
        for serial in range(journal.serial + 1, head + 1):
            first, second = s.slots[(serial - 1) % self.scenario.capacity]
            if first != second or first is None or first[0] != serial:
                return s._replace(wrong=f"an honest producer is taken for a liar: entry {serial} reads {first} {second}")
            _, op, n = first
            journal, points = self._decide(journal._replace(serial=serial), op, n)
            changed += points
        return self._act(s._replace(journal=journal), changed, tail=head)

    def _decide(self, journal: Journal, op: str, n: int) -> tuple[Journal, list[int]]:
        if op == "hand out":
            return journal._replace(ringless=True), []
        value = journal.value + n if op == "inc" else max(journal.value, n)
        status, changed = journal.status, []
        for point in POINTS:
            if point <= value and status[point - 1] == ACTIVE:
                status = _set(status, point, FAILED if op == "fail" and point == n else OK)
                changed.append(point)
        return journal._replace(value=value, status=status), changed

    def _act(self, s: State, points: list[int], tail: int | None = None) -> State:
        steps: list[tuple[str, object]] = [("write", point) for point in points]
        if tail is not None and self.bug != "tail before the journal":
            steps.append(("store", ("tail", tail)))
        return s._replace(todo=(*steps, *s.todo))

    def _do_write(self, s: State, point: int) -> State:
        status = s.journal.status[point - 1]
        assert status is not None
        return s._replace(own=_written(s.own, point, status), private=_written(s.private, point, status))

    def _do_import(self, s: State, point: int) -> State:
        """Somebody gets an eventfd that only B writes; while the point is active P must ring when it passes it."""
        s = s._replace(private=_set(s.private, point, ACTIVE), events=s.events - {("import", point)})
        if s.journal.status[point - 1] != ACTIVE:
            return s._replace(todo=(("write", point), *s.todo))
        return s._replace(todo=(*self._arm(s), *s.todo))

    def _arm(self, s: State) -> tuple[tuple[str, object], ...]:
        awaited = [p for p in POINTS if s.private[p - 1] == ACTIVE and s.journal.status[p - 1] == ACTIVE]
        if not awaited:
            return ()
        steps: list[tuple[str, object]] = [("store", ("armed", min(awaited))), ("barrier", None), ("head", None)]
        if self.bug == "arm without a barrier":
            del steps[1]
        if self.bug == "arm without a second look":
            del steps[-1]
        return tuple(steps)

    def _do_export(self, s: State, point: int) -> State:
        status = s.journal.status[point - 1]
        s = s._replace(events=s.events - {("export", point)})
        if not s.alive:
            return s
        return s._replace(own=_set(s.own, point, status or ACTIVE), exporting=point)

    def _do_expire(self, s: State, point: int) -> State:
        """B decides by itself, and P may go on when every eventfd says so."""
        s = s._replace(events=s.events - {("expire", point)})
        if s.journal.status[point - 1] != ACTIVE:
            return s._replace(todo=(("store", ("frozen", int(s.journal.shared))), *s.todo))
        s = s._replace(journal=s.journal._replace(status=_set(s.journal.status, point, ETIME)))
        steps: list[tuple[str, object]] = [("write", point), ("store", ("frozen", int(s.journal.shared)))]
        if self.bug == "unfrozen before its writes":
            steps.reverse()
        return s._replace(todo=(*steps, *s.todo))

    def _do_open(self, s: State, _: None) -> State:
        events = s.events - {("open", 0)}
        return s._replace(journal=s.journal._replace(shared=True), foreign=s.foreign or "holds", events=events)

    def _do_packet(self, s: State, _: None) -> State:
        """Recorded, acted upon, then taken from the queue; the producer may use the ring again when it sees that."""
        packet = s.queue[0]
        who, op, n, counter = packet
        if op == "bell":
            return s._replace(queue=s.queue[1:])
        journal, changed = s.journal, list[int]()
        if packet != journal.last or self.bug == "a packet is handled again":
            journal, changed = self._decide(journal, op, n)
        journal = journal._replace(packets=counter if who == "P" else journal.packets, last=packet)
        steps: list[tuple[str, object]] = [("taken", None), ("store", ("seen", journal.packets))]
        return self._act(s._replace(journal=journal, todo=(*steps, *s.todo)), changed)

    def _do_taken(self, s: State, _: None) -> State:
        return s._replace(queue=s.queue[1:])

    def _do_end(self, s: State, _: None) -> State:
        active = [point for point in POINTS if s.journal.status[point - 1] == ACTIVE]
        status = s.journal.status
        for point in active:
            status = _set(status, point, ENOENT)
        return self._act(s._replace(journal=s.journal._replace(status=status, ended=True)), active)

    def _do_recover(self, s: State, _: None) -> State:
        """The next generation: everything on record is written again, which harms nothing; then the page is put right.

        ``seen`` may stay behind the packet that was in hand: P goes on with packets, and the next one puts it right.
        """
        if self.bug == "tail of the page trusted":
            s = s._replace(journal=s.journal._replace(serial=s.tail))
        steps: list[tuple[str, object]] = [("write", point) for point in POINTS if s.journal.status[point - 1] != ACTIVE]
        unfreeze: tuple[str, object] = ("store", ("frozen", int(s.journal.shared)))
        steps.insert(0 if self.bug == "recovery unfreezes first" else len(steps), unfreeze)
        steps.append(("store", ("tail", s.journal.serial)))
        if self.bug != "recovery does not arm":
            steps += self._arm(s)
        return s._replace(todo=tuple(steps))


def _scenarios() -> dict[str, Scenario]:
    """What P does, and what happens meanwhile."""
    two = frozenset({1, 2})
    imported = Scenario((("advance", 1), ("inc", 1)), (("import", 2),), exported=two, never=frozenset({(1, FAILED), (2, FAILED)}))
    expiring = Scenario((("fail", 1),), (("expire", 1), ("import", 1)), exported=frozenset({1}), never=frozenset({(1, OK)}))
    return {
        "import": imported,
        "import, weak memory": imported._replace(weak=True),
        "expiry": expiring,
        "expiry, weak memory": expiring._replace(weak=True),
        "hand-out": Scenario(
            (("advance", 1), ("hand out", 0), ("advance", 2)), (("import", 2),), ("fail", 1), two, never=frozenset({(1, FAILED)})
        ),
        "hand-out and failure": Scenario((("hand out", 0), ("advance", 2)), (("import", 1),), ("fail", 2), two),
        "full": Scenario(
            (("advance", 1), ("fail", 2), ("advance", 3)),
            (("import", 2),),
            exported=two,
            capacity=2,
            never=frozenset({(1, FAILED), (2, OK)}),
        ),
        "full of increments": Scenario((("inc", 1), ("inc", 1), ("inc", 1)), (), exported=two, capacity=2, deaths_of_b=2),
        "full at the hand-out": Scenario(
            (("fail", 1), ("hand out", 0), ("inc", 1)), (), ("fail", 1), two, capacity=2, never=frozenset({(1, OK)})
        ),
        "expiry between": Scenario((("advance", 1), ("advance", 2)), (("expire", 1),), exported=two),
        "second signaller": Scenario((("advance", 1), ("advance", 2)), (("open", 0),), ("fail", 2), two),
        "late export": Scenario((("advance", 1), ("inc", 1)), (("export", 1),), never=frozenset({(1, FAILED)})),
        "closed": Scenario((("inc", 1), ("close", 0)), (("import", 2),), exported=two, deaths_of_p=0, never=frozenset({(1, ENOENT)})),
    }


SCENARIOS: Final = _scenarios()
