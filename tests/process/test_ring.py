"""The signal ring: its producer writes its own eventfds, and whatever the broker does or decides agrees with that."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import heapq
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fencebroker as fb
from fencebroker import aio, ring, wire
from fencebroker.exclusive import Exclusive
from fencebroker.fds import send_packet
from fencebroker.mapping import has_barrier
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors, is_readable, not_run, wait_readable
from tests.process.hostile_ring import SPOILS, Hostile
from tests.process.wire_client import WireClient, descriptors_of, switches_of


@pytest.fixture(autouse=True)
def needs_a_barrier() -> None:
    if not has_barrier():
        not_run("no membarrier here, so no ring")


def own_of(timeline: fb.Timeline) -> Exclusive:
    own = timeline._signaller._own
    assert own is not None, "this timeline has no ring"
    return own


def n_duplicates(timeline: fb.Timeline) -> int:
    return len(own_of(timeline)._duplicates)


@contextlib.contextmanager
def stopped(broker: BrokerProcess) -> Iterator[None]:
    """While this lasts the broker does nothing at all."""
    broker.freeze()
    try:
        yield
    finally:
        broker.thaw()


@contextlib.contextmanager
def working(path: str) -> Iterator[tuple[fb.Broker, fb.Timeline]]:
    with fb.connect(path) as connection, connection.create_timeline("camera0") as timeline:
        yield connection, timeline


# Without the broker


def test_a_signal_needs_no_broker(broker: BrokerProcess) -> None:
    """Advance, inc, fail: each is on the descriptor when the call returns, while the broker is stopped."""
    with working(broker.path) as (connection, timeline), contextlib.ExitStack() as stack:
        fences = [stack.enter_context(timeline.export(n)) for n in range(1, 7)]
        twin = stack.enter_context(timeline.export(4))
        with stopped(broker):
            timeline.advance(2)
            assert [fence.status() for fence in fences] == [1, 1, 0, 0, 0, 0]
            timeline.inc()
            assert fences[2].status() == 1
            timeline.fail(5, errno.EIO)
            assert [fence.status() for fence in fences] == [1, 1, 1, 1, -errno.EIO, 0]
            assert twin.status() == 1
            assert timeline.value == 5
        assert [connection.info(fence).status for fence in fences] == [1, 1, 1, 1, -errno.EIO, 0]
        assert not any(connection.info(fence).tampered for fence in fences)


def test_a_signal_does_not_wake_the_broker(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline), contextlib.ExitStack() as stack:
        fences = [stack.enter_context(timeline.export(n)) for n in range(1, 101)]
        connection.info(fences[0])
        before = switches_of(broker.pid)
        for n, fence in enumerate(fences, 1):
            timeline.advance(n)
            assert fence.status() == 1
        assert switches_of(broker.pid) - before <= 1


def test_the_time_of_a_signal_is_its_own(connection: fb.Broker, timeline: fb.Timeline) -> None:
    with timeline.export(1) as first, timeline.export(2) as second:
        times = []
        for n in (1, 2):
            times.append(time.monotonic_ns())
            timeline.advance(n)
        times.append(time.monotonic_ns())
        for fence, earliest, latest in zip((first, second), times, times[1:], strict=False):
            assert earliest <= connection.info(fence).timestamp_ns <= latest


@pytest.mark.parametrize("give_away", ["close", "detach", "send"])
def test_a_descriptor_that_was_given_away_is_written_all_the_same(connection: fb.Broker, timeline: fb.Timeline, give_away: str) -> None:
    fence = timeline.export(1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        if give_away == "detach":
            kept = fb.SyncFile.from_fd(fence.detach())
        else:
            fb.send_sync_file(ours, b"x", fence)
            if give_away == "close":
                fence.close()
            _, kept = fb.recv_sync_file(theirs)
        with kept:
            assert kept.status() == 0
            timeline.advance(1)
            assert kept.status() == 1
    fence.close()


def test_what_nobody_can_see_is_not_kept(connection: fb.Broker, timeline: fb.Timeline) -> None:
    before = len(descriptors())
    for n in range(1, 50):
        timeline.export(n).close()
        assert n_duplicates(timeline) == 0
    with timeline.export(60):
        assert n_duplicates(timeline) == 1
    assert len(descriptors()) == before


def test_a_signal_keeps_nothing(connection: fb.Broker, timeline: fb.Timeline) -> None:
    before = len(descriptors())
    for n in range(1, 400):
        with timeline.export(n) as fence:
            timeline.advance(n)
            assert fence.status() == 1
    assert n_duplicates(timeline) == 0
    assert len(own_of(timeline)._order) <= 64
    assert len(descriptors()) == before


def test_points_that_are_given_back_leave_no_heap(connection: fb.Broker, timeline: fb.Timeline) -> None:
    with timeline.export(10_000):
        for n in range(1, 1000):
            timeline.export(n).close()
        assert len(own_of(timeline)._order) <= 2 * n_duplicates(timeline) + 65


def test_a_sync_file_that_is_given_back_in_the_middle_of_a_signal(
    connection: fb.Broker, timeline: fb.Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one is collected just then: it needs no lock, and what was closed is not written."""
    fences = timeline.export_many([1, 2, 3])
    pop = heapq.heappop
    before = len(descriptors())

    def give_one_back(heap: list[Any]) -> Any:
        fences[1].close()
        return pop(heap)

    monkeypatch.setattr("fencebroker.exclusive.heappop", give_one_back)
    timeline.advance(3)
    assert [fence.status() for fence in (fences[0], fences[2])] == [1, 1]
    assert len(descriptors()) == before - 4
    for fence in fences:
        fence.close()


