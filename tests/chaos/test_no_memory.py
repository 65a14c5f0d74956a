"""The kernel has no memory for the journal: nothing new is made, all else goes on and is on record, and with memory again all is as before.

strace refuses what the broker asks for, from one moment on and up to another: a machine that is really out of memory kills somebody instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

import pytest

import fencebroker as fb
from fencebroker.fds import peek_status
from fencebroker.rows import TimelineRow, read_row
from fencebrokerd.keeper import HALF, LENGTH
from fencebrokerd.shell.journal import ROOM, STEP
from tests.chaos.test_damaged_journal import journal_of
from tests.chaos.tracing import injected, strace
from tests.helpers import BrokerProcess, Spawn, StartBroker, wait_readable

#: Points in one request.
BATCH: Final = 250
SHORT: Final = "there is no memory for the journal"
AGAIN: Final = "there is memory for the journal again"
#: More than any journal here has memory for, in packets of which each leaves a record.
PACKETS: Final = 12_000

#: Sessions that come and go, so that most of what is on record is over.
VISITS: Final = 100


def no_memory(keeper: int, broker: int, error: str = "ENOSPC") -> contextlib.AbstractContextManager[None]:
    """Refuse memory to the journal of this broker, and of those after it."""
    return injected("fallocate", f"error={error}", keeper, broker, children=True)


def fill(timeline: fb.Timeline) -> list[fb.SyncFile]:
    """Export until it is refused, in batches; the points begin with 1."""
    fences: list[fb.SyncFile] = []
    with pytest.raises(OSError, match="no memory to remember anything new") as caught:  # noqa: PT012
        while True:
            fences += timeline.export_many(range(len(fences) + 1, len(fences) + BATCH + 1))
    assert caught.value.errno == errno.ENOMEM
    return fences


def say(broker: BrokerProcess, text: str, times: int) -> None:
    assert broker.log().count(text) == times, broker.log()


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM"])
def test_what_is_there_goes_on_and_nothing_new_is_made(broker: BrokerProcess, error: str) -> None:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path, autostart=False))
        before = connection._status()
        timeline = stack.enter_context(connection.create_timeline("camera0", mode=0o644))
        other = stack.enter_context(connection.create_timeline("camera1"))
        private = stack.enter_context(other.export(1, private=True))
        failed = stack.enter_context(other.export(2, private=True))
        with no_memory(broker.process.pid, broker.pid, error):
            fences = fill(timeline)
            for fence in fences:
                stack.enter_context(fence)
            assert len(fences) >= BATCH
            refused: list[Callable[[], object]] = [
                connection.create_timeline,
                lambda: connection.open_timeline("camera0"),
                lambda: timeline.export(1),
                lambda: connection.sync_file("camera0@1"),
                lambda: connection.sync_file("nobody@1"),
                lambda: connection.import_sync_file(fences[0]),
                lambda: connection.merge(fences[:2]),
            ]
            for ask in refused:
                with pytest.raises(OSError, match="no memory to remember anything new") as caught:
                    ask()
                assert caught.value.errno == errno.ENOMEM
            # Who comes is served, and asks; who has something uses it, and gives it up.
            with fb.connect(broker.path, autostart=False) as guest:
                assert guest._status()["sync_files"] == len(fences) + 2
            assert connection.info(fences[0]).status == 0
            fences[1].set_deadline(2**62)
            other.advance(1)
            other.fail(2, errno.EIO)
            timeline.advance(len(fences) - 1)
            for fence in (private, failed, *fences[:-1]):
                wait_readable(fence.fileno())
            assert peek_status(failed.fileno()) == -errno.EIO
            assert {peek_status(fence.fileno()) for fence in (private, *fences[:-1])} == {1}
            assert peek_status(fences[-1].fileno()) == 0
            after = connection._status()
            assert (after["pid"], after["recoveries"]) == (before["pid"], 0)
            say(broker, SHORT, 1)
        for ask in refused:
            stack.callback(ask().close)  # type: ignore[attr-defined]
        say(broker, SHORT, 1)
        say(broker, AGAIN, 1)


def test_signals_are_on_record_however_many_there_are(broker: BrokerProcess) -> None:
    """More than there is memory for: the journal is written anew in what it has.  Who follows a broker that is killed then knows all."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path, autostart=False))
        timeline = stack.enter_context(connection.create_timeline("camera0"))
        other = stack.enter_context(connection.create_timeline("camera1"))
        last = stack.enter_context(other.export(PACKETS))
        stack.enter_context(other.share())  # from here on the broker signals it, for each packet
        with no_memory(broker.process.pid, broker.pid):
            fences = fill(timeline)
            for fence in fences:
                stack.enter_context(fence)
            timeline.advance(BATCH)
            lengths = []
            for n in range(1, PACKETS):
                other.advance(n)
                if n % 500 == 0:
                    lengths.append(connection._status()["journal_bytes"])
            assert lengths != sorted(lengths), "it was never written anew"
            assert max(lengths) <= 4 * STEP
            os.kill(broker.pid, signal.SIGKILL)
            other.advance(PACKETS)
            wait_readable(last.fileno())
            status = connection._status()
            assert (status["generation"], status["recoveries"]) == (2, 1)
            # This one has no memory either, and what its forerunner wrote.
            with pytest.raises(OSError, match="no memory to remember anything new"):
                timeline.export(1)
            timeline.advance(2 * BATCH)
            wait_readable(fences[2 * BATCH - 1].fileno())
            assert [connection.info(fence).status for fence in (fences[0], fences[2 * BATCH - 1], fences[2 * BATCH], last)] == [1, 1, 0, 1]
        timeline.export(1).close()
        say(broker, SHORT, 2)
        say(broker, AGAIN, 1)
        say(broker, "Traceback", 0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("signal", "compact.torn"),
        ("signal", "compact.written"),
        ("signal", "compact.after"),
        ("request", "compact.written"),
        ("request", "compact.after"),
    ],
)
def test_a_death_while_a_record_is_written_with_everything(start_broker: StartBroker, kind: str, name: str) -> None:
    """The packet in hand is what did not fit.  It has its effect once, and its answer comes."""
    # The first time is at the start.
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": f"{name}:2@1"})
    broker.expect_trouble()
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path, autostart=False))
        timeline = stack.enter_context(connection.create_timeline("camera0"))
        other = stack.enter_context(connection.create_timeline("camera1"))
        stack.enter_context(other.share())
        with no_memory(broker.process.pid, broker.pid):
            fences = fill(timeline)
            for fence in fences:
                stack.enter_context(fence)
            n = 0
            while connection._status()["generation"] == 1 and n < PACKETS:
                for _ in range(100):
                    n += 1
                    if kind == "signal":
                        other.inc()
                    else:
                        fences[n % len(fences)].set_deadline(2**62 - n)  # the soonest stands, so each is on record
            status = connection._status()
            assert (status["generation"], status["recoveries"]) == (2, 1)
            if kind == "signal":
                row = read_row(*connection._lookup("camera1"))
                assert isinstance(row, TimelineRow)
                assert row.value == n
            timeline.advance(len(fences))
            for fence in fences:
                wait_readable(fence.fileno())
            assert {connection.info(fence).status for fence in fences[::100]} == {1}
        say(broker, f"failpoint {name}", 1)
        say(broker, "missing descriptor", 0)
        say(broker, "fault of the broker's own", 0)
        say(broker, "Traceback", 0)
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        wait_readable(fence.fileno())
    assert broker.stop()[0] == 0, broker.log()


