"""Merges: the kernel's rules (flatten, the latest of a context, leave out what is done, one survivor), with errors that survive."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest

from fencebroker.errors import Refusal
from fencebrokerd.core import effects as fx
from fencebrokerd.core.fence import Array, Stub
from tests.core.world import ALICE, BOB, World, limits

if TYPE_CHECKING:
    from tests.core.world import Client, Line, MakeWorld


@pytest.fixture
def client(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def lines(client: Client) -> list[Line]:
    return [client.create() for _ in range(4)]


def members(world: World, handle: int) -> list[tuple[int, int]]:
    """The (context, seqno) of an array's members, in order."""
    fence = world.fence(handle)
    assert isinstance(fence, Array)
    return [(member.context, member.seqno) for member in fence.members]


def status(world: World, handle: int) -> int:
    return world.eventfds[handle]


# -- what it is made of


def test_two_timelines_make_an_array_in_order_of_context(world: World, client: Client, lines: list[Line]) -> None:
    a, b = client.export(lines[1], 1), client.export(lines[0], 1)
    merged = client.merge(a, b)
    assert members(world, merged) == [(lines[0].context, 1), (lines[1].context, 1)]
    info = client.info(merged)
    assert (info.status, info.n, info.seqno) == (0, 2, 1)
    assert world.fence(merged).names == ("dma_fence_array", "unbound")


def test_inputs_stay_valid_and_independent(world: World, client: Client, lines: list[Line]) -> None:
    a, b = client.export(lines[0], 1), client.export(lines[1], 1)
    merged = client.merge(a, b)
    client.release(a, b)
    world.advance(lines[0], 1)
    world.advance(lines[1], 1)
    assert status(world, merged) == 1


def test_a_merge_with_itself_is_itself(world: World, client: Client, lines: list[Line]) -> None:
    a = client.export(lines[0], 1)
    merged = client.merge(a, a, a)
    assert merged != a
    assert world.fence(merged) is world.fence(a)


@pytest.mark.parametrize("order", list(itertools.permutations([2, 5, 9])))
def test_of_one_context_the_latest_stands_in_any_order(world: World, client: Client, lines: list[Line], order: tuple[int, ...]) -> None:
    merged = client.merge(*[client.export(lines[0], seqno) for seqno in order])
    assert world.fence(merged).seqno == 9, "one survivor is the result itself, no array"
    world.advance(lines[0], 8)
    assert status(world, merged) == 0


def test_of_one_context_the_earliest_stands_for_any(world: World, client: Client, lines: list[Line]) -> None:
    merged = client.merge(*[client.export(lines[0], seqno) for seqno in (5, 2, 9)], any=True)
    assert world.fence(merged).seqno == 2


def test_arrays_are_flattened(world: World, client: Client, lines: list[Line]) -> None:
    points = [client.export(line, 1) for line in lines]
    merged = client.merge(client.merge(points[0], points[2]), client.merge(points[1], points[0]))
    assert members(world, merged) == [(lines[0].context, 1), (lines[1].context, 1), (lines[2].context, 1)]


def test_flattening_keeps_the_latest_across_arrays(world: World, client: Client, lines: list[Line]) -> None:
    early = client.merge(client.export(lines[0], 1), client.export(lines[1], 1))
    late = client.merge(client.export(lines[0], 4), client.export(lines[2], 1))
    assert members(world, client.merge(early, late)) == [(lines[0].context, 4), (lines[1].context, 1), (lines[2].context, 1)]


def test_any_within_all_and_all_within_any_are_not_flattened(world: World, client: Client, lines: list[Line]) -> None:
    a, b, c = (client.export(line, 1) for line in lines[:3])
    assert len(members(world, client.merge(client.merge(a, b, any=True), c))) == 2
    assert len(members(world, client.merge(client.merge(a, b), c, any=True))) == 2
    assert len(members(world, client.merge(client.merge(a, b, any=True), c, any=True))) == 3


def test_an_array_with_an_expiry_is_not_flattened_away(world: World, client: Client, lines: list[Line]) -> None:
    expiring = client.sync_file("nobody@1", expiry=50)
    merged = client.merge(expiring, client.export(lines[0], 1))
    world.advance(lines[0], 1)
    world.pass_time(world.now + 100)
    assert status(world, merged) == -errno.ETIME


