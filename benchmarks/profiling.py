"""Where the time goes: both ends of one workload under cProfile.

The profiler makes every call dearer, small functions most of all, so its figures rank; they do not measure.
"""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import tempfile
from pathlib import Path

import fencebroker as fb
from benchmarks import faces
from benchmarks.broker import Broker, running_broker, take_operations
from benchmarks.waiting import BATCH
from fencebroker.finding import close_shared

__all__ = ["WORKLOADS", "profile"]

#: How many times, and how many at once.
_SHAPES = {"export": (2000, 1), "batch": (100, BATCH)}
WORKLOADS = (*_SHAPES, *faces.WORKLOADS)

_TIMES = 2000
_LINES = 30


def profile(workload: str) -> str:
    """Run a workload against a broker of its own and return both profiles, the dearest functions first."""
    client = cProfile.Profile()
    with tempfile.TemporaryDirectory(prefix="fencebroker-bench-") as directory:
        # The broker writes its profile when it has ended in order, so the block is left before the file is read.
        file = Path(directory, "profile")
        with running_broker(through=["-m", "cProfile", "-o", str(file)]) as broker:
            title = _run(workload, broker, client)
        ends = [("broker", pstats.Stats(str(file))), ("client", pstats.Stats(client))]
    text = io.StringIO()
    for end, stats in ends:
        text.write(f"{end}: {title}\n")
        stats.stream = text  # type: ignore[attr-defined]  # pstats prints to its stream, and typeshed does not say so
        stats.sort_stats("tottime").print_stats(_LINES)
    return text.getvalue()


def _run(workload: str, broker: Broker, client: cProfile.Profile) -> str:
    """Run it, the client's part under its profiler; returns what was run, in words."""
    if workload in faces.WORKLOADS:
        os.environ["FENCEBROKER_SOCKET"] = str(broker.path)
        try:
            client.runcall(faces.WORKLOADS[workload], _TIMES)
        finally:
            close_shared()
        return f"{_TIMES} x {workload}"
    n, batch = _SHAPES[workload]
    with fb.connect(broker.path, autostart=False) as connection, connection.create_timeline("benchmark") as timeline:
        client.runcall(take_operations, timeline, 1, n, batch)
    return f"{n} x (export + advance + close) of {batch}"
