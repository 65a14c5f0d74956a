"""``stuck``: what is active for too long, and how whoever should signal it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fencebroker.cli import names, schema
from fencebroker.cli.command import Invocation, Verb, asks_broker, duration, parsed, wants_json
from fencebroker.cli.processes import Holder
from fencebroker.cli.render import Cell, Column, Table, process, span
from fencebroker.cli.snapshot import Snapshot
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow

__all__ = ["stuck"]

EXAMPLE = """\
$ fencectl stuck --older 0s
POINT                 ACTIVE  OWNER         STATE   TIMELINE     WAITING
camera0@7              4.2 s  4211 capture  asleep  at 6, 4.2 s  -
lens@1 (no timeline)   1.5 s  -             -       -            -
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="What is active for too long, and its owner's state.")
@click.option("--older", metavar="AGE", callback=parsed(duration), default="2s", show_default=True, help="Active for so long or longer.")
@asks_broker
@wants_json
@click.pass_obj
def stuck(invocation: Invocation, older: float) -> None:
    """List the points that are active for too long, oldest first, with whoever should signal them.

    TIMELINE is its value, and for how long it has not grown. WAITING are processes of which a thread is seen to sleep for the point, also
    through a merge. Merges are not listed: they wait for points. "fencectl why" follows one of them further.
    """
    with invocation.connect() as broker:
        snapshot = Snapshot.take(broker)
    before = snapshot.now - int(older * 1e9)
    rows = [row for row in snapshot.fences.values() if not row.status and not row.members and row.created_ns <= before]
    rows.sort(key=lambda row: row.created_ns)
    waiting = _waiting(snapshot)
    invocation.output.json(
        {
            "now_ns": snapshot.now,
            "older_s": older,
            "stuck": [_json(snapshot, row, waiting.get(row.id, [])) for row in rows],
            "unseen": snapshot.scan.n_unseen,
        }
    )
    if not rows:
        invocation.output.line(f"nothing is active for {span(int(older * 1e9))} or longer")
        return
    heads = ("POINT", "ACTIVE", "OWNER", "STATE", "TIMELINE", "WAITING")
    columns = tuple(Column(head, head == "ACTIVE", head in ("POINT", "OWNER", "WAITING")) for head in heads)
    invocation.output.tables(Table("", columns, [_cells(snapshot, row, waiting.get(row.id, [])) for row in rows]))


def _owners(snapshot: Snapshot, row: FenceRow) -> list[tuple[ProcessInfo, Holder | None]]:
    timeline = snapshot.timelines.get(row.context) if row.kind == "point" else None
    if timeline is None:
        return []
    return [(who, snapshot.scan.holders.get(who.pid)) for who in snapshot.owners_of(timeline)]


def _cells(snapshot: Snapshot, row: FenceRow, waiting: Sequence[Holder]) -> Sequence[str | Cell]:
    owners = _owners(snapshot, row)
    timeline = snapshot.timelines.get(row.context) if row.kind == "point" else None
    states = ", ".join("not yours to look at" if holder is None else holder.words for _, holder in owners)
    is_bad = any(holder is not None and holder.state in "TtZX" for _, holder in owners)
    return (
        names.point(row),
        Cell(span(snapshot.now - row.created_ns), "yellow"),
        ", ".join(process(who) for who, _ in owners) or "-",
        Cell(states or "-", "bold red" if is_bad else ""),
        "-" if timeline is None else f"at {timeline.value}, {span(snapshot.now - timeline.advanced_ns)}",
        ", ".join(process(holder.who) for holder in waiting) or "-",
    )


def _waiting(snapshot: Snapshot) -> dict[int, list[Holder]]:
    """Point -> the processes that sleep for it, by themselves or for a merge that it is part of."""
    found: dict[int, list[Holder]] = {}
    for holder in snapshot.scan.holders.values():
        fds = {fd for wait in holder.waits or () for fd in wait.fds}
        work = [held.sync_file.fence for held in snapshot.held_by(holder) if held.eventfd.fd in fds]
        seen = set(work)
        for id in work:
            fence = snapshot.fences.get(id)
            if fence is not None and fence.members:
                work += [member for member in fence.members if member not in seen]
                seen.update(fence.members)
            else:
                found.setdefault(id, []).append(holder)
    return found


def _json(snapshot: Snapshot, row: FenceRow, waiting: Sequence[Holder]) -> dict[str, Any]:
    timeline = snapshot.timelines.get(row.context) if row.kind == "point" else None
    return {
        **schema.fence(row),
        "owners": [schema.seen(who, holder) for who, holder in _owners(snapshot, row)],
        "waiting": [schema.seen(holder.who, holder) for holder in waiting],
        "value": None if timeline is None else timeline.value,
        "advanced_ns": None if timeline is None else timeline.advanced_ns,
    }
