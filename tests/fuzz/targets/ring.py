"""A signal ring's page: the reader of it, and what the core makes of the entries.

An input is the head, how many entries were taken before, and the bytes of the places from the next one on.
"""

from __future__ import annotations

import os
import random
import struct
from typing import Final, Self

from fencebroker import ring
from fencebroker.fds import OwnedFd
from fencebroker.mapping import Mapping
from fencebrokerd.shell.rings import Rings
from tests.core.world import Line, World
from tests.fuzz.mutation import EDGES

__all__ = ["NAME", "Target", "fresh"]

NAME: Final = "ring"
LIFE: Final = 500
_FRONT: Final = struct.Struct("<QB")
#: The first byte that is a place for an entry.
_PLACES: Final = ring.RING_BYTES - ring.CAPACITY * ring.ENTRY_BYTES
_POINTS: Final = (1, 2, 3, 20, 2**32, 2**64 - 1)


def fresh(dice: random.Random) -> bytes:
    """Entries with right checksums that a producer may have written, or not."""
    page = bytearray(ring.RING_BYTES)
    writer = ring.Writer(memoryview(page))
    number = 0
    for _ in range(dice.choice((1, 1, 2, 3, 30))):
        op = dice.choice((ring.ADVANCE, ring.ADVANCE, ring.INC, ring.FAIL, ring.FAIL, ring.CLOSE, dice.randrange(16)))
        number = dice.choice((number + 1, number + dice.randrange(5), dice.choice(_POINTS), dice.choice(EDGES) % 2**64))
        error = dice.randrange(1, 4096) if op == ring.FAIL or dice.random() < 0.1 else 0
        writer.commit(op, number % 2**64, error, dice.choice((0, 1000, 2**64 - 1)))
    committed = writer.committed
    writer.close()
    head = committed if dice.random() < 0.8 else dice.choice(EDGES) % 2**64
    return _FRONT.pack(head, 0) + bytes(page[_PLACES : _PLACES + committed * ring.ENTRY_BYTES])


class Target:
    """A timeline with a ring, beside an honest one; it begins anew when it was failed with EPROTO, or its ring was closed."""

    def __enter__(self) -> Self:
        self._n = 0
        self._rings = Rings()
        self._begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self._rings.close_all()
        if exc[0] is None:
            self._world.end()

    def _begin(self) -> None:
        self._world = World()
        self._client = self._world.connect()
        self._other = self._world.connect(2000)
        self._honest = self._other.create("honest")
        self._waits = self._other.export(self._honest, 1)

    def _new_line(self) -> Line:
        line = self._client.create()
        self._client.ring(line)
        self._client.export_many(line, _POINTS)
        return line

    def run(self, data: bytes) -> None:
        """Look at one page, as a broker does that goes on with it."""
        self._n += 1
        head, taken = _FRONT.unpack(data[: _FRONT.size].ljust(_FRONT.size, b"\0"))
        places = data[_FRONT.size :][: ring.CAPACITY * ring.ENTRY_BYTES]
        world, line = self._world, self._new_line()
        with OwnedFd(os.memfd_create("ring", os.MFD_CLOEXEC)) as fd:
            os.ftruncate(fd.fileno(), ring.RING_BYTES)
            page = Mapping(fd.fileno(), ring.RING_BYTES)
            page.view[:8] = head.to_bytes(8, "little")
            at = _PLACES + taken % ring.CAPACITY * ring.ENTRY_BYTES
            page.view[at : at + len(places)] = places[: ring.RING_BYTES - at]
            page.close()
            self._rings.adopt(line.socket, fd.detach(), taken, 0)
        self._drain(line)
        assert world.fence(self._waits).status == 0, "somebody else's fence has signalled"
        self._rings.close(line.socket)
        if line.socket in world.state.sockets:
            world.close(line)
        self._client.release(*self._client_handles())
        if self._n % 50 == 0:
            world.check()
        if self._n % LIFE == 0:
            world.end()
            self._begin()

    def _client_handles(self) -> list[int]:
        return list(self._world.state.sessions[self._client.session].handles)

    def _drain(self, line: Line) -> None:
        world = self._world
        now = world.tick()
        try:
            entries = self._rings.read(line.socket, now)
        except ring.Nonsense:
            world.run(world.broker.break_timeline(line.socket, now))
            return
        assert len(entries) <= ring.CAPACITY
        assert all(entry.at <= now for entry in entries)
        if entries:
            world.run(world.broker.drain(line.socket, entries, now))
            self._rings.free(line.socket)
