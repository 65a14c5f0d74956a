"""A well-behaved pipeline beside clients that want the broker for themselves.

The pipeline is a producer and a consumer of one user.  The consumer imports every fence, so that the broker has to wake it; the wake is the
time from the producer's ``advance`` to the end of the consumer's ``poll()``.  The others run at full speed, each in a process of its own, and
do what is allowed and what is not: a broker that is well made takes the same turn for each user, whatever each of them does.

Quiet and attacked runs take turns, and a ratio is taken inside each round.  The broker has an unprivileged user of its own, as the system's has, where that
user can run the interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback  # noqa: F401 - of what goes wrong after a change of user, when it could not be read any more
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Final

import fencebroker as fb
from benchmarks.figures import percentile
from benchmarks.processes import SPAWN, TIMEOUT, BenchmarkError
from fencebroker import wire
from fencebroker.fds import close_all, recv_packet, send_packet

__all__ = ["TARGET", "Attack", "as_markdown", "measure_hostile"]

#: The p99 of a wake during an attack, in quiet ones.
TARGET: Final = 3.0
BROKER, PIPELINE, CROWD = 4100, 4200, 4300  # uids that nobody has
N_CLIENTS: Final = 20
#: Between two frames; a consumer that sleeps is what is measured.
PERIOD: Final = 0.002


@dataclass(frozen=True, slots=True)
class Attack:
    """What came out of one kind of attack."""

    title: str
    quiet: tuple[float, float]  #: p50 and p99 of a wake, microseconds, median over the rounds
    attacked: tuple[float, float]
    ratio: float  #: of the p99
    spread: tuple[float, float]
    n: int  #: wakes per side
    lost: int
    rate: float  #: what the attackers got done, per second, all together


# -- those who attack


def _connect(path: str) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.connect(path)
        send_packet(sock, wire.encode([1, wire.HELLO, wire.VERSION, "flood"]))
        _answer(sock)
        undo.pop_all()
    return sock


def _answer(sock: socket.socket) -> list[Any]:
    packet, fds = recv_packet(sock)
    close_all(fds)
    if not packet:
        raise ConnectionResetError(errno.ECONNRESET, "cut")
    return wire.decode_answer(packet)


def ask(path: str) -> Iterator[None]:
    """Question after question."""
    with _connect(path) as sock:
        for serial in itertools.count(2):
            send_packet(sock, wire.encode([serial, wire.STATUS]))
            _answer(sock)
            yield


def advance(path: str) -> Iterator[None]:
    """A timeline's socket, always full."""
    with fb.connect(path) as broker, broker.create_timeline() as timeline, timeline.share() as end:
        for n in itertools.count(1):
            end.send(wire.encode([7, n, wire.ADVANCE, n]))
            yield


def export(path: str) -> Iterator[None]:
    """Fences by the batch, signalled and given back."""
    with fb.connect(path) as broker, broker.create_timeline() as timeline:
        for n in itertools.count(1, 64):
            fences = timeline.export_many(range(n, n + 64))
            timeline.advance(n + 63)
            for fence in fences:
                fence.close()
            yield


def connect(path: str) -> Iterator[None]:
    """Connections that come and go."""
    while True:
        _connect(path).close()
        yield


def nonsense(path: str) -> Iterator[None]:
    """Packets out of form, each of which costs a session."""
    while True:
        with _connect(path) as sock, contextlib.suppress(OSError):
            sock.send(b"\xc1" * 64)
            recv_packet(sock)
        yield


def hoard(path: str) -> Iterator[None]:
    """Descriptors that nobody fetches."""
    while True:
        with _connect(path) as sock, contextlib.suppress(OSError):
            send_packet(sock, wire.encode([2, wire.CREATE_TIMELINE, None, "flood", 0o600, None]))
            context = _answer(sock)[2]
            for serial in itertools.count(3):
                send_packet(sock, wire.encode([serial, wire.EXPORT, context, [serial], "", False]))
                yield


