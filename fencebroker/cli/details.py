"""``info``: everything about one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from fencebroker import Broker
from fencebroker.cli import names, schema
from fencebroker.cli.catalogue import Entry, Fences, Node, history
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, wants_json
from fencebroker.cli.completion import complete_targets
from fencebroker.cli.render import Branch, Cell, Table, branches, facts, process, span, state, status_cell
from fencebroker.cli.snapshot import Snapshot
from fencebroker.cli.targets import Target, find_descriptor, find_row, parse_descriptor
from fencebroker.debugfs import sync_info
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow

__all__ = ["info"]

#: So many of a timeline's active points are shown to a person; JSON has all.
SHOWN: Final = 10

EXAMPLE = """\
$ fencectl info 5
sync_file 5
  name        inputs
  id          5
  status      active for 1.5 s
  carries     3:1 (all)
  waits for   camera0@7, active, pid 4211, capture, ada
              lens@1 (no timeline), active
  created by  pid 4230, encode, ada, 1.5 s ago
              still open there
  held by     pid 4230, encode, ada, descriptor 7
"""

Pairs = list[tuple[str, str | Cell | Sequence[str | Cell]]]


@click.command(cls=Verb, example=EXAMPLE, short_help="Everything about one thing, and what it waits for.")
@click.argument(
    "target", callback=parsed(parse_descriptor), metavar="ID|NAME|NAME@N|PID:FD", required=False, shell_complete=complete_targets
)
@click.option("--debugfs", is_flag=True, help="Write everything as the kernel's debugfs file sync/info does, instead of one thing.")
@asks_broker
@wants_json
@click.pass_obj
def info(invocation: Invocation, target: Target | None, debugfs: bool) -> None:
    """Show everything about one timeline, fence or sync_file.

    NAME is a timeline (camera0, or user/camera0 for another's), NAME@N a point of it, ID a sync_file by its number in "fencectl ls" (or
    '#ID', if a timeline has a number for its name), PID:FD what a process holds as that descriptor. CONTEXT:SEQNO is a fence by its numbers,
    CONTEXT: a timeline by its number; where 7:5 could be both a fence and a descriptor it is the fence, and /proc/7/fd/5 the descriptor.
    """
    if debugfs:
        if target is not None or invocation.output.as_json:
            raise click.UsageError("--debugfs writes everything, as text: it takes no argument and no --json.")
        with invocation.connect() as broker:
            text = sync_info(broker)
        for line in text.splitlines():
            invocation.output.line(line)
        return
    if target is None:
        raise click.UsageError("Missing argument 'ID|NAME|NAME@N|PID:FD', or --debugfs.")
    with invocation.connect() as broker:
        row = find_row(broker, target) if target.wire is not None else None
        snapshot = Snapshot.take(broker)
        if row is None:
            row = find_descriptor(snapshot, target)
        match row:
            case TimelineRow():
                value, table = _timeline(broker, row, snapshot)
            case FenceRow():
                value, table = _fence(broker, row, snapshot)
            case SyncFileRow():
                value, table = _sync_file(broker, row, snapshot)
            case _:
                raise AssertionError(f"LOOKUP answered with {row}")
    invocation.output.json({"now_ns": snapshot.now, **value})
    invocation.output.tables(table)


# -- a timeline


def _timeline(broker: Broker, row: TimelineRow, snapshot: Snapshot) -> tuple[dict[str, Any], Table]:
    now = snapshot.now
    active = [fence for fence in snapshot.fences.values() if fence.context == row.context and fence.kind == "point" and not fence.status]
    active.sort(key=lambda fence: fence.seqno)
    holders = snapshot.holding(row)
    past = history(broker, row.context)
    pairs: Pairs = [
        ("name", names.timeline(row)),
        ("context", str(row.context)),
        ("value", f"{row.value}, since {span(now - row.advanced_ns)}" if row.value else "0"),
        ("highest export", str(row.highest)),
        ("active points", [_active(fence, now) for fence in active[:SHOWN]] or "none"),
    ]
    if len(active) > SHOWN:
        pairs.append(("", f"and {len(active) - SHOWN} more"))
    pairs.append(("created by", f"{_who(row.owner)}, {span(now - row.created_ns)} ago"))
    if not row.creator_alive:
        pairs.append(("", Cell("that process is gone; the timeline lives on in other hands", "red")))
    pairs += [
        ("held by", [f"{_who(holder.who)}, {holder.words}" for holder in holders] or "nobody whose descriptors you may see"),
        ("mode", f"{row.mode:04o}"),
        ("expiry", "none" if row.expiry_ns is None else f"{span(row.expiry_ns)} after a point was first asked for"),
        ("driver", row.driver),
        ("history", _history(past, now)),
    ]
    value = {
        "kind": "timeline",
        "timeline": {
            **schema.timeline(row),
            "active_fences": [schema.fence(fence) for fence in active],
            "holders": [schema.seen(holder.who, holder) for holder in holders],
            "history": [schema.entry(each) for each in past],
        },
    }
    return value, facts(f"timeline {names.timeline(row) if row.name else row.context}", pairs)


#: What is said of a descriptor for which nobody is seen to sleep.
HOW: Final = {"holds": "", "epoll set": ", in an epoll set"}
#: What happened, in words.
WORDS: Final = {
    "created": "created",
    "opened": "another descriptor was handed out",
    "exported": "exported up to {seqno}",
    "advanced": "advanced to {seqno}",
    "failed": "{seqno} failed with {state}",
    "orphaned": "its creator is gone",
    "asked": "asked for",
    "carried": "a sync_file made",
    "signalled": "signalled, {state}",
}


def _history(past: Sequence[Entry], now: int) -> list[str]:
    lines = []
    for entry in past:
        text = WORDS.get(entry.what, entry.what).format(seqno=entry.seqno, state=state(entry.status))
        who = "" if entry.who is None else f", {process(entry.who)}"
        lines.append(f"{span(now - entry.time_ns)} ago: {text}{who}")
    return lines


def _active(fence: FenceRow, now: int) -> str:
    files = f"{fence.n_sync_files} sync_file{'' if fence.n_sync_files == 1 else 's'}"
    return f"{fence.seqno}, asked for {span(now - fence.created_ns)} ago, {files}"


def _who(who: ProcessInfo) -> str:
    return f"pid {who.pid}, {who.comm}, {names.user(who.uid)}"


# -- a fence


def _fence(broker: Broker, row: FenceRow, snapshot: Snapshot) -> tuple[dict[str, Any], Table]:
    now = snapshot.now
    carriers = [sync_file for sync_file in snapshot.sync_files.values() if sync_file.fence == row.id]
    tree = Fences(broker).tree(row)
    past = _past(row, carriers)
    pairs: Pairs = [
        ("point", names.point(row)),
        ("fence", f"{row.context}:{row.seqno}"),
        *_life(row, now),
        ("created", f"{span(now - row.created_ns)} ago"),
    ]
    if row.members:
        pairs.append(("waits for", _branches(tree)))
    carried = [f"{carrier.id}, {carrier.name}, {_who(carrier.creator)}" for carrier in carriers[:SHOWN]]
    if len(carriers) > SHOWN:
        carried.append(f"and {len(carriers) - SHOWN} more")
    held = [line for carrier in carriers[:SHOWN] for line in _holders(snapshot, carrier)]
    pairs += [
        ("sync_files", carried or "none that you may see"),
        ("held by", held or "nobody whose descriptors you may see"),
        ("history", _history(past, now)[-2 * SHOWN :]),
    ]
    value = {
        "kind": "fence",
        "fence": {
            **schema.tree(tree),
            "carried_by": [schema.sync_file(carrier) for carrier in carriers],
            "holders": [each for carrier in carriers for each in _holders_json(snapshot, carrier)],
            "history": [schema.entry(each) for each in past],
        },
    }
    return value, facts(f"fence {names.point(row)}", pairs)


def _past(row: FenceRow, carriers: Sequence[SyncFileRow]) -> list[Entry]:
    """What happened to a fence is in its record and in those of its sync_files."""
    past = [Entry(row.created_ns, "asked", row.seqno, 0, None)]
    past += [Entry(carrier.created_ns, "carried", row.seqno, 0, carrier.creator) for carrier in carriers]
    if row.status:
        past.append(Entry(row.timestamp_ns, "signalled", row.seqno, row.status, None))
    return sorted(past, key=lambda entry: entry.time_ns)


def _holders(snapshot: Snapshot, sync_file: SyncFileRow) -> list[str]:
    """Who holds a sync_file's descriptor now, and how."""
    return [
        f"{_who(holder.who)}, descriptor {fd}{HOW.get(how := holder.how(fd), f', waits in {how}')}"
        for holder, fds in snapshot.holders_of(sync_file)
        for fd in fds
    ]


