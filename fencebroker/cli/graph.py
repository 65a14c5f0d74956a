"""Who waits for what, as a graph: processes, fences, and what has nobody.  No I/O.

A process leads to the fences it waits for; a merge to its members; a point to the processes that hold its timeline.  Where the way ends,
somebody must act.  Where it comes back to itself, nobody can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fencebroker.cli import names
from fencebroker.cli.processes import Holder
from fencebroker.cli.snapshot import Snapshot
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow

__all__ = ["Deadlock", "FenceNode", "Graph", "Key", "Nobody", "Node", "ProcessNode", "walk"]

#: ("process", pid), ("fence", id), ("nobody", fence id)
Key: TypeAlias = tuple[str, int]

#: A wait through the library also watches the connection to the broker.
_EXTRA: Final = 1


@dataclass(slots=True)
class ProcessNode:
    """A process; ``holder`` is None when one may not look at it.

    ``how`` is in what it waits, ``holds`` when that cannot be seen, empty when it waits for no fence.  ``is_stuck``: nothing but the fences
    it waits for can wake it.
    """

    who: ProcessInfo
    holder: Holder | None
    how: str = ""
    is_stuck: bool = False
    #: What its descriptor of a fence is called, where it has a name of its own.
    labels: dict[Key, str] = field(default_factory=dict)
    links: list[Key] = field(default_factory=list)

    @property
    def is_stopped(self) -> bool:
        """It was stopped by a signal, and only another one makes it go on."""
        return self.holder is not None and self.holder.state == "T"


@dataclass(slots=True)
class FenceNode:
    """An active fence."""

    row: FenceRow
    links: list[Key] = field(default_factory=list)


@dataclass(slots=True)
class Nobody:
    """The end of a way: there is no process that could act, or none that may be seen."""

    why: str
    cure: str
    links: list[Key] = field(default_factory=list)


Node: TypeAlias = ProcessNode | FenceNode | Nobody


@dataclass(frozen=True, slots=True)
class Deadlock:
    """A circle.  ``doubt`` is empty when it is certain that nobody in it can go on."""

    circle: tuple[Key, ...]
    doubt: str


@dataclass(slots=True)
class Graph:
    """What was reached from ``starts``."""

    starts: list[Key]
    nodes: dict[Key, Node]
    deadlocks: list[Deadlock] = field(default_factory=list)

    def ends(self) -> Iterator[Key]:
        """Yield where the ways end: who must act.  A stopped process must be continued first, whatever it waits for."""
        for key, node in self.nodes.items():
            is_end = not node.links and not isinstance(node, FenceNode) and key not in self.starts
            if is_end or (isinstance(node, ProcessNode) and node.is_stopped):
                yield key


def walk(snapshot: Snapshot, starts: Iterable[Key]) -> Graph:
    """Follow every way from ``starts``: processes that were looked at, and fences."""
    graph = Graph(list(starts), {})
    work = list(graph.starts)
    # A list that grows while it is walked.
    for key in work:
        if key not in graph.nodes:
            node = graph.nodes[key] = _node(snapshot, key)
            work += node.links
    graph.deadlocks = [_judged(graph, circle) for circle in _circles(graph)]
    return graph


def _node(snapshot: Snapshot, key: Key) -> Node:
    kind, number = key
    if kind == "process":
        return _process(snapshot, number)
    if kind == "fence":
        row = snapshot.fences[number]
        return FenceNode(row, list(_onward(snapshot, row)))
    return _nobody(snapshot, snapshot.fences[number])


# -- from a fence


def _onward(snapshot: Snapshot, row: FenceRow) -> Iterator[Key]:
    if row.members:
        for member in row.members:
            if member not in snapshot.fences or not snapshot.fences[member].status:
                yield ("fence", member) if member in snapshot.fences else ("nobody", row.id)
        return
    timeline = snapshot.timelines.get(row.context) if row.kind == "point" else None
    owners = [] if timeline is None else snapshot.owners_of(timeline)
    yield from (("process", who.pid) for who in owners if who.pid)
    if not any(who.pid for who in owners):
        yield ("nobody", row.id)


def _nobody(snapshot: Snapshot, row: FenceRow) -> Nobody:
    if row.members:
        return Nobody("a fence that is not yours to see", "ask as root, or as the broker's user")
    if row.kind == "placeholder":
        name = names.point(row).partition("@")[0]
        return Nobody(f"nobody: there is no timeline {name}", f"whoever is to create the timeline {name}")
    timeline = snapshot.timelines.get(row.context)
    if timeline is None:
        return Nobody("somebody whose timeline is not yours to see", "ask as root, or as the broker's user")
    if timeline.creator_alive:
        return Nobody(f"{timeline.comm}, in another pid namespace", f"{timeline.comm}, in another pid namespace")
    return Nobody(
        f"somebody who cannot be seen; {timeline.pid} {timeline.comm}, who created the timeline, is gone",
        "whoever holds the timeline's descriptor; root can see who that is",
    )


# -- from a process


def _process(snapshot: Snapshot, pid: int) -> ProcessNode:
    holder = snapshot.scan.holders.get(pid)
    if holder is None:
        owners = (row.owner for row in snapshot.timelines.values() if row.pid == pid)
        return ProcessNode(next(owners, ProcessInfo(pid, 0, "?")), None)
    node = ProcessNode(holder.who, holder)
    by_fd: dict[int, Key] = {}
    for held in snapshot.held_by(holder):
        fence = snapshot.fences.get(held.sync_file.fence)
        if fence is not None and not fence.status:
            key = ("fence", fence.id)
            by_fd[held.eventfd.fd] = key
            node.labels.setdefault(key, held.sync_file.name)
    if holder.waits is None:
        _assume(snapshot, node, by_fd)
        return node
    hows = []
    node.is_stuck = holder.is_asleep
    for wait in holder.waits:
        fds = sorted(wait.fds & by_fd.keys())
        if fds:
            hows.append(wait.how)
            node.links += [by_fd[fd] for fd in fds]
        node.is_stuck &= bool(fds) and len(wait.fds) - len(fds) <= _EXTRA
    node.links = list(dict.fromkeys(node.links))
    node.how = " and ".join(dict.fromkeys(hows))
    return node


def _assume(snapshot: Snapshot, node: ProcessNode, by_fd: dict[int, Key]) -> None:
    """How it waits cannot be seen: it may wait for what it has in an epoll set, or else for anything it holds and does not signal itself."""
    assert node.holder is not None
    own = {row.context for row in snapshot.timelines.values() if not set(node.holder.sockets.values()).isdisjoint(row.inodes)}
    watched = [by_fd[fd] for fd in sorted(node.holder.in_epoll & by_fd.keys())]
    node.links = list(dict.fromkeys(watched or [key for key in by_fd.values() if snapshot.fences[key[1]].context not in own]))
    node.how = ("epoll" if watched else "holds") if node.links else ""


# -- circles


def _circles(graph: Graph) -> Iterator[tuple[Key, ...]]:
    """Yield the strongly connected parts that have a circle: Tarjan's algorithm, without recursion."""
    numbers: dict[Key, int] = {}
    low: dict[Key, int] = {}
    stack: list[Key] = []
    on_stack: set[Key] = set()
    for start in graph.nodes:
        if start in numbers:
            continue
        work: list[tuple[Key, Iterator[Key]]] = [(start, iter(graph.nodes[start].links))]
        numbers[start] = low[start] = len(numbers)
        stack.append(start)
        on_stack.add(start)
        while work:
            key, links = work[-1]
            for link in links:
                if link not in numbers:
                    numbers[link] = low[link] = len(numbers)
                    stack.append(link)
                    on_stack.add(link)
                    work.append((link, iter(graph.nodes[link].links)))
                    break
                if link in on_stack:
                    low[key] = min(low[key], numbers[link])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[key])
                if low[key] == numbers[key]:
                    part = [stack.pop()]
                    while part[-1] != key:
                        part.append(stack.pop())
                    on_stack.difference_update(part)
                    if len(part) > 1:
                        yield tuple(reversed(part))


def _judged(graph: Graph, part: tuple[Key, ...]) -> Deadlock:
    """Say whether anything can break a circle: a member that has another way on, or a process that can wake for another reason."""
    inside = set(part)
    for key in part:
        node = graph.nodes[key]
        if isinstance(node, ProcessNode):
            who = f"{node.who.pid} {node.who.comm}"
            if node.how == "holds" or (node.holder is not None and node.holder.waits is None):
                return Deadlock(part, f"whether {who} waits cannot be seen")
            if not node.is_stuck:
                return Deadlock(part, f"{who} may go on for another reason")
        leads_out = not inside.issuperset(node.links)
        if leads_out and isinstance(node, ProcessNode):
            return Deadlock(part, f"{node.who.pid} {node.who.comm} also waits for something outside")
        if leads_out and isinstance(node, FenceNode) and node.row.kind != "all":
            return Deadlock(part, f"{names.point(node.row)} may be signalled from outside")
    return Deadlock(part, "")
