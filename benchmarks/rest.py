"""What it costs to start, and to do nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple, Self

import fencebroker as fb
from benchmarks.broker import running_broker
from benchmarks.processes import family

__all__ = ["Idle", "IdleBroker", "measure_daemon_start", "measure_imports"]


def measure_imports(times: int) -> list[tuple[float, float]]:
    """Return for each time what a bare Python takes from start to end, and one that imports the library, in ms."""
    return [(_run("pass"), _run("import fencebroker")) for _ in range(times + 1)][1:]


def _run(code: str) -> float:
    started = monotonic_ns()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (monotonic_ns() - started) / 1e6


def measure_daemon_start(times: int) -> list[float]:
    """Return how long it takes from exec until clients can connect, in ms."""
    taken = []
    for _ in range(times + 1):
        started = monotonic_ns()
        with running_broker():
            taken.append((monotonic_ns() - started) / 1e6)
    return taken[1:]


class Idle(NamedTuple):
    """What a broker with a client that waits did, while nothing happened."""

    seconds: float
    processes: int
    wake_ups: int
    cpu_ms: float
    pss_mib: float


class IdleBroker:
    """A broker, a client with a timeline and an active fence, and nobody who does anything: watched while other things are measured."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._broker = stack.enter_context(running_broker())
            connection = stack.enter_context(fb.connect(self._broker.path, autostart=False))
            timeline = stack.enter_context(connection.create_timeline("idle"))
            stack.enter_context(timeline.export(1))
            connection.info(timeline.export(2).detach()).status  # noqa: B018 - so that everything has been done once
            time.sleep(3.5)  # what it does after an answer is over, and its keeper's one look that follows
            self._first = self._look()
            self._since = time.monotonic()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def result(self, seconds: float) -> Idle:
        """Return what has happened, after ``seconds`` at least."""
        time.sleep(max(0.0, self._since + seconds - time.monotonic()))
        wake_ups, cpu = (b - a for a, b in zip(self._first, self._look(), strict=True))
        pids = family(self._broker.pid)
        return Idle(time.monotonic() - self._since, len(pids), int(wake_ups), cpu, sum(map(_pss, pids)) / 2**20)

    def _look(self) -> tuple[float, float]:
        wake_ups, ticks = 0, 0
        for pid in family(self._broker.pid):
            for status in Path(f"/proc/{pid}/task").glob("*/status"):
                with contextlib.suppress(FileNotFoundError):
                    wake_ups += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]))
        return wake_ups, ticks * 1000 / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    """The proportional share of memory, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
