"""The graph by itself: what is assumed where one may not look, and when a circle is certain.  Rows and processes are values here."""

from __future__ import annotations

import os
from typing import Final

from fencebroker.cli.graph import Nobody, ProcessNode, walk
from fencebroker.cli.processes import Eventfd, Holder, Scan, Wait
from fencebroker.cli.snapshot import Snapshot
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow

UID: Final = os.getuid()


def timeline(context: int, *, pid: int = 0, alive: bool = True) -> TimelineRow:
    """Timeline ``t1`` with the inode 1001, and so on."""
    inodes = (1000 + context,)
    return TimelineRow(context, f"t{context}", "d", 0, 1, 1, pid, UID, f"p{pid}", 0, 0o600, None, 1, alive, inodes, 0, 0, 1, 0, 0, ())


def fence(id: int, context: int = 0, kind: str = "point", members: tuple[int, ...] = (), status: int = 0) -> FenceRow:
    name = None if members else f"t{context}"
    return FenceRow(id, kind, 1, UID, name or "unbound", "d", status, 0, context, 1, None, 0, None, None, name, UID, members)


def carrier(id: int) -> SyncFileRow:
    """The sync_file of fence ``id``; its eventfd has the same number."""
    return SyncFileRow(id, f"file-{id}", 0, 0, 1, 1, UID, "c", 0, 0, False, True, id, "point", None, None, id)


def holder(pid: int, holds: tuple[int, ...] = (), owns: tuple[int, ...] = (), waits: tuple[tuple[int, ...], ...] | None = ()) -> Holder:
    """A process that holds the fences ``holds`` at descriptors of their own numbers, and owns timelines; a wait is the descriptors of one thread."""
    return Holder(
        pid, UID, f"p{pid}", "S",
        eventfds=[Eventfd(id, id, 0, True) for id in holds],
        sockets={500 + context: 1000 + context for context in owns},
        waits=None if waits is None else [Wait(pid + n, "poll", frozenset(fds)) for n, fds in enumerate(waits)],
        is_asleep=True,
    )  # fmt: skip


def snapshot(timelines: list[TimelineRow], fences: list[FenceRow], holders: list[Holder]) -> Snapshot:
    points = [row for row in fences if not row.members]
    files = {row.id: carrier(row.id) for row in [*points, *(row for row in fences if row.members)]}
    by_pid = {each.pid: each for each in holders}
    return Snapshot(10**9, {row.context: row for row in timelines}, {row.id: row for row in fences}, files, Scan(by_pid), True, {})


#: Two processes, each owning the timeline whose point the other waits for.
PAIR: Final = [timeline(1, pid=10), timeline(2, pid=20)]
POINTS: Final = [fence(1, 1), fence(2, 2)]


def test_a_closed_circle_is_certain() -> None:
    graph = walk(snapshot(PAIR, POINTS, [holder(10, (2,), (1,), ((2,),)), holder(20, (1,), (2,), ((1, 77),))]), [("process", 10)])
    assert [set(found.circle) for found in graph.deadlocks] == [{("process", 10), ("process", 20), ("fence", 1), ("fence", 2)}]
    assert graph.deadlocks[0].doubt == ""
    assert list(graph.ends()) == []


def test_a_process_that_waits_for_itself_is_a_deadlock() -> None:
    graph = walk(snapshot(PAIR, POINTS, [holder(10, (1,), (1,), ((1,),))]), [("process", 10)])
    assert [found.doubt for found in graph.deadlocks] == [""]


def test_a_loop_that_watches_other_things_may_go_on() -> None:
    busy = holder(20, (1,), (2,), ((1, 77, 78),))
    (found,) = walk(snapshot(PAIR, POINTS, [holder(10, (2,), (1,), ((2,),)), busy]), [("process", 10)]).deadlocks
    assert found.doubt == "20 p20 may go on for another reason"