# Who the producer does not wake: the broker does, for it is told


def _import(connection: fb.Broker, timeline: fb.Timeline, fence: fb.SyncFile) -> fb.SyncFile:
    return connection.import_sync_file(fence)


def _merge(connection: fb.Broker, timeline: fb.Timeline, fence: fb.SyncFile) -> fb.SyncFile:
    with connection.create_timeline() as other, other.export(1) as second:
        merged = connection.merge([fence, second])
        other.advance(1)
    return merged


def _nested(connection: fb.Broker, timeline: fb.Timeline, fence: fb.SyncFile) -> fb.SyncFile:
    with _merge(connection, timeline, fence) as merged, connection.create_timeline() as other, other.export(9) as never:
        return connection.merge([merged, never], when="any") if never.status() == 0 else merged


def _by_name(connection: fb.Broker, timeline: fb.Timeline, fence: fb.SyncFile) -> fb.SyncFile:
    return connection.sync_file("camera0@2", expiry=2 * LIMIT)


def _private(connection: fb.Broker, timeline: fb.Timeline, fence: fb.SyncFile) -> fb.SyncFile:
    return timeline.export(2, private=True)


@pytest.mark.parametrize("make", [_import, _merge, _by_name, _private])
@pytest.mark.parametrize("value", [2, 3])
def test_who_waits_through_the_broker_is_woken(
    connection: fb.Broker, make: Callable[[fb.Broker, fb.Timeline, fb.SyncFile], fb.SyncFile], value: int
) -> None:
    with connection.create_timeline("camera0") as timeline, timeline.export(2) as fence, make(connection, timeline, fence) as waits:
        timeline.advance(1)
        assert not is_readable(waits.fileno())
        timeline.advance(value)
        assert fence.status() == 1
        wait_readable(waits.fileno())
        assert waits.status() == 1


def test_nobody_is_woken_who_does_not_wait(broker: BrokerProcess) -> None:
    """The doorbell rings for the awaited point alone."""
    with working(broker.path) as (connection, timeline), timeline.export(50) as fence, connection.import_sync_file(fence) as private:
        before = switches_of(broker.pid)
        for n in range(1, 50):
            timeline.advance(n)
        assert switches_of(broker.pid) - before <= 1
        timeline.advance(50)
        wait_readable(private.fileno())


def test_an_error_travels_the_same_way(connection: fb.Broker, timeline: fb.Timeline) -> None:
    with timeline.export(1) as fence, connection.import_sync_file(fence) as private, connection.merge([fence, private]) as merged:
        timeline.fail(1, errno.EPIPE)
        for one in (fence, private, merged):
            wait_readable(one.fileno())
            assert one.status() == -errno.EPIPE
            assert connection.info(one).status == -errno.EPIPE


def test_an_import_of_what_is_only_in_the_ring_is_born_signalled(connection: fb.Broker, timeline: fb.Timeline) -> None:
    with timeline.export(1) as fence, timeline.export(2) as later:
        timeline.advance(1)
        with connection.import_sync_file(fence) as private, connection.merge([fence, later]) as merged:
            assert private.status() == 1
            assert merged.status() == 0
            assert not connection.info(fence).tampered


def test_a_placeholder_is_bound_and_woken(connection: fb.Broker) -> None:
    with connection.sync_file("camera7@3") as early, connection.create_timeline("camera7") as timeline:
        timeline.advance(2)
        assert early.status() == 0
        timeline.advance(3)
        wait_readable(early.fileno())
        assert early.status() == 1


