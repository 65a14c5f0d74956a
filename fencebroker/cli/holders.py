"""Which processes hold a timeline's descriptor now: its socket has an inode, and ``/proc/PID/fd`` shows it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from fencebroker.model import ProcessInfo

__all__ = ["holders_of_sockets"]


def holders_of_sockets(inodes: Iterable[int]) -> Iterator[ProcessInfo]:
    """Yield the processes that hold a socket with one of these inodes, as far as one may look: other users' are passed over."""
    wanted = {f"socket:[{inode}]" for inode in inodes if inode}
    for name in os.listdir("/proc"):
        if name.isdigit() and _holds(name, wanted):
            try:
                with open(f"/proc/{name}/comm", "rb") as stream:
                    comm = stream.read().rstrip(b"\n").decode(errors="backslashreplace")
                yield ProcessInfo(int(name), os.stat(f"/proc/{name}").st_uid, comm)
            except OSError:
                continue  # it ended meanwhile


def _holds(pid: str, wanted: set[str]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        fds = os.listdir(folder)
    except OSError:
        return False  # another user's, or it ended meanwhile
    for fd in fds:
        try:
            if os.readlink(f"{folder}/{fd}") in wanted:
                return True
        except OSError:
            continue  # closed meanwhile
    return False
