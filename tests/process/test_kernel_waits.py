"""``fencebroker.kernel``: waiting, with every result; and what a signal handler does to a wait."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

import pytest

from fencebroker import kernel as k
from tests.helpers import LIMIT, Spawn
from tests.process.kernel_support import Driver, driver

__all__ = ["driver"]

#: How a test gets at a fence: its own, or one that came by a descriptor.
Kind = Callable[[Driver, k.dma_fence], k.dma_fence]


def own(_: Driver, fence: k.dma_fence) -> k.dma_fence:
    return k.dma_fence_get(fence)


def from_elsewhere(driver: Driver, fence: k.dma_fence) -> k.dma_fence:
    fd = driver.install(fence)
    received = k.sync_file_get_fence(fd)
    os.close(fd)
    assert received is not None, k.last_error()
    return received


both = pytest.mark.parametrize("kind", [own, from_elsewhere])


def soon(fence: k.dma_fence) -> threading.Thread:
    """Signal from another thread, which starts now."""
    thread = threading.Thread(target=k.dma_fence_signal, args=[fence])
    thread.start()
    return thread


@both
def test_wait_returns_zero(driver: Driver, kind: Kind) -> None:
    fence = driver.fence()
    waited = kind(driver, fence)
    thread = soon(fence)
    assert k.dma_fence_wait(waited, False) == 0
    assert k.dma_fence_wait(waited, True) == 0
    thread.join(LIMIT)
    for each in (fence, waited):
        k.dma_fence_put(each)


@both
def test_wait_does_not_return_the_error(driver: Driver, kind: Kind) -> None:
    fence = driver.fence()
    waited = kind(driver, fence)
    k.dma_fence_set_error(fence, -errno.EIO)
    k.dma_fence_signal(fence)
    assert k.dma_fence_wait(waited, False) == 0
    assert k.dma_fence_get_status(waited) == -errno.EIO
    for each in (fence, waited):
        k.dma_fence_put(each)


@both
def test_wait_with_a_timeout(driver: Driver, kind: Kind) -> None:
    fence = driver.fence()
    waited = kind(driver, fence)
    assert k.dma_fence_wait_timeout(waited, True, -1) == -errno.EINVAL
    assert k.dma_fence_wait_timeout(waited, True, 0) == 0
    before = time.monotonic()
    assert k.dma_fence_wait_timeout(waited, False, 30) == 0
    assert time.monotonic() - before >= 0.03
    assert k.dma_fence_wait_timeout(waited, True, 5) == 0
    thread = soon(fence)
    left = k.dma_fence_wait_timeout(waited, True, 10 * k.HZ)
    assert 1 <= left <= 10 * k.HZ
    assert k.dma_fence_wait_timeout(waited, True, 0) == 1
    assert k.dma_fence_wait_timeout(waited, True, 7) == 7
    assert k.dma_fence_wait_timeout(waited, True, k.MAX_SCHEDULE_TIMEOUT) == k.MAX_SCHEDULE_TIMEOUT
    thread.join(LIMIT)
    for each in (fence, waited):
        k.dma_fence_put(each)


def test_a_wait_without_end_tells_no_time_left(driver: Driver) -> None:
    fence = driver.fence()
    waited = from_elsewhere(driver, fence)
    thread = soon(fence)
    assert k.dma_fence_wait_timeout(waited, False, k.MAX_SCHEDULE_TIMEOUT) == k.MAX_SCHEDULE_TIMEOUT
    thread.join(LIMIT)
    for each in (fence, waited):
        k.dma_fence_put(each)


def test_a_timeout_longer_than_poll_takes(driver: Driver) -> None:
    fence = driver.fence()
    thread = soon(fence)
    assert k.dma_fence_wait_timeout(fence, True, 2**40) > 2**39
    thread.join(LIMIT)
    k.dma_fence_put(fence)


def test_many_threads_wait_for_one_fence(driver: Driver) -> None:
    fence = driver.fence()
    waited = from_elsewhere(driver, fence)
    results: list[int] = []
    threads = [threading.Thread(target=lambda f=f: results.append(k.dma_fence_wait(f, False))) for f in (fence, waited) * 4]
    for thread in threads:
        thread.start()
    k.dma_fence_signal(fence)
    for thread in threads:
        thread.join(LIMIT)
    assert results == [0] * 8
    for each in (fence, waited):
        k.dma_fence_put(each)


def test_wait_any_gives_the_lowest_index(driver: Driver) -> None:
    fences = [driver.fence(seqno) for seqno in range(1, 4)]
    mixed = [fences[0], from_elsewhere(driver, fences[1]), from_elsewhere(driver, fences[2])]
    idx = [99]
    assert k.dma_fence_wait_any_timeout(mixed, 3, True, 0, idx) == 0
    assert k.dma_fence_wait_any_timeout(mixed, 3, True, 5, idx) == 0
    assert idx == [99]
    thread = soon(fences[2])
    assert 1 <= k.dma_fence_wait_any_timeout(mixed, 3, True, 10 * k.HZ, idx) <= 10 * k.HZ
    assert idx == [2]
    thread.join(LIMIT)
    k.dma_fence_signal(fences[1])
    assert k.dma_fence_wait(mixed[1], False) == 0
    assert k.dma_fence_wait_any_timeout(mixed, 3, False, k.MAX_SCHEDULE_TIMEOUT, idx) > 0
    assert idx == [1]  # not the one that was first in time
    assert k.dma_fence_wait_any_timeout(mixed, 1, False, 0, idx) == 0  # only the first is looked at
    assert k.dma_fence_wait_any_timeout(mixed, 3, False, 0, idx) == 1
    k.dma_fence_signal(fences[0])
    assert k.dma_fence_wait_any_timeout(mixed, 3, False, 0) == 1
    assert k.dma_fence_wait_any_timeout(mixed, 3, False, 0, idx) == 1
    assert idx == [0]
    for fence in [*fences, *mixed[1:]]:
        k.dma_fence_put(fence)


def test_wait_any_of_nothing_is_einval(driver: Driver) -> None:
    fence = driver.fence()
    assert k.dma_fence_wait_any_timeout(None, 1, False, 1) == -errno.EINVAL
    assert k.dma_fence_wait_any_timeout([fence], 0, False, 1) == -errno.EINVAL
    assert k.dma_fence_wait_any_timeout([], 0, False, 1) == -errno.EINVAL
    assert k.dma_fence_wait_any_timeout([fence], 1, False, -1) == -errno.EINVAL
    k.dma_fence_put(fence)


def test_wrong_arguments_name_themselves(driver: Driver) -> None:
    fence = driver.fence()
    types: list[tuple[object, str]] = [
        (lambda: k.dma_fence_wait(None, True), "fence must be a dma_fence"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_wait(fence, 1), "intr must be a bool, not int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_wait_timeout(fence, True, 1.5), "timeout must be an int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_wait_timeout(fence, True, True), "timeout must be an int"),
        (lambda: k.dma_fence_wait_any_timeout([fence], 1.0, True, 1), "count must be an int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_wait_any_timeout([fence], 1, True, 1, 3), "idx must be a list"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_wait_any_timeout([fence, 3], 2, True, 1), r"fences\[1\] must be a dma_fence"),  # type: ignore[list-item]
    ]
    for call, text in types:
        with pytest.raises(TypeError, match=text):
            call()  # type: ignore[operator]
    for count in (2, -1):
        with pytest.raises(ValueError, match="count must be between 1 and the number of fences, 1"):
            k.dma_fence_wait_any_timeout([fence], count, True, 1)
    with pytest.raises(ValueError, match="idx must have an element"):
        k.dma_fence_wait_any_timeout([fence], 1, True, 1, [])
    k.dma_fence_put(fence)


def test_a_wait_holds_a_reference(driver: Driver) -> None:
    """Another thread may put the last one meanwhile; the descriptor that is slept on stays open."""
    fence = driver.fence()
    waited = from_elsewhere(driver, fence)
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(k.dma_fence_wait(waited, False)))
    waiter.start()
    while waited.refcount < 2:  # no event tells that a thread is about to sleep
        os.sched_yield()
    k.dma_fence_put(waited)
    k.dma_fence_signal(fence)
    waiter.join(LIMIT)
    assert results == [0]
    k.dma_fence_put(fence)


# -- signals, in a process of its own

SETUP = """
    import os, signal, sys
    from fencebroker import kernel as k
    fence = k.dma_fence()
    k.dma_fence_init(fence, k.dma_fence_ops(), None, k.dma_fence_context_alloc(1), 1)
    waited = k.dma_fence_get(fence)
    if sys.argv[1] == "elsewhere":
        k.dma_fence_put(waited)
        file = k.sync_file_create(fence).file
        fd = k.get_unused_fd_flags(os.O_CLOEXEC)
        k.fd_install(fd, file)
        waited = k.sync_file_get_fence(fd)
        os.close(fd)

    ran = []

    def alarm(handler):
        "Signals that come again and again, so that one comes while the main thread sleeps."
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

    def calm():
        signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_handler_ends_an_interruptible_wait(driver: Driver, spawn: Spawn, where: str) -> None:
    child = spawn(
        SETUP
        + """
    alarm(lambda *_: ran.append(1))
    results = [k.dma_fence_wait(waited, True), k.dma_fence_wait_any_timeout([waited], 1, True, 10000)]
    calm()
    print(results, len(ran) >= 2, k.dma_fence_get_status(waited))
    k.dma_fence_signal(fence)
    print(k.dma_fence_wait(waited, True))
    k.dma_fence_put(fence)
    k.dma_fence_put(waited)
    print(k.references())
    """,
        where,
        env=driver.broker.env,
    )
    assert [child.line() for _ in range(3)] == ["[-512, -512] True 0", "0", "{}"]
    child.finish()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_handler_does_not_end_an_uninterruptible_wait(driver: Driver, spawn: Spawn, where: str) -> None:
    child = spawn(
        SETUP
        + """
    alarm(lambda *_: ran.append(1) or (len(ran) > 3 and k.dma_fence_signal(fence)))
    print(k.dma_fence_wait(waited, False), k.dma_fence_get_status(waited))
    calm()
    k.dma_fence_put(fence)
    k.dma_fence_put(waited)
    print(k.references())
    """,
        where,
        env=driver.broker.env,
    )
    assert [child.line() for _ in range(2)] == ["0 1", "{}"]
    child.finish()


