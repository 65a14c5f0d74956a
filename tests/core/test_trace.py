"""What subscribers are told: the kernel's trace events, one line at a time."""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING, Any

from fencebroker import wire
from fencebrokerd.core import effects as fx
from fencebrokerd.core.broker import MAX_WAITS
from fencebrokerd.core.trace import Line
from tests.core.world import ALICE, BOB, ROOT, Client, World

if TYPE_CHECKING:
    from collections.abc import Callable


def follow(world: World) -> Callable[[], list[Line]]:
    """Subscribe; the result takes the lines since the last time."""
    world.connect(ROOT).ask(wire.SUBSCRIBE)

    def take() -> list[Line]:
        sessions, lines = world.broker.take_lines()
        assert sessions or not world.state.sessions
        return lines

    return take


def names(lines: list[Line]) -> list[str]:
    return [line.name for line in lines]


def test_a_fence_from_its_making_to_its_end(world: World) -> None:
    take = follow(world)
    capture = world.connect(ALICE, pid=790, comm="capture")
    line = capture.create("camera0")
    handle = capture.export(line, 7)
    world.advance(line, 3)
    world.advance(line, 9)
    capture.release(handle)
    world.close(line)
    lines = take()
    # What the broker keeps of a signalled fence for questions afterwards has not been destroyed yet.
    assert [(x.name, x.seqno, x.status) for x in lines] == [
        ("timeline_create", 0, 0),
        ("dma_fence_init", 7, 0),
        ("dma_fence_emit", 7, 0),
        ("sync_timeline", 0, 0),  # the value before it changes, as in the kernel
        ("sync_timeline", 3, 0),
        ("dma_fence_signaled", 7, 1),
        ("timeline_destroy", 9, 0),
    ]
    for x in lines:
        assert (x.context, x.timeline, x.driver, x.pid, x.uid, x.comm) == (line.context, "camera0", "fencebroker", 790, ALICE, "capture")
    assert [x.time for x in lines] == sorted(x.time for x in lines)


def test_what_is_born_signalled_signals_too(world: World) -> None:
    take = follow(world)
    client = world.connect()
    line = client.create()
    world.advance(line, 5)
    take()
    first = client.export(line, 4)
    assert [(x.name, x.status) for x in take()] == [("dma_fence_init", 0), ("dma_fence_signaled", 1), ("dma_fence_emit", 1)]
    client.merge(first, client.export(line, 5))
    stub = [x for x in take() if x.driver == "stub"]
    assert [(x.name, x.context, x.seqno, x.comm) for x in stub] == [
        ("dma_fence_init", 0, 0, "capture.py"),
        ("dma_fence_signaled", 0, 0, "capture.py"),
        ("dma_fence_emit", 0, 0, "capture.py"),
    ]
    client.import_(fx.DetachedFence(-errno.EIO))
    assert [(x.name, x.driver, x.status) for x in take()] == [
        ("dma_fence_init", "detached-driver", 0),
        ("dma_fence_signaled", "detached-driver", -errno.EIO),
        ("dma_fence_emit", "detached-driver", -errno.EIO),
    ]


def test_who_asked_for_a_fence_that_has_no_timeline(world: World) -> None:
    take = follow(world)
    producer = world.connect(ALICE, pid=1, comm="producer")
    consumer = world.connect(BOB, pid=2, comm="consumer")
    one, two = producer.create(), producer.create()
    shown = [world.reference(producer.export(line, 1)) for line in (one, two)]
    take()
    consumer.merge(*shown)
    consumer.sync_file("camera0@9")
    for line in (one, two):
        world.advance(line, 1)
    lines = [x for x in take() if x.driver in ("dma_fence_array", "placeholder")]
    assert [(x.name, x.timeline, x.seqno) for x in lines] == [
        ("dma_fence_init", "unbound", 1),
        ("dma_fence_emit", "unbound", 1),
        ("dma_fence_init", "camera0", 9),
        ("dma_fence_emit", "camera0", 9),
        ("dma_fence_signaled", "unbound", 1),
    ]
    assert {(x.pid, x.uid, x.comm) for x in lines} == {(2, BOB, "consumer")}


def test_a_placeholder_ends_when_its_point_begins(world: World) -> None:
    take = follow(world)
    client = world.connect()
    client.sync_file("camera0@9")
    take()
    client.create("camera0")
    assert [(x.name, x.driver, x.seqno) for x in take()] == [
        ("timeline_create", "fencebroker", 0),
        ("dma_fence_init", "fencebroker", 9),
        ("dma_fence_destroy", "placeholder", 9),
    ]


