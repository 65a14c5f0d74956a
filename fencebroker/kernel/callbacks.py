"""A fence's callbacks: registered, called once in the thread that signals, or taken off before."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

from fencebroker.kernel.fence import dma_fence_signal
from fencebroker.kernel.process import process
from fencebroker.kernel.structs import dma_fence, dma_fence_cb, done, expect, live

__all__ = ["dma_fence_add_callback", "dma_fence_enable_sw_signaling", "dma_fence_remove_callback", "drop_callbacks"]


def dma_fence_enable_sw_signaling(fence: dma_fence) -> None:
    """See to it that ``fence`` signals as soon as it can: its driver is asked once, and may say that it has passed."""
    with process.lock:
        first, live(fence)._enabled = not fence._enabled, True
    if not done(fence):
        fence._issuer.look(fence)
    if first and not done(fence) and fence.ops.enable_signaling is not None and not fence.ops.enable_signaling(fence):
        dma_fence_signal(fence)


def dma_fence_add_callback(fence: dma_fence | None, cb: dma_fence_cb, func: Callable[[Any, Any], object] | None) -> int:
    """Have ``func(fence, cb)`` called once when ``fence`` signals, in the thread that signals it.

    0; -ENOENT if it has signalled: ``func`` is not called then; -EINVAL without a fence or a function; -ENOMEM if a fence from elsewhere
    cannot be watched.  A function must not block: it holds up whoever signals.
    """
    if fence is None or func is None:
        return -errno.EINVAL
    live(fence)
    expect(cb, dma_fence_cb, "cb")
    if not callable(func):
        raise TypeError(f"func must be callable, not {type(func).__name__}")
    dma_fence_enable_sw_signaling(fence)
    with process.lock:
        if cb._fence is not None:
            raise ValueError("cb is registered already; each registration needs a dma_fence_cb of its own")
        if done(fence):
            return -errno.ENOENT
        try:
            fence._issuer.watch(fence)
        except OSError as err:
            process.fail(err)
            return -errno.ENOMEM
        cb.func = func
        cb._fence, cb._runner = fence, None
        fence._callbacks.append(cb)
    return 0


def dma_fence_remove_callback(fence: dma_fence, cb: dma_fence_cb) -> bool:
    """Take ``cb`` off before it is called: True.  False if it was called; it has returned then, unless this is the thread that is in it."""
    expect(fence, dma_fence, "fence")
    expect(cb, dma_fence_cb, "cb")
    with process.lock:
        if cb._fence is not fence:
            while cb._runner is not None and cb._runner != threading.get_ident():
                process.callback_done.wait()
            return False
        cb._fence = None
        fence._callbacks.remove(cb)
        if not fence._callbacks:
            fence._issuer.unwatch(fence)
    fence._issuer.settle(fence)
    return True


def drop_callbacks(fence: dma_fence) -> None:
    """In a forked child: the callbacks are the parent's to call."""
    for cb in fence._callbacks:
        cb._fence = None
    fence._callbacks.clear()
    fence._enabled = False
