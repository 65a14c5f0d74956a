"""Rows E: waiting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import selectors
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import kernel, libsync
from tests.helpers import LIMIT
from tests.parity.support import fails, status

if TYPE_CHECKING:
    from tests.helpers import StartBroker
    from tests.parity.conftest import Driver, Own


def test_a_wait_returns_what_is_left_of_its_time(driver: Driver) -> None:
    fence, done, failed = (driver.fence(seqno) for seqno in (1, 2, 3))
    kernel.dma_fence_signal(done)
    kernel.dma_fence_set_error(failed, -errno.EIO)
    kernel.dma_fence_signal(failed)
    assert kernel.dma_fence_wait_timeout(fence, True, -1) == -errno.EINVAL
    assert kernel.dma_fence_wait_timeout(fence, True, 0) == 0
    assert kernel.dma_fence_wait_timeout(done, True, 0) == 1
    started = time.monotonic()
    assert kernel.dma_fence_wait_timeout(fence, True, 30) == 0
    assert time.monotonic() - started >= 0.03
    assert kernel.dma_fence_wait_timeout(failed, True, 1000) == 1000  # its error is not returned
    left = 60_000
    while left > 60_000 - 20:  # the waker comes after 50 ms; on a busy machine the wait may begin as late
        waker = threading.Timer(0.05, kernel.dma_fence_signal, [fence])
        waker.start()
        started = time.monotonic()
        left = kernel.dma_fence_wait_timeout(fence, False, 60_000)
        took = (time.monotonic() - started) * 1000
        assert 60_000 - took - 1 <= left <= 60_000
        waker.join()
        kernel.dma_fence_put(fence)
        fence = driver.fence(fence.seqno + 3)
    for each in (fence, done, failed):
        kernel.dma_fence_put(each)


def test_a_wait_for_any_gives_the_lowest_index(driver: Driver) -> None:
    fences = [driver.fence(seqno) for seqno in (1, 2, 3)]
    wait = kernel.dma_fence_wait_any_timeout
    assert wait(None, 1, True, 0) == -errno.EINVAL
    assert wait(fences, 0, True, 0) == -errno.EINVAL
    assert wait(fences, 3, True, -1) == -errno.EINVAL
    assert wait(fences, 3, True, 0) == 0
    index = [-1]
    for fence in (fences[2], fences[1]):  # the later one signals first
        kernel.dma_fence_signal(fence)
    assert wait(fences, 3, True, 1000, index) > 0
    assert index == [1]
    for fence in fences:
        kernel.dma_fence_put(fence)


def test_sync_wait_ends_by_signal_or_time(own: Own) -> None:
    timeline, broken = own.timeline(), own(libsync.sw_sync_timeline_create())
    fence, failed = own.fence(timeline, 1), own.fence(broken, 1)
    fails(errno.ETIME, libsync.sync_wait, fence, 0)
    started = time.monotonic()
    fails(errno.ETIME, libsync.sync_wait, fence, 30)
    assert time.monotonic() - started >= 0.03
    waker = threading.Timer(0.05, libsync.sw_sync_timeline_inc, [timeline, 1])
    waker.start()
    for timeout in (-1, -5, 0, 10, 2**40):
        libsync.sync_wait(fence, timeout)
    waker.join()
    own.close(broken)
    libsync.sync_wait(failed, -1)  # failed is signalled
    assert status(failed) == -errno.ENOENT


def test_the_ladder_of_sync_wait(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)
    fails(errno.EINVAL, libsync.sync_wait, -1, 0)
    for closed in (9999, 2**31 - 1, 2**31, 2**64):
        fails(errno.EBADF, libsync.sync_wait, closed, 0)
        fails(errno.EBADF, libsync.sync_wait, closed, -1)
    elsewhere = own(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE))
    fails(errno.ENOENT, libsync.sync_wait, elsewhere, -1)
    os.eventfd_write(elsewhere, 2**64 - 2)
    libsync.sync_wait(elsewhere, 0)  # signalled, by whichever broker
    read, write = (own(fd) for fd in os.pipe2(os.O_CLOEXEC))
    own.close(read)
    fails(errno.EINVAL, libsync.sync_wait, write, 0)  # POLLERR
    for nonsense in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="fd must be a descriptor"):
            libsync.sync_wait(nonsense, 0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="timeout must be an int of milliseconds"):
            libsync.sync_wait(fence, nonsense)  # type: ignore[arg-type]


def test_a_signal_handler_does_not_make_a_wait_longer(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)
    calls = 0

    def handler(*_: object) -> None:
        nonlocal calls
        calls += 1

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # restarted with the full time, the wait would never end
    try:
        started = time.monotonic()
        fails(errno.ETIME, libsync.sync_wait, fence, 200)
        took = time.monotonic() - started
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert calls > 3
    assert 0.2 <= took < 5


def test_sync_wait_sees_what_was_done_before(own: Own) -> None:
    for _ in range(200):
        timeline = own(libsync.sw_sync_timeline_create())
        fence, other = own.fence(timeline, 1), own.fence(timeline, 2)
        libsync.sw_sync_timeline_inc(timeline, 1)
        libsync.sync_wait(fence, 0)
        own.close(timeline)
        libsync.sync_wait(other, 0)
        assert status(other) == -errno.ENOENT
        own.close(fence, other)


def test_a_wait_ends_when_the_broker_does(start_broker: StartBroker, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    fence = own.fence(own.timeline(), 1)
    failure: list[OSError] = []

    def wait() -> None:
        try:
            libsync.sync_wait(fence, -1)
        except OSError as err:
            failure.append(err)

    waiter = threading.Thread(target=wait)
    waiter.start()
    broker.kill()
    waiter.join(LIMIT)
    assert not waiter.is_alive()
    assert [err.errno for err in failure] in ([errno.ENOTCONN], [])


def test_descriptors_live_in_poll_loops(own: Own) -> None:
    timeline = own.timeline()
    fences = [own.fence(timeline, value) for value in (1, 2, 3)]
    read, write = (own(fd) for fd in os.pipe2(os.O_CLOEXEC))
    with selectors.DefaultSelector() as selector:
        for fd in (*fences, read):
            selector.register(fd, selectors.EVENT_READ)
        assert selector.select(0) == []
        os.write(write, b"x")
        libsync.sw_sync_timeline_inc(timeline, 2)
        libsync.sync_wait(fences[1], -1)
        assert {key.fd for key, _ in selector.select(LIMIT)} == {fences[0], fences[1], read}
    assert select.select(fences, [], [], 0)[0] == fences[:2]

    async def wait() -> None:
        woken = asyncio.Event()
        asyncio.get_running_loop().add_reader(fences[2], woken.set)
        libsync.sw_sync_timeline_inc(timeline, 1)
        await asyncio.wait_for(woken.wait(), LIMIT)
        asyncio.get_running_loop().remove_reader(fences[2])

    asyncio.run(wait())


# ○ rows


def test_waiting_for_several(connection: fb.Broker) -> None:
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in range(3)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        with pytest.raises(TimeoutError):
            fb.wait_any(fences, 0)
        for timeline in reversed(timelines[1:]):
            timeline.advance(1)
        fences[2].wait(LIMIT)
        fences[1].wait(LIMIT)
        assert fb.wait_any(fences, LIMIT) == fences[1:]
        with pytest.raises(TimeoutError):
            fb.wait_all(fences, 0.01)
        timelines[0].advance(1)
        fb.wait_all(fences, LIMIT)
        with pytest.raises(ValueError, match="fences must not be empty"):
            fb.wait_any([], 0)


def test_waiting_for_what_was_not_submitted(connection: fb.Broker) -> None:
    with connection.sync_file("e5@1", expiry=0.05) as early, pytest.raises(fb.FenceError) as caught:
        early.wait(LIMIT)
    assert caught.value.error == errno.ETIME
