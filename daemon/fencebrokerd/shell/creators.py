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

    def watch(self, session: int, sock: socket.socket) -> None:
        """Watch the process at the other end of ``sock``; without kernel support, or a free descriptor, it is taken to live."""
        if session in self._pidfds:
            return
        try:
            pidfd = OwnedFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError:
            return
        self._pidfds[session] = pidfd
        self._sessions[pidfd.fileno()] = session
        self._epoll.register(pidfd.fileno(), select.EPOLLIN)

    def session_of(self, fd: int) -> int | None:
        """Which session's process has died, if ``fd`` is one of ours."""
        return self._sessions.get(fd)

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
