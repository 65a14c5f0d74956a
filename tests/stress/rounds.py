"""One producer with a ring, a waiter on what it wrote, and an importer for whom the broker writes: each point is waited for by both.

What is looked for is what the order of stores, barriers and looks must prevent: a wake-up that is lost (a waiter waits in vain), one that is
early (a waiter wakes before the producer meant to signal), and two descriptors of one point that say different things.  The producer advances
by one and by several, adds, and fails points; questions come in the middle; timelines are given up and shared, so that rings freeze and end.
"""

from __future__ import annotations

import errno
import random
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import fencebroker as fb
from benchmarks.farm import Farm, Numbers
from fencebroker.fds import OwnedFd, close_all, peek_status, recv_packet, send_packet
from tests.chaos.frames import Wrong

__all__ = ["run"]

#: Points of a batch: all are exported, and all who wait have them, before the first is signalled.
BATCH: Final = 64
#: A timeline serves so many batches.
BATCHES: Final = 40
#: Of so many batches one goes to the importer too, for that costs the broker a request each.
IMPORTED: Final = 8
LIMIT_MS: Final = 60_000


class Waiter:
    """Owns the socket of a process that is sent batches of descriptors and says what became of each."""

    def __init__(self, farm: Farm, meant: Numbers, path: str, hold: Callable[[Any, OwnedFd], tuple[Any, int]]) -> None:
        """``meant`` has the highest seqno that the producer has decided to signal.  ``hold`` makes of a descriptor what is waited on."""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            farm.fork(self._run, theirs, meant, path, hold)
        self._sock.settimeout(LIMIT_MS / 1000)

    def _run(self, theirs: socket.socket, meant: Numbers, path: str, hold: Callable[[Any, OwnedFd], tuple[Any, int]]) -> None:
        self._sock.close()
        with fb.connect(path, autostart=False) as broker:
            _wait(theirs, meant, lambda fd: hold(broker, fd))

    def send(self, first: int, fences: list[fb.SyncFile]) -> None:
        """Hand over a batch; returns when everything is waited on."""
        send_packet(self._sock, first.to_bytes(8, "little"), [fence.fileno() for fence in fences])
        self._answer()

    def statuses(self) -> list[int]:
        """What the batch's descriptors said when they woke."""
        return memoryview(self._answer()).cast("i").tolist()

    def _answer(self) -> bytes:
        packet = self._sock.recv(4096)
        if not packet:
            raise Wrong("a waiter died; what it said is above")
        return packet

    def close(self) -> None:
        """End it."""
        self._sock.close()


def _wait(producer: socket.socket, meant: Numbers, hold: Callable[[OwnedFd], tuple[Any, int]]) -> None:
    while True:
        packet, fds = recv_packet(producer)
        if not packet:
            return
        first = int.from_bytes(packet, "little")
        held = [hold(fd) for fd in fds]
        seqnos = {fd: seqno for seqno, (_, fd) in enumerate(held, first)}
        poller = select.poll()
        for fd in seqnos:
            poller.register(fd, select.POLLIN)
        if poller.poll(0):
            raise Wrong(f"of the points from {first} on some had signalled before any was meant to")
        producer.send(b"held")
        said: dict[int, int] = {}
        while len(said) < len(held):
            woken = poller.poll(LIMIT_MS)
            if not woken:
                raise Wrong(f"points {sorted(set(seqnos.values()) - set(said))[:5]} ... were signalled and nobody woke")
            for fd, _ in woken:
                seqno, status = seqnos[fd], peek_status(fd)
                if meant[0] < seqno:
                    raise Wrong(f"point {seqno} woke while {meant[0]} was the highest that was meant")
                if not status:
                    raise Wrong(f"point {seqno} woke its waiter and says {status}")
                said[seqno] = status
                poller.unregister(fd)
        statuses = [said[seqno] for seqno in sorted(said)]
        producer.send(memoryview(b"".join(status.to_bytes(4, "little", signed=True) for status in statuses)))
        for thing, _ in held:
            thing.close()
        close_all(fds)


