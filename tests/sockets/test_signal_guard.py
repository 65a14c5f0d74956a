"""Writing statuses to what clients hold: never early, never twice, and never blocked by a holder for long."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fencebroker.fds import peek_status
from fencebrokerd.shell.eventfds import Eventfds
from fencebrokerd.shell.identity import Identity
from tests.helpers import descriptors
from tests.sockets.scarcity import descriptors_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALICE, BOB = 1000, 1001


def waits() -> int:
    """How often this thread has gone to sleep: a write that blocks is one, however busy the machine is."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


@pytest.fixture
def eventfds() -> Iterator[Eventfds]:
    before = signal.getsignal(signal.SIGALRM)
    eventfds = Eventfds(Identity())
    yield eventfds
    eventfds.close_all()
    signal.signal(signal.SIGALRM, before)


def uid_of(handle: int) -> int:
    """Odd handles are Alice's."""
    return ALICE if handle % 2 else BOB


def fd_of(eventfds: Eventfds, handle: int) -> int:
    (fd,) = eventfds.numbers([handle])
    return fd


def block(fd: int) -> None:
    """What a hostile holder does: it clears the O_NONBLOCK that all copies share, and fills the counter."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    os.eventfd_write(fd, 2**63)  # no status, and no room for one


def test_they_are_made_written_and_closed(eventfds: Eventfds) -> None:
    eventfds.create(1, 3)
    eventfds.create(10, 2)
    assert len(eventfds) == 5
    assert eventfds.signal([1, 3], 1, uid_of) == ([], [])
    assert eventfds.signal([10], -5, uid_of) == ([], [])
    assert [peek_status(fd) for fd in eventfds.numbers([1, 2, 3, 10, 11])] == [1, 0, 1, -5, 0]
    fds = eventfds.numbers([1, 2])
    eventfds.close([1, 2, 99])
    assert not descriptors().keys() & set(fds)
    assert len(eventfds) == 3


def test_a_handle_that_is_gone_is_passed_over(eventfds: Eventfds) -> None:
    eventfds.create(1, 1)
    assert eventfds.signal([99, 1, 98], 1, uid_of) == ([], [])
    assert peek_status(fd_of(eventfds, 1)) == 1


def test_signalling_again_is_harmless(eventfds: Eventfds) -> None:
    eventfds.create(1, 1)
    for status in (-5, 1, -7):
        assert eventfds.signal([1], status, uid_of) == ([], [])
    assert peek_status(fd_of(eventfds, 1)) == -5


def test_a_forged_count_is_mended_and_reported(eventfds: Eventfds) -> None:
    eventfds.create(1, 2)
    os.eventfd_write(fd_of(eventfds, 1), 1)
    assert eventfds.signal([1, 2], 1, uid_of) == ([1], [])
    assert [peek_status(fd) for fd in eventfds.numbers([1, 2])] == [1, 1]


def test_a_count_that_cannot_be_mended_is_reported(eventfds: Eventfds) -> None:
    eventfds.create(1, 2)
    os.eventfd_write(fd_of(eventfds, 1), 0xFFFE << 48)
    assert eventfds.signal([1, 2], -5, uid_of) == ([1], [])
    assert [peek_status(fd) for fd in eventfds.numbers([1, 2])] == [None, -5]


def test_a_blocked_write_poisons_what_is_left_of_that_user_and_nobody_else(eventfds: Eventfds) -> None:
    eventfds.create(1, 8)
    block(fd_of(eventfds, 3))
    began = time.monotonic()
    tampered, poisoned = eventfds.signal([1, 2, 3, 4, 5, 6, 7, 8], 1, uid_of)
    assert time.monotonic() - began < 1
    assert (tampered, poisoned) == ([], [3, 5, 7])
    assert [peek_status(fd) for fd in eventfds.numbers([1, 2, 4, 6, 8])] == [1] * 5


def test_two_hostile_users_cost_one_guard_each(eventfds: Eventfds) -> None:
    eventfds.create(1, 200)
    for handle in range(1, 101):
        block(fd_of(eventfds, handle))
    before = waits()
    _, poisoned = eventfds.signal(range(1, 201), 1, uid_of)
    assert waits() - before < 10, "each of a hundred that blocks would be one"
    assert len(poisoned) == 200


def test_a_full_counter_that_was_left_non_blocking_is_no_poison(eventfds: Eventfds) -> None:
    eventfds.create(1, 1)
    os.eventfd_write(fd_of(eventfds, 1), 2**64 - 2)
    assert eventfds.signal([1], -5, uid_of) == ([], [])
    assert peek_status(fd_of(eventfds, 1)) == 1, "a status was there first; the core sees that it is not its own"


def test_the_timer_is_off_afterwards(eventfds: Eventfds) -> None:
    eventfds.create(1, 3)
    block(fd_of(eventfds, 3))
    eventfds.signal([1, 2, 3], 1, uid_of)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_the_kernel_refuses_leaves_nothing(eventfds: Eventfds) -> None:
    before = descriptors()
    with descriptors_left(6), pytest.raises(OSError, match="Too many open files") as refused:
        eventfds.create(1, 50)
    assert refused.value.errno == errno.EMFILE
    assert len(eventfds) == 0
    assert descriptors() == before
    eventfds.create(1, 50)


def test_at_the_descriptor_limit_a_forged_count_is_reported_not_raised(eventfds: Eventfds) -> None:
    eventfds.create(1, 2)
    os.eventfd_write(fd_of(eventfds, 1), 1)
    with descriptors_left(0):
        assert eventfds.signal([1, 2], 1, uid_of) == ([1], [])
    assert peek_status(fd_of(eventfds, 2)) == 1


def test_who_blocked_once_hardly_blocks_again(eventfds: Eventfds) -> None:
    """A thousand traps of one user cost what one does: O_NONBLOCK is set again before each write to its sync_files."""
    eventfds.create(1, 400)
    for handle in range(1, 401, 2):
        block(fd_of(eventfds, handle))
    assert eventfds.signal([1], 1, uid_of) == ([], [1])
    before = waits()
    for handle in range(3, 401, 2):
        assert eventfds.signal([handle], 1, uid_of) == ([handle], [])
    assert waits() - before < 40, "each of two hundred that blocks would be one"
    assert eventfds.signal(range(2, 401, 2), 1, uid_of) == ([], [])


def crowd(fds: list[int], n: int) -> Callable[[], None]:
    """Have ``n`` waiters on each descriptor: threads that poll it a thousand times each.  Returns what ends them."""
    end = os.eventfd(0, os.EFD_CLOEXEC)
    threads = []
    ready = threading.Semaphore(0)

    def wait(fd: int, n: int) -> None:
        poll = ctypes.CDLL(None, use_errno=True).poll
        entries = (ctypes.c_int64 * (n + 1))(*([fd | select.POLLIN << 32] * n), end | select.POLLIN << 32)
        ready.release()
        poll(entries, n + 1, -1)

    for fd in fds:
        for first in range(0, n, 1000):
            threads.append(threading.Thread(target=wait, args=(fd, min(1000, n - first))))
            threads[-1].start()
            ready.acquire()

    def stop() -> None:
        os.eventfd_write(end, 1)
        for thread in threads:
            thread.join()
        os.close(end)

    return stop


def test_a_batch_that_takes_long_is_cut(eventfds: Eventfds) -> None:
    """100,000 waiters of one descriptor make a write take some milliseconds; what does not fit into a batch waits for its user's next turn,
    in order, and is there at once for who looks at it.
    """
    eventfds.create(1, 201)
    slow = [1, 3, 5, 7]
    stop = crowd([fd_of(eventfds, handle) for handle in slow], 25_000)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fencebrokerd.shell.eventfds.BATCH_SECONDS", 0.000_001)  # any write takes so long
            assert eventfds.signal([*slow, *range(9, 202, 2)], 1, uid_of) == ([], [])
            assert eventfds.signal([2], 1, uid_of) == ([], [])  # somebody else's
            assert peek_status(fd_of(eventfds, 2)) == 1
            assert eventfds.put_off() == [ALICE]
            assert peek_status(fd_of(eventfds, 201)) == 0
            eventfds.settle([201])
            assert peek_status(fd_of(eventfds, 201)) == 1
            copy = os.dup(fd_of(eventfds, 199))
            eventfds.close([199])
            assert peek_status(copy) == 1
            os.close(copy)
            assert eventfds.signal([4, 6], -5, uid_of) == ([], [])
            for _ in range(1000):
                for uid in eventfds.put_off():
                    eventfds.resume(uid, uid_of)
        assert eventfds.put_off() == []
        assert {peek_status(fd) for fd in eventfds.numbers([*slow, *range(9, 199, 2)])} == {1}
        assert {peek_status(fd) for fd in eventfds.numbers([4, 6])} == {-5}
    finally:
        stop()
