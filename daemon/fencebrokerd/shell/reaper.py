"""Closes what clients sent.  Closing a foreign file can block for as long as its maker likes (SO_LINGER, a FUSE file), so it is never done
in the broker's loop.  One thread, started when it is first needed.
"""

from __future__ import annotations

import os
import queue
import threading

__all__ = ["Reaper"]


class Reaper:
    """Takes descriptors and closes them, in order, elsewhere."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close_fd(self, fd: int) -> None:
        """Take ``fd`` and close it soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
            self._thread.start()
        self._queue.put(fd)

    def stop(self, timeout: float) -> None:
        """Close what is queued; give up after ``timeout`` seconds, for the end of the process closes the rest."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        while (fd := self._queue.get()) is not None:
            try:
                os.close(fd)
            except OSError:
                # close() reports late write errors of a file that was never ours; the descriptor is gone either way.
                continue
