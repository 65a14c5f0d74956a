"""Many processes of one kind, forked from one that has everything loaded: starting hundreds with exec would take longer than measuring them."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Self, TypeVar

from benchmarks.processes import SPAWN, TIMEOUT, BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType

__all__ = ["Farm", "Numbers", "run_apart"]

T = TypeVar("T")


class Numbers:
    """So many u64 that forked processes share, all 0 at first."""

    def __init__(self, n: int) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * n)).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._numbers[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._numbers[index] = value

    def read(self, first: int, last: int) -> list[int]:
        """The numbers from ``first`` up to ``last``, without it."""
        return self._numbers[first:last].tolist()


class Farm:
    """Owns forked processes; leaving it kills those that are left."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def fork(self, work: Callable[..., object], *arguments: Any) -> int:
        """Run ``work(*arguments)`` in a process of its own; one that fails says why and ends with 1."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(*arguments)
                code = 0
            except BaseException:  # noqa: BLE001 - nothing of the parent's may run here
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        self.pids.append(pid)
        return pid

    def check(self) -> None:
        """BenchmarkError if one has failed."""
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                if status:
                    raise BenchmarkError("a process failed (its traceback is above)")

    def join(self) -> None:
        """Wait for all."""
        while self.pids:
            _, status = os.waitpid(self.pids.pop(), 0)
            if status:
                raise BenchmarkError("a process failed (its traceback is above)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        while self.pids:
            os.waitpid(self.pids.pop(), 0)


def run_apart(function: Callable[..., T], *arguments: Any, timeout: float = 6 * TIMEOUT) -> T:
    """Run ``function(*arguments)`` in a process of its own, started with exec, and return what it returns."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_report, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    with ours:
        try:
            if not ours.poll(timeout):
                raise BenchmarkError(f"{function.__name__}: no result within {timeout:.0f} s")
            result: T = ours.recv()
        except EOFError:
            raise BenchmarkError(f"{function.__name__} failed (its traceback is above)") from None
        finally:
            process.join(TIMEOUT)
            if process.is_alive():
                process.kill()
                process.join()
    return result


def _report(driver: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    driver.send(function(*arguments))
