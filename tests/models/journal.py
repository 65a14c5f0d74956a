"""The order of the broker's steps, when it may be killed between any two of them.

What runs
  One client, one broker, and the kernel between them.  The client connects, sends requests on its session, and signals on a timeline's socket
  as two holders who do not know of each other.  The broker takes packets, and is killed at any moment, up to a given number of times; the
  keeper then starts the next one, which recovers.  The client never sees it: all it has are sockets and descriptors, and those stay.
What survives a broker
  The journal, the table of descriptors, the files behind them, and everything that lies unread in a socket.  Its memory does not: what it
  knows is the fold of the journal.  So the model gives it no memory at all, but for the plan it is in the middle of.
The steps of one packet
  Look at it without taking it; decide; create the descriptors that it needs; write the record; store the journal's length, which commits it;
  act (signal eventfds, close descriptors); answer; take the packet out of its socket.  A list of such steps is a *plan*.
  Where there is no memory for a record, the whole journal is written anew in its place, with the packet in hand.
The steps of a recovery
  Close the descriptors that the journal does not know, except a connection that was being accepted: that one is adopted.  Write again every
  status that the journal knows.  Then, once for each socket: if the packet at its head is the last one that was journalled for it, answer it
  again from the journal and take it out; its effect is there already.  That is decided for every socket before anything new is read: an answer
  that has to wait for room must not keep a timeline's socket from being recognised.
What must hold
  *Never early*: no fence is signalled before its client signalled it, or ended the timeline, or let the time pass.
  *Never lost*: when nothing more can happen, every fence has the status that is due, and every packet had its effect exactly once.
  *Status right*: whenever the broker has nothing in hand, the status in a descriptor is the one in the journal, and no fence signals twice.
  *Table equal to the journal*: at the same moments, every open descriptor is known and every known one is open.
  *No client error*: a request is never refused because it was carried out before, and no session ends by itself.
  *Answered exactly once*: every answer arrives; one that comes twice has the same serial, so that the client drops it.
  *Accounts right*: the client is charged for what it asked for, and for nothing else.
What makes it worth something
  ``BUGS`` are other orders, and steps left out.  The search must find each of them, and the right order must survive it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from tests.models.checker import Model

__all__ = ["BUGS", "SCENARIOS", "Scenario", "model"]

OK, NO_OWNER, EXPIRED = 1, -2, -62

#: One step of the broker: what it does, and with what.
Step: TypeAlias = tuple[object, ...]
Plan: TypeAlias = tuple[Step, ...]

#: Each with what it does, and the scenario that shows it.
BUGS: Final = {
    "answer-before-append": ("the client has a descriptor that no journal knows", "two holders"),
    "consume-before-answer": ("a packet is gone and nobody will answer it", "two holders"),
    "consume-before-append": ("a packet is gone and its effect too", "two holders"),
    "act-before-append": ("the world has seen what the next broker does not know", "two holders"),
    "close-before-append": ("a descriptor is gone that the journal still has", "two holders"),
    "use-before-create": ("the journal has a descriptor that is not there", "two holders"),
    "length-before-record": ("the journal's end is stored before what is in front of it", "two holders"),
    "no-recovery": ("the next broker goes on without a look at what was in hand", "two holders"),
    "no-second-signal": ("recovery does not write the statuses again", "two holders"),
    "no-reconciliation": ("recovery leaves descriptors open that the journal does not know", "two holders"),
    "keeps-client-ends": ("recovery leaves a client's end open whose answer was sent, so its end-of-file never comes", "two holders"),
    "forget-last-serial": ("a packet that was carried out is carried out again", "two holders"),
    "forget-holder": ("counters of one holder are taken for another's", "two holders"),
    "forget-serials-in-compaction": ("what was journalled last is not in the compacted journal", "compaction"),
    "compact-in-place": ("the old journal is given up before the new one is written", "compaction"),
    "forget-packet-of-last-record": ("a record that did not fit is written with everything, without the packet in hand", "no memory"),
    "forget-expiry": ("a timer is not resumed", "expiry"),
    "no-sweep-before-expiry": ("what was signalled in time is not looked for when the time has passed", "expiry"),
    "accept-without-record": ("a connection that was being accepted is a stranger to the next broker", "two holders"),
}


class Scenario(NamedTuple):
    """What the client does, in order on each of its sockets."""

    requests: tuple[Step, ...]
    #: Who raises the timeline's value, and by how much.
    signals: tuple[tuple[str, int], ...] = ()
    closes: bool = False  #: the client closes the timeline at the end
    expires: bool = False  #: the timeline has an expiry, and time may pass
    compacts: bool = False  #: the journal may be compacted
    is_cramped: bool = False  #: a record may not fit
    kills: int = 2
    #: Answers that fit into the client's socket unread.
    room: int = 1


SCENARIOS: Final = {
    "two holders": Scenario((("create",), ("export", 1), ("export", 2)), (("A", 1), ("B", 1)), closes=True),
    "the client closes before it signals": Scenario((("create",), ("export", 1), ("release", 2)), (("A", 1),), closes=True),
    "expiry": Scenario((("create",), ("export", 1), ("export", 2)), (("A", 1),), expires=True),
    "compaction": Scenario((("create",), ("export", 2), ("export", 3)), (("A", 1), ("A", 1)), compacts=True, kills=1),
    "no memory": Scenario((("create",), ("export", 1), ("export", 2)), (("A", 1), ("B", 1)), is_cramped=True, kills=1),
    "a death in each recovery": Scenario((("create",), ("export", 1)), (("A", 1),), closes=True, kills=4),
}


class Fence(NamedTuple):
    """A fence as the journal has it; its descriptor is known by the number of its file."""

    file: int
    point: int
    status: int = 0
    released: bool = False


class Record(NamedTuple):
    """What one decision adds to the journal: for which packet, what changed, what is to be answered."""

    packet: tuple[object, ...] | None
    events: tuple[Step, ...]
    answer: tuple[object, ...] | None = None


class Books(NamedTuple):
    """What the broker knows: the fold of the journal."""

    connected: int = 0  #: 1: accepting; 2: accepted
    pair: int | None = None  #: the timeline's socketpair
    ended: bool = False
    value: int = 0
    fences: tuple[Fence, ...] = ()
    #: The last packet that was journalled for each socket, and its answer.
    last: tuple[tuple[str, tuple[tuple[object, ...], tuple[object, ...] | None]], ...] = ()
    twice: bool = False  #: a fence signalled twice


class World(NamedTuple):
    """Everything there is, as a value."""

    scenario: Scenario
    # The client.
    asked: int = 0
    sent: tuple[str, ...] = ()
    heard: tuple[tuple[int, int | None], ...] = ()  #: answers by their serial, with the file that came
    has_end: bool = False
    closed: bool = False
    late: int | None = None  #: once time has passed: the value that was sent before
    error: str | None = None
    # The kernel.
    waiting: bool = True  #: a connection waits to be accepted
    requests: tuple[int, ...] = ()
    signals: tuple[tuple[str, int], ...] = ()
    answers: tuple[tuple[object, ...], ...] = ()
    files: tuple[int, ...] = ()  #: the status in each file; a pair has none
    table: frozenset[tuple[str, int]] = frozenset()
    # The journal.
    records: tuple[Record | Books, ...] = ()
    torn: bool = False
    compactions: int = 0
    # The broker; None: dead.
    plan: Plan | None = ()
    unsent: Plan = ()  #: the rest of a request's plan, from its answer on, while the client's socket is full
    generation: int = 1


# -- the books


@functools.lru_cache(maxsize=65536)
def fold(records: tuple[Record | Books, ...]) -> Books:
    """What the journal says."""
    if not records:
        return Books()
    books, record = fold(records[:-1]), records[-1]
    if isinstance(record, Books):
        return record
    for event in record.events:
        match event:
            case ("accepting",):
                books = books._replace(connected=1)
            case ("accepted",):
                books = books._replace(connected=2)
            case ("created", int(file)):
                books = books._replace(pair=file)
            case ("exported", int(file), int(point), int(status)):
                books = books._replace(fences=(*books.fences, Fence(file, point, status)))
            case ("advanced", int(value)):
                books = books._replace(value=value)
            case ("signalled", int(file), int(status)):
                twice = any(f.file == file and f.status for f in books.fences)
                fences = tuple(f._replace(status=status) if f.file == file else f for f in books.fences)
                books = books._replace(fences=fences, twice=books.twice or twice)
            case ("released", int(file)):
                fences = tuple(f._replace(released=True) if f.file == file else f for f in books.fences)
                books = books._replace(fences=fences)
            case ("ended",):
                books = books._replace(ended=True)
            case _:
                raise AssertionError(event)
    if record.packet is not None:
        socket = "session" if record.packet[0] == "serial" else "timeline"
        last = {**dict(books.last), socket: (record.packet, record.answer)}
        books = books._replace(last=tuple(sorted(last.items())))
    return books


def known(books: Books) -> frozenset[tuple[str, int]]:
    """The descriptors that the journal knows, when nothing is in hand."""
    found = {("eventfd", f.file) for f in books.fences if not f.released}
    if books.connected == 2:
        found.add(("connection", 0))
    if books.pair is not None and not books.ended:
        found.add(("ours", books.pair))
    return frozenset(found)


# -- plans


def commit(record: Record, bug: str) -> Plan:
    """Put a record into the journal: its bytes, then the length."""
    steps: Plan = (("write", record), ("store length", record))
    return steps[::-1] if bug == "length-before-record" else steps


def signal(fences: tuple[Fence, ...], status: int) -> tuple[tuple[Step, ...], Plan]:
    """Signal active fences: the events, and the acts."""
    active = [f.file for f in fences if f.status == 0]
    return tuple(("signalled", file, status) for file in active), tuple(("signal", file, status) for file in active)


def plan_request(world: World, books: Books, bug: str) -> Plan:
    """One request of the session."""
    serial = world.requests[0]
    packet = ("serial", serial)
    create: Plan = ()
    act: Plan = ()
    close: Plan = ()
    answer: tuple[object, ...] | None = None
    new = len(world.files)
    events: tuple[Step, ...] = ()
    match world.scenario.requests[serial - 1]:
        case ("create",):
            if books.pair is None:
                create, close, events = (("pair", new),), (("close", "theirs", new),), (("created", new),)
                answer = (serial, "theirs", new)
            else:
                answer = (serial, "refused", None)  # the name is in use
        case ("export", int(point)):
            status = OK if point <= books.value else NO_OWNER if books.ended else 0
            create, events = (("eventfd", new),), (("exported", new, point, status),)
            act = (("signal", new, status),) if status else ()
            answer = (serial, "eventfd", new)
        case ("release", int(of)):
            # The client had the answer, so that its last one is in the journal.
            file = next(file for told, file in world.heard if told == of)
            assert file is not None
            events, act = (("released", file),), (("close", "eventfd", file),)
    append = commit(Record(packet, events, answer), bug) if events else ()
    send: Plan = () if answer is None else (("send", answer),)
    consume: Plan = (("consume", "session"),)
    match bug:
        case "answer-before-append":
            return create + act + send + append + consume + close
        case "consume-before-answer":
            return create + append + act + consume + send + close
        case "consume-before-append":
            return create + consume + append + act + send + close
        case "act-before-append" | "close-before-append":
            return create + act + append + send + consume + close
        case "use-before-create":
            return append + create + act + send + consume + close
    return create + append + act + send + consume + close


def plan_signal(world: World, books: Books, bug: str) -> Plan:
    """One packet on the timeline's socket: inc."""
    holder, counter = world.signals[0]
    n = dict_of_signals(world.scenario)[holder, counter]
    value = books.value + n
    signalled, act = signal(tuple(f for f in books.fences if f.point <= value and not f.released), OK)
    packet = ("counter", counter) if bug == "forget-holder" else ("holder", holder, counter)
    append = commit(Record(packet, (("advanced", value), *signalled)), bug)
    consume: Plan = (("consume", "timeline"),)
    match bug:
        case "act-before-append":
            return act + append + consume
        case "consume-before-append" | "consume-before-answer":
            return consume + append + act
    return append + act + consume


