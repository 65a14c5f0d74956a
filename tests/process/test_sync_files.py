"""The rules of a SyncFile: who owns it, what it says, how it is waited for."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import pickle
import select
import selectors
import signal
import threading
import time
import warnings

import pytest

import fencebroker as fb
from fencebroker.waiting import WaitTimeout
from tests.helpers import LIMIT, BrokerProcess, Spawn, assert_not_fd, descriptors, eventfd_count, eventfd_id, is_readable, same_file

# Ownership: an int in is borrowed, an object out is owned; only from_fd takes, only detach gives


def test_an_int_is_borrowed(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """What is passed as a number or object stays the caller's, also when the call fails."""
    reader, writer = os.pipe()
    with timeline.export(1) as fence:
        number = fence.fileno()
        connection.info(number)
        connection.import_sync_file(number).close()
        connection.merge([number, fence]).close()
        for call in (connection.info, connection.import_sync_file, lambda fd: connection.merge([fence, fd])):
            with pytest.raises(fb.NotASyncFile):
                call(reader)
        os.fstat(reader)
        os.fstat(number)
    os.close(reader)
    os.close(writer)


def test_from_fd_takes_and_detach_gives(timeline: fb.Timeline) -> None:
    """``from_fd`` owns the number it got; ``detach`` hands it over and the object is closed."""
    fence = timeline.export(1)
    number = fence.detach()
    assert fence.closed
    with pytest.raises(ValueError, match="this SyncFile is closed"):
        fence.fileno()
    fence.close()
    os.fstat(number)
    taken = fb.SyncFile.from_fd(number)
    assert taken.fileno() == number
    with pytest.raises(ValueError, match="closed"):
        fence.detach()
    taken.close()
    del taken
    assert_not_fd(number)


def test_from_fd_takes_nothing_when_it_refuses() -> None:
    """A refused number stays the caller's."""
    reader, writer = os.pipe()
    counter = os.eventfd(3)
    try:
        for number, said in ((reader, "not an eventfd"), (counter, "eventfd of another kind")):
            with pytest.raises(fb.NotASyncFile, match=said) as caught:
                fb.SyncFile.from_fd(number)
            assert (caught.value.fd, caught.value.error) == (number, errno.EINVAL)
            os.fstat(number)
    finally:
        for number in (reader, writer, counter):
            os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor") as closed:
        fb.SyncFile.from_fd(reader)
    assert closed.value.errno == errno.EBADF


def test_a_dup_is_its_own(timeline: fb.Timeline) -> None:
    """``dup`` gives another descriptor of the same file; each is closed by itself."""
    with timeline.export(1) as fence:
        other = fence.dup()
        assert other.fileno() != fence.fileno()
        assert same_file(other.fileno(), fence.fileno())
        fence.close()
        assert other.status() == 0
        timeline.advance(1)
        other.wait(LIMIT)
        other.close()


def test_close_is_idempotent_and_final(timeline: fb.Timeline) -> None:
    """A second close does nothing; everything else says that it is closed."""
    fence = timeline.export(1)
    fence.close()
    fence.close()
    for call in (fence.fileno, fence.status, fence.check, fence.wait, fence.dup, fence.detach):
        with pytest.raises(ValueError, match="this SyncFile is closed"):
            call()
    assert fence.closed
    assert repr(fence).endswith("closed>")


def test_a_forgotten_one_is_closed_with_a_warning(timeline: fb.Timeline) -> None:
    """Who forgets to close hears it, and loses no descriptor."""
    fence = timeline.export(1)
    number = fence.fileno()
    with pytest.warns(ResourceWarning, match="never closed"):
        del fence
    assert_not_fd(number)


def test_a_sync_file_outlives_its_connection(module_broker: BrokerProcess) -> None:
    """Closing the connection ends neither timelines nor sync_files."""
    with fb.connect(module_broker.path) as connection:
        timeline = connection.create_timeline()
        fence = timeline.export(1)
    assert connection.closed
    with fence, timeline:
        with pytest.raises(fb.BrokerUnavailable, match="was closed"):
            timeline.export(2)
        assert fence.status() == 0
        with pytest.raises(TimeoutError):
            fence.wait(0)
        timeline.advance(1)
        fence.wait(LIMIT)