# -- what has signalled already


def test_what_signalled_is_left_out(world: World, client: Client, lines: list[Line]) -> None:
    done, pending = client.export(lines[0], 1), client.export(lines[1], 1)
    world.advance(lines[0], 1)
    merged = client.merge(done, pending)
    assert world.fence(merged) is world.fence(pending), "one survivor is the result itself"


def test_of_signalled_ones_only_a_stub_with_the_latest_time(world: World, client: Client, lines: list[Line]) -> None:
    handles = [client.export(line, 1) for line in lines[:3]]
    for line in (lines[1], lines[0], lines[2]):
        world.tick(10)
        world.advance(line, 1)
    latest = world.now
    world.tick(1_000)
    merged = client.merge(*handles)
    fence = world.fence(merged)
    assert isinstance(fence, Stub)
    assert (status(world, merged), fence.timestamp, fence.context, fence.seqno) == (1, latest, 0, 0)
    assert client.info(merged).fences[0][:2] == ["stub", "stub"]


def test_a_signalled_array_is_taken_apart_too(world: World, client: Client, lines: list[Line]) -> None:
    merged = client.merge(client.export(lines[0], 1), client.export(lines[1], 1))
    world.advance(lines[0], 1)
    world.advance(lines[1], 1)
    latest = world.now
    again = client.merge(merged)
    assert (type(world.fence(again)), world.fence(again).timestamp) == (Stub, latest)


def test_an_error_survives_beside_a_pending_one(world: World, client: Client, lines: list[Line]) -> None:
    """The kernel leaves the failed one out, and the merge ends well."""
    failed, pending = client.export(lines[0], 1), client.export(lines[1], 1)
    world.fail(lines[0], 1, errno.EIO)
    merged = client.merge(failed, pending)
    assert status(world, merged) == 0, "an array waits for all, also when it can only fail"
    assert client.info(merged).status == 0
    world.advance(lines[1], 1)
    assert status(world, merged) == -errno.EIO


def test_an_error_survives_beside_a_later_point_of_its_context(world: World, client: Client, lines: list[Line]) -> None:
    failed, later = client.export(lines[0], 1), client.export(lines[0], 2)
    world.fail(lines[0], 1, errno.EIO)
    merged = client.merge(failed, later)
    world.advance(lines[0], 2)
    assert status(world, merged) == -errno.EIO


def test_of_signalled_ones_with_errors_the_first_error_stands(world: World, client: Client, lines: list[Line]) -> None:
    handles = [client.export(line, 1) for line in lines[:3]]
    world.fail(lines[2], 1, errno.ENOSPC)
    world.fail(lines[0], 1, errno.EIO)
    world.advance(lines[1], 1)
    merged = client.merge(*handles)
    assert status(world, merged) == -errno.ENOSPC
    assert world.fence(merged) is world.fence(handles[2])


def test_the_first_error_reported_stands_not_the_worst_or_the_first_in_order(world: World, client: Client, lines: list[Line]) -> None:
    merged = client.merge(*[client.export(line, 1) for line in lines[:3]])
    world.fail(lines[2], 1, errno.ENOSPC)
    world.fail(lines[0], 1, errno.EIO)
    assert status(world, merged) == 0
    world.advance(lines[1], 1)
    assert status(world, merged) == -errno.ENOSPC


def test_an_error_from_before_stands_before_one_that_comes(world: World, client: Client, lines: list[Line]) -> None:
    failed, pending = client.export(lines[1], 1), client.export(lines[0], 1)
    world.fail(lines[1], 1, errno.ENOSPC)
    merged = client.merge(failed, pending)
    world.fail(lines[0], 1, errno.EIO)
    assert status(world, merged) == -errno.ENOSPC


def test_a_failed_member_that_was_forgotten_still_fails_a_new_merge(make_world: MakeWorld) -> None:
    world = make_world(limits(retained_records=0))
    client = world.connect()
    lines = [client.create() for _ in range(3)]
    failed, pending, third = (client.export(line, 1) for line in lines)
    merged = client.merge(failed, pending)
    world.fail(lines[0], 1, errno.EIO)
    client.release(failed)
    again = client.merge(merged, third)
    world.advance(lines[1], 1)
    world.advance(lines[2], 1)
    assert [status(world, handle) for handle in (merged, again)] == [-errno.EIO, -errno.EIO]


