"""A broker that is killed in the middle of what it does with a ring: the next one goes on, and nothing is lost, done twice, or decided twice."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket

import pytest

import fencebroker as fb
from fencebroker import ring
from fencebroker.mapping import has_barrier
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, not_run, wait_readable


@pytest.fixture(autouse=True)
def needs_a_barrier() -> None:
    if not has_barrier():
        not_run("no membarrier here, so no ring")


def generation(connection: fb.Broker) -> int:
    """Which broker answers."""
    found: int = connection._status()["generation"]
    return found


def kill_the_broker(connection: fb.Broker) -> None:
    """Kill the one that runs now, from outside."""
    status = connection._status()
    os.kill(status["pid"], signal.SIGKILL)
    assert generation(connection) == status["generation"] + 1


KILLED_AT = [
    "append.before:{n}", "append.torn:{n}", "append.after:{n}", "act.before:{n}", "act.after:{n}",
    "ring.after:1", "ring.drained:1", "ring.drained:2", "ring.frozen:1", "ring.armed:1", "consume.before:{n}", "consume.after:{n}", "answer.before:{n}",
]  # fmt: skip


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("where", KILLED_AT)
def test_a_ring_outlives_its_broker(start_broker: StartBroker, where: str, n: int) -> None:
    """One story, with the broker killed at every kind of step: sums are right, errors stay errors, whoever waits is woken."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": where.format(n=n)})
    with fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        timeline = stack.enter_context(connection.create_timeline("camera0", expiry=30.0))
        other = stack.enter_context(fb.connect(broker.path))
        fences = [stack.enter_context(fence) for fence in timeline.export_many(range(1, 8))]
        timeline.inc()
        private = {seqno: stack.enter_context(connection.import_sync_file(fences[seqno - 1])) for seqno in (2, 5, 6)}
        waits = stack.enter_context(other.sync_file("camera0@4"))
        timeline.inc()
        wait_readable(private[2].fileno())
        timeline.fail(3, errno.EIO)
        timeline.inc()
        wait_readable(waits.fileno())
        short = stack.enter_context(connection.sync_file("camera0@7", expiry=0.05))
        wait_readable(short.fileno())
        timeline.advance(5)
        wait_readable(private[5].fileno())
        second = stack.enter_context(other.open_timeline("camera0"))
        second.fail(6, errno.EPIPE)
        wait_readable(private[6].fileno())
        timeline.inc()
        wait_readable(fences[6].fileno())
        expected = [1, 1, -errno.EIO, 1, 1, -errno.EPIPE, 1]
        assert [fence.status() for fence in fences] == expected
        assert [connection.info(fence).status for fence in fences] == expected
        assert {seqno: fence.status() for seqno, fence in private.items()} == {2: 1, 5: 1, 6: -errno.EPIPE}
        assert (waits.status(), short.status()) == (1, -errno.ETIME)
        assert connection._lookup("camera0")[1][3] == 7
        assert not any(connection.info(fence).tampered for fence in fences)
        assert generation(connection) == 2, "nobody was killed"


def test_a_producer_notices_nothing(broker: BrokerProcess) -> None:
    """The ring is used before, during and after: no packet, no error, and each increment counts once."""
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        value = 0
        for round in range(4):
            for _ in range(ring.CAPACITY // 3):
                timeline.inc()
                value += 1
            if round % 2:
                connection._lookup("camera0")
            kill_the_broker(connection)
            with timeline.export(value + 1) as fence, connection.import_sync_file(fence) as private:
                timeline.inc()
                value += 1
                assert fence.status() == 1
                wait_readable(private.fileno())
        assert connection._lookup("camera0")[1][3] == value
        assert timeline._signaller._counter == 0, "a packet was sent"


def test_what_waited_at_the_death_is_rung_for_afterwards(broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, contextlib.ExitStack() as stack:
        private = stack.enter_context(connection.import_sync_file(stack.enter_context(timeline.export(1))))
        kill_the_broker(connection)
        timeline.advance(1)
        wait_readable(private.fileno())


def test_a_producer_that_dies_with_the_broker(broker: BrokerProcess, spawn: Spawn) -> None:
    """Both are gone at once; the next broker finds what was committed, writes it, and fails the rest."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        child = spawn(
            """
            import os, signal, socket, sys
            import fencebroker as fb, fencebroker.exclusive
            broker = fb.connect()
            timeline = broker.create_timeline()
            with socket.socket(fileno=int(sys.argv[1])) as sock:
                for n in (1, 2):
                    fb.send_sync_file(sock, b"x", timeline.export(n))
            pid = broker._status()["pid"]
            sys.stdin.readline()

            def die(*_):
                os.kill(pid, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

            fencebroker.exclusive.signal_and_close = die
            timeline.advance(1)
            """,
            theirs.fileno(),
            pass_fds=[theirs.fileno()],
            env=broker.env,
        )
        fences = []
        for _ in (1, 2):
            wait_readable(ours.fileno())
            fences.append(stack.enter_context(fb.recv_sync_file(ours)[1]))
        private = [stack.enter_context(connection.import_sync_file(fence)) for fence in fences]
        child.send("go")
        assert child.wait() == -signal.SIGKILL
        for one in (*fences, *private):
            wait_readable(one.fileno(), LIMIT)
        assert [one.status() for one in (*fences, *private)] == [1, -errno.ENOENT] * 2


def test_a_reload_keeps_rings(broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(5) as fence:
        timeline.advance(3)
        before = generation(connection)
        broker.process.signal(signal.SIGHUP)
        while generation(connection) == before:
            pass
        with connection.import_sync_file(fence) as private:
            timeline.advance(5)
            wait_readable(private.fileno())
        assert connection._lookup("camera0")[1][3] == 5
        assert timeline._signaller._counter == 0
