"""``fencebroker.kernel`` between processes: passing, forking, dying, exiting, and a broker that goes away."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading

import pytest

import fencebroker as fb
from fencebroker import kernel as k
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, wait_readable
from tests.process.kernel_support import Driver, driver

__all__ = ["driver"]

#: A producer: makes two fences, sends their descriptors over the socket it was given, and does as it is told.
PRODUCER = """
    import errno, os, socket, sys
    import fencebroker as fb
    from fencebroker import kernel as k
    sock = socket.socket(fileno=int(sys.argv[1]))
    context = k.dma_fence_context_alloc(1, driver="camera")
    fences = []
    for seqno in (1, 2):
        fence = k.dma_fence()
        k.dma_fence_init(fence, k.dma_fence_ops(), None, context, seqno)
        sync_file = k.sync_file_create(fence)
        fd = k.get_unused_fd_flags(os.O_CLOEXEC)
        k.fd_install(fd, sync_file.file)
        fb.send_sync_file(sock, b"frame", fd)
        os.close(fd)
        fences.append(fence)
    sock.close()
    for line in sys.stdin:
        number, error = map(int, line.split())
        if error:
            k.dma_fence_set_error(fences[number], -error)
        print(k.dma_fence_signal(fences[number]), flush=True)
    for fence in fences:
        k.dma_fence_put(fence)
    print(k.references(), flush=True)
"""


def receive(sock: socket.socket) -> int:
    """Receive a descriptor as any program would."""
    _, frame = fb.recv_sync_file(sock)
    return frame.detach()


@pytest.fixture
def pair() -> object:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


def test_a_producer_and_a_consumer_that_only_polls(driver: Driver, spawn: Spawn, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    producer = spawn(PRODUCER, theirs.fileno(), pass_fds=[theirs.fileno()], env=driver.broker.env)
    fds = [receive(mine) for _ in range(2)]
    consumer = spawn(
        """
        import os, select, sys
        print(os.readlink(f"/proc/self/fd/{sys.argv[1]}"), "fencebroker" in sys.modules, flush=True)
        for fd in map(int, sys.argv[1:]):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            print(poll.poll(10000) == [(fd, select.POLLIN)], flush=True)
        """,
        *fds,
        pass_fds=fds,
    )
    assert consumer.line() == "anon_inode:[eventfd] False"
    producer.send("0 0")
    assert (producer.line(), consumer.line()) == ("0", "True")
    producer.send("1 0")
    assert (producer.line(), consumer.line()) == ("0", "True")
    consumer.finish()
    assert producer.finish() == "{}\n"
    for fd in fds:
        os.close(fd)


def test_a_consumer_gets_status_error_and_names(driver: Driver, spawn: Spawn, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    producer = spawn(PRODUCER, theirs.fileno(), pass_fds=[theirs.fileno()], env=driver.broker.env)
    fences = []
    for _ in range(2):
        fd = receive(mine)
        fence = k.sync_file_get_fence(fd)
        os.close(fd)
        assert fence is not None
        fences.append(fence)
    one, two = fences
    assert k.dma_fence_is_later(two, one)
    assert k.dma_fence_driver_name(one) == "camera"
    called = threading.Event()
    assert k.dma_fence_add_callback(two, k.dma_fence_cb(), lambda *_: called.set()) == 0
    producer.send(f"1 {errno.ENODATA}")
    assert producer.line() == "0"
    assert called.wait(LIMIT)
    assert (k.dma_fence_get_status(one), k.dma_fence_get_status(two)) == (0, -errno.ENODATA)
    producer.send("0 0")
    assert producer.line() == "0"
    assert k.dma_fence_wait(one, True) == 0
    assert producer.finish() == "{}\n"
    k.shutdown()
    for fence in fences:
        k.dma_fence_put(fence)


def test_a_producers_death_is_an_error(driver: Driver, spawn: Spawn, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    producer = spawn(PRODUCER, theirs.fileno(), pass_fds=[theirs.fileno()], env=driver.broker.env)
    fds = [receive(mine) for _ in range(2)]
    fence = k.sync_file_get_fence(fds[0])
    assert fence is not None
    statuses: list[int] = []
    done = threading.Event()

    def note(fence: k.dma_fence, _: k.dma_fence_cb) -> None:
        statuses.append(k.dma_fence_get_status(fence))
        done.set()

    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), note) == 0
    producer.kill()
    assert done.wait(LIMIT)
    assert statuses == [-errno.ENOENT]
    for fd in fds:
        assert wait_readable(fd) & select.POLLIN
        os.close(fd)
    k.shutdown()
    k.dma_fence_put(fence)


# -- fork

FORK = """
    import errno, os, sys
    from fencebroker import kernel as k
    context = k.dma_fence_context_alloc(1)

    def fence_of(context, seqno):
        fence = k.dma_fence()
        k.dma_fence_init(fence, k.dma_fence_ops(), None, context, seqno)
        return fence

    def install(fence, flags=os.O_CLOEXEC):
        sync_file = k.sync_file_create(fence)
        fd = k.get_unused_fd_flags(flags)
        k.fd_install(fd, sync_file.file)
        return fd

    def say(*what):
        os.write(1, (" ".join(map(str, what)) + "\\n").encode())
