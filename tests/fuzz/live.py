"""A running broker under fire: packets through real sockets, of sessions and of timelines, some with descriptors."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import OwnedFd, close_all, recv_packet, send_packet
from tests.fuzz.mutation import corpus, damaged, message
from tests.fuzz.targets import session, timeline
from tests.helpers import LIMIT, BrokerProcess
from tests.process.wire_client import WireClient, descriptors_of

__all__ = ["Figures", "fire"]

#: Packets that one session is sent before its answers are read.
BURST: Final = 32


class Figures(NamedTuple):
    """What was sent and what came of it."""

    packets: int = 0
    with_descriptors: int = 0
    on_timelines: int = 0
    cut: int = 0
    answers: int = 0


class _Shooter:
    def __init__(self, path: str, seed: int) -> None:
        self._path = path
        self._dice = random.Random(seed)
        self._kept = {module.NAME: corpus(module.NAME) for module in (session, timeline)}
        self.figures = Figures()

    def _count(self, **more: int) -> None:
        self.figures = self.figures._replace(**{name: getattr(self.figures, name) + n for name, n in more.items()})

    def _packet(self, name: str, table: dict[int, wire.Spec], head: list[int]) -> tuple[bytes, int]:
        """A packet, and how many descriptors it should come with.  Most are in form: what follows one that is not is never read."""
        dice, kept = self._dice, self._kept[name]
        if dice.random() < 0.05:
            packet = dice.choice(kept)
            return (damaged(dice, packet, kept) if dice.random() < 0.5 else packet), dice.randrange(3)
        request = message(dice, table, head, 0.02)
        if name == timeline.NAME:
            return wire.encode(request), 0
        if request[1] == wire.HELLO:
            request = [head[0], wire.STATUS]
        spec = table[request[1]]
        wanted = spec.descriptors
        if wanted is None:
            wanted = str(request).count("None")
        return wire.encode(request), wanted

    def session(self, shown: list[int]) -> None:
        """One session: a hello, packets until it is cut or has had enough of them."""
        dice = self._dice
        with WireClient(self._path) as client:
            sock = client.sock
            for _ in range(dice.randrange(1, BURST)):
                packet, wanted = self._packet(session.NAME, wire.REQUESTS, [dice.randrange(1, 99)])
                fds = [dice.choice(shown) for _ in range(wanted if dice.random() < 0.97 else dice.randrange(9))]
                try:
                    send_packet(sock, packet, fds) if packet else sock.send(b"")
                except (BrokenPipeError, ConnectionResetError):
                    break
                self._count(packets=1, with_descriptors=bool(fds))
            self._drain(sock)

    def _drain(self, sock: socket.socket) -> None:
        """Ask once more and read until that is answered, or the session ends."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send_packet(sock, wire.encode([2**64 - 1, wire.STATUS]))
        while True:
            try:
                packet, fds = recv_packet(sock)
            except ConnectionResetError:
                continue  # what was sent before is still to come
            close_all(fds)
            if not packet:
                self._count(cut=1)
                return
            self._count(answers=1)
            if wire.decode_answer(packet)[0] == 2**64 - 1:
                return

    def timeline(self, broker: fb.Broker, shown: list[int]) -> None:
        """One timeline: packets until the broker ends it or it has had enough of them."""
        dice = self._dice
        with contextlib.suppress(fb.BrokerUnavailable), contextlib.ExitStack() as stack:
            line = stack.enter_context(broker.create_timeline())
            for fence in line.export_many(range(1, 4)):
                stack.enter_context(fence)
            end = stack.enter_context(line.share())
            for _ in range(dice.randrange(1, BURST)):
                packet, _ = self._packet(timeline.NAME, wire.TIMELINE_OPS, [7, dice.randrange(99)])
                fds = [dice.choice(shown)] if dice.random() < 0.02 else []
                try:
                    send_packet(end, packet, fds) if packet else end.send(b"")
                except (BrokenPipeError, ConnectionResetError):
                    break
                self._count(packets=1, with_descriptors=bool(fds), on_timelines=1)


def fire(broker: BrokerProcess, n: int, seed: int, progress: Callable[[int], None]) -> Figures:
    """Send ``n`` packets; AssertionError if the broker ends, loses a descriptor, or says the same thing twice."""
    shooter = _Shooter(broker.path, seed)
    with contextlib.ExitStack() as stack:
        honest = stack.enter_context(fb.connect(broker.path))
        line = stack.enter_context(honest.create_timeline("honest"))
        fences = [stack.enter_context(fence) for fence in line.export_many(range(1, 9))]
        pipe = [stack.enter_context(OwnedFd(fd)) for fd in os.pipe2(os.O_CLOEXEC)]
        shown = [pipe[0].fileno(), pipe[1].fileno(), *(fence.fileno() for fence in fences)]
        baseline = descriptors_of(broker.pid)
        while shooter.figures.packets < n:
            before = shooter.figures.packets
            for _ in range(10):
                shooter.session(shown)
            shooter.timeline(honest, shown)
            assert broker.process.process.poll() is None, f"the broker ended:\n{broker.log()}"
            progress(shooter.figures.packets - before)
        line.advance(8)
        fb.wait_all(fences, LIMIT)
        # What was made for sessions that are gone is kept for a while, up to the quota of records.
        while descriptors_of(broker.pid) > baseline + 1024 + 64:
            select.select([], [], [], 0.01)
    lines = broker.log().splitlines()
    causes = [text.split(": ", 2)[-1] for text in lines]
    assert len(lines) < 40, "\n".join(lines)
    assert len(causes) == len(set(causes)), "a line was repeated"
    assert all(text.isprintable() for text in lines)
    return shooter.figures
