"""Bad input: a clear error that names the argument and the cure; it costs no descriptor on either side and harms nobody else."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fencebroker as fb
from fencebroker import requests
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors
from tests.process.wire_client import descriptors_of, switches_of

Case = Callable[[contextlib.ExitStack], int]


def _pipe(stack: contextlib.ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return reader


def _owned(make: Callable[[], int]) -> Case:
    def case(stack: contextlib.ExitStack) -> int:
        number = make()
        stack.callback(os.close, number)
        return number

    return case


def _socket(*kind: int) -> Case:
    return lambda stack: stack.enter_context(socket.socket(*kind)).fileno()


def _timeline_end(stack: contextlib.ExitStack) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.enter_context(ours)
    return stack.enter_context(theirs).fileno()


def _path_of_a_socket(stack: contextlib.ExitStack) -> int:
    inner = _timeline_end(stack)
    return _owned(lambda: os.open(f"/proc/self/fd/{inner}", os.O_PATH | os.O_CLOEXEC))(stack)


def _path_of_an_eventfd(stack: contextlib.ExitStack) -> int:
    inner = _owned(lambda: os.eventfd(0))(stack)
    return _owned(lambda: os.open(f"/proc/self/fd/{inner}", os.O_PATH | os.O_CLOEXEC))(stack)


def _forged_fence(count: int) -> Case:
    def make() -> int:
        number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        if count:
            os.eventfd_write(number, count)
        return number

    return _owned(make)


def _temporary(stack: contextlib.ExitStack) -> int:
    return stack.enter_context(tempfile.TemporaryFile()).fileno()


#: What a careless program might show instead of a sync_file.
FOREIGN: dict[str, tuple[Case, str]] = {
    "pipe": (_pipe, "a pipe"),
    "regular file": (_temporary, "a file"),
    "folder": (_owned(lambda: os.open("/", os.O_RDONLY)), "a file"),
    "device": (_owned(lambda: os.open("/dev/null", os.O_RDWR)), "a file"),
    "O_PATH": (_owned(lambda: os.open("/", os.O_PATH)), "a file"),
    "O_PATH of a socket": (_path_of_a_socket, "a socket that cannot be looked at"),
    "O_PATH of an eventfd": (_path_of_an_eventfd, "an eventfd that cannot be looked at"),
    "eventfd": (_owned(lambda: os.eventfd(0)), "an eventfd of another broker or of none"),
    "eventfd with a count": (_owned(lambda: os.eventfd(7)), "an eventfd of another broker or of none"),
    "own active fence": (_forged_fence(0), "an eventfd of another broker or of none"),
    "own nonsense": (_forged_fence(9), "an eventfd of another broker or of none"),
    "epoll": (lambda stack: stack.enter_context(select.epoll()).fileno(), r"an anon_inode:\[eventpoll\]"),
    "pidfd": (_owned(lambda: os.pidfd_open(os.getpid())), "an? "),
    "memfd": (_owned(lambda: os.memfd_create("x")), "a file"),
    "unix stream": (_socket(socket.AF_UNIX, socket.SOCK_STREAM), "a socket that is no timeline of this broker"),
    "unix seqpacket": (_timeline_end, "a socket that is no timeline of this broker"),
    "tcp": (_socket(socket.AF_INET, socket.SOCK_STREAM), "a socket that is no timeline of this broker"),
    "netlink": (_socket(socket.AF_NETLINK, socket.SOCK_RAW), "a socket that is no timeline of this broker"),
}


@pytest.fixture
def others(module_broker: BrokerProcess) -> Iterator[Callable[[], None]]:
    """A second client: it works before, and it must work after."""
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline:

        def work() -> None:
            with timeline.export() as fence:
                assert connection.info(fence).status == 0
                timeline.inc()
                fence.wait(LIMIT)

        work()
        yield work
        work()


@pytest.fixture
def costs_nothing(module_broker: BrokerProcess, connection: fb.Broker, others: Callable[[], None]) -> Iterator[None]:
    """Descriptors of both processes, and what the broker counts, are the same afterwards."""

    def count() -> tuple[Any, ...]:
        status = connection._status()
        return status["sync_files"], status["active_fences"], status["timelines"], status["sessions"]

    before, there = count(), descriptors_of(module_broker.pid)
    here = descriptors()
    yield
    assert descriptors() == here
    assert count() == before
    while descriptors_of(module_broker.pid) > there:
        pass  # foreign files are closed by the reaper


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_sync_file(costs_nothing: None, connection: fb.Broker, timeline: fb.Timeline, kind: str) -> None:
    """import, info and merge name what it is instead: EINVAL, for merge ENOENT as the kernel has it."""
    case, what = FOREIGN[kind]
    with timeline.export(1) as fence, contextlib.ExitStack() as stack:
        number = case(stack)
        calls: list[tuple[Callable[[], object], int]] = [
            (lambda: connection.import_sync_file(number), errno.EINVAL),
            (lambda: connection.info(number), errno.EINVAL),
            (lambda: connection._connection.call(requests.set_deadline(connection._connection, number, 5)), errno.EINVAL),
            (lambda: connection.merge([fence, number]), errno.ENOENT),
            (lambda: connection.merge([number]), errno.ENOENT),
        ]
        for call, error in calls:
            with pytest.raises(fb.NotASyncFile, match=f"must be a sync_file of this broker, not {what}") as caught:
                call()
            assert caught.value.error == error
        assert fence.status() == 0


def test_a_timelines_descriptor_is_no_sync_file(costs_nothing: None, connection: fb.Broker, timeline: fb.Timeline) -> None:
    """And a sync_file is no timeline."""
    with timeline.share() as shared, timeline.export(1):
        calls: list[Callable[[], object]] = [
            lambda: connection.import_sync_file(shared),
            lambda: connection.info(shared),
            lambda: connection.merge([shared]),
        ]
        for call in calls:
            with pytest.raises(fb.NotASyncFile, match="not a timeline's descriptor"):
                call()


def test_a_sync_file_of_another_broker(costs_nothing: None, connection: fb.Broker, start_broker: Any) -> None:
    """An active one is nobody's here; a signalled one carries its status with it and is answered from that."""
    elsewhere = start_broker()
    with (
        fb.connect(elsewhere.path) as other,
        other.create_timeline("there") as timeline,
        timeline.export(1) as fence,
        timeline.export(2) as bad,
    ):
        with pytest.raises(fb.NotASyncFile, match="an eventfd of another broker or of none"):
            connection.info(fence)
        timeline.fail(2, errno.EIO)
        other._status()
        for signalled, status in ((fence, 1), (bad, -errno.EIO)):
            info = connection.info(signalled)
            assert (info.status, info.detached, info.timestamp_ns) == (status, True, 0)
            with connection.import_sync_file(signalled) as imported:
                assert imported.status() == status


