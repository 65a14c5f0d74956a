"""A real broker and a small model of it, driven through the same steps by hypothesis: timelines here and in other processes, merges,
exports, imports, closes, kills, errors.  After each step status, count, error and the order of timestamps are those of the model.

``FENCEBROKER_MODEL=20`` runs twenty times as many examples.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import fencebroker as fb
from fencebroker import libsync
from fencebroker.fds import OwnedFd, recv_packet, send_packet
from tests.helpers import LIMIT, BrokerProcess, Child, is_readable, wait_readable
from tests.process.libsync_support import Own, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.helpers import Spawn

__all__ = ["own"]

EXAMPLES: Final = 150 * int(os.environ.get("FENCEBROKER_MODEL", "1"))
STEPS: Final = 40
ERRORS: Final = (errno.EIO, errno.ECANCELED, errno.ETIME, 4095)

# -- the model


class Point:
    """A fence of a timeline.  ``when`` counts the steps of the model."""

    def __init__(self, context: int, seqno: int) -> None:
        self.context = context
        self.seqno = seqno
        self.status = 0
        self.when = 0

    @property
    def leaves(self) -> list[Point]:
        return [self]

    @property
    def point(self) -> tuple[int, int]:
        return self.context, self.seqno


class Stub(Point):
    """What a merge of signalled ones gives."""

    def __init__(self, when: int) -> None:
        super().__init__(0, 0)
        self.status = 1
        self.when = when


class Array:
    """Several, in order of their contexts."""

    def __init__(self, members: list[Point]) -> None:
        self.leaves = members

    @property
    def status(self) -> int:
        if any(not member.status for member in self.leaves):
            return 0
        failed = [member for member in self.leaves if member.status < 0]
        return min(failed, key=lambda member: member.when).status if failed else 1


Fence = Point | Array


class Line:
    """A timeline."""

    def __init__(self, context: int, now: int) -> None:
        self.context = context
        self.value = 0
        self.advanced = now
        self.points: dict[int, Point] = {}

    def fence(self, seqno: int) -> Point:
        point = self.points.get(seqno)
        if point is None:
            point = self.points[seqno] = Point(self.context, seqno)
            if seqno <= self.value:
                point.status, point.when = 1, self.advanced  # born signalled
        return point

    def advance(self, value: int, now: int, error: int = 0) -> None:
        if value > self.value:
            self.value, self.advanced = value, now
        for seqno, point in self.points.items():
            if seqno <= value and not point.status:
                point.status, point.when = (-error if error and seqno == value else 1), now

    def close(self, now: int) -> None:
        for point in self.points.values():
            if not point.status:
                point.status, point.when = -errno.ENOENT, now


def merge(fences: Iterable[Fence]) -> Fence:
    """What the kernel's dma_fence_unwrap_merge() gives, with errors kept."""
    flat = list(dict.fromkeys(leaf for fence in fences for leaf in fence.leaves))
    failed = [leaf for leaf in flat if leaf.status < 0]
    latest: dict[int, Point] = {}
    for leaf in flat:
        if not leaf.status and (leaf.context not in latest or leaf.seqno > latest[leaf.context].seqno):
            latest[leaf.context] = leaf
    if not latest:
        return min(failed, key=lambda leaf: leaf.when) if failed else Stub(max(leaf.when for leaf in flat))
    members = sorted([*failed, *latest.values()], key=lambda leaf: leaf.point)
    return members[0] if len(members) == 1 else Array(members)


# -- the real thing


PRODUCERS = """
    import os, signal, socket, sys
    from fencebroker import fds, libsync
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nursery = socket.socket(fileno=int(sys.argv[1]))

    def produce(sock):
        timelines = {}
        send = lambda text, *numbers: fds.send_packet(sock, text.encode(), numbers)
        send(str(os.getpid()))
        while True:
            packet, _ = fds.recv_packet(sock)
            if not packet:
                return
            verb, name, number = packet.decode().split()
            if verb == "create":
                timelines[name] = libsync.sw_sync_timeline_create()
                send("done")
            elif verb == "fence":
                fence = libsync.sw_sync_fence_create(timelines[name], "", int(number))
                send("done", fence)
                os.close(fence)
            elif verb == "inc":
                libsync.sw_sync_timeline_inc(timelines[name], int(number))
                send("done")
            else:
                os.close(timelines.pop(name))
                send("done")

    for fd in (libsync.sw_sync_timeline_create(),):
        os.close(fd)
    print("ready", flush=True)
    while True:
        packet, received = fds.recv_packet(nursery)
        if not packet:
            break
        with received[0] as sock:
            if os.fork() == 0:
                nursery.close()
                produce(socket.socket(fileno=sock.detach()))
                os._exit(0)
"""


class Nursery:
    """Forks producers from a process that has everything loaded."""

    def __init__(self, spawn: Spawn, broker: BrokerProcess, cleanup: contextlib.ExitStack) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cleanup.enter_context(self._sock)
        with theirs:
            child: Child = spawn(PRODUCERS, theirs.fileno(), pass_fds=[theirs.fileno()], env=broker.env)
        assert child.line() == "ready"

    def start(self) -> Producer:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            send_packet(self._sock, b"fork", [theirs.fileno()])
        return Producer(ours)