def test_plain_pickle_is_refused_with_the_cure(timeline: fb.Timeline) -> None:
    """A descriptor means nothing in a file or a database."""
    with timeline.export(1) as fence:
        for thing in (fence, [fence], timeline):
            with pytest.raises(TypeError, match="towards another process by multiprocessing"):
                pickle.dumps(thing)


# Status


def test_status_check_and_wait_agree(timeline: fb.Timeline) -> None:
    """0 active, 1 signalled, a negative errno; check() is False, True, FenceError."""
    with contextlib.ExitStack() as stack:
        active, good, bad = (stack.enter_context(fence) for fence in timeline.export_many([9, 1, 5]))
        timeline.advance(4)
        timeline.fail(5, errno.EIO)
        assert (active.status(), active.check()) == (0, False)
        good.wait(LIMIT)
        assert (good.status(), good.check()) == (1, True)
        with pytest.raises(fb.FenceError):
            bad.wait(LIMIT)
        assert bad.status() == -errno.EIO
        with pytest.raises(fb.FenceError):
            bad.check()


def test_the_encoding_of_the_status(timeline: fb.Timeline) -> None:
    """Section 3.1: a semaphore eventfd, count 0 while active; POLLIN without POLLOUT is OK, with it fdinfo decides."""

    def events(fence: fb.SyncFile) -> int:
        poll = select.poll()
        poll.register(fence, select.POLLIN | select.POLLOUT)
        return dict(poll.poll(0)).get(fence.fileno(), 0)

    with contextlib.ExitStack() as stack:
        active, good, bad = (stack.enter_context(fence) for fence in timeline.export_many([9, 1, 5]))
        timeline.fail(5, errno.EIO)
        bad_error = pytest.raises(fb.FenceError)
        with bad_error:
            bad.wait(LIMIT)
        assert (eventfd_count(active.fileno()), events(active)) == (0, select.POLLOUT)
        assert (eventfd_count(good.fileno()), events(good)) == (2**64 - 2, select.POLLIN)
        assert eventfd_count(bad.fileno()) >> 48 == 0x8000 | errno.EIO
        assert events(bad) == select.POLLIN | select.POLLOUT
        assert os.eventfd_read(good.fileno()) == 1
        assert good.status() == 1
        for fence in (good, bad):
            with pytest.raises(BlockingIOError):
                os.eventfd_write(fence.fileno(), 2**64 - 2)  # any two statuses overflow: the first one stands


# Waiting


def test_timeouts(timeline: fb.Timeline) -> None:
    """Seconds; None for ever; 0 asks now; TimeoutError names the fence, and never comes early."""
    with timeline.export(1) as fence:
        for timeout in (0, 0.0, 0.05):
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=f"{timeline.context}@1 did not signal in time"):
                fence.wait(timeout)
            assert time.monotonic() - began >= timeout
        timeline.advance(1)
        fence.wait()
        fence.wait(None)
        fence.wait(0)


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan])
def test_impossible_timeouts(timeline: fb.Timeline, timeout: float) -> None:
    """ValueError names the argument, before anything is waited for."""
    with timeline.export(1) as fence:
        for call in (fence.wait, lambda t: fb.wait_any([fence], t), lambda t: fb.wait_all([fence], t)):
            with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
                call(timeout)


@pytest.mark.parametrize("timeout", ["1", True, b"1", [1]])
def test_timeouts_of_another_type(timeline: fb.Timeline, timeout: object) -> None:
    """TypeError names the argument."""
    with timeline.export(1) as fence, pytest.raises(TypeError, match="timeout must be a number of seconds or None"):
        fence.wait(timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [math.inf, 10**400, 1e300, 2**31, 2**63])
def test_a_very_long_timeout_is_no_limit(timeline: fb.Timeline, timeout: float) -> None:
    """Infinity, and what does not fit into poll's milliseconds, waits as long as it takes."""
    with timeline.export(1) as fence:
        waiting = threading.Thread(target=fence.wait, args=(timeout,))
        waiting.start()
        any_of = threading.Thread(target=fb.wait_any, args=([fence], timeout))
        any_of.start()
        timeline.advance(1)
        for thread in (waiting, any_of):
            thread.join(LIMIT)
            assert not thread.is_alive()


