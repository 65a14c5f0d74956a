"""Users who want everything, and one who wants little: floods of connections, requests, signals, and descriptors that nobody fetches.

The others are processes of other users, which needs root; elsewhere these tests do not run.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn
from tests.process.wire_client import assert_closed_for, descriptors_of

pytestmark = pytest.mark.usefixtures("root")
EVIL = 4301

#: Becomes a user, then runs a flood for as long as its standard input is open.
PROLOGUE = """
    import contextlib, errno, os, resource, select, socket, sys, threading
    import fencebroker as fb
    from fencebroker import wire
    from fencebroker.fds import close_all, recv_packet, send_packet
    from tests.process.wire_client import WireClient
    path, uid = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    "".encode("idna")  # an address needs it, and another user may not be able to read it
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    is_over = lambda: bool(select.select([0], [], [], 0)[0])
    started = threading.Semaphore(0)
    def in_threads(work, least):
        # 64 of them, to the end; the flood is under way when that many have said so.
        threads = [threading.Thread(target=work) for _ in range(64)]
        for thread in threads:
            thread.start()
        for _ in range(least):
            started.acquire()
        print("flooding", flush=True)
        for thread in threads:
            thread.join()
"""


@pytest.fixture
def flood(spawn: Spawn, public: BrokerProcess) -> Iterator[Callable[..., Child]]:
    """Start a flood by another user; it prints a line when it is under way."""

    def start(code: str, uid: int = EVIL) -> Child:
        program = textwrap.dedent(PROLOGUE) + textwrap.dedent(code)
        child = spawn(program, public.path, uid, env={"PYTHONPATH": os.getcwd()})
        assert child.line() == "flooding"
        return child

    yield start
    with fb.connect(public.path) as connection, connection.create_timeline() as timeline:
        for value in range(1, 20):
            with timeline.export(value) as fence:
                timeline.advance(value)
                fence.wait(LIMIT)


def work(path: str, n: int) -> float:
    """What an honest user does, n times, each with a connection of its own; returns the longest of them in seconds."""
    slowest = 0.0
    for _ in range(n):
        began = time.monotonic()
        with fb.connect(path) as broker, broker.create_timeline() as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(LIMIT)
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def test_connections_without_a_hello(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """Thousands that say nothing: the oldest of that user give way, and others come in as if nobody were there."""
    child = flood(
        """
        idle = []
        while not is_over():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(path)
            idle.append(sock)
            if len(idle) == 300:
                print("flooding", flush=True)
            if len(idle) > 3000:
                idle.pop(0).close()
        """
    )
    assert work(public.path, 20) < 5
    assert descriptors_of(public.pid) < 700
    child.kill()
    assert public.log().count("it had sent no hello when many others came") == 1


def test_answers_that_nobody_reads(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """Each session that is cut leaves 256 descriptors in flight for as long as its socket is kept: a user's sum is bounded, and nobody else
    meets ETOOMANYREFS.
    """
    child = flood(
        """
        kept = []
        n_cut = 0
        while not is_over():
            try:
                client = WireClient(path)
                kept.append(client.sock)
                client.say([2, wire.CREATE_TIMELINE, None, "d", 0o600, None])
                packet, fds = client.take()
                context = wire.decode_answer(packet)[2]
                close_all(fds[1:])
                kept += fds
                for serial in range(3, 400):
                    client.say([serial, wire.EXPORT, context, [serial], "", False])
            except (OSError, AssertionError, wire.Malformed):
                n_cut += 1
            if n_cut == 30:
                print("flooding", flush=True)
            if len(kept) > 400:
                break
        sys.stdin.read()
        """
    )
    assert work(public.path, 20) < 5
    n_descriptors = descriptors_of(public.pid)
    assert n_descriptors < 4000
    child.kill()
    assert "descriptors unread" in public.log()


def test_a_crowd_of_sessions_is_one_user(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """250 sessions that ask without end: whoever has one is served between few of their questions, not after one of each."""
    child = flood(
        """
        clients = [WireClient(path) for _ in range(250)]
        for client in clients:
            client.say([2, wire.STATUS])
        print("flooding", flush=True)
        poll = select.poll()
        by_fd = {client.sock.fileno(): client for client in clients}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        n = 0
        while not is_over():
            for fd, _ in poll.poll(1000):
                by_fd[fd].hear()
                by_fd[fd].say([2, wire.STATUS])
                n += 1
        print(n, flush=True)
        """
    )
    with fb.connect(public.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        for _ in range(200):
            connection.info(fence)  # a status of ours costs many of theirs, for we are told more
    child.send("")
    # In turns it would be 250 of theirs to one of ours; users' turns make it some three.
    assert int(child.line()) < 30 * 200
    child.kill()


def test_full_sockets_of_timelines(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """A hundred timelines whose sockets are always full: somebody else's question does not wait for all of that."""
    child = flood(
        """
        broker = fb.connect(path)
        timelines = [broker.create_timeline() for _ in range(100)]
        ends = [timeline.share() for timeline in timelines]
        for end in ends:
            end.setblocking(False)
        n = 0
        print("flooding", flush=True)
        while not is_over():
            for end in ends:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        n += 1
                        end.send(wire.encode([7, n, wire.ADVANCE, n]))
        """
    )
    assert work(public.path, 50) < 5
    child.kill()


