"""What is measured: the peers, the comparisons between them, and the targets.

Placement decides more than anything else. On one core a process hands over to the next one by blocking, which takes
a few microseconds; on two cores it wakes another one, which takes twenty and more, but both then run at the
same time. A scheduler left alone settles on one of the two by chance, and differently for each group of processes.
So each round measures both on purpose, and nothing is compared across them.

apart      the producer on one core, everybody it wakes on another: a pipeline's stages
together   everybody on one core: the machine is busy with something else
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.baselines import start_aio_eventfd, start_eventfd, start_relay, start_requests
from benchmarks.broker import (
    start_aio_broker_wakes,
    start_aio_ring_wakes,
    start_broker_batches,
    start_broker_operations,
    start_broker_wakes,
    start_imported_wakes,
    start_imports,
    start_merged_wakes,
    start_ring_wakes,
    why_no_ring,
)
from benchmarks.faces import start_info, start_merge
from benchmarks.figures import Comparison, Kind, Target
from benchmarks.floor import start_floor_batches, start_floor_operations, start_floor_wakes
from benchmarks.others import (
    start_blpop,
    start_event,
    start_manager_event,
    start_pipe,
    start_pubsub,
    start_zeromq,
    why_no_redis,
    why_no_zeromq,
)
from benchmarks.waiting import BATCH

if TYPE_CHECKING:
    from benchmarks.processes import Group

__all__ = ["COMPARISONS", "JUDGED", "PEERS", "PLACEMENTS", "Peer", "Placement"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Who runs on which of two CPUs."""

    key: str
    title: str
    producer: int  #: 0 or 1
    others: int


def nothing() -> str | None:
    """Nothing is missing."""
    return None


@dataclass(frozen=True, slots=True)
class Peer:
    """One thing that is measured."""

    key: str
    title: str
    kind: Kind
    start: Callable[[Group], None]
    units: int = 1  #: fences (or round trips) per sample
    cannot: str = ""  #: what it cannot do that a sync_file can
    missing: Callable[[], str | None] = nothing  #: why it cannot be measured here
    share: float = 1.0  #: of the samples that others take, where one takes long to set up


_MERGED = ((2, 1.0), (16, 0.5), (250, 0.05))

PLACEMENTS = (
    Placement("apart", "the producer on one core, everybody it wakes on another", 0, 1),
    Placement("together", "everybody on one core", 0, 0),
)

#: The placement that the targets are for.
JUDGED = "apart"

_NO_DESCRIPTOR = "It has no descriptor to hand on"
_DIES = "carries no error, and when its producer dies, nobody is told."

PEERS = (
    Peer(
        "eventfd",
        "raw eventfd",
        "wake",
        start_eventfd,
        cannot="It carries no error, no name and no time; a reader drains it; when its producer dies, nobody is told.",
    ),
    Peer(
        "pipe",
        "pipe",
        "wake",
        start_pipe,
        cannot="The same, but for the end-of-file when its producer dies; whoever reads first takes the byte from the others.",
    ),
    Peer(
        "relay",
        "bare Python relay (SEQPACKET in, eventfd out)",
        "wake",
        start_relay,
        cannot="The same as a raw eventfd; and it serves one producer, with descriptors agreed on beforehand.",
    ),
    Peer(
        "event",
        "multiprocessing.Event",
        "wake",
        start_event,
        cannot=f"{_NO_DESCRIPTOR}, so no select, poll or asyncio; it serves only the children of one parent; it {_DIES}",
    ),
    Peer(
        "manager",
        "multiprocessing.Manager().Event",
        "wake",
        start_manager_event,
        cannot=f"{_NO_DESCRIPTOR}; each waiter holds a thread of the manager's; it {_DIES}",
    ),
    Peer(
        "zeromq",
        "ZeroMQ PUSH to PULL (pyzmq, ipc)",
        "wake",
        start_zeromq,
        missing=why_no_zeromq,
        cannot="A message is taken by one reader and is gone; what comes after it must be known to exist; when its producer dies, nobody is told.",
    ),
    Peer(
        "blpop",
        "Redis RPUSH to BLPOP (redis-py, Unix socket)",
        "wake",
        start_blpop,
        missing=why_no_redis,
        cannot=f"{_NO_DESCRIPTOR}; an element is taken by one reader and is gone; when its producer dies, nobody is told.",
    ),
    Peer(
        "pubsub",
        "Redis publish to subscribe (redis-py, Unix socket)",
        "wake",
        start_pubsub,
        missing=why_no_redis,
        cannot="Who subscribes a moment later never hears of it; when its producer dies, nobody is told.",
    ),
    Peer(
        "floor",
        "floor: a broker without a core",
        "wake",
        start_floor_wakes,
        cannot="It checks nothing, forgets nothing, refuses nothing, and serves one client with one timeline.",
    ),
    Peer("broker", "fencebrokerd, through the broker", "wake", start_broker_wakes),
    Peer("ring", "fencebrokerd, through the ring", "wake", start_ring_wakes, missing=why_no_ring),
    Peer("imported", "fencebrokerd, an importer's private descriptor", "wake", start_imported_wakes),
    *(Peer(f"merged-{n}", f"fencebrokerd, merged of {n}", "wake", partial(start_merged_wakes, n), share=share) for n, share in _MERGED),
    Peer("aio-eventfd", "raw eventfd, waiter in loop.add_reader", "wake", start_aio_eventfd),
    Peer("aio-broker", "fencebrokerd, through the broker, waiter in asyncio", "wake", start_aio_broker_wakes),
    Peer("aio-ring", "fencebrokerd, through the ring, waiter in asyncio", "wake", start_aio_ring_wakes, missing=why_no_ring),
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
    Peer("broker-64", f"fencebrokerd: export + advance + close, batches of {BATCH}", "operation", start_broker_batches, BATCH),
    Peer("import", "Broker.import_sync_file + close", "operation", start_imports),
    Peer("info", "libsync.sync_file_info", "operation", start_info),
    Peer("merge", "libsync.sync_merge", "operation", start_merge),
)

COMPARISONS = (
    Comparison("ring", "eventfd", Target("<=", 1.3)),
    Comparison("broker", "relay", Target("<=", 1.3)),
    Comparison("merged-16", "relay", Target("<=", 1.5)),
    Comparison("aio-ring", "aio-eventfd", Target("<=", 1.5)),
    *(Comparison("ring", peer, Target("<=", 1.0)) for peer in ("pipe", "event", "manager", "zeromq", "blpop", "pubsub")),
    Comparison("broker-1", "request", Target(">=", 0.4)),
    Comparison("broker-64", None, Target(">=", 60_000)),
    Comparison("broker-64", "floor-64", Target(">=", 0.35)),
    # At most 1.6 and 1.8 times what a bare round trip takes.
    Comparison("info", "request", Target(">=", 0.625)),
    Comparison("merge", "request", Target(">=", 0.555)),
    Comparison("import", "request"),
    Comparison("broker", "floor"),
    Comparison("broker-1", "floor-1"),
    Comparison("relay", "eventfd"),
    Comparison("floor", "eventfd"),
    Comparison("broker", "eventfd"),
    Comparison("imported", "relay"),
    Comparison("merged-2", "relay"),
    Comparison("merged-250", "relay"),
    Comparison("aio-broker", "aio-eventfd"),
    *(Comparison("broker", peer) for peer in ("pipe", "event", "manager", "zeromq", "blpop", "pubsub")),
    Comparison("floor-1", "request"),
)
