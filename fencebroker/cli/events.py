"""The broker's events as they come, and questions to the broker in between, in one order.

Facts
  A session that subscribed gets events and answers in the order in which things happened: what was pushed before an answer happened before
  it.  The broker does not wait for a slow reader: it counts what it leaves out, and says so with the next event.
Plan
  ``read`` first takes everything that has arrived off the socket, and only then decodes, so that the broker seldom finds it full.
"""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from fencebroker import requests, wire
from fencebroker.cli.catalogue import read
from fencebroker.client import read_events
from fencebroker.connection import Connection, read_answer, refusal_of
from fencebroker.fds import close_all, recv_packet, send_packet
from fencebroker.model import Event
from fencebroker.rows import FenceRow

__all__ = ["OWN", "Stream"]

#: The driver of the timeline that is created to learn what was lost last; such a timeline is of no interest to anybody.
OWN: Final = "fencectl"


class Stream:
    """Owns a session that follows the events from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = Connection(path)
        self._packets: collections.deque[bytes] = collections.deque()
        self._serial = 1000  # above those of the connection's own requests
        try:
            self._connection.call(requests.subscribe())
            assert self._connection._sock is not None
            self._sock = self._connection._sock
        except BaseException:
            self._connection.close()
            raise

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._sock.fileno()

    def read(self) -> Iterator[Event]:
        """Yield what has arrived; does not wait.  Events of the driver ``OWN`` only tell what was lost before them."""
        while True:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._take(socket.MSG_DONTWAIT)
            if not self._packets:
                return
            yield from read_events(self._packets.popleft())

    def taken(self) -> Iterator[Event]:
        """Yield what came before the last answer."""
        while self._packets:
            yield from read_events(self._packets.popleft())

    def _take(self, flags: int = 0) -> list[Any] | None:
        """Receive one packet: an event is kept, an answer returned."""
        packet, fds = recv_packet(self._sock, flags)
        close_all(fds)
        answer = read_answer(self._connection.path, packet, [])
        if answer[0]:
            return answer
        self._packets.append(packet)
        return None

    def ask(self, op: int, *arguments: Any) -> list[Any]:
        """Ask the broker; descriptors that come along are closed."""
        self._serial += 1
        send_packet(self._sock, wire.encode((self._serial, op, *arguments)))
        while True:
            answer = self._take()
            if answer is not None and answer[0] == self._serial:
                refusal = refusal_of(answer)
                if refusal is not None:
                    raise refusal
                return answer[2:]

    def active(self) -> Iterator[FenceRow | Event]:
        """Yield the fences that are active now, and the events meanwhile, in an order in which the one does not contradict the other."""
        cursor: int | None = 0
        while cursor is not None:
            cursor, rows = self.ask(wire.LIST, "fences", cursor)
            yield from self.taken()
            for columns in rows:
                row = read("fence", columns)
                assert isinstance(row, FenceRow)
                if not row.status:
                    yield row

    def rest(self) -> Iterator[Event]:
        """Yield what happened until now, and make sure that the last event tells what was lost."""
        with contextlib.suppress(OSError):  # a quota
            self.ask(wire.CREATE_TIMELINE, None, OWN, 0o600, None)
        self.ask(wire.STATUS)
        yield from self.taken()

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
