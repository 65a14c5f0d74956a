"""``ls``: what there is, in tables."""

from __future__ import annotations

import errno
import fnmatch
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from fencebroker.cli import names, schema
from fencebroker.cli.catalogue import list_rows
from fencebroker.cli.command import Invocation, Verb, asks_broker, duration, parsed, wants_json
from fencebroker.cli.render import Cell, Column, Table, process, span, state, status_cell
from fencebroker.cli.suggest import did_you_mean
from fencebroker.client import uid_of
from fencebroker.rows import FenceRow, Row, SessionRow, SyncFileRow, TimelineRow
from fencebroker.wire import KINDS

__all__ = ["ls"]

#: Without an argument: what most questions are about.
DEFAULT: Final = ("timelines", "sync_files")

EXAMPLE = """\
$ fencectl ls
timelines
  CONTEXT  NAME     VALUE  ACTIVE  OWNER         AGE
        1  camera0      6       1  4211 capture  4.2 s

sync_files
  ID  NAME     STATUS  POINT      CREATOR       AGE
   1  frame-6  ok      camera0@6  4211 capture  4.2 s
   2  frame-7  active  camera0@7  4211 capture  4.2 s
   5  inputs   active  3:1 (all)  4230 encode   1.5 s
"""

Cells = Sequence[str | Cell]


def _timeline(row: Any, now: int) -> Cells:
    assert isinstance(row, TimelineRow)
    age = span(now - row.created_ns)
    return str(row.context), names.timeline(row), str(row.value), str(row.n_active), names.owner(row), age


def _fence(row: Any, now: int) -> Cells:
    assert isinstance(row, FenceRow)
    age = span(now - row.created_ns)
    expires = "-" if row.expires_ns is None or row.status else span(row.expires_ns - now)
    who = process(row.owner)
    return f"{row.context}:{row.seqno}", names.point(row), status_cell(row.status), str(row.n_sync_files), who, age, expires


def _sync_file(row: Any, now: int) -> Cells:
    assert isinstance(row, SyncFileRow)
    status = status_cell(row.status, row.tampered)
    return str(row.id), row.name, status, names.point(row), process(row.creator), span(now - row.created_ns)


def _session(row: Any, now: int) -> Cells:
    assert isinstance(row, SessionRow)
    return str(row.id), process(row.client), str(row.n_sync_files), str(row.n_timelines), span(now - row.created_ns)


_NAME, _POINT = Column("NAME", shrinks=True), Column("POINT", shrinks=True)
_OWNER, _CREATOR, _CLIENT = (Column(title, shrinks=True) for title in ("OWNER", "CREATOR", "CLIENT"))
_AGE = Column("AGE")

#: Kind -> its columns and how a row fills them.
TABLES: Final[dict[str, tuple[Sequence[Column], Callable[[Any, int], Cells]]]] = {
    "timelines": (
        (Column("CONTEXT", right=True), _NAME, Column("VALUE", right=True), Column("ACTIVE", right=True), _OWNER, _AGE),
        _timeline,
    ),
    "fences": (
        (Column("FENCE"), _POINT, Column("STATUS"), Column("SYNC_FILES", right=True), _OWNER, _AGE, Column("EXPIRES")),
        _fence,
    ),
    "sync_files": ((Column("ID", right=True), _NAME, Column("STATUS"), _POINT, _CREATOR, _AGE), _sync_file),
    "sessions": ((Column("ID", right=True), _CLIENT, Column("SYNC_FILES", right=True), Column("TIMELINES", right=True), _AGE), _session),
}


def table(kind: str, rows: Sequence[Row], now: int, title: str) -> Table:
    """Rows of one kind as a table.  Whose they are is said where they are not all one's own."""
    columns, cells = TABLES[kind]
    filled = [cells(row, now) for row in rows]
    if any(row.uid != os.getuid() for row in rows):
        columns = [*columns, Column("USER")]
        filled = [[*row_cells, names.user(row.uid)] for row_cells, row in zip(filled, rows, strict=True)]
    return Table(title, columns, filled)