def block(path: str) -> Iterator[None]:
    """Descriptors whose writing blocks (design 3.6)."""
    while True:
        with contextlib.suppress(fb.BrokerUnavailable), fb.connect(path) as broker, broker.create_timeline() as timeline:
            timeline.share().close()  # from here on the broker signals, and not this process itself
            for n in itertools.count(1):
                with timeline.export(n) as fence:
                    with contextlib.suppress(BlockingIOError):  # its session was ended, and it with it
                        os.eventfd_write(fence.fileno(), 2**64 - 2)
                    os.set_blocking(fence.fileno(), True)
                    timeline.advance(n)
                    broker._status()
                    yield


FLOODS: Final[Mapping[str, tuple[Callable[[str], Iterator[None]], ...]]] = {
    "requests": (ask,),
    "timelines' sockets": (advance,),
    "everything": (ask, advance, export, connect, nonsense, hoard, ask, advance, export, advance),
    "descriptors that block": (block,),
}


def _attack(driver: Connection, path: str, uid: int, flood: Callable[[str], Iterator[None]]) -> None:
    """Attack when told to, until told not to; answer with how often."""
    _become(uid, logs_in=False)
    while driver.recv() == "go":
        count = 0
        while not driver.poll(0):
            try:
                for _ in flood(path):
                    count += 1
                    if not count % 32 and driver.poll(0):
                        break
                    if flood is block and driver.poll(0):
                        break
            except (OSError, AssertionError):  # cut, as it should be; once more
                time.sleep(0.001)
        driver.recv()
        driver.send(count)


# -- the pipeline


def _become(uid: int, *, logs_in: bool = True) -> None:
    """Be a user.  ``logs_in``: in a session of its own, between which the kernel shares the processors (sched(7), autogroup), so that a pipeline is
    no part of the crowd; the crowd has one session, for 20 more would leave the broker, which has no larger share, a tenth of a processor.
    """
    if logs_in:
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _consume(path: str, sock: socket.socket) -> None:
    """Import each fence, say so, sleep until it signals, and say when that was and how it ended."""
    _become(PIPELINE)
    with sock, fb.connect(path) as broker:
        while True:
            payload, fence = fb.recv_sync_file(sock)
            if payload == b"end":
                fence.close()
                return
            with fence, broker.import_sync_file(fence) as private:
                poll = select.poll()
                poll.register(private.fileno(), select.POLLIN)
                sock.send(b"ready")
                woke = bool(poll.poll(TIMEOUT * 1000))
                now = time.monotonic_ns()
                sock.send(b"%d %d" % (now, woke and private.status() == 1))


def _produce(driver: Connection, path: str, sock: socket.socket) -> None:
    """Take so many samples when told to."""
    _become(PIPELINE)
    with sock, fb.connect(path) as broker, broker.create_timeline("camera0") as timeline:
        seqno = 0
        while n := driver.recv():
            samples, lost = array("Q"), 0
            for _ in range(n):
                seqno += 1
                with timeline.export(seqno) as fence:
                    fb.send_sync_file(sock, b"frame", fence)
                    sock.recv(64)
                    time.sleep(PERIOD)
                    began = time.monotonic_ns()
                    timeline.advance(seqno)
                    woke, ok = map(int, sock.recv(64).split())
                    samples.append(woke - began)
                    lost += not ok
            driver.send((samples.tobytes(), lost))
        with timeline.export(seqno) as fence:
            fb.send_sync_file(sock, b"end", fence)


# -- the driver


@contextlib.contextmanager
def _broker() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="fb-", dir="/tmp")
    os.chown(folder, BROKER, BROKER)
    os.chmod(folder, 0o755)
    path = f"{folder}/broker"
    ready, told = os.pipe()
    argv = [
        sys.executable,
        "-m",
        "fencebrokerd",
        "--listen",
        path,
        "--socket-mode",
        "0666",
        "--ready-fd",
        str(told),
        "--log-level",
        "error",
    ]
    start = functools.partial(subprocess.Popen, argv, pass_fds=[told], cwd="/", start_new_session=True)
    try:
        process = start(user=BROKER, group=BROKER, extra_groups=[])
    except PermissionError:  # an interpreter in root's home folder; then root serves
        process = start()
    try:
        os.close(told)
        if os.read(ready, 1) != b"\n":
            raise BenchmarkError("the broker did not start; can its user read the project?")
        yield path
        process.send_signal(signal.SIGTERM)
        if process.wait(TIMEOUT):
            raise BenchmarkError(f"the broker ended with {process.returncode}")
    finally:
        os.close(ready)
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def measure_hostile(rounds: int, wakes: int, progress: Callable[[], None]) -> list[Attack]:
    """Measure every attack: by clients of one user, and for everything also of as many users as clients."""
    if os.getuid() != 0:
        raise BenchmarkError("NOT RUN: --hostile needs root, for clients of several users")
    attacks = [(title, floods, 1) for title, floods in FLOODS.items()]
    attacks.append(("everything", FLOODS["everything"], N_CLIENTS))
    return [
        _measure(f"{title}, {n_users} user{'s' if n_users > 1 else ''}", floods, n_users, rounds, wakes, progress)
        for title, floods, n_users in attacks
    ]