@pytest.mark.parametrize("name", ["accept.after", "answer.after"])
def test_a_broker_takes_over_without_memory(start_broker: StartBroker, name: str) -> None:
    """It has something to record before it serves, a connection or that a timeline's end was sent, and not a byte for it."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": f"{name}:{VISITS + 2}@1"})
    timelines: list[fb.Timeline] = []
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path, autostart=False))
        for _ in range(VISITS):
            fb.connect(broker.path, autostart=False).close()
        with no_memory(broker.process.pid, broker.pid), journal_of(broker.process.pid) as (_, words):
            length = words[LENGTH + words[HALF]]
            words[ROOM] = length
            if name == "accept.after":
                connection = stack.enter_context(fb.connect(broker.path, autostart=False))
            else:
                timelines.append(stack.enter_context(connection.create_timeline()))
            status = connection._status()
            assert (status["generation"], status["recoveries"]) == (2, 1)
            assert status["journal_bytes"] < length // 2, "it was not written anew"
        timelines.append(stack.enter_context(connection.create_timeline()))
        for timeline in timelines:
            with timeline.export(1) as fence:
                timeline.advance(1)
                wait_readable(fence.fileno())
                assert connection.info(fence).status == 1
        for bad in ("missing descriptor", "fault of the broker's own", "Traceback"):
            say(broker, bad, 0)


def test_memory_is_given_back(broker: BrokerProcess) -> None:
    folder = f"/proc/{broker.process.pid}/fd"
    memory = next(f"{folder}/{fd}" for fd in os.listdir(folder) if "fencebroker-journal" in os.readlink(f"{folder}/{fd}"))

    def used() -> int:
        return os.stat(memory).st_blocks * 512

    assert used() <= 3 * STEP
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline() as timeline:
        length = connection._status()["journal_bytes"]
        while length < 2 * STEP:
            for fence in timeline.export_many(range(1, BATCH + 1)):
                fence.close()
            length = connection._status()["journal_bytes"]
        assert used() >= 2 * 2 * length  # in both halves, ahead
        broker.reload()
        assert connection._status()["journal_bytes"] < STEP // 2
        assert used() <= 7 * STEP


def test_a_broker_without_memory_does_not_begin(spawn: Spawn, folder: str) -> None:
    inject = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fallocate", "-e", "inject=fallocate:error=ENOSPC"]
    child = spawn([strace(), *inject, sys.executable, "-m", "fencebrokerd", "--listen", f"{folder}/broker"])
    assert child.wait() == 1
    (line,) = child.log().splitlines()
    assert line.endswith("error: there is no memory for the journal: No space left on device")
    assert set(os.listdir(folder)) <= {"broker.lock"}
