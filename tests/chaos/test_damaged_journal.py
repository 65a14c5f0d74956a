"""A journal that is not what was written: nobody goes on from it, and everybody who waits hears of the end."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

import fencebroker as fb
from fencebrokerd.keeper import HALF, JOURNAL_BYTES, LENGTH, PAGE_BYTES
from tests.helpers import BrokerProcess, wait_readable

Words = memoryview
#: Cut a live broker's journal here, or write there.
Damage = Callable[[mmap.mmap, Words, int, int], None]


@contextmanager
def journal_of(keeper: int) -> Iterator[tuple[mmap.mmap, memoryview]]:
    """Map what broker and keeper share."""
    folder = f"/proc/{keeper}/fd"
    name = next(name for name in os.listdir(folder) if "fencebroker-journal" in os.readlink(f"{folder}/{name}"))
    fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
    with mmap.mmap(fd, PAGE_BYTES + JOURNAL_BYTES) as whole:
        os.close(fd)
        words = memoryview(whole)[:PAGE_BYTES].cast("Q")
        try:
            yield whole, words
        finally:
            words.release()


def no_such_half(whole: mmap.mmap, words: Words, start: int, length: int) -> None:
    words[HALF] = 2**63


def too_long(whole: mmap.mmap, words: Words, start: int, length: int) -> None:
    words[LENGTH + words[HALF]] = 2**64 - 1


def gone(whole: mmap.mmap, words: Words, start: int, length: int) -> None:
    words[LENGTH + words[HALF]] = 0


def a_bit(whole: mmap.mmap, words: Words, start: int, length: int) -> None:
    whole[start + length // 2] ^= 1


def a_length(whole: mmap.mmap, words: Words, start: int, length: int) -> None:
    struct.pack_into("<I", whole, start, 2**32 - 1)


REASONS: Final[dict[Damage, str]] = {
    no_such_half: "the words of its page are damaged",
    too_long: "the words of its page are damaged",
    gone: "it is empty",
    a_bit: "is damaged",
    a_length: "is damaged",
}


@pytest.mark.parametrize("damage", REASONS)
def test_nobody_goes_on_from_a_damaged_journal(broker: BrokerProcess, damage: Damage) -> None:
    broker.expect_trouble()
    with fb.connect(broker.path, autostart=False) as connection:
        timeline = connection.create_timeline()
        fences = [timeline.export(1), timeline.export(2, private=True), connection.sync_file("nobody@1")]
        pid = connection._status()["pid"]
        with journal_of(broker.process.pid) as (whole, words):
            half = words[HALF]
            damage(whole, words, PAGE_BYTES + half * (JOURNAL_BYTES // 2), words[LENGTH + half])
        os.kill(pid, signal.SIGKILL)
        for fence in fences:
            wait_readable(fence.fileno(), 30)
            assert fence.status() == -errno.ECANCELED
            fence.close()
        timeline.close()
    assert broker.process.wait(30) == 1
    log = broker.log()
    assert log.count("cannot be read: ") == log.count(REASONS[damage]) == 5
    assert "Traceback" not in log


def test_what_is_behind_the_end_does_not_count(broker: BrokerProcess) -> None:
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        pid = connection._status()["pid"]
        with journal_of(broker.process.pid) as (whole, words):
            half = words[HALF]
            end = PAGE_BYTES + half * (JOURNAL_BYTES // 2) + words[LENGTH + half]
            whole[end : end + 4096] = os.urandom(4096)
        os.kill(pid, signal.SIGKILL)
        assert connection._status()["generation"] == 2
        timeline.advance(1)
        fence.wait(10)
