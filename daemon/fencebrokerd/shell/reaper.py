"""Has descriptors closed that clients sent.  Closing a foreign file can block for as long as its maker likes (SO_LINGER, a FUSE file), so it is
never done in the broker's loop, but by processes that share its descriptors (``fencebrokerd.keeper.Reaper``).

Each descriptor is charged to the user it came from, from its receipt until it is closed.  Each user has a process of its own for as long as
something of it is to be closed, so that nobody waits for another's; there are ``LANES`` of them, and whoever comes when all are busy waits.
Most of what is closed needs none: a socket in which no descriptor is left unread is closed at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from fencebroker.fds import Truncated, drop_packet, look_at_packet
from fencebrokerd.core.account import Charge
from fencebrokerd.keeper import CLOSED, LANE, LANE_WORDS, LANES, PID, STUCK, USER, Keeper
from fencebrokerd.shell.peer import user_of

__all__ = ["ForeignFd", "Reaper"]

#: Packets that are taken off a socket before it is closed; of the smallest, that is more than one holds.
MOST: Final = 1024
#: What is not closed after so long may stay for ever.
PATIENCE_NS: Final = 1_000_000_000


class ForeignFd:
    """A descriptor that only a reaper may close, and what it costs its user."""

    __slots__ = ("charge", "fd", "since")

    def __init__(self, fd: int, charge: Charge) -> None:
        self.fd = fd
        self.charge = charge
        self.since = time.monotonic_ns()


class Reaper:
    """Owns every foreign descriptor until it is closed.  ``charge`` makes the charge for one of a uid's."""

    def __init__(self, keeper: Keeper, charge: Callable[[int], Charge]) -> None:
        self._keeper = keeper
        self._page = keeper.page
        self._charge = charge
        self._all: dict[ForeignFd, None] = {}
        #: What has no lane yet, or did not fit into the pipe: by uid, in order.
        self._waiting: dict[int, deque[ForeignFd]] = {}
        self._lanes: dict[int, int] = {}  # uid -> lane
        self._passed: list[deque[tuple[int, ForeignFd]]] = [deque() for _ in range(LANES)]
        self._sent = [0] * LANES
        self._is_over = False
        for lane in range(LANES):
            if self._word(lane, STUCK):  # since before this broker's time: its number is free, and its user pays on
                uid = self._word(lane, USER) - 1
                self._lanes[uid] = lane
                self._passed[lane].append((0, self.own(-1, uid)))

    def _word(self, lane: int, which: int) -> int:
        return int(self._page.words[LANE + lane * LANE_WORDS + which])

    def fileno(self) -> int:
        """Readable when something was closed."""
        return self._keeper.reaper.closed

    def owner_of(self, fd: int) -> int | None:
        """To whom ``fd`` was charged last, if to anybody: by this broker, or by another one of this table."""
        owners = self._page.owners
        return (owners[fd] - 1 if owners[fd] else None) if fd < len(owners) else None

    def own(self, fd: int, uid: int) -> ForeignFd:
        """Take ``fd``, which came from ``uid``."""
        foreign = ForeignFd(fd, self._charge(uid))
        self._all[foreign] = None
        if 0 <= fd < len(self._page.owners):
            self._page.owners[fd] = uid + 1
        return foreign

    def close(self, foreign: ForeignFd) -> None:
        """Have it closed soon."""
        if not self._is_over:
            uid = foreign.charge.uid
            self._waiting.setdefault(uid, deque()).append(foreign)
            self._pass_on(uid)

    def close_fd(self, fd: int, uid: int) -> None:
        """Take ``fd``, which came from ``uid``, and have it closed soon."""
        if not self._is_over:
            self.close(self.own(fd, uid))

    def close_socket(self, sock: socket.socket, uid: int | None = None) -> None:
        """Close a socket: at once, unless descriptors that ``uid`` sent are unread in it; None is whoever connected it."""
        with contextlib.suppress(OSError):  # nobody was at its other end any more
            sock.shutdown(socket.SHUT_RDWR)  # from here on nothing comes in
        if _is_emptied(sock):
            sock.close()
            return
        if uid is None:
            uid = user_of(sock)
        self.close_fd(sock.detach(), uid)

    def _pass_on(self, uid: int) -> None:
        lane = self._lanes.get(uid)
        if lane is None:
            lane = next((lane for lane in range(LANES) if lane not in self._lanes.values()), None)
            if lane is None:
                return
            self._lanes[uid] = lane
            self._page.words[LANE + lane * LANE_WORDS + USER] = uid + 1
        if self._word(lane, STUCK):
            return
        if not self._word(lane, PID):
            self._start()
        waiting = self._waiting[uid]
        while waiting:
            record = waiting[0].fd.to_bytes(4, "little") + (self._sent[lane] + 1).to_bytes(4, "little")
            try:
                os.write(self._keeper.reaper.pipes[lane][1], record)
            except BlockingIOError:
                return
            self._sent[lane] += 1
            self._passed[lane].append((self._sent[lane], waiting.popleft()))
        del self._waiting[uid]

    def _start(self) -> None:
        if self._page.keeper == os.getpid():
            self._keeper.reaper.start()
        else:
            os.kill(self._page.keeper, signal.SIGUSR1)

    @property
    def pending(self) -> int:
        """How many are not closed yet."""
        return len(self._all)

    def overdue(self) -> int:
        """How many are as good as taken: all, if the oldest is so old that nobody knows when it is closed; otherwise they go in a moment."""
        oldest = next(iter(self._all), None)
        return len(self._all) if oldest is not None and oldest.since + PATIENCE_NS < time.monotonic_ns() else 0

    def look(self) -> None:
        """Something was closed: give back what it cost, and pass on what waited for it."""
        try:
            os.read(self.fileno(), 8)
        except BlockingIOError:
            return
        for uid, lane in list(self._lanes.items()):
            passed = self._passed[lane]
            if self._word(lane, STUCK):
                continue
            while passed and passed[0][0] <= self._word(lane, CLOSED):
                self._release(passed.popleft()[1])
            if uid in self._waiting:
                self._pass_on(uid)
            if not passed:
                del self._lanes[uid]
                self._page.words[LANE + lane * LANE_WORDS + USER] = 0
        for uid in [uid for uid in self._waiting if uid not in self._lanes]:
            self._pass_on(uid)

    def _release(self, foreign: ForeignFd) -> None:
        del self._all[foreign]
        foreign.charge.release()

    def stop(self) -> None:
        """Leave the rest to the end of the processes that share the table."""
        self._is_over = True
        for foreign in list(self._all):
            self._release(foreign)
        if self._page.keeper == os.getpid():
            self._keeper.reaper.end()


def _is_emptied(sock: socket.socket) -> bool:
    """Take packets off a socket that was shut down, up to the first with descriptors, which are not ours to close; True when nothing is left."""
    for _ in range(MOST):
        try:
            packet, has_descriptors = look_at_packet(sock)
        except ConnectionResetError:  # said once, ahead of what waits
            continue
        except (OSError, Truncated):
            return False
        if has_descriptors:
            return False
        if not packet and _is_at_end(sock):
            return True
        drop_packet(sock)
    return False


def _is_at_end(sock: socket.socket) -> bool:
    """An empty packet reads like the end; but only a packet has a sender."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        return not look_at_packet(sock)[1]
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
