"""``connect`` and ``Broker``: the library's front door, blocking.  ``fencebroker.aio`` has the same verbs for asyncio."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

from fencebroker import requests, wire
from fencebroker.connection import Connection
from fencebroker.errors import BrokerUnavailable
from fencebroker.fds import HasFileno, Truncated, close_all, recv_packet
from fencebroker.finding import find
from fencebroker.model import Event, Point, SyncFileInfo, check_sync_file_name, check_timeline_name, parse_point
from fencebroker.sync_file import SyncFile
from fencebroker.timeline import Signaller, Timeline, can_use_ring, no_ring_if_refused

__all__ = ["Broker", "connect"]


def connect(path: str | os.PathLike[str] | None = None, *, autostart: bool = True) -> Broker:
    """Connect to a broker.

    Without ``path``: ``$FENCEBROKER_SOCKET``, else this user's broker, else the system's, else (with ``autostart``) a new one for this user.
    Raises BrokerUnavailable, or PermissionError when the broker does not serve this user.  The caller closes the result.
    """
    return Broker(find(path, autostart))


def check_expiry(expiry: float | None) -> int | None:
    """Seconds -> ns on the wire."""
    if expiry is None:
        return None
    if isinstance(expiry, bool) or not isinstance(expiry, (int, float)):
        raise TypeError(f"expiry must be a number of seconds or None, not {type(expiry).__name__}")
    if not 0 < expiry < 1e9:
        raise ValueError(f"expiry must be more than 0 and less than 1e9 seconds, not {expiry}")
    return max(1, int(expiry * 1e9))


def check_mode(mode: object) -> int:
    """Permission bits."""
    if type(mode) is not int:
        raise TypeError(f"mode must be an int such as 0o600, not {type(mode).__name__}")
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode must be permission bits between 0 and 0o777, not {mode:#o}")
    return mode


def wire_point(text: str) -> tuple[str, Point]:
    """A point with its user as a number: the broker asks no name service."""
    point = parse_point(text)
    if point.user is None:
        return str(point), point
    return str(point._replace(user=str(uid_of(point.user)))), point


def wire_name(text: str, argument: str = "name") -> str:
    """A timeline's name, or user/name, with the user as a number."""
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str, not {type(text).__name__}")
    user, slash, name = text.rpartition("/")
    check_timeline_name(name, argument)
    return f"{uid_of(user)}/{name}" if slash else name


def uid_of(user: str) -> int:
    """Look a user up by name or number."""
    if user.isascii() and user.isdigit():
        if int(user) >= 2**32 - 1:
            raise ValueError(f"the user must be a name, or a uid below 2**32-1, not {user}")
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {user!r} on this machine") from None