def _holders_json(snapshot: Snapshot, sync_file: SyncFileRow) -> list[dict[str, Any]]:
    return [
        {**schema.seen(holder.who, holder), "fd": fd, "how": holder.how(fd), "id": sync_file.id}
        for holder, fds in snapshot.holders_of(sync_file)
        for fd in fds
    ]


def _life(row: FenceRow, now: int) -> Pairs:
    """Status, who has to act, and the times."""
    pairs: Pairs = [("status", _status(row, now))]
    if row.owner is not None:
        pairs.append(("owner", _who(row.owner)))
    if row.deadline_ns is not None:
        pairs.append(("deadline", _moment(row.deadline_ns, now)))
    if row.expires_ns is not None and not row.status:
        pairs.append(("expires", _moment(row.expires_ns, now)))
    return pairs


def _status(row: FenceRow | SyncFileRow, now: int) -> Cell:
    tampered = isinstance(row, SyncFileRow) and row.tampered
    word, style = status_cell(row.status, tampered)
    if not row.status:
        return Cell(f"{word} for {span(now - row.created_ns)}", style)
    return Cell(f"{word}, {span(now - row.timestamp_ns)} ago" if row.timestamp_ns else word, style)


def _moment(moment: int, now: int) -> str:
    return f"in {span(moment - now)}" if moment >= now else f"{span(now - moment)} ago"


