"""What the broker says and what the kernel shows of processes, put together at one moment."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import psutil

from fencebroker import Broker
from fencebroker.cli.catalogue import list_rows
from fencebroker.cli.processes import Eventfd, Holder, Scan, scan
from fencebroker.fds import status_from_count
from fencebroker.model import ProcessInfo
from fencebroker.rows import FenceRow, SessionRow, SyncFileRow, TimelineRow

__all__ = ["Held", "Snapshot", "broker_pids"]

_UCRED: Final = struct.Struct("3i")


class Held(NamedTuple):
    """A descriptor that a process holds, and the sync_file that it is."""

    eventfd: Eventfd
    sync_file: SyncFileRow


@dataclass(slots=True)
class Snapshot:
    """Timelines by context, fences and sync_files by id, and the processes that hold any of them."""

    now: int
    timelines: dict[int, TimelineRow]
    fences: dict[int, FenceRow]
    sync_files: dict[int, SyncFileRow]
    scan: Scan
    #: Whether the broker is among the processes that can be seen: if not, so may others be that hold something.
    sees_broker: bool
    #: What the broker calls its clients: a script's name tells more than its interpreter's.
    names: dict[int, str]
    _by_eventfd: dict[int, SyncFileRow] = field(init=False)
    _by_inode: dict[int, list[Holder]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_eventfd = {row.eventfd_id: row for row in self.sync_files.values() if row.eventfd_id}
        for holder in self.scan.holders.values():
            holder.comm = self.names.get(holder.pid, holder.comm)
            for inode in set(holder.sockets.values()):
                self._by_inode.setdefault(inode, []).append(holder)

    @classmethod
    def take(cls, broker: Broker) -> Snapshot:
        """Ask the broker, look at every process, ask again.

        The number of an eventfd is used anew once its last copy is closed.  A sync_file that is listed before and after was open all the
        while, so its number was its own.
        """
        before = {row.id for row in list_rows(broker, "sync_files") if isinstance(row, SyncFileRow)}
        timelines = _timelines(broker)
        inodes = [inode for row in timelines.values() for inode in row.inodes]
        own = broker_pids(broker)
        processes = scan(inodes, passing_over=own)
        sync_files = {row.id: row for row in list_rows(broker, "sync_files") if isinstance(row, SyncFileRow) and row.id in before}
        fences = {row.id: row for row in list_rows(broker, "fences") if isinstance(row, FenceRow)}
        names = {row.pid: row.comm for row in timelines.values() if row.creator_alive}
        names |= {row.pid: row.comm for row in list_rows(broker, "sessions") if isinstance(row, SessionRow)}
        return cls(time.monotonic_ns(), _timelines(broker), fences, sync_files, processes, bool(own), names)

    def held_by(self, holder: Holder) -> Iterator[Held]:
        """Yield what a process holds, by descriptor."""
        for eventfd in sorted(holder.eventfds):
            sync_file = self._by_eventfd.get(eventfd.id)
            if sync_file is not None:
                yield Held(eventfd, sync_file)

    def forgotten_by_broker(self, holder: Holder) -> list[Eventfd]:
        """Return what a process holds and no record is left of: eventfds that carry a status which only a broker writes."""
        return [
            eventfd
            for eventfd in holder.eventfds
            if eventfd.id not in self._by_eventfd
            and eventfd.is_semaphore
            and eventfd.counter
            and status_from_count(eventfd.counter) is not None
        ]

    def holders_of(self, sync_file: SyncFileRow) -> list[tuple[Holder, list[int]]]:
        """Return who holds a sync_file, with the descriptors."""
        found = []
        for holder in self.scan.holders.values():
            fds = sorted(eventfd.fd for eventfd in holder.eventfds if eventfd.id == sync_file.eventfd_id)
            if fds and sync_file.eventfd_id:
                found.append((holder, fds))
        return found

    def owners_of(self, timeline: TimelineRow) -> list[ProcessInfo]:
        """Return who holds a timeline's descriptor now; its creator where nobody can be seen to."""
        found = [holder.who for holder in self.holding(timeline)]
        return found or ([timeline.owner] if timeline.creator_alive else [])

    def holding(self, timeline: TimelineRow) -> list[Holder]:
        """Return the processes that can be seen to hold a timeline's descriptor."""
        found = {holder.pid: holder for inode in timeline.inodes for holder in self._by_inode.get(inode, ())}
        return [found[pid] for pid in sorted(found)]


def _timelines(broker: Broker) -> dict[int, TimelineRow]:
    return {row.context: row for row in list_rows(broker, "timelines") if isinstance(row, TimelineRow)}


def broker_pids(broker: Broker) -> set[int]:
    """Return the broker's processes: they hold a copy of everything, and wait for nothing.

    The kernel says who listens; the broker says its own pid, which is another's here if it lives in another pid namespace.
    """
    sock = broker._connection._sock
    assert sock is not None
    pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    found: set[int] = set()
    for seed in {pid, broker._connection.pid}:
        command = _command(seed)
        if any("fencebrokerd" in word for word in command):
            found.add(seed)
            found |= {other for other in _relatives(seed) if _command(other) == command}
    found.discard(os.getpid())
    return found


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, ValueError):
        return []


def _relatives(pid: int) -> Iterator[int]:
    """The broker, and what it shares its descriptors with, are clones of one process: parent, children, siblings."""
    try:
        process = psutil.Process(pid)
        parent = process.ppid()
        yield from (child.pid for child in process.children())
        if parent > 1:
            yield parent
            yield from (child.pid for child in psutil.Process(parent).children())
    except psutil.Error:
        return