def test_a_signal_handler_runs_and_the_wait_goes_on(spawn: Spawn, broker: BrokerProcess) -> None:
    """A wait survives signals, and its timeout is not started anew by them."""
    child = spawn(
        """
        import signal, time, fencebroker as fb
        hits = []
        signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
        with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1) as fence:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            began = time.monotonic()
            try:
                fence.wait(0.2)
            except TimeoutError:
                print(0.2 <= time.monotonic() - began < 5, len(hits) >= 5)
            signal.setitimer(signal.ITIMER_REAL, 0)
        """,
        env=broker.env,
    )
    assert child.finish() == "True True\n"


def test_a_handler_may_raise(spawn: Spawn, broker: BrokerProcess) -> None:
    """Ctrl-C ends a wait, and costs no descriptor; the connection stays usable."""
    child = spawn(
        """
        import os, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1) as fence:
            before = len(os.listdir("/proc/self/fd"))
            try:
                print("waiting", flush=True)
                fence.wait(30)
            except KeyboardInterrupt:
                print("interrupted", len(os.listdir("/proc/self/fd")) - before, broker.info(fence).status)
        """,
        env=broker.env,
    )
    assert child.line() == "waiting"
    # Between the line and poll() there are some instructions; an interrupt in them is as good.
    child.signal(signal.SIGINT)
    assert child.finish() == "interrupted 0 0\n"


def test_wait_any_returns_the_ready_ones_in_argument_order(connection: fb.Broker) -> None:
    """Failed ones are ready too and nothing is raised for them."""
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in range(4)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        with pytest.raises(TimeoutError, match="none of 4 fences"):
            fb.wait_any(fences, 0)
        timelines[3].advance(1)
        assert fb.wait_any(fences, LIMIT) == [fences[3]]
        timelines[1].fail(1, errno.EIO)
        connection._status()
        assert fb.wait_any(fences, LIMIT) == [fences[1], fences[3]]
        assert fb.wait_any(iter(fences[::-1])) == [fences[3], fences[1]]
        assert fb.wait_any([fences[1], fences[1]]) == [fences[1], fences[1]]
    with pytest.raises(ValueError, match="fences must not be empty"):
        fb.wait_any([])


def test_wait_any_wakes(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """It sleeps until the first of them signals."""
    results: list[list[fb.SyncFile]] = []
    with connection.create_timeline() as other, timeline.export(1) as first, other.export(1) as second:
        thread = threading.Thread(target=lambda: results.append(fb.wait_any([first, second], LIMIT)))
        thread.start()
        other.advance(1)
        thread.join(LIMIT)
        assert results == [[second]]


def test_wait_all(connection: fb.Broker) -> None:
    """TimeoutError with .pending in argument order; then the error of the first failed in argument order; of nothing, at once."""
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline(f"all{i}")) for i in range(4)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        timelines[2].fail(1, errno.EIO)
        timelines[0].advance(1)
        with pytest.raises(TimeoutError, match="2 of the fences did not signal in time: all1@1, all3@1") as late:
            fb.wait_all(fences, 0.05)
        assert isinstance(late.value, WaitTimeout)
        assert late.value.pending == [fences[1], fences[3]]
        timelines[3].fail(1, errno.ENODATA)
        timelines[1].advance(1)
        with pytest.raises(fb.FenceError) as caught:
            fb.wait_all(fences, LIMIT)
        assert (caught.value.error, caught.value.fence) == (errno.EIO, "all2@1")
        with pytest.raises(fb.FenceError) as caught:
            fb.wait_all(fences[::-1])
        assert (caught.value.error, caught.value.fence) == (errno.ENODATA, "all3@1")
        fb.wait_all(fences[:2], 0)
    fb.wait_all([])
    fb.wait_all([], 0)


def test_only_sync_files_can_be_waited_for(timeline: fb.Timeline) -> None:
    """The TypeError names which one, what it is and how to make one."""
    with timeline.export(1) as fence:
        for call in (fb.wait_any, fb.wait_all):
            with pytest.raises(TypeError, match=r"fences\[1\] must be a SyncFile, not int; SyncFile.from_fd"):
                call([fence, fence.fileno()])  # type: ignore[list-item]


