"""What a service manager hears while we run: STATUS= when it changes, and WATCHDOG=1 when it asked for it.

The watchdog is fed only after a round trip through the broker's own socket: connect, hello, answer.  A loop that turns without serving
starves it.  STATUS= says what changes rarely (clients, timelines), at most ten times a second; what is left over after a burst is said a
tenth of a second later, once.  An idle broker is not woken.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from fencebroker import wire
from fencebroker.fds import NOWAIT, Truncated, close_all, recv_packet, send_packet
from fencebrokerd.shell.notify import notify

__all__ = ["Supervisor"]

STATUS_NS: Final = 100_000_000


class Supervisor:
    """Owns the connection of a watchdog's round trip while one is under way."""

    def __init__(self, epoll: select.epoll, address: str | bytes, status: Callable[[], str], main_pid: int) -> None:
        self._epoll = epoll
        self._address = address
        self._status = status
        self.listens = bool(os.environ.get("NOTIFY_SOCKET"))
        self._said = ""
        self._may_say = 0
        self._left_over = False
        self._interval = _watchdog_interval(main_pid) if self.listens else None
        self._next = None if self._interval is None else time.monotonic_ns() + self._interval
        self._trip: socket.socket | None = None

    @property
    def due(self) -> int | None:
        """When there is something to do next; None: never, unless something changes."""
        if not self._left_over:
            return self._next
        return self._may_say if self._next is None else min(self._next, self._may_say)

    def owns(self, fd: int) -> bool:
        """Whether ``fd`` is the round trip's."""
        return self._trip is not None and self._trip.fileno() == fd

    @property
    def n_open(self) -> int:
        """Descriptors in use."""
        return int(self._trip is not None)

    def say_status(self) -> None:
        """Tell what changed, if anybody listens."""
        status = self._status()
        self._left_over = False
        if status == self._said:
            return
        now = time.monotonic_ns()
        if now < self._may_say:
            self._left_over = True
            return
        self._said, self._may_say = status, now + STATUS_NS
        notify(f"STATUS={status}")

    def pass_time(self, now: int) -> None:
        """Begin a round trip if one is due.  One that has not come back is not begun again: the watchdog shall bite."""
        if self._next is None or self._interval is None or self._next > now:
            return
        self._next = now + self._interval
        if self._trip is not None:
            return
        trip = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            trip.connect(self._address)
            send_packet(trip, wire.encode([1, wire.HELLO, wire.VERSION, "watchdog"]), (), NOWAIT)
            self._epoll.register(trip.fileno(), select.EPOLLIN)
        except OSError:
            trip.close()  # no room for a guest, or the backlog is full: that is what a watchdog is for
            return
        self._trip = trip

    def come_back(self) -> None:
        """The round trip's answer is here."""
        assert self._trip is not None
        trip, self._trip = self._trip, None
        self._epoll.unregister(trip.fileno())
        with trip:
            try:
                packet, fds = recv_packet(trip, NOWAIT)
            except (OSError, Truncated):
                return
            close_all(fds)
        if packet and wire.decode_answer(packet)[1] == 0:
            notify("WATCHDOG=1")

    def close(self) -> None:
        """End a round trip that is under way."""
        if self._trip is not None:
            self._trip.close()
            self._trip = None


def _watchdog_interval(main_pid: int) -> int | None:
    """Half of what systemd allows, in ns; None if it asked for nothing, or asked somebody else."""
    allowed, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not allowed.isdigit() or int(allowed) == 0 or (pid and pid != str(main_pid)):
        return None
    return int(allowed) * 1000 // 2
