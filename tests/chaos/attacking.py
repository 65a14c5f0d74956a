"""Clients of another user who want the broker to end, or others' fences to lie: ``python -m tests.chaos.attacking NAME PATH UID``.

Those of the benchmark, and more that are no load but malice.  Each goes on until its standard input ends; a broker that disconnects it, as it
should, is connected to again.  The last line says how often it attacked.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import fencebroker as fb
from benchmarks import hostile
from fencebroker import wire
from fencebroker.fds import send_packet
from tests.chaos.frames import Wrong
from tests.chaos.worker import become
from tests.process.hostile_ring import SPOILS, Hostile
from tests.process.wire_client import WireClient

__all__ = ["ATTACKS"]


def spoil(path: str) -> Iterator[None]:
    """A ring's page left in each of the ways that no honest producer leaves it, with a fence that waits."""
    while True:
        with WireClient(path) as client, contextlib.closing(Hostile(client)) as ring, ring.export(2**62) as fence:
            random.choice(SPOILS)(ring)
            ring.ring_the_bell()
            client.ask(wire.INFO, ring.handle, 0)
            if fence.status() == 1:
                raise Wrong("a page of nonsense has signalled a fence")
        yield


def show_foreign(path: str) -> Iterator[None]:
    """Descriptors that are no sync_files, by the batch."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/proc/self/status", "rb") as file, WireClient(path) as client:
        fds = [ours.fileno(), theirs.fileno(), file.fileno(), client.sock.fileno()]
        for n in itertools.count():
            client.ask(wire.MERGE, [None] * 4, "foreign", False, fds=fds)
            client.ask(wire.INFO, None, 0, fds=[fds[n % 4]])
            yield


def tamper(path: str) -> Iterator[None]:
    """Eventfds that are written, read and filled while they are signalled, and merges and imports of them."""
    with fb.connect(path) as broker, broker.create_timeline() as timeline:
        timeline.share().close()  # from here on the broker signals
        for n in itertools.count(1):
            with timeline.export(n) as fence, broker.merge([fence]) as merged, broker.import_sync_file(fence):
                for fd in (fence.fileno(), merged.fileno()):
                    os.eventfd_write(fd, random.choice((1, 2**15, 2**62, 2**64 - 2)))
                timeline.advance(n)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fence.fileno())
                broker.info(fence)
            yield


def read_nothing(path: str) -> Iterator[None]:
    """Questions whose answers are long and stay where they are."""
    while True:
        with WireClient(path) as client:
            client.sock.setblocking(False)
            client.say([2, wire.SUBSCRIBE])
            with contextlib.suppress(BlockingIOError):
                for serial in range(3, 40):  # more than fits into its socket and its queue; each is still answered when it has gone
                    client.say([serial, wire.LIST, "sync_files", 0])
            yield
            with contextlib.suppress(BlockingIOError, ConnectionError):
                client.say(b"\xc1")


def die(path: str) -> Iterator[None]:
    """Gone in the middle of a request, with a timeline, a ring and a packet on its socket."""
    while True:
        with WireClient(path) as client, contextlib.closing(Hostile(client)) as ring, contextlib.suppress(OSError):
            send_packet(ring.sock, wire.encode([5, 1, wire.ADVANCE, 3]))
            client.say([9, wire.EXPORT, ring.context, list(range(1, 60)), "", False])
        yield


ATTACKS: Final[Mapping[str, Callable[[str], Iterator[None]]]] = {
    attack.__name__: attack
    for attack in (
        hostile.block,
        hostile.nonsense,
        hostile.connect,
        hostile.ask,
        hostile.advance,
        hostile.hoard,
        spoil,
        show_foreign,
        tamper,
        read_nothing,
        die,
    )
}


def main(name: str, path: str, uid: int) -> int:
    """Attack until standard input ends; returns how often.  Says when it is ready, and when it has attacked for the first time."""
    become(uid)
    print("ready", flush=True)
    over = select.poll()
    over.register(0, select.POLLIN)
    n = 0
    while not over.poll(0):
        try:
            for _ in ATTACKS[name](path):
                n += 1
                if n == 1:
                    print("attacked", flush=True)
                if over.poll(0):
                    break
        except (OSError, fb.FenceError) as err:  # cut, or refused, as it should be
            if isinstance(err, FileNotFoundError | ConnectionRefusedError):
                raise  # the broker is gone for good
            time.sleep(0.001)
        except Wrong:
            raise
        except AssertionError:  # the same, said by the wire client
            time.sleep(0.001)
    return n


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])), flush=True)
