"""Starts a private broker (unless FENCEBROKER_SOCKET names one) and the stages, listens to what they report, and leaves nothing behind.

The stages are unrelated programs: each is exec'ed on its own, in a session of its own, and is told
two things: where the broker listens (FENCEBROKER_SOCKET) and at which Unix sockets its neighbours are.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.pipeline.report import Report

STAGES = ("capture", "filter", "encode")

#: The stages are started as modules, and so from the folder that holds ``examples``.
_ROOT = Path(__file__).resolve().parents[2]
#: Seconds without any news after which something must be wrong.
_PATIENCE = 20.0
#: Seconds a process may take to end after SIGTERM.
_GRACE = 5.0
#: A Unix socket's path has at most 107 bytes; the longest name used here is "capture.sock".
_LONGEST_FOLDER = 107 - len("/capture.sock")


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP came.  The argument is its number."""


class PipelineError(Exception):
    """The pipeline could not be started, or a stage went wrong.  The text is for the user."""


@dataclass(frozen=True)
class Ended:
    """A stage has ended; ``status`` is negative for a signal."""

    stage: str
    status: int


class Pipeline:
    """A broker and processes around it.  Use it as a context manager; leaving it ends them all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._unread = b""
        self._complaints = b""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fencebroker-demo-")))
            if len(os.fsencode(folder)) > _LONGEST_FOLDER:
                raise PipelineError(f"{folder}: too long a path for Unix sockets; set TMPDIR to a shorter one")
            self._folder = folder
            self._interrupts = undo.enter_context(_interrupts())
            self._reports, self._stages_out = undo.enter_context(_pipe())
            self._errors, self._stages_err = undo.enter_context(_pipe())
            undo.callback(self._await_descendants)  # runs after all processes were ended, and before the pipes are closed
            # A broker that the user names is the user's; the demo's own is for those who have none, and need none.
            self._socket = os.environ.get("FENCEBROKER_SOCKET") or str(folder / "broker.sock")
            self._broker = None if os.environ.get("FENCEBROKER_SOCKET") else self._start_broker(undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def socket_path(self, stage: str) -> str:
        return str(self._folder / f"{stage}.sock")

    @property
    def film(self) -> Path:
        """Where the encoder writes.  Nobody sees an unfinished film: what is not moved from here goes with the folder."""
        return self._folder / "film.gif"

    def start(self, stage: str, *arguments: str) -> None:
        """Exec one stage."""
        process = subprocess.Popen(
            [sys.executable, "-m", f"examples.pipeline.{stage}", *arguments],
            cwd=_ROOT,
            env={**os.environ, "FENCEBROKER_SOCKET": self._socket},
            stdin=subprocess.DEVNULL,
            stdout=self._stages_out,
            stderr=self._stages_err,
            start_new_session=True,  # Ctrl-C is for the launcher alone, which ends the stages in order
        )
        self._stack.callback(_end, process)
        self._running[stage] = process

    def kill(self, stage: str) -> int:
        """Send SIGKILL and return when.  PipelineError if the stage has already ended."""
        process = self._running.get(stage)
        if process is None or process.poll() is not None:
            raise PipelineError(f"{stage} had already ended when it was to be killed; give more --frames")
        killed_ns = time.monotonic_ns()
        process.kill()
        return killed_ns

    def news(self) -> Iterator[Report | Ended]:
        """Yield what the stages report, until all have ended.  PipelineError if there is nothing to hear for long."""
        while self._running:
            ended = self._wait()
            yield from self._read()
            for stage in ended:
                yield Ended(stage, self._running.pop(stage).wait())
        yield from self._read()

    def complaints(self) -> str:
        """Return what the stages wrote on standard error; each names itself."""
        self._complaints += _drain(self._errors)
        return self._complaints.decode(errors="replace").strip()

    def _start_broker(self, undo: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        ready, broker_end = os.pipe()
        log = self._folder / "broker.log"
        # Should the launcher itself be killed, the broker leaves when it has been idle for ten seconds.
        arguments = ["--listen", self._socket, "--ready-fd", str(broker_end), "--idle-exit", "10"]
        with open(ready, "rb") as readiness:
            try:
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "fencebrokerd", *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        pass_fds=(broker_end,),
                        start_new_session=True,
                    )
            finally:
                os.close(broker_end)
            undo.callback(_end, process)
            self._poll([ready])
            if readiness.read(1) != b"\n":
                raise PipelineError(f"the broker did not start: {log.read_text(errors='replace').strip() or 'no reason given'}")
        return process

    def _wait(self) -> list[str]:
        """Wait for reports or for the end of a process; return the stages that have ended."""
        with contextlib.ExitStack() as closing:
            ends: dict[int, str] = {}
            broker = [] if self._broker is None else [("broker", self._broker)]
            for name, process in [*self._running.items(), *broker]:
                pidfd = os.pidfd_open(process.pid)
                closing.callback(os.close, pidfd)
                ends[pidfd] = name
            ready = self._poll([self._reports, self._errors, *ends])
        if self._errors in ready:
            self._complaints += _drain(self._errors)
        ended = [ends[fd] for fd in ready if fd in ends]
        if "broker" in ended:
            raise PipelineError(f"the broker ended: {(self._folder / 'broker.log').read_text(errors='replace').strip()}")
        return ended

    def _poll(self, fds: list[int]) -> list[int]:
        """Wait until one of ``fds`` is readable (or at its end) and return those that are."""
        poller = select.poll()
        for fd in (self._interrupts, *fds):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(_PATIENCE * 1000)]
        if self._interrupts in ready:
            raise Interrupted(os.read(self._interrupts, 1)[0])
        if not ready:
            raise PipelineError(f"nothing happened for {_PATIENCE:g} s; running: {', '.join(['the broker', *self._running])}")
        return ready

    def _read(self) -> Iterator[Report]:
        *lines, self._unread = (self._unread + _drain(self._reports)).split(b"\n")
        yield from map(Report.from_line, lines)

    def _await_descendants(self) -> None:
        """Wait for what the stages started: each resource tracker ends after its stage, and holds standard error until then."""
        os.dup2(self._stages_out, self._stages_err)  # closes the launcher's copy of the writing end
        poller = select.poll()
        poller.register(self._errors, select.POLLIN)
        deadline = time.monotonic() + _GRACE
        while poller.poll(max(0.0, deadline - time.monotonic()) * 1000) and _drain(self._errors):
            pass


def _drain(pipe: int) -> bytes:
    """Return all that is in a non-blocking pipe; at its end, nothing."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(pipe, 65536):
            data += block
    return data


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose reader never blocks."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def _interrupts() -> Iterator[int]:
    """Turn the signals that end a program into bytes to read from a descriptor.

    So they are noticed where the launcher waits and nowhere else: never between the start of a process
    and the note that it has to be ended.
    """
    with _pipe() as (reader, writer):
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        wakeup = signal.set_wakeup_fd(writer)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End one process that was started here: politely, then not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
