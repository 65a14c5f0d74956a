"""Workers that are given fences, and do with them what consumers do."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable
from typing import Any, Final, Literal

import fencebroker as fb
from fencebroker.fds import OwnedFd, recv_packet
from tests.chaos.frames import END, Frame, Wrong, due_of_all
from tests.chaos.ledger import Ledger

__all__ = ["Consumer"]

BATCH: Final = 5  # frames looked at together
RECONNECTS: Final = 60  # frames


class Consumer:
    """Takes fences from several producers and checks each of them."""

    def __init__(self, path: str, ledger: Ledger, producers: list[socket.socket], rng: random.Random, patience: float) -> None:
        self._path = path
        self._ledger = ledger
        self._producers = producers
        self._rng = rng
        self._patience = patience
        self._broker = fb.connect(path, autostart=False)
        self._counts = {"checked": 0, "merges": 0, "imports": 0}

    def run(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Check what comes, until every producer has said that there is no more."""
        left = list(self._producers)
        since = 0
        while left:
            ready, _, _ = select.select(left, [], [])
            batch: list[tuple[Frame, fb.SyncFile, socket.socket]] = []
            for sock in ready:
                for _ in range(self._rng.randint(1, BATCH)):
                    packet, fds = recv_packet(sock)
                    if packet == END:
                        left.remove(sock)
                        break
                    if not packet:
                        raise Wrong("a producer ended")
                    frame = Frame.unpack(packet)
                    batch.append((frame, self._fence(frame, fds), sock))
                    if not select.select([sock], [], [], 0)[0]:
                        break
            self._check(batch)
            since += len(batch)
            if since > RECONNECTS:
                since = 0
                self._broker.close()
                self._broker = fb.connect(self._path, autostart=False)
        self._broker.close()
        return self._counts

    def _fence(self, frame: Frame, fds: list[OwnedFd]) -> fb.SyncFile:
        if frame.point is not None:
            return self._broker.sync_file(frame.point)
        return fb.SyncFile.from_fd(fds[0].detach())

    def _check(self, batch: list[tuple[Frame, fb.SyncFile, socket.socket]]) -> None:
        self._rng.shuffle(batch)
        frames = [frame for frame, _, _ in batch]
        merged = []
        if len(batch) > 1 and self._rng.random() < 0.5:
            when: Literal["all", "any"] = self._rng.choice(["all", "any"])
            merged.append((when, self._broker.merge([fence for _, fence, _ in batch], when=when, name="merged")))
        for frame, fence, sock in batch:
            try:
                self._look(frame, fence)
            finally:
                fence.close()
            sock.send(b"+")
            self._counts["checked"] += 1
        for when, fence in merged:
            self._check_merged(when, fence, frames)
            self._counts["merges"] += 1

    def _look(self, frame: Frame, fence: fb.SyncFile) -> None:
        """Wait for it in one of the ways there are."""
        frame.check(fence.status(), self._ledger, "at first sight")
        way = self._rng.randrange(4)
        if way == 0:
            self._wait(frame, fence, "a wait for")
        elif way == 1:
            with self._broker.import_sync_file(fence) as private:
                self._counts["imports"] += 1
                self._wait(frame, private, "an import of")
            self._wait(frame, fence, "the original of an import of")
        elif way == 2:
            info = self._broker.info(fence)
            frame.check(info.status, self._ledger, "the broker says that")
            self._wait(frame, fence, "after a question about it")
            # What signalled is told the same way, unless the record is gone; then its descriptor says it.
            frame.check(self._broker.info(fence).status or frame.due, self._ledger, "the broker says afterwards that")
        else:
            fence.set_deadline(1 + self._rng.randrange(2**40))
            with self._broker.merge([fence, fence]) as same:
                self._wait(frame, same, "a merge with itself of")
            self._wait(frame, fence, "a member of such a merge")

    def _wait(self, frame: Frame, fence: fb.SyncFile, how: str) -> None:
        frame.check(self._signalled(fence, f"{how} {frame}"), self._ledger, how)

    def _signalled(self, fence: fb.SyncFile, what: str) -> int:
        if not select.select([fence], [], [], self._patience)[0]:
            info = self._broker.info(fence)
            raise Wrong(f"lost: {what} did not signal within {self._patience} s; the broker says {info}")
        return fence.status()

    def _check_merged(self, when: str, fence: fb.SyncFile, frames: list[Frame]) -> None:
        with fence:
            status = self._signalled(fence, f"a merge ({when}) of {frames}")
            allowed = due_of_all(frames) if when == "all" else {frame.due for frame in frames}
            if status not in allowed:
                raise Wrong(f"wrong status: a merge ({when}) of {frames} has status {status}")