class Broker:
    """A connection to a broker.  Thread-safe; in a forked child it connects anew when first used.  Use ``with``, or ``close()``."""

    def __init__(self, connection: Connection) -> None:
        """For the library; users call ``connect``."""
        self._connection = connection

    # -- make

    def create_timeline(self, name: str | None = None, *, mode: int = 0o600, expiry: float | None = None) -> Timeline:
        """Create a timeline, at value 0.

        ``name`` (1 to 255 bytes, unique for this user) lets others wait for ``name@N``; ``mode`` says who, like a file's: ``r`` may wait,
        ``w`` may signal.  ``expiry`` seconds after a point was first asked for, it fails with ETIME.  The caller owns the result.
        Raises FileExistsError naming the holder's pid, QuotaExceeded, BrokerUnavailable.
        """
        if name is not None:
            check_timeline_name(name)
        timeline = self._create(name, "fencebroker", check_mode(mode), check_expiry(expiry))
        try:
            if can_use_ring():
                with no_ring_if_refused():
                    signaller = timeline._signaller
                    signaller.use_ring(self._connection.call(requests.ring(timeline.context, signaller.holder)))
        except BaseException:
            timeline.close()
            raise
        return timeline

    def _create(self, name: str | None, driver: str, mode: int, expiry_ns: int | None) -> Timeline:
        context, fd = self._connection.call(requests.create_timeline(name, driver, mode, expiry_ns))
        return Timeline(self._connection, context, name, Signaller(fd), epoch=self._connection.epoch)

    def open_timeline(self, name: str) -> Timeline:
        """Return another producer's handle of a named timeline (``name`` or ``user/name``); its mode must let this user write.

        Raises FileNotFoundError (also when it may not be seen), PermissionError when it may only be waited on.
        """
        context, value, fd = self._connection.call(requests.open_timeline(wire_name(name)))
        return Timeline(self._connection, context, name, Signaller(fd, value), epoch=self._connection.epoch)

    def sync_file(self, point: str, *, expiry: float | None = None) -> SyncFile:
        """Return a sync_file for a point by name, such as ``camera0@7`` or ``user/camera0@7``.

        It may come before the point was exported, and before the timeline exists.  ``expiry`` seconds from now this sync_file (and only
        it) fails with ETIME.  The caller owns the result.
        """
        on_wire, named = wire_point(point)
        return self._connection.call(requests.sync_file(str(named), on_wire, check_expiry(expiry)))

    def import_sync_file(self, fd: int | HasFileno) -> SyncFile:
        """Return a private sync_file for the fence that ``fd`` carries: nobody else holds its descriptor, so nobody else can write to it.

        ``fd`` is borrowed.  NotASyncFile if it is no sync_file of this broker.
        """
        return self._connection.call(requests.import_sync_file(self._connection, fd))

    def merge(self, fences: Iterable[int | HasFileno], *, name: str = "", when: Literal["all", "any"] = "all") -> SyncFile:
        """Return one sync_file that signals when all fences have (or with the first: ``when="any"``).

        The fences are borrowed and stay as they are.  An error of a member survives: the merged fence fails with the first one.
        """
        if when not in ("all", "any"):
            raise ValueError(f"when must be 'all' or 'any', not {when!r}")
        return self._connection.call(requests.merge(self._connection, fences, check_sync_file_name(name), when == "any"))

    # -- ask

    def info(self, fd: int | HasFileno) -> SyncFileInfo:
        """Return what a sync_file is: name, status, and the fences in it with their owners.  ``fd`` is borrowed."""
        return requests.call_info(self._connection, fd)

    def events(self) -> Iterator[Event]:
        """Yield what happens in the broker from now on, as this user may see it; over a connection of its own.

        ``Event.lost`` counts events that did not fit before this one.  Ends with BrokerUnavailable when the broker goes.
        """
        connection = Connection(self._connection.path)
        try:
            connection.call(requests.subscribe())
        except BaseException:
            connection.close()
            raise
        return _events(connection)

    def _listing(self, kind: str) -> Iterator[list[Any]]:
        """Yield the rows of one kind (``wire.KINDS``); docs/protocol.md has the columns."""
        cursor: int | None = 0
        while cursor is not None:
            cursor, rows = self._connection.call(requests.listing(kind, cursor))
            yield from rows

    def _lookup(self, name: str) -> tuple[str, list[Any]]:
        return self._connection.call(requests.lookup(name))

    def _status(self) -> dict[str, Any]:
        return self._connection.call(requests.status())

    def _chmod(self, name: str, mode: int) -> int:
        """Change a timeline's mode; returns the one before."""
        return self._connection.call(requests.chmod(wire_name(name), check_mode(mode)))

    def _quotas(self) -> Iterator[tuple[int, str, int, int]]:
        """Yield (uid, quota, used, limit)."""
        cursor: int | None = 0
        while cursor is not None:
            cursor, rows = self._connection.call(requests.quotas(cursor))
            yield from ((row[0], row[1], row[2], row[3]) for row in rows)

    # -- the end

    def close(self) -> None:
        """Close the connection.  Timelines and sync_files made with it live on, as their descriptors do."""
        self._connection.close()

    @property
    def closed(self) -> bool:
        return not self._connection.is_open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Broker {self._connection.path} {'closed' if self.closed else f'pid {self._connection.pid}'}>"


def _events(connection: Connection) -> Iterator[Event]:
    with contextlib.closing(connection):
        sock = connection._sock
        assert sock is not None
        while True:
            try:
                packet, fds = recv_packet(sock)
            except Truncated as err:
                close_all(err.fds)
                raise
            close_all(fds)
            if not packet:
                raise BrokerUnavailable(f"the broker at {connection.path} went away")
            yield from read_events(packet)


def read_events(packet: bytes) -> Iterator[Event]:
    """Decode one pushed packet."""
    _, lost, lines = wire.decode_answer(packet)
    for uid, name, time_ns, context, seqno, timeline, driver, status, pid, comm, *_ in lines:
        yield Event(name, time_ns, context, seqno, timeline, driver, status, pid, uid, comm, lost)
        lost = 0