# Loops


def test_select_poll_epoll_and_selectors(timeline: fb.Timeline) -> None:
    """``fileno()`` makes it usable everywhere: readable means signalled, level-triggered, OK or not."""
    for seqno, error in ((1, 0), (2, errno.EIO)):
        with timeline.export(seqno) as fence, selectors.DefaultSelector() as selector, select.epoll() as epoll:
            selector.register(fence, selectors.EVENT_READ)
            epoll.register(fence, select.EPOLLIN)
            assert select.select([fence], [], [], 0)[0] == []
            assert selector.select(0) == []
            assert epoll.poll(0) == []
            if error:
                timeline.fail(seqno, error)
            else:
                timeline.advance(seqno)
            for _ in range(3):
                assert selector.select(LIMIT)[0][0].fileobj is fence
                assert select.select([fence], [], [], LIMIT)[0] == [fence]
                assert epoll.poll(LIMIT) == [(fence.fileno(), select.EPOLLIN)]
            selector.unregister(fence)


# Threads


def test_many_threads_wait_and_one_closes(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Any number of threads may wait on one SyncFile while another closes it: their waits go on until it signals."""
    n = 8
    started = threading.Barrier(n + 1)
    woken: list[int] = []
    fence = timeline.export(1)
    before = set(descriptors())

    def wait() -> None:
        started.wait(LIMIT)
        with contextlib.suppress(ValueError):  # who comes after the close is told so
            fence.wait(LIMIT)
            woken.append(1)

    threads = [threading.Thread(target=wait) for _ in range(n)]
    for thread in threads:
        thread.start()
    started.wait(LIMIT)
    while not set(descriptors()) - before:
        pass  # until one of them has its duplicate
    fence.close()
    connection._status()  # the broker has heard of the close
    assert not woken
    timeline.advance(1)
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert woken


def test_many_threads_wait_on_one(timeline: fb.Timeline) -> None:
    """All of them wake."""
    woken: list[int] = []
    with timeline.export(1) as fence:

        def wait(i: int) -> None:
            fence.wait(LIMIT)
            woken.append(i)

        threads = [threading.Thread(target=wait, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        assert woken == []
        timeline.advance(1)
        for thread in threads:
            thread.join(LIMIT)
    assert sorted(woken) == list(range(8))


def test_wait_any_goes_on_when_another_thread_closes(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """It looks at duplicates of its own."""
    first, second = timeline.export_many([1, 2])
    before = len(descriptors())
    results: list[list[fb.SyncFile]] = []
    thread = threading.Thread(target=lambda: results.append(fb.wait_any([first, second], LIMIT)))
    thread.start()
    while len(descriptors()) < before + 2:
        pass  # until it has both duplicates
    first.close()
    connection._status()
    timeline.advance(1)
    thread.join(LIMIT)
    assert results == [[first]]
    second.close()


# Tampering: co-holders of one descriptor trust each other; who does not, imports


def test_a_read_while_active_changes_nothing(timeline: fb.Timeline) -> None:
    """There is nothing to take."""
    with timeline.export(1) as fence:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fence.fileno())
        assert fence.status() == 0
        timeline.advance(1)
        fence.wait(LIMIT)


@pytest.mark.parametrize("forged", [1, 5, 2**20, 2**47])
def test_a_forged_count_is_not_believed(connection: fb.Broker, timeline: fb.Timeline, forged: int) -> None:
    """status(), wait() and check() of a tampered descriptor ask the broker; import tells the truth; info says tampered."""
    with timeline.export(1) as fence:
        os.eventfd_write(fence.fileno(), forged)
        assert is_readable(fence.fileno())
        assert (fence.status(), fence.check()) == (0, False)
        with pytest.raises(TimeoutError):
            fence.wait(0.05)
        with pytest.raises(TimeoutError):
            fb.wait_any([fence], 0.05)
        with pytest.raises(TimeoutError):
            fb.wait_all([fence], 0.05)
        with connection.import_sync_file(fence.fileno()) as private:
            assert private.status() == 0
            assert connection.info(fence.fileno()).tampered
            assert not connection.info(private).tampered
            waiting = threading.Thread(target=fence.wait, args=(LIMIT,))
            waiting.start()
            timeline.advance(1)
            private.wait(LIMIT)
            assert fb.wait_any([fence], LIMIT) == [fence]
            waiting.join(LIMIT)
            assert not waiting.is_alive()
            assert fence.status() == 1
        assert eventfd_count(fence.fileno()) == 2**64 - 2  # the broker topped it up


def test_wait_any_sees_through_a_forgery_in_the_middle(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Somebody writes while it waits: it waits on for the truth."""
    results: list[list[fb.SyncFile]] = []
    with timeline.export(1) as fence, timeline.export(2) as other:
        before = len(descriptors())
        thread = threading.Thread(target=lambda: results.append(fb.wait_any([other, fence], LIMIT)))
        thread.start()
        while len(descriptors()) < before + 2:
            pass
        os.eventfd_write(fence.fileno(), 3)
        while len(descriptors()) < before + 3:
            pass  # until it has asked for a private one
        assert results == []
        timeline.advance(1)
        thread.join(LIMIT)
        assert results == [[fence]]


def test_a_forged_success_fools_only_its_co_holders(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Co-holders trust each other; everybody else's descriptor, and the broker, know better."""
    with timeline.export(1) as fence, timeline.export(1) as other:
        os.eventfd_write(fence.fileno(), 2**64 - 2)
        assert fence.status() == 1
        assert other.status() == 0
        assert eventfd_id(other.fileno()) != eventfd_id(fence.fileno())
        info = connection.info(fence.fileno())
        assert (info.status, info.tampered) == (0, True)
        with connection.import_sync_file(fence.fileno()) as private:
            assert private.status() == 0


def test_a_drained_status_is_still_the_status(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Reads take 1 each: OK and errors stay what they are."""
    with timeline.export(1) as good, timeline.export(2) as bad:
        timeline.fail(2, errno.EIO)
        connection._status()
        for _ in range(5000):
            os.eventfd_read(good.fileno())
            os.eventfd_read(bad.fileno())
        assert (good.status(), bad.status()) == (1, -errno.EIO)
        assert not connection.info(good.fileno()).tampered


def test_a_count_that_cannot_be_topped_up(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """The descriptor stays tampered and its status is asked for; other sync_files of the same fence carry it."""
    with timeline.export(1) as full, timeline.export(1) as other:
        os.eventfd_write(full.fileno(), 0x9000 << 48)  # no status, and above any error's
        timeline.fail(1, errno.EIO)
        with pytest.raises(fb.FenceError):
            other.wait(LIMIT)
        assert full.status() == -errno.EIO
        assert connection.info(full).tampered
        assert eventfd_count(full.fileno()) == 0x9000 << 48


def test_tampered_without_a_broker_says_so(spawn: Spawn, broker: BrokerProcess) -> None:
    """Nobody is left to ask: EBADMSG and the cure, not a guess."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        os.eventfd_write(fence.fileno(), 3)
        child = spawn(
            """
            import errno, sys, fencebroker as fb
            with fb.SyncFile.from_fd(int(sys.argv[1])) as fence:
                for call in (fence.status, fence.check, lambda: fence.wait(5), lambda: fb.wait_any([fence], 5)):
                    try:
                        call()
                    except fb.FenceError as err:
                        print(errno.errorcode[err.error], "connect to the broker and import it" in str(err))
            """,
            fence.fileno(),
            pass_fds=[fence.fileno()],
        )
        assert child.finish() == "EBADMSG True\n" * 4


def test_no_warning_is_left_by_a_wait_that_is_cut_short(timeline: fb.Timeline) -> None:
    """Every duplicate a wait makes is closed, also when it ends by an exception."""
    with timeline.export(1) as fence, warnings.catch_warnings():
        warnings.simplefilter("error")
        before = descriptors()
        for _ in range(100):
            with pytest.raises(TimeoutError):
                fence.wait(0.0001)
            with pytest.raises(TimeoutError):
                fb.wait_any([fence], 0.0001)
        assert descriptors() == before
