"""What can be asked of a broker: each request, and what its answer becomes.  No I/O here; the blocking and the asyncio client both use it."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fencebroker import sync_file as sf
from fencebroker import wire
from fencebroker.connection import Connection, Request, Session
from fencebroker.fds import HasFileno, OwnedFd, borrow
from fencebroker.model import ProcessInfo, SyncFenceInfo, SyncFileInfo

if TYPE_CHECKING:
    from fencebroker.sync_file import SyncFile
    from fencebroker.timeline import Signaller


def ref(connection: Session, source: int | HasFileno, argument: str = "fd") -> tuple[int | None, list[int]]:
    """How to name a sync_file to this connection: by its handle where it has one there, else by showing the descriptor.

    OSError EBADF if it is not open.
    """
    if isinstance(source, sf.SyncFile):
        number = source._number()
        handle = source._handle_for(connection)
        if handle is not None:
            return handle, []
        return None, [number]
    number = borrow(source, argument)
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        raise OSError(errno.EBADF, f"{argument} is not an open descriptor: {number}") from None
    return None, [number]


def create_timeline(name: str | None, driver: str, mode: int, expiry_ns: int | None) -> Request[tuple[int, OwnedFd]]:
    """-> context, the timeline's descriptor."""
    return Request(wire.CREATE_TIMELINE, (name, driver, mode, expiry_ns), lambda _, results, fds: (results[0], fds[0]))


def open_timeline(name: str) -> Request[tuple[int, int, OwnedFd]]:
    """-> context, value, another descriptor of the timeline."""
    return Request(wire.OPEN_TIMELINE, (name,), lambda _, results, fds: (results[0], results[1], fds[0]))


def show_timeline(fd: int) -> Request[tuple[int, int, str | None]]:
    """-> context, value, name; the session may mint on it from now on."""
    return Request(wire.SHOW_TIMELINE, (), lambda _, results, __: (results[0], results[1], results[2]), [fd])


def ring(context: int, holder: int) -> Request[OwnedFd]:
    """-> the memory of the timeline's ring."""
    return Request(wire.RING, (context, holder), lambda _, __, fds: fds[0])


def export(context: int, seqnos: list[int] | None, name: str, private: bool, label: str, signaller: Signaller) -> Request[list[SyncFile]]:
    """-> a SyncFile for each seqno."""

    def finish(connection: Session, results: list[Any], fds: list[OwnedFd]) -> list[SyncFile]:
        handle = results[0]
        numbers = [results[1]] if seqnos is None else seqnos
        made = []
        for fd, seqno in zip(fds, numbers, strict=True):
            sync_file = sf.SyncFile(fd, name=name, point=f"{label}@{seqno}", connection=connection, handle=handle)
            sync_file._origin = signaller, seqno
            if not private:
                signaller.keep(handle, seqno, fd.fileno())
            made.append(sync_file)
            handle += 1
        return made

    return Request(wire.EXPORT, (context, seqnos, name, private), finish, makes=1 if seqnos is None else len(seqnos))


def _raw(connection: Session, results: list[Any], fds: list[OwnedFd]) -> tuple[int, int]:
    """Finish with the descriptor and its handle, which is given back at once: whoever closes the descriptor tells nobody."""
    handle = results[0]
    connection.release(handle, exposed=True, at_once=False)
    return fds[0].detach(), handle


def _raw_and_value(connection: Session, results: list[Any], fds: list[OwnedFd]) -> tuple[int, int, int]:
    return *_raw(connection, results, fds), results[2]


def export_raw(context: int, seqno: int) -> Request[tuple[int, int, int]]:
    """-> a raw sync_file for one seqno, its handle, and the timeline's value when it was made."""
    return Request(wire.EXPORT, (context, [seqno], "", False), _raw_and_value, (), 1)


def merge_raw(refs: list[int | None], fds: list[int], name: str) -> Request[tuple[int, int]]:
    """-> a raw sync_file of several, and its handle."""
    return Request(wire.MERGE, (refs, name, False), _raw, fds, 1)


def info_raw(ref: int | None, fds: Sequence[int], cursor: int) -> Request[tuple[list[Any], int | None, list[list[Any]]]]:
    """Like info_page, for a raw descriptor: whether it is open, the kernel says when it is sent."""
    return Request(wire.INFO, (ref, cursor), three, fds)


def _one(name: str, point: str | None = None) -> Any:
    def finish(connection: Session, results: list[Any], fds: list[OwnedFd]) -> SyncFile:
        return sf.SyncFile(fds[0], name=name, point=point, connection=connection, handle=results[0])

    return finish


def sync_file(point: str, wire_point: str, expiry_ns: int | None) -> Request[SyncFile]:
    """-> a SyncFile for a point by name."""
    return Request(wire.SYNC_FILE, (wire_point, expiry_ns), _one("", point), makes=1)