def _shared(_: fb.Broker, fd: OwnedFd) -> tuple[Any, int]:
    return fd, fd.fileno()


def _private(broker: fb.Broker, fd: OwnedFd) -> tuple[Any, int]:
    imported = broker.import_sync_file(fd)
    return imported, imported.fileno()


def run(path: str, rounds: int, seed: int, progress: Callable[[int], object]) -> dict[str, int]:
    """Signal ``rounds`` points at least; returns what was done, by name.  Wrong when something was."""
    chance = random.Random(seed)
    meant = Numbers(1)
    done = dict.fromkeys(("points", "ops", "failed", "imported", "questions", "rings", "frozen"), 0)
    with ExitStack() as stack:
        farm = stack.enter_context(Farm())
        waiters = []
        for hold in (_shared, _private):  # before there are connections here
            waiters.append(Waiter(farm, meant, path, hold))
            stack.callback(waiters[-1].close)
        broker = stack.enter_context(fb.connect(path, autostart=False))
        asker = stack.enter_context(fb.connect(path, autostart=False))
        while done["points"] < rounds:
            _a_timeline(broker, asker, waiters, meant, chance, done, progress)
    return done


def _a_timeline(
    broker: fb.Broker,
    asker: fb.Broker,
    waiters: list[Waiter],
    meant: Numbers,
    chance: random.Random,
    done: dict[str, int],
    progress: Callable[[int], object],
) -> None:
    with ExitStack() as stack:
        timeline = stack.enter_context(broker.create_timeline())
        meant[0] = 0
        freezes_at = chance.randrange(2 * BATCHES)
        for number in range(BATCHES):
            first = timeline.value + 1
            fences = timeline.export_many(range(first, first + BATCH))
            if not number:
                done["rings"] += 1
            try:
                served = waiters if number % IMPORTED == 0 else waiters[:1]
                for waiter in served:
                    waiter.send(first, fences)
                expected = _signal(timeline, fences, asker, meant, chance, done, share=number == freezes_at, stack=stack)
                for waiter in served:
                    if (said := waiter.statuses()) != expected:
                        raise Wrong(f"points from {first} on say {said}, not {expected}")
                if (said := [fence.status() for fence in fences]) != expected:
                    raise Wrong(f"the producer's own points from {first} on say {said}, not {expected}")
            finally:
                for fence in fences:
                    fence.close()
            done["points"] += BATCH
            done["imported"] += BATCH * (len(served) - 1)
            progress(BATCH)


def _signal(
    timeline: fb.Timeline,
    fences: list[fb.SyncFile],
    asker: fb.Broker,
    meant: Numbers,
    chance: random.Random,
    done: dict[str, int],
    *,
    share: bool,
    stack: ExitStack,
) -> list[int]:
    """Signal a batch, one way or another; returns the statuses that its points have then."""
    first, expected = timeline.value + 1, [1] * len(fences)
    last = first + len(fences) - 1
    while timeline.value < last:
        value, what = timeline.value, chance.random()
        step = 1 if what < 0.8 else chance.randint(1, min(5, last - value))
        meant[0] = value + step
        if what < 0.02:
            timeline.fail(value + step, errno.EIO)
            expected[value + step - first] = -errno.EIO
            done["failed"] += 1
        elif what < 0.2:
            timeline.inc(step)
        else:
            timeline.advance(value + step)
        done["ops"] += 1
        if what > 0.995:
            index = chance.randrange(len(fences))
            info = asker.info(fences[index].fileno())
            wanted = expected[index] if first + index <= value + step else 0
            if info.status != wanted:
                raise Wrong(f"the broker says {info.status} of point {first + index}, not {wanted}")
            done["questions"] += 1
        if share and chance.random() < 0.1:
            stack.enter_context(timeline.share())
            share = False
            done["frozen"] += 1
    return expected
