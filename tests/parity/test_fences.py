"""Rows B and D: fences and containers as those who hold a descriptor see them; ``tests/process/test_kernel_fences.py`` has the rest."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import kernel, libsync
from tests.helpers import is_readable
from tests.parity.support import status

if TYPE_CHECKING:
    from tests.parity.conftest import Driver, Own


def test_a_fence_is_a_context_and_a_seqno(own: Own, connection: fb.Broker) -> None:
    timelines = [own.timeline() for _ in range(3)]
    infos = [libsync.sync_file_info(own.fence(timeline, seqno)) for timeline in timelines for seqno in (1, 9)]
    contexts = [info.context for info in infos]
    assert contexts == sorted(contexts)
    assert len(set(contexts)) == 3
    assert min(contexts) >= 1  # 0 is the stub's
    assert [info.seqno for info in infos] == [1, 9] * 3
    own.close(timelines[2])
    with connection.create_timeline() as line:
        assert line.context > max(contexts)  # never used again


def test_the_timestamp_is_that_of_the_first_signal(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    assert libsync.sync_file_info(fence).fences[0].timestamp_ns == 0
    before = time.monotonic_ns()
    libsync.sw_sync_timeline_inc(timeline, 1)
    libsync.sync_wait(fence, -1)
    after = time.monotonic_ns()
    first = libsync.sync_file_info(fence).fences[0].timestamp_ns  # there at once for whoever was woken
    assert before <= first <= after
    libsync.sw_sync_timeline_inc(timeline, 1)
    assert libsync.sync_file_info(fence).fences[0].timestamp_ns == first


def test_names_stay_after_the_signal(own: Own, driver: Driver) -> None:
    timeline = own.timeline()
    fd = own.fence(timeline, 1)
    before = libsync.sync_file_info(fd)
    libsync.sw_sync_timeline_inc(timeline, 1)
    after = libsync.sync_file_info(fd)
    assert (after.name, after.fences[0].driver_name, after.fences[0].obj_name) == (before.name, "sw_sync", before.fences[0].obj_name)
    fence = driver.fence()
    names = kernel.dma_fence_driver_name(fence), kernel.dma_fence_timeline_name(fence)
    kernel.dma_fence_signal(fence)
    assert (kernel.dma_fence_driver_name(fence), kernel.dma_fence_timeline_name(fence)) == names
    kernel.dma_fence_put(fence)


def test_the_soonest_deadline_stands_and_changes_no_outcome(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    now = time.monotonic_ns()
    for deadline, soonest in ((now + 10**12, now + 10**12), (now + 10**9, now + 10**9), (now + 10**10, now + 10**9), (1, 1)):
        libsync.sync_set_deadline(fence, deadline)
        assert libsync.sw_sync_get_deadline(fence) == soonest
    assert status(fence) == 0  # long past, and still active
    libsync.sw_sync_timeline_inc(timeline, 1)
    libsync.sync_set_deadline(fence, 0)
    assert libsync.sw_sync_get_deadline(fence) == 1
    assert status(fence) == 1


def test_a_fence_with_an_expiry_signals_in_finite_time(connection: fb.Broker) -> None:
    with connection.create_timeline(expiry=0.05) as timeline, timeline.export(1) as fence:
        with pytest.raises(fb.FenceError) as caught:
            fence.wait(10)
        assert caught.value.error == errno.ETIME
        info = connection.info(fence)
        assert info.fences[0].timestamp_ns - info.fences[0].created_ns >= 50_000_000


# Rows D


def test_an_array_signals_when_all_have(own: Own) -> None:
    timelines = [own.timeline() for _ in range(3)]
    fences = [own.fence(timeline, 1) for timeline in timelines]
    array = own(libsync.sync_merge("", own.merge(fences[0], fences[1]), fences[2]))
    info = libsync.sync_file_info(array)
    assert info.seqno == 1
    assert info.context not in {fence.context for fence in info.fences}
    assert info.name.startswith("dma_fence_array-unbound")
    for timeline in (timelines[2], timelines[0]):
        libsync.sw_sync_timeline_inc(timeline, 1)
        assert status(array) == 0
        assert not is_readable(array)
    libsync.sw_sync_timeline_inc(timelines[1], 1)
    assert status(array) == 1
    assert is_readable(array)


def test_an_array_may_signal_with_the_first(connection: fb.Broker) -> None:
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in range(3)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        first = stack.enter_context(connection.merge(fences, when="any"))
        timelines[1].fail(1, errno.EIO)
        with pytest.raises(fb.FenceError) as caught:
            first.wait(10)
        assert caught.value.error == errno.EIO
        assert connection.info(fences[0]).status == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_an_array_has_the_error_that_was_first_in_time(connection: fb.Broker, order: tuple[int, ...]) -> None:
    errors = (errno.EIO, errno.ECANCELED, None)
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in errors]
        array = stack.enter_context(connection.merge([stack.enter_context(timeline.export(1)) for timeline in timelines]))
        for index in order:
            assert connection.info(array).status == 0
            error = errors[index]
            if error is None:
                timelines[index].advance(1)
            else:
                timelines[index].fail(1, error)
        first = next(errors[index] for index in order if errors[index])
        assert first is not None
        assert connection.info(array).status == -first


def test_no_array_is_inside_an_array_and_none_is_empty(own: Own, connection: fb.Broker) -> None:
    timelines = [own.timeline() for _ in range(4)]
    fences = [own.fence(timeline, 1) for timeline in timelines]
    merged = own(libsync.sync_merge("", own.merge(fences[0], fences[1]), own.merge(fences[2], fences[3])))
    info = libsync.sync_file_info(merged)
    assert [fence.driver_name for fence in info.fences] == ["sw_sync"] * 4
    row = next(row for row in connection._listing("fences") if row[0] == _fence_id(connection, info.id))
    kinds = {known[0]: known[1] for known in connection._listing("fences")}
    assert [kinds[member] for member in row[-1]] == ["point"] * 4
    with pytest.raises(ValueError, match="fences must not be empty"):
        connection.merge([])


def _fence_id(connection: fb.Broker, sync_file: int) -> int:
    kind, row = connection._lookup(f"#{sync_file}")
    assert kind == "sync_file"
    fence: int = row[12]
    return fence
