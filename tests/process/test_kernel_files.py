"""``fencebroker.kernel``: sync_files: numbers, create, install, receive, names, polls, merges."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import fencebroker as fb
from fencebroker import kernel as k
from tests.helpers import LIMIT, Spawn, assert_closed_on_exec, assert_not_fd, descriptors, eventfd_id, is_readable, not_run, wait_readable
from tests.process.kernel_support import Driver, driver

__all__ = ["driver"]


def created(fence: k.dma_fence) -> k.sync_file:
    sync_file = k.sync_file_create(fence)
    assert sync_file is not None, k.last_error()
    return sync_file


def received(fd: int) -> k.dma_fence:
    fence = k.sync_file_get_fence(fd)
    assert fence is not None, k.last_error()
    return fence


def put(*fences: k.dma_fence) -> None:
    for fence in fences:
        k.dma_fence_put(fence)


# -- numbers


def test_a_reserved_number_is_taken_and_carries_nothing(driver: Driver) -> None:
    fd = k.get_unused_fd_flags(os.O_CLOEXEC)
    assert fd == min(set(range(fd + 1)) - (descriptors().keys() - {fd}))
    assert k.get_unused_fd_flags(0) > fd
    assert k.references() == {"fd": 2}
    for use in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x"), lambda: os.fsync(fd)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()
    assert k.sync_file_get_fence(fd) is None
    k.put_unused_fd(fd)
    assert_not_fd(fd)
    assert k.get_unused_fd_flags(os.O_RDWR | os.O_CLOEXEC) == fd
    k.put_unused_fd(fd)
    k.put_unused_fd(fd + 1)


def test_a_number_that_is_not_reserved_is_left_alone(driver: Driver) -> None:
    reader, writer = os.pipe()
    try:
        for number in (reader, 10**6, -1):
            with pytest.raises(ValueError, match=f"fd {number} is not reserved"):
                k.put_unused_fd(number)
        os.fstat(reader)
        fd = k.get_unused_fd_flags(0)
        os.dup2(writer, fd)  # a program that closes numbers which are not its own
        with pytest.raises(ValueError, match="somebody closed it"):
            k.put_unused_fd(fd)
        os.close(fd)
    finally:
        os.close(reader)
        os.close(writer)
    assert k.references() == {}


@pytest.mark.parametrize(("flags", "error"), [(True, TypeError), ("0", TypeError), (1.0, TypeError), (None, TypeError), (-1, ValueError)])
def test_flags_are_a_number(driver: Driver, flags: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="flags must be"):
        k.get_unused_fd_flags(flags)  # type: ignore[arg-type]


def test_emfile_comes_from_the_reservation(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        """
        import errno, os, resource
        from fencebroker import kernel as k
        fence = k.dma_fence()
        k.dma_fence_init(fence, k.dma_fence_ops(), None, k.dma_fence_context_alloc(1), 1)
        sync_file = k.sync_file_create(fence)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, highest + 3))
        taken = []
        while (fd := k.get_unused_fd_flags(os.O_CLOEXEC)) >= 0:
            taken.append(fd)
        print(fd == -errno.EMFILE, "Too many open files" in str(k.last_error()), k.sync_file_create(fence))
        k.fd_install(taken.pop(), sync_file.file)     # what was reserved is there to be used
        while taken:
            k.put_unused_fd(taken.pop())
        again = k.get_unused_fd_flags(0)
        print(again >= 0, k.references())
        k.put_unused_fd(again)
        k.dma_fence_signal(fence)
        k.dma_fence_put(fence)
        print(k.references())
        """,
        env=driver.broker.env,
    )
    assert child.line() == "True True None"
    assert child.line() == "True {'dma_fence': 2, 'file': 1, 'fd': 1}"
    assert child.line() == "{}"
    child.finish()


def test_without_a_free_number_a_sync_file_cannot_be_had_and_nothing_is_lost(driver: Driver, spawn: Spawn) -> None:
    child = spawn(
        """
        import os, resource
        from fencebroker import kernel as k
        fence = k.dma_fence()
        k.dma_fence_init(fence, k.dma_fence_ops(), None, k.dma_fence_context_alloc(1), 1)
        good = k.sync_file_create(fence)
        fd = k.get_unused_fd_flags(os.O_CLOEXEC)
        k.fd_install(fd, good.file)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError:
            pass
        before = k.references()
        print(k.sync_file_create(fence), k.sync_file_get_fence(fd), k.dma_fence_unwrap_merge(fence, fence))
        print(k.references() == before, k.last_error().errno)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
        k.dma_fence_signal(fence)
        k.dma_fence_put(fence)
        late = k.sync_file_get_fence(fd)
        print(k.dma_fence_get_status(late))
        k.dma_fence_put(late)
        print(k.references())
        """,
        env=driver.broker.env,
    )
    assert child.line() == "None None None"
    assert child.line() == f"True {errno.EMFILE}"
    assert child.line() == "1"
    assert child.line() == "{}"
    child.finish()


# -- create and install


def test_create_takes_a_reference_and_fills_the_struct(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    assert fence.refcount == 2
    assert (sync_file.fence, sync_file.user_name, sync_file.flags) == (fence, "", 0)
    assert (sync_file.file.private_data, sync_file.file.f_count) == (sync_file, 1)
    assert isinstance(sync_file.cb, k.dma_fence_cb)
    assert isinstance(sync_file.wq, threading.Condition)
    assert k.references() == {"dma_fence": 2, "file": 1}
    k.fput(sync_file.file)
    assert (fence.refcount, k.references()) == (1, {"dma_fence": 1})
    put(fence)


def test_the_caller_may_put_its_reference_at_once_as_sw_sync_does(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    put(fence)
    assert not is_readable(fd)
    assert k.dma_fence_signal(fence) == 0  # the descriptor's reference was there until now
    wait_readable(fd)
    assert k.references() == {}
    os.close(fd)


def test_an_installed_descriptor_is_a_real_one(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    fd = k.get_unused_fd_flags(os.O_CLOEXEC)
    before = descriptors()
    k.fd_install(fd, sync_file.file)
    after = descriptors()
    assert after[fd] == "anon_inode:[eventfd]"
    assert len(after) == len(before) - 1  # the file needs no number of its own any more
    assert k.references() == {"dma_fence": 2, "file": 1}
    assert not is_readable(fd)
    k.dma_fence_signal(fence)
    assert wait_readable(fd) == select.POLLIN
    assert k.references() == {"dma_fence": 1}
    put(fence)
    os.close(fd)


def test_install_needs_a_reserved_number_and_a_reference(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="is not reserved"):
        k.fd_install(reader, sync_file.file)
    os.close(reader)
    os.close(writer)
    fd, other = k.get_unused_fd_flags(os.O_CLOEXEC), k.get_unused_fd_flags(os.O_CLOEXEC)
    with pytest.raises(TypeError, match="file must be a file, not sync_file"):
        k.fd_install(fd, sync_file)  # type: ignore[arg-type]
    k.fd_install(fd, sync_file.file)
    with pytest.raises(ReferenceError, match="fd_install"):
        k.fd_install(other, sync_file.file)
    with pytest.raises(ReferenceError, match="fd_install"):
        k.fput(sync_file.file)
    k.put_unused_fd(other)
    with pytest.raises(ValueError, match="is not reserved"):
        k.put_unused_fd(fd)
    k.dma_fence_signal(fence)
    with pytest.raises(ReferenceError, match="the last one was put"):
        k.fput(sync_file.file)
    put(fence)
    os.close(fd)


def test_a_file_with_more_references_can_be_installed_twice(driver: Driver) -> None:
    fence = driver.fence()
    file = created(fence).file
    assert k.get_file(file) is file
    k.get_file(file)
    fds = [k.get_unused_fd_flags(os.O_CLOEXEC) for _ in range(2)]
    for fd in fds:
        k.fd_install(fd, file)
    assert eventfd_id(fds[0]) == eventfd_id(fds[1])
    assert (file.f_count, fence.refcount) == (3, 2)
    k.fput(file)
    k.dma_fence_signal(fence)
    for fd in fds:
        wait_readable(fd)
        os.close(fd)
    assert k.references() == {"dma_fence": 1}
    put(fence)


def test_every_sync_file_of_a_fence_signals_and_each_is_private(driver: Driver) -> None:
    fence = driver.fence()
    fds = [driver.install(fence) for _ in range(3)]
    assert len({eventfd_id(fd) for fd in fds}) == 3
    os.eventfd_write(fds[0], 1)  # its holder fools nobody but itself
    assert not is_readable(fds[1])
    k.dma_fence_signal(fence)
    put(fence)
    for fd in fds:
        wait_readable(fd)
        os.close(fd)


def test_the_error_travels_with_the_descriptor(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    k.dma_fence_set_error(fence, -errno.ENODATA)
    k.dma_fence_signal(fence)
    put(fence)
    wait_readable(fd)
    with fb.SyncFile.from_fd(fd) as frame:
        assert frame.status() == -errno.ENODATA


@pytest.mark.parametrize("error", [0, -errno.EIO])
def test_a_fence_that_signalled_before_it_was_exported(driver: Driver, error: int) -> None:
    """The broker has never heard of the point; what it makes has signalled all the same, at once."""
    fence = driver.fence()
    if error:
        k.dma_fence_set_error(fence, error)
    k.dma_fence_signal(fence)
    fd = driver.install(fence)
    assert k.references() == {"dma_fence": 1}
    assert is_readable(fd)
    put(fence)
    with fb.SyncFile.from_fd(fd) as frame:
        assert frame.status() == (error or 1)


def test_a_fence_that_the_broker_has_forgotten(driver: Driver) -> None:
    """Signalled by itself, above the timeline's value, and pushed out of the broker's records by later ones."""
    fence = driver.fence(1)
    fd = driver.install(fence)
    k.dma_fence_set_error(fence, -errno.EIO)
    k.dma_fence_signal(fence)
    wait_readable(fd)
    os.close(fd)
    with fb.connect() as broker:
        for seqno in range(2, 1100):  # the broker keeps 1,024 records of this user
            other = driver.fence(seqno)
            number = driver.install(other)
            k.dma_fence_signal(other)
            put(other)
            os.close(number)
        with pytest.raises(FileNotFoundError):
            broker._lookup(f"{driver.context}:1")
    fd = driver.install(fence)
    assert is_readable(fd)
    put(fence)
    with fb.SyncFile.from_fd(fd) as frame:
        assert frame.status() == -errno.EIO


def test_signalled_while_it_is_exported(driver: Driver) -> None:
    for seqno in range(1, 51):
        fence = driver.fence(seqno)
        start = threading.Barrier(2)
        signaller = threading.Thread(target=lambda fence=fence, start=start: (start.wait(LIMIT), k.dma_fence_signal(fence)))
        signaller.start()
        start.wait(LIMIT)
        fd = driver.install(fence)
        signaller.join(LIMIT)
        wait_readable(fd)
        os.close(fd)
        put(fence)


def test_the_stub_can_be_sent(driver: Driver) -> None:
    stub = k.dma_fence_get_stub()
    sync_file = created(stub)
    assert k.sync_file_get_name(sync_file) == "stub-stub0-0"
    fd = k.get_unused_fd_flags(os.O_CLOEXEC)
    k.fd_install(fd, sync_file.file)
    put(stub)
    assert k.references() == {}
    assert is_readable(fd)
    with fb.connect() as broker, fb.SyncFile.from_fd(fd) as frame:
        info = broker.info(frame)
        assert (info.name, info.status, info.context, info.seqno) == ("stub-stub0-0", 1, 0, 0)


def test_of_a_context_that_was_given_back_there_is_no_sync_file(driver: Driver) -> None:
    context = k.dma_fence_context_alloc(1)
    fence = driver.fence(1, context=context)
    k.dma_fence_context_free(context)
    assert k.dma_fence_get_status(fence) == -errno.ENOENT
    assert k.sync_file_create(fence) is None
    assert "closed" in str(k.last_error())
    assert k.references() == {"dma_fence": 1}
    put(fence)


# -- inheritance


def test_flags_decide_what_a_program_inherits(driver: Driver, spawn: Spawn) -> None:
    fence = driver.fence()
    kept, handed = driver.install(fence, os.O_CLOEXEC), driver.install(fence, 0)
    reserved = k.get_unused_fd_flags(0)
    assert (os.get_inheritable(kept), os.get_inheritable(handed)) == (False, True)
    assert_closed_on_exec(kept, reserved)
    code = "import select, sys; p = select.poll(); p.register(int(sys.argv[1]), select.POLLIN); print(p.poll(10000), flush=True)"
    # exec with nothing closed in between but what is close-on-exec
    child = subprocess.Popen([sys.executable, "-S", "-c", code, str(handed)], close_fds=False, stdout=subprocess.PIPE, text=True)
    try:
        k.dma_fence_signal(fence)
        assert child.communicate(timeout=LIMIT)[0] == f"[({handed}, {select.POLLIN})]\n"
    finally:
        child.kill()
        child.wait()
    put(fence)
    k.put_unused_fd(reserved)
    os.close(kept)
    os.close(handed)


def test_install_replaces_the_number_in_one_step(driver: Driver, spawn: Spawn, tmp_path: object) -> None:
    """With close-on-exec from the first instant: one dup3, no close in between."""
    if subprocess.run(["sh", "-c", "command -v strace"], capture_output=True, check=False).returncode:
        not_run("no strace to see the system calls with")
    trace = f"{tmp_path}/trace"
    code = """
        import os
        from fencebroker import kernel as k
        fence = k.dma_fence_get_stub()
        file = k.sync_file_create(fence).file
        fd = k.get_unused_fd_flags(os.O_CLOEXEC)
        print(fd)
        k.fd_install(fd, file)
        os.close(fd)
        k.dma_fence_put(fence)
    """
    argv = ["strace", "-qq", "-e", "trace=open,openat,dup,dup2,dup3,close", "-o", trace, sys.executable, "-c", textwrap.dedent(code)]
    child = spawn(argv, env=driver.broker.env)
    fd = child.line()
    child.finish()
    with open(trace, encoding="utf-8", errors="replace") as lines:
        _, _, since = lines.read().rpartition('"/", ')
    calls = [line.split(" = ")[0].strip() for line in since.splitlines()[1:]]
    concerned = [call for call in calls if f"close({fd})" in call or f", {fd}" in call]
    assert len(concerned) == 2, concerned
    assert re.fullmatch(rf"dup3\(\d+, {fd}, O_CLOEXEC\)", concerned[0])
    assert concerned[1] == f"close({fd})"


# -- receive


def test_a_received_fence_follows_its_descriptor(driver: Driver) -> None:
    fence = driver.fence(7)
    fd = driver.install(fence)
    mine = received(fd)
    assert mine is not fence
    assert (mine.context, mine.seqno, mine.refcount) == (driver.context, 7, 1)
    assert (k.dma_fence_get_status(mine), mine.timestamp) == (0, 0)
    os.close(fd)
    k.dma_fence_set_error(fence, -errno.EIO)
    k.dma_fence_signal(fence)
    assert k.dma_fence_wait(mine, False) == 0
    assert k.dma_fence_get_status(mine) == -errno.EIO
    assert mine.error == -errno.EIO
    assert fence.timestamp <= mine.timestamp <= time.monotonic_ns()
    put(fence, mine)


def test_no_fence_from_what_carries_none(driver: Driver) -> None:
    reader, writer = os.pipe()
    left, right = socket.socketpair()
    foreign = os.eventfd(0, os.EFD_CLOEXEC)
    with left, right, open("/dev/null", "rb") as null:
        before = descriptors()
        for fd in (reader, writer, left.fileno(), null.fileno(), foreign, -1, 10**6, 2**31, 2**70):
            assert k.sync_file_get_fence(fd) is None
            assert isinstance(k.last_error(), (OSError, ValueError)), fd
        assert descriptors() == before
    for fd in (reader, writer, foreign):
        os.close(fd)
    for wrong in (True, 1.0, "3", None):
        with pytest.raises(TypeError, match="fd must be a descriptor"):
            k.sync_file_get_fence(wrong)  # type: ignore[arg-type]


def test_a_received_fence_is_its_issuers_to_signal(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    mine = received(fd)
    with pytest.raises(PermissionError, match="only its issuer may signal it"):
        k.dma_fence_signal(mine)
    with pytest.raises(PermissionError, match="only its issuer"):
        k.dma_fence_set_error(mine, -errno.EIO)
    k.dma_fence_signal(fence)
    assert k.dma_fence_wait(mine, False) == 0
    assert k.dma_fence_signal(mine) == -errno.EINVAL
    put(fence, mine)
    os.close(fd)


def test_a_received_fence_can_be_passed_on(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    mine = received(fd)
    os.close(fd)
    onward = driver.install(mine)
    assert k.references() == {"dma_fence": 3, "file": 1}  # the first descriptor's reference waits for the signal
    put(mine)
    assert not is_readable(onward)
    k.dma_fence_signal(fence)
    put(fence)
    wait_readable(onward)
    os.close(onward)


def test_order_holds_between_a_received_fence_and_ones_own(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(2)
    fd = driver.install(one)
    mine = received(fd)
    assert k.dma_fence_is_later(two, mine)
    assert k.dma_fence_later(mine, two) is two
    k.dma_fence_signal(one)
    put(one, two, mine)
    os.close(fd)


def test_received_fences_call_back_in_one_thread(driver: Driver) -> None:
    fences = [driver.fence(seqno) for seqno in range(1, 6)]
    mine = []
    for fence in fences:
        fd = driver.install(fence)
        mine.append(received(fd))
        os.close(fd)
    called: list[tuple[int, int, str]] = []
    done = threading.Semaphore(0)

    def note(fence: k.dma_fence, _: k.dma_fence_cb) -> None:
        called.append((fence.seqno, k.dma_fence_get_status(fence), threading.current_thread().name))
        done.release()

    for fence in mine:
        assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), note) == 0
    put(*mine)  # whoever signals a fence has a reference, so the callbacks run
    assert sum(thread.name == "fencebroker.kernel" for thread in threading.enumerate()) == 1
    for fence in fences:
        k.dma_fence_signal(fence)
        assert done.acquire(timeout=LIMIT)
    assert called == [(seqno, 1, "fencebroker.kernel") for seqno in range(1, 6)]
    put(*fences)
    k.shutdown()
    assert not any(thread.name == "fencebroker.kernel" for thread in threading.enumerate())
    assert k.references() == {}


def test_a_callback_taken_off_a_received_fence_is_not_called(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    mine = received(fd)
    called: list[int] = []
    cb = k.dma_fence_cb()
    assert k.dma_fence_add_callback(mine, cb, lambda *_: called.append(1)) == 0
    assert mine.refcount == 2
    assert k.dma_fence_remove_callback(mine, cb) is True
    assert mine.refcount == 1
    assert k.dma_fence_add_callback(mine, cb, lambda *_: called.append(2)) == 0
    k.dma_fence_signal(fence)
    k.dma_fence_wait(mine, False)
    assert k.dma_fence_remove_callback(mine, cb) is False
    assert called == [2]
    assert k.dma_fence_add_callback(mine, cb, lambda *_: called.append(3)) == -errno.ENOENT
    put(fence, mine)
    os.close(fd)


def test_a_callback_of_a_received_fence_may_put_it_and_signal_another(driver: Driver) -> None:
    """The shape of a pipeline: an in-fence's callback does the work and signals the out-fence."""
    fence, out = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    in_fd, out_fd = driver.install(fence), driver.install(out)
    mine = received(in_fd)

    def work(fence: k.dma_fence, _: k.dma_fence_cb) -> None:
        k.dma_fence_signal(out)
        k.dma_fence_put(out)
        k.dma_fence_put(fence)

    assert k.dma_fence_add_callback(mine, k.dma_fence_cb(), work) == 0
    k.dma_fence_signal(fence)
    put(fence)
    wait_readable(out_fd)
    os.close(in_fd)
    os.close(out_fd)
    k.shutdown()  # the watcher may still be putting its own reference
    assert k.references() == {}


