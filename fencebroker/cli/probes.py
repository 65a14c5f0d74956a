"""Features of the kernel, each tried out: what a version number promises, a container may have taken away."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from fencebroker.fds import OwnedFd, eventfd_info, new_fence_eventfd

__all__ = ["PROBES", "Probe"]

_SO_PEERPIDFD: Final = 77
_SO_COOKIE: Final = 57
_SYS_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}
_GLOBAL_EXPEDITED: Final = 1 << 1
_F_ADD_SEALS: Final = 1033
_F_SEAL_GROW: Final = 0x0004


class Probe(NamedTuple):
    """A feature: what it is for, since when Linux has it (empty: not known for sure), and whether nothing works without it."""

    name: str
    purpose: str
    since: str
    is_needed: bool
    works: Callable[[], bool]


def _eventfd() -> bool:
    with OwnedFd(new_fence_eventfd()) as fd:
        info = eventfd_info(fd.fileno())
        return info is not None and info.semaphore


def _peer_pidfd() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        OwnedFd(ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)).close()
    return True


def _cookie() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        cookies = [sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) for sock in (ours, theirs)]
    return cookies[0] != cookies[1]


def _pidfd() -> bool:
    OwnedFd(os.pidfd_open(os.getpid())).close()
    return True


def _sealed_memfd() -> bool:
    with OwnedFd(os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as fd:
        fcntl.fcntl(fd.fileno(), _F_ADD_SEALS, _F_SEAL_GROW)
    return True


def _membarrier() -> bool:
    number = _SYS_MEMBARRIER.get(os.uname().machine)
    if number is None:
        return False
    found: int = ctypes.CDLL(None, use_errno=True).syscall(number, 0, 0, 0)
    return found > 0 and bool(found & _GLOBAL_EXPEDITED)


def _epoll_targets() -> bool:
    with OwnedFd(new_fence_eventfd()) as fd, select.epoll() as epoll:
        epoll.register(fd.fileno(), select.EPOLLIN)
        with open(f"/proc/self/fdinfo/{epoll.fileno()}", encoding="ascii") as lines:
            return any(line.startswith("tfd:") for line in lines)


PROBES: Final = (
    Probe("eventfds in /proc/self/fdinfo", "a descriptor carries its status", "", True, _eventfd),
    Probe("SO_COOKIE of Unix sockets", "a timeline's descriptor is recognised", "4.12", True, _cookie),
    Probe("pidfd_open", "the end of a process is seen", "5.3", True, _pidfd),
    Probe("SO_PEERPIDFD", "a pid that is used again is not mistaken", "6.5", False, _peer_pidfd),
    Probe("sealed memfds", "shared memory that nobody can shrink", "3.17", False, _sealed_memfd),
    Probe("membarrier", "signals that need no message", "4.16", False, _membarrier),
    Probe("epoll in /proc/PID/fdinfo", '"holders" and "why" see who waits in epoll', "3.8", False, _epoll_targets),
)
