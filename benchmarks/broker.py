"""fencebrokerd itself, through the library that everybody else uses."""

from __future__ import annotations

import functools
import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
from array import array
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING

import fencebroker as fb
from benchmarks.processes import TIMEOUT, BenchmarkError, Group, Samples, Sleepers, family, pair, serve
from benchmarks.waiting import BATCH, Signaller, take_wakes, wait_for_aio_fences, wait_for_wakes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from fencebroker import SyncFile, Timeline

__all__ = [
    "Broker",
    "running_broker",
    "start_aio_broker_wakes",
    "start_aio_ring_wakes",
    "start_broker_batches",
    "start_broker_operations",
    "start_broker_wakes",
    "start_imported_wakes",
    "start_imports",
    "start_merged_wakes",
    "start_ring_wakes",
    "take_operations",
    "why_no_ring",
]


class Broker:
    """A running fencebrokerd: where it listens, and which process it is."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self.pid = pid


@contextmanager
def running_broker(through: Sequence[str] = (), arguments: Sequence[str] = ()) -> Iterator[Broker]:
    """Run a fencebrokerd of one's own until the block ends; `through` are Python's options before ``-m fencebrokerd``, and then it is
    a single process without a journal.  `arguments` are the broker's own.
    """
    with tempfile.TemporaryDirectory(prefix="fencebroker-bench-") as directory:
        path, log = Path(directory, "broker"), Path(directory, "log")
        ready, theirs = os.pipe()
        try:
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        *through,
                        "-m",
                        "fencebrokerd",
                        *(["--no-keeper"] if through else []),
                        "--listen",
                        path,
                        "--ready-fd",
                        str(theirs),
                        *arguments,
                    ],
                    pass_fds=[theirs],
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                )
        finally:
            os.close(theirs)
        try:
            # Readable with a newline when it is ready, and without one when it died before.
            if not select.select([ready], [], [], TIMEOUT)[0] or os.read(ready, 1) != b"\n":
                raise BenchmarkError(f"fencebrokerd did not start: {log.read_text(errors='replace').strip()}")
            yield Broker(path, process.pid)
        finally:
            os.close(ready)
            _end(process)
            if process.returncode:
                sys.stderr.write(log.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(TIMEOUT)


class _Fences(Signaller):
    """Signals by the library's ``advance``."""

    def __init__(self, broker: fb.Broker) -> None:
        self._broker = broker
        self._timeline = broker.create_timeline()
        self._seqno = 0
        self._armed: list[SyncFile] = []

    def arm(self, n: int) -> list[int]:
        self._armed = self._timeline.export_many(range(self._seqno + 1, self._seqno + 1 + n))
        return [fence.fileno() for fence in self._armed]

    def signal(self, index: int) -> None:  # noqa: ARG002 - the armed ones are signalled in order
        self._seqno += 1
        self._timeline.advance(self._seqno)

    def disarm(self) -> None:
        for fence in self._armed:
            fence.close()


class _Shared(_Fences):
    """The timeline has another holder, so the broker signals."""

    def __init__(self, broker: fb.Broker) -> None:
        super().__init__(broker)
        self._holder = self._timeline.share()


class _Imported(_Fences):
    """What the waiter has is private: an eventfd that the producer does not have."""

    def arm(self, n: int) -> list[int]:
        super().arm(n)
        exported = self._armed
        self._armed = [self._broker.import_sync_file(fence) for fence in exported]
        for fence in exported:
            fence.close()
        return [fence.fileno() for fence in self._armed]