# -- when it signals


def test_all_waits_for_the_last(world: World, client: Client, lines: list[Line]) -> None:
    merged = client.merge(*[client.export(line, 3) for line in lines])
    for line in lines[:-1]:
        world.advance(line, 3)
        assert status(world, merged) == 0
    world.advance(lines[-1], 3)
    assert (status(world, merged), world.fence(merged).timestamp) == (1, world.now)


def test_any_takes_the_first_with_its_status(world: World, client: Client, lines: list[Line]) -> None:
    points = [client.export(line, 1) for line in lines]
    good, bad = client.merge(points[0], points[1], any=True), client.merge(points[2], points[3], any=True)
    world.advance(lines[0], 1)
    world.fail(lines[3], 1, errno.EIO)
    assert (status(world, good), status(world, bad)) == (1, -errno.EIO)
    world.fail(lines[1], 1, errno.EIO)
    world.advance(lines[2], 1)
    assert (status(world, good), status(world, bad)) == (1, -errno.EIO)


def test_any_of_something_signalled_is_the_first_that_did(world: World, client: Client, lines: list[Line]) -> None:
    points = [client.export(line, 1) for line in lines[:3]]
    world.fail(lines[2], 1, errno.EIO)
    world.advance(lines[1], 1)
    assert world.fence(client.merge(*points, any=True)) is world.fence(points[2])


def test_nested_any_and_all(world: World, client: Client, lines: list[Line]) -> None:
    a, b, c, d = (client.export(line, 1) for line in lines)
    either = client.merge(client.merge(a, b), client.merge(c, d), any=True)
    both = client.merge(client.merge(a, b, any=True), client.merge(c, d, any=True))
    world.advance(lines[0], 1)
    assert (status(world, either), status(world, both)) == (0, 0)
    world.advance(lines[3], 1)
    assert (status(world, either), status(world, both)) == (0, 1)
    world.advance(lines[2], 1)
    assert (status(world, either), status(world, both)) == (1, 1)


def test_one_action_that_completes_several_members_counts_once(world: World, client: Client, lines: list[Line]) -> None:
    a, b = client.export(lines[0], 1), client.export(lines[0], 2)
    other = client.export(lines[1], 1)
    any_of = client.merge(client.merge(a, other), client.merge(b, other), any=True)
    world.advance(lines[1], 1)
    world.advance(lines[0], 2)
    assert status(world, any_of) == 1


def test_a_dead_producer_fails_the_merge(world: World, client: Client, lines: list[Line]) -> None:
    merged = client.merge(client.export(lines[0], 1), client.export(lines[1], 1))
    world.close(lines[0])
    assert status(world, merged) == 0
    world.advance(lines[1], 1)
    assert status(world, merged) == -errno.ENOENT


def test_what_an_any_array_did_not_need_is_let_go(world: World, client: Client, lines: list[Line]) -> None:
    a, b = client.export(lines[0], 1), client.export(lines[1], 1)
    any_of = client.merge(a, b, any=True)
    client.release(a, b)
    assert len(world.state.fences) == 3
    world.advance(lines[0], 1)
    assert status(world, any_of) == 1
    assert world.state.timelines[lines[1].context].n_active == 0


# -- descriptors as arguments


def test_handles_and_descriptors_mix(world: World, client: Client, lines: list[Line]) -> None:
    a, b, c = (client.export(line, 1) for line in lines[:3])
    stranger = world.connect(BOB)
    merged = stranger.merge(world.reference(c), world.reference(a))
    assert members(world, merged) == [(lines[0].context, 1), (lines[2].context, 1)]
    assert members(world, client.merge(b, world.reference(a))) == [(lines[0].context, 1), (lines[1].context, 1)]


@pytest.mark.parametrize("statuses", [(1, 1), (-5, 1), (1, -5), (-5, -7), (-7, 1, -5)])
def test_forgotten_descriptors_keep_their_status(world: World, client: Client, lines: list[Line], statuses: tuple[int, ...]) -> None:
    detached = [fx.DetachedFence(status) for status in statuses]
    errors = [status for status in statuses if status < 0]
    expected = errors[0] if errors else 1
    assert status(world, client.merge(*detached)) == expected
    pending = client.export(lines[0], 1)
    merged = client.merge(*detached, pending)
    world.advance(lines[0], 1)
    assert status(world, merged) == expected