def _measure(
    title: str, floods: tuple[Callable[[str], Iterator[None]], ...], n_users: int, rounds: int, wakes: int, progress: Callable[[], None]
) -> Attack:
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_broker())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        producer, their_end = SPAWN.Pipe()
        _start(stack, _consume, path, theirs)
        _start(stack, _produce, their_end, path, ours)
        crowd = []
        for i in range(N_CLIENTS):
            driver, end = SPAWN.Pipe()
            _start(stack, _attack, end, path, CROWD + i % n_users, floods[i % len(floods)])
            crowd.append(driver)
        quiet, attacked, lost, done, spent = [], [], 0, 0, 0.0
        for number in range(rounds + 1):
            first = _take(producer, wakes)
            for driver in crowd:
                driver.send("go")
            began = time.monotonic()
            second = _take(producer, wakes)
            for driver in crowd:
                driver.send("stop")
            counts = [_recv(driver) for driver in crowd]
            if number:  # the first round warms up
                quiet.append(first[0])
                attacked.append(second[0])
                lost += first[1] + second[1]
                done += sum(counts)
                spent += time.monotonic() - began
            progress()
        producer.send(0)
        for driver in crowd:
            driver.send("end")
    ratios = [percentile(b, 0.99) / percentile(a, 0.99) for a, b in zip(quiet, attacked, strict=True)]
    return Attack(
        title,
        _figures(quiet),
        _figures(attacked),
        median(ratios),
        (min(ratios), max(ratios)),
        rounds * wakes,
        lost,
        done / spent,
    )


def _figures(rounds: list[list[int]]) -> tuple[float, float]:
    return median(percentile(r, 0.5) for r in rounds) / 1000, median(percentile(r, 0.99) for r in rounds) / 1000


def _start(stack: contextlib.ExitStack, role: Callable[..., None], *args: Any) -> None:
    process = SPAWN.Process(target=role, args=args, daemon=True)
    process.start()
    for arg in args:
        if isinstance(arg, (socket.socket, Connection)):
            arg.close()
    stack.callback(_end, process)


def _end(process: Any) -> None:
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()


def _take(producer: Connection, n: int) -> tuple[list[int], int]:
    producer.send(n)
    raw, lost = _recv(producer)
    samples = array("Q")
    samples.frombytes(raw)
    return sorted(samples), lost


def _recv(driver: Connection) -> Any:
    try:
        if not driver.poll(6 * TIMEOUT):
            raise BenchmarkError("a client did not answer")
        return driver.recv()
    except (EOFError, OSError) as err:
        raise BenchmarkError("a client died (its traceback is above)") from err


def as_markdown(attacks: list[Attack]) -> str:
    """Write the table."""
    head = (
        "| 20 clients at full speed | quiet p50 | p99 | attacked p50 | p99 | p99 attacked / quiet | target | wakes | lost | attacks/s |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    rows = [
        f"| {a.title} | {a.quiet[0]:.0f} | {a.quiet[1]:.0f} | {a.attacked[0]:.0f} | {a.attacked[1]:.0f} "
        f"| {a.ratio:.2f} ({a.spread[0]:.2f} - {a.spread[1]:.2f}) | <= {TARGET:g}: {'met' if a.ratio <= TARGET else 'MISSED'} "
        f"| {a.n:,} | {a.lost} | {a.rate:,.0f} |"
        for a in attacks
    ]
    return head + "\n".join(rows)