def test_a_closed_descriptor(costs_nothing: None, connection: fb.Broker, timeline: fb.Timeline) -> None:
    """EBADF names the argument and the number."""
    number = 900
    with timeline.export(1) as fence:
        for argument, call in (
            ("fd", lambda: connection.info(number)),
            ("fd", lambda: connection.import_sync_file(number)),
            (r"fences\[1\]", lambda: connection.merge([fence, number])),
        ):
            with pytest.raises(OSError, match=f"{argument} is not an open descriptor: {number}") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="Bad file descriptor"):
            fb.SyncFile.from_fd(number)
    with pytest.raises(ValueError, match="this SyncFile is closed"):
        connection.info(fence)
    with pytest.raises(ValueError, match="this SyncFile is closed"):
        connection.import_sync_file(fence)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (-1, ValueError, "must be an open descriptor, not -1"),
        (2**31, ValueError, "must be an open descriptor, not 2147483648"),
        (2**64, ValueError, "must be an open descriptor, not 18446744073709551616"),
        (-(2**70), ValueError, "must be an open descriptor"),
        (True, TypeError, "must be a descriptor .an int. or have a fileno.. method, not bool"),
        (1.0, TypeError, "not float"),
        ("1", TypeError, "not str"),
        (b"1", TypeError, "not bytes"),
        (None, TypeError, "not NoneType"),
        ([1], TypeError, "not list"),
        (object(), TypeError, "not object"),
    ],
)
def test_numbers_that_are_no_descriptor(
    costs_nothing: None, connection: fb.Broker, timeline: fb.Timeline, value: Any, error: type[Exception], said: str
) -> None:
    """Negative, too large, of another type: refused here, by name."""
    with timeline.export(1) as fence:
        for argument, call in (
            ("fd", lambda: connection.info(value)),
            ("fd", lambda: connection.import_sync_file(value)),
            (r"fences\[1\]", lambda: connection.merge([fence, value])),
        ):
            with pytest.raises(error, match=f"{argument} {said}" if said.startswith("must") else said):
                call()
        with pytest.raises((TypeError, OSError)):
            fb.SyncFile.from_fd(value)
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(error, match="fence"):
            fb.send_sync_file(ours, b"x", value)


