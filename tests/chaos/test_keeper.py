"""What the keeper does about a broker that hangs, that cannot recover, or that one packet ends again and again; and its own end."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from typing import Final

import psutil
import pytest

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import close_all
from tests.chaos.stepping import Steps, sweep
from tests.helpers import LIMIT, BrokerProcess, StartBroker, wait_gone, wait_readable
from tests.process.wire_client import WireClient

#: Longer than any broker here lives.
FAR: Final = 60


@pytest.mark.parametrize("action", ["stop", "loop"])
@pytest.mark.parametrize("name", ["append.before", "act.before", "answer.before", "consume.before"])
def test_a_broker_that_hangs_is_replaced(name: str, action: str) -> None:
    # A loop is seen when a broker was in the same turn twice, five seconds apart at most.
    died = sweep(f"{name}:4@1={action}", ["once"], patience=2 * LIMIT)
    assert died == {"once": 1}


def test_a_broker_that_is_stopped_while_it_sleeps_is_replaced(broker: BrokerProcess) -> None:
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        before = connection._status()
        os.kill(before["pid"], signal.SIGSTOP)
        timeline.advance(1)
        fence.wait(10)
        after = connection._status()
    assert after["recoveries"] == before["recoveries"] + 1
    assert after["generation"] == before["generation"] + 1
    assert after["pid"] != before["pid"]
    assert after["keeper_pid"] == before["keeper_pid"] == broker.process.pid
    assert not psutil.pid_exists(before["pid"])


def test_nothing_is_replaced_that_is_merely_idle(broker: BrokerProcess) -> None:
    with fb.connect(broker.path, autostart=False) as connection:
        before = connection._status()
        with connection.sync_file("nobody@1", expiry=1.5) as fence:
            wait_readable(fence.fileno())
        after = connection._status()
    assert (after["pid"], after["recoveries"]) == (before["pid"], 0)


def test_expiry_goes_on_across_a_kill(broker: BrokerProcess) -> None:
    with fb.connect(broker.path, autostart=False) as connection:
        began = time.monotonic()
        with connection.sync_file("nobody@1", expiry=0.6) as fence, connection.sync_file("nobody@2", expiry=FAR) as other:
            os.kill(connection._status()["pid"], signal.SIGKILL)
            with pytest.raises(fb.FenceError) as caught:
                fence.wait(10)
            assert caught.value.error == errno.ETIME
            assert time.monotonic() - began >= 0.6
            assert other.status() == 0


def test_when_the_keeper_is_killed_everything_completes(broker: BrokerProcess) -> None:
    broker.expect_trouble()
    with fb.connect(broker.path, autostart=False) as connection:
        timeline = connection.create_timeline()
        fences = [timeline.export(1), timeline.export(2, private=True), connection.sync_file("nobody@1"), connection.sync_file("nobody@2")]
        fences += [connection.merge(fences[:2])]
        pid = connection._status()["pid"]
        os.kill(broker.process.pid, signal.SIGKILL)
        for fence in fences:
            wait_readable(fence.fileno())
            assert fence.status() == -errno.ECANCELED
        wait_gone(pid)
        broker.process.kill()
        with pytest.raises(fb.BrokerUnavailable):
            connection._status()
        for fence in fences:
            fence.close()
        timeline.close()


def test_after_five_failed_recoveries_everything_completes(start_broker: StartBroker) -> None:
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": ",".join(f"recover.replayed:1@{n}=raise" for n in range(2, 40))})
    broker.expect_trouble()
    with fb.connect(broker.path, autostart=False) as connection:
        timeline = connection.create_timeline()
        fences = [timeline.export(1), timeline.export(2, private=True), connection.sync_file("nobody@1")]
        fences += [connection.merge(fences[:2])]
        os.kill(connection._status()["pid"], signal.SIGKILL)
        for fence in fences:
            wait_readable(fence.fileno(), 30)
            assert fence.status() == -errno.ECANCELED
        assert broker.process.wait(30) != 0
        with pytest.raises(fb.BrokerUnavailable):
            connection._status()
        for fence in fences:
            fence.close()
        timeline.close()
    assert broker.log().count("Traceback") == 5
    assert pauses(broker.log()) == ["0.2", "0.8", "1", "1"], "errors of its own in quick succession count twice"


def pauses(log: str) -> list[str]:
    """How long the keeper said that it would wait, each time."""
    return re.findall(r"keeper: the next one begins in (\S+) s$", log, re.MULTILINE)


def test_failed_recoveries_are_followed_after_growing_pauses_and_forgotten_after_a_good_one(start_broker: StartBroker) -> None:
    """Four fail, the fifth goes on and works for longer than a moment; then the same once more: eight failures in all, and no end."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": ",".join(f"recover.replayed:1@{n}" for n in (2, 3, 4, 5, 7, 8, 9, 10))})
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        for generation in (6, 11):
            began = time.monotonic()
            os.kill(connection._status()["pid"], signal.SIGKILL)
            assert connection._status()["generation"] == generation
            assert time.monotonic() - began >= 0.1 + 0.2 + 0.4 + 0.8
            with connection.sync_file("nobody@1", expiry=1.1) as later:
                wait_readable(later.fileno())
        assert fence.status() == 0
        timeline.advance(1)
        fence.wait(10)
    assert pauses(broker.log()) == ["0.1", "0.2", "0.4", "0.8"] * 2