@pytest.mark.parametrize("bad", [fx.Foreign("a pipe"), fx.KnownTimeline(1)], ids=["foreign", "timeline"])
def test_what_is_no_sync_file_is_enoent_and_nothing_changes(world: World, client: Client, lines: list[Line], bad: fx.Reference) -> None:
    a = client.export(lines[0], 1)
    before = len(world.events)
    with pytest.raises(Refusal, match="fd must be a sync_file of this broker, not a ") as refused:
        client.merge(fx.DetachedFence(-errno.EIO), a, bad)
    assert (refused.value.error, refused.value.detail) == (errno.ENOENT, ("not a sync_file",))
    with pytest.raises(Refusal, match="handle 999 is not one of this session") as refused:
        client.merge(fx.DetachedFence(1), a, 999)
    assert refused.value.error == errno.EBADF
    assert len(world.events) == before


def test_another_sessions_handle_is_no_handle(world: World, client: Client, lines: list[Line]) -> None:
    a = client.export(lines[0], 1)
    with pytest.raises(Refusal) as refused:
        world.connect(ALICE).merge(a)
    assert refused.value.error == errno.EBADF


# -- limits


def test_exactly_so_many_members(make_world: MakeWorld) -> None:
    world = make_world(limits(merge_members=4))
    client = world.connect()
    handles = [client.sync_file(f"t{i}@1") for i in range(5)]
    four = client.merge(*handles[:4])
    before = len(world.events)
    with pytest.raises(Refusal, match="at most 4 members when unwrapped, not 5") as refused:
        client.merge(four, handles[4])
    assert refused.value.error == errno.EINVAL
    assert len(world.events) == before
    client.merge(four, handles[0])


def test_a_thousand_members_and_pages_of_them(world: World, client: Client) -> None:
    lines = [client.create() for _ in range(1024)]
    merged = client.merge(*[client.export(line, 1) for line in lines])
    info = client.info(merged)
    assert info.n == 1024
    assert [row[4] for row in info.fences] == [line.context for line in lines]
    for line in lines[:-1]:
        world.advance(line, 1)
    assert status(world, merged) == 0
    assert [row[2] for row in client.info(merged).fences] == [1] * 1023 + [0], "members stay listed after they signalled"
    world.advance(lines[-1], 1)
    assert status(world, merged) == 1


# -- attacks


def test_a_deep_nest_is_released_and_signalled_without_recursion(world: World, client: Client) -> None:
    """Each level costs its maker nothing once its handles are released."""
    depth = 5_000

    def nest() -> int:
        handle = client.sync_file("deep@1")
        for level in range(2, depth):
            point = client.sync_file(f"deep@{level}")
            outer = client.merge(handle, point, any=level % 2 == 0)
            client.release(handle, point)
            handle = outer
        return handle

    client.release(nest())
    assert not world.state.fences
    handle = nest()
    assert client.info(handle).n == depth - 1
    client.set_deadline(handle, 5)
    line = client.create("deep")
    world.advance(line, depth)
    assert status(world, handle) == 1


def test_containers_that_share_containers_are_listed_once(world: World, client: Client) -> None:
    """2**60 paths lead to the innermost fence."""
    handle = client.sync_file("shared@1")
    for level in range(60):
        left = client.merge(handle, client.sync_file(f"left@{level + 1}"), any=True)
        right = client.merge(handle, client.sync_file(f"right@{level + 1}"), any=True)
        handle = client.merge(left, right)
    assert client.info(handle).n == 121
    client.set_deadline(handle, 5)
    client.create("shared")


def test_many_arrays_over_the_same_members_cost_each_membership_once(world: World, client: Client) -> None:
    handles = [client.sync_file(f"crowd@{i}") for i in range(1, 251)]
    arrays = [client.merge(*handles, any=True) for _ in range(250)]
    line = client.create("crowd")
    world.advance(line, 1)
    assert {status(world, array) for array in arrays} == {1}
