"""Rows C: the descriptor that carries a fence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import kernel, libsync
from tests.helpers import Spawn, assert_closed_on_exec, is_readable
from tests.parity.support import fails, full_table, poll, status

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess
    from tests.parity.conftest import Driver, Own

SYNC_IOC_MERGE = 0xC0303E03  # _IOWR('>', 3, struct sync_merge_data)


def foreign(own: Own) -> dict[str, int]:
    """Descriptors that are no sync_file of this broker."""
    read, _write = (own(fd) for fd in os.pipe2(os.O_CLOEXEC))
    return {
        "an eventfd of nobody": own(os.eventfd(0, os.EFD_CLOEXEC)),
        "an eventfd in the form of a sync_file": own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)),
        "a pipe": read,
        "a folder": own(os.open("/", os.O_RDONLY | os.O_CLOEXEC)),
        "a timeline": own.timeline(),
    }


def test_a_descriptor_carries_one_set_of_fences(own: Own) -> None:
    timeline = own.timeline()
    fence = own(libsync.sw_sync_fence_create(timeline, "", 1))
    first, copy = own(libsync.sync_merge("", fence, fence)), own(os.dup(fence))
    assert_closed_on_exec(fence, first)
    infos = [libsync.sync_file_info(fd) for fd in (fence, first, copy)]
    assert {info.fences for info in infos} == {infos[0].fences}
    own.close(fence)  # nobody else is affected
    libsync.sw_sync_timeline_inc(timeline, 1)
    assert [status(first), status(copy)] == [1, 1]
    assert poll(first) == poll(copy) == select.POLLIN


def test_a_signalled_descriptor_is_readable_for_ever(own: Own) -> None:
    timeline, broken = own.timeline(), own(libsync.sw_sync_timeline_create())
    fence, failed = own.fence(timeline, 1), own.fence(broken, 1)
    pollers = [select.epoll() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for poller in pollers:
            stack.enter_context(poller)
            poller.register(own(os.dup(fence)), select.EPOLLIN)
            poller.register(failed, select.EPOLLIN | select.EPOLLET)
        assert [poller.poll(0) for poller in pollers] == [[], [], []]
        libsync.sw_sync_timeline_inc(timeline, 1)
        own.close(broken)
        libsync.sync_wait(failed, 0)
        assert status(fence) == 1
        for poller in pollers:
            # Also for an error; nothing but EPOLLIN; level triggered, or once where somebody asked for edges.
            assert [mask for _, mask in poller.poll(0)] == [select.EPOLLIN, select.EPOLLIN]
            assert [mask for _, mask in poller.poll(0)] == [select.EPOLLIN]
    everything = select.POLLIN | select.POLLPRI | select.POLLERR | select.POLLHUP
    assert poll(fence, everything) == poll(failed, everything) == select.POLLIN


def test_reading_takes_nothing_and_writing_fools_nobody_who_asks(own: Own) -> None:
    timeline = own.timeline()
    fence, copy = own.fence(timeline, 1), own.fence(timeline, 1)
    os.eventfd_write(fence, 3)  # a holder forges
    assert is_readable(fence)
    fails(errno.ETIME, libsync.sync_wait, fence, 0)
    fails(errno.ETIME, libsync.sync_wait, fence, 20)
    info = libsync.sync_file_info(fence)
    assert (info.status, info.tampered) == (0, True)
    assert not is_readable(copy)  # it fools at most those who hold the same one
    libsync.sw_sync_timeline_inc(timeline, 1)
    for fd in (fence, copy):
        libsync.sync_wait(fd, 0)
        for _ in range(100):
            os.eventfd_read(fd)
        assert is_readable(fd)
        assert status(fd) == 1
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(copy, 1)
    assert status(copy) == 1


def test_a_foreign_descriptor_is_no_sync_file(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)
    for what, fd in foreign(own).items():
        fails(errno.ENOTTY, libsync.sync_file_info, fd)
        fails(errno.ENOTTY, libsync.sync_set_deadline, fd, 1)
        fails(errno.ENOTTY, libsync.sync_merge, "", fd, fence)
        fails(errno.ENOENT, libsync.sync_merge, "", fence, fd)
        fails(errno.EINVAL, libsync.sw_sync_get_deadline, fd)
        is_eventfd = what.startswith("an eventfd")
        fails(errno.ENOENT if is_eventfd else errno.EINVAL, libsync.sync_wait, fd, 0)
        assert kernel.sync_file_get_fence(fd) is None
    kernel.shutdown()
    assert status(fence) == 0


def test_merging_leaves_the_inputs_as_they_are(own: Own) -> None:
    timelines = [own.timeline() for _ in range(2)]
    first, second = (own.fence(timeline, 1) for timeline in timelines)
    merged = own(libsync.sync_merge("both", first, second))
    assert_closed_on_exec(merged)
    itself = own(libsync.sync_merge("self", merged, merged))
    libsync.sw_sync_timeline_inc(timelines[0], 1)
    assert [status(fd) for fd in (first, second, merged, itself)] == [1, 0, 0, 0]
    own.close(second)
    libsync.sw_sync_timeline_inc(timelines[1], 1)
    assert [status(fd) for fd in (first, merged, itself)] == [1, 1, 1]


def test_the_ladder_of_merges(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)
    other = foreign(own)
    pipe, eventfd = other["a pipe"], other["an eventfd of nobody"]
    merge = libsync.sync_merge
    with full_table():
        fails(errno.EBADF, merge, "", -1, -1)
        fails(errno.EBADF, merge, "", 9999, -1)
        fails(errno.ENOTTY, merge, "", pipe, -1)
        fails(errno.EMFILE, merge, "", fence, -1)
        fails(errno.EMFILE, merge, "", fence, fence)
    fails(errno.ENOTTY, merge, "", eventfd, -1)
    for fd2 in (-1, 9999, 2**31, pipe, eventfd):
        fails(errno.ENOENT, merge, "", fence, fd2)
    with pytest.raises(TypeError, match="name must be"):
        merge(None, fence, fence)  # type: ignore[arg-type]
    for nonsense in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="fd2 must be a descriptor"):
            merge("", fence, nonsense)  # type: ignore[arg-type]
    own.merge(fence, fence)


def test_the_ladder_of_the_request_itself(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = kernel.sync_file_create(fence)
    assert sync_file is not None
    for flags, pad in ((1, 0), (0, 1)):
        arg = kernel.sync_merge_data("", -1, flags=flags, pad=pad)
        assert kernel.sync_file_ioctl_merge(sync_file, arg) == -errno.EINVAL  # before fd2 is looked at
    assert kernel.sync_file_ioctl_merge(sync_file, kernel.sync_merge_data("", -1)) == -errno.ENOENT
    with full_table():
        assert kernel.sync_file_ioctl_merge(sync_file, kernel.sync_merge_data("", -1, flags=1)) == -errno.EMFILE
    assert kernel.sync_file_ioctl_set_deadline(sync_file, kernel.sync_set_deadline(1, pad=1)) == -errno.EINVAL
    assert kernel.sync_file_ioctl_set_deadline(sync_file, kernel.sync_set_deadline(1)) == 0
    kernel.fput(sync_file.file)
    kernel.dma_fence_put(fence)


def test_merging_keeps_the_latest_of_each_context(own: Own) -> None:
    timelines = [own.timeline() for _ in range(3)]
    fences = [
        own.fence(timeline, value) for timeline, value in ((timelines[1], 2), (timelines[0], 5), (timelines[1], 7), (timelines[2], 1))
    ]
    merged = fences[0]
    for fence in fences[1:]:
        merged = own.merge(merged, fence)
    merged = own.merge(own.fence(timelines[0], 3), merged)
    info = libsync.sync_file_info(own(libsync.sync_merge("", merged, fences[0])))
    assert [fence.seqno for fence in info.fences] == [5, 7, 1]
    assert [fence.context for fence in info.fences] == sorted(fence.context for fence in info.fences)
    assert info.num_fences == 3


def test_merging_drops_what_has_signalled_but_keeps_errors(own: Own) -> None:
    done, broken, line = own.timeline(), own(libsync.sw_sync_timeline_create()), own.timeline()
    signalled, failed, pending = own.fence(done, 1), own.fence(broken, 1), own.fence(line, 1)
    libsync.sw_sync_timeline_inc(done, 1)
    own.close(broken)
    merged = own(libsync.sync_merge("", signalled, pending))
    assert [fence.status for fence in libsync.sync_file_info(merged).fences] == [0]
    merged = own(libsync.sync_merge("", failed, pending))  # the kernel drops this error
    assert [fence.status for fence in libsync.sync_file_info(merged).fences] == [-errno.ENOENT, 0]
    libsync.sw_sync_timeline_inc(line, 1)
    assert status(merged) == -errno.ENOENT
    assert status(own.merge(failed, signalled)) == -errno.ENOENT
    assert status(own.merge(failed, failed)) == -errno.ENOENT


def test_merging_only_signalled_ones_gives_a_stub(own: Own) -> None:
    first, second = own.timeline(), own.timeline()
    fences = [own.fence(timeline, 1) for timeline in (first, second)]
    for timeline in (second, first):
        libsync.sw_sync_timeline_inc(timeline, 1)
        status(fences[0])
    merged = own(libsync.sync_merge("", *fences))
    info = libsync.sync_file_info(merged)
    (stub,) = info.fences
    assert (info.status, stub.status, stub.driver_name, stub.obj_name, stub.context, stub.seqno) == (1, 1, "stub", "stub", 0, 0)
    assert stub.timestamp_ns == max(libsync.sync_file_info(fence).fences[0].timestamp_ns for fence in fences)
    assert info.name == "stub-stub0-0"
    assert is_readable(merged)


def test_a_merge_of_one_survivor_is_that_fence(own: Own) -> None:
    timeline, done = own.timeline(), own.timeline()
    one, two, signalled = own.fence(timeline, 1), own.fence(timeline, 2), own.fence(done, 0)
    expected = libsync.sync_file_info(two)
    for a, b in ((one, two), (two, one), (two, signalled), (signalled, two), (two, two)):
        info = libsync.sync_file_info(own(libsync.sync_merge("", a, b)))
        assert info.num_fences == 1
        assert (info.fences, info.context, info.seqno, info.name) == (expected.fences, expected.context, expected.seqno, expected.name)


def test_a_merges_name_is_31_bytes(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)

    def name(given: str | bytes) -> str:
        return libsync.sync_file_info(own(libsync.sync_merge(given, fence, fence))).name  # type: ignore[arg-type]

    assert name("frame") == "frame"
    assert name("x" * 31) == name("x" * 32) == name("x" * 100) == "x" * 31
    assert name("ab\0cd") == name(b"ab\0cd") == "ab"
    assert name("\x1b[31m\n") == "\x1b[31m\n"  # no character is checked
    assert name("x" * 30 + "é") == "x" * 30
    assert name(b"\xff\xfex") == "x"
    assert name("") == name("\0x") == libsync.sync_file_info(fence).name


def test_an_empty_name_is_made_of_the_fence(own: Own) -> None:
    first, second = own.timeline(), own.timeline()
    fence = own.fence(first, 7)
    info = libsync.sync_file_info(fence)
    (inner,) = info.fences
    assert info.name == f"sw_sync-{inner.obj_name}{inner.context}-7"[:31]
    merged = libsync.sync_file_info(own.merge(fence, own.fence(second, 1), ""))
    assert merged.name == f"dma_fence_array-unbound{merged.context}-1"[:31]


def test_info_without_its_fences_has_the_real_status(own: Own, connection: fb.Broker) -> None:
    timeline = own(libsync.sw_sync_timeline_create())
    fence = own.fence(timeline, 1)
    own.close(timeline)
    info = libsync.sync_file_info(fence)
    assert (info.status, info.num_fences, info.flags) == (-errno.ENOENT, 1, 0)
    with fb.SyncFile.from_fd(os.dup(fence)) as borrowed:
        assert borrowed.status() == -errno.ENOENT  # no broker is asked


def test_info_lists_every_fence(own: Own) -> None:
    timelines = [own.timeline() for _ in range(3)]
    merged = own.fence(timelines[0], 1)
    for timeline in timelines[1:]:
        merged = own.merge(merged, own.fence(timeline, 1))
    before = time.monotonic_ns()
    libsync.sw_sync_timeline_inc(timelines[1], 1)
    info = libsync.sync_file_info(merged)
    assert info.num_fences == len(info.fences) == 3
    assert [fence.status for fence in info.fences] == [0, 1, 0]  # a member stays listed after it signalled
    assert {(fence.driver_name, fence.flags) for fence in info.fences} == {("sw_sync", 0)}
    stamps = [fence.timestamp_ns for fence in info.fences]
    assert stamps[0] == stamps[2] == 0
    assert before <= stamps[1] <= time.monotonic_ns()


def test_info_needs_as_many_pages_as_there_are_fences(connection: fb.Broker, own: Own) -> None:
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in range(300)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        merged = stack.enter_context(connection.merge(fences))
        info = libsync.sync_file_info(merged.fileno())
    assert info.num_fences == len(info.fences) == 300
    assert [fence.context for fence in info.fences] == [timeline.context for timeline in timelines]


def test_the_status_of_a_merge_has_one_meaning(own: Own) -> None:
    one, two, three = own.timeline(), own(libsync.sw_sync_timeline_create()), own.timeline()
    active, failing, done = own.fence(one, 1), own.fence(two, 1), own.fence(three, 1)
    libsync.sw_sync_timeline_inc(three, 1)
    merged = [own.merge(active, failing), own.merge(failing, active)]
    own.close(two)
    # The kernel says 0 or the error, depending on the order; here it is 0 until it signals.
    assert [status(fd) for fd in merged] == [0, 0]
    libsync.sw_sync_timeline_inc(one, 1)
    assert [status(fd) for fd in merged] == [-errno.ENOENT] * 2
    assert status(done) == 1


def test_the_ladder_of_info(own: Own) -> None:
    for number in (-1, 9999, 2**31 - 1, 2**31, 2**64):
        fails(errno.EBADF, libsync.sync_file_info, number)
    fails(errno.ENOTTY, libsync.sync_file_info, foreign(own)["a pipe"])
    for nonsense in (True, 1.0, "1", None, b""):
        with pytest.raises(TypeError, match="fd must be a descriptor"):
            libsync.sync_file_info(nonsense)  # type: ignore[arg-type]


def test_the_ladder_of_deadlines(own: Own) -> None:
    timelines = [own.timeline() for _ in range(2)]
    first, second = (own.fence(timeline, 1) for timeline in timelines)
    merged = own.merge(first, second)
    fails(errno.EBADF, libsync.sync_set_deadline, -1, 1)
    fails(errno.EBADF, libsync.sync_set_deadline, 9999, 1)
    fails(errno.ENOTTY, libsync.sync_set_deadline, timelines[0], 1)
    fails(errno.EINVAL, libsync.sync_set_deadline, first, -1)
    fails(errno.EINVAL, libsync.sync_set_deadline, first, 2**64)
    libsync.sync_set_deadline(merged, 2**64 - 1)
    assert [libsync.sw_sync_get_deadline(fd) for fd in (first, second)] == [2**64 - 1] * 2  # every member hears of it
    libsync.sync_set_deadline(first, 5)
    assert [libsync.sw_sync_get_deadline(fd) for fd in (first, second)] == [5, 2**64 - 1]
    libsync.sw_sync_timeline_inc(timelines[0], 1)
    libsync.sync_set_deadline(first, 1)  # signalled: nothing, and no error
    assert libsync.sw_sync_get_deadline(first) == 5


def test_unknown_requests_are_told_so(own: Own) -> None:
    timeline = own.timeline()
    fence = own.fence(timeline, 1)
    for fd in (fence, timeline):
        with pytest.raises(OSError, match="ioctl") as caught:
            fcntl.ioctl(fd, SYNC_IOC_MERGE, b"\0" * 48)
        assert caught.value.errno == errno.ENOTTY  # what libsync keys its choice on
    fails(errno.ENOTTY, libsync.sync_file_info, timeline)
    fails(errno.ENOTTY, libsync.sw_sync_timeline_inc, fence, 1)


def test_minus_one_is_no_descriptor(own: Own) -> None:
    fence = own.fence(own.timeline(), 1)
    fails(errno.EINVAL, libsync.sync_wait, -1, 0)
    fails(errno.EINVAL, libsync.sync_wait, -1, -1)
    fails(errno.EBADF, libsync.sync_file_info, -1)
    fails(errno.ENOENT, libsync.sync_merge, "", fence, -1)
    fails(errno.EBADF, libsync.sync_merge, "", -1, fence)
    fails(errno.EBADF, libsync.sync_set_deadline, -1, 0)
    fails(errno.EBADF, libsync.sw_sync_timeline_inc, -1, 0)
    fails(errno.EBADF, libsync.sw_sync_fence_create, -1, "", 0)
    fails(errno.EINVAL, libsync.sw_sync_get_deadline, -1)


def test_who_owns_a_descriptor(own: Own, connection: fb.Broker) -> None:
    fence = own.fence(own.timeline(), 1)
    with connection.import_sync_file(fence) as private:  # borrows
        assert private.fileno() != fence
        number = private.detach()  # gives
    own(number)
    with fb.SyncFile.from_fd(number) as taken:  # takes
        assert taken.fileno() == number
        assert taken.detach() == number
    with pytest.raises(fb.NotASyncFile):
        fb.SyncFile.from_fd(0)  # a failed one does not
    os.fstat(0)
    libsync.sync_file_info(fence)  # borrows
    os.fstat(fence)


CHILD = """
    import socket, sys
    from fencebroker import fds, libsync
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        packet, (timeline, fence) = fds.recv_packet(sock)
        with timeline, fence:
            mine = libsync.sw_sync_fence_create(timeline.fileno(), "", 2)
            print(libsync.sync_file_info(fence.fileno()).status, libsync.sync_file_info(mine).status, flush=True)
            sys.stdin.readline()
            libsync.sw_sync_timeline_inc(timeline.fileno(), 2)
            libsync.sync_wait(mine, -1)
            print(libsync.sync_file_info(mine).status, flush=True)
            sys.stdin.readline()
"""


def test_timelines_and_fences_work_in_the_process_that_received_them(own: Own, module_broker: BrokerProcess, spawn: Spawn) -> None:
    from fencebroker.fds import send_packet

    timeline = own(libsync.sw_sync_timeline_create())
    fence, last = own.fence(timeline, 1), own.fence(timeline, 3)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = spawn(CHILD, theirs.fileno(), pass_fds=[theirs.fileno()], env=module_broker.env)
        send_packet(ours, b"timeline and fence", [timeline, fence])
    assert child.line() == "0 0"
    own.close(timeline)  # the copy that travelled keeps it alive
    assert status(fence) == 0
    child.send("go")
    libsync.sync_wait(fence, 10_000)
    assert child.line() == "1"
    assert [status(fence), status(last)] == [1, 0]
    child.kill()
    libsync.sync_wait(last, 10_000)
    assert status(last) == -errno.ENOENT
