"""A session's packets: the codec, and behind it the core with everything it can be brought to make."""

from __future__ import annotations

import random
import zlib
from typing import Final, Self

from fencebroker import wire
from fencebroker.limits import Limits
from fencebrokerd.core import effects as fx
from tests.core.world import ALICE, BOB, ROOT, Client, World
from tests.fuzz.mutation import message

__all__ = ["NAME", "Target", "fresh"]

NAME: Final = "session"
#: After so many inputs the broker ends and must be empty: a failure is found near its cause, and nothing grows for ever.
LIFE: Final = 500


def fresh(dice: random.Random) -> bytes:
    """A request of the table."""
    return wire.encode(message(dice, wire.REQUESTS, [dice.randrange(1, 99)]))


class Target:
    """A world with three users, to whom the inputs are sent in turn."""

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._world.end()

    def _begin(self) -> None:
        self._n = 0
        self._world = World(Limits(descriptors=2000, timelines_per_uid=20, retained_records=20, remembered_failures=8))
        self._clients = [self._world.connect(uid) for uid in (ALICE, BOB, ROOT)]
        for client in self._clients:
            line = client.create("camera0", mode=0o666)
            client.export_many(line, range(1, 4))

    def run(self, data: bytes) -> None:
        """Decode and handle one packet; what came with it is derived from its bytes."""
        self._n += 1
        dice = random.Random(zlib.crc32(data))
        client = self._clients[self._n % len(self._clients)]
        for n in (0, 1, 2, 3, 8):
            try:
                request, _ = wire.decode_request(data, n)
            except wire.Malformed:
                continue
            if request[1] != wire.HELLO:
                self._handle(client, request, [self._reference(dice) for _ in range(n)])
        if self._n % 7 == 0:
            self._signal(dice)
        if self._n % 100 == 0:
            self._world.check()
        if self._n >= LIFE:
            self._world.end()
            self._begin()

    def _handle(self, client: Client, request: list[object], references: list[fx.Reference]) -> None:
        world = self._world
        world.run(world.broker.handle(client.session, request, references, world.tick()))
        world.broker.take_lines()
        world.sent.clear()
        world.written.clear()

    def _reference(self, dice: random.Random) -> fx.Reference:
        world = self._world
        match dice.randrange(4):
            case 0 if world.eventfds:
                return world.reference(dice.choice(list(world.eventfds)))
            case 1 if world.sockets:
                return fx.KnownTimeline(dice.choice(sorted(world.sockets)))
            case 2:
                return fx.DetachedFence(dice.choice((1, -5)))
        return fx.Foreign("a pipe")

    def _signal(self, dice: random.Random) -> None:
        world = self._world
        if world.sockets:
            packet = message(dice, wire.TIMELINE_OPS, (7, 1))
            try:
                wire.decode_timeline(wire.encode(packet))
            except wire.Malformed:
                return
            world.signal(dice.choice(sorted(world.sockets)), *packet[2:])
        world.pass_time(world.now + dice.choice((1, 10**6)))
