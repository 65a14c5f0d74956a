"""Attacks on fences and on the broker's calls to the kernel, each with real processes; what each must not achieve stands in its name."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

import pytest

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import peek_status
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, not_run
from tests.process.wire_client import WireClient, descriptors_of

#: Writes, reads and tries everything else on the descriptors it was passed, so many times each.
FORGER = """
    import fcntl, os, select, sys
    fds = [int(number) for number in sys.argv[2:]]
    for fd in fds:
        os.set_blocking(fd, False)
    print("begins", flush=True)
    for i in range(int(sys.argv[1])):
        for fd in fds:
            for attempt in (
                lambda: os.eventfd_write(fd, 1),
                lambda: os.eventfd_read(fd),
                lambda: os.eventfd_write(fd, 2**62),
                lambda: os.pwrite(fd, b"12345678", 0),
                lambda: os.ftruncate(fd, 0),
                lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
            ):
                try:
                    attempt()
                except OSError:
                    pass
"""


def test_forgers_fool_nobody_who_imported(broker: BrokerProcess, spawn: Spawn) -> None:
    """16 holders of one descriptor, 1,000 rounds of six attempts each: who imported sees no early signal, the broker knows the truth, and
    what is imported from the tampered one tells it.
    """
    with (
        fb.connect(broker.path) as producer,
        fb.connect(broker.path) as consumer,
        producer.create_timeline("camera0") as timeline,
        timeline.export(1) as shared,
        consumer.import_sync_file(shared) as private,
    ):
        forgers = [spawn(FORGER, 1000, shared.fileno(), pass_fds=[shared.fileno()]) for _ in range(16)]
        for forger in forgers:
            assert forger.line() == "begins"
        poll = select.poll()
        poll.register(private.fileno(), select.POLLIN)
        while any(forger.process.poll() is None for forger in forgers):
            assert not poll.poll(10), "an early signal"
            assert consumer.info(private).status == 0
        with consumer.import_sync_file(shared) as later:
            assert later.status() == 0
            timeline.fail(1, 5)
            for fence in (private, later):
                with pytest.raises(fb.FenceError, match="EIO"):
                    fence.wait(LIMIT)
        assert consumer.info(shared).tampered
        assert consumer.info(shared).status == -5
        assert not consumer.info(private).tampered


def test_readers_do_not_take_a_signal_from_those_who_come_late(broker: BrokerProcess, spawn: Spawn) -> None:
    """8 processes read a signalled descriptor as fast as they can; 1,000 who look at it see it signalled, and as what."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
        readers = [
            spawn(
                """
                import os, select, sys
                fd = int(sys.argv[1])
                print("begins", flush=True)
                while not select.select([0], [], [], 0)[0]:
                    for _ in range(1000):
                        os.eventfd_read(fd)
                """,
                fence.fileno(),
                pass_fds=[fence.fileno()],
            )
            for _ in range(8)
        ]
        for reader in readers:
            assert reader.line() == "begins"
        for _ in range(1000):
            with fence.dup() as copy:
                assert select.select([copy.fileno()], [], [], 0)[0]
                assert copy.status() == 1
        for reader in readers:
            reader.finish()


def test_timelines_in_a_circle_of_sockets_end_with_their_producer(broker: BrokerProcess, spawn: Spawn) -> None:
    """200 timelines, each within a circle of sockets that only hold each other: when their process has died they end, as soon as any socket of
    the machine is closed, and the broker's table is as it was.
    """
    with fb.connect(broker.path) as connection:
        there = descriptors_of(broker.pid)
        child = spawn(
            """
            import socket, sys
            import fencebroker as fb
            from fencebroker.fds import send_packet
            broker = fb.connect(sys.argv[1])
            held = []  # what nobody holds is collected at once
            for i in range(200):
                timeline = broker.create_timeline(f"t{i}")
                end = timeline.share()
                one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                send_packet(one, b"x", [other.fileno(), one.fileno(), end.fileno()])
                send_packet(other, b"x", [one.fileno(), other.fileno(), end.fileno()])
                held += [timeline, end, one, other]
            print("made", flush=True)
            sys.stdin.read()
            """,
            broker.path,
        )
        child.line()
        fences = [connection.sync_file(f"t{i}@1") for i in range(200)]
        child.kill()
        deadline = time.monotonic() + LIMIT
        while any(fence.status() == 0 for fence in fences):
            fb.connect(broker.path).close()
            assert time.monotonic() < deadline
        assert {fence.status() for fence in fences} == {-2}
        for fence in fences:
            fence.close()
        while descriptors_of(broker.pid) > there + 16:
            assert time.monotonic() < deadline + LIMIT