def test_every_fence_begins_once_and_ends_once(world: World) -> None:
    take = follow(world)
    a, b = world.connect(ALICE), world.connect(BOB)
    line, other = a.create("camera0"), b.create("camera1")
    b.sync_file("1000/late@3", expiry=50)
    handles = a.export_many(line, [1, 2, 3, 3])
    merged = b.merge(world.reference(handles[3]), b.export(other, 1), b.export(other, 2))
    b.merge(merged, fx.DetachedFence(1), any=True)
    a.merge(*handles)
    a.release(handles[0], merged)
    a.create("late", mode=0o644)
    world.fail(line, 2, errno.EIO)
    world.pass_time(world.now + 100)
    world.close(other)
    b.disconnect()
    world.end()
    lines = take()
    counts: dict[tuple[int, int, str], Counter[str]] = {}
    for x in lines:
        counts.setdefault((x.context, x.seqno, x.driver), Counter())[x.name] += 1
    for (context, seqno, driver), count in counts.items():
        if count["dma_fence_init"] == 0:
            assert count.keys() <= {"timeline_create", "sync_timeline", "timeline_destroy", "dma_fence_init"}, (
                context,
                seqno,
                driver,
                count,
            )
            continue
        assert count["dma_fence_init"] == count["dma_fence_destroy"], (context, seqno, driver, count)
        assert count["dma_fence_signaled"] <= count["dma_fence_init"]
        assert count["dma_fence_emit"] >= (driver not in ("fencebroker", "placeholder", "stub"))


class Waits:
    """One client that waits for a point, and one that follows."""

    def __init__(self, world: World) -> None:
        self.take = follow(world)
        self.producer = world.connect(ALICE, pid=1, comm="producer")
        self.line = self.producer.create("camera0")
        self.fence = self.producer.export(self.line, 7)
        self.waiter = world.connect(BOB, pid=2, comm="waiter")
        self.shown = world.reference(self.fence)
        self.take()

    def start(self, waiter: Client | None = None) -> Any:
        return (waiter or self.waiter).ask(wire.WAIT_START, None, references=[self.shown])


def test_a_wait_is_traced_from_start_to_end(world: World) -> None:
    waits = Waits(world)
    status, wait = waits.start()
    assert status == 0
    assert wait
    world.advance(waits.line, 7)
    waits.waiter.ask(wire.WAIT_END, wait)
    waits.waiter.ask(wire.WAIT_END, wait)  # a second time it says nothing
    waits.waiter.ask(wire.WAIT_END, wait + 1)
    lines = waits.take()
    assert [(x.name, x.status, x.pid, x.comm) for x in lines] == [
        ("dma_fence_wait_start", 0, 2, "waiter"),
        ("sync_timeline", 0, 1, "producer"),
        ("dma_fence_signaled", 1, 1, "producer"),
        ("dma_fence_wait_end", 1, 2, "waiter"),
    ]
    first, *_, last = lines
    for x in (first, last):
        assert (x.context, x.seqno, x.timeline, x.driver, x.uid) == (waits.line.context, 7, "camera0", "fencebroker", BOB)


def test_who_dies_while_waiting_waits_no_more(world: World) -> None:
    waits = Waits(world)
    waits.start()
    waits.waiter.disconnect()
    assert names(waits.take()) == ["dma_fence_wait_start", "dma_fence_wait_end"]


def test_no_wait_is_kept_for_a_signalled_fence_or_for_nobody(world: World) -> None:
    waits = Waits(world)
    world.advance(waits.line, 7)
    waits.take()
    assert waits.waiter.ask(wire.WAIT_START, None, references=[world.reference(waits.fence)]) == [1, 0]
    assert waits.take() == []
    assert waits.waiter.ask(wire.WAIT_START, None, references=[fx.DetachedFence(-5)]) == [-5, 0]

    quiet = World()
    client = quiet.connect()
    line = client.create()
    assert client.ask(wire.WAIT_START, client.export(line, 1)) == [0, 0]
    assert not quiet.broker._turn.waits
    quiet.end()


def test_waits_are_bounded(world: World) -> None:
    waits = Waits(world)
    numbers = [waits.start()[1] for _ in range(MAX_WAITS + 10)]
    assert all(numbers[:MAX_WAITS])
    assert not any(numbers[MAX_WAITS:])
    for number in filter(None, numbers):
        waits.waiter.ask(wire.WAIT_END, number)
    assert Counter(names(waits.take())) == {"dma_fence_wait_start": MAX_WAITS, "dma_fence_wait_end": MAX_WAITS}
    assert not world.broker._turn.waits
