"""``holders``: which processes hold what, and how they wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from fencebroker.cli import names, schema
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, wants_json
from fencebroker.cli.completion import complete_targets
from fencebroker.cli.processes import Holder
from fencebroker.cli.render import Cell, Column, Table, process, span, status_cell
from fencebroker.cli.snapshot import Held, Snapshot
from fencebroker.cli.targets import Target, parse_target, point_at
from fencebroker.rows import FenceRow, Row, SyncFileRow, TimelineRow

__all__ = ["holders"]

EXAMPLE = """\
$ fencectl holders camera0@7
owners
  TIMELINE  PROCESS       STATE
  camera0   4211 capture  asleep

holders
  PROCESS       FD  HOW    ID  NAME     POINT      STATUS  AGE
  4211 capture   7  holds   2  frame-7  camera0@7  active  4.2 s
  4211 capture   8  holds   2  frame-7  camera0@7  active  4.2 s
"""


class Owned(NamedTuple):
    """A process that holds a timeline's descriptor."""

    holder: Holder
    timeline: TimelineRow


class Found(NamedTuple):
    """A process that holds a sync_file's descriptor."""

    holder: Holder
    held: Held


@click.command(cls=Verb, example=EXAMPLE, short_help="Which processes hold something, and how they wait.")
@click.argument("target", callback=parsed(parse_target), metavar="PID|ID|NAME|NAME@N", shell_complete=complete_targets)
@asks_broker
@wants_json
@click.pass_obj
def holders(invocation: Invocation, target: Target) -> None:
    """Show which processes hold a sync_file, a fence or a timeline now, or what one process holds.

    HOW is poll, select, read or epoll when a thread sleeps there until the fence signals; "epoll set" when the descriptor is in one and
    nobody is seen to sleep there; else "holds". Seeing it takes the right to attach to the process (root, CAP_SYS_PTRACE, or the same user
    where ptrace_scope is 0). An owner is whoever holds the timeline's descriptor. What is on its way through a socket is held by nobody.
    """
    with invocation.connect() as broker:
        snapshot = Snapshot.take(broker)
        found = point_at(broker, snapshot, target)
    owners = list(_owners(snapshot, found))
    held = list(_holders(snapshot, found))
    forgotten = snapshot.forgotten_by_broker(found) if isinstance(found, Holder) else []
    value = {
        "now_ns": snapshot.now,
        "owners": [{**schema.seen(each.holder.who, each.holder), **_timeline_json(each.timeline)} for each in owners],
        "holders": [_json(each) for each in held],
        "forgotten": len(forgotten),
        "unseen": snapshot.scan.n_unseen,
    }
    invocation.output.json(value)
    invocation.output.tables(*_tables(snapshot, owners, held))
    _remarks(invocation, snapshot, found, owners, held, len(forgotten))


def _owners(snapshot: Snapshot, found: Holder | Row) -> Iterator[Owned]:
    match found:
        case Holder():
            timelines: Iterable[TimelineRow] = snapshot.timelines.values()
            among = {found.pid}
        case TimelineRow():
            timelines, among = [snapshot.timelines.get(found.context, found)], set(snapshot.scan.holders)
        case _:
            rows = [snapshot.timelines.get(context) for context in sorted({fence.context for fence in _leaves(snapshot, found)})]
            timelines, among = [row for row in rows if row is not None], set(snapshot.scan.holders)
    for timeline in timelines:
        for holder in snapshot.holding(timeline):
            if holder.pid in among:
                yield Owned(holder, timeline)


def _leaves(snapshot: Snapshot, found: Row) -> Iterator[FenceRow]:
    """The points that a fence is made of; merges may share members to any depth."""
    start = found.fence if isinstance(found, SyncFileRow) else found.id if isinstance(found, FenceRow) else 0
    work, seen = [start], {start}
    for id in work:
        fence = snapshot.fences.get(id)
        if fence is not None and not fence.members:
            yield fence
        elif fence is not None:
            work += [member for member in fence.members if member not in seen]
            seen.update(fence.members)


def _holders(snapshot: Snapshot, found: Holder | Row) -> Iterator[Found]:
    for holder in [found] if isinstance(found, Holder) else snapshot.scan.holders.values():
        for held in snapshot.held_by(holder):
            match found:
                case Holder():
                    is_meant = True
                case SyncFileRow():
                    is_meant = held.sync_file.id == found.id
                case FenceRow():
                    is_meant = held.sync_file.fence == found.id
                case TimelineRow():
                    is_meant = held.sync_file.context == found.context
                case _:
                    is_meant = False
            if is_meant:
                yield Found(holder, held)


def _tables(snapshot: Snapshot, owners: Sequence[Owned], held: Sequence[Found]) -> Iterator[Table]:
    if owners:
        columns = (Column("TIMELINE", shrinks=True), Column("PROCESS", shrinks=True), Column("STATE"))
        rows = [
            (names.timeline(timeline) if timeline.name else f"{timeline.context}:", process(holder.who), _state(holder))
            for holder, timeline in owners
        ]
        yield Table("owners", columns, rows)
    if held:
        heads = ("PROCESS", "FD", "HOW", "ID", "NAME", "POINT", "STATUS", "AGE")
        wide = tuple(Column(head, head in ("FD", "ID"), head in ("PROCESS", "NAME", "POINT")) for head in heads)
        yield Table("holders", wide, [_row(each, snapshot.now) for each in held])


def _row(found: Found, now: int) -> Sequence[str | Cell]:
    holder, (eventfd, row) = found
    how = holder.how(eventfd.fd)
    return (
        process(holder.who),
        str(eventfd.fd),
        how if how == "holds" else Cell(how, "cyan"),
        str(row.id),
        row.name,
        names.point(row),
        status_cell(row.status, row.tampered),
        span(now - (row.timestamp_ns or row.created_ns)),
    )


def _state(holder: Holder) -> Cell:
    return Cell(holder.words, "bold red" if holder.state in "TtZX" else "")


def _remarks(
    invocation: Invocation, snapshot: Snapshot, found: Holder | Row, owners: Sequence[Owned], held: Sequence[Found], forgotten: int
) -> None:
    """What the tables do not say."""
    line = invocation.output.line
    who = f"{found.pid} {found.comm}" if isinstance(found, Holder) else "it"
    if isinstance(found, Holder):
        if not owners and not held:
            line(f"{who} holds nothing of this broker")
    elif not held:
        line("nobody that can be seen holds it")
        if snapshot.scan.n_unseen:
            line(f"{snapshot.scan.n_unseen} processes are not yours to look at; root sees all")
    if forgotten:
        line(f"{who} also holds {forgotten} that signalled so long ago that no record is left")
    if any(each.holder.waits is None for each in held):
        line("how they wait cannot be seen: that takes root, CAP_SYS_PTRACE, or ptrace_scope 0")


def _timeline_json(row: TimelineRow) -> dict[str, Any]:
    return {"context": row.context, "timeline": row.name, "timeline_uid": row.uid}


def _json(found: Found) -> dict[str, Any]:
    holder, (eventfd, row) = found
    return {
        **schema.seen(holder.who, holder),
        "fd": eventfd.fd,
        "how": holder.how(eventfd.fd),
        "sync_file": schema.sync_file(row),
    }
