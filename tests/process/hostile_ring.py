"""A producer with a ring that it writes to by itself, and the ways in which it may leave the page."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

import fencebroker as fb
from fencebroker import ring, wire
from fencebroker.fds import OwnedFd, send_packet
from fencebroker.mapping import Mapping
from tests.process.wire_client import WireClient

__all__ = ["SPOILS", "Hostile"]


class Hostile:
    """Owns a timeline and the memory of its ring; the session's connection stays the caller's."""

    def __init__(self, client: WireClient, holder: int = 5) -> None:
        self.client = client
        client.say([2, wire.CREATE_TIMELINE, None, "hostile", 0o600, None])
        with contextlib.ExitStack() as undo:
            self.context, end = self._take(2)
            self.sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=end.detach()))
            client.say([3, wire.RING, self.context, holder])
            n_bytes, memory = self._take(3)
            self.memory = undo.enter_context(memory)
            assert n_bytes == ring.RING_BYTES
            self.mapping = Mapping(memory.fileno(), n_bytes)
            undo.pop_all()
        self.writer = ring.Writer(self.mapping.view)
        self.words = self.mapping.view.cast("Q")

    def _take(self, serial: int) -> tuple[int, OwnedFd]:
        """The number and the descriptor of an answer."""
        packet, fds = self.client.take()
        assert packet, "the broker ended this session"
        answer = wire.decode_answer(packet)
        assert answer[:2] == [serial, 0], answer
        return answer[2], fds[0]

    def export(self, seqno: int) -> fb.SyncFile:
        self.client.say([4, wire.EXPORT, self.context, [seqno], "", False])
        self.handle, fd = self._take(4)
        return fb.SyncFile.from_fd(fd.detach())

    def ring_the_bell(self) -> None:
        send_packet(self.sock, wire.DOORBELL)

    def close(self) -> None:
        self.words.release()
        self.writer.close()
        self.mapping.close()
        self.memory.close()
        self.sock.close()


def far_head(one: Hostile) -> None:
    one.words[0] = 2**40


def unwritten(one: Hostile) -> None:
    one.words[0] = 3


def torn(one: Hostile) -> None:
    one.writer.commit(ring.ADVANCE, 5, 0, 0)
    one.words[33] = 6


def backwards(one: Hostile) -> None:
    one.writer.commit(ring.ADVANCE, 1, 0, 0)
    one.writer.commit(ring.ADVANCE, 1, 0, 0)


def unknown(one: Hostile) -> None:
    one.writer.commit(9, 1, 0, 0)


def after_close(one: Hostile) -> None:
    one.writer.commit(ring.CLOSE, 0, 0, 0)
    one.writer.commit(ring.ADVANCE, 5, 0, 0)


def noise(one: Hostile) -> None:
    one.mapping.view[:] = os.urandom(ring.RING_BYTES)


SPOILS: Final[tuple[Callable[[Hostile], None], ...]] = (far_head, unwritten, torn, backwards, unknown, after_close, noise)
