"""A file system whose files never finish being closed: a FUSE server that leaves FLUSH unanswered.

No library is needed for so little: it is a mount and a loop over /dev/fuse, in a mount namespace and a process of its own.  When that is killed,
every close ends.  (Not when a process ends that has files of it open: it would wait for itself.)
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NoReturn

__all__ = ["mount_trap", "why_not"]

_LOOKUP, _FORGET, _GETATTR, _OPEN, _RELEASE, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 1, 2, 3, 14, 18, 25, 26, 36, 42
_ENOSYS: Final = 38
_NEWNS, _PRIVATE = 0x20000, 0x44000
_HEAD: Final = struct.Struct("<IIQQ")
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why it cannot be mounted here, if so; tried in a child."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    pid = os.fork()
    if pid == 0:
        try:
            _mount("/mnt" if os.path.isdir("/mnt") else "/tmp")
        except OSError:
            os._exit(1)
        os._exit(0)
    return "FUSE cannot be mounted here" if os.waitpid(pid, 0)[1] else None


def mount_trap(folder: str) -> tuple[str, int]:
    """Mount it on ``folder``; returns the path of its one file, and the pid of its server, to be killed before this process ends."""
    device = _mount(folder)
    pid = os.fork()
    if pid == 0:
        _serve(device)
    os.close(device)
    return f"{folder}/file", pid


def _mount(folder: str) -> int:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if (
        _libc.unshare(_NEWNS)
        or _libc.mount(b"none", b"/", None, _PRIVATE, None)
        or _libc.mount(b"fuse", folder.encode(), b"fuse", 0, options)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return device


def _attributes(node: int) -> bytes:
    return struct.pack("<6Q10I", node, *[0] * 8, 0o40755 if node == 1 else 0o100666, 1, 0, 0, 0, 4096, 0)


def _serve(device: int) -> NoReturn:
    answers = {
        _INIT: struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, 0),
        _LOOKUP: struct.pack("<4QII", 2, 0, 3600, 3600, 0, 0) + _attributes(2),
        _OPEN: struct.pack("<QII", 1, 0, 0),
        _RELEASE: b"",
    }
    while True:
        _, op, unique, node = _HEAD.unpack_from(os.read(device, 1 << 17))
        if op in (_FORGET, _BATCH_FORGET, _INTERRUPT, _FLUSH):
            continue  # the first three have no answer, and the last never gets one
        answer = struct.pack("<QII", 3600, 0, 0) + _attributes(node) if op == _GETATTR else answers.get(op)
        error = -_ENOSYS if answer is None else 0
        os.write(device, struct.pack("<IiQ", 16 + len(answer or b""), error, unique) + (answer or b""))