def test_whoever_follows_the_events_hears_each_signal(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline):
        events = connection.events()
        heard: list[int] = []
        begun = threading.Event()

        def follow() -> None:
            for event in events:
                begun.set()
                if event.name == "dma_fence_signaled":
                    heard.append(event.seqno)
                    if event.seqno == 40:
                        return

        follower = threading.Thread(target=follow)
        follower.start()
        n = 1
        while not begun.is_set():  # until it has subscribed
            with timeline.export(100 + n):
                n += 1
                begun.wait(0.01)
        with contextlib.ExitStack() as stack:
            for seqno in range(1, 41):
                stack.enter_context(timeline.export(seqno))
            for seqno in range(1, 41):
                timeline.advance(seqno)
            follower.join(LIMIT)
        assert not follower.is_alive()
        assert heard == list(range(1, 41))
        events.close()  # type: ignore[attr-defined]  # a generator


def test_a_listing_shows_what_is_in_the_ring(connection: fb.Broker, timeline: fb.Timeline) -> None:
    with timeline.export(1), timeline.export(5):
        timeline.advance(3)
        rows = [row for rows in connection._listing("timelines") for row in [rows] if row[0] == timeline.context]
        assert rows[0][3] == 3
        kind, row = connection._lookup(f"{timeline.context}:1")
        assert kind == "fence"
        assert row[6] == 1


# The broker decides for itself


def test_what_was_committed_in_time_does_not_expire(connection: fb.Broker) -> None:
    """The expiry of a point, and of somebody's own wait for it, meets an advance that nobody has looked at."""
    with connection.create_timeline("camera0", expiry=0.2) as timeline, contextlib.ExitStack() as stack:
        fences = [stack.enter_context(timeline.export(n)) for n in (1, 2)]
        waits = [stack.enter_context(connection.sync_file(f"camera0@{n}", expiry=0.2)) for n in (1, 2)]
        timeline.advance(1)
        for one in (fences[1], waits[1]):
            wait_readable(one.fileno())
        assert [fence.status() for fence in fences] == [1, -errno.ETIME]
        assert [fence.status() for fence in waits] == [1, -errno.ETIME]
        # and the ring is used again
        timeline.advance(2)
        assert [fence.status() for fence in fences] == [1, -errno.ETIME]
        with timeline.export(3) as following:
            timeline.advance(3)
            assert following.status() == 1
        assert own_of(timeline).is_ready()


def test_descriptors_of_one_point_never_disagree(broker: BrokerProcess) -> None:
    """Points that expire at the moment at which they are signalled, again and again: two descriptors, and the record."""
    outcomes = set()
    with fb.connect(broker.path) as connection:
        for i in range(150):
            with (
                connection.create_timeline(expiry=0.003) as timeline,
                timeline.export(1) as fence,
                connection.import_sync_file(fence) as private,
            ):
                deadline = time.monotonic() + 0.0024 + i % 10 * 0.0001
                while time.monotonic() < deadline:
                    pass
                timeline.advance(1)
                wait_readable(private.fileno())
                wait_readable(fence.fileno())
                found = {fence.status(), private.status(), connection.info(fence).status}
                assert len(found) == 1, found
                outcomes |= found
    assert outcomes <= {1, -errno.ETIME}


def test_a_broker_that_is_stopped_takes_what_was_committed(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline), contextlib.ExitStack() as stack:
        fences = [stack.enter_context(timeline.export(n)) for n in (1, 2)]
        private = stack.enter_context(connection.merge([fences[0], stack.enter_context(connection.import_sync_file(fences[0]))]))
        with stopped(broker):
            timeline.advance(1)
        broker.stop()
        assert [fence.status() for fence in (*fences, private)] == [1, -errno.ECANCELED, 1]
        with pytest.raises(fb.BrokerUnavailable):
            timeline.advance(3)


# Others come to signal


