"""The ways in which a broker comes to its end from outside, and the pause that somebody sees who asks it something meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from typing import Final

import fencebroker as fb
from tests.chaos.frames import Wrong
from tests.helpers import LIMIT

__all__ = ["Killer"]

#: A death in the middle of a recovery counts as a failed one, and five in a row are the end of it.
IN_A_ROW: Final = 2


class Killer:
    """Kills one broker after the other, by their pids."""

    def __init__(self, control: fb.Broker, rng: random.Random) -> None:
        self._control = control
        self._rng = rng
        status = control._status()
        self.pid: int = status["pid"]
        self.keeper: int = status["keeper_pid"]
        self.kills = 0
        self.hangs = 0
        self.in_recovery = 0
        self.pauses: list[float] = []
        #: Children of the keeper that are no broker: the reaper.
        self._others = set(self._children()) - {self.pid}

    def _children(self) -> list[int]:
        with open(f"/proc/{self.keeper}/task/{self.keeper}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]

    def strike(self, longest: float = 0.1) -> None:
        """Let the broker work for a moment, kill it (or, sometimes, make it hang), and wait until the next one answers."""
        # A pause of random length is the point of it: the moment is to be any.
        time.sleep(self._rng.uniform(0, longest))
        hangs = self._rng.random() < 0.05
        self._end(self.pid, signal.SIGSTOP if hangs else signal.SIGKILL)
        self.hangs += hangs
        started = time.monotonic()
        for _ in range(IN_A_ROW):
            if self._rng.random() > 0.1:
                break
            self._strike_again()
        status = self._control._status()
        self.pauses.append(time.monotonic() - started)
        if status["pid"] == self.pid:
            raise Wrong(f"broker {self.pid} answers after it was killed")
        self.pid = status["pid"]
        self._others = set(self._children()) - {self.pid}

    def _end(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.kills += 1

    def _strike_again(self) -> None:
        """Kill the next broker while it recovers."""
        deadline = time.monotonic() + LIMIT
        while not (new := set(self._children()) - self._others - {self.pid}):
            if time.monotonic() > deadline:
                raise Wrong("no next broker was started")
        time.sleep(self._rng.uniform(0, 0.1))
        pid = max(new)
        # It may be the reaper's successor; that has to be survived too.
        self._end(pid, signal.SIGKILL)
        self.in_recovery += 1
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            with os.fdopen(pidfd):
                select.select([pidfd], [], [], LIMIT)
        self.pid = pid

    @staticmethod
    def clock() -> float:
        """Seconds, for limits."""
        return time.monotonic()

    def __str__(self) -> str:
        pauses = sorted(self.pauses) or [0.0]
        half, most = pauses[len(pauses) // 2], pauses[-1]
        return (
            f"{self.kills} kills, {self.hangs} of them hangs, {self.in_recovery} during a recovery; "
            f"pause p50 {half * 1e3:.0f} ms, max {most * 1e3:.0f} ms"
        )
