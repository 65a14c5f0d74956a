"""The two ends of a link as a stage uses them: OutPort hands frames on, InPort takes them in.

Both follow the rules of explicit synchronisation:

- Announce first, fill later.  A frame is sent on, with its out-fence, before its first pixel is
  written; a pool's worth of frames is announced ahead.
- Give the buffer back at once, with a release fence that signals when it is no longer read.
- Wait for the other side's fence before the pixels are touched.  That is all that keeps frames whole,
  and the only thing that ``--without-fences`` leaves out.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from types import TracebackType
from typing import Self

import fencebroker as fb
from examples.pipeline.link import Hello, Link, LinkClosed, Message
from examples.pipeline.pool import Buffer, FramePool
from examples.pipeline.report import Report

#: Seconds a fence may take.  Its producer's death ends the wait at once; this is for one that is stuck.
_PATIENCE = 10.0


class Broken(Exception):
    """The neighbour will not do what a stage waits for.  ``error`` is the fence's errno, 0 if it merely left."""

    def __init__(self, subject: str, sequence: int, reason: fb.FenceError | LinkClosed) -> None:
        self.at_ns = time.monotonic_ns()
        super().__init__(f"{subject} of frame {sequence}: {reason}")
        self.subject = subject
        self.sequence = sequence
        self.error = reason.error if isinstance(reason, fb.FenceError) else 0


class Waiter:
    """Waits for one kind of fence and notes how long after each signal it ran again."""

    def __init__(self, subject: str, *, enabled: bool) -> None:
        self.subject = subject
        self._enabled = enabled
        self._samples_us: list[float] = []

    def wait(self, message: Message) -> bool:
        """Wait for the fence and close it.  Return whether this slept: a fence that had signalled before tells nothing."""
        with message.fence as fence:
            if not self._enabled:
                return False
            slept = fence.status() == 0
            try:
                fence.wait(_PATIENCE)
            except fb.FenceError as error:
                raise Broken(self.subject, message.sequence, error) from error
            return slept

    def note(self, signalled_ns: int, woke_ns: int) -> None:
        self._samples_us.append((woke_ns - signalled_ns) / 1000)

    def report(self, stage: str) -> Report:
        samples = self._samples_us
        cuts = statistics.quantiles(samples, n=100, method="inclusive") if len(samples) > 1 else samples * 99 or [0.0] * 99
        return Report(stage, "wakes", self.subject, waits=len(samples), p50_us=cuts[49], p99_us=cuts[98])


class OutPort:
    """The producer's end: owns the pool, makes out-fences, waits for release fences."""

    def __init__(self, broker: fb.Broker, timeline: str, path: str, hello: Hello, *, waits: bool) -> None:
        """Connect to the neighbour at ``path`` and introduce a new pool; the name in ``hello`` is filled in here."""
        self.frames = hello.frames
        self.waiter = Waiter("release fence", enabled=waits)
        self._announced = 0
        with contextlib.ExitStack() as undo:
            self._pool = FramePool.create(hello.layout)
            undo.callback(self._pool.close)
            try:
                self._link = Link.connect(path)
                undo.callback(self._link.close)
                self._link.introduce(hello._replace(pool=self._pool.name))
            finally:
                self._pool.forget_name()
            self._timeline = undo.enter_context(broker.create_timeline(timeline))
            self._undo = undo.pop_all()

    @property
    def buffers(self) -> int:
        return len(self._pool)

    def announce(self, last: int) -> None:
        """Send on all frames up to ``last`` that were not yet sent.  None of them is filled yet."""
        for sequence in range(self._announced, min(last + 1, self.frames)):
            with self._timeline.export(sequence + 1, name=f"frame-{sequence}") as fence:
                self._link.send(sequence, sequence % self.buffers, fence)
            self._announced = sequence + 1

    def acquire(self, sequence: int) -> Buffer:
        """Return the buffer for ``sequence`` once its last reader is done with it."""
        buffer = self._pool[sequence % self.buffers]
        if sequence >= self.buffers:
            self._await_release(sequence - self.buffers, buffer)
        return buffer

    def publish(self, sequence: int) -> None:
        """Say that ``sequence`` is filled."""
        self._pool[sequence % self.buffers].signalled_ns = time.monotonic_ns()
        self._timeline.advance(sequence + 1)

    def drain(self) -> None:
        """Wait until nobody reads any buffer."""
        for sequence in range(max(0, self.frames - self.buffers), self.frames):
            self._await_release(sequence, self._pool[sequence % self.buffers])

    def _await_release(self, sequence: int, buffer: Buffer) -> None:
        try:
            message = self._link.receive()
        except LinkClosed as error:
            raise Broken(self.waiter.subject, sequence, error) from error
        if self.waiter.wait(message):
            self.waiter.note(buffer.released_ns, time.monotonic_ns())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close everything.  After an exception the timeline fails its active fences with -ECANCELED, and so tells the neighbour."""
        self._undo.__exit__(kind, error, trace)


class InPort:
    """The consumer's end: maps the pool, waits for out-fences, makes release fences."""

    def __init__(self, broker: fb.Broker, timeline: str, link: Link, *, waits: bool) -> None:
        """Take ownership of an accepted ``link``."""
        self.waiter = Waiter("out-fence", enabled=waits)
        self._link = link
        self._announced: deque[Message] = deque()
        with contextlib.ExitStack() as undo:
            undo.callback(link.close)
            self.hello = link.introduction()
            self._pool = FramePool.attach(self.hello.pool, self.hello.layout)
            undo.callback(self._pool.close)
            link.confirm()
            self._timeline = undo.enter_context(broker.create_timeline(timeline))
            undo.callback(self._close_announced)
            self._undo = undo.pop_all()

    def intake(self, sequence: int) -> int:
        """Wait until ``sequence``, the next frame, is announced and take in what else is there.  Return the newest one announced."""
        if not self._announced:
            try:
                self._accept(self._link.receive())
            except LinkClosed as error:
                raise Broken(self.waiter.subject, sequence, error) from error
        with contextlib.suppress(TimeoutError, LinkClosed):
            while True:
                self._accept(self._link.receive(timeout=0))
        return self._announced[-1].sequence

    def acquire(self, sequence: int) -> Buffer:
        """Return the buffer of ``sequence``, the next frame, once it is filled."""
        self.intake(sequence)
        message = self._announced.popleft()
        buffer = self._pool[message.buffer]
        if self.waiter.wait(message):
            self.waiter.note(buffer.signalled_ns, time.monotonic_ns())
        return buffer

    def release(self, sequence: int, buffer: Buffer) -> None:
        """Say that ``sequence`` is no longer read."""
        buffer.released_ns = time.monotonic_ns()
        self._timeline.advance(sequence + 1)

    def _accept(self, message: Message) -> None:
        """Answer an announcement with the buffer's release fence."""
        self._announced.append(message)
        with self._timeline.export(message.sequence + 1, name=f"release-{message.sequence}") as fence:
            self._link.send(message.sequence, message.buffer, fence)

    def _close_announced(self) -> None:
        for message in self._announced:
            message.fence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close everything.  After an exception the timeline fails its active fences with -ECANCELED, and so tells the neighbour."""
        self._undo.__exit__(kind, error, trace)