WAITERS = """
    import ctypes, select, sys, threading
    import fencebroker as fb
    libc = ctypes.CDLL(None)
    n_fences, n_waiters = int(sys.argv[2]), int(sys.argv[3])
    broker = fb.connect(sys.argv[1])
    timeline = broker.create_timeline()
    fences = timeline.export_many(range(1, n_fences + 1))
    ready = threading.Semaphore(0)
    def wait(fd, n):
        entries = (ctypes.c_int64 * n)(*([fd | select.POLLIN << 32] * n))
        ready.release()
        libc.poll(entries, n, -1)
    threads = []
    for fence in fences:
        for first in range(0, n_waiters, 1000):
            threads.append(threading.Thread(target=wait, args=(fence.fileno(), 1000)))
            threads[-1].start()
            ready.acquire()
    print("waiting", flush=True)
    sys.stdin.readline()
    timeline.advance(n_fences)
    for thread in threads:
        thread.join()
    print("woken", flush=True)
    for fence in fences:
        fence.close()
    timeline.close()
    broker.close()
"""


def test_100_000_waiters_are_woken_and_hold_up_nobody_for_long(broker: BrokerProcess, spawn: Spawn) -> None:
    """A descriptor with 100,000 waiters, and seven more with 10,000 each, in one advance: all are woken, others are served meanwhile."""
    crowds = [spawn(WAITERS, broker.path, 1, 100_000), spawn(WAITERS, broker.path, 7, 10_000)]
    for crowd in crowds:
        assert crowd.line(4 * LIMIT) == "waiting"
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        for crowd in crowds:
            crowd.send("")
        for value in range(1, 200):
            with timeline.export(value) as fence:
                timeline.advance(value)
                fence.wait(LIMIT)
    for crowd in crowds:
        assert crowd.line(4 * LIMIT) == "woken"
        crowd.finish(4 * LIMIT)


ENTRIES = """
    import os, resource, select, sys, time
    import fencebroker as fb
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    broker = fb.connect(sys.argv[1])
    timeline = broker.create_timeline()
    fence = timeline.export(1, private=True)  # only the broker writes it
    own = os.eventfd(0)
    held = []
    def watch(fd):
        copies = [os.dup(fd) for _ in range(1000)]
        polls = [select.epoll() for _ in range(int(sys.argv[2]) // 1000)]
        for poll in polls:
            for copy in copies:
                poll.register(copy, select.EPOLLIN)
        held.append(copies)
        return polls
    mine, theirs = watch(own), watch(fence.fileno())
    began = time.perf_counter()
    os.eventfd_write(own, 1)
    took = time.perf_counter() - began
    print(f"{took * 1000:.0f} ms", flush=True)
    sys.stdin.readline()
    timeline.advance(1)
    fence.wait(30)
    print(sum(len(poll.poll(0, 1000)) for poll in theirs), flush=True)
    for poll in mine + theirs:
        poll.close()
    for copies in held:
        for copy in copies:
            os.close(copy)
    os.close(own)
    fence.close()
    timeline.close()
    broker.close()
"""


def test_100_000_epoll_entries_on_one_descriptor(broker: BrokerProcess, spawn: Spawn) -> None:
    """Each entry is a call within the broker's write: all are told, and others are served.  Prints what such a write takes (pytest -s)."""
    crowd = spawn(ENTRIES, broker.path, 100_000)
    sys.stdout.write(f"a write to an eventfd with 100,000 epoll entries takes {crowd.line(4 * LIMIT)}\n")
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        crowd.send("")
        for value in range(1, 200):
            with timeline.export(value) as fence:
                timeline.advance(value)
                fence.wait(LIMIT)
    assert crowd.line(4 * LIMIT) == "100000"
    crowd.finish(4 * LIMIT)


