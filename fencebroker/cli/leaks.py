"""``leaks``: descriptors that are held for no reason, and those that the broker keeps for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click

from fencebroker import Broker, requests
from fencebroker.cli import names, schema
from fencebroker.cli.command import Failure, Invocation, Verb, asks_broker, duration, parsed, wants_json
from fencebroker.cli.processes import Holder
from fencebroker.cli.render import Cell, Column, Table, process, span, status_cell
from fencebroker.cli.snapshot import Held, Snapshot
from fencebroker.rows import SyncFileRow

__all__ = ["leaks"]

#: Handles in one request.
BATCH: Final = 512
#: So many points of one process are named.
SHOWN: Final = 3

EXAMPLE = """\
$ fencectl leaks --older 0s
signalled and still held
  PROCESS       DESCRIPTORS  OLDEST  NO RECORD  OF
  4211 capture            1   4.2 s          0  camera0@6
"""


class Hoard(NamedTuple):
    """A process that holds what has signalled long ago; of ``n_forgotten`` no record is left."""

    holder: Holder
    held: Sequence[Held]
    n_forgotten: int

    @property
    def oldest(self) -> int:
        """When the first of them signalled; 0 when only forgotten ones are left."""
        return min((each.sync_file.timestamp_ns for each in self.held), default=0)


@click.command(cls=Verb, example=EXAMPLE, short_help="What is held for no reason, and what is held by nobody.")
@click.option("--older", metavar="AGE", callback=parsed(duration), default="60s", show_default=True, help="For so long or longer.")
@click.option("--reclaim", is_flag=True, help="Give up what is held by nobody.")
@asks_broker
@wants_json
@click.pass_obj
def leaks(invocation: Invocation, older: float, reclaim: bool) -> None:
    """List descriptors that should have been closed, and sync_files that nobody holds any more.

    "Signalled and still held": processes that keep descriptors of fences that signalled long ago; at some thousands of them they reach
    their limit. NO RECORD counts those that the broker has forgotten: their age is not known. "Active and held by nobody": exported, and
    closed again by everybody who had it; an eventfd tells nobody, so the broker keeps its copy until the fence signals. --reclaim gives
    these up. A producer keeps a copy of what it has to signal itself: held by that alone, and given back, counts as held by nobody. A holder that could not be seen (another user's, or a descriptor on its way through a socket) does not hang then: its
    descriptor is completed with ECANCELED.
    """
    with invocation.connect() as broker:
        snapshot = Snapshot.take(broker)
        before = snapshot.now - int(older * 1e9)
        hoards = _hoards(snapshot, before)
        unheld = _unheld(snapshot, before)
        if reclaim and not snapshot.sees_broker:
            raise Failure("the broker lives in another pid namespace, and so may processes that hold something: reclaim from there")
        given_up = _reclaim(broker, [row.id for row in unheld if not row.is_open]) if reclaim else []
    invocation.output.json(
        {
            "now_ns": snapshot.now,
            "older_s": older,
            "held": [_json(hoard) for hoard in hoards],
            "unheld": [schema.sync_file(row) for row in unheld],
            "reclaimed": given_up,
            "unseen": snapshot.scan.n_unseen,
        }
    )
    invocation.output.tables(*_tables(snapshot, hoards, unheld))
    if not hoards and not unheld:
        invocation.output.line(f"no leaks of {span(int(older * 1e9))} or older")
    if reclaim:
        invocation.output.line(f"{len(given_up)} given up")


def _hoards(snapshot: Snapshot, before: int) -> list[Hoard]:
    found = []
    for holder in snapshot.scan.holders.values():
        known = list(snapshot.held_by(holder))
        # What is not on record may be another broker's; it is taken for this one's where a client of this one holds it.
        forgotten = snapshot.forgotten_by_broker(holder) if known or holder.pid in snapshot.names else []
        held = [each for each in known if each.sync_file.status and each.sync_file.timestamp_ns <= before]
        if held or forgotten:
            found.append(Hoard(holder, held, len(forgotten)))
    return sorted(found, key=lambda hoard: len(hoard.held) + hoard.n_forgotten, reverse=True)


def _unheld(snapshot: Snapshot, before: int) -> list[SyncFileRow]:
    """What is active and held by nobody, or only by its producer after he gave it back: he keeps a copy of what he has to write himself."""
    pids: dict[int, set[int]] = {}
    for holder in snapshot.scan.holders.values():
        for eventfd in holder.eventfds:
            pids.setdefault(eventfd.id, set()).add(holder.pid)
    found = []
    for row in snapshot.sync_files.values():
        if row.status or row.created_ns > before or not row.eventfd_id:
            continue
        held_by = pids.get(row.eventfd_id, set())
        timeline = snapshot.timelines.get(row.context) if row.kind == "point" else None
        owners = set() if timeline is None else {holder.pid for holder in snapshot.holding(timeline)}
        if not held_by or (not row.is_open and held_by <= owners):
            found.append(row)
    return found


def _reclaim(broker: Broker, handles: list[int]) -> list[int]:
    given_up: list[int] = []
    for start in range(0, len(handles), BATCH):
        taken = broker._connection.call(requests.reclaim(handles[start : start + BATCH]))
        given_up += taken
    return given_up


def _tables(snapshot: Snapshot, hoards: Sequence[Hoard], unheld: Sequence[SyncFileRow]) -> list[Table]:
    tables = []
    if hoards:
        columns = (
            Column("PROCESS", shrinks=True), Column("DESCRIPTORS", right=True), Column("OLDEST", right=True), Column("NO RECORD", right=True),
            Column("OF", shrinks=True),
        )  # fmt: skip
        tables.append(Table("signalled and still held", columns, [_hoard_cells(hoard, snapshot.now) for hoard in hoards]))
    if unheld:
        heads = ("ID", "NAME", "STATUS", "POINT", "CREATOR", "AGE", "HANDLE")
        wide = tuple(Column(head, head == "ID", head in ("NAME", "POINT", "CREATOR")) for head in heads)
        tables.append(Table("active and held by nobody", wide, [_unheld_cells(row, snapshot.now) for row in unheld]))
    return tables


def _hoard_cells(hoard: Hoard, now: int) -> Sequence[str | Cell]:
    points = list(dict.fromkeys(names.point(each.sync_file) for each in hoard.held))
    more = f" and {len(points) - SHOWN} more" if len(points) > SHOWN else ""
    return (
        process(hoard.holder.who),
        str(len(hoard.held) + hoard.n_forgotten),
        span(now - hoard.oldest) if hoard.oldest else "-",
        str(hoard.n_forgotten),
        ", ".join(points[:SHOWN]) + more or "-",
    )


def _unheld_cells(row: SyncFileRow, now: int) -> Sequence[str | Cell]:
    handle = "not given back" if row.is_open else "given back"
    age = span(now - row.created_ns)
    return str(row.id), row.name, status_cell(row.status, row.tampered), names.point(row), process(row.creator), age, handle


def _json(hoard: Hoard) -> dict[str, Any]:
    return {
        **schema.seen(hoard.holder.who, hoard.holder),
        "fds": [each.eventfd.fd for each in hoard.held],
        "sync_files": [schema.sync_file(each.sync_file) for each in hoard.held],
        "forgotten": hoard.n_forgotten,
        "oldest_ns": hoard.oldest or None,
    }
