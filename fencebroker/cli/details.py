"""``info``: everything about one thing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import click

from fencebroker import Broker
from fencebroker.cli import names, schema
from fencebroker.cli.catalogue import Fences, Node, find, list_rows, wire_target
from fencebroker.cli.command import Failure, Invocation, Verb, asks_broker, parsed, wants_json
from fencebroker.cli.holders import holders_of_sockets
from fencebroker.cli.render import Branch, Cell, Table, branches, facts, span, state, status_cell
from fencebroker.debugfs import sync_info
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow, Row, SyncFileRow, TimelineRow

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
"""

Pairs = list[tuple[str, str | Cell | Sequence[str | Cell]]]


def _target(text: str) -> tuple[str, str]:
    """What was typed, and the form that the wire wants."""
    return text, wire_target(text)


@click.command(cls=Verb, example=EXAMPLE, short_help="Everything about one thing, and what it waits for.")
@click.argument("target", callback=parsed(_target), metavar="ID|NAME|NAME@N|CONTEXT:SEQNO", required=False)
@click.option("--debugfs", is_flag=True, help="Write everything as the kernel's debugfs file sync/info does, instead of one thing.")
@asks_broker
@wants_json
@click.pass_obj
def info(invocation: Invocation, target: tuple[str, str] | None, debugfs: bool) -> None:
    """Show everything about one timeline, fence or sync_file.

    NAME is a timeline (camera0, or user/camera0 for another's), NAME@N a point of it, CONTEXT:SEQNO a fence by its numbers, CONTEXT: a
    timeline by its number, ID a sync_file by its number in "fencectl ls" (or '#ID', if a timeline has a number for its name).
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
        raise click.UsageError("Missing argument 'ID|NAME|NAME@N|CONTEXT:SEQNO', or --debugfs.")
    with invocation.connect() as broker:
        row = _find(broker, *target)
        now = time.monotonic_ns()
        match row:
            case TimelineRow():
                value, table = _timeline(broker, row, now)
            case FenceRow():
                value, table = _fence(broker, row, now)
            case SyncFileRow():
                value, table = _sync_file(broker, row, now)
            case _:
                raise AssertionError(f"LOOKUP answered with {row}")
    invocation.output.json({"now_ns": now, **value})
    invocation.output.tables(table)


def _find(broker: Broker, typed: str, target: str) -> Row:
    try:
        return find(broker, target)
    except FileNotFoundError as err:
        name, at, seqno = target.rpartition("@")
        if at:
            raise Failure(_why_no_point(broker, typed, name, int(seqno))) from err
        raise


def _why_no_point(broker: Broker, typed: str, name: str, seqno: int) -> str:
    """A point without a record: say how its timeline stands."""
    try:
        row = find(broker, name)
    except FileNotFoundError:
        return f"nobody waits for {typed}, and there is no timeline of that name (or it is not yours to see)"
    assert isinstance(row, TimelineRow)
    if seqno <= row.value:
        return f"{typed} has signalled and is no longer on record: the timeline is at {row.value}"
    return f"{typed} was not exported yet, and nobody waits for it: the timeline is at {row.value}"


# -- a timeline


def _timeline(broker: Broker, row: TimelineRow, now: int) -> tuple[dict[str, Any], Table]:
    active = [
        fence
        for fence in list_rows(broker, "fences")
        if isinstance(fence, FenceRow) and fence.context == row.context and fence.kind == "point" and not fence.status
    ]
    active.sort(key=lambda fence: fence.seqno)
    # The broker may know a better name for its client than /proc has.
    holders = [row.owner if row.creator_alive and who.pid == row.pid else who for who in holders_of_sockets(row.inodes)]
    pairs: Pairs = [
        ("name", names.timeline(row)),
        ("context", str(row.context)),
        ("value", str(row.value)),
        ("highest export", str(row.highest)),
        ("active points", [_active(fence, now) for fence in active[:SHOWN]] or "none"),
        ("created by", f"{_who(row.owner)}, {span(now - row.created_ns)} ago"),
    ]
    if len(active) > SHOWN:
        pairs.append(("", f"and {len(active) - SHOWN} more"))
    if not row.creator_alive:
        pairs.append(("", Cell("that process is gone; the timeline lives on in other hands", "red")))
    pairs += [
        ("held by", [_who(who) for who in holders] or "nobody whose descriptors you may see"),
        ("mode", f"{row.mode:04o}"),
        ("expiry", "none" if row.expiry_ns is None else f"{span(row.expiry_ns)} after a point was first asked for"),
        ("driver", row.driver),
    ]
    value = {
        "kind": "timeline",
        "timeline": {
            **schema.timeline(row),
            "active_fences": [schema.fence(fence) for fence in active],
            "holders": [schema.process(who) for who in holders],
        },
    }
    return value, facts(f"timeline {names.timeline(row) if row.name else row.context}", pairs)


def _active(fence: FenceRow, now: int) -> str:
    files = f"{fence.n_sync_files} sync_file{'' if fence.n_sync_files == 1 else 's'}"
    return f"{fence.seqno}, asked for {span(now - fence.created_ns)} ago, {files}"


def _who(who: ProcessInfo) -> str:
    return f"pid {who.pid}, {who.comm}, {names.user(who.uid)}"


# -- a fence


def _fence(broker: Broker, row: FenceRow, now: int) -> tuple[dict[str, Any], Table]:
    carriers = [
        sync_file for sync_file in list_rows(broker, "sync_files") if isinstance(sync_file, SyncFileRow) and sync_file.fence == row.id
    ]
    tree = Fences(broker).tree(row)
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
    pairs.append(("sync_files", carried or "none that you may see"))
    value = {
        "kind": "fence",
        "fence": {**schema.tree(tree), "carried_by": [schema.sync_file(carrier) for carrier in carriers]},
    }
    return value, facts(f"fence {names.point(row)}", pairs)


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


def _sync_file(broker: Broker, row: SyncFileRow, now: int) -> tuple[dict[str, Any], Table]:
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
    value = {
        "kind": "sync_file",
        "sync_file": {**schema.sync_file(row), "fence": None if tree is None else schema.tree(tree)},
    }
    return value, facts(f"sync_file {row.id}", pairs)
