"""Descriptor numbers that are reserved and not yet installed.

The kernel marks a number as taken and leaves its slot empty.  Here an O_PATH descriptor sits in the slot: nothing can be read, written or
waited for with it.  It never survives an exec, nor, as in the kernel, a fork.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from fencebroker.kernel.process import process

__all__ = ["close_reserved", "get_unused_fd_flags", "is_closed_on_exec", "put_unused_fd", "take_reserved"]

_PLACEHOLDER: Final = os.O_PATH | os.O_CLOEXEC

#: number -> whether the flags asked for close-on-exec
_reserved: dict[int, bool] = {}


def get_unused_fd_flags(flags: int) -> int:
    """Reserve the lowest free descriptor number of this process, for ``fd_install()`` or ``put_unused_fd()``.

    Of ``flags`` only ``os.O_CLOEXEC`` counts, as in the kernel: with it, what is installed is not inherited by another program.  Returns
    the number, or -EMFILE at the descriptor limit (-ENFILE and -ENOMEM are the machine's).
    """
    if type(flags) is not int:
        raise TypeError(f"flags must be os.O_CLOEXEC or 0 (an int), not {type(flags).__name__}")
    if flags < 0:
        raise ValueError(f"flags must be os.O_CLOEXEC or 0, not {flags}")
    with process.lock:
        try:
            number = os.open("/", _PLACEHOLDER)
        except OSError as err:
            process.fail(err)
            return -(err.errno or errno.EIO)
        _reserved[number] = bool(flags & os.O_CLOEXEC)
        process.references["fd"] += 1
        return number


def put_unused_fd(fd: int) -> None:
    """Give a reserved number back.  ValueError if it is not reserved; nothing is closed then."""
    with process.lock:
        is_closed_on_exec(fd)
        take_reserved(fd)
        os.close(fd)


def is_closed_on_exec(fd: int) -> bool:
    """Return what the flags of a reserved number asked for.  ValueError if ``fd`` is not reserved."""
    if type(fd) is not int:
        raise TypeError(f"fd must be a number from get_unused_fd_flags(), not {type(fd).__name__}")
    with process.lock:
        cloexec = _reserved.get(fd)
        if cloexec is None:
            raise ValueError(f"fd {fd} is not reserved; get_unused_fd_flags() reserves one")
        if not _is_placeholder(fd):
            take_reserved(fd)
            raise ValueError(f"fd {fd} was reserved, but somebody closed it: it is not this module's any more")
        return cloexec


def take_reserved(fd: int) -> None:
    """The number is not reserved any more."""
    del _reserved[fd]
    process.references["fd"] -= 1


def _is_placeholder(fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat("/")) and os.readlink(f"/proc/self/fd/{fd}") == "/"
    except OSError:
        return False


def close_reserved() -> None:
    """Give every reserved number back."""
    with process.lock:
        for fd in list(_reserved):
            if _is_placeholder(fd):
                os.close(fd)
            take_reserved(fd)


os.register_at_fork(after_in_child=close_reserved)
