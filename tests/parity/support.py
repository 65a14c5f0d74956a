"""Questions that many rows ask."""

from __future__ import annotations

import contextlib
import os
import resource
import select
from typing import TYPE_CHECKING, Any

import pytest

from fencebroker import libsync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fails", "full_table", "poll", "status"]


def fails(error: int, call: Callable[..., object], *args: Any) -> None:
    """Check that a call raises OSError with exactly this errno, and leaves no descriptor behind."""
    before = _numbers()
    with pytest.raises(OSError, match=rf"\[Errno {error}\]") as caught:
        call(*args)
    assert caught.value.errno == error, caught.value
    assert _numbers() == before


def _numbers() -> list[str] | None:
    try:
        return os.listdir("/proc/self/fd")
    except OSError:  # the table is full, so nothing can be left behind
        return None


def status(fd: int) -> int:
    """The status as FILE_INFO has it."""
    return libsync.sync_file_info(fd).status


def poll(fd: int, events: int = select.POLLIN) -> int:
    """What a poll of ``fd`` says at once."""
    poller = select.poll()
    poller.register(fd, events)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


@contextlib.contextmanager
def full_table() -> Iterator[None]:
    """No descriptor can be made in this process meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
