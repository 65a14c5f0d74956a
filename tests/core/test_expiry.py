"""Expiry, a promise: an active fence fails with ETIME when it passes.  Deadlines, a hint: they change nothing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fencebroker import wire
from fencebroker.model import U64_MAX
from fencebrokerd.core import effects as fx
from tests.core.world import ALICE, BOB, World

if TYPE_CHECKING:
    from tests.core.world import Client


@pytest.fixture
def client(world: World) -> Client:
    return world.connect(ALICE)


def test_active_points_fail_when_it_passes_and_not_before(world: World, client: Client) -> None:
    line = client.create(expiry=1_000)
    first = client.export(line, 1)
    expires = world.fence(first).expires
    assert expires == world.now + 1_000
    world.tick(300)
    second = client.export(line, 2)
    assert world.broker.wake_at == expires
    world.run(world.broker.expire(expires - 1))
    assert world.eventfds[first] == 0
    world.pass_time(expires)
    assert (world.eventfds[first], world.eventfds[second]) == (-errno.ETIME, 0)
    assert world.fence(first).timestamp == expires
    world.pass_time(expires + 5_000)
    assert world.eventfds[second] == -errno.ETIME
    assert world.broker.wake_at is None


def test_it_moves_neither_the_value_nor_other_points(world: World, client: Client) -> None:
    line = client.create(expiry=1_000)
    handle = client.export(line, 1)
    world.pass_time(world.now + 2_000)
    assert world.state.timelines[line.context].value == 0
    later = client.export(line, 2)
    world.advance(line, 2)
    assert (world.eventfds[handle], world.eventfds[later]) == (-errno.ETIME, 1)


def test_what_signalled_in_time_wakes_nobody(world: World, client: Client) -> None:
    line = client.create(expiry=1_000)
    for seqno in range(1, 500):
        client.release(client.export(line, seqno), exposed=True)
        world.advance(line, seqno)
    assert world.broker.wake_at is None
    assert len(world.state.expiries) <= 2 * len(world.state.fences) + 64


def test_one_of_its_own_for_a_sync_file_by_name(world: World, client: Client) -> None:
    line = client.create("camera0")
    guarded, plain = client.sync_file("camera0@1", expiry=100), client.sync_file("camera0@1")
    world.pass_time(world.now + 200)
    assert (world.eventfds[guarded], world.eventfds[plain]) == (-errno.ETIME, 0)
    world.advance(line, 1)
    assert (world.eventfds[guarded], world.eventfds[plain]) == (-errno.ETIME, 1)


def test_signalled_in_time_it_has_the_points_status(world: World, client: Client) -> None:
    line = client.create("camera0")
    good, bad = client.sync_file("camera0@1", expiry=100), client.sync_file("camera0@2", expiry=100)
    world.fail(line, 2, errno.EIO)
    assert (world.eventfds[good], world.eventfds[bad]) == (1, -errno.EIO)
    assert world.broker.wake_at is None


def test_the_sooner_of_both_counts(world: World, client: Client) -> None:
    client.create("camera0", expiry=50)
    handle = client.sync_file("camera0@1", expiry=100)
    world.pass_time(world.now + 60)
    assert world.eventfds[handle] == -errno.ETIME


def test_a_placeholder_expires_and_leaves_nothing(world: World, client: Client) -> None:
    handle = client.sync_file("nobody@1", expiry=100)
    world.pass_time(world.now + 200)
    assert world.eventfds[handle] == -errno.ETIME
    assert not world.state.placeholders, "nobody waits for that name any more"


def test_a_bound_placeholder_gets_the_timelines_expiry_too(world: World, client: Client) -> None:
    handle = client.sync_file("camera0@1")
    client.create("camera0", expiry=100)
    world.pass_time(world.now + 200)
    assert world.eventfds[handle] == -errno.ETIME


def test_what_an_expired_array_waited_for_is_let_go(world: World, client: Client) -> None:
    line = client.create("camera0")
    handle = client.sync_file("camera0@1", expiry=100)
    assert world.state.timelines[line.context].n_active == 1
    world.pass_time(world.now + 200)
    assert world.eventfds[handle] == -errno.ETIME
    assert world.state.timelines[line.context].n_active == 0


def test_a_merge_fails_with_its_expired_member(world: World, client: Client) -> None:
    slow, quick = client.create(expiry=100), client.create()
    merged = client.merge(client.export(slow, 1), client.export(quick, 1))
    world.pass_time(world.now + 200)
    assert world.eventfds[merged] == 0
    world.advance(quick, 1)
    assert world.eventfds[merged] == -errno.ETIME


@pytest.mark.parametrize("expiry", [1, 10**18, U64_MAX - 5_000, U64_MAX])
def test_the_longest_expiry_still_fits_the_wire(world: World, client: Client, expiry: int) -> None:
    line = client.create("camera0", expiry=expiry)
    for handle in (client.export(line, 1), client.sync_file("camera0@2", expiry=expiry)):
        info = client.info(handle)
        assert info.expires is not None
        assert info.expires <= U64_MAX


def test_it_is_readable(world: World, client: Client) -> None:
    line = client.create("camera0", expiry=500)
    handle = client.export(line, 1)
    expires = world.fence(handle).expires
    assert client.info(handle).expires == expires
    assert client.lookup("camera0").expiry_ns == 500  # type: ignore[union-attr]
    assert client.lookup("camera0@1").expires_ns == expires  # type: ignore[union-attr]


# -- deadlines


def test_the_soonest_deadline_stands(world: World, client: Client) -> None:
    line = client.create()
    handle = client.export(line, 1)
    assert client.info(handle).deadline is None
    for wanted, stands in ((500, 500), (900, 500), (300, 300), (0, 0), (U64_MAX, 0)):
        client.set_deadline(handle, wanted)
        assert client.info(handle).deadline == stands
    assert world.eventfds[handle] == 0, "a hint never changes the outcome"
    world.advance(line, 1)
    assert world.eventfds[handle] == 1


def test_a_consumers_deadline_is_seen_by_the_producer(world: World, client: Client) -> None:
    line = client.create()
    handle = client.export(line, 1)
    consumer = world.connect(BOB)
    consumer.set_deadline(world.reference(handle), 700)
    assert client.info(handle).deadline == 700
    assert client.info(handle).fences[0][8] == 700


def test_it_reaches_every_member_at_any_depth(world: World, client: Client) -> None:
    lines = [client.create() for _ in range(4)]
    points = [client.export(line, 1) for line in lines]
    client.set_deadline(points[0], 100)
    world.advance(lines[3], 1)
    nested = client.merge(client.merge(points[0], points[1], any=True), points[2])
    client.set_deadline(client.merge(nested, points[3]), 400)
    assert [client.info(point).deadline for point in points] == [100, 400, 400, None]
    client.set_deadline(nested, 300)
    assert [client.info(point).deadline for point in points] == [100, 300, 300, None]


def test_after_the_signal_it_is_passed_over(world: World, client: Client) -> None:
    line = client.create()
    handle = client.export(line, 1)
    world.advance(line, 1)
    before = len(world.events)
    client.set_deadline(handle, 1)
    client.set_deadline(fx.DetachedFence(1), 1)
    assert client.ask(wire.SET_DEADLINE, None, 1, references=[fx.DetachedFence(-5)]) == []
    assert len(world.events) == before


def test_a_placeholder_takes_it_along_when_it_is_bound(world: World, client: Client) -> None:
    handle = client.sync_file("camera0@1")
    client.set_deadline(handle, 900)
    line = client.create("camera0")
    assert client.info(handle).deadline == 900
    exported = client.export(line, 1)
    assert client.info(exported).deadline == 900
    client.set_deadline(exported, 800)
    assert client.info(handle).deadline == 800


def test_of_two_placeholders_for_one_point_the_sooner_deadline_stands(world: World, client: Client) -> None:
    other = world.connect(BOB)
    mine, theirs = client.sync_file("camera0@1"), other.sync_file(f"{ALICE}/camera0@1")
    client.set_deadline(mine, 900)
    other.set_deadline(theirs, 300)
    client.create("camera0", mode=0o644)
    assert world.fence(mine) is world.fence(theirs)
    assert client.info(mine).deadline == 300
