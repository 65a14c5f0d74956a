"""The example pipeline's shape, three processes with frames in shared memory, with one means of synchronisation after the other.

Capture fills a frame, filter rewrites it into the next pool, encode sums it up.  A pool has four buffers: a frame is announced, filled and handed
on; a buffer is given back when it has been read.  What differs is only how "frame k is there" and "buffer k is free" travel.
With fences it is what the example does: each frame's out-fence and release fence is announced ahead and sent over the neighbours' socket.
"""

from __future__ import annotations

import importlib
import mmap
import multiprocessing
import os
import tempfile
import time
import zlib
from contextlib import ExitStack
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

import fencebroker as fb
from benchmarks.broker import running_broker
from benchmarks.farm import Farm, Numbers
from benchmarks.others import redis_client, running_redis, why_no_redis, why_no_zeromq
from benchmarks.peers import nothing
from benchmarks.processes import BenchmarkError, pair

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FRAMES", "measure_frames"]

BUFFERS = 4
FRAME_BYTES = 64 * 1024
_TABLE = bytes(reversed(range(256)))


class End(Protocol):
    """One end of a means of synchronisation."""

    def put(self, number: int) -> None:
        """Say that ``number`` is there."""

    def get(self, number: int) -> None:
        """Sleep until ``number`` is there; they come in order."""


class Means(Protocol):
    """A one-way channel of "number k is there", made before the processes are forked."""

    def __init__(self, frames: int, stack: ExitStack) -> None: ...

    def producer(self) -> End:
        """In the process that puts."""

    def consumer(self) -> End:
        """In the process that gets."""


