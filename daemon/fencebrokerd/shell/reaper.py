"""Has descriptors closed that clients sent.  Closing a foreign file can block for as long as its maker likes (SO_LINGER, a FUSE file), so it is
never done in the broker's loop, but by a process that shares its descriptors (``fencebrokerd.keeper.Reaper``).
"""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import Final

from fencebrokerd.keeper import CLOSED, CLOSING, Keeper

__all__ = ["Reaper"]

#: A close that takes longer is left behind, and another process closes what comes after it.
PATIENCE_NS: Final = 1_000_000_000


class Reaper:
    """Takes descriptors and has them closed, in order.  Owns what does not fit into the pipe."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._words = keeper.page.words
        self._sent: int = self._words[CLOSED]
        self._waiting: deque[int] = deque()

    def close_fd(self, fd: int) -> None:
        """Take ``fd``, which is closed soon."""
        if not self._keeper.reaper.pid:  # there is no keeper that would have started one
            self._keeper.reaper.start()
        self._waiting.append(fd)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            try:
                os.write(self._keeper.reaper.writable, self._waiting[0].to_bytes(4, "little"))
            except BlockingIOError:
                return
            self._waiting.popleft()
            self._sent += 1

    @property
    def pending(self) -> int:
        """How many are not closed yet."""
        return self._sent - int(self._words[CLOSED]) + len(self._waiting)

    def due(self, now: int) -> int | None:
        """When to look whether a close is stuck; None while there is nothing to close."""
        return (int(self._words[CLOSING]) or now) + PATIENCE_NS if self.pending else None

    def pass_time(self, now: int) -> None:
        """Replace the process when a close takes too long."""
        since = self._words[CLOSING]
        if since and since + PATIENCE_NS <= now:
            if self._keeper.page.keeper == os.getpid():
                self._keeper.reaper.start()
            else:
                os.kill(self._keeper.page.keeper, signal.SIGUSR1)
        self._pass_on()

    def stop(self) -> None:
        """Leave the rest to the end of the processes that share the table."""
        if self._keeper.page.keeper == os.getpid():
            self._keeper.reaper.end()