@pytest.mark.parametrize("op", sorted(wire.REQUESTS))
def test_a_client_that_goes_in_the_middle_of_anything(broker: BrokerProcess, op: int) -> None:
    """Every request, and gone before the answer; nothing of it is left in the broker, and it stops in order."""
    arguments: dict[int, tuple[object, ...]] = {
        wire.HELLO: (wire.VERSION, "gone"),
        wire.CREATE_TIMELINE: ("gone", "d", 0o600, None),
        wire.OPEN_TIMELINE: ("there",),
        wire.FORGET_TIMELINE: (1,),
        wire.EXPORT: (1, [1, 2, 3], "", False),
        wire.IMPORT: ("", None),
        wire.MERGE: ([None, None], "", False),
        wire.SYNC_FILE: ("there@7", 10**10),
        wire.INFO: (None, 0),
        wire.SET_DEADLINE: (None, 5),
        wire.RELEASE: ([1], [2]),
        wire.LIST: ("fences", 0),
        wire.LOOKUP: ("there",),
        wire.WAIT_START: (None,),
        wire.WAIT_END: (3,),
        wire.CHMOD: ("there", 0o644),
        wire.QUOTAS: (0,),
    }
    with fb.connect(broker.path) as connection, connection.create_timeline("there") as timeline, timeline.export(1) as fence:
        there = descriptors_of(broker.pid)
        for _ in range(50):
            with WireClient(broker.path, greet=op != wire.HELLO) as client:
                spec = wire.REQUESTS[op]
                message = [9, op, *arguments.get(op, ([],) * len(spec.fields))]
                fds = [fence.fileno()] * sum(1 for x in message if x is None and op not in (wire.CREATE_TIMELINE, wire.SYNC_FILE))
                client.say(message, fds if op != wire.MERGE else [fence.fileno()] * 2)
        deadline = time.monotonic() + LIMIT
        while connection._status()["sessions"] > 1:
            assert time.monotonic() < deadline
        while descriptors_of(broker.pid) > there + 160:  # what waits for "there" is kept until it signals
            assert time.monotonic() < deadline
        timeline.advance(7)
        fence.wait(LIMIT)


# Calls that the kernel refuses


@pytest.mark.parametrize(
    "fault",
    [
        "accept4:error=EMFILE",
        "accept4:error=ENFILE",
        "accept4:error=ENOMEM",
        "accept4:error=ECONNABORTED",
        "eventfd2:error=EMFILE",
        "eventfd2:error=ENFILE",
        "eventfd2:error=ENOMEM",
        "memfd_create:error=EMFILE",
        "memfd_create:error=ENOMEM",
        "socketpair:error=EMFILE",
        "socketpair:error=ENFILE",
        "socketpair:error=ENOMEM",
        "sendmsg:error=ETOOMANYREFS",
        "sendmsg:error=ENOBUFS",
        "sendmsg:error=ENOMEM",
    ],
)
def test_a_call_that_the_kernel_refuses_harms_one_request(start_inside: Callable[..., BrokerProcess], fault: str) -> None:
    """Every third call fails for a while: some requests are refused, some sessions end, the broker goes on and stops in order."""
    strace = shutil.which("strace")
    if strace is None:
        not_run("strace is not installed")
    name = fault.partition(":")[0]
    broker = start_inside(
        [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={fault}:when=9..60+3"], "--no-keeper"
    )
    for i in range(60):
        with (
            contextlib.suppress(OSError),
            fb.connect(broker.path, autostart=False) as connection,
            connection.create_timeline() as timeline,
            timeline.export(1) as fence,
            connection.merge([fence], name=f"m{i}"),
        ):
            timeline.advance(1)
            fence.wait(LIMIT)
            assert peek_status(fence.fileno()) == 1
    pid = 0
    for _ in range(3):
        with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(LIMIT)
            pid = connection._status()["pid"]
    os.kill(pid, signal.SIGTERM)  # strace passes no signal on, but the exit code
    assert broker.process.wait() == 0


def test_a_log_that_cannot_be_written_stops_nobody(spawn: Spawn, folder: str) -> None:
    """Standard error on a full disk (ENOSPC): the broker serves and stops in order."""
    path = f"{folder}/broker"
    code = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 2); os.execv(sys.argv[1], sys.argv[1:])"
    child: Child = spawn([sys.executable, "-c", code, sys.executable, "-m", "fencebrokerd", "--listen", path, "--ready-fd", "1"])
    assert child.line() == ""
    with fb.connect(path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        with WireClient(path) as evil:
            evil.say(b"\xc1")
            assert evil.is_cut()
        timeline.advance(1)
        fence.wait(LIMIT)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