"""


def test_a_forked_child_has_a_life_of_its_own(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        FORK
        + """
    fence = fence_of(context, 1)
    called = []
    k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda *_: called.append(os.getpid()))
    fd = install(fence)
    received = k.sync_file_get_fence(fd)
    k.dma_fence_add_callback(received, k.dma_fence_cb(), lambda *_: called.append(os.getpid()))
    reserved = k.get_unused_fd_flags(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.fstat(reserved)
            say("the reserved number was inherited")
        except OSError:
            say("no reserved number")
        for use in (k.dma_fence_signal, k.dma_fence_get_status, k.sync_file_create):
            try:
                say("worked", use(fence))
            except RuntimeError as err:
                say("refused:", str(err)[:34])
        say(k.dma_fence_get_status(received))
        own = fence_of(k.dma_fence_context_alloc(1), 1)
        say(own.context > context)
        mine = k.sync_file_get_fence(fd)
        k.dma_fence_add_callback(mine, k.dma_fence_cb(), lambda *_: say("called in the child"))
        own_fd = install(own)
        k.dma_fence_signal(own)
        own_received = k.sync_file_get_fence(own_fd)
        say(k.dma_fence_wait(own_received, True), k.dma_fence_get_status(own_received))
        k.dma_fence_wait(mine, False)
        k.dma_fence_wait(received, False)
        k.shutdown()
        say(k.dma_fence_get_status(mine), k.dma_fence_get_status(received), called)
        for each in (fence, received, own, mine, own_received):
            k.dma_fence_put(each)
        sys.exit(0)
    sys.stdin.readline()
    k.dma_fence_signal(fence)
    k.dma_fence_wait(received, False)
    say("child", os.waitpid(pid, 0)[1])
    k.put_unused_fd(reserved)
    k.shutdown()
    say(called == [parent] * 2)
    k.dma_fence_put(fence)
    k.dma_fence_put(received)
    say(k.references())
    """,
        env=driver.broker.env,
    )
    refused = "refused: fence was made before fork() and i"
    assert [child.line() for _ in range(7)] == ["no reserved number", refused, refused, refused, "0", "True", "0 1"]
    child.send("go on")
    assert [child.line() for _ in range(5)] == ["called in the child", "1 1 []", "child 0", "True", "{}"]
    child.finish()


def test_a_childs_end_does_not_touch_the_parents_fences(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        FORK
        + """
    fence = fence_of(context, 1)
    fd = install(fence)
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            sys.exit(0)         # through atexit
        say(os.waitpid(pid, 0)[1])
    received = k.sync_file_get_fence(fd)
    say(k.dma_fence_get_status(fence), k.dma_fence_get_status(received))
    k.dma_fence_signal(fence)
    say(k.dma_fence_wait(received, True))
    k.dma_fence_put(fence)
    k.dma_fence_put(received)
    say(k.references())
    """,
        env=driver.broker.env,
    )
    assert [child.line() for _ in range(6)] == ["0", "0", "0", "0 0", "0", "{}"]
    child.finish()


def test_a_child_does_not_keep_a_dead_drivers_fences_alive(driver: Driver, spawn: Spawn, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    child = spawn(
        FORK
        + """
    import signal, socket
    import fencebroker as fb
    fence = fence_of(context, 1)
    fd = install(fence)
    received = k.sync_file_get_fence(fd)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        fb.send_sync_file(sock, b"frame", fd)
    if os.fork() == 0:
        say("forked")
        sys.stdin.read()
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
        theirs.fileno(),
        pass_fds=[theirs.fileno()],
        env=driver.broker.env,
    )
    fd = receive(mine)
    assert child.line() == "forked"
    with fb.SyncFile.from_fd(fd) as frame, pytest.raises(fb.FenceError) as caught:
        frame.wait(LIMIT)
    assert caught.value.error == errno.ENOENT