def test_a_broker_that_dies_after_work_well_done_is_followed_at_once(broker: BrokerProcess) -> None:
    """Twice it ends by a fault of its own after more than a second: that is no loop."""
    with fb.connect(broker.path, autostart=False) as connection:
        for generation in (2, 3):
            with connection.sync_file("nobody@1", expiry=1.1) as fence:
                wait_readable(fence.fileno())
            os.kill(connection._status()["pid"], signal.SIGBUS)
            assert connection._status()["generation"] == generation
    assert broker.log().count("the broker is replaced: it was ended by SIGBUS") == 2
    assert pauses(broker.log()) == []


def test_brokers_that_die_at_once_by_errors_of_their_own_are_followed_after_pauses(start_broker: StartBroker) -> None:
    """Each recovers, and fails at the next packet: no recovery fails, so it never ends, but it does not spin."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": ",".join(f"append.before:3@{n}=raise" for n in range(2, 6))})
    broker.expect_trouble()
    with fb.connect(broker.path, autostart=False) as connection:
        os.kill(connection._status()["pid"], signal.SIGKILL)
        while connection._status()["generation"] < 6:
            connection.create_timeline().close()
    assert pauses(broker.log()) == ["0.2", "0.4", "0.8"]


def answer(client: WireClient, serial: int) -> bytes:
    """Have a client ask for something that is one record of the journal, and return the answer's packet; empty when its session has ended."""
    client.say([serial, wire.SYNC_FILE, f"nobody@{serial}", None])
    packet, fds = client.take()
    close_all(fds)
    return packet


def test_a_packet_that_ends_two_brokers_costs_its_sender_the_session(start_broker: StartBroker) -> None:
    # The first broker has some packets of others behind it; the next one finds the packet at the head of its queue.
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": "append.before:30@1=raise,append.before:1@2=raise"})
    broker.expect_trouble()
    with fb.connect(broker.path, autostart=False) as innocent, innocent.create_timeline() as timeline, timeline.export(1) as fence:
        with WireClient(broker.path) as culprit:
            assert any(not answer(culprit, n) for n in range(2, 62)), "its session goes on"
        status = innocent._status()
        assert status["generation"] == 3
        assert fence.status() == 0
        timeline.advance(1)
        fence.wait(10)
    code, log = broker.stop()
    assert code == 0
    assert log.count("Traceback") == 2


def test_an_exception_ends_one_broker_and_no_session() -> None:
    with Steps(env={"FENCEBROKERD_FAILPOINT": "append.before:9@1=raise"}) as steps:
        steps.process.expect_trouble()
        steps.do("once")
        assert steps.status()["generation"] == 2
        steps.client.finish()
        code, log = steps.process.stop()
    assert code == 0
    assert "Traceback" in log


def test_the_reaper_is_replaced(broker: BrokerProcess) -> None:
    with fb.connect(broker.path, autostart=False) as connection:
        status = connection._status()
        others = [child for child in psutil.Process(status["keeper_pid"]).children() if child.pid != status["pid"]]
        assert len(others) == 1, f"broker and reaper are the keeper's children, and these are there too: {others}"
        pidfd = os.pidfd_open(others[0].pid)
        try:
            others[0].kill()
            wait_readable(pidfd)
        finally:
            os.close(pidfd)
        with connection.create_timeline() as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(10)
        # What is foreign is closed all the same.
        read, write = os.pipe()
        with pytest.raises(fb.NotASyncFile):
            connection.info(write)
        os.close(write)
        assert wait_readable(read)  # hung up: nobody has the other end any more
        os.close(read)


def test_without_a_keeper_the_rest_is_the_same() -> None:
    with Steps("--no-keeper", env={}) as steps:
        steps.do("all")
        status = steps.status()
        assert status["pid"] == steps.process.process.pid
        assert not status.get("keeper_pid")
        assert status["recoveries"] == 0
        steps.finish()