class _Eventfd:
    """A counter: each put adds one, each get takes one."""

    def __init__(self, frames: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def producer(self) -> _Eventfd:
        return self

    consumer = producer

    def put(self, number: int) -> None:  # noqa: ARG002 - in order
        os.eventfd_write(self._fd, 1)

    def get(self, number: int) -> None:  # noqa: ARG002 - in order
        os.eventfd_read(self._fd)


class _Pipe(_Eventfd):
    """A byte for each."""

    def __init__(self, frames: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def put(self, number: int) -> None:  # noqa: ARG002 - in order
        os.write(self._writer, b"1")

    def get(self, number: int) -> None:  # noqa: ARG002 - in order
        os.read(self._reader, 1)


class _Events(_Eventfd):
    """An Event for each buffer, cleared by who waited for it."""

    def __init__(self, frames: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        maker = self._maker(stack)
        self._events: list[Any] = [maker.Event() for _ in range(BUFFERS)]

    def _maker(self, stack: ExitStack) -> Any:  # noqa: ARG002 - a manager ends with it
        return multiprocessing.get_context("fork")

    def put(self, number: int) -> None:
        self._events[number % BUFFERS].set()

    def get(self, number: int) -> None:
        event = self._events[number % BUFFERS]
        event.wait()
        event.clear()


class _ManagersEvents(_Events):
    def _maker(self, stack: ExitStack) -> Any:
        return stack.enter_context(multiprocessing.get_context("fork").Manager())


class _ZeroMQ:
    """A message for each."""

    def __init__(self, frames: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        importlib.import_module("zmq")  # once, before the fork
        self._address = f"ipc://{stack.enter_context(tempfile.TemporaryDirectory(prefix='fencebroker-bench-'))}/zmq"

    def _socket(self, kind: str) -> Any:
        import zmq

        return zmq.Context.instance().socket(getattr(zmq, kind))

    def producer(self) -> _ZeroMQ:
        self._sock = self._socket("PUSH")
        self._sock.bind(self._address)
        return self

    def consumer(self) -> _ZeroMQ:
        self._sock = self._socket("PULL")
        self._sock.connect(self._address)
        return self

    def put(self, number: int) -> None:  # noqa: ARG002 - in order
        self._sock.send(b"1")

    def get(self, number: int) -> None:  # noqa: ARG002 - in order
        self._sock.recv()


class _Redis:
    """An element of a list for each."""

    def __init__(self, frames: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        importlib.import_module("redis")  # once, before the fork
        self._path, _ = stack.enter_context(running_redis())

    def producer(self) -> _Redis:
        self._client = redis_client(self._path)
        return self

    consumer = producer

    def put(self, number: int) -> None:  # noqa: ARG002 - in order
        self._client.rpush("frames", b"1")

    def get(self, number: int) -> None:  # noqa: ARG002 - in order
        self._client.blpop("frames")


class _Fences:
    """A sync_file for each, announced up to ``BUFFERS`` ahead."""

    def __init__(self, frames: int, stack: ExitStack) -> None:
        self._frames = frames
        self._path = stack.enter_context(running_broker()).path
        self._ours, self._theirs = (stack.enter_context(end) for end in pair())
        self._announced = 0

    def producer(self) -> _Fences:
        self._theirs.close()
        self._broker = fb.connect(self._path, autostart=False)
        self._timeline = self._broker.create_timeline()
        self._announce(BUFFERS)
        return self

    def consumer(self) -> _Fences:
        self._ours.close()
        return self

    def _announce(self, upto: int) -> None:
        while self._announced < min(upto, self._frames):
            self._announced += 1
            with self._timeline.export(self._announced) as fence:
                fb.send_sync_file(self._ours, self._announced.to_bytes(8, "little"), fence)

    def put(self, number: int) -> None:
        self._timeline.advance(number + 1)
        self._announce(number + 1 + BUFFERS)

    def get(self, number: int) -> None:
        payload, fence = fb.recv_sync_file(self._theirs)
        with fence:
            if int.from_bytes(payload, "little") != number + 1:
                raise BenchmarkError("a frame was announced out of order")
            fence.wait()


#: title -> the means, why it may be missing.
FRAMES: dict[str, tuple[type[Means], Callable[[], str | None]]] = {
    "raw eventfd": (_Eventfd, nothing),
    "pipe": (_Pipe, nothing),
    "multiprocessing.Event": (_Events, nothing),
    "multiprocessing.Manager().Event": (_ManagersEvents, nothing),
    "ZeroMQ PUSH to PULL": (_ZeroMQ, why_no_zeromq),
    "Redis RPUSH to BLPOP": (_Redis, why_no_redis),
    "fencebroker": (_Fences, nothing),
}


def measure_frames(title: str, frames: int) -> float:
    """Return frames per second; BenchmarkError if one was torn."""
    means = FRAMES[title][0]
    with ExitStack() as stack:
        links = [(means(frames, stack), means(frames, stack)) for _ in range(2)]
        pools = [mmap.mmap(-1, BUFFERS * FRAME_BYTES) for _ in range(2)]
        times, torn = Numbers(2), Numbers(1)
        farm = stack.enter_context(Farm())
        farm.fork(_capture, links[0], pools[0], frames, times)
        farm.fork(_filter, links, pools, frames, times)
        farm.fork(_encode, links[1], pools[1], frames, times, torn)
        farm.join()
        if torn[0]:
            raise BenchmarkError(f"{title}: {torn[0]} of {frames} frames were torn")
        return frames / ((times[1] - times[0]) / 1e9)


def _place(number: int) -> slice:
    first = number % BUFFERS * FRAME_BYTES
    return slice(first, first + FRAME_BYTES)


def _stay(times: Numbers) -> None:
    """What a library has queued goes with the process that put it, so nobody leaves before the last frame has arrived."""
    while not times[1]:
        time.sleep(0.001)


def _capture(link: tuple[Means, Means], pool: mmap.mmap, frames: int, times: Numbers) -> None:
    there, free = link[0].producer(), link[1].consumer()
    times[0] = monotonic_ns()
    for number in range(frames):
        if number >= BUFFERS:
            free.get(number - BUFFERS)
        pool[_place(number)] = bytes([number % 251]) * FRAME_BYTES
        there.put(number)
    _stay(times)


def _filter(links: list[tuple[Means, Means]], pools: list[mmap.mmap], frames: int, times: Numbers) -> None:
    there_in, free_in = links[0][0].consumer(), links[0][1].producer()
    there_out, free_out = links[1][0].producer(), links[1][1].consumer()
    for number in range(frames):
        there_in.get(number)
        frame = pools[0][_place(number)].translate(_TABLE)
        free_in.put(number)
        if number >= BUFFERS:
            free_out.get(number - BUFFERS)
        pools[1][_place(number)] = frame
        there_out.put(number)
    _stay(times)


def _encode(link: tuple[Means, Means], pool: mmap.mmap, frames: int, times: Numbers, torn: Numbers) -> None:
    there, free = link[0].consumer(), link[1].producer()
    expected = [zlib.crc32(bytes([255 - value]) * FRAME_BYTES) for value in range(251)]
    for number in range(frames):
        there.get(number)
        torn[0] += zlib.crc32(pool[_place(number)]) != expected[number % 251]
        free.put(number)
    times[1] = monotonic_ns()