def test_a_handler_that_raises_leaves_the_wait_without_leaks(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        SETUP
        + """
    def interrupt(*_):
        calm()
        raise KeyboardInterrupt

    before = os.listdir("/proc/self/fd"), k.references()
    for intr in (True, False):
        try:
            alarm(interrupt)
            k.dma_fence_wait(waited, intr)
        except KeyboardInterrupt:
            print("interrupted", (os.listdir("/proc/self/fd"), k.references()) == before, flush=True)
    k.dma_fence_put(waited)
    k.dma_fence_put(fence)
    """,
        "here",
        env=driver.broker.env,
    )
    assert [child.line() for _ in range(2)] == ["interrupted True"] * 2
    child.finish()


def test_without_a_descriptor_to_sleep_on_it_is_enomem(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        SETUP
        + """
    import resource
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    while k.get_unused_fd_flags(0) >= 0:
        pass
    print(k.dma_fence_wait_timeout(fence, False, 5), k.dma_fence_wait_any_timeout([fence], 1, False, 5))
    received = waited
    cb = k.dma_fence_cb()
    print(k.dma_fence_add_callback(received, cb, print), received.refcount, k.last_error().errno)
    print(k.dma_fence_wait_timeout(received, False, 5))      # it has a descriptor of its own
    k.dma_fence_set_error(fence, -5)
    k.dma_fence_signal(fence)
    print(k.dma_fence_wait(received, False), k.dma_fence_get_status(received))
    k.dma_fence_put(fence)
    k.dma_fence_put(received)
    k.shutdown()
    print(k.references())
    """,
        "elsewhere",
        env=driver.broker.env,
    )
    lines = [child.line() for _ in range(5)]
    assert lines == [f"-{errno.ENOMEM} -{errno.ENOMEM}", f"-{errno.ENOMEM} 1 {errno.EMFILE}", "0", "0 -5", "{}"]
    child.finish()