# -- the end of a program


def test_a_program_may_end_with_everything_open(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        FORK
        + """
    fence = fence_of(context, 1)
    fd = install(fence)
    for number in range(3):
        received = k.sync_file_get_fence(fd)
        k.dma_fence_add_callback(received, k.dma_fence_cb(), lambda *_: say("never called"))
    k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda *_: say("never called"))
    k.get_unused_fd_flags(0)
    k.dma_fence_get_stub()
    say("at the end")
    # What is left is the system's to take back; only the library's own objects would complain.
    import warnings
    warnings.simplefilter("ignore", ResourceWarning)
    """,
        env=driver.broker.env,
    )
    assert child.finish() == "at the end\n"


def test_contexts_and_the_watcher_need_no_goodbye(driver: Driver, spawn: Spawn) -> None:
    """A program that puts every reference hears no complaint, and at its end thread, contexts and connection are gone."""
    child = spawn(
        """
    import atexit, os, threading

    def report():       # registered first, so it runs last
        left = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.lexists(f"/proc/self/fd/{fd}")]
        print([thread.name for thread in threading.enumerate()], left, flush=True)

    atexit.register(report)
    """
        + FORK
        + """
    fence = fence_of(context, 1)
    fd = install(fence)
    received = k.sync_file_get_fence(fd)
    os.close(fd)
    k.dma_fence_add_callback(received, k.dma_fence_cb(), lambda *_: None)
    k.dma_fence_signal(fence)
    k.dma_fence_wait(received, False)
    k.dma_fence_put(received)
    k.dma_fence_put(fence)
    print([thread.name for thread in threading.enumerate()], flush=True)
    """,
        env=driver.broker.env,
    )
    assert child.line() == "['MainThread', 'fencebroker.kernel']"
    assert child.finish() == "['MainThread'] []\n"


# -- a broker that goes away