def test_a_callback_that_exits_does_not_end_the_watcher(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    fences = [driver.fence(seqno) for seqno in (1, 2)]
    mine = []
    for fence in fences:
        fd = driver.install(fence)
        mine.append(received(fd))
        os.close(fd)
    done = threading.Event()

    def leave(*_: object) -> None:
        raise SystemExit(3)

    assert k.dma_fence_add_callback(mine[0], k.dma_fence_cb(), leave) == 0
    assert k.dma_fence_add_callback(mine[1], k.dma_fence_cb(), lambda *_: done.set()) == 0
    for fence in fences:
        k.dma_fence_signal(fence)
    assert done.wait(LIMIT)
    assert "SystemExit" in caplog.text
    k.shutdown()
    put(*fences, *mine)


def test_a_deadline_reaches_the_producers_record(driver: Driver) -> None:
    fence = driver.fence()
    fd = driver.install(fence)
    mine = received(fd)
    k.dma_fence_set_deadline(mine, 2_000_000)
    sync_file = created(mine)
    assert k.sync_file_ioctl_set_deadline(sync_file, k.sync_set_deadline(1_000_000)) == 0
    assert k.sync_file_ioctl_set_deadline(sync_file, k.sync_set_deadline(500_000, pad=1)) == -errno.EINVAL
    with fb.connect() as broker:
        assert broker.info(fd).deadline_ns == 1_000_000
    k.dma_fence_signal(fence)
    assert k.sync_file_ioctl_set_deadline(sync_file, k.sync_set_deadline(5)) == 0
    k.fput(sync_file.file)
    put(fence, mine)
    os.close(fd)


# -- names


def test_names(driver: Driver) -> None:
    context = k.dma_fence_context_alloc(1, driver="gpu")
    fence = driver.fence(3, context=context)
    with fb.connect() as broker:
        comm = next(row[8] for row in broker._listing("timelines") if row[0] == context)
    assert comm
    sync_file = created(fence)
    assert (k.dma_fence_driver_name(fence), k.dma_fence_timeline_name(fence)) == ("gpu", comm)
    assert k.sync_file_get_name(sync_file) == f"gpu-{comm}{context}-3"
    assert k.sync_file_get_name(sync_file, 5) == "gpu-"
    assert k.sync_file_get_name(sync_file, 1) == ""
    for size, error in ((0, ValueError), (-1, ValueError), (True, TypeError), ("8", TypeError)):
        with pytest.raises(error, match="len must"):
            k.sync_file_get_name(sync_file, size)  # type: ignore[arg-type]
    sync_file.user_name = "é" * 16 + "\0after"
    assert k.sync_file_get_name(sync_file) == sync_file.user_name == "é" * 15  # 31 bytes, whole characters
    with pytest.raises(TypeError, match="user_name must be a str"):
        sync_file.user_name = b"x"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="valid Unicode"):
        sync_file.user_name = "\ud800"
    fd = k.get_unused_fd_flags(os.O_CLOEXEC)
    k.fd_install(fd, sync_file.file)
    with fb.connect() as broker:
        assert broker.info(fd).name == f"gpu-{comm}{context}-3"
    mine = received(fd)
    assert (k.dma_fence_driver_name(mine), k.dma_fence_timeline_name(mine)) == ("gpu", comm)
    k.dma_fence_signal(fence)
    assert k.dma_fence_driver_name(fence) == "gpu"  # names stay after the signal
    put(fence, mine)
    os.close(fd)


