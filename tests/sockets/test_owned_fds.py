"""The one owner type of a descriptor: live, then closed or handed over, and never silently lost."""

from __future__ import annotations

import enum
import errno
import io
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fencebroker.fds import OwnedFd, borrow, close_all
from tests.helpers import assert_closed_on_exec, assert_not_fd, same_file

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def number() -> Iterator[int]:
    """A descriptor that the test closes, by whatever means it tests."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    assert_not_fd(fd)


def test_close(number: int) -> None:
    owned = OwnedFd(number)
    assert (owned.fileno(), owned.closed) == (number, False)
    owned.close()
    assert owned.closed
    assert_not_fd(number)


def test_a_second_close_does_not_close_somebody_elses(number: int) -> None:
    owned = OwnedFd(number)
    owned.close()
    other = os.eventfd(0, os.EFD_CLOEXEC)
    assert other == number, "the lowest free number is used again"
    owned.close()
    os.fstat(other)
    os.close(other)


def test_detach_hands_the_duty_over(number: int) -> None:
    owned = OwnedFd(number)
    assert owned.detach() == number
    assert owned.closed
    owned.close()
    os.fstat(number)
    with pytest.raises(ValueError, match="closed or handed over"):
        owned.detach()
    os.close(number)


@pytest.mark.parametrize("use", ["fileno", "detach", "dup"])
@pytest.mark.parametrize("end", ["close", "detach"])
def test_no_use_after_the_end(use: str, end: str) -> None:
    owned = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC))
    number = owned.fileno()
    getattr(owned, end)()
    with pytest.raises(ValueError, match="closed or handed over"):
        getattr(owned, use)()
    if end == "detach":
        os.close(number)


def test_a_dup_is_the_same_file_with_a_duty_of_its_own(number: int) -> None:
    with OwnedFd(number) as owned:
        dup = owned.dup()
        assert same_file(dup.fileno(), number)
        assert_closed_on_exec(dup.fileno(), number)
    assert_not_fd(number)
    os.fstat(dup.fileno())
    dup.close()


def test_with_closes_also_when_it_fails(number: int) -> None:
    with pytest.raises(KeyError), OwnedFd(number):
        raise KeyError
    assert_not_fd(number)


def test_a_lost_one_warns_and_is_closed(number: int) -> None:
    owned = OwnedFd(number)
    with pytest.warns(ResourceWarning, match=f"descriptor {number} was never closed"):
        del owned
    assert_not_fd(number)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("end", ["close", "detach"])
def test_a_closed_or_handed_over_one_does_not_warn(end: str) -> None:
    owned = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC))
    number = owned.fileno()
    getattr(owned, end)()
    del owned
    if end == "detach":
        os.close(number)


def test_an_error_of_the_kernels_is_not_hidden_and_not_repeated() -> None:
    owned = OwnedFd(2**20)
    with pytest.raises(OSError, match="Bad file descriptor"):
        owned.close()
    assert owned.closed
    owned.close()


def test_its_repr_says_whether_it_lives(number: int) -> None:
    owned = OwnedFd(number)
    assert repr(owned) == f"<OwnedFd {number}>"
    owned.close()
    assert repr(owned) == "<OwnedFd closed>"


def test_close_all() -> None:
    owned = [OwnedFd(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(5)]
    owned[2].close()
    close_all(owned)
    close_all([])
    assert all(fd.closed for fd in owned)


# -- borrowing


class Weird:
    def __init__(self, number: Any) -> None:
        self.number = number

    def fileno(self) -> Any:
        return self.number


class Number(enum.IntEnum):
    THREE = 3


def test_what_can_be_borrowed(number: int) -> None:
    left, right = socket.socketpair()
    with left, right, OwnedFd(number) as owned:
        assert [borrow(thing) for thing in (number, owned, left, Weird(7), 0, 2**31 - 1)] == [
            number,
            number,
            left.fileno(),
            7,
            0,
            2**31 - 1,
        ]


@pytest.mark.parametrize(
    "thing", [True, False, 1.0, "3", b"3", None, [], object(), Number.THREE, Weird(None), Weird("3"), Weird(1.0), Weird(True)]
)
def test_what_is_no_descriptor_is_a_type_error_that_names_the_argument(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"^fences must "):
        borrow(thing, "fences")


@pytest.mark.parametrize("thing", [-1, -(2**63), 2**31, 2**64, Weird(-1), Weird(2**31)])
def test_a_number_that_no_descriptor_has_is_a_value_error(thing: Any) -> None:
    with pytest.raises(ValueError, match=r"^fd must be an open descriptor, not "):
        borrow(thing)


def test_what_a_fileno_raises_is_its_own(number: int) -> None:
    owned = OwnedFd(number)
    owned.close()
    with pytest.raises(ValueError, match="closed or handed over"):
        borrow(owned)
    with pytest.raises(io.UnsupportedOperation):
        borrow(io.BytesIO())
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="not -1"):
        borrow(closed)


def test_a_closed_number_is_the_kernels_to_refuse() -> None:
    assert borrow(2**20) == 2**20
    with pytest.raises(OSError, match="Bad file") as refused:
        os.fstat(2**20)
    assert refused.value.errno == errno.EBADF
