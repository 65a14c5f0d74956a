"""Signal to wake for what has no descriptor of its own to poll: one side calls something that signals, the other sleeps in a call."""

from __future__ import annotations

from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING

from benchmarks.processes import BenchmarkError, Samples, Sleepers, serve
from benchmarks.waiting import READY

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["produce_calls", "wait_in_calls"]


def produce_calls(
    driver: Connection,
    make_signal: Callable[..., Callable[[], object]],
    arguments: tuple[object, ...],
    pids: list[int],
    waiter: socket.socket,
) -> None:
    """Be the producer: ``make_signal(*arguments)`` gives the call that signals."""
    sleepers, signal = Sleepers(pids), make_signal(*arguments)

    def take(n: int) -> Samples:
        samples: Samples = array("Q")
        waiter.send(n.to_bytes(8, "little"))
        for _ in range(n):
            if waiter.recv(8) != READY:
                raise BenchmarkError("the waiter died (its traceback is above)")
            sleepers.wait()
            signalled = monotonic_ns()
            signal()
            samples.append(int.from_bytes(waiter.recv(8), "little") - signalled)
        return samples

    serve(driver, take)


def wait_in_calls(make_wait: Callable[..., Callable[[], object]], arguments: tuple[object, ...], producer: socket.socket) -> None:
    """Be the waiter: ``make_wait(*arguments)`` gives the call that sleeps until the signal; what it leaves to do comes after the clock."""
    wait = make_wait(*arguments)
    while packet := producer.recv(8):
        for _ in range(int.from_bytes(packet, "little")):
            producer.send(READY)
            after = wait()
            woken = monotonic_ns()
            if callable(after):
                after()
            producer.send(woken.to_bytes(8, "little"))