def test_a_drivers_own_names(driver: Driver) -> None:
    ops = k.dma_fence_ops(get_driver_name=lambda _: "camera", get_timeline_name=lambda _: "frames")
    fence = driver.fence(9, ops)
    sync_file = created(fence)
    assert k.sync_file_get_name(sync_file) == f"camera-frames{driver.context}-9"
    k.fput(sync_file.file)
    put(fence)


# -- poll


def test_poll_registers_the_callback_that_wakes_the_queue(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    assert k.sync_file_poll(sync_file.file) == 0
    assert sync_file.flags == 1 << k.POLL_ENABLED
    assert k.sync_file_poll(sync_file.file) == 0
    with sync_file.wq:
        signaller = threading.Thread(target=k.dma_fence_signal, args=[fence])
        signaller.start()
        assert sync_file.wq.wait(LIMIT)
    signaller.join(LIMIT)
    assert k.sync_file_poll(sync_file.file) == select.EPOLLIN
    k.fput(sync_file.file)
    put(fence)


def test_a_polled_file_takes_its_callback_along(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    assert k.sync_file_poll(sync_file.file) == 0
    k.fput(sync_file.file)
    put(fence)  # no callback is pending, so nothing is warned of


def test_poll_says_in_for_an_error_too(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    k.dma_fence_set_error(fence, -errno.EIO)
    k.dma_fence_signal(fence)
    assert k.sync_file_poll(sync_file.file) == select.EPOLLIN
    k.fput(sync_file.file)
    put(fence)


# -- merge


def test_merge_waits_for_all_contexts(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    merged = k.dma_fence_unwrap_merge(one, two)
    assert merged is not None
    assert (merged.seqno, k.dma_fence_driver_name(merged), k.dma_fence_timeline_name(merged)) == (1, "dma_fence_array", "unbound")
    k.dma_fence_signal(one)
    assert k.dma_fence_wait_timeout(merged, False, 0) == 0
    k.dma_fence_signal(two)
    assert k.dma_fence_wait(merged, False) == 0
    assert k.dma_fence_get_status(merged) == 1
    put(one, two, merged)


def test_merge_of_one_context_is_the_later_fence(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(2)
    for fences in ((one, two), (two, one), (two, two)):
        assert k.dma_fence_unwrap_merge(*fences) is two
        put(two)
    assert k.references() == {"dma_fence": 2}
    put(one, two)


def test_merge_leaves_out_what_has_signalled(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    k.dma_fence_signal(one)
    assert k.dma_fence_unwrap_merge(one, two) is two
    put(two)
    k.dma_fence_signal(two)
    stub = k.dma_fence_unwrap_merge(one, two)
    assert stub is not None
    assert (stub.context, k.dma_fence_get_status(stub)) == (0, 1)
    put(one, two, stub)


def test_merge_keeps_the_error_of_a_member(driver: Driver) -> None:
    """Where the kernel loses it: docs/design.md, section 4."""
    one, two = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    k.dma_fence_set_error(one, -errno.EIO)
    k.dma_fence_signal(one)
    merged = k.dma_fence_unwrap_merge(one, two)
    assert merged is not None
    k.dma_fence_signal(two)
    assert k.dma_fence_wait(merged, False) == 0
    assert k.dma_fence_get_status(merged) == -errno.EIO
    put(one, two, merged)


def test_sync_file_merge_names_the_result_and_leaves_its_inputs(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    a, b = created(one), created(two)
    merged = k.sync_file_merge("both" * 10, a, b)
    assert merged is not None
    assert (merged.user_name, k.sync_file_get_name(merged)) == (("both" * 10)[:31],) * 2
    fd = k.get_unused_fd_flags(os.O_CLOEXEC)
    k.fd_install(fd, merged.file)
    with fb.connect() as broker:
        info = broker.info(fd)
        assert (info.name, info.num_fences) == (("both" * 10)[:31], 2)
    again = k.sync_file_fdget(fd)
    assert again is not None
    assert k.sync_file_get_name(again) == ("both" * 10)[:31]
    k.fput(again.file)
    k.fput(a.file)
    k.fput(b.file)
    assert not is_readable(fd)
    k.dma_fence_signal(one)
    k.dma_fence_signal(two)
    wait_readable(fd)
    put(one, two)
    os.close(fd)


def test_the_merge_request_of_a_descriptor(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(1, context=k.dma_fence_context_alloc(1))
    sync_file, fd2 = created(one), driver.install(two)
    arg = k.sync_merge_data("", fd2)
    assert k.sync_file_ioctl_merge(sync_file, arg) == 0
    assert not os.get_inheritable(arg.fence)
    k.dma_fence_signal(one)
    k.dma_fence_signal(two)
    wait_readable(arg.fence)
    k.fput(sync_file.file)
    put(one, two)
    for fd in (fd2, arg.fence):
        os.close(fd)


def test_the_merge_request_refuses_in_the_kernels_order(driver: Driver) -> None:
    fence = driver.fence()
    sync_file = created(fence)
    foreign = os.eventfd(0, os.EFD_CLOEXEC)
    before, held = descriptors(), k.references()
    for arg, error in (
        (k.sync_merge_data("x", -1, flags=1), errno.EINVAL),
        (k.sync_merge_data("x", -1, pad=1), errno.EINVAL),
        (k.sync_merge_data("x", foreign), errno.ENOENT),
        (k.sync_merge_data("x", -1), errno.ENOENT),
        (k.sync_merge_data("x", 9999), errno.ENOENT),
    ):
        assert k.sync_file_ioctl_merge(sync_file, arg) == -error
        assert arg.fence == -1
    with pytest.raises(TypeError, match="arg must be a sync_merge_data"):
        k.sync_file_ioctl_merge(sync_file, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"arg\.name must be a str"):
        k.sync_file_ioctl_merge(sync_file, k.sync_merge_data(b"x", foreign))  # type: ignore[arg-type]
    assert (descriptors(), k.references()) == (before, held)
    os.close(foreign)
    k.fput(sync_file.file)
    put(fence)


def test_nothing_to_merge(driver: Driver) -> None:
    with pytest.raises(ValueError, match="fences must not be empty"):
        k.dma_fence_unwrap_merge()
    with pytest.raises(TypeError, match=r"fences\[0\] must be a dma_fence"):
        k.dma_fence_unwrap_merge(3)  # type: ignore[arg-type]
