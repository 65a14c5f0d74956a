"""A fence's references, its one signal, its status and its place among others.  After ``drivers/dma-buf/dma-fence.c``."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Final, overload

from fencebroker.kernel.process import process
from fencebroker.kernel.structs import NOBODY, dma_fence, dma_fence_cb, expect, live, warn
from fencebroker.model import ACTIVE, MAX_ERRNO, OK

__all__ = [
    "complete",
    "dma_fence_check_and_signal",
    "dma_fence_driver_name",
    "dma_fence_get",
    "dma_fence_get_status",
    "dma_fence_is_later",
    "dma_fence_is_later_or_same",
    "dma_fence_is_signaled",
    "dma_fence_later",
    "dma_fence_put",
    "dma_fence_set_deadline",
    "dma_fence_set_error",
    "dma_fence_signal",
    "dma_fence_signal_locked",
    "dma_fence_timeline_name",
    "log",
]

log: Final = logging.getLogger("fencebroker.kernel")


# -- references


@overload
def dma_fence_get(fence: dma_fence) -> dma_fence: ...
@overload
def dma_fence_get(fence: None) -> None: ...
def dma_fence_get(fence: dma_fence | None) -> dma_fence | None:
    """Take a reference and return ``fence``; None gives None."""
    if fence is None:
        return None
    expect(fence, dma_fence, "fence")
    with process.lock:
        if fence.refcount < 1:
            raise ReferenceError("fence has no reference that another could be taken from")
        fence.refcount += 1
        process.references["dma_fence"] += 1
    return fence


def dma_fence_put(fence: dma_fence | None) -> None:
    """Put a reference.  The last one releases the fence; if it is still active then and has callbacks, it fails with -EDEADLK first."""
    if fence is None:
        return
    expect(fence, dma_fence, "fence")
    with process.lock:
        if fence.refcount <= fence._issuer.own_references:
            raise ReferenceError("fence has no reference to put: it was put once too often, or dma_fence_init() was not called")
        fence.refcount -= 1
        process.references["dma_fence"] -= 1
        if fence.refcount:
            return
        dangling = bool(fence._callbacks) and not fence._state
    try:
        if dangling:
            with fence.lock or contextlib.nullcontext():
                complete(fence, -errno.EDEADLK)
        if fence.ops.release is not None:
            fence.ops.release(fence)
    finally:
        fence._issuer.released(fence)
        fence._gone = True
        fence._issuer = NOBODY
    if dangling:
        warn(f"fence {fence.context}:{fence.seqno} was released with callbacks pending; it failed with EDEADLK so that they ran")


# -- the signal


def complete(fence: dma_fence, error: int | None = None) -> int:
    """Signal ``fence``, with ``error`` (a negative errno, or 0) in place of its own; what it has to do with rights was checked before.

    Others hear of it before the callbacks run.  Returns -EINVAL if it had signalled, or what its issuer says.
    """
    me = threading.get_ident()
    with process.lock:
        if fence._state:
            return -errno.EINVAL
        if error is not None:
            fence.error = error
        if fence._issuer.is_ours:
            fence._timestamp = time.monotonic_ns()
        fence._state = fence.error or OK
        callbacks, fence._callbacks = fence._callbacks, []
        for cb in callbacks:
            cb._fence, cb._runner = None, me
    result = fence._issuer.signalled(fence)
    try:
        _call(fence, callbacks)
    finally:
        fence._issuer.settle(fence)
    return result


def _call(fence: dma_fence, callbacks: list[dma_fence_cb]) -> None:
    """Call each once, first come first served.  One that raises does not keep the next from being called."""
    interrupt: BaseException | None = None
    for cb in callbacks:
        try:
            assert cb.func is not None
            cb.func(fence, cb)
        except Exception:
            log.exception("a callback of %r raised", fence)
        except BaseException as err:  # noqa: BLE001 - KeyboardInterrupt; it goes on when the others were called
            interrupt = err
        finally:
            with process.lock:
                if cb._runner == threading.get_ident():  # else it has been registered anew
                    cb._runner = None
                process.callback_done.notify_all()
    if interrupt is not None:
        raise interrupt


def dma_fence_signal(fence: dma_fence) -> int:
    """Signal ``fence`` and run its callbacks in this thread.  0; -EINVAL if it had signalled: the first signal counts.

    -EPIPE: this process sees it signalled, but the broker was gone before it heard of it, and has failed what others hold.
    """
    live(fence)
    with fence.lock or contextlib.nullcontext():
        return dma_fence_signal_locked(fence)


def dma_fence_signal_locked(fence: dma_fence) -> int:
    """Like ``dma_fence_signal()`` for a caller that holds the lock given to ``dma_fence_init()``."""
    _check_ours(live(fence), "signal")
    with _kept(fence):
        return complete(fence)


def dma_fence_check_and_signal(fence: dma_fence) -> bool:
    """Signal ``fence``; True if it had signalled before."""
    return dma_fence_signal(fence) == -errno.EINVAL


@contextlib.contextmanager
def _kept(fence: dma_fence) -> Iterator[None]:
    """A reference for the time in between: a callback may put the last other one."""
    dma_fence_get(fence)
    try:
        yield
    finally:
        dma_fence_put(fence)


def _check_ours(fence: dma_fence, verb: str) -> None:
    if not fence._issuer.is_ours and not fence._state:
        raise PermissionError(errno.EPERM, f"fence came from elsewhere: only its issuer may {verb} it")


def dma_fence_set_error(fence: dma_fence, error: int) -> None:
    """Say with which error (-1..-4095) ``fence`` is going to signal.  After the signal it does nothing but warn."""
    _check_ours(live(fence), "set an error on")
    if type(error) is not int:
        raise TypeError(f"error must be a negative errno (an int), not {type(error).__name__}")
    if not -MAX_ERRNO <= error < 0:
        raise ValueError(f"error must be a negative errno between -1 and -{MAX_ERRNO}, not {error}")
    with process.lock:
        signalled = fence._state != ACTIVE
        if not signalled:
            fence.error = error
    if signalled:
        warn(f"the error of fence {fence.context}:{fence.seqno} was set after it signalled, and is ignored")


def dma_fence_is_signaled(fence: dma_fence) -> bool:
    """Say whether ``fence`` has signalled, OK or not."""
    if live(fence)._state:
        return True
    fence._issuer.look(fence)
    if not fence._state and fence.ops.signaled is not None and fence.ops.signaled(fence):
        dma_fence_signal(fence)
    return fence._state != ACTIVE


def dma_fence_get_status(fence: dma_fence) -> int:
    """0 while active, 1 when signalled, a negative errno when signalled with an error."""
    dma_fence_is_signaled(fence)
    return fence._state


# -- order, names, deadlines


def dma_fence_is_later(f1: dma_fence, f2: dma_fence) -> bool:
    """Say whether ``f1`` comes after ``f2``.  Only within one context; else it warns and says False."""
    return _same_context(f1, f2) and f1.seqno > f2.seqno


def dma_fence_is_later_or_same(f1: dma_fence, f2: dma_fence) -> bool:
    """Say whether ``f1`` is ``f2`` or comes after it."""
    return f1 is f2 or (_same_context(f1, f2) and f1.seqno >= f2.seqno)


def dma_fence_later(f1: dma_fence, f2: dma_fence) -> dma_fence | None:
    """Return the later of two fences of one context, or None if that one has signalled.  No reference is taken."""
    if not _same_context(f1, f2):
        return None
    later = f1 if f1.seqno > f2.seqno else f2
    return None if dma_fence_is_signaled(later) else later


def _same_context(f1: dma_fence, f2: dma_fence) -> bool:
    if live(f1, "f1").context == live(f2, "f2").context:
        return True
    warnings.warn(f"fences of the contexts {f1.context} and {f2.context} have no order", RuntimeWarning, stacklevel=4)
    return False


def dma_fence_driver_name(fence: dma_fence) -> str:
    """Return the driver's name.  Unlike in the kernel it stays after the signal."""
    name = live(fence).ops.get_driver_name
    return fence._issuer.names()[0] if name is None else name(fence)


def dma_fence_timeline_name(fence: dma_fence) -> str:
    """Return the timeline's name.  Unlike in the kernel it stays after the signal."""
    name = live(fence).ops.get_timeline_name
    return fence._issuer.names()[1] if name is None else name(fence)


def dma_fence_set_deadline(fence: dma_fence, deadline: int) -> None:
    """Say by when (ns of CLOCK_MONOTONIC) the fence is wanted: a hint to its driver, never a timeout."""
    live(fence)
    if type(deadline) is not int:
        raise TypeError(f"deadline must be an int (ns of CLOCK_MONOTONIC), not {type(deadline).__name__}")
    if not 0 <= deadline < 2**63:
        raise ValueError(f"deadline must be between 0 and 2**63-1 ns, not {deadline}")
    if dma_fence_is_signaled(fence):
        return
    if fence.ops.set_deadline is not None:
        fence.ops.set_deadline(fence, deadline)
    fence._issuer.set_deadline(fence, deadline)
