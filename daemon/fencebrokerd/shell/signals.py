"""Signals as something the loop can wait for: each sets a flag and makes a descriptor readable."""

from __future__ import annotations

import signal
import socket

__all__ = ["Signals"]


class Signals:
    """Owns the pair that wakes the loop.  ``stop`` and ``reload`` say what was asked for."""

    def __init__(self) -> None:
        self.stop = False
        self.reload = False
        self._readable, self._writable = socket.socketpair()
        self._readable.setblocking(False)
        self._writable.setblocking(False)

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._readable.fileno()

    def watch(self) -> None:
        """SIGTERM and SIGINT stop, SIGHUP reloads."""
        signal.set_wakeup_fd(self._writable.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        # A keeper holds them back until they are heard.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

    def _stop(self, *_: object) -> None:
        self.stop = True

    def _reload(self, *_: object) -> None:
        self.reload = True

    def drain(self) -> None:
        """Take what woke the loop."""
        self._readable.recv(4096)

    def ignore(self) -> None:
        """From here on the process ends in order: a handler would be reset while the interpreter ends, and the signal would kill."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Close the pair."""
        self._readable.close()
        self._writable.close()