def test_a_handed_out_timeline_is_signalled_by_whoever_has_it(connection: fb.Broker, spawn: Spawn, module_broker: BrokerProcess) -> None:
    with connection.create_timeline() as timeline, timeline.export(1) as first, timeline.export(2) as second, timeline.export(3) as third:
        timeline.advance(1)
        with timeline.share() as copy:
            assert timeline._signaller._own is None
            child = spawn(
                """
                import sys
                from fencebroker import wire
                from fencebroker.fds import OwnedFd, send_packet
                import socket
                with socket.socket(fileno=int(sys.argv[1])) as sock:
                    send_packet(sock, wire.encode([77, 1, wire.FAIL, 1, 5]))  # too late: it has signalled
                    send_packet(sock, wire.encode([77, 2, wire.FAIL, 2, 5]))
                print("sent")
                sys.stdin.readline()
                """,
                copy.fileno(),
                pass_fds=[copy.fileno()],
            )
            assert child.line() == "sent"
        wait_readable(second.fileno())
        assert [fence.status() for fence in (first, second, third)] == [1, -5, 0]
        timeline.advance(3)
        wait_readable(third.fileno())
        child.finish()
        assert [connection.info(fence).status for fence in (first, second, third)] == [1, -5, 1]


def _advance(timeline: fb.Timeline, value: int) -> None:
    with timeline:
        timeline.advance(value)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pickled_timeline_is_signalled_by_both(connection: fb.Broker, method: str) -> None:
    with connection.create_timeline() as timeline, timeline.export(1) as first, timeline.export(2) as second, timeline.export(3) as third:
        timeline.advance(1)
        context: Any = multiprocessing.get_context(method)
        worker = context.Process(target=_advance, args=(timeline, 2))
        worker.start()
        second.wait(LIMIT)
        worker.join(LIMIT)
        worker.close()
        timeline.advance(3)
        third.wait(LIMIT)
        assert first.status() == 1


def test_a_second_signaller_ends_the_use_of_the_ring(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline), fb.connect(broker.path) as other, contextlib.ExitStack() as stack:
        fences = [stack.enter_context(timeline.export(n)) for n in range(1, 6)]
        timeline.advance(1)
        second = stack.enter_context(other.open_timeline("camera0"))
        assert second.value == 1
        assert not own_of(timeline).is_ready()
        second.fail(3, errno.EIO)
        timeline.inc(2)  # two above what both have done
        wait_readable(fences[4].fileno())
        assert [fence.status() for fence in fences] == [1, 1, -errno.EIO, 1, 1]
        assert [connection.info(fence).status for fence in fences] == [1, 1, -errno.EIO, 1, 1]