def plan_end(books: Books, bug: str) -> Plan:
    """End-of-file on the timeline's socket."""
    assert books.pair is not None
    signalled, act = signal(tuple(f for f in books.fences if not f.released), NO_OWNER)
    append = commit(Record(None, (("ended",), *signalled)), bug)
    close: Plan = (("close", "ours", books.pair),)
    match bug:
        case "act-before-append":
            return act + append + close
        case "close-before-append":
            return close + append + act
    return append + act + close


def plan_expiry(books: Books, bug: str) -> Plan:
    """The time of every active fence has passed."""
    signalled, act = signal(tuple(f for f in books.fences if not f.released), EXPIRED)
    append = commit(Record(None, signalled), bug)
    return act + append if bug == "act-before-append" else append + act


def plan_accept(bug: str) -> Plan:
    """Take the connection that waits."""
    record = commit(Record(None, (("accepting",),)), bug)
    return (*(() if bug == "accept-without-record" else record), ("accept",), *commit(Record(None, (("accepted",),)), bug))


def plan_recovery(world: World, books: Books, bug: str) -> Plan:
    """What the next broker does before anything else."""
    if bug == "no-recovery":
        return ()
    heads = {
        "timeline": (("counter", world.signals[0][1]) if bug == "forget-holder" else ("holder", *world.signals[0]))
        if world.signals
        else None,
        # The last one, for its answer may have to wait until the client has room.
        "session": ("serial", world.requests[0]) if world.requests else None,
    }
    last = {} if bug == "forget-last-serial" else dict(books.last)
    plan: list[Step] = []
    spared = set(known(books))
    adopt: Plan = ()
    if books.connected == 1 and ("connection", 0) in world.table:
        adopt = commit(Record(None, (("accepted",),)), bug)
        spared.add(("connection", 0))
    mine = last.get("session")
    recognised = mine is not None and mine[0] == heads["session"]
    if bug == "keeps-client-ends" or (recognised and mine is not None and mine[1] is not None and mine[1][1] == "theirs"):
        spared |= {d for d in world.table if d[0] == "theirs" and d[1] == books.pair}  # still to be sent
    if bug != "no-reconciliation":
        plan += [("close", *descriptor) for descriptor in sorted(world.table - spared)]
    plan += adopt
    if bug != "no-second-signal":
        plan += [("signal", f.file, f.status) for f in books.fences if f.status and not f.released]
    for socket, head in heads.items():
        if head is None or socket not in last or last[socket][0] != head:
            continue
        answer = last[socket][1]
        if answer is not None:
            plan.append(("send", answer))
        plan.append(("consume", socket))
        if answer is not None and answer[1] == "theirs":
            plan.append(("close", "theirs", answer[2]))
    return tuple(plan)


