"""Rings as the core sees them: who gets one, whose entries come before which request, and when a producer must ring."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fencebroker import ring, wire
from fencebroker.errors import Refusal
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from tests.core.world import ALICE, BOB, Client, Line, MakeWorld, World, limits

ADVANCE, INC, FAIL, CLOSE = ring.ADVANCE, ring.INC, ring.FAIL, ring.CLOSE


@pytest.fixture
def alice(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def line(alice: Client) -> Line:
    """A timeline with a ring."""
    made = alice.create("camera0", mode=0o666)
    alice.ring(made)
    return made


# Who gets one


def test_a_ring_is_made_and_goes_with_the_answer(world: World, alice: Client) -> None:
    line = alice.create()
    assert alice.ask(wire.RING, line.context, 5) == [ring.RING_BYTES]
    assert world.sent[-1].ring == line.socket
    assert world.rings == {line.socket}
    world.check()


def test_it_is_charged_and_given_back(world: World, alice: Client, line: Line) -> None:
    account = world.state.account(ALICE)
    assert account.rings == 1
    before = world.state.n_descriptors
    world.close(line)
    assert account.rings == 0
    assert world.state.n_descriptors == before - 3, "socket, ring, and the pidfd of a producer that has no other timeline"
    assert not world.rings
    world.check()


@pytest.mark.parametrize("case", ["twice", "unknown", "another session's", "opened by another"])
def test_it_is_refused(world: World, alice: Client, line: Line, case: str) -> None:
    other, context, error = alice, line.context, errno.EBUSY
    if case == "unknown":
        context, error = 99, errno.EBADF
    elif case == "another session's":
        other = world.connect(ALICE)
        line = alice.create()
        other.show(line)
        context = line.context
    elif case == "opened by another":
        line = alice.create("camera1", mode=0o666)
        world.connect(BOB).open(f"{ALICE}/camera1")
        context = line.context
    with pytest.raises(Refusal) as caught:
        other.ask(wire.RING, context, 5)
    assert caught.value.error == error
    world.check()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EMFILE, errno.ENOMEM])
def test_a_ring_that_could_not_be_made(world: World, alice: Client, error: int) -> None:
    line = alice.create()
    world.refuse_rings = error
    with pytest.raises(Refusal) as caught:
        alice.ring(line)
    assert caught.value.error == error
    world.check()
    world.advance(line, 3)
    assert world.state.timelines[line.context].value == 3


def test_a_ring_that_could_not_be_sent(world: World, alice: Client) -> None:
    line = alice.create()
    world.refuse_sends = errno.ETOOMANYREFS
    with pytest.raises(Refusal):
        alice.ring(line)
    world.check()
    alice.ring(line)
    world.check()


def test_a_ring_counts_as_a_descriptor(make_world: MakeWorld) -> None:
    world = make_world(limits(descriptors=70, descriptor_reserve=64, sync_files_share=1.0))
    alice = world.connect(ALICE)
    line = alice.create()
    alice.ring(line)
    more = alice.create()
    alice.export_many(more, [1])
    with pytest.raises(Refusal) as caught:
        alice.ring(more)
    assert caught.value.error in (errno.EMFILE, errno.EDQUOT)
    world.check()


# What was committed


def test_entries_are_decided_at_their_own_times(world: World, alice: Client, line: Line) -> None:
    handles = alice.export_many(line, [1, 2, 3, 4])
    before = world.now
    world.drain(line, (ADVANCE, 1, 0), (INC, 1, 0), (FAIL, 3, errno.EIO))
    assert [world.fence(handle).status for handle in handles] == [1, 1, -errno.EIO, 0]
    assert [world.fence(handle).timestamp for handle in handles] == [before + 1, before + 2, before + 3, 0]
    assert world.written == [(handles[0], 1), (handles[1], 1), (handles[2], -errno.EIO)]
    known = world.state.timelines[line.context].ring
    assert known is not None
    assert known.taken == 3
    world.check()


def test_signals_in_a_row_are_one_effect(world: World, alice: Client, line: Line) -> None:
    """Each costs a timer."""
    alice.export_many(line, range(1, 7))
    entries = [ring.Entry(n, *what, 50) for n, what in enumerate([(ADVANCE, n, 0) for n in (1, 2, 3)] + [(FAIL, 4, 5), (ADVANCE, 6, 0)], 1)]
    effects = world.broker.drain(line.socket, entries, world.tick())
    assert [(len(effect.handles), effect.status) for effect in effects if isinstance(effect, fx.Signal)] == [(3, 1), (1, -5), (2, 1)]
    world.run(effects)
    world.check()


def test_close_ends_the_ring_and_not_the_timeline(world: World, alice: Client, line: Line) -> None:
    handle = alice.export(line, 2)
    world.drain(line, (ADVANCE, 1, 0), (CLOSE, 0, 0))
    assert not world.rings
    world.advance(line, 2)
    assert world.fence(handle).status == 1
    world.check()
    alice.ring(line)  # in the same hands again
    world.check()


def test_a_drained_ring_is_on_record(world: World, line: Line) -> None:
    world.drain(line, (ADVANCE, 1, 0))
    world.drain(line, (ADVANCE, 2, 0), (ADVANCE, 3, 0))
    assert [event.serial for event in world.events if isinstance(event, e.RingDrained)] == [1, 3]


# Which rings come before a request


@pytest.fixture
def two(world: World, alice: Client, line: Line) -> tuple[Line, Line]:
    second = alice.create("camera1")
    alice.ring(second)
    return line, second


def test_a_request_for_a_context_concerns_that_one(alice: Client, two: tuple[Line, Line]) -> None:
    line, second = two
    assert alice.concerned(wire.EXPORT, line.context, [1], "", False) == {line.socket}
    assert alice.concerned(wire.HISTORY, second.context) == {second.socket}
    assert alice.concerned(wire.EXPORT, 99, [1], "", False) == set()


def test_a_request_for_fences_concerns_what_they_wait_for(world: World, alice: Client, two: tuple[Line, Line]) -> None:
    line, second = two
    a, b = alice.export(line, 1), alice.export(second, 1)
    other = alice.export(alice.create(), 1)
    merged = alice.merge(b, other)
    nested = alice.merge(merged, other, any=True)
    for handle, sockets in ((a, {line.socket}), (b, {second.socket}), (other, set()), (merged, {second.socket}), (nested, {second.socket})):
        assert alice.concerned(wire.INFO, handle, 0) == sockets
        assert alice.concerned(wire.IMPORT, "", handle) == sockets
        assert alice.concerned(wire.IMPORT, "", None, references=[world.reference(handle)]) == sockets
        assert alice.concerned(wire.RELEASE, [], [handle]) == sockets
        assert alice.concerned(wire.WAIT_START, handle) == sockets
        assert alice.concerned(wire.SET_DEADLINE, handle, 5) == sockets
    assert alice.concerned(wire.MERGE, [a, None], "", False, references=[world.reference(b)]) == {line.socket, second.socket}
    world.drain(second, (ADVANCE, 1, 0))
    assert alice.concerned(wire.INFO, b, 0) == set(), "what has signalled stays so"


def test_a_request_by_name_concerns_that_timeline(alice: Client, two: tuple[Line, Line]) -> None:
    line, _ = two
    assert alice.concerned(wire.SYNC_FILE, "camera0@7", None) == {line.socket}
    for text in ("camera9@7", "camera0", "", "x/camera0@7"):
        assert alice.concerned(wire.SYNC_FILE, text, None) == set()


@pytest.mark.parametrize(
    ("op", "arguments"),
    [(wire.LIST, ["fences", 0]), (wire.LOOKUP, ["camera0"]), (wire.STATUS, []), (wire.SUBSCRIBE, []), (wire.OPEN_TIMELINE, ["camera0"])],
)
def test_a_question_for_anything_concerns_all(alice: Client, two: tuple[Line, Line], op: int, arguments: list[Any]) -> None:
    assert alice.concerned(op, *arguments) == {line.socket for line in two}


def test_every_request_is_sorted(world: World, alice: Client, two: tuple[Line, Line]) -> None:
    """A request that reads fences and is forgotten here would be answered from the past."""
    silent = {wire.HELLO, wire.CREATE_TIMELINE, wire.WAIT_END}
    known = {wire.EXPORT, wire.RING, wire.FORGET_TIMELINE, wire.HISTORY, wire.SYNC_FILE}
    by_handle = {wire.INFO, wire.SET_DEADLINE, wire.WAIT_START, wire.IMPORT, wire.MERGE, wire.RELEASE, wire.RECLAIM}
    of_all = {op for op in wire.REQUESTS.keys() - silent - known - by_handle if alice.concerned(op) == {line.socket for line in two}}
    assert silent | known | by_handle | of_all == wire.REQUESTS.keys()


def test_an_expiry_concerns_what_is_due(world: World, alice: Client) -> None:
    early, late = alice.create("a", expiry=100), alice.create("b", expiry=500)
    for line in (early, late):
        alice.ring(line)
        alice.export(line, 1)
    waits = alice.create("c")
    alice.ring(waits)
    alice.sync_file("c@1", 200)
    assert world.broker.expiring(world.now + 50) == set()
    assert world.broker.expiring(world.now + 150) == {early.socket}
    assert world.broker.expiring(world.now + 300) == {early.socket, waits.socket}
    assert world.broker.expiring(world.now + 900) == {early.socket, waits.socket, late.socket}


# When to ring


def test_nobody_is_awaited_but_through_the_broker(world: World, alice: Client, line: Line) -> None:
    assert world.arms() == {line.socket: 0}
    alice.export_many(line, range(1, 9))
    assert world.arms() == {}


def test_the_lowest_awaited_is_told(world: World, alice: Client, line: Line) -> None:
    handles = alice.export_many(line, range(1, 20))
    world.arms()
    alice.import_(handles[9])
    assert world.arms() == {line.socket: 10}
    alice.merge(handles[4], alice.export(alice.create(), 1))
    assert world.arms() == {line.socket: 5}
    alice.import_(handles[14])
    assert world.arms() == {line.socket: 5}
    alice.sync_file("camera0@3")
    alice.export(line, 2, private=True)
    assert world.arms() == {line.socket: 2}
    for value, lowest in ((1, 2), (3, 5), (9, 10), (12, 15), (15, 0)):
        world.drain(line, (ADVANCE, value, 0))
        assert world.arms() == {line.socket: lowest}
    world.check()


def test_what_waited_before_there_was_a_ring_is_awaited(world: World, alice: Client) -> None:
    alice.sync_file("early@4")
    line = alice.create("early")
    alice.sync_file("early@9")
    alice.ring(line)
    assert world.arms() == {line.socket: 4}


def test_a_fence_that_is_gone_is_not_awaited(world: World, alice: Client, line: Line) -> None:
    private = alice.import_(alice.export(line, 5))
    assert world.arms() == {line.socket: 5}
    world.run(world.broker.poison(list(world.state.sync_files), world.tick()))
    del private
    world.drain(line, (ADVANCE, 1, 0))
    assert world.arms() == {line.socket: 0}


def test_who_follows_the_events_waits_for_everything(world: World, alice: Client, line: Line) -> None:
    alice.ask(wire.SUBSCRIBE)
    assert world.arms() == {line.socket: 1}
    second = alice.create()
    alice.ring(second)
    assert world.arms() == {second.socket: 1}
    alice.disconnect()
    assert world.arms() == {line.socket: 0, second.socket: 0}


# Others


def test_a_second_signaller_freezes_the_ring_first(world: World, alice: Client, line: Line) -> None:
    bob = world.connect(BOB)
    second = bob.open(f"{ALICE}/camera0")
    assert world.frozen == [line.socket]
    known = world.state.timelines[line.context].ring
    assert known is not None
    assert known.frozen
    third = bob.open(f"{ALICE}/camera0")
    assert world.frozen == [line.socket], "once"
    for other in (second, third):
        world.close(other)
    world.check()


def test_a_refused_opening_freezes_nothing(world: World, alice: Client) -> None:
    line = alice.create("mine")
    alice.ring(line)
    with pytest.raises(Refusal):
        world.connect(BOB).open(f"{ALICE}/mine")
    assert not world.frozen


def test_a_stranger_on_the_socket_freezes_the_ring(world: World, alice: Client, line: Line) -> None:
    world.run(world.broker.let_in(line.socket, world.tick()))
    assert world.frozen == [line.socket]


def test_entries_of_a_frozen_ring_count(world: World, alice: Client, line: Line) -> None:
    """What was committed while it froze; an advance below what the other has done does nothing."""
    handle = alice.export(line, 5)
    second = world.connect(BOB).open(f"{ALICE}/camera0")
    world.advance(second, 3)
    world.drain(line, (ADVANCE, 2, 0))
    assert world.state.timelines[line.context].value == 3
    world.drain(line, (INC, 2, 0))
    assert world.fence(handle).status == 1
    world.check()


def test_a_look_just_before_the_signal_is_no_tampering(world: World, alice: Client, line: Line) -> None:
    """The shell looks at what a descriptor carries, then drains the ring."""
    handle = alice.export(line, 1)
    seen = world.reference(handle)
    world.drain(line, (ADVANCE, 1, 0))
    assert not alice.info(seen).tampered
    assert alice.info(fx.KnownFence(handle, -errno.EIO)).tampered
