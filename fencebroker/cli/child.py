"""A command that a verb runs, and what becomes of signals meanwhile.

Facts
  Ctrl-C reaches the whole foreground group, the command and us.  What it ends is the command's business, so we only note it; a SIGTERM or
  SIGHUP reaches us alone, and is handed on.  A command that is stopped by hand (Ctrl-Z) stops us too, and goes on with us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Self

from fencebroker.cli.command import Failure
from fencebroker.fds import OwnedFd

__all__ = ["Child", "Stop", "become", "ended_by_signals"]

_ENDING = (signal.SIGHUP, signal.SIGTERM)


class Child:
    """A command that runs.  Leaving ``with`` waits for its end."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start it with these additions to the environment; Failure when there is no such program."""
        self._previous = {number: signal.signal(number, self._hand_on) for number in _handled(signal.SIGINT, *_ENDING)}
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        try:
            self._process = _start(command, env)
            for number in self._early:  # came before there was anybody to hand them to
                self._process.send_signal(number)
            self.pidfd = OwnedFd(os.pidfd_open(self._process.pid))
        except BaseException:
            self._end()
            raise
        self.name = command[0]

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGINT:
            if self._process is None:
                self._early.append(number)
            else:
                self._process.send_signal(number)

    def fileno(self) -> int:
        """Readable when the command has ended."""
        return self.pidfd.fileno()

    def wait(self) -> int:
        """Wait for its end: the exit status, or the negative number of the signal that killed it."""
        assert self._process is not None
        return self._process.wait()

    def check(self) -> None:
        """Wait for its end; Failure when it ended badly."""
        if self.wait():
            raise Failure(self.ending())

    def ending(self) -> str:
        """How it ended, in words; after ``wait``."""
        status = self.wait()
        return f"{self.name} ended with exit status {status}" if status >= 0 else f"{self.name} was killed by {_signal_name(-status)}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        self.pidfd.close()


def _start(command: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env={**os.environ, **(env or {})})
    except OSError as err:
        raise _cannot_run(command, err) from err


def become(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Become the command: its process id, descriptors and exit code are ours.  Failure when that cannot be."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), {**os.environ, **env})  # noqa: S606 - what the user typed, without a shell
    except OSError as err:
        raise _cannot_run(command, err) from err


def _cannot_run(command: Sequence[str], err: OSError) -> Failure:
    return Failure(f"{command[0]!r} cannot be run: {err.strerror}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Stop:
    """In its block SIGINT, SIGTERM and SIGHUP end nothing: they make this readable."""

    def __init__(self) -> None:
        self._read, self._write = (OwnedFd(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read.fileno()

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in _handled(signal.SIGINT, *_ENDING)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._read.close()
        self._write.close()


def _handled(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those that are not ignored: what is (nohup, jobs in the background of a script) stays so, for the command too."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit in the block, as Ctrl-C raises KeyboardInterrupt: what is to be done at the end is done."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in _handled(*_ENDING)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
