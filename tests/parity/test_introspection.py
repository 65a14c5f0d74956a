"""Rows H: what a person sees."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import debugfs, libsync
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow
from tests.helpers import LIMIT
from tests.parity.support import fails

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import StartBroker
    from tests.parity.conftest import Own


@pytest.fixture
def quiet(start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch, own: Own) -> Iterator[fb.Broker]:
    """A broker in which nothing else happens, also for libsync."""
    broker = start_broker()
    monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
    with fb.connect() as connection:
        yield connection


def test_debugfs_has_timelines_and_sync_files(quiet: fb.Broker, own: Own) -> None:
    timeline, broken = own.timeline(), own(libsync.sw_sync_timeline_create())
    libsync.sw_sync_timeline_inc(timeline, 3)
    fences = [own.fence(timeline, value) for value in (9, 7, 3)]
    failed = own.fence(broken, 1)
    own.merge(fences[1], failed, "inputs")
    own.close(broken)
    libsync.sync_file_info(failed)
    name = libsync.sync_file_info(fences[0]).fences[0].obj_name
    contexts = [libsync.sync_file_info(fd).context for fd in (fences[0], failed)]
    text = re.sub(r"@\d+\.\d{9}", "@T", debugfs.sync_info(quiet))

    def automatic(context: int, seqno: int) -> str:
        return f"sw_sync-{name}{context}-{seqno}"[:31]

    assert text == (
        "objs:\n"
        "--------------\n"
        f"{name}: 3\n"
        "  fence active: 7 / 3\n"
        "  fence active: 9 / 3\n"
        "\n"
        "fences:\n"
        "--------------\n"
        f"[{1:016x}] {automatic(contexts[0], 9)}: active\n"
        f"  {name}_fence active: 9 / 3\n"
        "\n"
        f"[{2:016x}] {automatic(contexts[0], 7)}: active\n"
        f"  {name}_fence active: 7 / 3\n"
        "\n"
        f"[{3:016x}] {automatic(contexts[0], 3)}: signaled\n"
        f"  {name}_fence signaled@T: 3 / 3\n"
        "\n"
        f"[{4:016x}] {automatic(contexts[1], 1)}: error\n"
        f"  {name}_fence error@T: 1\n"
        "\n"
        f"[{5:016x}] inputs: active\n"
        f"  {name}_fence active: 7 / 3\n"
        f"  {name}_fence error@T: 1\n"
        "\n"
    )


def test_debugfs_of_nothing_is_its_heads(quiet: fb.Broker) -> None:
    assert debugfs.sync_info(quiet) == "objs:\n--------------\nfences:\n--------------\n"


def test_debugfs_stays_one_line_per_line_and_takes_containers_apart() -> None:
    who = ProcessInfo(1, 1000, "evil\n\x1b[2J")
    timeline = TimelineRow(5, None, "d", 2**40, 0, 1, *who, 0, 0o600, None, 1, True, (), 0, 0, 1, 0, 0, ())

    def fence(id: int, kind: str, seqno: int, members: tuple[int, ...] = (), status: int = 0) -> FenceRow:
        stamp = 12_000_000_034 if status else 0
        return FenceRow(id, kind, 1, 1000, who.comm, "d", status, stamp, 5, seqno, who, 0, None, None, None, None, members)

    def sync_file(id: int, fence: int) -> SyncFileRow:
        return SyncFileRow(id, "na\nme", 0, 5, 1, *who, 0, 0, False, True, fence, "all", None, None, 0)

    fences = [fence(1, "point", 2**40 + 1), fence(2, "any", 1, (1, 3, 99)), fence(3, "all", 1, (1, 4)), fence(4, "stub", 0, (), 1)]
    text = debugfs.render([timeline], fences, [sync_file(7, 2), sync_file(8, 98)])
    assert text.splitlines() == [
        "objs:",
        "--------------",
        "evil\\n\\x1b[2J: 1099511627776",
        "  fence active: 1099511627777 / 1099511627776",
        "",
        "fences:",
        "--------------",
        "[0000000000000007] na\\nme: active",
        "  evil\\n\\x1b[2J_fence active: 1099511627777 / 1099511627776",
        "  evil\\n\\x1b[2J_fence signaled@12.000000034",
        "",
        "[0000000000000008] na\\nme: active",
        "",
    ]


def test_events_are_the_kernels_and_name_the_process(quiet: fb.Broker, own: Own) -> None:
    events = quiet.events()
    timeline = own(libsync.sw_sync_timeline_create())
    fence = own(libsync.sw_sync_fence_create(timeline, "", 7))
    waiter = threading.Thread(target=libsync.sync_wait, args=(fence, -1))
    waiter.start()
    seen: list[fb.Event] = []
    for event in events:
        seen.append(event)
        if event.name == "dma_fence_wait_start":
            libsync.sw_sync_timeline_inc(timeline, 3)
            libsync.sw_sync_timeline_inc(timeline, 4)
        if event.name == "dma_fence_wait_end":
            own.close(timeline)
        if event.name == "timeline_destroy":
            break
    waiter.join(LIMIT)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert [event.name for event in seen] == [
        "timeline_create",
        "dma_fence_init",
        "dma_fence_emit",
        "dma_fence_wait_start",
        "sync_timeline",
        "sync_timeline",
        "dma_fence_signaled",
        "dma_fence_wait_end",
        "timeline_destroy",
    ]
    info = libsync.sync_file_info(fence)
    comm = info.fences[0].obj_name
    for event in seen:
        assert (event.context, event.timeline, event.driver) == (info.context, comm, "sw_sync")
        assert (event.pid, event.uid, event.comm, event.lost) == (os.getpid(), os.getuid(), comm, 0)
    assert [event.seqno for event in seen] == [0, 7, 7, 7, 0, 3, 7, 7, 7]  # sync_timeline: the value before
    assert [event.time_ns for event in seen] == sorted(event.time_ns for event in seen)
    tail = f"pid={os.getpid()} uid={os.getuid()} comm={comm}"
    fields = f"driver=sw_sync timeline={comm} context={info.context} seqno=7"
    stamp = f"{seen[6].time_ns // 10**9}.{seen[6].time_ns // 1000 % 10**6:06}"
    assert str(seen[1]).endswith(f": dma_fence_init: {fields} {tail}")
    assert str(seen[5]).endswith(f": sync_timeline: name={comm} value=3 {tail}")
    assert str(seen[6]) == f"{stamp}: dma_fence_signaled: {fields} status=1 {tail}"


def test_an_event_is_one_line_whatever_it_names() -> None:
    event = fb.Event("dma_fence_init", 1_000_002_999, 1, 2, "a\nb", "d\x1b", 0, 3, 4, "c\r")
    assert str(event) == "1.000002: dma_fence_init: driver=d\\x1b timeline=a\\nb context=1 seqno=2 pid=3 uid=4 comm=c\\r"


def test_events_that_a_slow_reader_misses_are_counted(quiet: fb.Broker) -> None:
    events = quiet.events()  # subscribed, and not read
    rounds = 5000
    with quiet.create_timeline("work") as work, quiet.create_timeline("end") as end:
        for seqno in range(rounds):
            work.advance(seqno + 1)
        quiet._status()  # the broker has heard of all of it
        found: list[fb.Event] = []
        n = lost = 0

        def read() -> None:
            nonlocal n, lost
            for event in events:
                n += 1
                lost += event.lost
                if event.name == "sync_timeline" and event.timeline == "end":
                    found.append(event)
                    return

        reader = threading.Thread(target=read)
        reader.start()
        deadline = time.monotonic() + LIMIT
        while reader.is_alive() and time.monotonic() < deadline:
            end.advance(end.value + 1)  # whatever comes when it has caught up says how many are missing
            quiet._status()
        reader.join(LIMIT)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert lost > rounds / 2
    # Two timelines made, the work, and the end up to the value before this one.
    assert n + lost == 2 + rounds + found[0].seqno + 1


def test_the_ladder_of_get_deadline(own: Own, connection: fb.Broker) -> None:
    timelines = [own.timeline() for _ in range(2)]
    first, second = (own.fence(timeline, 1) for timeline in timelines)
    merged = own.merge(first, second)
    get = libsync.sw_sync_get_deadline
    for fd in (-1, 9999, 2**31, timelines[0], merged):
        fails(errno.EINVAL, get, fd)
    with connection.create_timeline() as line, line.export(1) as other:
        other.set_deadline(5)
        fails(errno.EINVAL, get, other.fileno())  # another driver's
    fails(errno.ENOENT, get, first)
    libsync.sync_set_deadline(merged, 100)
    libsync.sync_set_deadline(first, 50)
    assert (get(first), get(second)) == (50, 100)
