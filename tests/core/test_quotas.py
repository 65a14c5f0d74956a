"""Quotas: exact numbers, errors that name quota, limit and usage, and a refusal that changes nothing."""

from __future__ import annotations

import errno
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from fencebroker.errors import Refusal, exception_from_refusal
from fencebroker.model import Limits
from fencebrokerd.core import effects as fx
from tests.core.world import ALICE, BOB, CAROL, World, limits, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.world import Client, MakeWorld


def refuse(world: World, ask: Callable[[], object]) -> Refusal:
    """Ask for something that must be refused, and prove that it changed nothing."""
    before = table(world.state), dict(world.eventfds), set(world.sockets), len(world.events)
    with pytest.raises(Refusal) as refused:
        ask()
    assert (table(world.state), dict(world.eventfds), set(world.sockets), len(world.events)) == before
    return refused.value


def test_sessions_per_user(make_world: MakeWorld) -> None:
    world = make_world(limits(sessions_per_uid=2))
    first = world.connect(ALICE)
    world.connect(ALICE)
    refusal = refuse(world, lambda: world.connect(ALICE))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("sessions per user", 2, 2))
    world.connect(BOB)
    first.disconnect()
    world.connect(ALICE)


def test_timelines_per_user(make_world: MakeWorld) -> None:
    world = make_world(limits(timelines_per_uid=3))
    client = world.connect(ALICE)
    lines = [client.create() for _ in range(3)]
    refusal = refuse(world, client.create)
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("timelines per user", 3, 3))
    refuse(world, world.connect(ALICE, pid=1).create)
    world.connect(BOB).create()
    client.disconnect()
    again = world.connect(ALICE)
    refuse(world, again.create)  # a timeline belongs to its descriptor, not to the session that made it
    world.close(lines[0])
    again.create()


def test_timelines_in_all(make_world: MakeWorld) -> None:
    world = make_world(limits(timelines=3))
    for uid in (ALICE, BOB, CAROL):
        world.connect(uid).create()
    refusal = refuse(world, world.connect(ALICE).create)
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("timelines in all", 3, 3))


def test_sync_files_per_user(make_world: MakeWorld) -> None:
    """80 of 100 that sessions, timelines and the reserve leave."""
    world = make_world(Limits(descriptors=164 + 3, descriptor_reserve=64))
    client = world.connect(ALICE)
    line = client.create()
    n_other = world.state.n_descriptors
    pool = 167 - 64 - n_other
    share = int(pool * 0.8)
    client.export_many(line, range(1, share - 1))
    handle = client.export(line, 500)
    refusal = refuse(world, lambda: client.export_many(line, [501, 502]))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("sync_files per user", share, share - 1))
    last = client.export(line, 501)
    for ask in (
        lambda: client.export(line, 502),
        lambda: client.export(line),
        lambda: client.import_(handle),
        lambda: client.import_(fx.DetachedFence(1)),
        lambda: client.merge(handle, last),
        lambda: client.merge(fx.DetachedFence(1), last),
        lambda: client.sync_file("nobody@1"),
        lambda: client.sync_file("nobody@1", expiry=5),
    ):
        assert refuse(world, ask).detail == ("sync_files per user", share, share)
    client.release(handle)
    client.export(line, 502)


def test_descriptors_in_all(make_world: MakeWorld) -> None:
    world = make_world(Limits(descriptors=164, descriptor_reserve=64, sync_files_share=0.6))
    alice, bob = world.connect(ALICE), world.connect(BOB)
    line = alice.create()
    bob.show(line)
    alice.export_many(line, range(1, 58))
    assert refuse(world, lambda: alice.export(line, 1)).error == errno.EDQUOT
    bob.export_many(line, range(1, 39))
    refusal = refuse(world, lambda: bob.export(line, 1))
    assert (refusal.error, refusal.detail) == (errno.EMFILE, ("descriptors of the broker (sync_files)", 100, 100))
    carol = world.connect(CAROL)
    refusal = refuse(world, lambda: carol.create("x"))
    assert (refusal.error, refusal.detail[0]) == (errno.EMFILE, "descriptors of the broker (timelines)")


def test_members_of_merges_per_user(make_world: MakeWorld) -> None:
    world = make_world(limits(members_per_uid=10))
    client = world.connect(ALICE)
    points = [client.sync_file(f"t{i}@1") for i in range(6)]
    first, second = client.merge(*points[:4]), client.merge(*points[1:6])
    refusal = refuse(world, lambda: client.merge(points[0], points[5]))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("members of merges per user", 10, 9))
    client.sync_file("t9@1", expiry=5)
    refuse(world, lambda: client.sync_file("t9@2", expiry=5))
    client.merge(points[0], points[0])  # is that point itself
    client.merge(fx.DetachedFence(1), fx.DetachedFence(1))
    world.connect(BOB).merge(world.reference(points[0]), world.reference(points[1]), any=True)
    client.release(first)
    client.merge(*points[:4])
    refuse(world, lambda: client.merge(second, points[0]))