def test_merges_that_make_no_sense(costs_nothing: None, connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Nothing, too many, too many shown, an unknown word."""
    with timeline.export(1) as fence:
        with pytest.raises(ValueError, match="fences must not be empty"):
            connection.merge([])
        with pytest.raises(ValueError, match="fences must be at most 1024, not 1025; merge in steps"):
            connection.merge([fence] * 1025)
        for when in ("some", "ALL", None, 1):
            with pytest.raises(ValueError, match="when must be 'all' or 'any', not"):
                connection.merge([fence], when=when)  # type: ignore[arg-type]
        connection.merge([fence] * 1024).close()


def test_too_many_shown_at_once(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """One message carries 253 descriptors; what this connection made needs none."""
    with timeline.export(1) as fence:
        with pytest.raises(ValueError, match="at most 253 that this connection did not make, not 300; import them first"):
            connection.merge([fence.fileno()] * 300)
        connection.merge([fence.fileno()] * 253).close()


def test_too_many_members_when_unwrapped(connection: fb.Broker) -> None:
    """1,024 in all, however they are wrapped."""
    with contextlib.ExitStack() as stack:
        timelines = [stack.enter_context(connection.create_timeline()) for _ in range(1000)]
        fences = [stack.enter_context(timeline.export(1)) for timeline in timelines]
        halves = [stack.enter_context(connection.merge(part)) for part in (fences[:500], fences[500:])]
        stack.enter_context(connection.merge(halves))
        more = [stack.enter_context(stack.enter_context(connection.create_timeline()).export(1)) for _ in range(24)]
        full = stack.enter_context(connection.merge([*halves, *more]))
        assert connection.info(full).num_fences == 1024
        before = connection._status()
        extra = stack.enter_context(connection.sync_file("another@1"))
        with pytest.raises(OSError, match="at most 1024 members when unwrapped, not 1025") as caught:
            connection.merge([full, extra])
        assert caught.value.errno == errno.EINVAL
        assert connection._status()["sync_files"] == before["sync_files"] + 1


# Descriptor limits


def test_a_client_at_its_own_limit(spawn: Spawn, broker: BrokerProcess) -> None:
    """EMFILE that says whose limit it is; the broker keeps nothing for it; with room again everything goes on."""
    with fb.connect(broker.path) as watcher:
        child = spawn(
            """
            import errno, os, resource, fencebroker as fb
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            with fb.connect() as broker, broker.create_timeline("camera0") as timeline, timeline.export(1) as fence:
                while (last := os.dup(0)) < len(os.listdir("/proc/self/fd")) - 2:
                    pass
                before = broker._status()
                calls = [
                    lambda: timeline.export(2),
                    lambda: timeline.export_many(range(3, 40)),
                    lambda: broker.sync_file("camera0@3"),
                    lambda: broker.sync_file("camera1@3"),
                    lambda: broker.import_sync_file(fence),
                    lambda: broker.merge([fence]),
                    lambda: broker.create_timeline("camera2"),
                    lambda: broker.open_timeline("camera0"),
                    fence.dup,
                    timeline.share,
                    lambda: fb.connect(),
                ]
                resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
                for round in range(3):
                    for call in calls:
                        try:
                            call()
                            print("no error")
                        except OSError as err:
                            if err.errno != errno.EMFILE:
                                print(repr(err))
                assert broker.info(fence).status == 0
                assert fence.status() == 0
                after = broker._status()
                print({key: after[key] for key in ("sync_files", "timelines", "active_fences")} ==
                      {key: before[key] for key in ("sync_files", "timelines", "active_fences")})
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                for fence2 in timeline.export_many(range(2, 40)):
                    fence2.close()
                broker.create_timeline("camera2").close()
            """,
            env=broker.env,
        )
        assert child.finish() == "True\n"
        while watcher._status()["sessions"] > 1:
            pass
        assert watcher._status()["timelines"] == 0


def test_part_of_an_answer_fits(spawn: Spawn, broker: BrokerProcess) -> None:
    """Some of many descriptors arrived: they are closed, the rest is given back, the error is one."""
    child = spawn(
        """
        import errno, os, resource, fencebroker as fb
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with fb.connect() as broker, broker.create_timeline() as timeline:
            while (last := os.dup(0)) < len(os.listdir("/proc/self/fd")) - 2:
                pass
            before = sorted(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (last + 20, hard))
            for n in (21, 100, 253, 600):
                try:
                    timeline.export_many(range(1, n))
                    print("no error", n)
                except OSError as err:
                    print(errno.errorcode[err.errno], "this process is at its descriptor limit" in str(err))
            assert sorted(os.listdir("/proc/self/fd")) == before
            for fence in timeline.export_many(range(1, 15)):
                fence.close()
            print(broker._status()["sync_files"])
        """,
        env=broker.env,
    )
    assert child.finish() == "EMFILE True\n" * 4 + "0\n"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("ulimit -n 60", r"a limit of 60 descriptors leaves none for clients; raise it to \d+ at least \(ulimit -Hn, LimitNOFILE=\)"),
        ("ulimit -n 8", r"keeper: there is no room for the journal, .*: Too many open files \(ulimit -f, -n, -v\)"),
        ("ulimit -f 600", r"keeper: there is no room for the journal, .*: File too large \(ulimit -f, -n, -v\)"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--no-keeper"]], ids=["kept", "not kept"])
def test_a_machine_without_room(spawn: Spawn, folder: str, limits: str, expected: str, more: list[str]) -> None:
    """One line that says what to raise, and nothing is left behind but the lock."""
    argv = [sys.executable, "-m", "fencebrokerd", "--listen", f"{folder}/broker", *more]
    child = spawn(["sh", "-c", f'{limits}; exec "$@"', "sh", *argv])
    assert child.wait() == 1
    (line,) = child.log().splitlines()
    assert re.fullmatch(rf"\S+ fencebrokerd\[\d+\] error: {expected}", line), line
    assert set(os.listdir(folder)) <= {"broker.lock"}


def test_the_least_that_a_broker_asks_for_is_enough(spawn: Spawn, folder: str, start_limited: Callable[..., BrokerProcess]) -> None:
    child = spawn(["sh", "-c", 'ulimit -n 60; exec "$@"', "sh", sys.executable, "-m", "fencebrokerd", "--listen", f"{folder}/broker"])
    assert child.wait() == 1
    found = re.search(r"raise it to (\d+) at least", child.log())
    assert found
    broker = start_limited(int(found[1]))
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)


def test_the_brokers_limit(start_limited: Callable[..., BrokerProcess]) -> None:
    """What would pass it is refused with the quota, the limit and the usage; asking, closing and connecting still work."""
    broker = start_limited(160)
    with fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        timeline = stack.enter_context(connection.create_timeline("full"))
        fences: list[fb.SyncFile] = []
        with pytest.raises(fb.QuotaExceeded) as caught:  # noqa: PT012 - which one it is is not known before
            while True:
                fences.append(stack.enter_context(timeline.export()))
        error = caught.value
        assert error.errno in (errno.EDQUOT, errno.EMFILE)
        assert (error.used, error.limit) == (len(fences), error.limit)
        assert f"{error.quota}: {error.used} of {error.limit} are in use and 1 more do not fit" in str(error)
        calls: list[Callable[[], object]] = [
            lambda: connection.merge(fences[:2]),
            lambda: connection.import_sync_file(fences[0]),
            lambda: connection.sync_file("x@1"),
        ]
        for call in calls:
            with pytest.raises(fb.QuotaExceeded):
                call()
        for fence in fences:
            assert connection.info(fence).status == 0
        assert connection.info(fences[0].fileno()).status == 0
        with fb.connect(broker.path) as other:
            assert other.info(fences[0]).name
            with other.create_timeline() as another:
                another.advance(1)
            with pytest.raises(fb.NotASyncFile):
                other.info(0)
        fences.pop().close()
        stack.enter_context(timeline.export())
        timeline.advance(10)
        fences[0].wait(LIMIT)


def test_a_crowd_at_the_brokers_limit(start_limited: Callable[..., BrokerProcess]) -> None:
    """Sessions that do not fit are told so; who is in goes on; when somebody leaves there is room again; nothing spins."""
    broker = start_limited(128)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(fb.connect(broker.path))
        timeline = stack.enter_context(first.create_timeline())
        crowd: list[fb.Broker] = []
        with pytest.raises(fb.QuotaExceeded, match=r"descriptors of the broker \(sessions\)") as caught:  # noqa: PT012
            while True:
                crowd.append(stack.enter_context(fb.connect(broker.path)))
        assert caught.value.errno == errno.EMFILE
        for _ in range(200):
            with pytest.raises(fb.QuotaExceeded):
                fb.connect(broker.path)
        reader = _pipe(stack)
        with pytest.raises(fb.NotASyncFile):
            first.info(reader)
        timeline.advance(1)
        first._status()
        select.poll().poll(50)
        before = switches_of(broker.pid)
        select.poll().poll(200)  # nothing to wait for: nothing happens
        assert switches_of(broker.pid) == before
        crowd.pop().close()
        while True:
            with contextlib.suppress(fb.QuotaExceeded):
                stack.enter_context(fb.connect(broker.path))
                break


def test_limits_are_told_before_they_are_reached(connection: fb.Broker) -> None:
    """status() has the numbers, and the broker has raised its own soft limit."""
    status = connection._status()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert status["descriptor_limit"] <= hard
    assert status["descriptor_limit"] > min(hard, 1 << 19) - 100
    assert status["descriptor_reserve"] == 64
