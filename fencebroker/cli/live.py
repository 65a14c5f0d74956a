"""What a screen is driven by: keys without Enter, and the terminal's size."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final, Self

from fencebroker.fds import OwnedFd

__all__ = ["Keys", "Resized"]

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
