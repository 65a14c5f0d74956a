"""``stats``: how much each timeline did, how long its fences took, and what failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import click

from fencebroker.cli import names, schema
from fencebroker.cli.catalogue import list_rows
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, timeline_name, wants_json
from fencebroker.cli.completion import complete_timelines
from fencebroker.cli.render import Cell, Column, Table, latency, span
from fencebroker.cli.suggest import did_you_mean
from fencebroker.latency import percentile
from fencebroker.rows import TimelineRow

__all__ = ["counted", "latencies", "stats"]

EXAMPLE = """\
$ fencectl stats
TIMELINE  VALUE  FENCES  OK  FAILED  ACTIVE  OLDEST      P50      P99  OWNER
camera0       6       2   1       0       1   4.2 s  1.20 ms  1.20 ms  4211 capture
"""

_COLUMNS: Final = (
    Column("TIMELINE", shrinks=True),
    *(Column(title, right=True) for title in ("VALUE", "FENCES", "OK", "FAILED", "ACTIVE", "OLDEST", "P50", "P99")),
    Column("OWNER", shrinks=True),
)


@click.command(cls=Verb, example=EXAMPLE, short_help="What each timeline did, and how long its fences took.")
@click.argument("wanted", nargs=-1, callback=parsed(timeline_name), metavar="[NAME]...", shell_complete=complete_timelines)
@asks_broker
@wants_json
@click.pass_obj
def stats(invocation: Invocation, wanted: tuple[str, ...]) -> None:
    """Show counts since each timeline was made: of all timelines you see, or of those named.

    FENCES is how many points were asked for; of those, OK and FAILED were active and then signalled. P50 and P99 is how long the OK ones
    were active: half of them, and 99 of 100, took no longer. OLDEST is for how long the oldest active point is waited for.
    """
    with invocation.connect() as broker:
        rows = [row for row in list_rows(broker, "timelines") if isinstance(row, TimelineRow)]
    now = time.monotonic_ns()
    if wanted:
        known = [names.timeline(row) for row in rows if row.name is not None]
        for name in wanted:
            if name not in known:
                raise FileNotFoundError(2, f"there is no timeline {name!r} here (or it is not yours to see){did_you_mean(name, known)}")
        rows = [row for row in rows if row.name is not None and names.timeline(row) in wanted]
    invocation.output.json({"now_ns": now, "timelines": [counted(row) for row in rows]})
    invocation.output.tables(Table("", _COLUMNS, [_cells(row, now) for row in rows]))


def _cells(row: TimelineRow, now: int) -> Sequence[str | Cell]:
    counts = latencies(row)
    return (
        names.timeline(row) if row.name is not None else f"{row.context}:",
        str(row.value),
        str(row.n_fences),
        str(row.n_signalled),
        Cell(str(row.n_failed), "red" if row.n_failed else ""),
        str(row.n_active),
        "-" if row.oldest_ns is None else span(now - row.oldest_ns),
        latency(percentile(counts, 50)),
        latency(percentile(counts, 99)),
        names.owner(row),
    )


def latencies(row: TimelineRow) -> dict[int, int]:
    """Return how long a timeline's fences took: bucket -> how many."""
    return dict(zip(row.latencies[::2], row.latencies[1::2], strict=True))


def counted(row: TimelineRow) -> dict[str, Any]:
    """Return a timeline's counts for a program."""
    counts = latencies(row)
    return {**schema.timeline(row), "p50_ns": percentile(counts, 50), "p99_ns": percentile(counts, 99)}