class Producer:
    """Another process with timelines of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.pid = int(self._receive()[0])
        self._pidfd = OwnedFd(os.pidfd_open(self.pid))

    def _receive(self) -> tuple[str, list[OwnedFd]]:
        wait_readable(self._sock.fileno())
        packet, fds = recv_packet(self._sock)
        return packet.decode(), fds

    def ask(self, verb: str, name: int, number: int = 0) -> list[OwnedFd]:
        send_packet(self._sock, f"{verb} {name} {number}".encode())
        answer, fds = self._receive()
        assert answer == "done"
        return fds

    def kill(self) -> None:
        """When the pidfd says so, every descriptor of the process is closed."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        with self._sock, self._pidfd:
            self._sock.shutdown(socket.SHUT_RDWR)
            wait_readable(self._pidfd.fileno(), LIMIT)


class Raw:
    """A timeline of libsync, here."""

    can_fail = False

    def __init__(self) -> None:
        self._fd = libsync.sw_sync_timeline_create()

    def fence(self, value: int) -> int:
        return libsync.sw_sync_fence_create(self._fd, "", value)

    def inc(self, n: int) -> None:
        libsync.sw_sync_timeline_inc(self._fd, n)

    def close(self) -> None:
        os.close(self._fd)


class Object:
    """A timeline of the library, here; only this one can fail a point."""

    can_fail = True

    def __init__(self, broker: fb.Broker) -> None:
        self._timeline = broker.create_timeline()

    def fence(self, value: int) -> int:
        return self._timeline.export(value).detach()

    def inc(self, n: int) -> None:
        self._timeline.inc(n)

    def fail(self, seqno: int, error: int) -> None:
        self._timeline.fail(seqno, error)

    def close(self) -> None:
        self._timeline.close()


class Remote:
    """A timeline of another process."""

    can_fail = False

    def __init__(self, producer: Producer, name: int) -> None:
        self.producer = producer
        self._name = name
        producer.ask("create", name)

    def fence(self, value: int) -> int:
        (fd,) = self.producer.ask("fence", self._name, value)
        return fd.detach()

    def inc(self, n: int) -> None:
        self.producer.ask("inc", self._name, n)

    def close(self) -> None:
        self.producer.ask("close", self._name)


Timeline = Raw | Object | Remote


