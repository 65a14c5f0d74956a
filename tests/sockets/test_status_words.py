"""The status that a descriptor carries in its own counter: written once, readable for everybody, for ever."""

from __future__ import annotations

import fcntl
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from fencebroker.fds import (
    OwnedFd,
    SignalResult,
    eventfd_info,
    is_signalled,
    new_fence_eventfd,
    peek_status,
    status_from_count,
    status_word,
    write_status,
)
from fencebroker.model import MAX_ERRNO
from tests.helpers import assert_closed_on_exec, eventfd_count, eventfd_id

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUSES = [1, *range(-1, -MAX_ERRNO - 1, -1)]


@pytest.fixture
def fence() -> Iterator[int]:
    with OwnedFd(new_fence_eventfd()) as owned:
        yield owned.fileno()


def events(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    return sum(happened for _, happened in poll.poll(0))


def test_a_new_one(fence: int) -> None:
    assert os.readlink(f"/proc/self/fd/{fence}") == "anon_inode:[eventfd]"
    assert_closed_on_exec(fence)
    assert fcntl.fcntl(fence, fcntl.F_GETFL) & os.O_NONBLOCK
    info = eventfd_info(fence)
    assert info is not None
    assert (info.count, info.semaphore, info.id) == (0, True, eventfd_id(fence))
    assert (peek_status(fence), is_signalled(fence), events(fence)) == (0, False, select.POLLOUT)


def test_every_status_there_is() -> None:
    """Written, polled, and read back from the kernel's counter: 4,096 of them."""
    for status in STATUSES:
        with OwnedFd(new_fence_eventfd()) as owned:
            fd = owned.fileno()
            assert write_status(fd, status_word(status)) == SignalResult.WRITTEN
            assert peek_status(fd) == status
            assert events(fd) == (select.POLLIN if status == 1 else select.POLLIN | select.POLLOUT)
            assert eventfd_count(fd) >> 48 == (0xFFFF if status == 1 else 0x8000 | -status)


@pytest.mark.parametrize("status", [0, 2, -MAX_ERRNO - 1, -(2**15), 2**63])
def test_what_is_no_status_has_no_word(status: int) -> None:
    with pytest.raises(ValueError, match="status must be 1 or -1"):
        status_word(status)


def test_counts_that_no_broker_leaves() -> None:
    assert status_from_count(0) == 0
    for count in (1, 2, 2**47, 2**48, 2**62, 2**63 - 1, 2**63, 2**63 + 2**47, 0x9000 << 48, 0xFFFE << 48, (0x8000 | 4096) << 48):
        assert status_from_count(count) is None, hex(count)
    for status in STATUSES:
        assert status_from_count(status_word(status)) == status


@pytest.mark.parametrize("status", [1, -1, -5, -MAX_ERRNO])
def test_reads_do_not_drain_it(fence: int, status: int) -> None:
    write_status(fence, status_word(status))
    for _ in range(1_000):
        assert os.eventfd_read(fence) == 1
    assert is_signalled(fence)
    assert peek_status(fence) == status
    assert events(fence) == select.POLLIN | select.POLLOUT, "somebody has read: POLLOUT tells nothing any more"


@pytest.mark.parametrize("first", [1, -1, -5, -MAX_ERRNO])
@pytest.mark.parametrize("second", [1, -1, -5, -MAX_ERRNO])
def test_the_first_of_two_stands(fence: int, first: int, second: int) -> None:
    os.eventfd_write(fence, status_word(first))
    with pytest.raises(BlockingIOError):
        os.eventfd_write(fence, status_word(second))
    for _ in range(10):
        os.eventfd_read(fence)
    assert write_status(fence, status_word(second)) == SignalResult.ALREADY
    assert peek_status(fence) == first


def test_every_holder_and_every_dup_sees_it_and_so_does_a_late_one(fence: int) -> None:
    left, right = socket.socketpair()
    with left, right, OwnedFd(os.dup(fence)) as early, select.epoll() as epoll:
        epoll.register(fence, select.EPOLLIN)
        write_status(fence, status_word(-5))
        with OwnedFd(os.dup(fence)) as late:
            assert peek_status(early.fileno()) == peek_status(late.fileno()) == -5
        assert [epoll.poll(0) for _ in range(3)] == [[(fence, select.EPOLLIN)]] * 3, "level-triggered, for ever"


@pytest.mark.parametrize("status", [1, -5])
@pytest.mark.parametrize("forged", [1, 2, 1_000, 2**32, 2**46])
def test_a_forged_small_count_ends_as_the_status(fence: int, status: int, forged: int) -> None:
    os.eventfd_write(fence, forged)
    assert peek_status(fence) is None, "readable and no status: ask the broker"
    assert write_status(fence, status_word(status)) in (SignalResult.WRITTEN, SignalResult.ALREADY)
    assert peek_status(fence) == status


@pytest.mark.parametrize("forged", [2**47, 2**48, 2**49 + 5, 2**62, (0xFFFF - 0x8005) << 48, 2**63 + 2**47 - 1])
def test_a_count_that_would_make_an_error_another_one_is_mended_too(fence: int, forged: int) -> None:
    """The counter has room for both: written plainly, -EIO would read as another error, or as OK."""
    os.eventfd_write(fence, forged)
    assert write_status(fence, status_word(-5)) == SignalResult.WRITTEN
    assert peek_status(fence) == -5


@pytest.mark.parametrize("forged", [0xFFFE << 48, (0x8000 | 4096) << 48, 2**63 + 2**62])
def test_a_count_above_the_status_cannot_be_mended(fence: int, forged: int) -> None:
    os.eventfd_write(fence, forged)
    assert write_status(fence, status_word(-5)) == SignalResult.TAMPERED
    assert peek_status(fence) is None
    assert is_signalled(fence), "nobody hangs"


def test_a_forged_status_stands_like_any_first_one(fence: int) -> None:
    """Who holds the descriptor can write to it.  Who does not trust the other holders imports."""
    os.eventfd_write(fence, status_word(1))
    assert write_status(fence, status_word(-5)) == SignalResult.ALREADY
    assert peek_status(fence) == 1


def test_what_is_no_eventfd(fence: int) -> None:
    reader, writer = os.pipe()
    with OwnedFd(reader), OwnedFd(writer):
        assert eventfd_info(reader) is None
    for ask in (peek_status, eventfd_info, is_signalled):
        with pytest.raises(OSError, match=r"Bad file descriptor|not open"):
            ask(2**20)
