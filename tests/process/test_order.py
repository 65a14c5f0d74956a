"""A process that asks the broker after it acted sees its own action; and long runs leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors
from tests.process.wire_client import descriptors_of

ROUNDS = 3000


def test_an_advance_is_seen_by_the_next_question(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """3,000 rounds: what went over the timeline's socket comes before what goes over the connection's afterwards."""
    with timeline.export(ROUNDS) as fence:
        for value in range(1, ROUNDS + 1):
            timeline.advance(value)
            status = connection.info(fence).status
            assert status == (1 if value == ROUNDS else 0)
            with timeline.export(value) as passed:
                assert passed.status() == 1, value


def test_a_bare_close_is_seen_by_the_next_question(connection: fb.Broker) -> None:
    """3,000 rounds: end-of-file on the timeline's socket too.  The library's own farewell is left out: it would do it alone."""
    for i in range(ROUNDS):
        timeline = connection.create_timeline("again")
        with timeline.export(1) as fence:
            timeline._signaller.close()
            assert connection.info(fence).status == -errno.ENOENT, i


def test_the_end_of_another_process_is_seen_by_who_waited_for_it(spawn: Spawn, broker: BrokerProcess) -> None:
    """Whoever reaps a producer and then asks finds its name free and its fences failed."""
    child = spawn(
        """
        import errno, os, fencebroker as fb
        with fb.connect() as broker:
            for i in range(100):
                r, w = os.pipe()
                go, tell = os.pipe()
                if not (pid := os.fork()):
                    timeline = broker.create_timeline("worker")
                    os.write(w, b"x")
                    os.read(go, 1)
                    os._exit(0) if i % 2 else os.kill(os.getpid(), 9)
                os.read(r, 1)
                with broker.sync_file("worker@1") as fence:
                    os.write(tell, b"x")
                    os.waitpid(pid, 0)
                    assert broker.info(fence).status == -errno.ENOENT, i
                broker.create_timeline("worker").close()
                for fd in (r, w, go, tell):
                    os.close(fd)
        """,
        env=broker.env,
    )
    child.finish(2 * LIMIT)


def test_a_share_that_was_sent_is_no_end(connection: fb.Broker) -> None:
    """A copy in flight keeps the timeline; its close is the end."""
    for _ in range(300):
        timeline = connection.create_timeline()
        with timeline.share() as copy, timeline.export(1) as fence:
            timeline.close()
            assert connection.info(fence).status == 0
            copy.close()
            assert connection.info(fence).status == -errno.ENOENT


# Long runs


def test_ten_thousand_rounds_leave_no_descriptor(broker: BrokerProcess) -> None:
    """export, advance, close: what both processes have open afterwards is what they had before."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        connection._status()
        here, there = descriptors(), descriptors_of(broker.pid)
        for value in range(1, 10_001):
            with timeline.export(value) as fence:
                timeline.advance(value)
                if value % 1000 == 0:
                    fence.wait(LIMIT)
        status = connection._status()
        assert (status["sync_files"], status["active_fences"]) == (0, 0)
        assert descriptors() == here
        assert descriptors_of(broker.pid) == there


def test_closing_active_ones_leaves_no_descriptor(broker: BrokerProcess) -> None:
    """A fence that nobody can see any more leaves its timeline before it signals."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        connection._status()
        here, there = descriptors(), descriptors_of(broker.pid)
        for _ in range(20):
            for fence in timeline.export_many(range(1, 254)):
                fence.close()
        status = connection._status()
        assert (status["sync_files"], status["fences"], status["active_fences"]) == (0, 0, 0)
        assert (descriptors(), descriptors_of(broker.pid)) == (here, there)


def test_every_verb_leaves_no_descriptor(broker: BrokerProcess) -> None:
    """Timelines, merges, imports, names, questions, refusals: 300 rounds of each."""
    with fb.connect(broker.path) as connection:

        def all_verbs(i: int) -> None:
            with contextlib.ExitStack() as stack:
                timeline = stack.enter_context(connection.create_timeline("leaky", expiry=60))
                second = stack.enter_context(connection.open_timeline("leaky"))
                fences = [stack.enter_context(fence) for fence in timeline.export_many([1, 2, 3])]
                merged = stack.enter_context(connection.merge(fences))
                either = stack.enter_context(connection.merge([merged, fences[2]], when="any"))
                named = stack.enter_context(connection.sync_file("leaky@2", expiry=50))
                ahead = stack.enter_context(connection.sync_file(f"ahead{i}@1"))
                stack.enter_context(connection.import_sync_file(named))
                stack.enter_context(connection.merge([either, ahead]))
                with pytest.raises(FileExistsError):
                    connection.create_timeline("leaky")
                with pytest.raises(fb.NotASyncFile):
                    connection.import_sync_file(0)
                connection.info(merged)
                named.set_deadline(1)
                second.advance(1)

        all_verbs(0)
        connection._status()
        here, there = descriptors(), descriptors_of(broker.pid)
        for i in range(1, 300):
            all_verbs(i)
        status = connection._status()
        assert (status["sync_files"], status["timelines"], status["active_fences"]) == (0, 0, 0)
        assert descriptors() == here
        with fb.connect(broker.path) as other:
            while other._status()["descriptors"] > 4:
                pass
        while descriptors_of(broker.pid) > there:
            pass  # the reaper closes sockets a little later


def test_shown_descriptors_are_kept_for_a_while_and_bounded(broker: BrokerProcess) -> None:
    """Somebody may hold a copy of what was exposed: the newest 1,024 signalled ones can still be asked for by descriptor."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        there = descriptors_of(broker.pid)
        for value in range(1, 1501):
            with timeline.export(value) as fence:
                fence.fileno()
                timeline.advance(value)
        assert connection._status()["sync_files"] <= 1024
        assert descriptors_of(broker.pid) - there <= 1024


def test_kept_ones_give_way(start_limited: Callable[..., BrokerProcess]) -> None:
    """With few descriptors, what is only kept for questions makes room for what is asked for; the latest are kept longest."""
    broker = start_limited(128)
    with fb.connect(broker.path) as connection, connection.create_timeline("few") as timeline:
        for value in range(1, 501):
            with timeline.export(value) as fence:
                number = fence.dup()
                timeline.advance(value)
                fence.wait(LIMIT)
            with number:
                assert connection.info(number.fileno()).status == 1
                with connection.import_sync_file(number.fileno()) as imported, connection.merge([number.fileno(), imported]) as merged:
                    merged.wait(LIMIT)
        assert connection._status()["active_fences"] == 0


def test_sessions_leave_no_descriptor(broker: BrokerProcess) -> None:
    """2,000 connections: each end is given back, with timelines and fences still open."""
    with fb.connect(broker.path) as watcher:
        watcher._status()
        there = descriptors_of(broker.pid)
        here = descriptors()
        for i in range(2000):
            with fb.connect(broker.path) as connection:
                if i % 10 == 0:
                    with connection.create_timeline() as timeline, timeline.export(1):
                        pass
        while watcher._status()["sessions"] > 1:
            pass
        while descriptors_of(broker.pid) > there:
            pass
        assert descriptors() == here
