"""The processes of one peer, and the conversation that paces them.

Every peer runs in processes of its own, started with exec, so that no peer inherits another one's memory,
garbage collector or descriptors. The driver only says "take n samples" and sleeps meanwhile. The *producer*
takes the samples; the others (waiter, relay, broker) serve it and leave when its sockets close.

A wake is only worth measuring if the waiter really slept. The producer therefore signals when the kernel says
that every other process of the peer sleeps: state S in ``/proc/PID/stat``. A process that was woken is no longer
in state S when the call that woke it returns, so a stale S cannot be read.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from array import array
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.context import SpawnProcess
    from types import TracebackType

__all__ = ["SPAWN", "TIMEOUT", "BenchmarkError", "Group", "Samples", "Sleepers", "family", "pair", "serve"]

#: Seconds after which a wait that should take microseconds is a failure, not noise.
TIMEOUT = 20.0

#: exec, not fork: the processes of a peer are unrelated, as the users' are.
SPAWN = multiprocessing.get_context("spawn")

#: Durations in nanoseconds, one per sample.
Samples: TypeAlias = "array[int]"


class BenchmarkError(Exception):
    """A peer broke: a process died, hung, or answered nonsense."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a connected pair of packet sockets.

    They block without a timeout of their own, because Python's costs a system call more per packet and the bare
    peers must stay bare. A process that hangs is found by its neighbours' timeouts and by `Group.take`.
    """
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def family(pid: int) -> list[int]:
    """Return a process and its children: a broker may be more than one."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_bytes().rpartition(b") ")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
    return [pid, *children]


class Sleepers:
    """Tells when a set of processes is asleep."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._stats = {pid: os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC) for pid in pids}

    def wait(self) -> None:
        """Return once every process sleeps; they do within microseconds, or something is broken."""
        for pid, stat in self._stats.items():
            deadline = 0.0
            # The state follows the command name, which may hold any byte but ends at the last bracket.
            while os.pread(stat, 512, 0).rpartition(b") ")[2][:1] != b"S":
                now = time.monotonic()
                deadline = deadline or now + TIMEOUT
                if now > deadline:
                    raise BenchmarkError(f"process {pid} did not go to sleep within {TIMEOUT:.0f} s")


def serve(driver: Connection, take: Callable[[int], Samples]) -> None:
    """Run a producer: answer each "n samples" of the driver until it closes its end."""
    while True:
        try:
            n = driver.recv()
        except EOFError:
            return
        driver.send_bytes(take(n).tobytes())


class Group:
    """The processes of one peer, as the driver holds them.

    ``start`` hands sockets to a new process and closes the driver's copies, so that the death of any process is
    seen by its neighbours as end-of-file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: What must outlive the start of the processes: a semaphore's name goes with its first owner.
        self.kept: list[object] = []
        #: What is undone once the processes have left.
        self.at_end = ExitStack()
        self._processes: list[SpawnProcess] = []
        self._producer = 0
        self._others: list[int] = []
        self._driver: Connection | None = None

    def start(self, role: Callable[..., None], *args: Any, sockets: Sequence[socket.socket] = ()) -> int:
        """Start a helper process that runs ``role(*args, *sockets)``; return its pid."""
        pid = self._start(role, *args, sockets=sockets)
        self._others.append(pid)
        return pid

    def start_producer(self, role: Callable[..., None], *args: Any, sockets: Sequence[socket.socket] = ()) -> None:
        """Start the process that takes the samples; it gets the driver's connection as its first argument."""
        self._driver, theirs = SPAWN.Pipe()
        with theirs:
            self._producer = self._start(role, theirs, *args, sockets=sockets)

    def adopt(self, pid: int) -> None:
        """Place a process of another kind with the helpers; whoever started it ends it."""
        self._others.append(pid)

    def place(self, producer: int, others: int) -> None:
        """Put the producer on one CPU and everybody it wakes on another (or on the same)."""
        for pid, cpu in [(self._producer, producer), *((pid, others) for pid in self._others)]:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {cpu})

    def take(self, n: int) -> Samples:
        """Let the producer take `n` samples."""
        assert self._driver is not None, "start_producer comes first"
        samples: Samples = array("Q")
        try:
            self._driver.send(n)
            if not self._driver.poll(3 * TIMEOUT):
                raise BenchmarkError(f"{self.name}: no result within {3 * TIMEOUT:.0f} s")
            samples.frombytes(self._driver.recv_bytes())
        except (EOFError, OSError) as err:
            raise BenchmarkError(f"{self.name}: its producer died (its traceback is above)") from err
        return samples

    def close(self) -> None:
        """End every process: they leave at end-of-file, and are killed if they do not."""
        if self._driver is not None:
            self._driver.close()
        for process in self._processes:
            process.join(TIMEOUT)
            if process.is_alive():
                process.kill()
                process.join(TIMEOUT)
            process.close()
        self._processes.clear()
        self.at_end.close()

    def _start(self, role: Callable[..., None], *args: Any, sockets: Sequence[socket.socket]) -> int:
        process = SPAWN.Process(target=_run, args=(role, *args, *sockets), name=f"{self.name}: {role.__name__}", daemon=True)
        process.start()
        for sock in sockets:
            sock.close()
        self._processes.append(process)
        assert process.pid is not None  # started
        return process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _run(role: Callable[..., None], *args: Any) -> None:
    """Run a role and close its sockets; an interrupt of the terminal is the driver's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ExitStack() as stack:
        for arg in args:
            if isinstance(arg, (socket.socket, Connection)):
                stack.enter_context(arg)
        role(*args)
