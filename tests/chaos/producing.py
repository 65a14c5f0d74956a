"""Workers that make fences and signal them."""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import fencebroker as fb
from fencebroker.fds import OwnedFd
from fencebroker.model import OK
from fencebroker.rows import TimelineRow, read_row
from fencebroker.timeline import Signaller
from tests.chaos.frames import END, Frame, Wrong
from tests.chaos.ledger import EVERYTHING, SLOTS, Ledger

__all__ = ["Producer"]

#: A producer starts a turn only when each consumer has at most so many unchecked frames; so it never waits between an export and its signal.
AHEAD: Final = 2
MOST: Final = 6  # frames in one turn


class Producer:
    """Owns two long timelines, one alone and one with a second holder, and many short ones."""

    def __init__(self, number: int, path: str, ledger: Ledger, consumers: list[socket.socket], rng: random.Random, patience: float) -> None:
        self._name = f"producer{number}"
        self._ledger = ledger
        self._consumers = consumers
        self._rng = rng
        self._unchecked = [0] * len(consumers)
        self._first_slot = number * SLOTS
        self._n_slots = 0
        self._n_frames = 0
        self._n_briefs = 0
        for sock in consumers:
            sock.settimeout(patience)
        self._broker = fb.connect(path, autostart=False)
        self._alone = self._broker.create_timeline(self._name)
        self._alone_slot = self._slot()
        self._shared = self._broker.create_timeline(f"{self._name}-shared")
        self._shared_slot = self._slot()
        # Two holders that do not know of each other: each has its own id and counts its own packets.
        self._holders = [Signaller(OwnedFd(self._shared.share().detach())) for _ in range(2)]
        self._shared_value = 0
        self._turns: list[Callable[[], None]] = [
            self._advance,
            self._advance,
            self._increase_together,
            self._increase_together,
            self._fail,
            self._end,
            self._cancel,
            self._expire,
            self._by_name,
            self._before_it_exists,
        ]

    def run(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Make fences until told to stop, and see that every one was checked."""
        while not stopped():
            self._take_checks(AHEAD)
            self._rng.choice(self._turns)()
        self._take_checks(0)
        self._see_that_nothing_counted_twice()
        for sock in self._consumers:
            sock.send(END)
        for signaller in self._holders:
            signaller.close()
        self._alone.close()
        self._shared.close()
        self._broker.close()
        return {"frames": self._n_frames}

    # -- the books

    def _slot(self) -> int:
        slot = self._first_slot + self._n_slots % SLOTS
        self._n_slots += 1
        self._ledger[slot] = 0
        return slot

    def _take_checks(self, most: int) -> None:
        """Wait until no consumer has more than ``most`` unchecked frames."""
        for i, sock in enumerate(self._consumers):
            while self._unchecked[i] > most:
                if not sock.recv(1):
                    raise Wrong("a consumer ended")
                self._unchecked[i] -= 1

    def _give(self, frame: Frame, fence: fb.SyncFile | None) -> None:
        """Hand a fence, or its name, to one consumer or to all."""
        self._n_frames += 1
        chosen = range(len(self._consumers)) if self._rng.random() < 0.2 else [self._rng.randrange(len(self._consumers))]
        for i in chosen:
            self._unchecked[i] += 1
            if fence is None:
                self._consumers[i].send(frame.pack())
            else:
                fb.send_sync_file(self._consumers[i], frame.pack(), fence)

    def _export(self, timeline: fb.Timeline, slot: int, seqnos: list[int], due: int, after: int = 0) -> None:
        """Export and hand out; some are closed by us without having been seen by anybody."""
        if self._rng.random() < 0.5:
            fences = timeline.export_many(seqnos)
        else:
            fences = [timeline.export(seqno, name=f"frame-{seqno}", private=self._rng.random() < 0.3) for seqno in seqnos]
        for seqno, fence in zip(seqnos, fences, strict=True):
            if self._rng.random() < 0.9:
                self._give(Frame(slot, seqno, due, after), fence)
            fence.close()

    # -- turns

    def _advance(self) -> None:
        first = self._alone.value + 1
        seqnos = list(range(first, first + self._rng.randint(1, MOST)))
        self._export(self._alone, self._alone_slot, seqnos, OK)
        while seqnos:
            last = self._rng.choice(seqnos)
            self._ledger[self._alone_slot] = last
            self._alone.advance(last)
            seqnos = [seqno for seqno in seqnos if seqno > last]

    def _increase_together(self) -> None:
        n = self._rng.randint(1, MOST)
        value = self._shared_value
        self._export(self._shared, self._shared_slot, list(range(value + 1, value + n + 1)), OK)
        for _ in range(n):
            self._shared_value += 1
            self._ledger[self._shared_slot] = self._shared_value
            self._rng.choice(self._holders).inc(1)

    def _fail(self) -> None:
        seqno = self._alone.value + 2
        self._export(self._alone, self._alone_slot, [seqno - 1], OK)
        self._export(self._alone, self._alone_slot, [seqno], -errno.EIO)
        self._ledger[self._alone_slot] = seqno
        self._alone.fail(seqno, errno.EIO)

    def _end(self) -> None:
        """A short timeline, whose last points are never signalled."""
        slot = self._slot()
        timeline = self._broker.create_timeline(self._rng.choice([None, self._brief()]))
        self._export(timeline, slot, [1, 2], OK)
        self._export(timeline, slot, [4, 5], -errno.ENOENT)
        self._ledger[slot] = 2
        timeline.advance(2)
        self._ledger[slot] = EVERYTHING
        timeline.close()

    def _cancel(self) -> None:
        slot = self._slot()
        try:
            with self._broker.create_timeline() as timeline:
                self._export(timeline, slot, [1, 2], -errno.ECANCELED)
                self._ledger[slot] = EVERYTHING
                raise InterruptedError
        except InterruptedError:
            pass

    def _expire(self) -> None:
        slot = self._slot()
        expiry = self._rng.uniform(0.005, 0.1)
        after = time.monotonic_ns() + int(expiry * 1e9)
        with self._broker.create_timeline(expiry=expiry) as timeline:
            self._export(timeline, slot, [1, 2], -errno.ETIME, after)
            self._take_checks(0)  # it has to live until then

    def _by_name(self) -> None:
        """A consumer waits for a point before it was exported."""
        seqno = self._alone.value + 1
        self._give(Frame(self._alone_slot, seqno, OK, 0, f"{self._name}@{seqno}"), None)
        if self._rng.random() < 0.5:
            with self._alone.export(seqno) as fence:
                self._give(Frame(self._alone_slot, seqno, OK), fence)
        self._ledger[self._alone_slot] = seqno
        self._alone.advance(seqno)

    def _before_it_exists(self) -> None:
        """A consumer waits for a point of a timeline that is still to come."""
        slot, name = self._slot(), self._brief()
        self._give(Frame(slot, 3, OK, 0, f"{name}@3"), None)
        with self._broker.create_timeline(name) as timeline:
            self._ledger[slot] = 3
            timeline.advance(3)
            self._take_checks(0)

    def _brief(self) -> str:
        self._n_briefs += 1
        return f"{self._name}-{self._n_briefs}"

    def _see_that_nothing_counted_twice(self) -> None:
        for name, value in ((self._name, self._alone.value), (f"{self._name}-shared", self._shared_value)):
            row = read_row(*self._broker._lookup(name))
            assert isinstance(row, TimelineRow)
            if row.value != value:
                raise Wrong(f"{name} is at {row.value}, and its producer sent {value}")