def _branches(node: Node) -> list[str | Cell]:
    """What a merge waits for, as a tree; nothing for a single point."""
    return [line for member in node.members or () for line in branches(_branch(member))]


def _branch(node: Node) -> Branch:
    if node.row is None:
        return Branch("a fence that is no longer on record, or not yours to see")
    line = f"{names.point(node.row)}, {state(node.row.status)}"
    if node.row.owner is not None and not node.row.status:
        line += f", {_who(node.row.owner)}"
    if node.members is None:
        where = f"more further down: fencectl info {node.row.context}:{node.row.seqno}" if node.is_deep else "see above"
        return Branch(f"{line}, {where}")
    return Branch(line, [_branch(member) for member in node.members])


# -- a sync_file


def _sync_file(broker: Broker, row: SyncFileRow, snapshot: Snapshot) -> tuple[dict[str, Any], Table]:
    now = snapshot.now
    fences = Fences(broker)
    fence = fences.get(row.fence)
    tree = None
    pairs: Pairs = [("name", row.name), ("id", str(row.id)), ("status", _status(row, now))]
    if row.tampered:
        pairs.append(("", Cell("somebody who holds the descriptor wrote to it: do not believe poll(), import it anew", "red")))
    pairs.append(("carries", names.point(row)))
    if fence is not None:
        tree = fences.tree(fence)
        if fence.members:
            pairs.append(("waits for", _branches(tree)))
        pairs += _life(fence, now)[1:]
    handle = "still open there" if row.is_open else "closed there; others may have the descriptor"
    pairs.append(("created by", [f"{_who(row.creator)}, {span(now - row.created_ns)} ago", handle]))
    pairs.append(("held by", _holders(snapshot, row) or "nobody whose descriptors you may see"))
    value = {
        "kind": "sync_file",
        "sync_file": {
            **schema.sync_file(row),
            "fence": None if tree is None else schema.tree(tree),
            "holders": _holders_json(snapshot, row),
        },
    }
    return value, facts(f"sync_file {row.id}", pairs)
