"""Signal to wake: one waiter and one way of taking samples, the same for every peer that has descriptors.

A sample starts with the clock read in the producer, just before the call that signals, and ends with the clock
read in the waiter, just after ``poll()`` returned. Both read CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import os
import select
from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING, Protocol

from benchmarks.processes import TIMEOUT, BenchmarkError, Samples, Sleepers
from fencebroker.fds import recv_packet, send_packet

if TYPE_CHECKING:
    import socket

__all__ = ["BATCH", "READY", "Signaller", "take_wakes", "wait_for_wakes"]

#: Descriptors that travel to the waiter in one packet, and fences in one batch.
BATCH = 64

#: What a waiter says before it goes to sleep, as long as a time stamp.
READY = b"ready   "


class Signaller(Protocol):
    """What a peer must be able to do."""

    def arm(self, n: int) -> list[int]:
        """Return `n` descriptors, none of them readable; they stay the signaller's."""

    def signal(self, index: int) -> None:
        """Make descriptor `index` of the last `arm` readable."""

    def disarm(self) -> None:
        """Let go of the last `arm`; every descriptor of it was signalled."""


def take_wakes(n: int, signaller: Signaller, waiter: socket.socket, sleepers: Sleepers) -> Samples:
    """Signal `n` descriptors one after the other, each when everybody else sleeps; return the times to wake."""
    samples: Samples = array("Q")
    while len(samples) < n:
        count = min(BATCH, n - len(samples))
        send_packet(waiter, b"\0", signaller.arm(count))
        _answer(waiter)
        for index in range(count):
            sleepers.wait()
            signalled = monotonic_ns()
            signaller.signal(index)
            samples.append(int.from_bytes(_answer(waiter), "little") - signalled)
        signaller.disarm()
    return samples


def wait_for_wakes(producer: socket.socket) -> None:
    """Be the waiter: needs a socket to get descriptors from, and ``poll()``."""
    timeout_ms = int(TIMEOUT * 1000)
    while True:
        packet, fds = recv_packet(producer)
        if not packet:
            return
        producer.send(READY)
        for fd in fds:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if not poller.poll(timeout_ms):
                raise BenchmarkError(f"descriptor {fd.fileno()} was not signalled within {TIMEOUT:.0f} s")
            woken = monotonic_ns()
            os.read(fd.fileno(), 8)  # a reused eventfd needs it; a fence stays readable
            producer.send(woken.to_bytes(8, "little"))
        for fd in fds:
            fd.close()


def _answer(waiter: socket.socket) -> bytes:
    packet = waiter.recv(8)
    if len(packet) != 8:
        raise BenchmarkError("the waiter died (its traceback is above)")
    return packet
