"""Timelines' sockets: our end of each, watched, and the other end until it is sent out.

Each is in two epolls: the loop's, which wakes us, and one of their own, which is emptied before a session's request is handled.  (One epoll
within the other would do, and cost a microsecond more on the way from a signal to its waiter.)

A packet here is one-way and nothing is ever written.  A zero-length read is end-of-file only if the other end has hung up by now; otherwise it
is an empty packet, which is malformed.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

from fencebroker import wire
from fencebroker.fds import Truncated, drop_packet, is_hung_up, look_at_packet
from fencebrokerd.shell.identity import Identity, cookie_of
from fencebrokerd.shell.reaper import Reaper

__all__ = ["Sockets"]


class Sockets:
    """Owns both ends of every timeline's socketpair, the clients' ends only until they are taken."""

    def __init__(self, identity: Identity, reaper: Reaper, loop: select.epoll) -> None:
        self._identity = identity
        self._reaper = reaper
        self._loop = loop
        self._epoll = select.epoll()
        self._ours: dict[int, socket.socket] = {}
        self._by_fd: dict[int, int] = {}
        self._theirs: dict[int, socket.socket] = {}
        self._payers: dict[int, int] = {}

    def id_of(self, fd: int) -> int | None:
        """Which timeline's socket the loop's event is about, if any."""
        return self._by_fd.get(fd)

    def is_any_ready(self) -> bool:
        """Whether any of the sockets can be read now."""
        return bool(self._epoll.poll(0, 1))

    def create(self, socket_id: int, uid: int) -> tuple[int, int, int]:
        """Make a pair for ``uid`` and watch our end.

        Returns our number, the client's, both borrowed, and the client's cookie.  OSError is the kernel's.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cookie = cookie_of(theirs)
        self._add(socket_id, ours, cookie, uid)
        self._theirs[socket_id] = theirs
        return ours.fileno(), theirs.fileno(), cookie

    def adopt(self, socket_id: int, ours: int, theirs: int, cookie: int, uid: int) -> None:
        """Take over a pair that another broker of this table made; ``theirs`` is -1 when the client has it.  OSError if it is no socket."""
        self._add(socket_id, socket.socket(fileno=ours), cookie, uid)
        if theirs >= 0:
            self._theirs[socket_id] = socket.socket(fileno=theirs)

    def _add(self, socket_id: int, ours: socket.socket, cookie: int, uid: int) -> None:
        self._identity.add_socket(socket_id, cookie)
        self._payers[socket_id] = uid
        self._ours[socket_id] = ours
        self._by_fd[ours.fileno()] = socket_id
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        self._loop.register(ours.fileno(), select.EPOLLIN)

    def end_of(self, socket_id: int) -> socket.socket | None:
        """The client's end, borrowed, while it was not sent for certain."""
        return self._theirs.get(socket_id)

    def close_end(self, socket_id: int) -> None:
        """The client has its end: close our copy of it."""
        theirs = self._theirs.pop(socket_id, None)
        if theirs is not None:
            theirs.close()

    def ready(self) -> Iterator[int]:
        """Yield the ids of the sockets that can be read now; one that was closed meanwhile is passed over."""
        for fd, _ in self._epoll.poll(0):
            socket_id = self._by_fd.get(fd)
            if socket_id is not None:
                yield socket_id

    def receive(self, socket_id: int) -> list[Any] | None:
        """Look at one message, which stays in its socket until ``consume``: None is end-of-file, an empty one the doorbell.

        BlockingIOError when there is none, wire.Malformed when it is out of form.
        """
        try:
            packet, has_descriptors = look_at_packet(self._ours[socket_id])
        except Truncated as err:
            raise wire.Malformed(str(err)) from err
        if has_descriptors:
            raise wire.Malformed("descriptors came on a timeline's socket")
        if packet == wire.DOORBELL:
            return []
        if packet:
            return wire.decode_timeline(packet)
        # The event that brought us here may be older than the hang-up: what it was about can have been taken by a sweep.
        if not is_hung_up(self._ours[socket_id].fileno()):
            raise wire.Malformed("an empty packet")
        return None

    def consume(self, socket_id: int) -> None:
        """Take the message that was looked at off its socket, unless that was closed over it."""
        ours = self._ours.get(socket_id)
        if ours is not None:
            drop_packet(ours)

    def entries(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield each socket, our end's number, the client's end's or -1, and its cookie."""
        for socket_id, ours in self._ours.items():
            theirs = self._theirs.get(socket_id)
            yield socket_id, ours.fileno(), -1 if theirs is None else theirs.fileno(), self._identity.cookie_of_socket(socket_id)

    def close(self, socket_id: int) -> None:
        """Close a pair; what is unread in it may hold files of a client's, whose closing can block."""
        ours = self._ours.pop(socket_id, None)
        if ours is None:
            return
        self._epoll.unregister(ours.fileno())
        self._loop.unregister(ours.fileno())
        del self._by_fd[ours.fileno()]
        self._identity.remove_socket(socket_id)
        theirs = self._theirs.pop(socket_id, None)
        if theirs is not None:
            theirs.close()
        self._reaper.close_socket(ours, self._payers.pop(socket_id))

    def close_all(self) -> None:
        """Close everything."""
        for socket_id in list(self._ours):
            self.close(socket_id)
        self._epoll.close()
