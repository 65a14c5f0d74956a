"""What is measured: the peers, the comparisons between them, and the targets.

Placement decides more than anything else. On one core a process hands over to the next one by blocking, which takes
a few microseconds; on two cores it wakes another one, which takes twenty and more, but both then run at the
same time. A scheduler left alone settles on one of the two by chance, and differently for each group of processes.
So each round measures both on purpose, and nothing is compared across them.

apart      the producer on one core, everybody it wakes on another: a pipeline's stages
together   everybody on one core: the machine is busy with something else
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.baselines import start_event, start_eventfd, start_relay, start_requests
from benchmarks.broker import start_broker_batches, start_broker_operations, start_broker_wakes
from benchmarks.faces import start_info, start_merge
from benchmarks.figures import Comparison, Kind, Target
from benchmarks.floor import start_floor_batches, start_floor_operations, start_floor_wakes
from benchmarks.waiting import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.processes import Group

__all__ = ["COMPARISONS", "JUDGED", "PEERS", "PLACEMENTS", "Peer", "Placement"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Who runs on which of two CPUs."""

    key: str
    title: str
    producer: int  #: 0 or 1
    others: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One thing that is measured."""

    key: str
    title: str
    kind: Kind
    start: Callable[[Group], None]
    units: int = 1  #: fences (or round trips) per sample
    cannot: str = ""  #: what it cannot do that a sync_file can


PLACEMENTS = (
    Placement("apart", "the producer on one core, everybody it wakes on another", 0, 1),
    Placement("together", "everybody on one core", 0, 0),
)

#: The placement that the targets are for.
JUDGED = "apart"

PEERS = (
    Peer(
        "eventfd",
        "raw eventfd",
        "wake",
        start_eventfd,
        cannot="It carries no error, no name and no time; a reader drains it; when its producer dies, nobody is told.",
    ),
    Peer(
        "relay",
        "bare Python relay (SEQPACKET in, eventfd out)",
        "wake",
        start_relay,
        cannot="The same; and it serves one producer, with descriptors agreed on beforehand.",
    ),
    Peer(
        "event",
        "multiprocessing.Event",
        "wake",
        start_event,
        cannot="It has no descriptor, so no select, poll or asyncio; it serves only the children of one parent; "
        "it carries no error, and when its producer dies, nobody is told.",
    ),
    Peer(
        "floor",
        "floor: a broker without a core",
        "wake",
        start_floor_wakes,
        cannot="It checks nothing, forgets nothing, refuses nothing, and serves one client with one timeline.",
    ),
    Peer("broker", "fencebrokerd", "wake", start_broker_wakes),
    Peer(
        "request",
        "bare SEQPACKET request and reply",
        "operation",
        start_requests,
        cannot="It makes nothing and passes no descriptor: two packets, and nothing said in them.",
    ),
    Peer("floor-1", "floor: export + advance + close, one at a time", "operation", start_floor_operations),
    Peer("broker-1", "fencebrokerd: export + advance + close, one at a time", "operation", start_broker_operations),
    Peer("floor-64", f"floor: export + advance + close, batches of {BATCH}", "operation", start_floor_batches, BATCH),
    Peer("info", "libsync.sync_file_info", "operation", start_info),
    Peer("merge", "libsync.sync_merge", "operation", start_merge),
    Peer("broker-64", f"fencebrokerd: export + advance + close, batches of {BATCH}", "operation", start_broker_batches, BATCH),
)

COMPARISONS = (
    Comparison("broker", "relay", Target("<=", 1.5)),
    Comparison("broker-1", "request", Target(">=", 0.45)),
    # At most 1.6 and 1.8 times what a bare round trip takes.
    Comparison("info", "request", Target(">=", 0.625)),
    Comparison("merge", "request", Target(">=", 0.555)),
    Comparison("broker-64", None, Target(">=", 70_000)),
    Comparison("broker", "floor"),
    Comparison("broker-1", "floor-1"),
    Comparison("broker-64", "floor-64"),
    Comparison("relay", "eventfd"),
    Comparison("floor", "eventfd"),
    Comparison("broker", "eventfd"),
    Comparison("event", "eventfd"),
    Comparison("broker", "event"),
    Comparison("floor-1", "request"),
)