@functools.cache
def dict_of_signals(scenario: Scenario) -> dict[tuple[str, int], int]:
    """How much each packet adds, by its holder and its counter."""
    found: dict[tuple[str, int], int] = {}
    for holder, n in scenario.signals:
        counter = 1 + sum(who == holder for who, _ in found)
        found[holder, counter] = n
    return found


# -- steps


def carry_out(world: World, step: Step, bug: str) -> World | None:
    """One step of the broker; None if it cannot be taken now."""
    match step:
        case ("pair", int(file)):
            return world._replace(files=(*world.files, 0), table=world.table | {("ours", file), ("theirs", file)})
        case ("eventfd", int(file)):
            return world._replace(files=(*world.files, 0), table=world.table | {("eventfd", file)})
        case ("accept",):
            return world._replace(waiting=False, table=world.table | {("connection", 0)})
        case ("write", record):
            assert isinstance(record, (Record, Books))
            return world._replace(torn=False)
        case ("store length", record):
            assert isinstance(record, Record)
            return world._replace(records=(*world.records, record), torn=bug == "length-before-record")
        case ("signal", int(file), int(status)):
            # The first status that is written stays; a second write is refused by the kernel.
            files = tuple(status if number == file and not old else old for number, old in enumerate(world.files))
            return world._replace(files=files)
        case ("close", str(kind), int(file)):
            return world._replace(table=world.table - {(kind, file)})
        case ("send", answer):
            assert isinstance(answer, tuple)
            if len(world.answers) >= world.scenario.room:
                return None
            return world._replace(answers=(*world.answers, answer))
        case ("consume", "session"):
            return world._replace(requests=world.requests[1:])
        case ("consume", "timeline"):
            return world._replace(signals=world.signals[1:])
        case ("empty journal",):
            return world._replace(records=())
        case ("new journal", books):
            assert isinstance(books, Books)
            return world._replace(records=(books,))
    raise AssertionError(step)


