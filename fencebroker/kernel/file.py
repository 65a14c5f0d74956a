"""``struct sync_file`` and its file: create, install, receive, poll, merge.  After ``include/linux/sync_file.h`` and
``drivers/dma-buf/sync_file.c``.
"""
# ruff: noqa: N801 - the names are the kernel's

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING, Final

from fencebroker.errors import NotASyncFile
from fencebroker.fds import MAX_FD
from fencebroker.kernel import numbers
from fencebroker.kernel.callbacks import dma_fence_add_callback, dma_fence_enable_sw_signaling, dma_fence_remove_callback
from fencebroker.kernel.fence import (
    dma_fence_driver_name,
    dma_fence_get,
    dma_fence_is_signaled,
    dma_fence_put,
    dma_fence_timeline_name,
)
from fencebroker.kernel.imported import import_fence
from fencebroker.kernel.process import process
from fencebroker.kernel.structs import dma_fence, dma_fence_cb, expect
from fencebroker.model import MAX_SYNC_FILE_NAME

if TYPE_CHECKING:
    from fencebroker.sync_file import SyncFile

__all__ = [
    "POLL_ENABLED",
    "c_string",
    "create",
    "fd_install",
    "file",
    "file_of",
    "fput",
    "get_file",
    "sync_file",
    "sync_file_create",
    "sync_file_fdget",
    "sync_file_get_fence",
    "sync_file_get_name",
    "sync_file_poll",
]

#: Number of the bit in ``sync_file.flags`` that says: somebody polled, and ``cb`` is registered with the fence.
POLL_ENABLED: Final = 0


class file:
    """A file that is not (only) a descriptor yet.  ``f_count`` counts its references; ``private_data`` is its sync_file."""

    def __init__(self, owner: sync_file, carrier: SyncFile) -> None:
        self.f_count = 1
        self.private_data = owner
        self._carrier: SyncFile | None = carrier
        self._installed = 0  # references that belong to descriptors

    def __repr__(self) -> str:
        return f"<file of {self.private_data!r}, {self.f_count} references>"


class sync_file:
    """A file that carries one fence.

    ``file`` is what ``fd_install()`` installs and ``fput()`` puts; ``fence`` is its fence, with a reference of its own; ``wq`` (a
    ``threading.Condition``) is notified when the fence signals after somebody polled the file; ``cb`` is the callback that does so;
    ``flags`` has the bit POLL_ENABLED.  Descriptors that are installed need none of these: they signal in any process.
    """

    def __init__(self, fence: dma_fence, carrier: SyncFile, user_name: str) -> None:
        self.file = file(self, carrier)
        self.fence = fence
        self.wq = threading.Condition()
        self.cb = _FileCb(self)
        self.flags = 0
        self._user_name = user_name

    @property
    def user_name(self) -> str:
        """The name given to it, cut to 31 bytes as in C; empty: it is named after its fence."""
        return self._user_name

    @user_name.setter
    def user_name(self, name: str) -> None:
        self._user_name = c_string(name, "user_name")

    def __repr__(self) -> str:
        return f"<sync_file {self._user_name!r} of {self.fence!r}>"


class _FileCb(dma_fence_cb):
    def __init__(self, owner: sync_file) -> None:
        self.owner = owner


def c_string(text: str, argument: str, size: int = MAX_SYNC_FILE_NAME) -> str:
    """Cut ``text`` as a C buffer of ``size + 1`` bytes would: at a NUL, and to whole characters."""
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str, not {type(text).__name__}")
    try:
        return text.partition("\0")[0].encode()[:size].decode(errors="ignore")
    except UnicodeEncodeError:
        raise ValueError(f"{argument} must be valid Unicode text, not {text!r}") from None


# -- create, install, put


def sync_file_create(fence: dma_fence) -> sync_file | None:
    """Make a sync_file for ``fence``, with a reference of its own; put it with ``fput(sync_file.file)``, or install it.

    None: no broker, no room at the broker, a context that was given back, or no free descriptor in this process, for it needs one until
    it is installed.
    """
    return create(fence, "")


def create(fence: dma_fence, name: str) -> sync_file | None:
    """Make a sync_file with a name of its own; None as for ``sync_file_create()``."""
    dma_fence_enable_sw_signaling(fence)  # who polls an installed descriptor cannot be seen from here
    dma_fence_get(fence)
    try:
        carrier = fence._issuer.export(fence, name)
    except (OSError, NotASyncFile, ValueError) as err:
        process.fail(err)
        dma_fence_put(fence)
        return None
    except BaseException:
        dma_fence_put(fence)
        raise
    process.references["file"] += 1
    return sync_file(fence, carrier, name)


