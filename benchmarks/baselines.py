"""The peers that need nothing of the project: what an operating system and a bare Python can do.

raw eventfd          the producer writes the descriptor that the waiter polls; nobody between them
bare relay           a process between them: it reads a packet and writes an eventfd, and does nothing else
request and reply    one packet there and one back, between two processes
"""

from __future__ import annotations

import os
from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING

from benchmarks.processes import BenchmarkError, Group, Samples, Sleepers, pair, serve
from benchmarks.waiting import BATCH, Signaller, take_wakes, wait_for_aio_wakes, wait_for_wakes
from fencebroker.fds import recv_packet, send_packet

if TYPE_CHECKING:
    import socket
    from multiprocessing.connection import Connection

__all__ = ["start_aio_eventfd", "start_eventfd", "start_relay", "start_requests"]

#: The size of a small export request, so that both sides copy what a broker's packets copy.
REQUEST = bytes(24)
REPLY = bytes(8)


class _Eventfds(Signaller):
    """Signals by its own write."""

    def __init__(self) -> None:
        self._fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(BATCH)]

    def arm(self, n: int) -> list[int]:
        return self._fds[:n]

    def signal(self, index: int) -> None:
        os.eventfd_write(self._fds[index], 1)


class _Relayed(_Eventfds):
    """Signals by a packet to the relay."""

    def __init__(self, relay: socket.socket) -> None:
        super().__init__()
        self._relay = relay
        send_packet(relay, b"\0", self._fds)

    def signal(self, index: int) -> None:
        self._relay.send(index.to_bytes(8, "little"))


def start_eventfd(group: Group) -> None:
    """Start a producer and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait_for_wakes, sockets=[theirs])
    group.start_producer(_produce_eventfd, [waiter], sockets=[ours])


def start_aio_eventfd(group: Group) -> None:
    """The same with a waiter in ``loop.add_reader``."""
    ours, theirs = pair()
    waiter = group.start(wait_for_aio_wakes, sockets=[theirs])
    group.start_producer(_produce_eventfd, [waiter], sockets=[ours])


def _produce_eventfd(driver: Connection, pids: list[int], waiter: socket.socket) -> None:
    signaller, sleepers = _Eventfds(), Sleepers(pids)
    serve(driver, lambda n: take_wakes(n, signaller, waiter, sleepers))


def start_relay(group: Group) -> None:
    """Start a producer, a relay and a waiter."""
    ours, theirs = pair()
    waiter = group.start(wait_for_wakes, sockets=[theirs])
    to_relay, from_producer = pair()
    relay = group.start(_relay, sockets=[from_producer])
    group.start_producer(_produce_relayed, [waiter, relay], sockets=[ours, to_relay])


def _produce_relayed(driver: Connection, pids: list[int], waiter: socket.socket, relay: socket.socket) -> None:
    signaller, sleepers = _Relayed(relay), Sleepers(pids)
    serve(driver, lambda n: take_wakes(n, signaller, waiter, sleepers))


def _relay(producer: socket.socket) -> None:
    _, owned = recv_packet(producer)
    fds = [fd.detach() for fd in owned]  # for as long as the process lives
    while packet := producer.recv(8):
        os.eventfd_write(fds[int.from_bytes(packet, "little")], 1)


def start_requests(group: Group) -> None:
    """Start a client and a server."""
    ours, theirs = pair()
    group.start(_reply, sockets=[theirs])
    group.start_producer(_request, sockets=[ours])


def _request(driver: Connection, server: socket.socket) -> None:
    def take(n: int) -> Samples:
        samples: Samples = array("Q")
        for _ in range(n):
            started = monotonic_ns()
            server.send(REQUEST)
            reply = server.recv(64)
            samples.append(monotonic_ns() - started)
            if reply != REPLY:
                raise BenchmarkError("the server died (its traceback is above)")
        return samples

    serve(driver, take)


def _reply(client: socket.socket) -> None:
    while client.recv(64):
        client.send(REPLY)
