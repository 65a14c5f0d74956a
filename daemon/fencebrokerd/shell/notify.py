"""Talking to who started us: descriptors passed in (LISTEN_FDS), readiness (sd_notify, a newline on a descriptor)."""

from __future__ import annotations

import contextlib
import os
import socket

from fencebrokerd.config import ConfigError
from fencebrokerd.keeper import SAID_READY, Page, hold_standard_streams

__all__ = ["notify", "passed_sockets", "say_ready"]

_FIRST = 3  # SD_LISTEN_FDS_START


def notify(text: str) -> None:
    """Send ``text`` (such as READY=1) to $NOTIFY_SOCKET; without one, nothing.  Never blocks."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A service manager that does not listen, or a descriptor table that is full, is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(text.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)


def say_ready(ready_fd: int | None, page: Page) -> None:
    """Say that clients can connect: READY=1 whenever a broker begins, for the last one may have died while it reloaded; and, once in their
    common life, one newline on ``ready_fd``, which is then closed.
    """
    notify(f"READY=1\nMAINPID={page.keeper}")
    if page.words[SAID_READY]:
        return
    if ready_fd is not None:
        with contextlib.suppress(BrokenPipeError):  # whoever wanted to know has gone
            os.write(ready_fd, b"\n")
    page.words[SAID_READY] = 1
    if ready_fd is not None:
        os.close(ready_fd)
        hold_standard_streams()


def passed_sockets(main_pid: int) -> list[socket.socket]:
    """Take the listening sockets passed by LISTEN_FDS; ConfigError unless each is a listening SOCK_SEQPACKET Unix socket.

    They are for the process ``main_pid``.  The variables are removed, so that nobody else takes the descriptors for theirs.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count or pid != str(main_pid):
        return []
    if not count.isdigit() or int(count) > 64:
        raise ConfigError(f"LISTEN_FDS: must be a count of descriptors, not {count!r}")
    with contextlib.ExitStack() as undo:
        sockets = [undo.enter_context(check_listener(fd)) for fd in range(_FIRST, _FIRST + int(count))]
        undo.pop_all()
    return sockets


def check_listener(fd: int) -> socket.socket:
    """Own ``fd`` as a listening socket; ConfigError says what it is instead."""
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as err:
        raise ConfigError(f"LISTEN_FDS: descriptor {fd} is not a socket: {err.strerror}") from err
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        kind = " ".join(str(getattr(number, "name", number)) for number in (sock.family, sock.type))
        sock.detach()
        raise ConfigError(f"LISTEN_FDS: descriptor {fd} must be a SOCK_SEQPACKET Unix socket, not {kind} (ListenSequentialPacket=)")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ConfigError(f"LISTEN_FDS: descriptor {fd} must be a listening socket, not a connection (Accept=no)")
    return sock
