"""Rows A: timelines and points."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import libsync
from fencebroker.finding import default_connection
from tests.helpers import assert_closed_on_exec, is_readable, wait_readable
from tests.parity.support import fails, full_table, status

if TYPE_CHECKING:
    from tests.parity.conftest import Own


def test_a_timeline_starts_at_0_with_a_context_of_its_own(own: Own) -> None:
    first, second = libsync.sw_sync_timeline_create(), libsync.sw_sync_timeline_create()
    own(first), own(second)
    assert status(own.fence(first, 0)) == 1  # 0 has passed
    infos = [libsync.sync_file_info(own.fence(timeline, 1)) for timeline in (first, second)]
    assert [info.status for info in infos] == [0, 0]
    assert infos[0].context != infos[1].context
    for info in infos:
        # Named after who opened it, so two may have one name.
        (fence,) = info.fences
        assert fence.owner is not None
        assert fence.owner.pid == os.getpid()
        assert fence.obj_name == fence.owner.comm
        assert fence.driver_name == "sw_sync"


def test_every_holder_of_a_timeline_mints_and_signals(own: Own) -> None:
    timeline = own(libsync.sw_sync_timeline_create())
    copy = own(os.dup(timeline))
    fence = own.fence(copy, 1)
    own.close(timeline)
    assert status(fence) == 0
    libsync.sw_sync_timeline_inc(copy, 1)
    assert status(fence) == 1
    assert_closed_on_exec(copy, fence)


def test_the_name_of_a_fence_is_copied_in_and_ignored(own: Own) -> None:
    timeline = own.timeline()
    names = {libsync.sync_file_info(own(libsync.sw_sync_fence_create(timeline, name, 1))).name for name in ("frame", "x" * 100, "")}
    assert len(names) == 1
    assert names.pop().startswith("sw_sync-")


def test_increments_signal_what_they_pass_in_order(own: Own, connection: fb.Broker) -> None:
    timeline = own.timeline()
    fences = [own.fence(timeline, value) for value in (3, 1, 2, 4, 2**31 + 10)]
    ids = {libsync.sync_file_info(fence).seqno: fence for fence in fences}
    events = connection.events()
    seen: list[int] = []

    def follow() -> None:
        for event in events:
            if event.name == "dma_fence_signaled":
                seen.append(event.seqno)
                if event.seqno == 2**31 + 10:
                    return

    # The generator subscribes when it is made, so nothing is missed.
    follower = threading.Thread(target=follow)
    follower.start()
    libsync.sw_sync_timeline_inc(timeline, 0)  # legal; nothing happens
    assert [status(fence) for fence in fences] == [0, 0, 0, 0, 0]
    libsync.sw_sync_timeline_inc(timeline, 3)
    assert [status(fence) for fence in fences] == [1, 1, 1, 0, 0]
    libsync.sw_sync_timeline_inc(timeline, 2**31 + 7)  # more than INT_MAX in one step
    assert [status(fence) for fence in fences] == [1, 1, 1, 1, 1]
    follower.join(10)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert seen == [1, 2, 3, 4, 2**31 + 10]
    stamps = [libsync.sync_file_info(ids[value]).fences[0].timestamp_ns for value in seen]
    assert stamps == sorted(stamps)


def test_the_ladder_of_increments(own: Own) -> None:
    timeline = own.timeline()
    closed = os.dup(timeline)
    os.close(closed)
    fails(errno.EBADF, libsync.sw_sync_timeline_inc, closed, 1)
    fails(errno.EBADF, libsync.sw_sync_timeline_inc, -1, 1)
    for number in (own.fence(timeline, 1), own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)), *map(own, os.pipe())):
        fails(errno.ENOTTY, libsync.sw_sync_timeline_inc, number, 1)
        fails(errno.ENOTTY, libsync.sw_sync_timeline_inc, number, -1)  # the kernel knows the file before it looks at the argument
    for count in (-1, 2**32):
        fails(errno.EINVAL, libsync.sw_sync_timeline_inc, timeline, count)
    for nonsense in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="count must be an int"):
            libsync.sw_sync_timeline_inc(timeline, nonsense)  # type: ignore[arg-type]
    assert status(own.fence(timeline, 1)) == 0


def test_a_timeline_that_the_broker_ended_is_not_connected(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    with socket.socket(fileno=os.dup(timeline)) as raw:
        raw.send(b"\xc1")  # nonsense, from a holder
    libsync.sync_wait(fence, -1)
    assert status(fence) == -errno.EPROTO
    assert wait_readable(timeline) & select.POLLHUP
    fails(errno.ENOTCONN, libsync.sw_sync_timeline_inc, timeline, 1)


def test_a_fence_at_or_below_the_value_is_born_signalled(own: Own) -> None:
    timeline = own.timeline()
    libsync.sw_sync_timeline_inc(timeline, 5)
    for value, expected in ((4, 1), (5, 1), (6, 0)):
        fence = own(libsync.sw_sync_fence_create(timeline, "", value))
        assert status(fence) == expected
        assert is_readable(fence) == bool(expected)
        assert_closed_on_exec(fence)


def test_the_ladder_of_fences(own: Own) -> None:
    timeline = own.timeline()
    other = own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    create = libsync.sw_sync_fence_create
    with full_table():
        # The system call looks the file up before sw_sync reserves a descriptor; what is wrong with the argument comes last.
        fails(errno.EBADF, create, 9999, "", 1)
        fails(errno.ENOTTY, create, other, "", 1)
        fails(errno.EMFILE, create, timeline, "", 1)
        fails(errno.EMFILE, create, timeline, "", -1)
    fails(errno.EINVAL, create, timeline, "", -1)
    fails(errno.EINVAL, create, timeline, "", 2**32)
    with pytest.raises(TypeError, match="name must be"):
        create(timeline, None, 1)  # type: ignore[arg-type]
    assert status(own.fence(timeline, 1)) == 0


def test_no_timeline_without_a_free_descriptor(own: Own) -> None:
    default_connection()
    with full_table():
        fails(errno.EMFILE, libsync.sw_sync_timeline_create)
    own(libsync.sw_sync_timeline_create())


def test_values_are_compared_as_the_kernel_does_and_never_wrap(own: Own) -> None:
    timeline = own.timeline()
    half = 2**31
    assert status(own.fence(timeline, 2**32 - 1)) == 0  # the kernel takes a far future for the past
    libsync.sw_sync_timeline_inc(timeline, half)
    assert status(own.fence(timeline, half + 5)) == 0
    assert status(own.fence(timeline, 5)) == 1
    libsync.sw_sync_timeline_inc(timeline, half - 6)  # 2**32 - 6
    over = own.fence(timeline, 3)  # nearer ahead than behind: 2**32 + 3
    assert libsync.sync_file_info(over).seqno == 2**32 + 3
    libsync.sw_sync_timeline_inc(timeline, 8)
    assert status(over) == 0
    libsync.sw_sync_timeline_inc(timeline, 1)
    assert status(over) == 1
    assert status(own.fence(timeline, 2)) == 1
    assert status(own.fence(timeline, 4)) == 0


@pytest.mark.parametrize(
    ("value", "current", "expected"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (2**32 - 1, 0, 2**32 - 1),
        (2**31 - 1, 0, 2**31 - 1),
        (0, 2**31, 0),
        (0, 2**31 + 1, 2**32),
        (7, 2**32 + 7, 2**32 + 7),
        (6, 2**32 + 7, 2**32 + 6),
        (2**32 - 1, 2**32 + 7, 2**32 - 1),
        (2**31 + 7, 2**32 + 7, 2**31 + 7),
        (2**31 + 6, 2**32 + 7, 2**32 + 2**31 + 6),
        (0, 2**63, 2**63),
    ],
)
def test_a_u32_stands_for_the_nearest_value(value: int, current: int, expected: int) -> None:
    assert libsync.nearest(value, current) == expected


def test_one_value_is_one_fence(own: Own) -> None:
    timeline = own.timeline()
    first, second = (own(libsync.sw_sync_fence_create(timeline, "", 7)) for _ in range(2))
    libsync.sw_sync_timeline_inc(timeline, 7)
    infos = [libsync.sync_file_info(fd) for fd in (first, second)]
    assert first != second
    assert infos[0].id != infos[1].id  # two files
    assert infos[0].fences == infos[1].fences  # one fence: context, seqno, status, timestamp


def test_closing_a_timeline_fails_what_is_pending(own: Own) -> None:
    timeline = own(libsync.sw_sync_timeline_create())
    done, pending, later = (own.fence(timeline, value) for value in (1, 2, 9))
    libsync.sw_sync_timeline_inc(timeline, 1)
    own.close(timeline)
    libsync.sync_wait(later, 0)
    assert [status(fd) for fd in (done, pending, later)] == [1, -errno.ENOENT, -errno.ENOENT]
    assert is_readable(pending)
    stamps = [libsync.sync_file_info(fd).fences[0].timestamp_ns for fd in (done, pending, later)]
    assert stamps == sorted(stamps)
    assert stamps[0] > 0


def test_closing_the_last_descriptor_of_a_fence_is_silent(own: Own, connection: fb.Broker) -> None:
    timeline = own.timeline()
    own.close(own(libsync.sw_sync_fence_create(timeline, "", 1)))
    libsync.sw_sync_timeline_inc(timeline, 1)
    assert status(own.fence(timeline, 1)) == 1
    assert status(own.fence(timeline, 2)) == 0
    # Where the library knows that nobody else can have the descriptor, the fence is gone as in the kernel.
    before = connection._status()["active_fences"]
    with connection.create_timeline() as line:
        line.export(1).close()
        assert connection._status()["active_fences"] == before


# ○ rows


def test_a_point_is_set_and_never_goes_back(connection: fb.Broker) -> None:
    with connection.create_timeline() as timeline, timeline.export(5) as five, timeline.export(6) as six:
        timeline.advance(5)
        timeline.advance(5)
        timeline.advance(2)
        five.wait(10)
        assert connection.info(six).status == 0
        timeline.advance(6)
        six.wait(10)


def test_a_point_may_be_waited_for_before_it_exists(connection: fb.Broker) -> None:
    with connection.sync_file("a12@3") as early:
        assert not early.check()
        with connection.create_timeline("a12") as timeline:
            timeline.advance(3)
            early.wait(10)
