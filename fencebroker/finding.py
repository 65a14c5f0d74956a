"""Finding a broker, and starting a per-user one when there is none.

Order: an explicit path; ``$FENCEBROKER_SOCKET``; the user's broker; the system's; with none of them a per-user broker is started.  It has a
session of its own, cwd ``/``, no inherited descriptors, a log, and leaves when nobody has used it for half a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import threading
from pathlib import Path
from typing import Final

from fencebroker import places
from fencebroker.connection import Connection, generation
from fencebroker.errors import BrokerUnavailable
from fencebroker.fds import OwnedFd

__all__ = ["close_shared", "current_default", "default_connection", "find", "shared_connection", "start_user_broker"]

IDLE_EXIT: Final = 30
START_SECONDS: Final = 15.0


def find(path: str | os.PathLike[str] | None, autostart: bool) -> Connection:
    """Connect to a broker; BrokerUnavailable says where none was found and what helps."""
    if path is None:
        path = os.environ.get("FENCEBROKER_SOCKET") or None
        if path is not None:
            return _connect(Path(path), "$FENCEBROKER_SOCKET names it")
    else:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a path or None, not {type(path).__name__}")
        return _connect(Path(os.fspath(path)), "path names it")
    try:
        user = places.user_socket()
    except FileNotFoundError as err:
        raise BrokerUnavailable(str(err)) from err
    for _ in range(5):
        for place in (user, places.SYSTEM_SOCKET):
            connection = _try(place)
            if connection is not None:
                return connection
        if not autostart:
            raise BrokerUnavailable(
                f"no broker answers at {user} or {places.SYSTEM_SOCKET}; start one (fencectl start --user) or let autostart do it"
            )
        start_user_broker(user)
        # It may have been about to leave, idle, when we came: then it starts again.
    raise BrokerUnavailable(f"a broker was started at {user} but does not answer; its log is {places.log_path()}")


def _connect(path: Path, why: str) -> Connection:
    try:
        return Connection(path)
    except BrokerUnavailable:
        raise
    except OSError as err:
        if not isinstance(err, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)) and err.errno != 91:
            raise
        raise BrokerUnavailable(f"no broker answers at {path} ({why}): {err.strerror}") from err


def _try(place: Path) -> Connection | None:
    """Connect if somebody serves us there.  A broker that refuses is an answer, one that is gone or leaving is not."""
    try:
        return Connection(place)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, PermissionError, NotADirectoryError):
        return None
    except BrokerUnavailable as err:
        if "went away" in str(err):
            return None
        raise


def start_user_broker(path: Path, idle_exit: int = IDLE_EXIT) -> None:
    """Start a broker at ``path`` unless somebody else does so at this moment; returns when one of them serves, or raises BrokerUnavailable.

    It leaves after ``idle_exit`` seconds without anybody; 0: it stays.
    """
    log = places.log_path()
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise BrokerUnavailable(f"a broker for this user could not be started: no place for its log {log}: {err.strerror}") from err
    # Whoever holds the lock starts the broker; the others wait for the lock and then find it running.
    with OwnedFd(os.open(path.parent / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as lock:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        connection = _try(path)
        if connection is not None:
            connection.close()
            return
        _start(path, log, idle_exit)


def _start(path: Path, log: Path, idle_exit: int) -> None:
    import subprocess

    ready_r, ready_w = (OwnedFd(fd) for fd in os.pipe2(os.O_CLOEXEC))
    with ready_r, ready_w, OwnedFd(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)) as out:
        command = [sys.executable, "-P", "-m", "fencebrokerd", "--listen", str(path), "--idle-exit", str(idle_exit)]
        command += ["--ready-fd", str(ready_w.fileno())]
        # The shell leaves at once, so the broker is no child of ours: it outlives us, and is no zombie when it leaves first.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            check=True,
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))},
            stdin=subprocess.DEVNULL,
            stdout=out.fileno(),
            stderr=out.fileno(),
            pass_fds=(ready_w.fileno(),),
            start_new_session=True,
        )
        ready_w.close()
        poller = select.poll()
        poller.register(ready_r, select.POLLIN)
        if not poller.poll(START_SECONDS * 1000) or os.read(ready_r.fileno(), 1) != b"\n":
            raise BrokerUnavailable(f"a broker for this user could not be started; its log is {log}")


_shared: dict[tuple[Path, int], Connection] = {}
_shared_lock = threading.Lock()


def _renew_lock() -> None:
    global _shared_lock, _default_lock  # noqa: PLW0603 - a forked child starts over
    _shared_lock = threading.Lock()
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def shared_connection(path: Path) -> Connection:
    """This process's own connection to the broker at ``path``, made when first needed; it closes with the process."""
    with _shared_lock:
        connection = _shared.get((path, generation()))
        if connection is None or not connection.is_open:
            connection = _shared[path, generation()] = _connect(path, "the timeline was made there")
        return connection


_default: Connection | None = None
_default_lock = threading.Lock()


def default_connection() -> Connection:
    """This process's connection for the faces that have no object to hang one on; found or started when first needed."""
    global _default  # noqa: PLW0603 - one per process
    with _default_lock:
        if _default is None or not (_default.is_open or _default.may_reconnect):
            _default = find(None, True)
        return _default


def current_default() -> Connection | None:
    """The default connection if there is one; it may be closed or lost."""
    return _default


def close_shared() -> None:
    """Close the connections that were made for objects from elsewhere; for the end of a process, and for tests."""
    global _default  # noqa: PLW0603 - one per process
    with _default_lock:
        if _default is not None:
            _default.close()
            _default = None
    with _shared_lock:
        while _shared:
            with contextlib.suppress(OSError):
                _shared.popitem()[1].close()
