"""A number is believed only while it stands for the very file that it was noted for."""

from __future__ import annotations

import os
import random
import resource
from typing import TYPE_CHECKING

import pytest

from fencebroker.fds import new_fence_eventfd
from fencebroker.known import LIMIT, KnownFds

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def known() -> Iterator[KnownFds]:
    known = KnownFds()
    yield known
    known.close()


@pytest.fixture
def fd() -> Iterator[int]:
    fd = new_fence_eventfd()
    yield fd
    os.close(fd)


def test_a_number_is_known_while_it_is_that_file(known: KnownFds, fd: int) -> None:
    assert known.find(fd) is None
    known.add(fd, 7)
    assert [known.find(fd), known.find(fd)] == [7, 7]
    os.eventfd_write(fd, 1)
    assert known.find(fd) == 7


def test_a_closed_number_is_not_known(known: KnownFds) -> None:
    fd = new_fence_eventfd()
    known.add(fd, 7)
    os.close(fd)
    assert known.find(fd) is None


@pytest.mark.parametrize("held", [True, False], ids=["the file lives on", "the file is gone"])
def test_a_number_that_came_back_as_another_file_is_not_known(known: KnownFds, held: bool) -> None:
    fd = new_fence_eventfd()
    known.add(fd, 7)
    copy = os.dup(fd) if held else -1
    os.close(fd)
    again = new_fence_eventfd()
    assert again == fd
    assert known.find(fd) is None
    known.add(again, 8)
    assert known.find(again) == 8
    os.close(again)
    if held:
        assert os.dup2(copy, fd) == fd
        assert known.find(fd) is None, "it was another one's for a while"
        os.close(fd)
        os.close(copy)


def test_dup2_over_a_number(known: KnownFds, fd: int) -> None:
    known.add(fd, 7)
    other = new_fence_eventfd()
    os.dup2(other, fd)
    assert known.find(fd) is None
    os.close(other)


def test_a_copy_has_a_number_of_its_own(known: KnownFds, fd: int) -> None:
    known.add(fd, 7)
    copy = os.dup(fd)
    assert known.find(copy) is None
    os.close(copy)


def test_no_number_is_ever_taken_for_another_file(known: KnownFds) -> None:
    """Files come and go at random, some held by a copy, some with the number of one before; each has a handle of its own."""
    dice = random.Random(1)
    hits = 0
    alive: dict[int, int] = {}  # number -> handle, 0 where it was not added
    copies: list[int] = []
    for handle in range(1, 20_000):
        if len(alive) < 40 and dice.random() < 0.6:
            fd = new_fence_eventfd()
            if dice.random() < 0.7:
                known.add(fd, handle)
                alive[fd] = handle
            else:
                alive[fd] = 0
        elif alive:
            fd = dice.choice(list(alive))
            if dice.random() < 0.3 and len(copies) < 100:
                copies.append(os.dup(fd))
            os.close(fd)
            del alive[fd]
        if dice.random() < 0.1 and copies:
            os.close(copies.pop(dice.randrange(len(copies))))
        for fd in dice.sample(list(alive), min(3, len(alive))):
            found = known.find(fd)
            assert found is None or found == alive[fd]
            hits += found is not None
    assert hits > 10_000
    for fd in [*alive, *copies]:
        os.close(fd)


def test_without_a_descriptor_left_nothing_is_known_and_nothing_breaks(known: KnownFds, fd: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd, hard))
    try:
        known.add(fd, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert known.find(fd) is None
    known.add(fd, 8)
    assert known.find(fd) == 8


def test_the_newest_are_kept(known: KnownFds) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fds = [new_fence_eventfd() for _ in range(LIMIT + 8)]
    for handle, fd in enumerate(fds[:LIMIT], 1):
        known.add(fd, handle)
    assert known.find(fds[0]) == 1
    for handle, fd in enumerate(fds[LIMIT:], LIMIT + 1):
        known.add(fd, handle)
    assert [known.find(fd) for fd in fds[:10]] == [1, *[None] * 8, 10]
    assert len(os.listdir("/proc/self/fd")) == before + len(fds) + LIMIT
    for fd in fds:
        os.close(fd)


def test_after_close_nothing_is_known_any_more(known: KnownFds, fd: int) -> None:
    known.add(fd, 7)
    known.close()
    assert known.find(fd) is None
    known.add(fd, 8)
    assert known.find(fd) is None