def test_traps_in_a_loop_by_64_sessions(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """The O_NONBLOCK trap again and again: sessions end, and others are late by the guard at most."""
    child = flood(
        """
        def trap():
            first = True
            while not is_over():
                with contextlib.suppress(OSError, fb.FenceError):
                    with fb.connect(path, autostart=False) as broker, broker.create_timeline() as timeline:
                        timeline.share().close()  # from here on the broker signals, and not this process itself
                        fences = timeline.export_many(range(1, 9))
                        for fence in fences:
                            os.set_blocking(fence.fileno(), True)
                            os.eventfd_write(fence.fileno(), 2**64 - 2)
                        if first:
                            started.release()
                            first = False
                        for n in range(1, 9):
                            timeline.advance(n)
                        broker._status()
        in_threads(trap, 8)
        """
    )
    assert work(public.path, 30) < 5
    child.kill()
    assert public.log().count("was made to block the broker") <= 2


def test_closes_that_linger_by_64_sessions(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """Sockets whose close takes an hour (SO_LINGER), sent by 64 sessions without end: others are served, and what they send is closed."""
    child = flood(
        """
        from tests.process.wire_client import lingering
        def send():
            while not is_over():
                with contextlib.suppress(OSError, AssertionError), WireClient(path) as client, contextlib.ExitStack() as stack:
                    for _ in range(20):
                        number = lingering(stack, 3600)
                        client.say([2, wire.INFO, None, 0], [number])
                        os.close(number)
                        client.hear()
                        started.release()
        in_threads(send, 64)
        """
    )
    n_late = 0
    with fb.connect(public.path) as connection:
        for _ in range(30):
            assert_closed_for(connection)
            n_late += any(row[0] == EVIL and "still open" in row[1] and row[2] for row in connection._quotas())
    assert n_late, "there was always something of the other user's to be closed, or this shows nothing"
    child.kill()


def test_malformed_packets_cost_one_line(flood: Callable[..., Child], public: BrokerProcess) -> None:
    """Thousands of sessions that each say nonsense: one line in the log, and others are served."""
    child = flood(
        """
        n = 0
        while not is_over():
            with contextlib.suppress(OSError, AssertionError), WireClient(path) as client:
                client.say(os.urandom(30))
                client.is_cut()
            n += 1
            if n == 50:
                print("flooding", flush=True)
        """
    )
    assert work(public.path, 20) < 5
    child.kill()
    lines = [line for line in public.log().splitlines() if f"uid {EVIL}" in line]
    assert 1 <= len(lines) <= 3, lines
