"""Workers that come and go, and one that watches."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import random
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fencebroker as fb
from fencebroker import aio, requests
from fencebroker.client import read_events
from fencebroker.connection import Connection
from fencebroker.fds import close_all, recv_packet
from tests.chaos.frames import Wrong

__all__ = ["Tracer", "Visitor"]


class Visitor:
    """Connects, asks, makes something small, and leaves; sometimes by dying."""

    def __init__(self, path: str, rng: random.Random, patience: float) -> None:
        self._path = path
        self._rng = rng
        self._patience = patience

    def run(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Visit until told to stop."""
        visits: list[Callable[[], None]] = [self._look_around, self._make, self._make_in_a_loop, self._die]
        n = 0
        while not stopped():
            self._rng.choice(visits)()
            n += 1
        return {"visits": n}

    def _look_around(self) -> None:
        with fb.connect(self._path, autostart=False) as broker:
            broker._status()
            for kind in ("timelines", "fences", "sync_files", "sessions"):
                list(broker._listing(kind))

    def _make(self) -> None:
        with fb.connect(self._path, autostart=False) as broker, broker.create_timeline() as timeline:
            timeline.export(1).close()  # nobody has seen it: its record goes too
            with timeline.export(2) as fence:
                if fence.status() != 0:
                    raise Wrong("early: a point has signalled before its timeline was advanced")
                timeline.advance(2)
                self._expect(fence, 1)

    def _make_in_a_loop(self) -> None:
        async def visit() -> None:
            async with await aio.connect(self._path, autostart=False) as broker, await broker.create_timeline() as timeline:
                first, second = await timeline.export(1), await timeline.export(2)
                both = await broker.merge([first, second])
                await timeline.advance(1)
                await aio.wait(first, self._patience)
                if both.status() != 0:
                    raise Wrong("early: a merge has signalled before its last member")
                await timeline.fail(2, errno.EIO)
                with contextlib.suppress(fb.FenceError):
                    await aio.wait(both, self._patience)
                    raise Wrong("a merge is OK though a member failed")
                for fence in (first, second, both):
                    fence.close()

        asyncio.run(visit())

    def _die(self) -> None:
        """A producer dies; what it promised fails with ENOENT."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    broker = fb.connect(self._path, autostart=False)
                    timeline = broker.create_timeline()
                    promise = timeline.export(1)
                    fb.send_sync_file(theirs, b"promise", promise)
                    os._exit(0)
                os._exit(1)
            theirs.close()
            with fb.recv_sync_file(ours)[1] as fence:
                self._expect(fence, -errno.ENOENT)
            if os.waitpid(pid, 0)[1]:
                raise Wrong("a producer that was to die saw an error before")

    def _expect(self, fence: fb.SyncFile, status: int) -> None:
        if not select.select([fence], [], [], self._patience)[0]:
            raise Wrong(f"lost: {fence} did not signal within {self._patience} s")
        if fence.status() != status:
            raise Wrong(f"wrong status: {fence}, expected {status}")


class Tracer:
    """Follows the events, and counts what happens to each fence."""

    def __init__(self, path: str) -> None:
        self._connection = Connection(Path(path))
        self._connection.call(requests.subscribe())
        self._seen: collections.Counter[tuple[str, int, int]] = collections.Counter()
        self._lost = 0

    def run(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Read until told to stop; no fence may begin, signal or end twice."""
        sock = self._connection.peer_fd()
        assert sock is not None
        while True:
            ready = select.select([sock, sys.stdin], [], [])[0]
            if sock in ready:
                assert self._connection._sock is not None
                packet, fds = recv_packet(self._connection._sock)
                close_all(fds)
                if not packet:
                    raise Wrong("the broker ended a subscriber's session")
                for event in read_events(packet):
                    self._lost += event.lost
                    if event.name in ("dma_fence_init", "dma_fence_signaled", "dma_fence_destroy") and event.context:
                        self._seen[event.name, event.context, event.seqno] += 1
            elif stopped():
                break
        self._connection.close()
        twice = [what for what, n in self._seen.items() if n > 1]
        if twice:
            raise Wrong(f"twice in the trace: {len(twice)} of {len(self._seen)}, such as {twice[:5]}")
        return {"events": len(self._seen), "events_lost": self._lost}