def test_another_thread_may_break_a_circle() -> None:
    busy = holder(20, (1,), (2,), ((1,), (99,)))
    (found,) = walk(snapshot(PAIR, POINTS, [holder(10, (2,), (1,), ((2,),)), busy]), [("process", 10)]).deadlocks
    assert found.doubt == "20 p20 may go on for another reason"


def test_what_cannot_be_seen_is_held_and_not_waited_for() -> None:
    shy = [holder(10, (1, 2), (1,), None), holder(20, (1,), (2,), None)]
    graph = walk(snapshot(PAIR, POINTS, shy), [("process", 10)])
    node = graph.nodes["process", 10]
    assert isinstance(node, ProcessNode)
    assert (node.how, node.links) == ("holds", [("fence", 2)])  # its own point is its to signal
    assert [found.doubt for found in graph.deadlocks] in (["whether 10 p10 waits cannot be seen"], ["whether 20 p20 waits cannot be seen"])


def test_an_epoll_set_says_more_than_mere_holding() -> None:
    shy = holder(10, (2, 3), (), None)
    shy.in_epoll = frozenset({3})
    graph = walk(snapshot([*PAIR, timeline(3, pid=30)], [*POINTS, fence(3, 3)], [shy]), [("process", 10)])
    node = graph.nodes["process", 10]
    assert isinstance(node, ProcessNode)
    assert (node.how, node.links) == ("epoll", [("fence", 3)])


def test_a_merge_of_any_may_be_broken_from_outside_and_one_of_all_not() -> None:
    third = timeline(3, pid=30)
    for kind, doubt in (("all", ""), ("any", "4:1 (any) may be signalled from outside")):
        rows = [*POINTS, fence(3, 3), fence(4, 4, kind, (2, 3))]
        graph = walk(snapshot([*PAIR, third], rows, [holder(10, (4,), (1,), ((4,),)), holder(20, (1,), (2,), ((1,),))]), [("process", 10)])
        assert [found.doubt for found in graph.deadlocks] == [doubt]
        assert list(graph.ends()) == [("process", 30)]


def test_several_owners_are_several_ways() -> None:
    graph = walk(snapshot(PAIR, POINTS, [holder(10, owns=(1,)), holder(11, owns=(1,))]), [("fence", 1)])
    assert graph.nodes["fence", 1].links == [("process", 10), ("process", 11)]
    assert set(graph.ends()) == {("process", 10), ("process", 11)}


def test_where_nobody_is() -> None:
    rows = [
        fence(1, 1, "placeholder"), fence(2, 2), fence(3, 3), fence(4, 4), fence(5, 5, "all", (2, 99)),
    ]  # fmt: skip
    timelines = [timeline(2, pid=20, alive=False), timeline(3, pid=0), timeline(4, pid=40)]
    found = walk(snapshot(timelines, rows, []), [("fence", row.id) for row in rows])
    why = {key[1]: node.why for key, node in found.nodes.items() if isinstance(node, Nobody)}
    assert why[1] == "nobody: there is no timeline t1"
    assert why[2].startswith("somebody who cannot be seen; 20 p20, who created the timeline, is gone")
    assert why[3] == "p0, in another pid namespace"
    assert why[5] == "a fence that is not yours to see"
    unseen = found.nodes["process", 40]
    assert isinstance(unseen, ProcessNode)
    assert (unseen.who, unseen.holder) == (ProcessInfo(40, UID, "p40"), None)


def test_a_long_chain_needs_no_recursion() -> None:
    n = 5000
    timelines = [timeline(context, pid=context) for context in range(1, n + 1)]
    fences = [fence(context, context) for context in range(1, n + 1)]
    holders = [holder(pid, (pid + 1,) if pid < n else (1,), (pid,), ((pid + 1 if pid < n else 1,),)) for pid in range(1, n + 1)]
    graph = walk(snapshot(timelines, fences, holders[:-1]), [("process", 1)])
    assert list(graph.ends()) == [("process", n)]
    graph = walk(snapshot(timelines, fences, holders), [("process", 1)])
    assert [len(found.circle) for found in graph.deadlocks] == [2 * n]
