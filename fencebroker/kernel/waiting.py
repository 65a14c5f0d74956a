"""Waiting for fences.  A timeout is in jiffies, with HZ = 1000: in milliseconds.

A fence of this process is waited for by a callback that makes an eventfd readable, one from elsewhere by its own descriptor, so that no
thread stands between the one who signals and the one who waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import time
from collections.abc import Sequence
from typing import Final

from fencebroker.fds import OwnedFd, new_fence_eventfd, status_word, write_status
from fencebroker.kernel.callbacks import dma_fence_add_callback, dma_fence_remove_callback
from fencebroker.kernel.fence import dma_fence_get, dma_fence_is_signaled, dma_fence_put
from fencebroker.kernel.imported import Import
from fencebroker.kernel.process import process
from fencebroker.kernel.structs import dma_fence, dma_fence_cb, expect, live
from fencebroker.model import OK

__all__ = ["ERESTARTSYS", "HZ", "MAX_SCHEDULE_TIMEOUT", "dma_fence_wait", "dma_fence_wait_any_timeout", "dma_fence_wait_timeout"]

HZ: Final = 1000
MAX_SCHEDULE_TIMEOUT: Final = 2**63 - 1
#: The kernel's own number for a wait that a signal interrupted; it is in no header for programs.
ERESTARTSYS: Final = 512

_NS: Final = 1_000_000_000 // HZ
_LONGEST: Final = 2**31 - 1  # what poll() takes


def dma_fence_wait(fence: dma_fence, intr: bool) -> int:
    """Wait until ``fence`` signals: 0, or -ERESTARTSYS.  Its error is not returned; ``dma_fence_get_status()`` has it."""
    return min(0, dma_fence_wait_timeout(fence, intr, MAX_SCHEDULE_TIMEOUT))


def dma_fence_wait_timeout(fence: dma_fence, intr: bool, timeout: int) -> int:
    """Wait until ``fence`` signals, for at most ``timeout`` jiffies (milliseconds), or MAX_SCHEDULE_TIMEOUT.

    Returns what is left of the time, at least 1; 0 when it is over; -EINVAL for a negative one; -ENOMEM without a descriptor to sleep on;
    -ERESTARTSYS when ``intr`` and a signal's handler ran in this thread meanwhile.  ``timeout`` 0 asks: 1 or 0.
    """
    live(fence)
    _check(intr, timeout)
    if timeout < 0:
        return -errno.EINVAL
    return _wait([fence], intr, timeout, [0])


def dma_fence_wait_any_timeout(
    fences: Sequence[dma_fence] | None, count: int, intr: bool, timeout: int, idx: list[int] | None = None
) -> int:
    """Wait until one of the first ``count`` fences signals.  Returns as ``dma_fence_wait_timeout()``; -EINVAL also without fences.

    ``idx[0]`` is set to the lowest index that has signalled, where the result is positive.
    """
    _check(intr, timeout)
    if type(count) is not int:
        raise TypeError(f"count must be an int, not {type(count).__name__}")
    if idx is not None and not expect(idx, list, "idx"):
        raise ValueError("idx must have an element, which is set to the index")
    if fences is None or not count or timeout < 0:
        return -errno.EINVAL
    if not 0 < count <= len(fences):
        raise ValueError(f"count must be between 1 and the number of fences, {len(fences)}, not {count}")
    listed = [live(fence, f"fences[{index}]") for index, fence in enumerate(fences[:count])]
    return _wait(listed, intr, timeout, [0] if idx is None else idx)


def _check(intr: object, timeout: object) -> None:
    if not isinstance(intr, bool):
        raise TypeError(f"intr must be a bool, not {type(intr).__name__}")
    if type(timeout) is not int:
        raise TypeError(f"timeout must be an int (jiffies, that is milliseconds, or MAX_SCHEDULE_TIMEOUT), not {type(timeout).__name__}")


def _wait(fences: list[dma_fence], intr: bool, timeout: int, idx: list[int]) -> int:
    end = None if timeout >= MAX_SCHEDULE_TIMEOUT else time.monotonic_ns() + timeout * _NS
    with contextlib.ExitStack() as undo:
        for fence in fences:  # a reference while we sleep: the descriptors must stay open
            dma_fence_get(fence)
            undo.callback(dma_fence_put, fence)
        if _find(fences, idx):
            return timeout or 1
        if not timeout:
            return 0
        sleeper = Sleeper(fences)
        undo.callback(sleeper.close)
        try:
            ready = sleeper.prepare()
        except OSError as err:
            process.fail(err)
            return -errno.ENOMEM
        while ready:
            if _find(fences, idx):
                return _left(end)
            if end is not None and time.monotonic_ns() >= end:
                return 0
            ready = sleeper.sleep(end, intr)
        return -ERESTARTSYS


def _find(fences: list[dma_fence], idx: list[int]) -> bool:
    for index, fence in enumerate(fences):
        if dma_fence_is_signaled(fence):
            idx[0] = index
            return True
    return False


def _left(end: int | None) -> int:
    return MAX_SCHEDULE_TIMEOUT if end is None else max(1, (end - time.monotonic_ns()) // _NS)


class _WaitCb(dma_fence_cb):
    def __init__(self, wake: OwnedFd) -> None:
        self.wake = wake


def _wake(_: dma_fence, cb: _WaitCb) -> None:
    write_status(cb.wake.fileno(), status_word(OK))


class Sleeper:
    """What one wait sleeps on."""

    def __init__(self, fences: list[dma_fence]) -> None:
        self._fences = fences
        self._callbacks: list[tuple[dma_fence, _WaitCb]] = []
        self._wake: OwnedFd | None = None
        self._events: dict[int, int] = {}

    def prepare(self) -> bool:
        """Register with every fence.  Always True; OSError when there is no descriptor for it."""
        for fence in self._fences:
            issuer = fence._issuer
            if isinstance(issuer, Import):
                self._events[issuer.number()] = select.POLLIN
                if issuer.line.hangup is not None:
                    self._events[issuer.line.hangup] = 0  # POLLHUP comes unasked
                continue
            if self._wake is None:
                self._wake = OwnedFd(new_fence_eventfd())
                self._events[self._wake.fileno()] = select.POLLIN
            cb = _WaitCb(self._wake)
            if dma_fence_add_callback(fence, cb, _wake) == 0:
                self._callbacks.append((fence, cb))
        return True

    def sleep(self, end: int | None, intr: bool) -> bool:
        """Sleep until something may have signalled, or the time is over.  False when a signal's handler ran."""
        timeout = -1 if end is None else max(0, min(-((time.monotonic_ns() - end) // 1_000_000), _LONGEST))
        if intr:
            if not _interruptible_poll(self._events, timeout):
                return False
        else:
            poller = select.poll()
            for number, events in self._events.items():
                poller.register(number, events)
            poller.poll(timeout)
        for fence in self._fences:
            if isinstance(fence._issuer, Import) and fence._issuer.line.is_lost:
                fence._issuer.lose(fence)
        return True

    def close(self) -> None:
        """Take the callbacks off, then close what they write to."""
        for fence, cb in self._callbacks:
            dma_fence_remove_callback(fence, cb)
        if self._wake is not None:
            self._wake.close()


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


_libc: Final = ctypes.CDLL(None, use_errno=True)


def _interruptible_poll(events: dict[int, int], timeout: int) -> bool:
    """poll() that returns when a signal comes, which Python's own does not (PEP 475).  False when one came."""
    wanted = (_PollFd * len(events))(*(_PollFd(number, mask, 0) for number, mask in events.items()))
    if _libc.poll(wanted, ctypes.c_ulong(len(events)), ctypes.c_int(timeout)) >= 0:
        return True
    error = ctypes.get_errno()
    if error != errno.EINTR:
        raise OSError(error, "poll()")
    return False