class Filter:
    """What a row must be like to be listed."""

    def __init__(
        self, user: int | None, pid: int | None, name: str | None, state: str | None, older: float | None, newer: float | None
    ) -> None:
        self._user = user
        self._pid = pid
        self._name = name
        self._state = state
        self._older = older
        self._newer = newer

    def takes(self, row: Row, now: int) -> bool:
        """Say whether ``row`` is listed."""
        age = now - row.created_ns
        return (
            (self._user is None or row.uid == self._user)
            and (self._pid is None or _pid(row) == self._pid)
            and (self._name is None or any(fnmatch.fnmatchcase(name, self._name) for name in _names(row)))
            and (self._state is None or _is(row, self._state))
            and (self._older is None or age >= self._older * 1e9)
            and (self._newer is None or age <= self._newer * 1e9)
        )


def _pid(row: Row) -> int | None:
    if isinstance(row, FenceRow):
        return None if row.owner is None else row.owner.pid
    return row.pid


def _names(row: Row) -> Sequence[str]:
    """What a row may be called, with and without the user."""
    match row:
        case TimelineRow():
            return (row.name or "", names.timeline(row))
        case FenceRow():
            return (f"{row.timeline}@{row.seqno}" if row.timeline else "", names.point(row._replace(kind="point")), row.timeline or "")
        case SyncFileRow():
            return (row.name, f"{row.timeline}@{row.seqno}" if row.timeline else "", row.timeline or "")
        case SessionRow():
            return (row.comm,)


def _is(row: Row, wanted: str) -> bool:
    match row:
        case TimelineRow():
            return {"active": row.n_active > 0, "failed": row.n_failed > 0}.get(wanted, False)
        case SessionRow():
            return False
    return state(row.status) == wanted or (wanted == "failed" and row.status < 0)


def _state(text: str) -> str:
    words = {"active": "active", "ok": "ok", "failed": "failed"}
    words |= {name.casefold(): name for name in errno.errorcode.values()}
    if text.casefold() not in words:
        raise ValueError(f"must be active, ok, failed or the name of an errno, not {text!r}{did_you_mean(text, words)}")
    return words[text.casefold()]


def _user(text: str) -> int:
    return uid_of(text)


@click.command(cls=Verb, example=EXAMPLE, short_help="What there is: timelines, fences, sync_files, sessions.")
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS), metavar="[timelines|fences|sync_files|sessions]...")
@click.option("--user", metavar="USER", callback=parsed(_user), help="Only what is this user's (a name or a uid).")
@click.option("--pid", metavar="PID", type=click.IntRange(min=0), help="Only what this process made, owns or is.")
@click.option("--name", metavar="PATTERN", help="Only what is called so: 'camera*', 'camera0@*'; sessions by their command.")
@click.option("--state", metavar="STATE", callback=parsed(_state), help="Only active, ok, failed, or with one errno (ENOENT).")
@click.option("--older", metavar="AGE", callback=parsed(duration), help="Only what is that old or older (2s, 5min, 1h).")
@click.option("--newer", metavar="AGE", callback=parsed(duration), help="Only what is that old or newer.")
@asks_broker
@wants_json
@click.pass_obj
def ls(
    invocation: Invocation,
    kinds: tuple[str, ...],
    user: int | None,
    pid: int | None,
    name: str | None,
    state: str | None,
    older: float | None,
    newer: float | None,
) -> None:
    """List timelines, fences, sync_files, sessions; without an argument, timelines and sync_files.

    One sees what is one's own; root and the broker's own user see everything. POINT is what a sync_file stands for: a point by name
    (camera0@7) or by number (1:7), or a merge (3:1 (all)). A sync_file is listed until its fence has signalled and everybody who asked for
    it has closed it; "fencectl info" tells more about each. A timeline is active while a point of it is, and failed if one ever did.
    """
    if state is not None and "sessions" in kinds:
        raise click.UsageError("sessions have no state: leave --state or sessions out.")
    wanted_rows = Filter(user, pid, name, state, older, newer)
    wanted = list(dict.fromkeys(kinds or DEFAULT))
    with invocation.connect() as broker:
        listed = {kind: list(list_rows(broker, kind)) for kind in wanted}
    now = time.monotonic_ns()
    found = {kind: [row for row in rows if wanted_rows.takes(row, now)] for kind, rows in listed.items()}
    invocation.output.json({"now_ns": now, **{kind: [schema.row(row) for row in rows] for kind, rows in found.items()}})
    invocation.output.tables(*(table(kind, rows, now, kind if len(wanted) > 1 else "") for kind, rows in found.items()))