def test_merges_kept_only_in_case_somebody_asks_give_way(make_world: MakeWorld) -> None:
    world = make_world(limits(members_per_uid=10))
    client = world.connect(ALICE)
    lines = [client.create() for _ in range(4)]
    for seqno in range(1, 50):
        points = [client.export(line, seqno) for line in lines]
        merged = client.merge(*points)
        for line in lines:
            world.advance(line, seqno)
        assert world.eventfds[merged] == 1
        client.release(*points, merged, exposed=True)
        assert world.state.account(ALICE).members <= 10


def test_a_merge_of_what_gives_way_for_it(make_world: MakeWorld) -> None:
    world = make_world(limits(members_per_uid=5))
    client = world.connect(ALICE)
    lines = [client.create() for _ in range(2)]
    failed = client.merge(*[client.export(line, 1) for line in lines], name="failed")
    world.fail(lines[0], 1, errno.EIO)
    world.fail(lines[1], 1, errno.EIO)
    shown = world.reference(failed)
    client.release(failed, exposed=True)
    client.merge(client.export(lines[0], 5), client.export(lines[1], 5))
    merged = client.merge(shown, client.export(lines[0], 9))
    world.advance(lines[0], 9)
    assert world.eventfds[merged] == -errno.EIO


def test_many_large_merges_cost_no_more_than_the_table_says() -> None:
    world = World(Limits())
    client = world.connect(ALICE)
    points = [client.sync_file(f"t{i}@1") for i in range(1024)]
    client.release(client.merge(*points))
    tracemalloc.start()
    try:
        for _ in range(64):
            client.merge(*points, any=True)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 20 * 1024 * 1024
    assert refuse(world, lambda: client.merge(*points)).detail[0] == "members of merges per user"
    world.end()


def test_opening_a_timeline_needs_room_too(make_world: MakeWorld) -> None:
    world = make_world(Limits(descriptors=74, descriptor_reserve=64))
    client = world.connect(ALICE)
    client.create("camera0")
    for _ in range(6):
        client.open("camera0")
    refusal = refuse(world, lambda: client.open("camera0"))
    assert (refusal.error, refusal.detail) == (errno.EMFILE, ("descriptors of the broker (timelines)", 10, 9))


def test_the_user_sees_the_numbers(make_world: MakeWorld) -> None:
    world = make_world(limits(timelines_per_uid=0))
    refusal = refuse(world, world.connect().create)
    error = exception_from_refusal(refusal.error, refusal.text, refusal.detail)
    assert str(error) == "[Errno 122] timelines per user: 0 of 0 are in use and 1 more do not fit"


def test_every_refusal_of_a_request_changes_nothing(world: World) -> None:
    alice, bob = world.connect(ALICE), world.connect(BOB)
    line = alice.create("camera0")
    handle = alice.export(line, 1)
    asks: list[Callable[[], object]] = [
        lambda: alice.create("camera0"),
        lambda: alice.create("a@b"),
        lambda: alice.create(driver=""),
        lambda: alice.open("absent"),
        lambda: bob.open(f"{ALICE}/camera0"),
        lambda: bob.show(line.__class__(0, 999)),
        lambda: bob.export(line, 1),
        lambda: alice.export(999, 1),
        lambda: bob.import_(handle),
        lambda: alice.import_(999),
        lambda: alice.import_(fx.Foreign("a pipe")),
        lambda: alice.merge(handle, fx.DetachedFence(-5), 999),
        lambda: alice.merge(fx.DetachedFence(-5), fx.Foreign("a pipe")),
        lambda: alice.sync_file("nonsense"),
        lambda: alice.sync_file("bob/camera0@1"),
        lambda: alice.info(999),
        lambda: alice.info(fx.Foreign("a pipe")),
        lambda: alice.set_deadline(999, 1),
        lambda: alice.lookup("absent"),
        lambda: alice.lookup("#x"),
        lambda: alice.ask(99, "whatever"),
    ]
    for ask in asks:
        refuse(world, ask)


@pytest.mark.parametrize("op", [0, -1, -(2**63), 21, 99, 255, 2**32, 2**64 - 1])
def test_an_unknown_request_is_enosys(world: World, op: int) -> None:
    client: Client = world.connect()
    refusal = refuse(world, lambda: client.ask(op, 1, "two", [3]))
    assert refusal.error == errno.ENOSYS
    assert str(op) in refusal.text