def fd_install(fd: int, file: file) -> None:
    """Put ``file`` in the place of the reserved number ``fd``, in one step.  The caller's reference goes with it; this cannot fail.

    The descriptor can be polled, inherited and sent.  The broker sees to its signal, so it may outlive this process's objects; the
    reference on a fence of this process is put when that has signalled, for nobody tells when a descriptor was closed for the last time.
    """
    _live_file(file)
    with process.lock:
        cloexec = numbers.is_closed_on_exec(fd)
        if file.f_count == file._installed:
            raise ReferenceError("file has no reference to install: an earlier fd_install() took it; get_file() takes another")
        assert file._carrier is not None
        os.dup2(file._carrier.fileno(), fd, inheritable=not cloexec)
        numbers.take_reserved(fd)
        file._installed += 1
    _close_carrier_if_done(file)
    fence = file.private_data.fence
    if not fence._issuer.keep(fence, lambda: _put_installed(file)):
        _put_installed(file)


def get_file(file: file) -> file:
    """Take a reference and return ``file``."""
    with process.lock:
        _live_file(file).f_count += 1
        process.references["file"] += 1
    return file


def fput(file: file) -> None:
    """Put a reference.  With the last one the reference on the fence is put."""
    with process.lock:
        if _live_file(file).f_count == file._installed:
            raise ReferenceError("file has no reference to put: fd_install() took it, and closing the descriptor gives it back")
    _put(file)


def _put_installed(file: file) -> None:
    with process.lock:
        file._installed -= 1
    _put(file)


def _put(file: file) -> None:
    with process.lock:
        file.f_count -= 1
        process.references["file"] -= 1
        last = not file.f_count
    _close_carrier_if_done(file)
    if last:
        _release(file.private_data)


def _close_carrier_if_done(file: file) -> None:
    """Without a reference that could still be installed it needs no descriptor of its own."""
    with process.lock:
        done = file.f_count == file._installed
        carrier = file._carrier
        if done:
            file._carrier = None
    if done and carrier is not None:
        carrier.close()


def _release(sync_file: sync_file) -> None:
    if sync_file.flags & 1 << POLL_ENABLED:
        dma_fence_remove_callback(sync_file.fence, sync_file.cb)
    dma_fence_put(sync_file.fence)


def _live_file(value: object) -> file:
    checked = expect(value, file, "file")
    if checked.f_count < 1:
        raise ReferenceError("file has no reference: the last one was put")
    return checked


# -- receive, name, poll


def sync_file_get_fence(fd: int) -> dma_fence | None:
    """Return the fence that a sync_file's descriptor carries, with a reference that the caller owns; None if it carries none.

    It is a private import: whoever else holds the descriptor cannot touch its status.
    """
    if type(fd) is not int:
        raise TypeError(f"fd must be a descriptor (an int), not {type(fd).__name__}")
    if not 0 <= fd <= MAX_FD:
        process.fail(OSError(errno.EBADF, f"fd must be an open descriptor, not {fd}"))
        return None
    try:
        return import_fence(fd)
    except (OSError, NotASyncFile) as err:
        process.fail(err)
        return None


def sync_file_fdget(fd: int) -> sync_file | None:
    """Return a sync_file for a descriptor, with a reference on its file that the caller owns; None if it is none."""
    fence = sync_file_get_fence(fd)
    if fence is None:
        return None
    name = ""
    try:
        name = process.line().broker.info(fd).name
    except (OSError, NotASyncFile) as err:
        process.fail(err)  # named after its fence, then
    made = create(fence, name)
    dma_fence_put(fence)
    return made


def sync_file_get_name(sync_file: sync_file, len: int = MAX_SYNC_FILE_NAME + 1) -> str:
    """Return its name, cut to ``len - 1`` bytes: the one given by a merge, else driver-timeline, context, seqno."""
    file_of(sync_file)
    if type(len) is not int:
        raise TypeError(f"len must be an int, not {type(len).__name__}")
    if len < 1:
        raise ValueError(f"len must leave room for the NUL: at least 1, not {len}")
    fence = sync_file.fence
    name = sync_file.user_name or f"{dma_fence_driver_name(fence)}-{dma_fence_timeline_name(fence)}{fence.context}-{fence.seqno}"
    return c_string(name, "name", min(len - 1, MAX_SYNC_FILE_NAME))


def file_of(value: object, argument: str = "sync_file") -> file:
    """Return the file of a sync_file, if it has a reference."""
    return _live_file(expect(value, sync_file, argument).file)


def sync_file_poll(file: file) -> int:
    """Return ``select.EPOLLIN`` if the fence has signalled, OK or not, else 0; from then on ``wq`` is notified when it does."""
    owner = _live_file(file).private_data
    with process.lock:
        first = not owner.flags & 1 << POLL_ENABLED
        owner.flags |= 1 << POLL_ENABLED
    if first and dma_fence_add_callback(owner.fence, owner.cb, _fence_check_cb_func) < 0:
        _wake_up_all(owner.wq)
    return select.EPOLLIN if dma_fence_is_signaled(owner.fence) else 0


def _fence_check_cb_func(_: dma_fence, cb: _FileCb) -> None:
    _wake_up_all(cb.owner.wq)


def _wake_up_all(wq: threading.Condition) -> None:
    with wq:
        wq.notify_all()
