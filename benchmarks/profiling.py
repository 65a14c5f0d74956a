"""Where the time goes: both ends of one workload under cProfile.

The profiler makes every call dearer, small functions most of all, so its figures rank; they do not measure.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import tempfile
from pathlib import Path

import fencebroker as fb
from benchmarks.broker import running_broker, take_operations
from benchmarks.waiting import BATCH

__all__ = ["WORKLOADS", "profile"]

#: How many times, and how many at once.
_SHAPES = {"export": (2000, 1), "batch": (100, BATCH)}
WORKLOADS = tuple(_SHAPES)

_LINES = 30


def profile(workload: str) -> str:
    """Run a workload against a broker of its own and return both profiles, the dearest functions first."""
    n, batch = _SHAPES[workload]
    client = cProfile.Profile()
    with tempfile.TemporaryDirectory(prefix="fencebroker-bench-") as directory:
        # The broker writes its profile when it has ended in order, so the block is left before the file is read.
        file = Path(directory, "profile")
        with (
            running_broker(through=["-m", "cProfile", "-o", str(file)]) as broker,
            fb.connect(broker.path, autostart=False) as connection,
            connection.create_timeline("benchmark") as timeline,
        ):
            client.enable()
            take_operations(timeline, 1, n, batch)
            client.disable()
        ends = [("broker", pstats.Stats(str(file))), ("client", pstats.Stats(client))]
    text = io.StringIO()
    for end, stats in ends:
        text.write(f"{end}: {n} x (export + advance + close) of {batch}\n")
        stats.stream = text  # type: ignore[attr-defined]  # pstats prints to its stream, and typeshed does not say so
        stats.sort_stats("tottime").print_stats(_LINES)
    return text.getvalue()
