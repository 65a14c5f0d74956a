"""An idle broker sleeps: it wakes when somebody speaks or something expires, and leaves when told to leave idle."""

from __future__ import annotations

import contextlib
import errno
import select

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker
from tests.process.wire_client import switches_of

QUIET_MS = 400
#: Longer than a busy machine takes from "ready" to a first connection.
IDLE_SECONDS = 0.6


def nothing_happens(milliseconds: int = QUIET_MS) -> None:
    """Let a bounded time pass.  Nothing can be waited for here: what the tests show is that nothing happens."""
    select.poll().poll(milliseconds)


def assert_asleep(pid: int) -> None:
    """No thread of the process runs.  First it may finish what its last answer left to be done."""
    nothing_happens(100)
    before = switches_of(pid)
    nothing_happens()
    assert switches_of(pid) == before


def longer_than_idle() -> None:
    nothing_happens(int(IDLE_SECONDS * 1000) + 200)


def test_an_idle_broker_never_wakes(broker: BrokerProcess) -> None:
    """No clients, clients that say nothing, timelines, active fences, closed sessions: no thread of the broker runs."""
    with fb.connect(broker.path) as connection:
        assert_asleep(broker.pid)
        with connection.create_timeline("camera0") as timeline, timeline.export(1), connection.sync_file("camera1@1"):
            connection._status()
            assert_asleep(broker.pid)
    wait_until_no_session(broker)
    assert_asleep(broker.pid)


def wait_until_no_session(broker: BrokerProcess) -> None:
    """The end of a session is seen by who asks: its own is the last one left."""
    with fb.connect(broker.path) as connection:
        while connection._status()["sessions"] > 1:
            pass


def test_an_expiry_is_the_only_wake_up(broker: BrokerProcess) -> None:
    """A timer is set for the expiry alone: asleep until it, awake for it, asleep after it."""
    with fb.connect(broker.path) as connection, connection.create_timeline(expiry=1.0) as timeline, timeline.export(1) as fence:
        assert_asleep(broker.pid)
        assert fence.status() == 0
        with pytest.raises(fb.FenceError) as caught:
            fence.wait(LIMIT)
        assert caught.value.error == errno.ETIME
        assert_asleep(broker.pid)


def test_an_expiry_that_was_met_wakes_nobody(broker: BrokerProcess) -> None:
    """The timer of a fence that signalled in time is gone."""
    with fb.connect(broker.path) as connection, connection.create_timeline(expiry=QUIET_MS / 2000) as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
        connection.info(fence)  # until somebody asks, it is only in the ring
        assert_asleep(broker.pid)


def test_expiries_that_were_met_in_the_ring_wake_the_broker_once(broker: BrokerProcess) -> None:
    """At the first of them: then it looks into the ring, and has no cause to wake for the others."""
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline(expiry=QUIET_MS / 3000) as timeline,
        contextlib.ExitStack() as stack,
    ):
        for seqno in range(1, 20):
            stack.enter_context(timeline.export(seqno))
        before = switches_of(broker.pid)
        for seqno in range(1, 20):
            timeline.advance(seqno)
        nothing_happens()
        assert switches_of(broker.pid) - before <= 2


def test_the_limit_for_a_hello_is_a_timer_once(broker: BrokerProcess) -> None:
    """A client that has said hello is not watched any more."""
    with fb.connect(broker.path), fb.connect(broker.path):
        assert_asleep(broker.pid)


def test_idle_exit_leaves_when_nobody_is_there(start_broker: StartBroker) -> None:
    """``--idle-exit``: no client, no timeline, no active fence for so long; then it leaves in order."""
    broker = start_broker("--idle-exit", "0.05")
    assert broker.process.wait() == 0
    assert "0 active fences" in broker.log()


def test_idle_exit_stays_for_a_client(start_broker: StartBroker) -> None:
    """A connected client is somebody, even when it says nothing; the time begins when it has left."""
    broker = start_broker("--idle-exit", str(IDLE_SECONDS))
    with fb.connect(broker.path) as connection:
        longer_than_idle()
        connection._status()
    assert broker.process.wait() == 0


def test_idle_exit_stays_for_a_timeline(start_broker: StartBroker) -> None:
    """A timeline whose creator has closed its connection is still owed."""
    broker = start_broker("--idle-exit", str(IDLE_SECONDS))
    with fb.connect(broker.path) as connection:
        timeline = connection.create_timeline()
    with timeline:
        longer_than_idle()
        timeline.advance(1)
        fb.connect(broker.path).close()
    assert broker.process.wait() == 0


def test_idle_exit_stays_for_an_active_fence(start_broker: StartBroker) -> None:
    """Somebody may be waiting for a point that no producer has announced."""
    broker = start_broker("--idle-exit", str(IDLE_SECONDS))
    with fb.connect(broker.path) as connection:
        fence = connection.sync_file("camera0@1")
        number = fence.fileno()
    with fence:
        assert number == fence.fileno()
        longer_than_idle()
        with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
            timeline.advance(1)
        fence.wait(LIMIT)
    assert broker.process.wait() == 0


def test_leaving_idle_costs_one_timer(start_broker: StartBroker) -> None:
    """A broker that may leave idle does not look around regularly."""
    broker = start_broker("--idle-exit", "60")
    fb.connect(broker.path).close()
    assert_asleep(broker.pid)


def test_a_dead_client_is_gone(spawn: Spawn, start_broker: StartBroker) -> None:
    """Death ends a session as closing does."""
    broker = start_broker("--idle-exit", str(IDLE_SECONDS))
    with fb.connect(broker.path):
        client = spawn("import signal, fencebroker as fb; held = fb.connect(); print('in', flush=True); signal.pause()", env=broker.env)
        assert client.line() == "in"
    longer_than_idle()
    fb.connect(broker.path).close()
    client.kill()
    assert broker.process.wait() == 0
