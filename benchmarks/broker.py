"""fencebrokerd itself, through the library that everybody else uses."""

from __future__ import annotations

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
from benchmarks.processes import TIMEOUT, BenchmarkError, Group, Samples, Sleepers, pair, serve
from benchmarks.waiting import BATCH, take_wakes, wait_for_wakes

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from fencebroker import SyncFile, Timeline

__all__ = ["Broker", "running_broker", "start_broker_batches", "start_broker_operations", "start_broker_wakes", "take_operations"]


class Broker:
    """A running fencebrokerd: where it listens, and which process it is."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self.pid = pid


@contextmanager
def running_broker(through: Sequence[str] = ()) -> Iterator[Broker]:
    """Run a fencebrokerd of one's own until the block ends; `through` are Python's options before ``-m fencebrokerd``."""
    with tempfile.TemporaryDirectory(prefix="fencebroker-bench-") as directory:
        path, log = Path(directory, "broker"), Path(directory, "log")
        ready, theirs = os.pipe()
        try:
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, *through, "-m", "fencebrokerd", "--listen", path, "--ready-fd", str(theirs)],
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


class _Fences:
    """Signals by the library's ``advance``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
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
    group.adopt(broker.pid)
    return broker


def start_broker_wakes(group: Group) -> None:
    """Start a producer, fencebrokerd and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait_for_wakes, sockets=[theirs])
    broker = _start_broker(group)
    group.start_producer(_produce_wakes, broker.path, [waiter, broker.pid], sockets=[ours])


def start_broker_operations(group: Group) -> None:
    """Start a client and fencebrokerd: export, advance and close one at a time."""
    group.start_producer(_produce_operations, _start_broker(group).path, 1)


def start_broker_batches(group: Group) -> None:
    """Start a client and fencebrokerd: the same in batches."""
    group.start_producer(_produce_operations, _start_broker(group).path, BATCH)


def _produce_wakes(driver: Connection, path: Path, pids: list[int], waiter: socket.socket) -> None:
    sleepers = Sleepers(pids)
    with fb.connect(path, autostart=False) as broker, broker.create_timeline("benchmark") as timeline:
        signaller = _Fences(timeline)
        serve(driver, lambda n: take_wakes(n, signaller, waiter, sleepers))


def _produce_operations(driver: Connection, path: Path, batch: int) -> None:
    seqno = 1

    def take(n: int) -> Samples:
        nonlocal seqno
        first, seqno = seqno, seqno + n * batch
        return take_operations(timeline, first, n, batch)

    with fb.connect(path, autostart=False) as broker, broker.create_timeline("benchmark") as timeline:
        serve(driver, take)
