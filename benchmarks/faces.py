"""Questions and merges through ``fencebroker.libsync``, whose descriptors the broker has to recognise each time."""

from __future__ import annotations

import os
from array import array
from time import monotonic_ns
from typing import TYPE_CHECKING

from benchmarks.broker import running_broker
from benchmarks.processes import Group, Samples, family, serve
from fencebroker import libsync
from fencebroker.finding import close_shared

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

__all__ = ["WORKLOADS", "start_info", "start_merge", "take_infos", "take_merges"]


def take_infos(n: int) -> Samples:
    """Ask `n` times about an active fence."""
    samples: Samples = array("Q")
    timeline = libsync.sw_sync_timeline_create()
    fence = libsync.sw_sync_fence_create(timeline, "", 1)
    for _ in range(n):
        started = monotonic_ns()
        libsync.sync_file_info(fence)
        samples.append(monotonic_ns() - started)
    for fd in (fence, timeline):
        os.close(fd)
    return samples


def take_merges(n: int) -> Samples:
    """Merge two active fences `n` times."""
    samples: Samples = array("Q")
    timelines = [libsync.sw_sync_timeline_create() for _ in range(2)]
    first, second = (libsync.sw_sync_fence_create(timeline, "", 1) for timeline in timelines)
    for _ in range(n):
        started = monotonic_ns()
        merged = libsync.sync_merge("merged", first, second)
        samples.append(monotonic_ns() - started)
        os.close(merged)
    # Which signals everything, so that the broker is as empty as before.
    for fd in (first, second, *timelines):
        os.close(fd)
    return samples


WORKLOADS = {"info": take_infos, "merge": take_merges}


def _start(group: Group, take: Callable[[int], Samples]) -> None:
    broker = group.at_end.enter_context(running_broker())
    for pid in family(broker.pid):
        group.adopt(pid)
    group.start_producer(_produce, broker.path, take)


def start_info(group: Group) -> None:
    """Start a client and fencebrokerd: sync_file_info."""
    _start(group, take_infos)


def start_merge(group: Group) -> None:
    """Start a client and fencebrokerd: sync_merge."""
    _start(group, take_merges)


def _produce(driver: Connection, path: Path, take: Callable[[int], Samples]) -> None:
    os.environ["FENCEBROKER_SOCKET"] = str(path)
    try:
        serve(driver, take)
    finally:
        close_shared()
