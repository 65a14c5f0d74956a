"""The listening sockets: who comes in, and what happens when there is no descriptor left for a guest.

A connection that is left waiting keeps the listener readable and would wake the loop for ever.  So one descriptor is kept spare: it is
given up to accept the guest and turn it away.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Final

from fencebroker.fds import OwnedFd
from fencebrokerd.keeper import ACCEPTING
from fencebrokerd.shell import failpoints
from fencebrokerd.shell.log import Log
from fencebrokerd.shell.reaper import Reaper

__all__ = ["Door", "take_descriptors"]

#: Linux 6.16: whether a socket takes descriptors; whoever sends them to one that does not hears EPERM.
SO_PASSRIGHTS: Final = 83
#: Connections accepted in one turn; the rest waits for the next.
ACCEPTS: Final = 4


def take_descriptors(sock: socket.socket, does: bool) -> None:
    """Let a socket take descriptors or not, where the kernel can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, does)


class Door:
    """Owns the listeners and the spare descriptor."""

    def __init__(self, listeners: list[socket.socket], epoll: select.epoll, log: Log, words: memoryview, reaper: Reaper) -> None:
        """Watch the listeners; ``words`` is the keeper's page, where it stands while a connection is on its way into our books."""
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._epoll = epoll
        self._log = log
        self._words = words
        self._reaper = reaper
        self._spare: OwnedFd | None = _spare()
        self._is_shut = False
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            take_descriptors(listener, False)  # nor does any connection until its hello is accepted
            epoll.register(fd, select.EPOLLIN)

    def __contains__(self, fd: int) -> bool:
        return fd in self._listeners

    def guests(self, fd: int) -> Iterator[socket.socket]:
        """Yield new connections, which the caller owns and has noted when it asks for the next one."""
        listener = self._listeners[fd]
        for _ in range(ACCEPTS):
            self._words[ACCEPTING] = 1
            if failpoints.IS_ARMED:
                failpoints.hit("accept.before")
            try:
                guest = listener.accept()[0]
            except BlockingIOError:
                self._words[ACCEPTING] = 0
                return
            except OSError as err:
                self._words[ACCEPTING] = 0
                self._turn_away(listener, err)
                return
            if failpoints.IS_ARMED:
                failpoints.hit("accept.after")
            guest.setblocking(False)
            yield guest
            self._words[ACCEPTING] = 0

    def _turn_away(self, listener: socket.socket, err: OSError) -> None:
        self._log.once(-1, f"accept {err.errno}", f"a connection could not be accepted: {err.strerror}")
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        try:
            with contextlib.suppress(BlockingIOError):  # accept says EMFILE before it looks whether anybody waits
                self._reaper.close_socket(listener.accept()[0])
            self._spare = _spare()
        except OSError:
            # Not even that: the machine's table is full.  Nobody is let in until somebody leaves.
            self._watch(0)
            self._is_shut = True

    def open_again(self) -> None:
        """Somebody left: let others in again, if the door had to be shut."""
        if self._is_shut:
            self._is_shut = False
            self._watch(select.EPOLLIN)

    def _watch(self, events: int) -> None:
        for fd in self._listeners:
            self._epoll.modify(fd, events)

    def close(self) -> None:
        """Close the listeners."""
        for listener in self._listeners.values():
            listener.close()
        if self._spare is not None:
            self._spare.close()


def _spare() -> OwnedFd:
    return OwnedFd(os.eventfd(0, os.EFD_CLOEXEC))