class Machine(RuleBasedStateMachine):
    """Both, side by side."""

    def __init__(self, broker: fb.Broker, nursery: Nursery) -> None:
        super().__init__()
        self.broker = broker
        self.nursery = nursery
        self.now = 0
        self.lines: list[tuple[Timeline, Line]] = []
        self.fences: list[tuple[int, Fence]] = []
        self.producers: list[Producer] = []

    def pick(self, data: Any, things: list[Any]) -> Any:
        self.now += 1
        return things[data.draw(st.integers(0, len(things) - 1))]

    def keep(self, fd: int, fence: Fence) -> None:
        self.fences.append((fd, fence))

    # -- timelines

    def add(self, timeline: Timeline) -> None:
        fd = timeline.fence(0)
        line = Line(libsync.sync_file_info(fd).context, self.now)
        self.lines.append((timeline, line))
        self.keep(fd, line.fence(0))

    @rule()
    def create_raw(self) -> None:
        self.now += 1
        self.add(Raw())

    @rule()
    def create_object(self) -> None:
        self.now += 1
        self.add(Object(self.broker))

    @rule(data=st.data())
    def create_remote(self, data: Any) -> None:
        self.now += 1
        if len(self.producers) < 2:
            self.producers.append(self.nursery.start())
        self.add(Remote(self.pick(data, self.producers), self.now))

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), ahead=st.integers(-2, 5))
    def fence(self, data: Any, ahead: int) -> None:
        timeline, line = self.pick(data, self.lines)
        value = max(0, line.value + ahead)
        self.keep(timeline.fence(value), line.fence(value))

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), n=st.integers(0, 4))
    def inc(self, data: Any, n: int) -> None:
        timeline, line = self.pick(data, self.lines)
        timeline.inc(n)
        line.advance(line.value + n, self.now)

    @precondition(lambda self: any(timeline.can_fail for timeline, _ in self.lines))
    @rule(data=st.data(), ahead=st.integers(1, 4), error=st.sampled_from(ERRORS))
    def fail(self, data: Any, ahead: int, error: int) -> None:
        timeline, line = self.pick(data, [pair for pair in self.lines if pair[0].can_fail])
        seqno = line.value + ahead
        # A point that is exported only afterwards has the error too.
        exported = seqno in line.points
        timeline.fail(seqno, error)
        point = line.fence(seqno)
        line.advance(seqno, self.now, error)
        if not exported:
            assert point.status == -error
            self.keep(timeline.fence(seqno), point)

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def close_timeline(self, data: Any) -> None:
        pair = self.pick(data, self.lines)
        self.lines.remove(pair)
        pair[0].close()
        pair[1].close(self.now)

    @precondition(lambda self: self.producers)
    @rule(data=st.data())
    def kill(self, data: Any) -> None:
        producer = self.pick(data, self.producers)
        self.producers.remove(producer)
        producer.kill()
        self.bury(producer)

    def bury(self, producer: Producer) -> None:
        """Which of its timelines goes first is the kernel's business: the broker's timestamps say it."""
        pairs = [pair for pair in self.lines if isinstance(pair[0], Remote) and pair[0].producer is producer]
        if len(pairs) > 1:
            ended = {row[8]: row[7] for row in self.broker._listing("fences") if row[6] == -errno.ENOENT}
            pairs.sort(key=lambda pair: ended.get(pair[1].context, 0))
        for pair in pairs:
            self.lines.remove(pair)
            self.now += 1
            pair[1].close(self.now)

    # -- descriptors

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def merge(self, data: Any) -> None:
        first, second = self.pick(data, self.fences), self.pick(data, self.fences)
        self.keep(libsync.sync_merge("merged", first[0], second[0]), merge([first[1], second[1]]))

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def merge_many(self, data: Any) -> None:
        chosen = [self.pick(data, self.fences) for _ in range(data.draw(st.integers(2, 6)))]
        self.keep(self.broker.merge([fd for fd, _ in chosen]).detach(), merge([fence for _, fence in chosen]))

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def import_it(self, data: Any) -> None:
        fd, fence = self.pick(data, self.fences)
        self.keep(self.broker.import_sync_file(fd).detach(), fence)

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def close_fence(self, data: Any) -> None:
        pair = self.pick(data, self.fences)
        self.fences.remove(pair)
        os.close(pair[0])

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def refused(self, data: Any) -> None:
        """Nothing wrong changes anything."""
        fd, _ = self.pick(data, self.fences)
        calls: list[tuple[int, Callable[[], object]]] = [
            (errno.ENOENT, lambda: libsync.sync_merge("", fd, -1)),
            (errno.ENOENT, lambda: libsync.sync_merge("", fd, 0)),
            (errno.ENOTTY, lambda: libsync.sync_merge("", 0, fd)),
            (errno.ENOTTY, lambda: libsync.sw_sync_timeline_inc(fd, 1)),
            (errno.ENOTTY, lambda: libsync.sw_sync_fence_create(fd, "", 1)),
            (errno.EINVAL, lambda: libsync.sync_set_deadline(fd, -1)),
            (errno.EINVAL, lambda: libsync.sync_wait(-1, 0)),
        ]
        expected, call = data.draw(st.sampled_from(calls))
        with pytest.raises(OSError, match=rf"\[Errno {expected}\]"):
            call()

    # -- what must hold

    @invariant()
    def agrees(self) -> None:
        # The newest is asked first: then what was done before has been heard by the broker, and shows everywhere.
        for fd, fence in self.fences[::-1][:4]:
            self.compare(fd, fence)
        for fd, fence in self.fences:
            assert is_readable(fd) == bool(fence.status)

    def compare(self, fd: int, fence: Fence) -> None:
        info = libsync.sync_file_info(fd)
        expected = [(leaf.context, leaf.seqno, leaf.status) for leaf in fence.leaves]
        assert [(member.context, member.seqno, member.status) for member in info.fences] == expected
        assert info.num_fences == len(expected)
        assert info.status == fence.status
        if fence.status:
            libsync.sync_wait(fd, 0)
        else:
            with pytest.raises(OSError, match=rf"\[Errno {errno.ETIME}\]"):
                libsync.sync_wait(fd, 0)

    def teardown(self) -> None:
        stamps: dict[int, list[int]] = {}
        for fd, fence in self.fences:
            self.compare(fd, fence)
            for leaf, member in zip(fence.leaves, libsync.sync_file_info(fd).fences, strict=True):
                assert bool(member.timestamp_ns) == bool(leaf.status)
                if leaf.status:
                    stamps.setdefault(leaf.when, []).append(member.timestamp_ns)
        self.now += 1
        for timeline, line in self.lines:
            timeline.close()
            line.close(self.now)
        for fd, fence in self.fences:
            self.compare(fd, fence)
            os.close(fd)
        for producer in self.producers:
            producer.close()
        counts = self.broker._status()
        assert (counts["timelines"], counts["active_fences"]) == (0, 0)
        self.check_order(stamps)

    def check_order(self, stamps: dict[int, list[int]]) -> None:
        """Who signalled in an earlier step has an earlier timestamp."""
        latest = 0
        for when in sorted(stamps):
            assert min(stamps[when]) >= latest
            latest = max(stamps[when])


@pytest.mark.timeout(120 + 2 * EXAMPLES)
def test_the_broker_agrees_with_the_model(own: Own, module_broker: BrokerProcess, spawn: Spawn, cleanup: contextlib.ExitStack) -> None:
    broker = cleanup.enter_context(fb.connect(module_broker.path))
    nursery = Nursery(spawn, module_broker, cleanup)
    run_state_machine_as_test(
        functools.partial(Machine, broker, nursery),  # type: ignore[arg-type]  # whatever makes one will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
