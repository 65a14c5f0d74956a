"""Many at once through ``fencebroker.libsync``: no wake-up is lost and none is early.  After the kernel's own stress tests of sw_sync."""

from __future__ import annotations

import mmap
import os
import random
import threading
from typing import TYPE_CHECKING, Final

import pytest

from fencebroker import libsync
from tests.helpers import BrokerProcess, is_readable
from tests.process.libsync_support import Own, own

if TYPE_CHECKING:
    from tests.helpers import Spawn

__all__ = ["own"]

pytestmark = pytest.mark.timeout(150)

#: ms; reaching it is a lost wake-up.
LONG: Final = 20_000


def test_two_threads_take_turns_on_one_timeline(own: Own) -> None:
    timeline = own.timeline()
    rounds = 10_000
    counter = 0
    failures: list[BaseException] = []

    def work(me: int) -> None:
        nonlocal counter
        try:
            for turn in range(me, 2 * rounds, 2):
                fence = libsync.sw_sync_fence_create(timeline, "", turn)
                libsync.sync_wait(fence, LONG)
                os.close(fence)
                assert counter == turn, "woken early, or beside the other one"
                counter += 1
                libsync.sw_sync_timeline_inc(timeline, 1)
        except BaseException as err:  # noqa: BLE001 - the main thread looks at it
            failures.append(err)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert counter == 2 * rounds


PRODUCER = """
    import mmap, os, sys
    from fencebroker import libsync
    memory, mine, consumer, slot, rounds = map(int, sys.argv[1:])
    with mmap.mmap(memory, 4096) as counters, memoryview(counters).cast("Q") as numbers:
        for turn in range(rounds):
            fence = libsync.sw_sync_fence_create(consumer, "", turn)  # the consumer has taken what came before
            libsync.sync_wait(fence, 20_000)
            os.close(fence)
            assert numbers[7] == turn, (numbers[7], turn)
            numbers[slot] = turn + 1
            libsync.sw_sync_timeline_inc(mine, 1)
    print("done", flush=True)
"""


def test_five_producers_and_a_consumer(own: Own, module_broker: BrokerProcess, spawn: Spawn) -> None:
    rounds, n_producers = 2500, 5
    memory = own(os.memfd_create("counters", os.MFD_CLOEXEC))
    os.ftruncate(memory, 4096)
    consumer = own.timeline()
    lines = [own.timeline() for _ in range(n_producers)]
    producers = [
        spawn(PRODUCER, memory, line, consumer, slot, rounds, pass_fds=[memory, line, consumer], env=module_broker.env)
        for slot, line in enumerate(lines)
    ]
    with mmap.mmap(memory, 4096) as counters, memoryview(counters).cast("Q") as numbers:
        for turn in range(rounds):
            merged = libsync.sw_sync_fence_create(lines[0], "", turn + 1)
            for line in lines[1:]:
                parts = merged, libsync.sw_sync_fence_create(line, "", turn + 1)
                merged = libsync.sync_merge("all of them", *parts)
                for part in parts:
                    os.close(part)
            libsync.sync_wait(merged, LONG)
            os.close(merged)
            assert list(numbers[:n_producers]) == [turn + 1] * n_producers, "woken early"
            numbers[7] = turn + 1
            libsync.sw_sync_timeline_inc(consumer, 1)
    for producer in producers:
        assert producer.finish() == "done\n"


def test_random_merges_over_many_timelines(own: Own) -> None:
    """32,768 merges over 32 timelines, some 4,000 sync_files unsignalled at a time."""
    dice = random.Random(4)
    n_timelines, batch = 32, 2048
    lines = [own.timeline() for _ in range(n_timelines)]
    values = [0] * n_timelines
    for _ in range(32_768 // batch):
        latest: dict[int, int] = {}
        merged = -1
        for number in range(batch):
            index = dice.randrange(n_timelines)
            value = values[index] + dice.randint(1, 1000)
            fence = libsync.sw_sync_fence_create(lines[index], "", value)
            latest[index] = max(value, latest.get(index, 0))
            if number:
                parts = (merged, fence) if dice.random() < 0.5 else (fence, merged)
                merged = libsync.sync_merge("random", *parts)
                for part in parts:
                    os.close(part)
            else:
                merged = fence
        info = libsync.sync_file_info(merged)
        assert info.num_fences == len(info.fences) == len(latest)
        assert sorted(fence.seqno for fence in info.fences) == sorted(latest.values())
        order = list(latest)
        dice.shuffle(order)
        for index in order:
            assert not is_readable(merged), "woken early"
            libsync.sw_sync_timeline_inc(lines[index], latest[index] - values[index] - 1)
            values[index] = latest[index] - 1
        with pytest.raises(OSError, match=r"\[Errno 62\]"):
            libsync.sync_wait(merged, 0)  # each is one short
        for index in order:
            with pytest.raises(OSError, match=r"\[Errno 62\]"):
                libsync.sync_wait(merged, 0)
            libsync.sw_sync_timeline_inc(lines[index], 1)
            values[index] += 1
        libsync.sync_wait(merged, 0)
        assert libsync.sync_file_info(merged).status == 1
        os.close(merged)
