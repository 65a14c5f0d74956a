"""Merging, and the requests of a sync_file's ``ioctl()``."""
# ruff: noqa: N801 - the names are the kernel's

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fencebroker import requests
from fencebroker.errors import NotASyncFile
from fencebroker.kernel.callbacks import dma_fence_enable_sw_signaling
from fencebroker.kernel.fence import dma_fence_get, dma_fence_is_signaled, dma_fence_put, dma_fence_set_deadline
from fencebroker.kernel.file import c_string, create, fd_install, file_of, sync_file, sync_file_get_fence
from fencebroker.kernel.imported import Import, made_of
from fencebroker.kernel.numbers import get_unused_fd_flags, put_unused_fd
from fencebroker.kernel.process import process
from fencebroker.kernel.structs import dma_fence, expect, live

if TYPE_CHECKING:
    from fencebroker.sync_file import SyncFile

__all__ = [
    "dma_fence_unwrap_merge",
    "sync_file_ioctl_merge",
    "sync_file_ioctl_set_deadline",
    "sync_file_merge",
    "sync_merge_data",
    "sync_set_deadline",
]


def dma_fence_unwrap_merge(*fences: dma_fence) -> dma_fence | None:
    """Return one fence that signals when all of ``fences`` have, with a reference that the caller owns; None if it cannot be had.

    Arrays are taken apart, of one context only the latest counts, and what has signalled is left out.  If one is left, that is the result.
    Unlike in the kernel, the error of a member that failed before is kept.
    """
    if not fences:
        raise ValueError("fences must not be empty: there is nothing to wait for")
    for index, fence in enumerate(fences):
        dma_fence_is_signaled(live(fence, f"fences[{index}]"))
    made: list[SyncFile] = []
    try:
        line = process.line()
        sources = []
        for fence in fences:
            issuer = fence._issuer
            if isinstance(issuer, Import):
                sources.append(issuer.sync_file)
            else:
                dma_fence_enable_sw_signaling(fence)
                made.append(issuer.export(fence))
                sources.append(made[-1])
        merged = made_of(requests.merge(line.connection, sources, "", False), line)
    except (OSError, NotASyncFile, ValueError) as err:
        process.fail(err)
        return None
    finally:
        for temporary in made:
            temporary.close()
    for fence in fences:
        if fence.context and (fence.context, fence.seqno) == (merged.context, merged.seqno):
            dma_fence_put(merged)
            return dma_fence_get(fence)
    return merged


def sync_file_merge(name: str, a: sync_file, b: sync_file) -> sync_file | None:
    """Return a new sync_file for the fences of both, which stay as they are; None if it cannot be had."""
    user_name = c_string(name, "name")
    file_of(a, "a")
    file_of(b, "b")
    fence = dma_fence_unwrap_merge(a.fence, b.fence)
    if fence is None:
        return None
    made = create(fence, user_name)
    dma_fence_put(fence)
    return made


@dataclass(slots=True)
class sync_merge_data:
    """Argument of ``sync_file_ioctl_merge()``: ``fence`` is set to the new descriptor; ``flags`` and ``pad`` must be 0."""

    name: str
    fd2: int
    fence: int = -1
    flags: int = 0
    pad: int = 0


@dataclass(slots=True)
class sync_set_deadline:
    """Argument of ``sync_file_ioctl_set_deadline()``: ns of CLOCK_MONOTONIC; ``pad`` must be 0."""

    deadline_ns: int
    pad: int = 0


def sync_file_ioctl_merge(sync_file: sync_file, arg: sync_merge_data) -> int:
    """SYNC_IOC_MERGE: install a sync_file for the fences of ``sync_file`` and of the descriptor ``arg.fd2``, close-on-exec.

    0, and ``arg.fence`` is the descriptor; in this order: -EMFILE, -EINVAL for flags or pad, -ENOENT if fd2 is no sync_file, -ENOMEM.
    Nothing stays open on failure.
    """
    file_of(sync_file)
    expect(arg, sync_merge_data, "arg")
    name = c_string(arg.name, "arg.name")
    fd = get_unused_fd_flags(os.O_CLOEXEC)
    if fd < 0:
        return fd
    error = -errno.EINVAL
    if not arg.flags and not arg.pad:
        error = _merge_into(fd, sync_file, name, arg)
    if error:
        put_unused_fd(fd)
    return error


def _merge_into(fd: int, sync_file: sync_file, name: str, arg: sync_merge_data) -> int:
    fence2 = sync_file_get_fence(arg.fd2)
    if fence2 is None:
        return -errno.ENOENT
    try:
        fence3 = dma_fence_unwrap_merge(sync_file.fence, fence2)
        if fence3 is None:
            return -errno.ENOMEM
        merged = create(fence3, name)
        dma_fence_put(fence3)
    finally:
        dma_fence_put(fence2)
    if merged is None:
        return -errno.ENOMEM
    fd_install(fd, merged.file)
    arg.fence = fd
    return 0


def sync_file_ioctl_set_deadline(sync_file: sync_file, arg: sync_set_deadline) -> int:
    """SYNC_IOC_SET_DEADLINE: 0, also where the hint changes nothing; -EINVAL for a pad."""
    file_of(sync_file)
    expect(arg, sync_set_deadline, "arg")
    if arg.pad:
        return -errno.EINVAL
    dma_fence_set_deadline(sync_file.fence, arg.deadline_ns)
    return 0
