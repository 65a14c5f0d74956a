"""Memory shared with another process, and the barrier between the two.  Loaded when the first ring is, for it needs ctypes.

Facts
  ``mmap.mmap`` keeps a duplicate of its descriptor and unmaps when it is collected, also in a forked child that has no such mapping and may
  have something else there.  So the mapping is made by hand: no descriptor, no mapping in a child (MADV_DONTFORK), unmapped by ``close`` alone.
  membarrier(GLOBAL_EXPEDITED) makes every processor that runs a registered process execute a full barrier: who writes often and must not
  wait needs none of his own.  Registering takes a few milliseconds in a process that has threads, once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final, NoReturn

__all__ = ["Mapping", "barrier", "has_barrier", "register"]

_MADV_DONTFORK: Final = 10
_QUERY: Final = 0
_GLOBAL_EXPEDITED: Final = 2
_REGISTER_GLOBAL_EXPEDITED: Final = 4
#: The number of membarrier; elsewhere there are no rings.
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}.get(os.uname().machine)

# With the GIL held: none of these calls waits.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 4
_FAILED: Final = ctypes.c_void_p(-1).value

_registered = 0


class Mapping:
    """A file's first bytes, shared.  ``view`` is writable; whoever made views of it lets go of them before ``close``."""

    def __init__(self, fd: int, size: int) -> None:
        """Map ``fd``, which is borrowed.  OSError is the kernel's, or EINVAL for a file that is shorter: touching what is not there kills."""
        if os.fstat(fd).st_size < size:
            raise OSError(22, f"the shared memory has {os.fstat(fd).st_size} bytes, not {size}")
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address == _FAILED:
            _raise()
        self._address: int | None = address
        self._size = size
        self.view = memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
        if _libc.madvise(address, size, _MADV_DONTFORK):
            self.close()
            _raise()

    def close(self) -> None:
        """Unmap; a second time does nothing."""
        address, self._address = self._address, None
        if address is not None:
            self.view.release()
            _libc.munmap(address, self._size)

    def abandon(self) -> None:
        """In a forked child, which does not have it: forget it."""
        self._address = None
        self.view.release()


def _raise() -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _membarrier(command: int) -> int:
    return -1 if _MEMBARRIER is None else int(_libc.syscall(_MEMBARRIER, command, 0, 0))


def has_barrier() -> bool:
    """Whether ``barrier`` works here."""
    wanted = _GLOBAL_EXPEDITED | _REGISTER_GLOBAL_EXPEDITED
    commands = _membarrier(_QUERY)
    return commands >= 0 and commands & wanted == wanted


def register() -> bool:
    """Take part in others' barriers from now on; False where that is not possible."""
    global _registered  # noqa: PLW0603 - of this process: a forked child registers anew
    if _registered != os.getpid():
        if _membarrier(_REGISTER_GLOBAL_EXPEDITED):
            return False
        _registered = os.getpid()
    return True


def barrier() -> None:
    """Have every registered process execute a full barrier, and this one too.  OSError where the kernel refuses."""
    if _membarrier(_GLOBAL_EXPEDITED):
        _raise()
