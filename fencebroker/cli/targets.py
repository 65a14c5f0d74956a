"""What a person points at: a process, a sync_file, a fence, a timeline, or one process's descriptor."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Final, NamedTuple

from fencebroker import Broker
from fencebroker.cli import names
from fencebroker.cli.catalogue import find, wire_target
from fencebroker.cli.command import Failure
from fencebroker.cli.processes import Holder, comm_of, holder_of, uid_of
from fencebroker.cli.render import state
from fencebroker.cli.snapshot import Snapshot
from fencebroker.cli.suggest import suggesting
from fencebroker.fds import status_from_count
from fencebroker.rows import Row, TimelineRow

__all__ = ["METAVAR", "Target", "find_descriptor", "find_process", "find_row", "parse_descriptor", "parse_target", "point_at"]

METAVAR: Final = "PID|ID|NAME@N"

_PROCESS: Final = re.compile(r"/proc/([0-9]{1,10})")
_DESCRIPTOR: Final = re.compile(r"/proc/([0-9]{1,10})/fd/([0-9]{1,10})")
_PAIR: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")


class Target(NamedTuple):
    """What was typed, and what it may be: a process, a descriptor of one, something of the broker's."""

    typed: str
    wire: str | None
    pid: int | None = None
    fd: int | None = None


def parse_target(text: str) -> Target:
    """Check what was typed where a process may be meant; ValueError says what would be right."""
    process = _PROCESS.fullmatch(text)
    if process is not None:
        return Target(text, None, int(process[1]))
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return Target(text, f"#{text}", int(text))
    return Target(text, wire_target(text))


def parse_descriptor(text: str) -> Target:
    """Check what was typed where a process's descriptor may be meant."""
    found = _DESCRIPTOR.fullmatch(text)
    if found is not None:
        return Target(text, None, int(found[1]), int(found[2]))
    found = _PAIR.fullmatch(text)
    return Target(text, wire_target(text), *map(int, found.groups())) if found is not None else Target(text, wire_target(text))


def point_at(broker: Broker, snapshot: Snapshot, target: Target) -> Holder | Row:
    """Find what was meant.  A number is a process that has to do with this broker, else the ID of a sync_file, else a process after all."""
    if target.pid is None:
        row = find_row(broker, target)
        assert row is not None
        return row
    holder = snapshot.scan.holders.get(target.pid)
    if holder is not None and (holder.sockets or any(True for _ in snapshot.held_by(holder))):
        return holder
    if target.wire is not None:
        with contextlib.suppress(FileNotFoundError):
            return find(broker, target.wire)
    return holder or find_process(target)


def find_row(broker: Broker, target: Target) -> Row | None:
    """Find something of the broker's; None if it may still be a process's descriptor, else Failure says what is near or how it stands."""
    assert target.wire is not None
    try:
        return find(broker, target.wire)
    except FileNotFoundError as err:
        if target.fd is not None:
            return None
        name, at, seqno = target.wire.rpartition("@")
        with suggesting(broker, target.typed):
            if not at:
                raise
            try:
                timeline = find(broker, name)
            except FileNotFoundError:
                text = f"nobody waits for {target.typed}, and there is no timeline of that name (or it is not yours to see)"
                raise FileNotFoundError(err.errno, text) from err
        assert isinstance(timeline, TimelineRow)
        if int(seqno) <= timeline.value:
            raise Failure(f"{target.typed} has signalled and is no longer on record: the timeline is at {timeline.value}") from err
        raise Failure(f"{target.typed} was not exported yet, and nobody waits for it: the timeline is at {timeline.value}") from err


def find_descriptor(snapshot: Snapshot, target: Target) -> Row:
    """Find what a process holds as a descriptor; Failure says what it is instead."""
    holder = snapshot.scan.holders.get(target.pid or 0) or find_process(target)
    for held in snapshot.held_by(holder):
        if held.eventfd.fd == target.fd:
            return held.sync_file
    for row in snapshot.timelines.values():
        if holder.sockets.get(target.fd or 0) in row.inodes:
            return row
    what = f"descriptor {target.fd} of {holder.pid} {holder.comm}"
    if target.wire is not None:
        what = f"there is no fence {target.typed}, and {what}"
    for eventfd in snapshot.forgotten_by_broker(holder):
        if eventfd.fd == target.fd:
            status = status_from_count(eventfd.counter)
            assert status is not None
            raise Failure(f"{what} is a sync_file that has signalled ({state(status)}), and no record of it is left")
    try:
        is_what = os.readlink(f"/proc/{holder.pid}/fd/{target.fd}")
    except OSError:
        raise Failure(f"{what} is not open") from None
    raise Failure(f"{what} is no sync_file or timeline of this broker but {is_what}")


def find_process(target: Target) -> Holder:
    """Look at a process; Failure says what is missing."""
    assert target.pid is not None
    try:
        return holder_of(target.pid)
    except ProcessLookupError:
        if target.fd is not None and target.wire is not None:
            text = f"there is no fence {target.typed} here (or it is not yours to see), and no process {target.pid}"
        else:
            text = f"there is no process {target.pid}" + (", and no sync_file of that number that you may see" if target.wire else "")
        raise Failure(text) from None
    except PermissionError:
        raise Failure(_denied(target.pid)) from None


def _denied(pid: int) -> str:
    """Say whose process it is and which right is missing."""
    try:
        who = f"pid {pid} ({comm_of(pid)}) is a process of {names.user(uid_of(pid))}"
    except OSError:
        who = f"pid {pid} is not yours"
    return f"{who}: what it holds and waits for may be seen by its user, by root, and with CAP_SYS_PTRACE"
