"""Rows -> JSON.  docs/fencectl.md documents every key, and a test compares; keys are added, never renamed.

Times that end in ``_ns`` are nanoseconds of CLOCK_MONOTONIC; ``now_ns`` beside them says what time it is on that clock.
"""

from __future__ import annotations

from typing import Any

from fencebroker.cli.catalogue import Entry, Node
from fencebroker.cli.processes import Holder
from fencebroker.cli.render import state
from fencebroker.model import Event, ProcessInfo
from fencebroker.rows import FenceRow, Row, SessionRow, SyncFileRow, TimelineRow

__all__ = ["entry", "event", "fence", "process", "row", "seen", "session", "sync_file", "timeline", "tree"]


def process(who: ProcessInfo | None) -> dict[str, Any] | None:
    """A process."""
    return None if who is None else {"pid": who.pid, "uid": who.uid, "comm": who.comm}


def seen(who: ProcessInfo, holder: Holder | None) -> dict[str, Any]:
    """A process as /proc shows it; ``state`` is null where one may not look."""
    if holder is None:
        return {**who._asdict(), "state": None, "stopped_by": None}
    return {**who._asdict(), "state": holder.words, "stopped_by": holder.stopped_by or None}


def entry(entry: Entry) -> dict[str, Any]:
    """Something that happened."""
    return {
        "time_ns": entry.time_ns,
        "what": entry.what,
        "seqno": entry.seqno,
        "status": entry.status,
        "state": state(entry.status) if entry.status else None,
        "process": process(entry.who),
    }


def timeline(row: TimelineRow) -> dict[str, Any]:
    """A timeline."""
    return {
        "context": row.context,
        "name": row.name,
        "driver": row.driver,
        "value": row.value,
        "highest": row.highest,
        "active": row.n_active,
        "owner": process(row.owner),
        "owner_alive": row.creator_alive,
        "created_ns": row.created_ns,
        "mode": f"{row.mode:04o}",
        "expiry_ns": row.expiry_ns,
        "descriptors": row.n_descriptors,
        "advanced_ns": row.advanced_ns,
        "oldest_ns": row.oldest_ns,
        "fences": row.n_fences,
        "signalled": row.n_signalled,
        "failed": row.n_failed,
    }


def fence(row: FenceRow) -> dict[str, Any]:
    """A fence."""
    return {
        "context": row.context,
        "seqno": row.seqno,
        "kind": row.kind,
        "timeline": row.timeline,
        "timeline_uid": row.timeline_uid,
        "obj_name": row.obj_name,
        "driver": row.driver_name,
        "status": row.status,
        "state": state(row.status),
        "owner": process(row.owner),
        "uid": row.uid,
        "created_ns": row.created_ns,
        "timestamp_ns": row.timestamp_ns,
        "deadline_ns": row.deadline_ns,
        "expires_ns": row.expires_ns,
        "sync_files": row.n_sync_files,
    }


def tree(node: Node) -> dict[str, Any]:
    """A fence and what it waits for: ``members`` is empty for what is no merge, and null where a merge is not written out."""
    assert node.row is not None
    members = None
    if node.members is not None:
        members = [None if member.row is None else tree(member) for member in node.members]
    return {**fence(node.row), "members": members}


def sync_file(row: SyncFileRow) -> dict[str, Any]:
    """A sync_file."""
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "state": state(row.status),
        "tampered": row.tampered,
        "kind": row.kind,
        "timeline": row.timeline,
        "timeline_uid": row.timeline_uid,
        "context": row.context,
        "seqno": row.seqno,
        "creator": process(row.creator),
        "open": row.is_open,
        "created_ns": row.created_ns,
        "timestamp_ns": row.timestamp_ns,
    }


def session(row: SessionRow) -> dict[str, Any]:
    """A session."""
    return {
        "id": row.id,
        "client": process(row.client),
        "sync_files": row.n_sync_files,
        "timelines": row.n_timelines,
        "created_ns": row.created_ns,
    }


def row(row: Row) -> dict[str, Any]:
    """Any of them."""
    match row:
        case TimelineRow():
            return timeline(row)
        case FenceRow():
            return fence(row)
        case SyncFileRow():
            return sync_file(row)
        case SessionRow():
            return session(row)


def event(what: Event) -> dict[str, Any]:
    """An event."""
    return {
        "name": what.name,
        "time_ns": what.time_ns,
        "context": what.context,
        "seqno": what.seqno,
        "timeline": what.timeline,
        "driver": what.driver,
        "status": what.status,
        "state": state(what.status),
        "pid": what.pid,
        "uid": what.uid,
        "comm": what.comm,
    }
