"""A screen that changes: keys without Enter, a clock, the broker's events; and a broker that goes away and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final, Self

from fencebroker import Broker, BrokerUnavailable, requests, wire
from fencebroker.connection import Connection
from fencebroker.fds import OwnedFd, close_all, recv_packet

__all__ = ["Feed", "Keys", "Resized"]

#: How a terminal says what was pressed, beside the characters themselves.
_NAMES: Final = {b"\x1b": "escape", b"\r": "enter", b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace", b"\x03": "interrupt"}


class Keys:
    """Reads single keys from standard input, if that is a terminal.  Use ``with``: the terminal is put back as it was."""

    def __init__(self) -> None:
        self._fd = -1
        self._before: list[object] | None = None

    def __enter__(self) -> Self:
        if sys.stdin is not None and sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def fileno(self) -> int:
        """Return what becomes readable when a key was pressed; -1 without a terminal."""
        return self._fd

    def read(self) -> Iterator[str]:
        """Yield the keys that were pressed: characters, or names such as ``escape``."""
        data = os.read(self._fd, 4096)
        if not data:  # the terminal is gone
            raise KeyboardInterrupt
        if data in _NAMES or data.startswith(b"\x1b"):
            yield _NAMES.get(data, "")  # an arrow, or another key that is not used here
            return
        for character in data.decode(errors="ignore"):
            yield _NAMES.get(character.encode(), character)


class Resized:
    """Becomes readable when the terminal's size changed (SIGWINCH).  Use ``with``."""

    def __init__(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reader, self._writer = OwnedFd(reader), OwnedFd(writer)
        self._before: object = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGWINCH, lambda *_: self._note())
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGWINCH, self._before)  # type: ignore[arg-type]
        self._reader.close()
        self._writer.close()

    def _note(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer.fileno(), b"\0")

    def fileno(self) -> int:
        return self._reader.fileno()

    def clear(self) -> None:
        """Take note."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fileno(), 4096)


class Feed:
    """The broker's events over a connection of its own, for whoever waits for other things too.  Use ``with``."""

    def __init__(self, broker: Broker) -> None:
        self._connection = Connection(broker._connection.path)
        try:
            self._connection.call(requests.subscribe())
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def fileno(self) -> int:
        sock = self._connection._sock
        assert sock is not None
        return sock.fileno()

    def take(self) -> int:
        """Take one packet of events; returns how many they are, those that were lost included.  BrokerUnavailable when the broker goes."""
        sock = self._connection._sock
        assert sock is not None
        packet, fds = recv_packet(sock)
        close_all(fds)
        if not packet:
            raise BrokerUnavailable(f"the broker at {self._connection.path} went away")
        _, lost, lines = wire.decode_answer(packet)
        return int(lost) + len(lines)