def import_sync_file(connection: Session, source: int | HasFileno, name: str = "") -> Request[SyncFile]:
    """-> a private SyncFile for the fence that ``source`` carries."""
    handle, fds = ref(connection, source)
    return Request(wire.IMPORT, (name, handle), _one(name), fds, makes=1)


def merge(connection: Session, sources: Iterable[int | HasFileno], name: str, any: bool) -> Request[SyncFile]:
    """-> one SyncFile of several."""
    refs: list[int | None] = []
    fds: list[int] = []
    for index, source in enumerate(sources):
        handle, shown = ref(connection, source, f"fences[{index}]")
        refs.append(handle)
        fds += shown
    if not refs:
        raise ValueError("fences must not be empty: there is nothing to wait for")
    if len(refs) > 1024:
        raise ValueError(f"fences must be at most 1024, not {len(refs)}; merge in steps")
    if len(fds) > wire.PACKET_DESCRIPTORS:
        raise ValueError(
            f"fences may have at most {wire.PACKET_DESCRIPTORS} that this connection did not make, not {len(fds)}; import them first"
        )
    return Request(wire.MERGE, (refs, name, any), _one(name), fds, makes=1)


def info_page(connection: Session, source: int | HasFileno, cursor: int) -> Request[tuple[list[Any], int | None, list[list[Any]]]]:
    """-> the sync_file's row, where the next page starts, rows of fences."""
    handle, fds = ref(connection, source)
    return Request(wire.INFO, (handle, cursor), three, fds)


def three(_: Session, results: list[Any], __: list[OwnedFd]) -> tuple[Any, Any, Any]:
    """Finish with the three results."""
    return results[0], results[1], results[2]


def set_deadline(connection: Session, source: int | HasFileno, deadline_ns: int) -> Request[None]:
    """-> nothing."""
    handle, fds = ref(connection, source)
    return Request(wire.SET_DEADLINE, (handle, deadline_ns), lambda *_: None, fds)


def wait_start(connection: Session, source: int | HasFileno) -> Request[tuple[int, int]]:
    """-> the status; and if it is 0 and somebody follows the events, what WAIT_END is to be told with, else 0."""
    handle, fds = ref(connection, source)
    return Request(wire.WAIT_START, (handle,), lambda _, results, __: (results[0], results[1]), fds)


def listing(kind: str, cursor: int) -> Request[tuple[int | None, list[list[Any]]]]:
    """-> where the next page starts, rows."""
    return Request(wire.LIST, (kind, cursor), lambda _, results, __: (results[0], results[1]))


def lookup(name: str) -> Request[tuple[str, list[Any]]]:
    """-> kind, row."""
    return Request(wire.LOOKUP, (name,), lambda _, results, __: (results[0], results[1]))


def status() -> Request[dict[str, Any]]:
    """-> counts and limits by name."""
    return Request(wire.STATUS, (), lambda _, results, __: dict(results[0]))


def history(context: int) -> Request[list[list[Any]]]:
    """-> what happened to a timeline of late: time, what, seqno, status, process or None."""
    return Request(wire.HISTORY, (context,), lambda _, results, __: results[0])


def reclaim(handles: list[int]) -> Request[list[int]]:
    """-> those of the handles that were given up."""
    return Request(wire.RECLAIM, (handles,), lambda _, results, __: results[0])


def chmod(name: str, mode: int) -> Request[int]:
    """-> the mode before."""
    return Request(wire.CHMOD, (name, mode), lambda _, results, __: results[0])


def quotas(cursor: int) -> Request[tuple[int | None, list[list[Any]]]]:
    """-> where the next page starts, rows."""
    return Request(wire.QUOTAS, (cursor,), lambda _, results, __: (results[0], results[1]))


def subscribe() -> Request[None]:
    """-> nothing; events follow."""
    return Request(wire.SUBSCRIBE, (), lambda *_: None)


def call_info(connection: Connection, source: int | HasFileno) -> SyncFileInfo:
    """Ask for every page."""
    row, following, rows = connection.call(info_page(connection, source, 0))
    while following is not None:
        row, following, more = connection.call(info_page(connection, source, following))
        rows += more
    return sync_file_info(row, rows)


def sync_file_info(row: list[Any], rows: list[list[Any]]) -> SyncFileInfo:
    """Build the value a user sees from the rows of the wire, to which a newer broker may have appended columns."""
    name, status, n_fences, handle, context, seqno, creator, created, timestamp, deadline, expires, tampered, detached = row[:13]
    fences = tuple([fence_info(fence) for fence in rows])
    who = None if creator is None else ProcessInfo(*creator)
    return SyncFileInfo(
        name, status, 0, n_fences, fences, handle, context, seqno, who, created, timestamp, deadline, expires, tampered, detached
    )


def fence_info(row: list[Any]) -> SyncFenceInfo:
    """Build one fence from its row."""
    label, driver, status, timestamp, context, seqno, owner, created, deadline, expires = row[:10]
    who = None if owner is None else ProcessInfo(*owner)
    return SyncFenceInfo(label, driver, status, 0, timestamp, context, seqno, who, created, deadline, expires)
