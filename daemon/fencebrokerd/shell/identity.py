"""Which of our objects a received descriptor is.

An eventfd is known by its ``eventfd-id``, which is unique while the file is open anywhere: so only ids of eventfds whose copy we still
hold are compared.  Reading an id costs some microseconds, so it is read when a descriptor first comes back, not when one is made;
only the newest ``LAZY`` stay unread, which bounds what one request can cost.
What comes back is mostly among the newest, or was shown just before: of those few it is asked first whether they are the same open file
(F_DUPFD_QUERY, Linux 6.10; half a microsecond each).
A timeline's descriptor is known by SO_COOKIE: the same for every copy, different for the two ends, never reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Final

from fencebroker.fds import F_DUPFD_QUERY, can_compare, peek_status, read_fdinfo, status_from_count
from fencebroker.model import ACTIVE
from fencebrokerd.core import effects as fx

__all__ = ["Identity", "cookie_of"]

SO_COOKIE: Final = 57
#: Twice what a user's signalled records keep, so that what only comes and goes is never read.
LAZY: Final = 2048
#: Read at a time: after a recovery all are unread.
AT_ONCE: Final = 512
#: How many are asked for first.
RECENT: Final = 8


class Identity:
    """Knows our eventfds by id and our timelines' sockets by cookie.  It owns no descriptor, and looks into ``fds``, which is the owner's:
    our copy by handle.
    """

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}
        self._unread: dict[int, None] = {}  # handles, oldest first
        self._recent: dict[int, int] = {}  # handle -> fd, oldest first
        self._can_compare = can_compare()
        #: By eventfd-id, of those that were read.  What is gone stays until there are many of those: a handle that is not in ``fds``.
        self._handles: dict[int, int] = {}
        self._cookies: dict[int, int] = {}  # cookie -> socket id
        self._cookie_of: dict[int, int] = {}

    def add_eventfd(self, handle: int, fd: int) -> None:
        """Note that ``handle`` is our copy ``fd``."""
        self.fds[handle] = fd
        self._touch(handle, fd)
        self._unread[handle] = None

    def catch_up(self) -> None:
        """Read the oldest ids that are over the limit; called when everybody has been answered."""
        unread = self._unread
        if len(unread) > LAZY:
            with contextlib.suppress(OSError):  # no descriptor left to read them with: later
                for _ in range(min(len(unread) - LAZY, AT_ONCE)):
                    self._read(next(iter(unread)))

    def _touch(self, handle: int, fd: int) -> None:
        recent = self._recent
        recent.pop(handle, None)
        recent[handle] = fd
        if len(recent) > RECENT:
            del recent[next(iter(recent))]

    def remove_eventfd(self, handle: int) -> None:
        """Forget it; called before our copy is closed, for the id may be somebody else's right after."""
        self.fds.pop(handle, None)
        self._recent.pop(handle, None)
        self._unread.pop(handle, None)

    def eventfd_id(self, handle: int) -> int:
        """The id of our copy, by which /proc shows who else holds one; 0 when there is no descriptor left to look with."""
        try:
            return self._read(handle)
        except (KeyError, OSError):
            return 0

    def add_socket(self, socket_id: int, cookie: int) -> None:
        """Note the cookie of a timeline's client end."""
        self._cookies[cookie] = socket_id
        self._cookie_of[socket_id] = cookie

    def cookie_of_socket(self, socket_id: int) -> int:
        """The cookie of a timeline's client end."""
        return self._cookie_of[socket_id]

    def remove_socket(self, socket_id: int) -> None:
        """Forget a timeline's socket."""
        self._cookies.pop(self._cookie_of.pop(socket_id), None)

    def identify(self, fd: int) -> fx.Reference:
        """Say what the received ``fd`` is."""
        try:
            return self._identify(fd)
        except OSError:
            return fx.Foreign("one that cannot be looked at while the broker is at its descriptor limit")

    def _identify(self, fd: int) -> fx.Reference:
        """/proc is asked for the kind first: fdinfo of a foreign file would run its file system's code."""
        handle = self._find_recent(fd) if self._can_compare else None
        if handle is not None:
            return fx.KnownFence(handle, peek_status(fd))
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return fx.Foreign("a file that cannot be looked at")
        if target.startswith("socket:"):
            return self._identify_socket(fd)
        if target != "anon_inode:[eventfd]":
            return fx.Foreign(_describe(target))
        info = read_fdinfo(fd)
        if info is None:
            return fx.Foreign("an eventfd that cannot be looked at")
        handle = self._find(info.id)
        if handle is not None:
            self._touch(handle, self.fds[handle])
            return fx.KnownFence(handle, status_from_count(info.count))
        status = status_from_count(info.count) if info.semaphore else None
        if status is None or status == ACTIVE:
            return fx.Foreign("an eventfd of another broker or of none")
        return fx.DetachedFence(status)

    def _identify_socket(self, fd: int) -> fx.Reference:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        except OSError:  # opened with O_PATH: it stands for a socket and is none
            return fx.Foreign("a socket that cannot be looked at")
        try:
            socket_id = self._cookies.get(cookie_of(sock))
        finally:
            sock.detach()
        return fx.Foreign("a socket that is no timeline of this broker") if socket_id is None else fx.KnownTimeline(socket_id)

    def _find_recent(self, fd: int) -> int | None:
        """One of the few that are likely; asked of the kernel alone, so it does not matter what ``fd`` is."""
        for handle, ours in reversed(self._recent.items()):
            if fcntl.fcntl(ours, F_DUPFD_QUERY, fd):
                self._touch(handle, ours)
                return handle
        return None

    def _find(self, eventfd_id: int) -> int | None:
        handle = self._handles.get(eventfd_id)
        if handle not in self.fds:
            handle = None
            for candidate in reversed(list(self._unread)):
                if self._read(candidate) == eventfd_id:
                    return candidate
        return handle

    def _read(self, handle: int) -> int:
        info = read_fdinfo(self.fds[handle])
        self._unread.pop(handle, None)
        if info is None:  # a holder has put locks on the file, whose list hides the id: only those who hold it lose by that
            return -1
        self._handles[info.id] = handle
        if len(self._handles) > 2 * len(self.fds) + 64:
            self._handles = {id: handle for id, handle in self._handles.items() if handle in self.fds}
        return info.id


def cookie_of(sock: socket.socket) -> int:
    """What tells a socket from every other one, as long as the machine runs."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def _describe(target: str) -> str:
    if target.startswith("anon_inode:"):
        return f"an {target}"
    return "a pipe" if target.startswith("pipe:") else "a file"