def compacted(books: Books, bug: str) -> Plan:
    """The journal as one record, in a file of its own, which then takes the old one's place."""
    if bug == "forget-serials-in-compaction":
        books = books._replace(last=())
    return (("empty journal",), ("new journal", books)) if bug == "compact-in-place" else (("write", books), ("new journal", books))


def with_everything(world: World, record: Record, bug: str) -> Plan:
    """Where a record does not fit, the journal is written anew with it: of what was journalled last, with what is not done with yet."""
    books = fold((*world.records, record))
    needed = {"session"} if world.unsent else set()
    if record.packet is not None and bug != "forget-packet-of-last-record":
        needed.add("session" if record.packet[0] == "serial" else "timeline")
    books = books._replace(last=tuple((socket, last) for socket, last in books.last if socket in needed))
    return compacted(books, bug)


def broker_steps(world: World, bug: str) -> Iterator[tuple[str, World]]:
    """What the living broker may do."""
    if world.plan:
        step, *rest = world.plan
        match world.plan:
            case (("write", Record() as record), ("store length", _), *after_it) if world.scenario.is_cramped:
                plan = (*with_everything(world, record, bug), *after_it)
                yield "broker: no memory for a record", world._replace(plan=plan)
        after = carry_out(world, step, bug)
        if after is not None:
            yield f"broker: {describe(step)}", after._replace(plan=tuple(rest))
        else:  # the client's socket is full: the rest waits, and nothing more is read from that session
            yield "broker: the answer has to wait", world._replace(plan=(), unsent=world.plan)
        return
    if world.unsent and len(world.answers) < world.scenario.room:
        yield "broker: the answer has room", world._replace(plan=world.unsent, unsent=())
        return
    books = fold(world.records)
    if world.waiting:
        yield "broker: a connection", world._replace(plan=plan_accept(bug))
    if books.connected == 2 and world.requests and not world.unsent:
        yield f"broker: request {world.requests[0]}", world._replace(plan=plan_request(world, books, bug))
    pair = books.pair
    if pair is not None and not books.ended:
        if world.signals:
            yield f"broker: packet {world.signals[0]}", world._replace(plan=plan_signal(world, books, bug))
        elif is_ended(world, pair):
            yield "broker: end-of-file", world._replace(plan=plan_end(books, bug))
    resumes = bug != "forget-expiry" or world.generation == 1
    if world.late is not None and resumes and (not world.signals or bug == "no-sweep-before-expiry"):
        plan = plan_expiry(books, bug)
        if any(f.status == 0 and not f.released for f in books.fences):
            yield "broker: expiry", world._replace(plan=plan)
    if world.scenario.compacts and not world.compactions:
        yield "broker: compacts", world._replace(plan=compacted(books, bug), compactions=1)


