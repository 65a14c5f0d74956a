"""Which raw descriptors of this process are sync_files that its session asked for: those need not be shown to the broker, only named.

Facts
  A raw descriptor is closed with no notice, and its number comes back as something else; even the same file may come back after another
  one had its number.  So each number is compared, before it is believed, with a copy of what it was (F_DUPFD_QUERY, half a microsecond).
  Nobody is told when the last copy of an eventfd is closed, so keeping one changes nothing for others.
Rules
  The newest few are kept, for each costs a descriptor.  A forked child keeps none: its session is another one.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import Final

from fencebroker.fds import F_DUPFD_QUERY, can_compare

__all__ = ["KnownFds"]

#: So many at once; a process that juggles more shows the others to the broker.
LIMIT: Final = 32


class KnownFds:
    """Number -> handle, for one session.  Owns a copy of each file; thread-safe."""

    __slots__ = ("_entries", "_is_closed", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[int, int]] = {}  # number -> copy, handle; the one not asked for longest first
        self._is_closed = not can_compare()

    def add(self, fd: int, handle: int) -> None:
        """Note that the new descriptor ``fd`` is the sync_file ``handle``.  Without a descriptor left for a copy it is not."""
        with self._lock:
            entries = self._entries
            self._drop(fd)
            if self._is_closed:
                return
            if len(entries) >= LIMIT:
                self._drop(next(iter(entries)))
            try:
                entries[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), handle
            except OSError:
                return

    def find(self, fd: int) -> int | None:
        """Return the handle of ``fd`` if the number still stands for the file that was noted."""
        with self._lock:
            entries = self._entries
            entry = entries.pop(fd, None)
            if entry is None:
                return None
            entries[fd] = entry  # the newest now
            try:
                if fcntl.fcntl(entry[0], F_DUPFD_QUERY, fd):
                    return entry[1]
            except OSError:  # the number is closed
                pass
            self._drop(fd)
            return None

    def _drop(self, fd: int) -> None:
        entry = self._entries.pop(fd, None)
        if entry is not None:
            os.close(entry[0])

    def close(self) -> None:
        """Forget everything, for good."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Like ``close``, in a forked child, where another thread may have held the lock for ever."""
        self._is_closed = True
        for fd in list(self._entries):
            self._drop(fd)
