"""What things are called on the screen: as they can be asked for again."""

from __future__ import annotations

import functools
import os
import pwd

from fencebroker.cli.render import Cell, process
from fencebroker.rows import FenceRow, SyncFileRow, TimelineRow

__all__ = ["own_name", "owner", "point", "timeline", "user"]


@functools.cache
def user(uid: int) -> str:
    """A user's name, or the number where there is none that can be used in a point."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if name.isprintable() and not {"@", "/"} & set(name) else str(uid)


def own_name(name: str, uid: int) -> str:
    """``name`` for what is ours, ``user/name`` for what is another's."""
    return name if uid == os.getuid() else f"{user(uid)}/{name}"


def timeline(row: TimelineRow) -> str:
    """A timeline's name; one without a name can only be asked for by its context."""
    return "-" if row.name is None else own_name(row.name, row.uid)


def owner(row: TimelineRow) -> str | Cell:
    """The process that created a timeline, and whether it has gone and left it in other hands."""
    who = process(row.owner)
    return who if row.creator_alive else Cell(f"{who} (gone)", "red")


def point(row: FenceRow | SyncFileRow) -> str:
    """The point that a fence is: ``camera0@7`` where it has a name, ``3:7`` where not; or what else it is."""
    match row.kind:
        case "stub":
            return "(signalled before it was made)"
        case "all" | "any":
            return f"{row.context}:{row.seqno} ({row.kind})"
    if row.timeline is None or row.timeline_uid is None:
        return f"{row.context}:{row.seqno}"
    named = f"{own_name(row.timeline, row.timeline_uid)}@{row.seqno}"
    return f"{named} (no timeline)" if row.kind == "placeholder" else named
