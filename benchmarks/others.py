"""The peers that somebody would use instead: each is real, and runs as its own documentation says.

pipe                 a byte through a pipe
multiprocessing      ``Event`` (semaphores in shared memory) and ``Manager().Event`` (a server process)
ZeroMQ               PUSH to PULL over ipc://, for fan-out PUB to SUB
Redis                a redis-server of our own on a Unix socket: RPUSH to BLPOP, and publish to subscribe
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.calls import produce_calls, wait_in_calls
from benchmarks.processes import SPAWN, TIMEOUT, BenchmarkError, Group, Sleepers, pair, serve
from benchmarks.waiting import BATCH, Signaller, take_wakes, wait_for_wakes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

__all__ = [
    "redis_client",
    "running_redis",
    "start_blpop",
    "start_event",
    "start_manager_event",
    "start_pipe",
    "start_pubsub",
    "start_zeromq",
    "subscribe",
    "why_no_redis",
    "why_no_zeromq",
]


class _Pipes(Signaller):
    """Signals by a byte into a pipe; the waiter reads it."""

    def __init__(self) -> None:
        self._pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(BATCH)]

    def arm(self, n: int) -> list[int]:
        return [reader for reader, _ in self._pipes[:n]]

    def signal(self, index: int) -> None:
        os.write(self._pipes[index][1], b"1")


def start_pipe(group: Group) -> None:
    """Start a producer and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait_for_wakes, sockets=[theirs])
    group.start_producer(_produce_pipe, [waiter], sockets=[ours])


def _produce_pipe(driver: Connection, pids: list[int], waiter: socket.socket) -> None:
    signaller, sleepers = _Pipes(), Sleepers(pids)
    serve(driver, lambda n: take_wakes(n, signaller, waiter, sleepers))


def _start_calls(
    group: Group, signal: Callable[..., Any], wait: Callable[..., Any], arguments: tuple[object, ...], between: list[int] | None = None
) -> None:
    """Start a producer and a waiter that share ``arguments``; ``between`` are the processes between the two."""
    ours, theirs = pair()
    waiter = group.start(wait_in_calls, wait, arguments, sockets=[theirs])
    for pid in between or []:
        group.adopt(pid)
    group.start_producer(produce_calls, signal, arguments, [waiter, *(between or [])], sockets=[ours])


# -- multiprocessing


def start_event(group: Group) -> None:
    """Start a producer and a waiter that share a ``multiprocessing.Event``."""
    event = SPAWN.Event()
    group.kept.append(event)
    _start_calls(group, _set, _wait, (event,))


def start_manager_event(group: Group) -> None:
    """The same with an Event in a manager's process."""
    manager = group.at_end.enter_context(SPAWN.Manager())
    pid: int = manager._process.pid  # type: ignore[attr-defined]  # there is no public way to ask
    event = manager.Event()
    group.kept.append(event)
    _start_calls(group, _set, _wait, (event,), [pid])


def _set(event: Any) -> Callable[[], object]:
    set_it: Callable[[], object] = event.set
    return set_it


def _wait(event: Any) -> Callable[[], object]:
    def wait() -> Callable[[], object]:
        if not event.wait(TIMEOUT):
            raise BenchmarkError(f"the event was not set within {TIMEOUT:.0f} s")
        clear: Callable[[], object] = event.clear
        return clear

    return wait


# -- ZeroMQ


def why_no_zeromq() -> str | None:
    """What is missing for it."""
    return None if importlib.util.find_spec("zmq") else "pyzmq is not installed"


def start_zeromq(group: Group) -> None:
    """Start a producer that pushes and a waiter that pulls."""
    folder = group.at_end.enter_context(tempfile.TemporaryDirectory(prefix="fencebroker-bench-"))
    _start_calls(group, _push, _pull, (f"ipc://{folder}/zmq",))


def _push(address: str) -> Callable[[], object]:
    import zmq

    sock: Any = zmq.Context.instance().socket(zmq.PUSH)
    sock.bind(address)
    atexit.register(sock.close, 0)
    return lambda: sock.send(b"1")


def _pull(address: str) -> Callable[[], object]:
    import zmq

    sock: Any = zmq.Context.instance().socket(zmq.PULL)
    sock.connect(address)
    atexit.register(sock.close, 0)

    def wait() -> None:
        sock.recv()

    return wait


# -- Redis


def why_no_redis() -> str | None:
    """What is missing for it."""
    if not importlib.util.find_spec("redis"):
        return "redis-py is not installed"
    return None if shutil.which("redis-server") else "redis-server is not installed (Debian: apt-get install redis-server)"


@contextmanager
def running_redis() -> Iterator[tuple[str, int]]:
    """Run a redis-server of one's own, which writes nothing to disk; yields its socket's path and its pid."""
    with tempfile.TemporaryDirectory(prefix="fencebroker-bench-") as folder:
        path = f"{folder}/redis"
        process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + TIMEOUT
            while not Path(path).is_socket():  # it says nothing when it is ready
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("redis-server did not start")
                time.sleep(0.01)
            yield path, process.pid
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def redis_client(path: str) -> Any:
    """Connect."""
    import redis

    client = redis.Redis(unix_socket_path=path)
    client.ping()
    return client


def start_blpop(group: Group) -> None:
    """Start a producer that pushes onto a list, redis-server, and a waiter in BLPOP."""
    path, pid = group.at_end.enter_context(running_redis())
    _start_calls(group, _rpush, _blpop, (path,), [pid])


def start_pubsub(group: Group) -> None:
    """Start a producer that publishes, redis-server, and a waiter that has subscribed."""
    path, pid = group.at_end.enter_context(running_redis())
    _start_calls(group, _publish, subscribe, (path,), [pid])


def _rpush(path: str) -> Callable[[], object]:
    client = redis_client(path)
    return lambda: client.rpush("fence", b"1")


def _blpop(path: str) -> Callable[[], object]:
    client = redis_client(path)

    def wait() -> None:
        client.blpop("fence")

    return wait


def _publish(path: str) -> Callable[[], object]:
    client = redis_client(path)
    return lambda: client.publish("fence", b"1")


def subscribe(path: str) -> Callable[[], object]:
    """Return the call that sleeps until something is published."""
    subscription = redis_client(path).pubsub()
    subscription.subscribe("fence")
    while subscription.parse_response()[0] != b"subscribe":
        pass

    def wait() -> None:
        subscription.parse_response()

    return wait
