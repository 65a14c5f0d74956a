"""``chmod`` and ``quota``: who may open a timeline, and how much a user may have."""

from __future__ import annotations

import os
from typing import Any

import click

from fencebroker.cli import names
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, permission_bits, timeline_name, wants_json
from fencebroker.cli.completion import complete_timelines
from fencebroker.cli.render import Cell, Column, Table
from fencebroker.cli.suggest import suggesting

__all__ = ["chmod", "quota"]

CHMOD_EXAMPLE = """\
$ fencectl chmod -v 0640 camera0
the mode of camera0 went from 0600 to 0640
"""

QUOTA_EXAMPLE = """\
$ fencectl quota
QUOTA                        USED  LIMIT
sessions                        3    256
timelines                       1   1024
timeline descriptors            1   1024
sync_files                      3  15933
members of merges               2  65536
timelines that sessions mint on 1  16384
foreign descriptors still open  0   4096
"""


@click.command(cls=Verb, example=CHMOD_EXAMPLE, short_help="Change who may open a timeline by its name.")
@click.argument("mode", callback=parsed(permission_bits))
@click.argument("name", callback=parsed(timeline_name), shell_complete=complete_timelines)
@click.option("-v", "--verbose", is_flag=True, help="Say what the mode was and is.")
@asks_broker
@wants_json
@click.pass_obj
def chmod(invocation: Invocation, mode: int, name: str, verbose: bool) -> None:
    """Change who may open a timeline by its name.

    MODE is octal, like a file's: r lets wait for points, w lets signal them, for owner, group and others. Only the owner and root may change
    it. Whoever has a descriptor keeps it: possession counts, not the mode. Who waits for points by name and may now, gets them.
    """
    with invocation.connect() as broker, suggesting(broker, name):
        before = broker._chmod(name, mode)
    invocation.output.json({"name": name, "before": f"{before:04o}", "mode": f"{mode:04o}"})
    if verbose:
        invocation.output.line(
            f"the mode of {name} " + (f"went from {before:04o} to {mode:04o}" if mode != before else f"is {mode:04o} already")
        )


@click.command(cls=Verb, example=QUOTA_EXAMPLE, short_help="How much is in use, and how much may be.")
@asks_broker
@wants_json
@click.pass_obj
def quota(invocation: Invocation) -> None:
    """Show what you have in use and how much you may have at this moment; as root, for every user.

    A limit is the configured one, or less while others want their share of what there is.
    """
    with invocation.connect() as broker:
        rows = list(broker._quotas())
    invocation.output.json({"quotas": [_json(*row) for row in rows]})
    shows_users = {uid for uid, *_ in rows} != {os.getuid()}
    columns = [Column("QUOTA"), Column("USED", right=True), Column("LIMIT", right=True)]
    table = [_row(*row) for row in rows]
    if shows_users:
        columns.insert(0, Column("USER", shrinks=True))
        table = [[names.user(row[0]), *cells] for row, cells in zip(rows, table, strict=True)]
    invocation.output.tables(Table("", columns, table))


def _row(uid: int, name: str, used: int, limit: int) -> list[str | Cell]:
    return [name.removesuffix(" per user"), Cell(str(used), "red" if used >= limit else ""), str(limit)]


def _json(uid: int, name: str, used: int, limit: int) -> dict[str, Any]:
    return {"uid": uid, "name": name, "used": used, "limit": limit}
