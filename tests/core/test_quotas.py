"""Quotas: exact numbers, errors that name quota, limit and usage, and a refusal that changes nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencebroker import wire
from fencebroker.errors import Refusal, exception_from_refusal
from fencebroker.limits import Limits
from fencebrokerd.core import effects as fx
from fencebrokerd.core.account import allowance
from tests.core.world import ALICE, BOB, CAROL, ROOT, World, limits, table

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
    share = int((167 - 64) * 0.8) - n_other
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
    alice.export_many(line, range(1, 58))  # 60 with a session, a timeline and its creator
    assert refuse(world, lambda: alice.export(line, 1)).detail == ("sync_files per user", 57, 57)
    bob.export_many(line, range(1, 13))  # with his session 13, a third of the 40 that are not alice's
    assert refuse(world, lambda: bob.export(line, 1)).detail == ("sync_files per user", 12, 12)
    world.broker.count_beside(27)
    refusal = refuse(world, lambda: bob.export(line, 1))
    assert (refusal.error, refusal.detail) == (errno.EMFILE, ("descriptors of the broker (sync_files)", 100, 100))
    carol = world.connect(CAROL)
    refusal = refuse(world, lambda: carol.create("x"))
    assert (refusal.error, refusal.detail[0]) == (errno.EMFILE, "descriptors of the broker (timelines)")
    world.broker.count_beside(0)
    carol.create("x")


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
    world = make_world(Limits(descriptors=74, descriptor_reserve=64, sync_files_share=1.0))
    client = world.connect(ALICE)
    client.create("camera0")
    for _ in range(6):
        client.open("camera0")
    refusal = refuse(world, lambda: client.open("camera0"))
    assert (refusal.error, refusal.detail) == (errno.EMFILE, ("descriptors of the broker (timelines)", 10, 9))
    world = make_world(Limits(descriptors=84, descriptor_reserve=64))
    client, other = world.connect(ALICE), world.connect(BOB)
    for _ in range(9):
        client.create()
    other.create()
    assert refuse(world, other.create).detail == ("descriptors per user", 3, 3)


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


@pytest.mark.parametrize("op", [0, -1, -(2**63), 30, 99, 255, 2**32, 2**64 - 1])
def test_an_unknown_request_is_enosys(world: World, op: int) -> None:
    client: Client = world.connect()
    refusal = refuse(world, lambda: client.ask(op, 1, "two", [3]))
    assert refusal.error == errno.ENOSYS
    assert str(op) in refusal.text


# Fairness


def test_the_numbers_of_the_rule() -> None:
    """1,024 units and users who take all they can, each half of an even share of what is left; nothing passes what there is."""
    assert allowance(1024, 1024, 0, 0) == 1024
    assert allowance(1024, 1024, 0, 0, 0.8) == 819
    assert allowance(1024, 512, 0, 1) == 170
    assert allowance(1024, 342, 0, 2) == 85
    assert allowance(1024, 342, 170, 1) == 170  # who has its share gets no more
    assert allowance(1024, 854, 0, 1) == 284  # and more when the first has let go
    assert allowance(4, 1, 0, 3) == 1
    assert allowance(4, 0, 0, 4) == 0
    assert allowance(4, 1, 1, 2) == 0


@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 5), st.integers(-200, 2000)), max_size=200), st.floats(0.1, 1.0))
def test_the_rule_leaves_something(pool: int, asks: list[tuple[int, int]], alone: float) -> None:
    """Whatever a few users take and give back: after each grant to one of n, n times its share is left, except for its first unit and for one
    who is alone; no more than there is is ever given out.
    """
    used: Counter[int] = Counter()
    for uid, n in asks:
        if n <= 0:
            used[uid] -= min(used[uid], -n)
            continue
        others = sum(1 for other in used if other != uid and used[other])
        left = pool - used.total()
        if used[uid] + n > allowance(pool, left, used[uid], others, alone):
            continue
        used[uid] += n
        assert used.total() <= pool
        if used[uid] > 1:
            assert pool - used.total() >= (others + 1) * used[uid] if others else used[uid] <= pool * alone


def test_greedy_users_leave_room_for_the_next(make_world: MakeWorld) -> None:
    """20 users take all they can get; the next still has a session, a timeline, and fences on it."""
    world = make_world(Limits(descriptors=20_000, sessions=1024, timelines=4096))
    taken = []
    for uid in range(2000, 2020):
        sessions = [world.connect(uid)]
        with contextlib.suppress(Refusal):
            while True:
                sessions.append(world.connect(uid))
        lines = []
        with contextlib.suppress(Refusal):
            while True:
                lines.append(sessions[0].create())
        n = 0
        with contextlib.suppress(Refusal):
            while True:
                sessions[0].export_many(lines[0], range(n + 1, n + 9))
                n += 8
        taken.append((len(sessions), len(lines), n))
    assert taken[0] == (256, 1024, max(taken)[2])
    assert all(first >= second for first, second in itertools.pairwise(taken))
    alice = world.connect(ALICE)
    line = alice.create("camera0")
    handles = [alice.export(line, n) for n in range(1, 13)]
    world.advance(line, 12)
    assert {world.eventfds[handle] for handle in handles} == {1}


def test_what_gives_way_keeps_nobody_out(make_world: MakeWorld) -> None:
    """Copies that are kept in case they come back count as left."""
    world = make_world(Limits(descriptors=164, descriptor_reserve=64))
    alice, bob = world.connect(ALICE), world.connect(BOB)
    line = alice.create()
    handles = alice.export_many(line, range(1, 60))
    world.advance(line, 60)
    alice.release(*handles, exposed=True)
    mine = bob.create()
    assert bob.quotas()[BOB, "sync_files per user"] == (0, 29)  # a third of what alice's session and timeline leave
    world.close(line)
    assert bob.quotas()[BOB, "sync_files per user"] == (0, 77)
    bob.export_many(mine, range(1, 78))
    assert world.state.account(ALICE).sync_files < 59


def test_descriptors_of_another_users_timeline_are_the_openers(make_world: MakeWorld) -> None:
    """Who opens a timeline pays for the descriptor, whoever created it."""
    world = make_world(limits(timelines_per_uid=3))
    alice, bob = world.connect(ALICE), world.connect(BOB)
    alice.create("camera0", mode=0o666)
    opened = [bob.open(f"{ALICE}/camera0") for _ in range(3)]
    refusal = refuse(world, lambda: bob.open(f"{ALICE}/camera0"))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("timeline descriptors per user", 3, 3))
    refuse(world, bob.create)
    alice.open("camera0")
    world.close(opened[0])
    bob.create("own")
    quotas = bob.quotas()
    assert quotas[BOB, "timelines per user"] == (1, 3)
    assert quotas[BOB, "timeline descriptors per user"] == (3, 3)


def test_sessions_in_all(make_world: MakeWorld) -> None:
    world = make_world(limits(sessions=3))
    for uid in (ALICE, BOB, CAROL):
        world.connect(uid)
    refusal = refuse(world, lambda: world.connect(ALICE))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("sessions in all", 3, 3))


def test_minters_and_subscriptions(make_world: MakeWorld) -> None:
    """A timeline that is shown to every session costs something for each; so does everybody who follows the events."""
    world = make_world(limits(minters_per_uid=2, subscriptions_per_uid=1))
    alice, second = world.connect(ALICE), world.connect(ALICE)
    line = alice.create()
    second.show(line)
    other = alice.create()
    refusal = refuse(world, lambda: second.show(other))
    assert (refusal.error, refusal.detail) == (errno.EDQUOT, ("timelines that sessions mint on per user", 2, 3))
    second.show(line)
    alice.ask(wire.SUBSCRIBE)
    alice.ask(wire.SUBSCRIBE)
    assert refuse(world, lambda: second.ask(wire.SUBSCRIBE)).detail == ("subscriptions per user", 1, 1)
    world.connect(BOB).ask(wire.SUBSCRIBE)
    alice.disconnect()
    second.ask(wire.SUBSCRIBE)


def test_remembered_failures_are_bounded_for_a_user_too(make_world: MakeWorld) -> None:
    world = make_world(limits(remembered_failures=10, failures_per_uid=25))
    alice, bob = world.connect(ALICE), world.connect(BOB)
    lines = [alice.create() for _ in range(4)]
    for seqno in range(1, 12):
        for line in lines:
            world.fail(line, seqno, errno.EIO)
    assert world.state.account(ALICE).failures <= 25 + 3
    handle = alice.export(lines[0], 11)
    assert world.eventfds[handle] == -errno.EIO
    line = bob.create()
    for seqno in range(1, 12):
        world.fail(line, seqno, errno.EIO)
    assert world.state.account(BOB).failures == 10


def test_a_user_with_limits_of_its_own(make_world: MakeWorld) -> None:
    """What the policy gives one user says nothing about others; taking it away takes nothing that is there."""
    world = make_world(limits(timelines_per_uid=2))
    world.broker.configure(world.limits, {ALICE: limits(timelines_per_uid=4, sessions_per_uid=1, sync_files_share=0.5)})
    alice, bob = world.connect(ALICE), world.connect(BOB)
    assert refuse(world, lambda: world.connect(ALICE)).detail == ("sessions per user", 1, 1)
    for _ in range(4):
        alice.create()
    assert refuse(world, alice.create).detail == ("timelines per user", 4, 4)
    for _ in range(2):
        bob.create()
    assert refuse(world, bob.create).detail == ("timelines per user", 2, 2)
    world.broker.configure(world.limits)
    assert refuse(world, alice.create).detail == ("timelines per user", 2, 4)
    assert alice.quotas()[ALICE, "timelines per user"] == (4, 2)


def test_who_sees_which_quotas(make_world: MakeWorld) -> None:
    """One's own always, also of nothing; root sees everybody's, in pages."""
    world = make_world(limits())
    alice = world.connect(ALICE)
    for uid in range(2000, 2050):
        world.connect(uid)
    assert {uid for uid, _ in alice.quotas()} == {ALICE}
    assert {uid for uid, _ in world.connect(ROOT).quotas()} == {ROOT, ALICE, *range(2000, 2050)}
    assert alice.quotas()[ALICE, "sessions per user"][0] == 1


def test_accounts_of_users_who_are_gone_are_let_go(make_world: MakeWorld) -> None:
    world = make_world(limits())
    for uid in range(10_000, 12_000):
        world.connect(uid).disconnect()
    assert len(world.state.accounts) < 200


# Modes that change


def test_chmod(make_world: MakeWorld) -> None:
    """The owner and root; the old mode is told; who has a descriptor keeps it, and who waits by name gets its point."""
    world = make_world(limits())
    alice, bob, root = world.connect(ALICE), world.connect(BOB), world.connect(ROOT)
    line = alice.create("camera0")
    waiting = bob.sync_file(f"{ALICE}/camera0@5")
    missing = refuse(world, lambda: bob.chmod(f"{ALICE}/absent", 0o666)).text
    assert refuse(world, lambda: bob.chmod(f"{ALICE}/camera0", 0o666)).text == missing.replace("absent", "camera0")
    assert alice.chmod("camera0", 0o644) == 0o600
    assert world.fence(waiting).timeline is not None
    assert refuse(world, lambda: bob.chmod(f"{ALICE}/camera0", 0o666)).error == errno.EPERM
    assert root.chmod(f"{ALICE}/camera0", 0o666) == 0o644
    opened = bob.open(f"{ALICE}/camera0")
    assert alice.chmod("camera0", 0o600) == 0o666
    assert refuse(world, lambda: bob.open(f"{ALICE}/camera0")).error == errno.ENOENT
    world.advance(opened, 5)
    assert world.eventfds[waiting] == 1
    assert alice.chmod("camera0", 0o600) == 0o600
    world.close(line)
