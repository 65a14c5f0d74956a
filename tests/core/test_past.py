"""What a timeline has behind it: its history, its counts, how long its fences took."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fencebroker.errors import Refusal
from fencebroker.latency import LAST, bucket_of, middle_of, percentile
from fencebroker.rows import TimelineRow
from tests.core.world import ALICE, BOB, ROOT, Line, active

if TYPE_CHECKING:
    from tests.core.world import Client, World

WHO = [4242, ALICE, "capture.py"]


@pytest.fixture
def alice(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def bob(world: World) -> Client:
    return world.connect(BOB)


def row(client: Client, line: Line) -> TimelineRow:
    (found,) = [each for each in client.list("timelines") if isinstance(each, TimelineRow) and each.context == line.context]
    return found


def steps(client: Client, line: Line) -> list[tuple[str, int, int]]:
    """The history without times and processes."""
    return [(what, seqno, status) for _, what, seqno, status, _ in client.history(line)]


# History


def test_a_timeline_tells_what_it_did(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    alice.export(line, 2)
    alice.export(line, 1)  # not above: nothing new
    world.advance(line, 1)
    world.fail(line, 2, errno.EIO)
    alice.open("camera0")
    assert steps(alice, line) == [
        ("created", 0, 0), ("exported", 2, 0), ("advanced", 1, 0), ("failed", 2, -errno.EIO), ("opened", 2, 0),
    ]  # fmt: skip
    history = alice.history(line)
    assert [at for at, *_ in history] == sorted(at for at, *_ in history)
    assert [who for *_, who in history] == [WHO, WHO, None, None, WHO]


def test_of_many_that_fail_at_once_the_first_is_told(world: World, alice: Client) -> None:
    line = alice.create("camera0", expiry=100)
    for seqno in (1, 2, 3):
        alice.export(line, seqno)
    world.now += 1000
    world.run(world.broker.expire(world.now))
    assert steps(alice, line)[-1] == ("failed", 1, -errno.ETIME)
    assert [what for what, *_ in steps(alice, line)].count("failed") == 1
    assert row(alice, line).n_failed == 3


def test_a_dead_creator_is_told(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    world.broker.creator_died(alice.session, world.tick())
    world.run([])
    assert steps(alice, line)[-1] == ("orphaned", 0, 0)


def test_history_is_bounded_and_keeps_the_newest(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    for value in range(1, 101):
        world.advance(line, value)
    assert steps(alice, line) == [("advanced", value, 0) for value in range(85, 101)]


def test_history_is_ones_own(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("camera0", mode=0o666)
    assert world.connect(ROOT).history(line)
    for context in (line, Line(99, 99)):
        with pytest.raises(Refusal) as refused:
            bob.history(context)
        assert refused.value.error == errno.ENOENT


# Counts


def test_counts(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("camera0", mode=0o644)
    first = world.now
    alice.export(line, 1)
    asked = row(alice, line)
    assert (asked.n_fences, asked.n_signalled, asked.n_failed, asked.latencies) == (1, 0, 0, ())
    assert asked.oldest_ns is not None
    assert first < asked.oldest_ns <= world.now
    bob.sync_file(f"{ALICE}/camera0@3")
    alice.export(line, 2)
    world.now += 8192
    world.advance(line, 2)
    value = row(alice, line)
    assert (value.n_fences, value.n_signalled, value.n_failed) == (3, 2, 0)
    assert sum(value.latencies[1::2]) == 2
    assert value.advanced_ns == world.now - 1  # the question, too, takes time
    assert value.oldest_ns is not None  # bob's, asked for before alice's second
    alice.export(line, 1)  # on record still, or born signalled: it waited for nothing
    world.fail(line, 3, errno.EIO)
    value = row(alice, line)
    assert (value.n_signalled, value.n_failed, value.oldest_ns) == (2, 1, None)


# Buckets


@pytest.mark.parametrize("ns", [0, 1, 1023, 1024, 4095, 4096, 10**5, 10**6, 16_666_667, 10**9, 60 * 10**9, 3600 * 10**9])
def test_a_bucket_is_right_to_within_an_eighth(ns: int) -> None:
    middle = middle_of(bucket_of(ns))
    assert abs(middle - ns) <= max(ns / 8, 512)


def test_buckets_grow_and_end() -> None:
    buckets = [bucket_of(1 << shift | bit) for shift in range(3, 60) for bit in (0, (1 << shift) // 2)]
    assert buckets == sorted(buckets)
    assert bucket_of(-5) == 0
    assert bucket_of(2**63) == LAST
    assert [bucket_of(middle_of(bucket)) for bucket in range(LAST + 1)] == list(range(LAST + 1))


def test_percentiles() -> None:
    assert percentile({}, 50) is None
    counts = {bucket_of(10**6): 98, bucket_of(10**9): 2}
    assert percentile(counts, 50) == pytest.approx(10**6, rel=0.13)
    assert percentile(counts, 98) == pytest.approx(10**6, rel=0.13)
    assert percentile(counts, 99) == percentile(counts, 100) == pytest.approx(10**9, rel=0.13)
    assert percentile({7: 1}, 0) == middle_of(7)


# Reclaim


def test_what_was_given_back_can_be_reclaimed(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    kept, exported, signalled = (alice.export(line, seqno) for seqno in (1, 2, 3))
    merged = alice.merge(exported, alice.export(alice.create(), 1))
    alice.release(exported, signalled, merged, exposed=True)
    before = active(world)
    assert alice.reclaim(kept, exported, 99, merged, exported) == [exported, merged]
    world.check()
    assert [(handle, status) for handle, status in world.written if handle in (exported, merged)] == [
        (exported, -errno.ECANCELED), (merged, -errno.ECANCELED),
    ]  # fmt: skip
    assert kept in world.state.sync_files
    assert active(world) == before - 2  # the point and the merge that nobody can see any more
    world.advance(line, 3)
    assert alice.reclaim(signalled) == [signalled]
    assert (signalled, -errno.ECANCELED) not in world.written
    world.check()


def test_the_fence_of_a_reclaimed_sync_file_goes_on_for_others(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    gone, kept = alice.export(line, 1), alice.export(line, 1)
    alice.release(gone, exposed=True)
    assert alice.reclaim(gone) == [gone]
    world.advance(line, 1)
    assert world.eventfds[kept] == 1
    world.check()


def test_only_ones_own_can_be_reclaimed(world: World, alice: Client, bob: Client) -> None:
    handle = alice.export(alice.create("camera0"), 1)
    alice.release(handle, exposed=True)
    assert bob.reclaim(handle) == []
    assert world.connect(ROOT).reclaim(handle) == [handle]
    world.check()


def test_many_past_things_cost_little(world: World, alice: Client) -> None:
    """Not a measurement: what is kept does not grow with what happened."""
    line = alice.create("camera0")
    for value in range(1, 2001):
        alice.release(alice.export(line, value))
        world.advance(line, value)
    past = world.state.timelines[line.context].past
    assert len(past.entries) == 16
    assert len(past.latencies) <= LAST + 1
