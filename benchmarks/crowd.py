"""How much one broker does: with many client processes at once, and with many active fences; what a fence costs in memory."""

from __future__ import annotations

import os
import resource
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import NamedTuple

import fencebroker as fb
from benchmarks.broker import Broker, running_broker, take_operations
from benchmarks.farm import Farm, Numbers
from benchmarks.processes import family

__all__ = ["Growth", "measure_clients", "measure_growth"]

#: Points of one packet, and so what is exported at once.
_PAGE = 253


class Growth(NamedTuple):
    """What was measured with so many active fences; times in microseconds, memory in bytes per fence since the first row."""

    active: int
    operation: float  #: export + advance + close, p50
    question: float  #: Broker.info, p50
    broker_memory: float | None
    client_memory: float | None


def measure_clients(clients: int, seconds: float) -> float:
    """Return how many times a second ``clients`` processes export, advance and close, all together."""
    with ExitStack() as stack:
        path = stack.enter_context(running_broker()).path
        farm = stack.enter_context(Farm())
        ready, done = Numbers(clients + 1), Numbers(clients)
        for index in range(clients):
            farm.fork(_be_a_client, path, index, clients, ready, done, seconds)
        while min(ready.read(0, clients)) == 0:
            farm.check()
            time.sleep(0.001)
        ready[clients] = monotonic_ns() + 5_000_000
        farm.join()
        return sum(done.read(0, clients)) / seconds


def _be_a_client(path: Path, index: int, clients: int, ready: Numbers, done: Numbers, seconds: float) -> None:
    with fb.connect(path, autostart=False) as broker, broker.create_timeline() as timeline:
        take_operations(timeline, 1, 20, 1)
        ready[index] = 1
        while not ready[clients]:
            time.sleep(0.001)
        started = ready[clients]
        while monotonic_ns() < started:
            pass
        end, n = started + int(seconds * 1e9), 0
        while monotonic_ns() < end:
            take_operations(timeline, 21 + n, 10, 1)
            n += 10
        done[index] = n


def measure_growth(sizes: tuple[int, ...], samples: int) -> list[Growth]:
    """Measure with each number of active fences, as far as the descriptor limit of this process and of the broker goes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        server = stack.enter_context(running_broker())
        broker = stack.enter_context(fb.connect(server.path, autostart=False))
        held, other = stack.enter_context(broker.create_timeline()), stack.enter_context(broker.create_timeline())
        made: list[Growth] = []
        first: tuple[int, int, int] | None = None
        n, seqno, page, fences = 0, 1, ExitStack(), list[fb.SyncFile]()
        for size in sizes:
            try:
                while n < size:
                    count = min(_PAGE, size - n)
                    fences = held.export_many(range(n + 1, n + 1 + count))
                    page = stack.enter_context(ExitStack())
                    for fence in fences:
                        page.enter_context(fence)
                    n += count
            except OSError:  # the limit, of this process or of the broker: the last page makes room for what is measured
                size = n = n - len(fences)
                page.close()
            operations = take_operations(other, seqno, samples, 1)
            seqno += samples
            with other.export(seqno) as fence:
                questions = []
                for _ in range(samples):
                    started = monotonic_ns()
                    broker.info(fence)
                    questions.append(monotonic_ns() - started)
            memory = _resident(server), _resident(Broker(server.path, os.getpid())), n
            each: tuple[float | None, float | None] = (None, None)
            if first is None:
                first = memory
            elif n > first[2]:
                each = (memory[0] - first[0]) / (n - first[2]), (memory[1] - first[1]) / (n - first[2])
            made.append(Growth(n, median(operations) / 1e3, median(questions) / 1e3, *each))
            if size not in sizes:
                break
    return made


def _resident(broker: Broker) -> int:
    """The resident memory of a process and its children, in bytes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family(broker.pid))
    return pages * os.sysconf("SC_PAGESIZE")
