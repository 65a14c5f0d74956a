"""Signal to wake: one waiter and one way of taking samples, the same for every peer that has descriptors.

A sample starts with the clock read in the producer, just before the call that signals, and ends with the clock
read in the waiter, just after ``poll()`` returned. Both read CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import asyncio
import os
import select
from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING

import fencebroker as fb
from benchmarks.processes import TIMEOUT, BenchmarkError, Samples, Sleepers
from fencebroker import aio
from fencebroker.fds import OwnedFd, recv_packet, send_packet

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

__all__ = ["BATCH", "READY", "Signaller", "take_wakes", "wait_for_aio_fences", "wait_for_aio_wakes", "wait_for_wakes"]

#: Descriptors that travel to the waiter in one packet, and fences in one batch.
BATCH = 64

#: What a waiter says before it goes to sleep, as long as a time stamp.
READY = b"ready   "


class Signaller:
    """What a peer does; ``arm`` and ``signal`` are its own.  ``batch``: so many are armed at once."""

    batch = BATCH

    def arm(self, n: int) -> list[int]:
        """Return `n` descriptors, none of them readable; they stay the signaller's."""
        raise NotImplementedError

    def prepare(self, index: int) -> None:
        """Do what has to be done before descriptor `index` can be signalled, outside the measured time."""

    def signal(self, index: int) -> None:
        """Make descriptor `index` of the last `arm` readable."""
        raise NotImplementedError

    def disarm(self) -> None:
        """Let go of the last `arm`; every descriptor of it was signalled."""


def take_wakes(n: int, signaller: Signaller, waiter: socket.socket, sleepers: Sleepers) -> Samples:
    """Signal `n` descriptors one after the other, each when everybody else sleeps; return the times to wake."""
    samples: Samples = array("Q")
    while len(samples) < n:
        count = min(signaller.batch, n - len(samples))
        send_packet(waiter, b"\0", signaller.arm(count))
        _answer(waiter)
        for index in range(count):
            signaller.prepare(index)
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


def wait_for_aio_wakes(producer: socket.socket) -> None:
    """Be a waiter in an event loop, with nothing but ``loop.add_reader``."""
    asyncio.run(_wait_in_a_loop(producer, _readable))


def wait_for_aio_fences(producer: socket.socket) -> None:
    """Be a waiter in an event loop, with the library."""
    asyncio.run(_wait_in_a_loop(producer, _fence_signalled))


async def _readable(fd: OwnedFd) -> int:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(fd.fileno(), future.set_result, None)
    await future
    woken = monotonic_ns()
    loop.remove_reader(fd.fileno())
    os.read(fd.fileno(), 8)
    return woken


async def _fence_signalled(fd: OwnedFd) -> int:
    with fb.SyncFile.from_fd(fd.detach()) as fence:
        await aio.wait(fence)
        return monotonic_ns()


async def _wait_in_a_loop(producer: socket.socket, wait: Callable[[OwnedFd], Awaitable[int]]) -> None:
    while True:
        packet, fds = recv_packet(producer)
        if not packet:
            return
        producer.send(READY)
        for fd in fds:
            woken = await wait(fd)
            producer.send(woken.to_bytes(8, "little"))
        for fd in fds:
            fd.close()


def _answer(waiter: socket.socket) -> bytes:
    packet = waiter.recv(8)
    if len(packet) != 8:
        raise BenchmarkError("the waiter died (its traceback is above)")
    return packet
