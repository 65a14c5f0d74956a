"""How long fencectl takes to look at many processes: a scan of /proc by itself, and whole answers as a person gets them."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fencebroker as fb
from benchmarks.processes import BenchmarkError
from fencebroker.cli.processes import scan
from fencebroker.fds import OwnedFd

__all__ = ["measure_scan"]

PROCESSES = 500
#: Each of them holds so many fences, and sleeps in poll for one; the descriptors of an ordinary process come on top.
FENCES = 4


def measure_scan(n_processes: int = PROCESSES, rounds: int = 9) -> str:
    """Start ``n_processes`` that hold fences and wait, look at them, and return the figures as a table."""
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(_broker())
        broker = stack.enter_context(fb.connect(env["FENCEBROKER_SOCKET"]))
        timeline = stack.enter_context(broker.create_timeline("benchmark"))
        fences = [stack.enter_context(timeline.export(seqno)) for seqno in range(1, FENCES + 1)]
        pids = [_sleeper([fence.fileno() for fence in fences]) for _ in range(n_processes)]
        try:
            _wait_asleep(pids[-1])
            figures = [
                ("scan of every process, processor time", _times(lambda: scan([]), rounds, time.process_time)),
                ("scan of every process", _times(lambda: scan([]), rounds)),
                ("fencectl why PID, from the shell", _times(lambda: _run(env, "why", f"/proc/{pids[0]}"), rounds)),
                ("fencectl holders benchmark, from the shell", _times(lambda: _run(env, "holders", "benchmark"), rounds)),
                ("fencectl --version, from the shell", _times(lambda: _run(env, "--version"), rounds)),
            ]
            seen = scan([])
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
    n_descriptors = sum(len(holder.eventfds) for holder in seen.holders.values())
    head = f"{seen.n_seen} processes, {n_descriptors} descriptors of eventfds among them; {rounds} rounds; milliseconds."
    rows = [f"| {what:<43} | {min(times):>7.0f} | {statistics.median(times):>7.0f} | {max(times):>7.0f} |" for what, times in figures]
    return "\n".join([head, "", f"| {'':<43} | fastest |  median | slowest |", f"|{'-' * 45}|--------:|--------:|--------:|", *rows])


@contextlib.contextmanager
def _broker() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="fb-") as folder:
        path = f"{folder}/broker"
        ready, told = (OwnedFd(fd) for fd in os.pipe2(os.O_CLOEXEC))
        with ready:
            with told:
                argv = [sys.executable, "-m", "fencebrokerd", "--listen", path, "--ready-fd", str(told.fileno())]
                broker = subprocess.Popen(argv, stderr=subprocess.DEVNULL, pass_fds=[told.fileno()])
            if os.read(ready.fileno(), 1) != b"\n":
                raise BenchmarkError("the broker did not start")
        try:
            yield {**os.environ, "FENCEBROKER_SOCKET": path}
        finally:
            broker.terminate()
            broker.wait()


def _sleeper(fds: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        import select

        poll = select.poll()
        poll.register(fds[0], select.POLLIN)
        poll.poll()
    finally:
        os._exit(0)


def _wait_asleep(pid: int) -> None:
    while "poll" not in Path(f"/proc/{pid}/wchan").read_text():
        os.sched_yield()


def _times(function: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    times = []
    for _ in range(rounds):
        start = clock()
        function()
        times.append((clock() - start) * 1000)
    return times


def _run(env: dict[str, str], *arguments: str) -> None:
    command = [str(Path(sys.executable).parent / "fencectl"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"fencectl {' '.join(arguments)}: {done.stderr.strip()}")