class _Merged(_Fences):
    """What the waiter has is merged of a point of each of many timelines; all but the last have signalled."""

    def __init__(self, broker: fb.Broker, members: int) -> None:
        super().__init__(broker)
        self._others = [broker.create_timeline() for _ in range(members - 1)]
        self.batch = min(BATCH, max(4, 1000 // members))

    def arm(self, n: int) -> list[int]:
        seqnos = range(self._seqno + 1, self._seqno + 1 + n)
        exported = [timeline.export_many(seqnos) for timeline in (*self._others, self._timeline)]
        self._armed = [self._broker.merge(members) for members in zip(*exported, strict=True)]
        for fences in exported:
            for fence in fences:
                fence.close()
        return [fence.fileno() for fence in self._armed]

    def prepare(self, index: int) -> None:  # noqa: ARG002 - in order
        for timeline in self._others:
            timeline.advance(self._seqno + 1)


def take_operations(timeline: Timeline, first: int, n: int, batch: int) -> Samples:
    """Export, advance and close `batch` points from `first` on, `n` times."""
    samples: Samples = array("Q")
    for seqno in range(first, first + n * batch, batch):
        last = seqno + batch - 1
        started = monotonic_ns()
        if batch == 1:
            fence = timeline.export(seqno)
            timeline.advance(seqno)
            fence.close()
        else:
            fences = timeline.export_many(range(seqno, last + 1))
            timeline.advance(last)
            for fence in fences:
                fence.close()
        samples.append(monotonic_ns() - started)
    return samples


def _start_broker(group: Group) -> Broker:
    broker = group.at_end.enter_context(running_broker())
    for pid in family(broker.pid):
        group.adopt(pid)
    return broker


def why_no_ring() -> str | None:
    """What is missing for it."""
    return None if importlib.util.find_spec("fencebroker.ring") else "this version has no signal ring"


def _start_wakes(group: Group, make: Callable[[fb.Broker], Signaller], wait: Callable[[socket.socket], None] = wait_for_wakes) -> None:
    """Start a producer, fencebrokerd and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait, sockets=[theirs])
    broker = _start_broker(group)
    group.start_producer(_produce_wakes, broker.path, make, [waiter, *family(broker.pid)], sockets=[ours])


def start_broker_wakes(group: Group) -> None:
    """Start one whose broker signals."""
    _start_wakes(group, _Shared)


def start_ring_wakes(group: Group) -> None:
    """Start one whose producer is the timeline's exclusive owner."""
    _start_wakes(group, _Fences)


def start_imported_wakes(group: Group) -> None:
    """Start one whose waiter has a private descriptor."""
    _start_wakes(group, _Imported)


def start_merged_wakes(members: int, group: Group) -> None:
    """Start one whose waiter has a merged fence."""
    _start_wakes(group, functools.partial(_Merged, members=members))


def start_aio_broker_wakes(group: Group) -> None:
    """Start one with a waiter in an event loop, whose broker signals."""
    _start_wakes(group, _Shared, wait_for_aio_fences)


def start_aio_ring_wakes(group: Group) -> None:
    """Start one with a waiter in an event loop, whose producer is the timeline's exclusive owner."""
    _start_wakes(group, _Fences, wait_for_aio_fences)


def start_broker_operations(group: Group) -> None:
    """Start a client and fencebrokerd: export, advance and close one at a time."""
    group.start_producer(_produce_operations, _start_broker(group).path, 1)


def start_broker_batches(group: Group) -> None:
    """Start a client and fencebrokerd: the same in batches."""
    group.start_producer(_produce_operations, _start_broker(group).path, BATCH)


def start_imports(group: Group) -> None:
    """Start a client and fencebrokerd: import an active fence, and close the result."""
    group.start_producer(_produce_imports, _start_broker(group).path)


def _produce_imports(driver: Connection, path: Path) -> None:
    with fb.connect(path, autostart=False) as broker, broker.create_timeline() as timeline, timeline.export() as fence:

        def take(n: int) -> Samples:
            samples: Samples = array("Q")
            for _ in range(n):
                started = monotonic_ns()
                broker.import_sync_file(fence).close()
                samples.append(monotonic_ns() - started)
            return samples

        serve(driver, take)


def _produce_wakes(driver: Connection, path: Path, make: Callable[[fb.Broker], Signaller], pids: list[int], waiter: socket.socket) -> None:
    sleepers = Sleepers(pids)
    broker = fb.connect(path, autostart=False)
    signaller = make(broker)
    serve(driver, lambda n: take_wakes(n, signaller, waiter, sleepers))
    os._exit(0)  # whose timelines end with it


def _produce_operations(driver: Connection, path: Path, batch: int) -> None:
    seqno = 1

    def take(n: int) -> Samples:
        nonlocal seqno
        first, seqno = seqno, seqno + n * batch
        return take_operations(timeline, first, n, batch)

    with fb.connect(path, autostart=False) as broker, broker.create_timeline("benchmark") as timeline:
        serve(driver, take)
