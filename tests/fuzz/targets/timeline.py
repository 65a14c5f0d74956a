"""A timeline's socket: the codec, and what the core makes of it."""

from __future__ import annotations

import random
from typing import Final, Self

from fencebroker import wire
from tests.core.world import World
from tests.fuzz.mutation import message

__all__ = ["NAME", "Target", "fresh"]

NAME: Final = "timeline"
LIFE: Final = 500


def fresh(dice: random.Random) -> bytes:
    """A message of the table."""
    return wire.encode(message(dice, wire.TIMELINE_OPS, [dice.getrandbits(64), dice.randrange(99)]))


class Target:
    """A timeline with fences, which begins anew when it was failed with EPROTO, as the broker does for what is out of form."""

    def __enter__(self) -> Self:
        self._n = 0
        self._begin()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._world.end()

    def _begin(self) -> None:
        self._world = World()
        self._client = self._world.connect()
        self._new_line()

    def _new_line(self) -> None:
        self._line = self._client.create("camera0")
        self._client.export_many(self._line, [1, 2, 3, 20, 2**32, 2**64 - 1])

    def run(self, data: bytes) -> None:
        """Take one packet off the socket."""
        self._n += 1
        world = self._world
        try:
            decoded = wire.decode_timeline(data)
        except wire.Malformed:
            if self._n % 20 == 0:
                world.run(world.broker.break_timeline(self._line.socket, world.tick()))
                self._new_line()
        else:
            world.run(world.broker.handle_timeline(self._line.socket, decoded, world.tick()))
        if self._n % 50 == 0:
            world.check()
        if self._n % LIFE == 0:
            world.end()
            self._begin()
