"""The Sync File API Guide for ordinary processes, with the kernel's names and behaviour.

    fence = dma_fence()
    dma_fence_init(fence, dma_fence_ops(), None, dma_fence_context_alloc(1), 1)
    sync_file = sync_file_create(fence)             # takes a reference of its own
    fd = get_unused_fd_flags(os.O_CLOEXEC)
    fd_install(fd, sync_file.file)                  # fd can be polled and sent to any process
    dma_fence_signal(fence)
    dma_fence_put(fence)

``docs/sync-file-guide.md`` walks the whole guide.

Conventions
  What returns an int in C returns an int here: 0 or more, or a negative errno.  What returns NULL returns None.  ``last_error()`` is then
  the exception behind it, with the broker's own words.
  What is a bug of the program raises: TypeError and ValueError for arguments, ReferenceError for a reference that is not there,
  PermissionError for signalling what somebody else issued.  What the kernel reports by WARN() is a RuntimeWarning.
  References are explicit, as in C: who gets one, puts it.  ``references()`` counts what is outstanding.
  Everything may be called from any thread.  A forked child starts over: contexts, callbacks and reserved numbers stay the parent's, fences
  that came by a descriptor go on working.

The process has one connection, made when first needed as ``fencebroker.connect()`` makes it.  It ends with the process, or by ``shutdown()``.
"""

from __future__ import annotations

import atexit
import errno

from fencebroker.kernel.callbacks import dma_fence_add_callback, dma_fence_enable_sw_signaling, dma_fence_remove_callback
from fencebroker.kernel.context import (
    close_contexts,
    dma_fence_context_alloc,
    dma_fence_context_free,
    dma_fence_get_stub,
    dma_fence_init,
)
from fencebroker.kernel.fence import (
    dma_fence_check_and_signal,
    dma_fence_driver_name,
    dma_fence_get,
    dma_fence_get_status,
    dma_fence_is_later,
    dma_fence_is_later_or_same,
    dma_fence_is_signaled,
    dma_fence_later,
    dma_fence_put,
    dma_fence_set_deadline,
    dma_fence_set_error,
    dma_fence_signal,
    dma_fence_signal_locked,
    dma_fence_timeline_name,
)
from fencebroker.kernel.file import (
    POLL_ENABLED,
    fd_install,
    file,
    fput,
    get_file,
    sync_file,
    sync_file_create,
    sync_file_fdget,
    sync_file_get_fence,
    sync_file_get_name,
    sync_file_poll,
)
from fencebroker.kernel.imported import stop_watching
from fencebroker.kernel.merge import (
    dma_fence_unwrap_merge,
    sync_file_ioctl_merge,
    sync_file_ioctl_set_deadline,
    sync_file_merge,
    sync_merge_data,
    sync_set_deadline,
)
from fencebroker.kernel.numbers import close_reserved, get_unused_fd_flags, put_unused_fd
from fencebroker.kernel.process import process
from fencebroker.kernel.structs import dma_fence, dma_fence_cb, dma_fence_ops
from fencebroker.kernel.waiting import (
    ERESTARTSYS,
    HZ,
    MAX_SCHEDULE_TIMEOUT,
    dma_fence_wait,
    dma_fence_wait_any_timeout,
    dma_fence_wait_timeout,
)

__all__ = [
    "ERESTARTSYS",
    "HZ",
    "MAX_SCHEDULE_TIMEOUT",
    "POLL_ENABLED",
    "dma_fence",
    "dma_fence_add_callback",
    "dma_fence_cb",
    "dma_fence_check_and_signal",
    "dma_fence_context_alloc",
    "dma_fence_context_free",
    "dma_fence_driver_name",
    "dma_fence_enable_sw_signaling",
    "dma_fence_get",
    "dma_fence_get_status",
    "dma_fence_get_stub",
    "dma_fence_init",
    "dma_fence_is_later",
    "dma_fence_is_later_or_same",
    "dma_fence_is_signaled",
    "dma_fence_later",
    "dma_fence_ops",
    "dma_fence_put",
    "dma_fence_remove_callback",
    "dma_fence_set_deadline",
    "dma_fence_set_error",
    "dma_fence_signal",
    "dma_fence_signal_locked",
    "dma_fence_timeline_name",
    "dma_fence_unwrap_merge",
    "dma_fence_wait",
    "dma_fence_wait_any_timeout",
    "dma_fence_wait_timeout",
    "fd_install",
    "file",
    "fput",
    "get_file",
    "get_unused_fd_flags",
    "last_error",
    "put_unused_fd",
    "references",
    "shutdown",
    "sync_file",
    "sync_file_create",
    "sync_file_fdget",
    "sync_file_get_fence",
    "sync_file_get_name",
    "sync_file_ioctl_merge",
    "sync_file_ioctl_set_deadline",
    "sync_file_merge",
    "sync_file_poll",
    "sync_merge_data",
    "sync_set_deadline",
]


def last_error() -> Exception | None:
    """Return why a function last returned None or a negative errno in this thread; None if none did."""
    return process.last_error


def references() -> dict[str, int]:
    """Return the references that are outstanding, without zeros: of fences (``dma_fence``), of files (``file``), reserved numbers (``fd``).

    A file counts until it is put or, installed, until its fence has signalled; it has a reference on its fence.
    """
    with process.lock:
        return {kind: count for kind, count in process.references.items() if count}


def shutdown() -> None:
    """End what a driver has in this process, as when a module is unloaded; whatever is called next starts over.

    Active fences of its contexts fail with -ENOENT, here and wherever a descriptor carries them.  Fences from elsewhere with callbacks fail
    with -ECANCELED in this process only.  Reserved numbers are given back.  References stay whose they are.
    """
    close_contexts(-errno.ENOENT)
    stop_watching(cancel=True)
    close_reserved()
    process.close()


def _at_exit() -> None:
    """Close what would otherwise be closed by the end of the process; nobody is called any more."""
    stop_watching(cancel=False)
    close_contexts(None)
    process.close()


atexit.register(_at_exit)