def test_a_commit_just_after_a_second_signaller_came_counts_once(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed in the moment in which the ring was frozen is the broker's to write."""
    with (
        working(broker.path) as (connection, timeline),
        fb.connect(broker.path) as other,
        timeline.export(2) as fence,
        contextlib.ExitStack() as stack,
    ):
        commit = ring.Writer.commit
        written: list[int] = []

        def late(*args: Any) -> bool:
            stack.enter_context(other.open_timeline("camera0"))
            return commit(*args)

        with monkeypatch.context() as patch:
            patch.setattr("fencebroker.ring.Writer.commit", late)
            patch.setattr("fencebroker.exclusive.signal_and_close", lambda fd, _: written.append(fd))
            timeline.inc(2)
        assert not written, "a frozen producer leaves it to the broker, and rings"
        wait_readable(fence.fileno())
        kind, row = connection._lookup("camera0")
        assert (kind, row[3]) == ("timeline", 2)


def test_a_stranger_on_the_same_socket_freezes_the_ring(broker: BrokerProcess) -> None:
    """A descriptor that got away behind the library's back: its packets count, and no two descriptors disagree."""
    with working(broker.path) as (connection, timeline), timeline.export(1) as fence, connection.import_sync_file(fence) as private:
        with timeline._signaller._sock.dup() as stray:
            send_packet(stray, wire.encode([99, 1, wire.FAIL, 1, errno.EIO]))
            wait_readable(private.fileno())
        assert fence.status() == private.status() == -errno.EIO
        assert not own_of(timeline).is_ready()
        timeline.advance(1)
        assert connection.info(fence).status == -errno.EIO


def test_cancelled_points_stay_cancelled(connection: fb.Broker) -> None:
    with contextlib.ExitStack() as stack:
        timeline = connection.create_timeline()
        fences = [stack.enter_context(timeline.export(n)) for n in (1, 2)]
        private = stack.enter_context(connection.import_sync_file(fences[1]))
        timeline.advance(1)
        timeline.__exit__(RuntimeError, RuntimeError(), None)
        wait_readable(private.fileno())
        assert [fence.status() for fence in (*fences, private)] == [1, -errno.ECANCELED, -errno.ECANCELED]


# A ring that is full


def test_a_full_ring_gives_way_to_packets_and_order_is_kept(broker: BrokerProcess) -> None:
    """The broker is stopped; the failures in between must not be overtaken by what comes after them, on either way."""
    n = ring.CAPACITY + 60
    failing = {10, ring.CAPACITY - 2, ring.CAPACITY + 2, n - 1}
    with working(broker.path) as (connection, timeline), contextlib.ExitStack() as stack:
        fences = {i: stack.enter_context(timeline.export(i)) for i in (*failing, n)}
        private = stack.enter_context(connection.import_sync_file(fences[n]))
        with stopped(broker):
            for i in range(1, n + 1):
                if i in failing:
                    timeline.fail(i, errno.EIO)
                elif i % 3:
                    timeline.advance(i)
                else:
                    timeline.inc()
            assert timeline.value == n
            assert not own_of(timeline).is_ready()
            assert fences[10].status() == -errno.EIO
        wait_readable(private.fileno())
        expected = {i: -errno.EIO if i in failing else 1 for i in fences}
        assert {i: connection.info(fence).status for i, fence in fences.items()} == expected
        assert {i: fence.status() for i, fence in fences.items()} == expected
        assert own_of(timeline).is_ready()
        with timeline.export(n + 1) as following:
            timeline.inc()
            assert following.status() == 1
        assert connection._lookup("camera0")[1][3] == n + 1


def test_the_ring_is_handed_out_full(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline):
        with stopped(broker):
            for _ in range(ring.CAPACITY + 5):
                timeline.inc()
            copy = timeline.share()
        with copy:
            timeline.inc()
            assert connection._lookup("camera0")[1][3] == ring.CAPACITY + 6


def test_half_full_wakes_the_broker(broker: BrokerProcess) -> None:
    """So that a producer whom nobody asks anything need not send packets."""
    with working(broker.path) as (_, timeline):
        sent = timeline._signaller._counter
        for _ in range(20 * ring.CAPACITY):
            timeline.inc()
            while not own_of(timeline).is_ready():
                os.sched_yield()
        assert timeline._signaller._counter == sent


# Death


KILLED_AT = {
    "before the commit": ("fencebroker.ring.Writer.commit", {1: -errno.ENOENT, 2: -errno.ENOENT, 3: -errno.ENOENT}),
    "after the commit": ("fencebroker.exclusive.signal_and_close", {1: 1, 2: 1, 3: -errno.ENOENT}),
    "at the doorbell": ("fencebroker.timeline.Signaller.ring_the_bell", {1: 1, 2: 1, 3: -errno.ENOENT}),
}


@pytest.mark.parametrize("moment", KILLED_AT)
@pytest.mark.parametrize("look", ["holders", "record first"])
def test_a_producer_is_killed(broker: BrokerProcess, spawn: Spawn, moment: str, look: str) -> None:
    """What it committed is signalled by the broker, what it did not has failed; all descriptors agree, whoever looks first."""
    where, expected = KILLED_AT[moment]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        child = spawn(
            """
            import importlib, os, signal, socket, sys
            import fencebroker as fb, fencebroker.exclusive
            sock = socket.socket(fileno=int(sys.argv[1]))
            timeline = fb.connect().create_timeline("camera0")
            for n in (1, 2, 3):
                fb.send_sync_file(sock, b"x", timeline.export(n))
            module, *names = sys.argv[2].split(".")[:2], *sys.argv[2].split(".")[2:]
            owner = importlib.import_module(".".join(module))
            for name in names[:-1]:
                owner = getattr(owner, name)
            setattr(owner, names[-1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            sys.stdin.readline()
            timeline.advance(2)
            """,
            theirs.fileno(),
            where,
            pass_fds=[theirs.fileno()],
            env=broker.env,
        )
        fences = {}
        for n in (1, 2, 3):
            wait_readable(ours.fileno())
            fences[n] = stack.enter_context(fb.recv_sync_file(ours)[1])
        private = {n: stack.enter_context(connection.import_sync_file(fence)) for n, fence in fences.items()}
        child.send("go")
        assert child.wait() == -signal.SIGKILL
        if look == "record first":
            assert {n: connection.info(fence).status for n, fence in fences.items()} == expected
        for one in (*fences.values(), *private.values()):
            wait_readable(one.fileno())
        assert {n: fence.status() for n, fence in fences.items()} == expected
        assert {n: fence.status() for n, fence in private.items()} == expected
        assert {n: connection.info(fence).status for n, fence in fences.items()} == expected


def test_producers_are_killed_at_any_moment(broker: BrokerProcess, spawn: Spawn) -> None:
    """While they advance as fast as they can: descriptors and record agree, what was signalled comes first, and nothing stays active."""
    n = 60
    ends = set()
    for i in range(12):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
            child = spawn(
                """
                import socket, sys
                import fencebroker as fb
                timeline = fb.connect().create_timeline()
                with socket.socket(fileno=int(sys.argv[1])) as sock:
                    for fence in timeline.export_many(range(1, int(sys.argv[2]) + 1)):
                        fb.send_sync_file(sock, b"x", fence)
                sys.stdin.readline()
                for value in range(1, int(sys.argv[2]) + 1):
                    timeline.advance(value)
                sys.stdin.readline()
                """,
                theirs.fileno(),
                n,
                pass_fds=[theirs.fileno()],
                env=broker.env,
            )
            fences = []
            for _ in range(n):
                wait_readable(ours.fileno())
                fences.append(stack.enter_context(fb.recv_sync_file(ours)[1]))
            private = {k: stack.enter_context(connection.import_sync_file(fences[k])) for k in range(0, n, 7)}
            child.send("go")
            wait_readable(fences[i * 4].fileno())
            child.signal(signal.SIGKILL)
            for one in (*fences, *private.values()):
                wait_readable(one.fileno())
            statuses = [fence.status() for fence in fences]
            passed = statuses.count(1)
            assert statuses == [1] * passed + [-errno.ENOENT] * (n - passed)
            assert {k: fence.status() for k, fence in private.items()} == {k: statuses[k] for k in private}
            assert [connection.info(fence).status for fence in fences] == statuses
            ends.add(passed)
            child.wait()
    assert len(ends) > 1, "every one of them had come to the same point"


# Hostile producers


@pytest.fixture
def hostile(broker: BrokerProcess) -> Iterator[Hostile]:
    with WireClient(broker.path) as client, contextlib.closing(Hostile(client)) as made:
        yield made


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("seen_by", ["doorbell", "question"])
def test_nonsense_costs_its_own_timeline(broker: BrokerProcess, hostile: Hostile, spoil: Callable[[Hostile], None], seen_by: str) -> None:
    with working(broker.path) as (connection, honest), honest.export(1) as fine, hostile.export(9) as fence:
        spoil(hostile)
        if seen_by == "doorbell":
            hostile.ring_the_bell()
        else:
            assert hostile.client.ask(wire.INFO, hostile.handle, 0)[1] == 0
        wait_readable(fence.fileno())
        assert fence.status() == -errno.EPROTO
        assert hostile.words[11] == 1, "it is told not to go on"
        honest.advance(1)
        assert fine.status() == connection.info(fine).status == 1
        assert hostile.client.ask(wire.STATUS)[1] == 0, "its session goes on"
    assert broker.log().count("EPROTO") == 1


def test_a_page_that_changes_all_the_time_ends_one_timeline(broker: BrokerProcess, hostile: Hostile) -> None:
    """Random stores into the whole page while the broker reads it: it copies, then checks."""
    with working(broker.path) as (connection, honest), hostile.export(2**62) as fence:
        end = threading.Event()

        def scribble() -> None:
            n = 0
            while not end.is_set():
                n = (n * 6364136223846793005 + 1442695040888963407) % 2**64
                hostile.words[n % 1024] = n
                hostile.words[0] = n % 300

        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            hostile.ring_the_bell()
            wait_readable(fence.fileno())
        finally:
            end.set()
            scribbler.join()
        with honest.export(1) as fine:
            honest.advance(1)
            assert connection.info(fine).status == 1


def test_times_that_cannot_be_are_bent(broker: BrokerProcess, hostile: Hostile) -> None:
    with fb.connect(broker.path) as connection, hostile.export(1) as first, hostile.export(2) as second:
        before = time.monotonic_ns()
        hostile.writer.commit(ring.ADVANCE, 1, 0, 2**64 - 1)
        hostile.writer.commit(ring.ADVANCE, 2, 0, 0)
        rows = [hostile.client.ask(wire.INFO, hostile.handle - 1 + i, 0)[2] for i in (0, 1)]
        after = time.monotonic_ns()
        times = [row[8] for row in rows]
        assert before <= times[0] == times[1] <= after
        del connection, first, second


def test_a_ring_can_not_be_taken_away(hostile: Hostile) -> None:
    fd = hostile.memory.fileno()
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    for size in (0, 2 * ring.RING_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE


@pytest.mark.parametrize("case", ["twice", "unknown context", "opened by another", "another session's"])
def test_a_ring_is_refused(broker: BrokerProcess, hostile: Hostile, case: str) -> None:
    client = hostile.client
    if case == "twice":
        assert client.ask(wire.RING, hostile.context, 5)[1] == errno.EBUSY
    elif case == "unknown context":
        assert client.ask(wire.RING, 999, 5)[1] == errno.EBADF
    else:
        with fb.connect(broker.path) as connection, connection.create_timeline("shared") as timeline, WireClient(broker.path) as other:
            if case == "opened by another":
                other.ask(wire.OPEN_TIMELINE, "shared")
            else:
                other.ask(wire.SHOW_TIMELINE, fds=[timeline._signaller.fileno()])
            assert other.ask(wire.RING, timeline.context, 5)[1] == errno.EBUSY


def test_a_doorbell_without_a_ring_is_harmless(broker: BrokerProcess) -> None:
    with working(broker.path) as (connection, timeline), timeline.export(1) as fence:
        with timeline.share() as copy:
            send_packet(copy, wire.DOORBELL)
            send_packet(copy, wire.DOORBELL)
        assert connection.info(fence).status == 0
        timeline.advance(1)
        fence.wait(LIMIT)


# A client without a ring


def test_a_client_without_a_ring_works_by_packets(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process cannot take part in barriers."""
    monkeypatch.setattr("fencebroker.client.can_use_ring", lambda: False)
    with working(broker.path) as (connection, timeline), timeline.export(1) as fence, connection.import_sync_file(fence) as private:
        assert timeline._signaller._own is None
        timeline.advance(1)
        for one in (fence, private):
            one.wait(LIMIT)


def test_a_client_that_is_refused_a_ring_works_by_packets(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a broker that is older than rings."""
    monkeypatch.setattr(wire, "RING", 99)
    with working(broker.path) as (_, timeline), timeline.export(1) as fence:
        assert timeline._signaller._own is None
        timeline.advance(1)
        fence.wait(LIMIT)


def test_a_broker_without_room_for_rings_serves_without(start_limited: Callable[..., BrokerProcess]) -> None:
    broker = start_limited(150)
    with fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        timelines = []
        with contextlib.suppress(fb.QuotaExceeded):
            while True:
                timelines.append(stack.enter_context(connection.create_timeline()))
        with_ring = [timeline._signaller._own is not None for timeline in timelines]
        assert with_ring[0]
        timelines[-1].advance(3)


# Processes


def test_a_forked_child_has_neither_ring_nor_duplicates(broker: BrokerProcess, spawn: Spawn) -> None:
    child = spawn(
        """
        import os, pathlib, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline:
            fences = timeline.export_many(range(1, 21))
            before = len(os.listdir("/proc/self/fd"))
            pid = os.fork()
            if pid == 0:
                # Its copies of the fences, but not the twenty duplicates, the timeline and the connection.
                left = len(os.listdir("/proc/self/fd"))
                maps = pathlib.Path("/proc/self/maps").read_text()
                try:
                    timeline.advance(1)
                except ValueError:
                    os._exit(0 if before - left == 22 and "fencebroker-ring" not in maps else 1)
                os._exit(2)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            timeline.advance(20)
            print([fence.status() for fence in fences] == [1] * 20, "fencebroker-ring" in pathlib.Path("/proc/self/maps").read_text())
            for fence in fences:
                fence.close()
        """,
        env=broker.env,
    )
    assert child.line() == "0"
    assert child.line() == "True True"
    child.finish()


def test_at_the_descriptor_limit_the_broker_writes(broker: BrokerProcess, spawn: Spawn) -> None:
    """No room for a duplicate: that point is rung for."""
    child = spawn(
        """
        import os, resource, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1) as first:
            with timeline.export(2) as second:  # which number comes next, twice
                number = second.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1, 4096))
            with timeline.export(3) as third:
                duplicates = len(timeline._signaller._own._duplicates)
                resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
                timeline.advance(3)
                third.wait(10)
                print(duplicates, first.status(), third.status())
        """,
        env=broker.env,
    )
    assert child.line() == "3 1 1"
    child.finish()


def test_asyncio_signals_by_the_ring_too(broker: BrokerProcess) -> None:
    async def run() -> None:
        async with await aio.connect(broker.path) as connection, await connection.create_timeline() as timeline:
            assert timeline._signaller._own is not None
            with (
                await timeline.export(1) as first,
                await timeline.export(2) as second,
                await connection.import_sync_file(second) as private,
            ):
                with stopped(broker):
                    await timeline.advance(1)
                    assert first.status() == 1
                await timeline.fail(2, errno.EIO)
                assert second.status() == -errno.EIO
                with pytest.raises(fb.FenceError):
                    await aio.wait(private, LIMIT)
            with timeline.share():
                assert timeline._signaller._own is None

    asyncio.run(run())


def test_an_interrupt_in_the_middle_of_a_signal_loses_nothing(
    connection: fb.Broker, timeline: fb.Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with timeline.export(1) as first, timeline.export(2) as second:

        def interrupted(fd: int, _: int) -> bool:
            os.close(fd)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("fencebroker.exclusive.signal_and_close", interrupted)
            with pytest.raises(KeyboardInterrupt):
                timeline.advance(2)
        for fence in (first, second):
            fence.wait(LIMIT)
        assert timeline.value == 2


def test_threads_signal_and_export_at_the_same_time(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """An export whose point another thread passes while it is under way is signalled all the same."""
    end = 400
    failures: list[BaseException] = []

    def advance() -> None:
        for value in range(1, end + 1):
            timeline.advance(value)

    def export() -> None:
        try:
            while (value := timeline.value) < end:
                with timeline.export(value + 1) as fence:
                    fence.wait(LIMIT)
        except BaseException as err:  # noqa: BLE001 - told to the test
            failures.append(err)

    threads = [threading.Thread(target=export) for _ in range(3)]
    for thread in threads:
        thread.start()
    advance()
    for thread in threads:
        thread.join(2 * LIMIT)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


# System calls


def _calls(spawn: Spawn, broker: BrokerProcess, folder: str, setup: str, action: str) -> list[str]:
    """The system calls of ``action``, after ``setup``."""
    if subprocess.run(["sh", "-c", "command -v strace"], capture_output=True, check=False).returncode:
        not_run("no strace to see the system calls with")
    code = f"""
import gc, os, fencebroker as fb
with fb.connect() as broker, broker.create_timeline() as timeline:
    timeline.advance(1)  # whatever is done once has been done
{textwrap.indent(textwrap.dedent(setup).strip(), "    ")}
    gc.collect()
    gc.disable()
    os.path.exists("/begin")
    {action}
    os.path.exists("/end")
    gc.enable()
    for fence in fences:
        fence.close()
"""
    child = spawn(["strace", "-qq", "-o", f"{folder}/trace", sys.executable, "-c", code], env=broker.env)
    child.finish()
    with open(f"{folder}/trace", encoding="utf-8", errors="replace") as lines:
        text = lines.read()
    between = text.split('"/begin"', 1)[1].split('"/end"', 1)[0].splitlines()[1:-1]
    return [line.split("(")[0] for line in between]


@pytest.mark.parametrize(
    ("setup", "action", "expected"),
    [
        ("fences = []", "timeline.advance(5)", []),
        ("fences = []", "timeline.advance(1)", []),
        ("fences = []", "timeline.inc(3)", []),
        ("fences = [timeline.export(9)]", "timeline.advance(5)", []),
        ("fences = [timeline.export(5)]", "timeline.advance(5)", ["write", "close"]),
        ("fences = [timeline.export(5), timeline.export(9)]", "timeline.advance(5)", ["write", "close"]),
        ("fences = timeline.export_many([2, 3, 4])", "timeline.advance(4)", ["write", "close"] * 3),
        ("fences = [timeline.export(5)]", "timeline.fail(5, 5)", ["poll", "write", "close"]),
        (
            "fences = [timeline.export(5)]; fences.append(broker.import_sync_file(fences[0])); broker._status()",
            "timeline.advance(5)",
            ["write", "close", "sendto"],
        ),
        ("fences = []", "fences = [timeline.export(5)]", ["sendto", "recvmsg", "fcntl"]),
    ],
)
def test_what_a_signal_costs(broker: BrokerProcess, spawn: Spawn, folder: str, setup: str, action: str, expected: list[str]) -> None:
    """Counted exactly: one write and one close for each active export that is signalled, and nothing when there is none."""
    assert _calls(spawn, broker, folder, setup, action) == expected


# The census of the broker


def test_a_ring_costs_the_broker_one_descriptor_and_gives_it_back(broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        stack.enter_context(connection.create_timeline())  # and the pidfd of this process, once
        before = descriptors_of(broker.pid)
        for _ in range(10):
            stack.enter_context(connection.create_timeline())
        assert descriptors_of(broker.pid) - before == 10 * 2
        for _ in range(5):
            stack.enter_context(connection.create_timeline()).share().close()
        connection._status()
        assert descriptors_of(broker.pid) - before == 10 * 2 + 5
