"""Contexts: the timelines of this process, and the fences of their points.

A context of the kernel is a number.  Here it is a timeline of the broker too: when its descriptor is closed, by ``shutdown()`` or by death,
the broker fails its active fences with -ENOENT.  A fence is known to the broker from its first export on; until then it costs nothing.
"""
# ruff: noqa: ARG002 - an issuer has the same methods for every kind of fence

from __future__ import annotations

import errno
import os
import secrets
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fencebroker import requests
from fencebroker.errors import BrokerUnavailable
from fencebroker.fds import peek_status
from fencebroker.kernel.callbacks import drop_callbacks
from fencebroker.kernel.fence import complete, dma_fence_get
from fencebroker.kernel.process import Line, process
from fencebroker.kernel.structs import Issuer, dma_fence, dma_fence_ops, expect, set_up
from fencebroker.model import ACTIVE, U64_MAX, check_driver_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fencebroker.sync_file import SyncFile
    from fencebroker.timeline import Timeline

__all__ = ["close_contexts", "dma_fence_context_alloc", "dma_fence_context_free", "dma_fence_get_stub", "dma_fence_init"]

#: How often to try for contexts in a row while other processes take numbers in between.
_TRIES: Final = 64

_allocating = threading.Lock()


class Context(Issuer):
    """Issues the fences of one context."""

    is_ours = True

    def __init__(self, timeline: Timeline, line: Line, driver: str) -> None:
        self.number = timeline.context
        self.driver_name = driver
        self._timeline = timeline
        self._line = line.hold()
        #: Active fences by seqno, and what to call when each has signalled.  This keeps a fence that only its descriptor refers to.
        self._active: dict[int, dma_fence] = {}
        self._kept: dict[int, list[Callable[[], None]]] = {}
        self._exported: set[int] = set()

    def add(self, fence: dma_fence, seqno: int) -> None:
        """Note an active fence.  ValueError if the seqno has one."""
        if seqno in self._active:
            raise ValueError(f"seqno {seqno} of context {self.number} has an active fence already; seqnos only grow")
        self._active[seqno] = fence

    def signalled(self, fence: dma_fence) -> int:
        with process.lock:
            self._active.pop(fence.seqno, None)
            if fence.seqno not in self._exported:
                return 0
            self._exported.discard(fence.seqno)
        return self._tell(fence)

    def _tell(self, fence: dma_fence) -> int:
        try:
            self._timeline._signaller.signal(fence.seqno, -fence.error)
        except (OSError, ValueError) as err:  # the broker went away, or the context was given back
            process.fail(err)
            return -errno.EPIPE
        return 0

    def settle(self, fence: dma_fence) -> None:
        if fence._state:
            with process.lock:
                puts = self._kept.pop(fence.seqno, [])
            for put in puts:
                put()

    def released(self, fence: dma_fence) -> None:
        with process.lock:
            if self._active.get(fence.seqno) is fence:
                del self._active[fence.seqno]
                self._exported.discard(fence.seqno)

    def keep(self, fence: dma_fence, put: Callable[[], None]) -> bool:
        with process.lock:
            if fence._state:
                return False
            self._kept.setdefault(fence.seqno, []).append(put)
            return True

    def export(self, fence: dma_fence, name: str = "") -> SyncFile:
        with process.lock:
            if not fence._state:
                self._exported.add(fence.seqno)  # first, so that a signal from now on is told
        made = self._timeline.export(fence.seqno, name=name, private=True)
        try:
            if fence._state:
                self._insist(fence, made)
        except BaseException:
            made.close()
            raise
        return made

    def _insist(self, fence: dma_fence, made: SyncFile) -> None:
        """The fence signalled before the broker knew it, or has been forgotten there: signal it now, and wait until that shows."""
        number = made._number()
        if peek_status(number) != ACTIVE:
            return
        self._tell(fence)
        poller = select.poll()
        poller.register(number, select.POLLIN)
        hangup = self._line.hangup
        if hangup is not None:
            poller.register(hangup, 0)
        poller.poll()
        if peek_status(number) == ACTIVE:
            raise BrokerUnavailable("the broker went away before it signalled a sync_file")

    def names(self) -> tuple[str, str]:
        if not self.timeline_name:
            self.timeline_name = self._ask_name()
        return self.driver_name, self.timeline_name

    def _ask_name(self) -> str:
        """What the broker calls a timeline without a name: as its creator."""
        try:
            _, rows = self._line.connection.call(requests.listing("timelines", self.number - 1))
        except OSError as err:
            process.fail(err)
            rows = []
        return str(rows[0][8]) if rows and rows[0][0] == self.number else "unknown"

    def close(self, error: int | None) -> None:
        """Close the timeline.  With ``error``, active fences fail with it here too, lowest seqno first."""
        self._timeline.close()
        self._line.drop()
        if error is None:
            return
        with process.lock:
            active = [self._active[seqno] for seqno in sorted(self._active)]
        for fence in active:
            complete(fence, error)

    def after_fork(self) -> None:
        """In the child: callbacks are the parent's to call, and so are the references of its descriptors."""
        for fence in self._active.values():
            drop_callbacks(fence)
        self._kept.clear()