def is_ended(world: World, pair: int) -> bool:
    """Nobody has the client's end of the timeline's pair, not even an answer on its way."""
    on_its_way = any(answer[1:] == ("theirs", pair) for answer in world.answers)
    return not world.has_end and not on_its_way and ("theirs", pair) not in world.table


def describe(step: Step) -> str:
    """A step as a line of a trace has it."""
    if isinstance(step[1] if len(step) > 1 else None, Record):
        record = step[1]
        assert isinstance(record, Record)
        return f"{step[0]} {record.packet} {record.events}"
    return " ".join(map(str, step))


def client_steps(world: World) -> Iterator[tuple[str, World]]:
    """What the client may do."""
    scenario = world.scenario
    if world.asked < len(scenario.requests) and len(world.requests) < 2:
        request = scenario.requests[world.asked]
        told = {serial for serial, _ in world.heard}
        # It may ask ahead, but it needs the timeline to export, and a handle to give it back.
        needs = {"create": None, "export": 1, "release": request[-1]}[str(request[0])]
        if needs is None or needs in told:
            serial = world.asked + 1
            yield f"client: request {serial} {request}", world._replace(asked=serial, requests=(*world.requests, serial))
    if world.has_end and len(world.sent) < len(scenario.signals):
        holder, n = scenario.signals[len(world.sent)]
        packet = holder, 1 + world.sent.count(holder)
        yield f"client: {holder} adds {n}", world._replace(sent=(*world.sent, holder), signals=(*world.signals, packet))
    if world.has_end and scenario.closes:
        yield "client: closes the timeline", world._replace(has_end=False, closed=True)
    if world.answers:
        (number, what, file), *others = world.answers
        world = world._replace(answers=tuple(others))
        assert isinstance(number, int)
        serial = number
        if serial in (told for told, _ in world.heard):
            yield f"client: drops answer {serial}", world  # and closes what came with it
        elif what == "refused":
            yield f"client: answer {serial}", world._replace(error=f"request {serial} is refused: it was carried out before")
        else:
            assert isinstance(file, int)
            yield (
                f"client: answer {serial}",
                world._replace(heard=(*world.heard, (serial, file)), has_end=world.has_end or what == "theirs"),
            )


