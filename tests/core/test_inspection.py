"""What can be seen, by whom, and in pages that fit a packet."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from fencebroker import wire
from fencebroker.errors import Refusal
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow
from fencebrokerd.core import effects as fx
from tests.core.world import ALICE, BOB, ROOT, World

if TYPE_CHECKING:
    from tests.core.world import Client

OWN = 999  # the broker's own user in these worlds


def ids(client: Client, kind: str) -> list[int]:
    return [row[0] for row in client.list(kind)]


@pytest.fixture
def alice(world: World) -> Client:
    return world.connect(ALICE)


@pytest.fixture
def bob(world: World) -> Client:
    return world.connect(BOB)


def populate(client: Client) -> None:
    line = client.create(f"camera{client.uid}")
    client.merge(client.export(line, 1), client.sync_file("absent@1"))


def test_ones_own_and_nothing_else(world: World, alice: Client, bob: Client) -> None:
    populate(alice)
    populate(bob)
    for kind in wire.KINDS:
        mine, theirs = set(ids(alice, kind)), set(ids(bob, kind))
        assert mine
        assert theirs
        assert not mine & theirs
        for uid in (ROOT, OWN):
            assert set(ids(world.connect(uid), kind)) >= mine | theirs
    nobody = world.connect(4711)
    assert [ids(nobody, kind) for kind in wire.KINDS[:3]] == [[], [], []]
    assert ids(nobody, "sessions") == [nobody.session]


def test_counts_too(world: World, alice: Client, bob: Client) -> None:
    populate(alice)
    counts = bob.status()
    assert [counts[name] for name in ("sessions", "timelines", "fences", "sync_files", "active_fences")] == [1, 0, 0, 0, 0]
    assert "descriptors" not in counts
    counts = alice.status()
    assert [counts[name] for name in ("sessions", "timelines", "fences", "sync_files", "active_fences")] == [1, 1, 3, 3, 3]
    counts = world.connect(ROOT).status()
    assert [counts[name] for name in ("sessions", "timelines", "fences", "sync_files", "active_fences")] == [3, 1, 3, 3, 3]
    assert counts["descriptors"] == world.state.n_descriptors


def test_possession_of_a_descriptor_shows_its_fence(world: World, alice: Client, bob: Client) -> None:
    line = alice.create("camera0")
    handle = alice.export(line, 1, name="frame")
    info = bob.info(world.reference(handle))
    assert (info.name, info.status, info.creator) == ("frame", 0, [4242, ALICE, "capture.py"])
    assert info.fences[0][6] == [4242, ALICE, "capture.py"]


def test_a_row_of_each_kind(world: World, alice: Client) -> None:
    line = alice.create("camera0", mode=0o640, expiry=10**9)
    handle = alice.export(line, 5, name="frame")
    world.advance(line, 3)
    timeline = alice.lookup("camera0")
    assert isinstance(timeline, TimelineRow)
    assert (timeline.context, timeline.value, timeline.highest, timeline.n_active, timeline.mode) == (line.context, 3, 5, 1, 0o640)
    assert (timeline.pid, timeline.uid, timeline.comm, timeline.n_descriptors) == (4242, ALICE, "capture.py", 1)
    fence = alice.lookup("camera0@5")
    assert isinstance(fence, FenceRow)
    assert (fence.kind, fence.status, fence.seqno, fence.context, fence.obj_name) == ("point", 0, 5, line.context, "camera0")
    sync_file = alice.lookup(f"#{handle}")
    assert isinstance(sync_file, SyncFileRow)
    assert (sync_file.id, sync_file.name, sync_file.status, sync_file.seqno, sync_file.is_open) == (handle, "frame", 0, 5, True)
    session = alice.list("sessions")[0]
    assert session[:6] == (alice.session, 4242, ALICE, "capture.py", 1, 1)


def test_kinds_of_fences(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    point, placeholder = alice.export(line, 1), alice.sync_file("absent@1")
    alice.merge(point, placeholder)
    alice.merge(point, placeholder, any=True)
    alice.merge(fx.DetachedFence(1))
    rows = [row for row in alice.list("fences") if isinstance(row, FenceRow)]
    assert {row.kind for row in rows} == {"point", "placeholder", "all", "any", "stub"}
    by_kind = {row.kind: row for row in rows}
    assert by_kind["all"].members == (by_kind["point"].id, by_kind["placeholder"].id)


@pytest.mark.parametrize("text", ["camera0", "1000/camera0", "camera0@5", "1000/camera0@5", "1:5", "#1"])
def test_lookups_find_and_hide(world: World, alice: Client, bob: Client, text: str) -> None:
    alice.export(alice.create("camera0", mode=0o666), 5)
    assert alice.lookup(text)
    assert world.connect(ROOT).lookup(text)
    with pytest.raises(Refusal) as refused:
        bob.lookup(text)
    assert refused.value.error == errno.ENOENT


@pytest.mark.parametrize("text", ["absent", "camera0@6", "1:6", "9:5", "#99", "", "@", "@5", "77/camera0"])
def test_what_is_not_there(world: World, alice: Client, text: str) -> None:
    alice.export(alice.create("camera0"), 5)
    with pytest.raises(Refusal) as refused:
        alice.lookup(text)
    assert refused.value.error in (errno.ENOENT, errno.EINVAL)
    assert repr(text) in refused.value.text or "''" in refused.value.text


@pytest.mark.parametrize(
    "text", ["#", "#x", "#-1", "#1.0", f"#{2**64}", "1:", ":5", "x:5", "1:x", "1:2:3", "camera0@", "camera0@x", "a/camera0@5", "#٣"]
)
def test_what_is_no_name_is_einval(world: World, alice: Client, text: str) -> None:
    alice.export(alice.create("camera0"), 5)
    with pytest.raises(Refusal) as refused:
        alice.lookup(text)
    assert refused.value.error == errno.EINVAL


def test_root_finds_a_bare_name_if_only_one_user_has_it(world: World, alice: Client, bob: Client) -> None:
    root = world.connect(ROOT)
    line = alice.create("camera0")
    assert root.lookup("camera0")[0] == line.context
    bob.create("camera0")
    with pytest.raises(Refusal):
        root.lookup("camera0")
    assert root.lookup(f"{ALICE}/camera0")[0] == line.context


def test_a_placeholder_is_found_by_its_name(world: World, alice: Client, bob: Client) -> None:
    alice.sync_file("absent@7")
    row = alice.lookup("absent@7")
    assert isinstance(row, FenceRow)
    assert (row.kind, row.seqno, row.status) == ("placeholder", 7, 0)
    with pytest.raises(Refusal):
        bob.lookup(f"{ALICE}/absent@7")


def test_the_status_of_a_merge_has_one_meaning(world: World, alice: Client) -> None:
    """The kernel folds in order: [active, failed] is 0 and [failed, active] the error, of one file that has not signalled."""
    lines = [alice.create() for _ in range(2)]
    points = [alice.export(line, 1) for line in lines]
    merged = alice.merge(*points), alice.merge(*reversed(points))
    world.fail(lines[0], 1, errno.EIO)
    for handle in merged:
        info = alice.info(handle)
        assert (info.status, [row[2] for row in info.fences]) == (0, [-errno.EIO, 0])
    world.advance(lines[1], 1)
    assert [alice.info(handle).status for handle in merged] == [-errno.EIO, -errno.EIO]


# -- pages


def test_fifteen_thousand_sync_files_in_pages(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    handles: list[int] = []
    for first in range(1, 15_001, 250):
        handles += alice.export_many(line, range(first, first + 250))
    assert ids(alice, "sync_files") == handles
    assert len(ids(alice, "fences")) == 15_000


def test_pages_hold_while_things_change(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    handles = alice.export_many(line, range(1, 251))
    cursor, page = alice.ask(wire.LIST, "sync_files", 0)
    assert cursor is not None
    seen = [row[0] for row in page]
    alice.release(*seen[:20], *handles[-10:])
    late = alice.export(line, 999)
    while cursor is not None:
        cursor, page = alice.ask(wire.LIST, "sync_files", cursor)
        seen += [row[0] for row in page]
    assert seen == [*handles[:-10], late]


def test_a_cursor_past_the_end(world: World, alice: Client) -> None:
    line = alice.create("camera0")
    handle = alice.export(line, 1)
    assert alice.ask(wire.LIST, "sync_files", 2**64 - 1) == [None, []]
    row, following, page = alice.ask(wire.INFO, handle, 2**64 - 1)
    assert (row[2], following, page) == (1, None, [])


def test_the_longest_rows_fit_a_packet(world: World) -> None:
    """World asserts that no answer is larger than a packet."""
    client = world.connect(2**32 - 2, pid=2**22, comm="\\xff" * 15)  # a command name of 15 bytes that are no text
    world.now = 2**63
    name = "\U0001f4f7" * 63 + "abc"
    line = client.create(name, driver="d" * 31, expiry=2**64 - 1)
    for _ in range(20):
        client.create(driver="\U0001f4f7" * 7)
    for seqno in range(2**64 - 120, 2**64):
        client.export(line, seqno, name="\U0001f4f7" * 7)
    for i in range(1024):
        client.sync_file(f"{name}{i}"[3:] + "@18446744073709551615")
    handles = [row.id for row in client.list("sync_files") if isinstance(row, SyncFileRow)]
    widest = client.merge(*handles[-1024:])
    for i in range(15):
        client.merge(widest, client.sync_file(f"more{i}@1"), any=True)
    for handle in (widest, *handles[:3]):
        client.set_deadline(handle, 2**64 - 1)
        client.info(handle)
    for kind in wire.KINDS:
        assert client.list(kind)
    client.lookup(name)
    client.lookup(f"{name}@{2**64 - 1}")


# -- events


def test_events_are_rendered_before_what_they_speak_of_is_gone(world: World, alice: Client, bob: Client) -> None:
    root = world.connect(ROOT)
    root.ask(wire.SUBSCRIBE)
    assert world.broker.is_traced
    line = alice.create("camera0")
    first, second = alice.export(line, 1), alice.export(line, 2)
    world.advance(line, 1)
    alice.release(second)
    waiting = bob.sync_file("absent@1")
    bob.merge(waiting, world.reference(first), bob.sync_file("absent@2"))
    world.close(line)
    sessions, lines = world.broker.take_lines()
    assert sessions == (root.session,)
    told: list[Any] = [(entry.name, entry.uid, entry.seqno, entry.status) for entry in lines]
    assert told[:8] == [
        ("timeline_create", ALICE, 0, 0),
        ("dma_fence_init", ALICE, 1, 0),
        ("dma_fence_emit", ALICE, 1, 0),
        ("dma_fence_init", ALICE, 2, 0),
        ("dma_fence_emit", ALICE, 2, 0),
        ("sync_timeline", ALICE, 0, 0),  # the value before, as in the kernel
        ("dma_fence_signaled", ALICE, 1, 1),
        ("dma_fence_destroy", ALICE, 2, 0),
    ]
    assert told[-1][0] == "timeline_destroy"
    assert world.broker.take_lines() == ((root.session,), [])
    root.disconnect()
    alice.create("camera1")
    assert world.broker.take_lines() == ((), [])