class Stub(Issuer):
    """Issues the fence that has always been signalled."""

    driver_name = timeline_name = "stub"
    own_references = 1

    def export(self, fence: dma_fence, name: str = "") -> SyncFile:
        # A merge of signalled points is a stub.  Point 0 of any timeline has signalled.
        broker = process.line().broker
        with broker._create(None, "stub", 0o600, None) as timeline, timeline.export(0) as point:
            return broker.merge([point], name=name)


_contexts: dict[int, Context] = {}


def dma_fence_context_alloc(num: int, *, driver: str = "fencebroker") -> int:
    """Allocate ``num`` contexts with consecutive numbers and return the first.  ``driver`` is what others see as the driver's name.

    In the kernel this cannot fail.  Here it raises what ``fencebroker.connect()`` and ``Broker.create_timeline()`` raise.
    """
    if type(num) is not int:
        raise TypeError(f"num must be an int, not {type(num).__name__}")
    if num < 1:
        raise ValueError(f"num must be at least 1, not {num}")
    check_driver_name(driver)
    line = process.line()
    with _allocating:
        made = _allocate(line, num, driver)
    with process.lock:
        stale = [_contexts[context.number] for context in made if context.number in _contexts]  # of a broker that went away
        _contexts.update((context.number, context) for context in made)
    _close(stale)
    return made[0].number


def _allocate(line: Line, num: int, driver: str) -> list[Context]:
    """Create contexts until ``num`` in a row are there.  The broker gives out one at a time, and other processes take some too."""
    made: list[Context] = []
    try:
        for attempt in range(_TRIES):
            while len(made) < num:
                timeline = line.broker._create(None, driver, 0o600, None)
                in_a_row = not made or timeline.context == made[-1].number + 1
                made.append(Context(timeline, line, driver))
                if not in_a_row:
                    break
            else:
                return made
            _close(made)
            # Another process does the same.  Two that start over in step would never be done.
            time.sleep(secrets.randbelow(1 << min(attempt, 6)) / 1000)
    except BaseException:
        _close(made)
        raise
    raise BlockingIOError(errno.EAGAIN, f"other processes took contexts in between; {num} in a row could not be had")


def _close(contexts: list[Context]) -> None:
    while contexts:
        contexts.pop().close(None)


def dma_fence_context_free(context: int, num: int = 1) -> None:
    """Give contexts back.  Their active fences fail with -ENOENT, here and wherever a descriptor carries them.

    The kernel has no such function: its contexts cost nothing.  Here each is a descriptor, at the broker too.
    """
    for value, argument in ((context, "context"), (num, "num")):
        if type(value) is not int:
            raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    with process.lock:
        missing = [number for number in range(context, context + num) if number not in _contexts]
        if missing:
            raise ValueError(f"context must be one from dma_fence_context_alloc(), not {missing[0]}")
        freed = [_contexts.pop(number) for number in range(context, context + num)]
    for each in freed:
        each.close(-errno.ENOENT)


def close_contexts(error: int | None) -> None:
    """Close every context; with ``error``, active fences fail with it."""
    with process.lock:
        contexts = list(_contexts.values())
        _contexts.clear()
    for context in contexts:
        context.close(error)


def dma_fence_init(fence: dma_fence, ops: dma_fence_ops, lock: AbstractContextManager[Any] | None, context: int, seqno: int) -> None:
    """Make ``fence`` a live fence of a point, with one reference, which the caller owns.

    ``context`` is one of ``dma_fence_context_alloc()``, ``seqno`` 1..2**64-1: a timeline starts at 0, so its point 0 has signalled already.
    ``lock`` may be None.  If it is a lock (``threading.Lock()``), ``dma_fence_signal()`` takes it, and callbacks run with it held, as in
    the kernel.
    """
    expect(fence, dma_fence, "fence")
    expect(ops, dma_fence_ops, "ops")
    if lock is not None and not (hasattr(lock, "__enter__") and hasattr(lock, "acquire")):
        raise TypeError(f"lock must be a lock such as threading.Lock(), or None, not {type(lock).__name__}")
    for value, argument in ((context, "context"), (seqno, "seqno")):
        if type(value) is not int:
            raise TypeError(f"{argument} must be an int, not {type(value).__name__}")
    if not 1 <= seqno <= U64_MAX:
        raise ValueError(f"seqno must be between 1 and 2**64-1, not {seqno}")
    with process.lock:
        if not fence._gone:
            raise ValueError("fence is live; a dma_fence is initialised once, and again only after its last reference was put")
        issuer = _contexts.get(context)
        if issuer is None:
            raise ValueError(f"context must be one from dma_fence_context_alloc() of this process, not {context}")
        issuer.add(fence, seqno)
        set_up(fence, ops, lock, (context, seqno), issuer)


_stub: dma_fence | None = None


def dma_fence_get_stub() -> dma_fence:
    """Return the fence that has always been signalled, with a reference that the caller owns.  Context 0, seqno 0."""
    global _stub  # noqa: PLW0603 - there is one
    with process.lock:
        if _stub is None:
            stub = dma_fence()
            set_up(stub, dma_fence_ops(), None, (0, 0), Stub())
            process.references["dma_fence"] -= 1  # the first reference is its own
            complete(stub)
            stub._timestamp = time.monotonic_ns()
            _stub = stub
        dma_fence_get(_stub)
        return _stub


def _after_fork_in_child() -> None:
    global _allocating  # noqa: PLW0603 - another thread of the parent may have held it
    _allocating = threading.Lock()
    for context in _contexts.values():
        context.after_fork()
    _contexts.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
