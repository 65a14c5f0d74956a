"""Timelines: a u64 that only grows, and what its producer can do to the fences on it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.model import U64_MAX
from fencebrokerd.core import effects as fx
from tests.core.world import ALICE, BOB, World, active, limits

if TYPE_CHECKING:
    from tests.core.world import Client, Line, MakeWorld


@pytest.fixture
def producer(world: World) -> Client:
    return world.connect(ALICE, comm="capture.py")


@pytest.fixture
def line(producer: Client) -> Line:
    return producer.create("camera0")


def test_it_starts_at_zero_and_a_point_above_is_active(world: World, producer: Client, line: Line) -> None:
    handle = producer.export(line, 1)
    info = producer.info(handle)
    assert (info.status, info.timestamp, info.context, info.seqno) == (0, 0, line.context, 1)


def test_advance_signals_what_it_reaches_and_nothing_more(world: World, producer: Client, line: Line) -> None:
    handles = producer.export_many(line, [1, 2, 3, 4])
    world.advance(line, 3)
    assert [world.eventfds[handle] for handle in handles] == [1, 1, 1, 0]
    assert [handle for handle, _ in world.written] == handles[:3], "the lowest seqno is written first"
    assert world.fence(handles[0]).timestamp == world.now


def test_a_smaller_or_equal_advance_does_nothing(world: World, producer: Client, line: Line) -> None:
    world.advance(line, 5)
    before = len(world.events)
    world.advance(line, 5)
    world.advance(line, 0)
    assert len(world.events) == before
    assert world.state.timelines[line.context].value == 5


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, U64_MAX - 1, U64_MAX])
def test_no_value_is_special(world: World, producer: Client, line: Line, value: int) -> None:
    """A 32-bit timeline takes a point far ahead for one in the past; this one compares plainly."""
    below, at = producer.export(line, max(value - 1, 0)), producer.export(line, value)
    assert world.eventfds[at] == (0 if value else 1)
    if value > 1:
        world.advance(line, value - 1)
        assert (world.eventfds[below], world.eventfds[at]) == (1, 0)
    world.advance(line, value)
    assert (world.eventfds[below], world.eventfds[at]) == (1, 1)


def test_inc_adds_and_stops_at_the_end(world: World, producer: Client, line: Line) -> None:
    last = producer.export(line, U64_MAX)
    world.signal(line, wire.INC, 0)
    world.signal(line, wire.INC, 3)
    world.signal(line, wire.INC, 4)
    assert world.state.timelines[line.context].value == 7
    world.signal(line, wire.INC, U64_MAX)
    assert world.state.timelines[line.context].value == U64_MAX
    assert world.eventfds[last] == 1
    with pytest.raises(Refusal, match=r"2\*\*64-1") as refused:
        producer.export(line)
    assert refused.value.error == errno.EINVAL


def test_fail_means_below_is_ok_and_the_point_has_the_error(world: World, producer: Client, line: Line) -> None:
    handles = producer.export_many(line, [1, 2, 3])
    world.fail(line, 2, errno.EIO)
    assert [world.eventfds[handle] for handle in handles] == [1, -errno.EIO, 0]
    assert world.state.timelines[line.context].value == 2


def test_a_later_export_of_a_failed_point_has_its_error_and_its_time(world: World, producer: Client, line: Line) -> None:
    world.fail(line, 2, errno.EIO)
    failed_at = world.now
    world.tick(100)
    handle = producer.export(line, 2)
    assert (world.eventfds[handle], world.fence(handle).timestamp) == (-errno.EIO, failed_at)
    assert world.eventfds[producer.export(line, 1)] == 1
    world.advance(line, 10)
    producer.release(handle)
    assert world.eventfds[producer.export(line, 2)] == -errno.EIO, "a later advance does not heal it"


def test_fail_at_or_below_the_value_does_nothing(world: World, producer: Client, line: Line) -> None:
    world.advance(line, 5)
    handle = producer.export(line, 5)
    before = len(world.events)
    world.fail(line, 5, errno.EIO)
    world.fail(line, 1, errno.EIO)
    assert len(world.events) == before
    assert world.eventfds[handle] == 1


def test_only_the_newest_failures_are_remembered(make_world: MakeWorld) -> None:
    world = make_world(limits(remembered_failures=3, retained_records=1))
    producer = world.connect()
    line = producer.create()
    for seqno in range(1, 6):
        world.fail(line, seqno, errno.EIO)
    assert [world.eventfds[producer.export(line, seqno)] for seqno in range(1, 6)] == [1, 1, -errno.EIO, -errno.EIO, -errno.EIO]


def test_one_point_can_be_signalled_by_itself(world: World, producer: Client, line: Line) -> None:
    """What dma_fence_signal() does: the value stays, the other points stay, the first signal counts."""
    handles = producer.export_many(line, [1, 2, 3])
    world.signal(line, wire.SIGNAL, 2, errno.EIO)
    world.signal(line, wire.SIGNAL, 2, 0)
    world.signal(line, wire.SIGNAL, 3, 0)
    world.signal(line, wire.SIGNAL, 99, 0)
    assert [world.eventfds[handle] for handle in handles] == [0, -errno.EIO, 1]
    assert world.state.timelines[line.context].value == 0
    world.advance(line, 3)
    assert [world.eventfds[handle] for handle in handles] == [1, -errno.EIO, 1]


def test_cancel_fails_what_is_active_and_nothing_else(world: World, producer: Client, line: Line) -> None:
    handles = producer.export_many(line, [1, 2, 3])
    world.advance(line, 1)
    world.signal(line, wire.CANCEL, errno.ECANCELED)
    assert [world.eventfds[handle] for handle in handles] == [1, -errno.ECANCELED, -errno.ECANCELED]
    assert world.state.timelines[line.context].value == 1


def test_the_last_close_ends_it_with_enoent(world: World, producer: Client, line: Line) -> None:
    done, pending = producer.export_many(line, [1, 2])
    world.advance(line, 1)
    world.close(line)
    assert (world.eventfds[done], world.eventfds[pending]) == (1, -errno.ENOENT)
    assert line.context not in world.state.timelines
    with pytest.raises(Refusal) as refused:
        producer.export(line, 3)
    assert refused.value.error == errno.EBADF


def test_it_lives_while_one_of_its_sockets_does(world: World, producer: Client, line: Line) -> None:
    second = producer.open("camera0")
    assert (second.context, second.socket) != (line.context, line.socket)
    handle = producer.export(line, 1)
    world.close(line)
    assert world.eventfds[handle] == 0
    world.signal(second, wire.ADVANCE, 1)
    assert world.eventfds[handle] == 1
    world.close(second)
    assert not world.state.timelines


def test_nonsense_on_one_socket_fails_it_with_eproto_for_all(world: World, producer: Client, line: Line) -> None:
    second = producer.open("camera0")
    handle = producer.export(line, 1)
    other = producer.create("camera1")
    untouched = producer.export(other, 1)
    world.run(world.broker.break_timeline(second.socket, world.tick()))
    assert (world.eventfds[handle], world.eventfds[untouched]) == (-errno.EPROTO, 0)
    assert line.context not in world.state.timelines
    assert world.sockets == {other.socket}


def test_contexts_are_never_used_again(world: World, producer: Client) -> None:
    seen = []
    for _ in range(5):
        line = producer.create("again")
        merged = producer.merge(producer.export(line, 1), producer.sync_file("nobody@1"))
        seen += [line.context, world.fence(merged).context]
        world.close(line)
    assert len(set(seen)) == len(seen)
    assert 0 not in seen, "context 0 is the stub's"


def test_a_second_signaller_cannot_lower_it(world: World, producer: Client, line: Line) -> None:
    second = producer.open("camera0")
    world.advance(line, 8)
    world.signal(second, wire.ADVANCE, 3)
    world.fail(second, 4, errno.EIO)
    assert world.state.timelines[line.context].value == 8


def test_the_next_seqno_follows_exports_and_the_value(world: World, producer: Client, line: Line) -> None:
    def next_seqno() -> int:
        seqno: int = producer.ask(wire.EXPORT, line.context, None, "", False)[1]
        return seqno

    assert [next_seqno(), next_seqno()] == [1, 2]
    producer.export(line, 10)
    assert next_seqno() == 11
    world.advance(line, 20)
    assert next_seqno() == 21
    producer.export(line, 3)
    assert next_seqno() == 22


def test_waiters_do_not_move_the_next_seqno(world: World, producer: Client) -> None:
    early = world.connect(BOB)
    early.sync_file(f"{ALICE}/open@500")
    line = producer.create("open", mode=0o644)
    early.sync_file(f"{ALICE}/open@1000")
    assert producer.ask(wire.EXPORT, line.context, None, "", False)[1] == 1


def test_an_export_is_all_or_nothing_in_order(world: World, producer: Client, line: Line) -> None:
    world.advance(line, 2)
    handles = producer.export_many(line, [5, 1, 5, 3, 2])
    assert [world.eventfds[handle] for handle in handles] == [0, 1, 0, 0, 1]
    assert world.sent[-1].handles == range(handles[0], handles[-1] + 1)
    assert world.fence(handles[0]) is world.fence(handles[2])


def test_who_is_shown_the_descriptor_may_mint(world: World, producer: Client, line: Line) -> None:
    other = world.connect(BOB)
    with pytest.raises(Refusal) as refused:
        other.export(line, 1)
    assert refused.value.error == errno.EBADF
    assert other.show(line) == [line.context, 0, "camera0"]
    handle = other.export(line, 1)
    other.ask(wire.FORGET_TIMELINE, line.context)
    with pytest.raises(Refusal):
        other.export(line, 2)
    world.advance(line, 1)
    assert world.eventfds[handle] == 1


@pytest.mark.parametrize(
    "reference", [fx.Foreign("a pipe"), fx.DetachedFence(1), fx.KnownTimeline(99)], ids=["foreign", "a sync_file", "an old one"]
)
def test_what_is_no_timeline_is_refused_by_what_it_is(world: World, producer: Client, reference: fx.Reference) -> None:
    with pytest.raises(Refusal, match=r"fd must be a timeline's descriptor of this broker, not a ") as refused:
        producer.ask(wire.SHOW_TIMELINE, references=[reference])
    assert refused.value.error == errno.EINVAL


def test_a_session_that_ends_leaves_its_timelines_and_fences_to_others(world: World, producer: Client, line: Line) -> None:
    handle = producer.export(line, 1)
    producer.disconnect()
    assert active(world) == 1
    world.advance(line, 1)
    assert world.eventfds[handle] == 1


def test_the_driver_name_is_kept_and_checked(world: World, producer: Client) -> None:
    line = producer.create(driver="vgem")
    assert producer.info(producer.export(line, 1)).fences[0][1] == "vgem"
    with pytest.raises(Refusal, match="driver must not be empty"):
        producer.create(driver="")


@pytest.mark.parametrize("name", ["", "a@b", "a/b", "line\nbreak", "\x1b[31m"])
def test_an_odd_name_is_refused_and_changes_nothing(world: World, producer: Client, name: str) -> None:
    with pytest.raises(Refusal, match="name must ") as refused:
        producer.create(name)
    assert refused.value.error == errno.EINVAL
    assert not world.state.timelines
    assert not world.sockets


def test_a_name_in_use_names_its_holder_also_when_that_is_oneself(world: World, producer: Client, line: Line) -> None:
    with pytest.raises(Refusal, match=r"in use by pid 4242 \(capture\.py\)") as refused:
        producer.create("camera0")
    assert (refused.value.error, refused.value.detail) == (errno.EEXIST, (4242, "capture.py"))
    world.connect(BOB).create("camera0")  # another user's names are their own
    world.close(line)
    producer.create("camera0")


def test_the_kernel_refusing_a_socket_leaves_nothing(world: World, producer: Client) -> None:
    waiting = producer.sync_file("camera9@1")
    at_once = producer.sync_file("camera9@0")
    world.refuse_sockets = errno.EMFILE
    with pytest.raises(Refusal, match="the kernel refused another descriptor for timelines") as refused:
        producer.create("camera9")
    assert (refused.value.error, refused.value.detail[0]) == (errno.EMFILE, "descriptors of the broker (timelines)")
    world.refuse_sockets = 0
    assert (world.eventfds[waiting], world.eventfds[at_once]) == (0, 0), "who waits for the name still waits"
    assert not world.state.timelines
    producer.create("camera9")
    assert (world.eventfds[waiting], world.eventfds[at_once]) == (0, 1)


def test_a_descriptor_that_could_not_be_sent_takes_its_timeline_with_it(world: World, producer: Client) -> None:
    world.refuse_sends = errno.ETOOMANYREFS
    with pytest.raises(Refusal) as refused:
        producer.create("camera9")
    assert refused.value.error == errno.ETOOMANYREFS
    assert not world.state.timelines
    producer.create("camera9")


def test_a_dead_creator_is_known(world: World, producer: Client, line: Line) -> None:
    row = producer.lookup("camera0")
    assert row.creator_alive is True  # type: ignore[union-attr]
    world.broker.creator_died(producer.session, world.tick())
    world._collect()
    assert producer.lookup("camera0").creator_alive is False  # type: ignore[union-attr]
