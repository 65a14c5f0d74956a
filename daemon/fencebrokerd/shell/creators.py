"""Processes that created timelines, watched by pidfd: a timeline may outlive its creator in other hands, and then somebody will ask."""

from __future__ import annotations

import select
import socket
from typing import Final

from fencebroker.fds import OwnedFd

__all__ = ["Creators"]

SO_PEERPIDFD: Final = 77  # Linux 6.5


class Creators:
    """Owns one pidfd per session that has created a timeline which still exists."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._pidfds: dict[int, OwnedFd] = {}  # by session
        self._sessions: dict[int, int] = {}  # by descriptor

    def __contains__(self, session: int) -> bool:
        return session in self._pidfds

    def watch(self, session: int, sock: socket.socket) -> int | None:
        """Watch the process at the other end of ``sock``; returns the pidfd's number if it is new.

        Without kernel support, or a free descriptor, the process is taken to live.
        """
        if session in self._pidfds:
            return None
        try:
            pidfd: int = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError:
            return None
        self.adopt(session, pidfd)
        return pidfd

    def adopt(self, session: int, fd: int) -> None:
        """Take ``fd``, a pidfd, and watch it."""
        pidfd = self._pidfds[session] = OwnedFd(fd)
        self._sessions[pidfd.fileno()] = session
        self._epoll.register(pidfd.fileno(), select.EPOLLIN)

    def session_of(self, fd: int) -> int | None:
        """Which session's process has died, if ``fd`` is one of ours."""
        return self._sessions.get(fd)

    def entries(self) -> dict[int, int]:
        """Which descriptor each pidfd is."""
        return {session: pidfd.fileno() for session, pidfd in self._pidfds.items()}

    def forget(self, session: int) -> None:
        """Stop watching."""
        pidfd = self._pidfds.pop(session, None)
        if pidfd is not None:
            del self._sessions[pidfd.fileno()]
            self._epoll.unregister(pidfd.fileno())
            pidfd.close()

    def close(self) -> None:
        """Stop watching all."""
        for session in list(self._pidfds):
            self.forget(session)
