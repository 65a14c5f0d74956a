"""What has been let go so far, in memory that the workers share.

A producer writes here *before* it signals.  So whoever sees a fence signalled and does not find it here has seen it too early; there is no
moment at which that could be a false alarm.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, Self

__all__ = ["EVERYTHING", "SLOTS", "Ledger"]

#: Slots for one producer, one for each timeline of its; they are used again when so many timelines are long gone.
SLOTS: Final = 4096
#: The timeline has ended: all that is left on it fails.
EVERYTHING: Final = 2**64 - 1


class Ledger:
    """One number for each timeline: up to which seqno its producer has let go."""

    def __init__(self, path: str, producers: int = 0) -> None:
        """Open the file; ``producers`` makes it, with room for so many."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if producers else 0), 0o600)
        try:
            if producers:
                os.ftruncate(fd, producers * SLOTS * 8)
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")

    def __getitem__(self, slot: int) -> int:
        return self._words[slot]

    def __setitem__(self, slot: int, seqno: int) -> None:
        self._words[slot] = seqno

    def close(self) -> None:
        self._words.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
