"""The floor: a broker without a core.

It speaks the broker's own packets over an epoll loop, decodes them with the same library, makes the same eventfds,
answers with the same descriptors and writes the same status; but it checks nothing, knows no names, rights,
accounts or merges, and all its state is one list. What it costs is what a broker in Python costs before it does
anything; the difference to fencebrokerd is the price of the core, the checks and the library.
"""

from __future__ import annotations

import os
import select
from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING

import msgpack

from benchmarks.processes import BenchmarkError, Group, Samples, Sleepers, pair, serve
from benchmarks.waiting import BATCH, Signaller, take_wakes, wait_for_wakes
from fencebroker.fds import OK_WORD, OwnedFd, new_fence_eventfd, recv_packet, send_packet
from fencebroker.wire import ADVANCE, EXPORT, encode

if TYPE_CHECKING:
    import socket
    from multiprocessing.connection import Connection

__all__ = ["start_floor_batches", "start_floor_operations", "start_floor_wakes"]

#: Any numbers will do: nobody here looks at them.
CONTEXT, HOLDER = 1, 0x0123456789ABCDEF


def _serve_floor(session: socket.socket, timeline: socket.socket) -> None:
    """Be the broker for one session with one timeline."""
    active: list[tuple[int, int]] = []
    handle = 0
    loop = select.epoll()
    loop.register(session, select.EPOLLIN)
    loop.register(timeline, select.EPOLLIN)
    while True:
        ready = loop.poll()
        # The timeline first: whoever asks after an advance sees it.
        for number, _ in sorted(ready, key=lambda item: item[0] != timeline.fileno()):
            packet = (timeline if number == timeline.fileno() else session).recv(16 * 1024)
            if not packet:
                return
            message = msgpack.unpackb(packet)
            if number == timeline.fileno():
                value = message[3]
                while active and active[0][0] <= value:
                    fd = active.pop(0)[1]
                    os.eventfd_write(fd, OK_WORD)
                    os.close(fd)
            elif message[1] == EXPORT:
                fds, handles = [], []
                for seqno in message[3]:
                    fd = new_fence_eventfd()
                    active.append((seqno, fd))
                    fds.append(fd)
                    handle += 1
                    handles.append([handle, seqno])
                send_packet(session, encode([message[0], 0, handles]), fds)


class _Client(Signaller):
    """The other end, as bare as the floor; also a `Signaller`."""

    def __init__(self, session: socket.socket, timeline: socket.socket) -> None:
        self._session = session
        self._timeline = timeline
        self._serial = 0
        self._counter = 0
        self._seqno = 0
        self._armed: list[OwnedFd] = []

    def export(self, n: int) -> list[OwnedFd]:
        """Export the next `n` points."""
        self._serial += 1
        first, self._seqno = self._seqno + 1, self._seqno + n
        self._session.send(encode([self._serial, EXPORT, CONTEXT, list(range(first, first + n)), "", False]))
        packet, fds = recv_packet(self._session)
        if not packet or msgpack.unpackb(packet)[0] != self._serial:
            raise BenchmarkError("the floor died (its traceback is above)")
        return fds

    def advance(self, seqno: int) -> None:
        """Signal everything up to `seqno`."""
        self._counter += 1
        self._timeline.send(encode([HOLDER, self._counter, ADVANCE, seqno]))

    def take_operations(self, n: int, batch: int) -> Samples:
        """Export, advance and close `batch` points, `n` times."""
        samples: Samples = array("Q")
        for _ in range(n):
            started = monotonic_ns()
            fds = self.export(batch)
            self.advance(self._seqno)
            for fd in fds:
                fd.close()
            samples.append(monotonic_ns() - started)
        return samples

    def arm(self, n: int) -> list[int]:
        self._armed = self.export(n)
        return [fd.fileno() for fd in self._armed]

    def signal(self, index: int) -> None:
        self.advance(self._seqno - len(self._armed) + 1 + index)

    def disarm(self) -> None:
        for fd in self._armed:
            fd.close()


def _start_floor(group: Group) -> tuple[int, list[socket.socket]]:
    session, its_session = pair()
    timeline, its_timeline = pair()
    return group.start(_serve_floor, sockets=[its_session, its_timeline]), [session, timeline]


def start_floor_wakes(group: Group) -> None:
    """Start a producer, the floor and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait_for_wakes, sockets=[theirs])
    floor, sockets = _start_floor(group)
    group.start_producer(_produce_wakes, [waiter, floor], sockets=[ours, *sockets])


def start_floor_operations(group: Group) -> None:
    """Start a client and the floor: export, advance and close one at a time."""
    _, sockets = _start_floor(group)
    group.start_producer(_produce_operations, 1, sockets=sockets)


def start_floor_batches(group: Group) -> None:
    """Start a client and the floor: the same in batches."""
    _, sockets = _start_floor(group)
    group.start_producer(_produce_operations, BATCH, sockets=sockets)


def _produce_wakes(driver: Connection, pids: list[int], waiter: socket.socket, session: socket.socket, timeline: socket.socket) -> None:
    client, sleepers = _Client(session, timeline), Sleepers(pids)
    serve(driver, lambda n: take_wakes(n, client, waiter, sleepers))


def _produce_operations(driver: Connection, batch: int, session: socket.socket, timeline: socket.socket) -> None:
    client = _Client(session, timeline)
    serve(driver, lambda n: client.take_operations(n, batch))