def steps(world: World, bug: str) -> Iterator[tuple[str, World]]:
    """Everything that can happen next."""
    if world.error:
        return
    yield from client_steps(world)
    if world.scenario.expires and world.late is None and any(f.status == 0 for f in fold(world.records).fences):
        yield "time passes", world._replace(late=sent_value(world))
    if world.plan is None:
        world = world._replace(generation=world.generation + 1)
        yield "keeper: the next broker", world._replace(plan=plan_recovery(world, fold(world.records), bug))
        return
    yield from broker_steps(world, bug)
    if world.generation <= world.scenario.kills:
        # What was only in its memory is gone.  A torn record counts from here on: while the broker lived it could still complete it.
        yield "kill", world._replace(plan=None, unsent=())


def sent_value(world: World) -> int:
    """How far the client has raised the timeline."""
    return sum(n for _, n in world.scenario.signals[: len(world.sent)])


# -- what must hold


def wrong(world: World) -> str | None:
    """What is wrong with a state, if anything."""
    if world.error:
        return world.error
    if world.plan is None and world.torn:
        return "the journal ends with a record that is not there"
    books = fold(world.records)
    if books.twice:
        return "a fence signals twice in the journal"
    for fence in books.fences:
        found = early(world, fence, world.files[fence.file] if fence.file < len(world.files) else 0)
        if found:
            return found
    return wrong_at_leisure(world, books) if world.plan == () and not world.unsent else None


def early(world: World, fence: Fence, status: int) -> str | None:
    """A status that nobody gave cause for yet."""
    if status == OK and fence.point > sent_value(world):
        return f"fence {fence.point} is signalled early: the client is at {sent_value(world)}"
    if status == NO_OWNER and not world.closed:
        return f"fence {fence.point} fails although its timeline lives"
    if status == EXPIRED and world.late is None:
        return f"fence {fence.point} expires before its time"
    return None


def wrong_at_leisure(world: World, books: Books) -> str | None:
    """What is wrong when the broker has nothing in hand."""
    for descriptor in sorted(world.table ^ known(books)):
        where = "is open and unknown" if descriptor in world.table else "is known and not open"
        if descriptor[0] == "connection" and descriptor not in world.table and not world.waiting:
            return "the session ended by itself"
        return f"descriptor {descriptor} {where}"
    for fence in books.fences:
        if not fence.released and world.files[fence.file] != fence.status:
            return f"fence {fence.point} has status {world.files[fence.file]} in its descriptor and {fence.status} in the journal"
    return None


def wrong_at_rest(world: World) -> str | None:
    """What is wrong when nothing more can happen."""
    told = {serial for serial, _ in world.heard}
    for serial, request in enumerate(world.scenario.requests, 1):
        if request[0] != "release" and serial not in told:
            return f"request {serial} is never answered" if serial <= world.asked else f"request {serial} is never sent"
    if world.requests or world.signals:
        return "a packet is never taken"
    books = fold(world.records)
    if books.value != sent_value(world):
        return f"the timeline is at {books.value}, and its client sent {sent_value(world)}"
    n_asked = sum(request[0] == "export" for request in world.scenario.requests)
    if len(books.fences) != n_asked:
        return f"the client asked for {n_asked} sync_files and is charged for {len(books.fences)}"
    for serial, file in world.heard:
        request = world.scenario.requests[serial - 1]
        if request[0] != "export" or ("release", serial) in world.scenario.requests:
            continue
        assert file is not None
        assert isinstance(request[1], int)
        found = lost(world, request[1], world.files[file])
        if found:
            return found
    return None


def lost(world: World, point: int, status: int) -> str | None:
    """A descriptor in the client's hands that does not have the status that is due."""
    due: set[int]
    if world.late is None:
        due = {OK} if point <= sent_value(world) else {NO_OWNER} if world.closed else {0}
    elif point <= world.late:
        due = {OK}
    else:  # it may have been signalled after its time, but before the broker saw that
        due = {EXPIRED, OK} if point <= sent_value(world) else {EXPIRED}
    return None if status in due else f"fence {point} is left with status {status}"


def model(scenario: Scenario, bug: str = "") -> Model[World]:
    """The model of one scenario, with the right order of steps or with a bug in it."""
    return Model([World(scenario)], lambda world: steps(world, bug), wrong, wrong_at_rest)