def test_a_broker_that_stops_cancels(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    before = k.references()
    driver = Driver(broker)
    fence = driver.fence()
    fd = driver.install(fence)
    received = k.sync_file_get_fence(fd)
    assert received is not None
    called = threading.Event()
    assert k.dma_fence_add_callback(received, k.dma_fence_cb(), lambda *_: called.set()) == 0
    broker.stop()
    assert called.wait(LIMIT)
    assert k.dma_fence_wait(received, True) == 0
    assert k.dma_fence_get_status(received) == -errno.ECANCELED
    assert k.dma_fence_signal(fence) == -errno.EPIPE  # here it has signalled, elsewhere it was cancelled
    assert k.dma_fence_get_status(fence) == 1
    k.shutdown()
    for each in (fence, received):
        k.dma_fence_put(each)
    os.close(fd)
    assert k.references() == before


def test_a_broker_that_vanishes_leaves_nobody_waiting(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    before = k.references()
    driver = Driver(broker)
    fences = [driver.fence(seqno) for seqno in (1, 2)]
    received = []
    for fence in fences:
        fd = driver.install(fence)
        got = k.sync_file_get_fence(fd)
        os.close(fd)
        assert got is not None
        received.append(got)
    called = threading.Event()
    assert k.dma_fence_add_callback(received[0], k.dma_fence_cb(), lambda *_: called.set()) == 0
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(k.dma_fence_wait(received[1], False)))
    waiter.start()
    broker.kill()
    assert called.wait(LIMIT)
    waiter.join(LIMIT)
    assert results == [0]
    assert [k.dma_fence_get_status(fence) for fence in received] == [-errno.ECANCELED] * 2
    assert k.sync_file_create(fences[0]) is None
    assert isinstance(k.last_error(), fb.BrokerUnavailable)
    assert k.sync_file_get_fence(0) is None
    with pytest.raises(fb.BrokerUnavailable):
        k.dma_fence_context_alloc(1)
    again = start_broker(path=broker.path)  # its contexts start at 1 again
    second = Driver(again)
    fresh = second.fence(1)
    fd = second.install(fresh)
    assert k.dma_fence_signal(fresh) == 0
    wait_readable(fd)
    os.close(fd)
    for fence in fences:
        assert k.dma_fence_signal(fence) == -errno.EPIPE
    k.shutdown()
    for each in (*fences, *received, fresh):
        k.dma_fence_put(each)
    assert k.references() == before


def test_a_broker_that_does_not_answer_holds_up_only_who_asks_it(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    driver = Driver(broker)
    exported, inside, asked = (driver.fence(seqno) for seqno in (1, 2, 3))
    fds = [driver.install(exported) for _ in range(2)]
    received = k.sync_file_get_fence(fds[0])
    assert received is not None
    ready = k.sync_file_create(exported)
    assert ready is not None
    made: list[k.sync_file | None] = []
    asker = threading.Thread(target=lambda: made.append(k.sync_file_create(asked)))
    called: list[int] = []
    broker.freeze()
    try:
        asker.start()
        assert k.dma_fence_add_callback(inside, k.dma_fence_cb(), lambda fence, _: called.append(fence.seqno)) == 0
        assert k.dma_fence_signal(inside) == 0
        assert called == [2]
        assert k.dma_fence_wait(inside, True) == 0
        assert k.dma_fence_signal(exported) == 0  # one-way
        assert k.dma_fence_wait_timeout(received, True, 1) == 0
        fd = k.get_unused_fd_flags(os.O_CLOEXEC)
        k.fd_install(fd, ready.file)
        assert made == []
    finally:
        broker.thaw()
    asker.join(LIMIT)
    assert k.dma_fence_wait_timeout(received, True, 10 * k.HZ) > 0
    assert made[0] is not None
    k.fput(made[0].file)
    for number in (*fds, fd):
        wait_readable(number)
        os.close(number)
    for fence in (exported, inside, asked, received):
        k.dma_fence_put(fence)
    k.shutdown()
    assert k.references() == {}


# -- many threads


def test_many_threads_at_once_leave_nothing(driver: Driver) -> None:
    contexts = k.dma_fence_context_alloc(4)
    failures: list[BaseException] = []

    def work(context: int) -> None:
        try:
            for seqno in range(1, 26):
                fence = driver.fence(seqno, context=context)
                fd = driver.install(fence)
                received = k.sync_file_get_fence(fd)
                assert received is not None, k.last_error()
                os.close(fd)
                done = threading.Event()
                assert k.dma_fence_add_callback(received, k.dma_fence_cb(), lambda *_, done=done: done.set()) == 0
                merged = k.dma_fence_unwrap_merge(received, fence)
                assert merged is fence or merged is received
                assert k.dma_fence_signal(fence) == 0
                assert done.wait(LIMIT)
                assert k.dma_fence_wait(received, True) == 0
                for each in (fence, received, merged):
                    k.dma_fence_put(each)
        except BaseException as err:  # noqa: BLE001 - for the thread that asserts
            failures.append(err)

    threads = [threading.Thread(target=work, args=[contexts + number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LIMIT)
    assert failures == []
    k.shutdown()
    assert k.references() == {}


def test_the_library_alone_does_not_load_it(spawn: Spawn, broker: BrokerProcess) -> None:
    child = spawn("import sys, fencebroker; print(sorted(name for name in sys.modules if 'kernel' in name))")
    assert child.finish() == "[]\n"
