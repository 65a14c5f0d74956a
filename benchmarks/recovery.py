"""How long the broker's death is felt: brokers with many active fences are killed, and a client that asks all the time measures the pause.

The client's rhythm is a round trip that changes nothing.  Its longest round trip across a kill is the pause; nothing of it is left out: the
keeper that notices, the next broker's start, its imports, the replay, the descriptors that are compared, and every status that is written again.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from typing import NamedTuple

import fencebroker as fb
from benchmarks.broker import running_broker
from benchmarks.figures import percentile
from benchmarks.processes import TIMEOUT, BenchmarkError
from fencebroker import requests

__all__ = ["QUICK_RECOVERY", "RECOVERY", "Recovery", "RecoverySettings", "as_markdown", "measure_recovery"]

#: Descriptors that this process needs beside those of the fences.
_OTHERS = 100


class RecoverySettings(NamedTuple):
    """How many fences are active, and how many brokers die."""

    fences: int
    kills: int


RECOVERY = RecoverySettings(10_000, 20)
QUICK_RECOVERY = RecoverySettings(500, 3)
#: Seconds that a recovery with ten thousand active fences may take.
TARGET = 0.5


class Recovery(NamedTuple):
    """What was measured, in milliseconds."""

    settings: RecoverySettings
    pauses: list[float]
    usual: float  #: p50 of a round trip while nobody dies
    lost: int

    @property
    def met(self) -> bool:
        """Every recovery was within the target, and nothing was lost."""
        return max(self.pauses) <= TARGET * 1e3 and not self.lost


def measure_recovery(settings: RecoverySettings) -> Recovery:
    """Kill so many brokers that have so many active fences; in the end every fence must signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.fences + _OTHERS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchmarkError(f"{settings.fences} fences need {wanted} descriptors, and the hard limit of this process is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with running_broker() as running, fb.connect(running.path, autostart=False) as broker, broker.create_timeline("benchmark") as timeline:
        fences = timeline.export_many(range(1, settings.fences + 1))
        try:
            call = broker._connection.call
            usual = []
            for _ in range(200):
                started = time.monotonic_ns()
                call(requests.lookup("benchmark"))
                usual.append(time.monotonic_ns() - started)
            pauses = []
            for _ in range(settings.kills):
                os.kill(broker._status()["pid"], signal.SIGKILL)
                started = time.monotonic_ns()
                call(requests.lookup("benchmark"))
                pauses.append((time.monotonic_ns() - started) / 1e6)
            n_active = broker._status()["active_fences"]
            if n_active != settings.fences:
                raise BenchmarkError(f"{n_active} fences are active after {settings.kills} kills, and there should be {settings.fences}")
            timeline.advance(settings.fences)
            lost = sum(not _signals(fence) for fence in fences)
        finally:
            for fence in fences:
                fence.close()
    return Recovery(settings, pauses, percentile(sorted(usual), 0.5) / 1e6, lost)


def _signals(fence: fb.SyncFile) -> bool:
    try:
        fence.wait(TIMEOUT)
    except TimeoutError:
        return False
    return True


def as_markdown(recovery: Recovery) -> str:
    """Write the table."""
    pauses = sorted(recovery.pauses)
    settings = recovery.settings
    verdict = f"<= {TARGET * 1e3:.0f} ms: {'met' if recovery.met else 'MISSED'}" if settings.fences >= RECOVERY.fences else ""
    lines = [
        f"{settings.kills} x SIGKILL with {settings.fences:,} active fences; {recovery.lost} lost.",
        "",
        "| what a client sees | p50 | max | target |",
        "|--------------------|----:|----:|-------:|",
        f"| a request across the broker's death | {pauses[len(pauses) // 2]:.0f} ms | {pauses[-1]:.0f} ms | {verdict} |",
        f"| the same request otherwise | {recovery.usual:.3f} ms | | |",
    ]
    return "\n".join(lines) + "\n"
