"""One signal, many waiters: the time until the last one is awake.

The waiters are forked, share what they wait for as that peer's users would, and write down when they woke.  The signal comes when every one
sleeps.  Nobody is placed: the scheduler has all cores.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import select
import tempfile
import time
from contextlib import ExitStack
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import fencebroker as fb
from benchmarks.broker import running_broker, why_no_ring
from benchmarks.farm import Farm, Numbers
from benchmarks.others import redis_client, running_redis, subscribe, why_no_redis, why_no_zeromq
from benchmarks.peers import nothing
from benchmarks.processes import TIMEOUT, BenchmarkError, Sleepers, pair

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAN_OUT", "measure_fan_out"]


class _Way:
    """How one peer tells many, for a fixed number of rounds."""

    def __init__(self, rounds: int, stack: ExitStack) -> None:
        """Make what is shared, before anybody is forked."""

    def waiter(self) -> Callable[[int], object]:
        """In a waiter: return the call that sleeps until a round's signal."""
        raise NotImplementedError

    def settle(self, waiters: int) -> None:
        """In the producer, when all are forked."""

    def signal(self, number: int) -> None:
        """Signal a round."""
        raise NotImplementedError


def _poll(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(TIMEOUT * 1000):
        raise BenchmarkError(f"descriptor {fd} was not signalled within {TIMEOUT:.0f} s")


class _Eventfd(_Way):
    def __init__(self, rounds: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        self._fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(rounds)]

    def waiter(self) -> Callable[[int], object]:
        return lambda number: _poll(self._fds[number])

    def signal(self, number: int) -> None:
        os.eventfd_write(self._fds[number], 1)


class _Relay(_Eventfd):
    def __init__(self, rounds: int, stack: ExitStack) -> None:
        super().__init__(rounds, stack)
        self._sock, self._theirs = (stack.enter_context(end) for end in pair())
        stack.enter_context(Farm()).fork(self._relay)

    def _relay(self) -> None:
        self._sock.close()
        while packet := self._theirs.recv(8):
            os.eventfd_write(self._fds[int.from_bytes(packet, "little")], 1)

    def signal(self, number: int) -> None:
        self._sock.send(number.to_bytes(8, "little"))


class _Events(_Way):
    def __init__(self, rounds: int, stack: ExitStack) -> None:
        self._events: list[Any] = [self._maker(stack).Event() for _ in range(rounds)]

    def _maker(self, stack: ExitStack) -> Any:  # noqa: ARG002 - a manager ends with it
        return multiprocessing.get_context("fork")

    def waiter(self) -> Callable[[int], object]:
        return lambda number: self._events[number].wait(TIMEOUT)

    def signal(self, number: int) -> None:
        self._events[number].set()


class _ManagersEvents(_Events):
    _manager: Any = None

    def _maker(self, stack: ExitStack) -> Any:
        if self._manager is None:
            self._manager = stack.enter_context(multiprocessing.get_context("fork").Manager())
        return self._manager


class _ZeroMQ(_Way):
    def __init__(self, rounds: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        importlib.import_module("zmq")  # once, before the fork
        self._stack = stack
        self._address = f"ipc://{stack.enter_context(tempfile.TemporaryDirectory(prefix='fencebroker-bench-'))}/zmq"
        self._pub: Any = None

    def waiter(self) -> Callable[[int], object]:
        import zmq

        sub: Any = zmq.Context().socket(zmq.SUB)
        sub.setsockopt(zmq.SUBSCRIBE, b"")
        sub.connect(self._address)
        return lambda _: sub.recv()

    def settle(self, waiters: int) -> None:
        import zmq

        context = zmq.Context()
        self._stack.callback(context.destroy, 0)
        self._pub = context.socket(zmq.XPUB)
        self._pub.setsockopt(zmq.XPUB_VERBOSE, 1)  # a message for each that subscribes
        self._pub.bind(self._address)
        for _ in range(waiters):
            self._pub.recv()

    def signal(self, number: int) -> None:  # noqa: ARG002 - in order
        self._pub.send(b"1")


class _Redis(_Way):
    def __init__(self, rounds: int, stack: ExitStack) -> None:  # noqa: ARG002 - one signature
        importlib.import_module("redis")  # once, before the fork
        self._path, _ = stack.enter_context(running_redis())
        self._client: Any = None

    def waiter(self) -> Callable[[int], object]:
        wait = subscribe(self._path)
        return lambda _: wait()

    def settle(self, waiters: int) -> None:  # noqa: ARG002 - one signature
        self._client = redis_client(self._path)

    def signal(self, number: int) -> None:  # noqa: ARG002 - in order
        self._client.publish("fence", b"1")


class _Ring(_Way):
    def __init__(self, rounds: int, stack: ExitStack) -> None:
        path = stack.enter_context(running_broker()).path
        self._broker = stack.enter_context(fb.connect(path, autostart=False))
        self._timeline = stack.enter_context(self._broker.create_timeline())
        self._fences = self._timeline.export_many(range(1, rounds + 1))
        for fence in self._fences:
            stack.enter_context(fence)

    def waiter(self) -> Callable[[int], object]:
        return lambda number: _poll(self._fences[number].fileno())

    def signal(self, number: int) -> None:
        self._timeline.advance(number + 1)


class _Broker(_Ring):
    def __init__(self, rounds: int, stack: ExitStack) -> None:
        super().__init__(rounds, stack)
        stack.enter_context(self._timeline.share())


#: title -> the way, why it may be missing.
FAN_OUT: dict[str, tuple[type[_Way], Callable[[], str | None]]] = {
    "raw eventfd": (_Eventfd, nothing),
    "bare Python relay": (_Relay, nothing),
    "multiprocessing.Event": (_Events, nothing),
    "multiprocessing.Manager().Event": (_ManagersEvents, nothing),
    "ZeroMQ PUB to SUB": (_ZeroMQ, why_no_zeromq),
    "Redis publish to subscribe": (_Redis, why_no_redis),
    "fencebrokerd, through the broker": (_Broker, nothing),
    "fencebrokerd, through the ring": (_Ring, why_no_ring),
}


def measure_fan_out(title: str, waiters: int, rounds: int) -> list[float]:
    """Return for each round the microseconds until the last of ``waiters`` was awake; the first two rounds are a warm-up."""
    rounds += 2
    ready, stamps = Numbers(waiters), Numbers(waiters * rounds)
    with ExitStack() as stack:
        way = FAN_OUT[title][0](rounds, stack)
        farm = stack.enter_context(Farm())
        for index in range(waiters):
            farm.fork(_be_a_waiter, way, index, waiters, rounds, ready, stamps)
        way.settle(waiters)
        sleepers = Sleepers(farm.pids)
        times = []
        for number in range(rounds):
            _until(lambda number=number: min(ready.read(0, waiters)) > number, farm)  # type: ignore[misc]  # bound at once
            sleepers.wait()
            started = monotonic_ns()
            way.signal(number)
            first = number * waiters
            _until(lambda first=first: min(stamps.read(first, first + waiters)) > 0, farm)  # type: ignore[misc]
            times.append((max(stamps.read(first, first + waiters)) - started) / 1e3)
        farm.join()
    return times[2:]


def _be_a_waiter(way: _Way, index: int, waiters: int, rounds: int, ready: Numbers, stamps: Numbers) -> None:
    wait = way.waiter()
    for number in range(rounds):
        ready[index] = number + 1
        wait(number)
        stamps[number * waiters + index] = monotonic_ns()
    os._exit(0)  # with all that it has


def _until(happened: Callable[[], bool], farm: Farm) -> None:
    """Look now and then, so that the cores are left to those who are measured."""
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        if time.monotonic() > deadline:
            farm.check()
            raise BenchmarkError(f"the waiters of a fan-out were not there within {TIMEOUT:.0f} s")
        time.sleep(0.001)
