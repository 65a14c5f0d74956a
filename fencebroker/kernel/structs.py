"""The structs: a fence, a driver's operations, a callback, and what stands behind a fence.

Nothing here talks to a broker.  What stands behind a fence is its *issuer*: a context of this process, or a descriptor that came from
elsewhere.
"""
# ruff: noqa: N801 - the names are the kernel's
# ruff: noqa: ARG002 - an issuer does nothing where a kind of fence needs nothing

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fencebroker.connection import generation
from fencebroker.kernel.process import process
from fencebroker.model import ACTIVE, OK

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fencebroker.sync_file import SyncFile

__all__ = ["NOBODY", "Issuer", "dma_fence", "dma_fence_cb", "dma_fence_ops", "done", "expect", "live", "set_up", "warn"]

T = TypeVar("T")


class Issuer:
    """What stands behind a fence.  Only ``watch`` and ``unwatch`` are called with the lock of the process held."""

    #: True where this process may signal the fence.
    is_ours = False
    #: References that nobody may put.
    own_references = 0
    driver_name = ""
    timeline_name = ""

    def look(self, fence: dma_fence) -> None:
        """Complete ``fence`` if it has signalled elsewhere and this process has not noticed yet."""

    def watch(self, fence: dma_fence) -> None:
        """Somebody waits by callback: see to it that ``fence`` is completed when it signals.  OSError if that is not possible."""

    def unwatch(self, fence: dma_fence) -> None:
        """Nobody waits by callback any more."""

    def signalled(self, fence: dma_fence) -> int:
        """``fence`` has just signalled: tell others.  Returns 0 or a negative errno."""
        return 0

    def settle(self, fence: dma_fence) -> None:
        """The callbacks have run, or the last was taken off: put the references that were kept until then."""

    def released(self, fence: dma_fence) -> None:
        """The last reference was put."""

    def keep(self, fence: dma_fence, put: Callable[[], None]) -> bool:
        """A descriptor carries ``fence`` from now on: call ``put`` when it has signalled.  False if the descriptor needs no reference here."""
        return False

    def export(self, fence: dma_fence, name: str = "") -> SyncFile:
        """Make a sync_file for ``fence``; raises what the library raises."""
        raise NotImplementedError

    def timestamp(self, fence: dma_fence) -> int:
        """When ``fence`` signalled; 0 if nobody knows."""
        return 0

    def names(self) -> tuple[str, str]:
        """Driver and timeline."""
        return self.driver_name, self.timeline_name

    def set_deadline(self, fence: dma_fence, deadline: int) -> None:
        """Pass the hint on."""


NOBODY: Final = Issuer()


@dataclass(frozen=True, slots=True)
class dma_fence_ops:
    """A driver's operations; each may be left out.  Without names, a fence has those of its context.

    ``enable_signaling`` returns False for a fence that has passed already.  Here it is called with no lock held, at the first callback or
    wait, and when a sync_file is created: who polls a descriptor in another process cannot be seen.
    """

    get_driver_name: Callable[[Any], str] | None = None
    get_timeline_name: Callable[[Any], str] | None = None
    enable_signaling: Callable[[Any], bool] | None = None
    signaled: Callable[[Any], bool] | None = None
    release: Callable[[Any], None] | None = None
    set_deadline: Callable[[Any, int], None] | None = None


class dma_fence_cb:
    """One registration of a callback; on one fence at a time.  A subclass carries what its function needs."""

    func: Callable[[Any, Any], object] | None = None
    _fence: dma_fence | None = None  # it waits there
    _runner: int | None = None  # the thread that took it off to call it


class dma_fence:
    """A condition that happens once.  ``dma_fence_init()`` gives it a context and a seqno, and one reference that the caller owns.

    ``error`` is what ``dma_fence_set_error()`` stored; what counts is ``dma_fence_get_status()``.
    """

    # Defaults of the class, so that a subclass with its own __init__ need not call this one.
    context: int = 0
    seqno: int = 0
    error: int = 0
    refcount: int = 0
    ops: dma_fence_ops = dma_fence_ops()
    lock: AbstractContextManager[Any] | None = None
    _state: int = ACTIVE
    _timestamp: int = 0
    _enabled: bool = False
    _gone: bool = True
    _callbacks: list[dma_fence_cb]
    _issuer: Issuer = NOBODY
    _generation: int = -1

    @property
    def timestamp(self) -> int:
        """When it signalled, in ns of CLOCK_MONOTONIC; 0 while active, and where the broker has forgotten it."""
        if self._state and not self._timestamp:
            self._timestamp = self._issuer.timestamp(self)
        return self._timestamp

    def __repr__(self) -> str:
        if self._gone:
            return "<dma_fence without a reference>"
        word = {ACTIVE: "unsignalled", OK: "signalled"}.get(self._state) or errno.errorcode.get(-self._state, str(self._state))
        return f"<dma_fence {self.context}:{self.seqno} {word}>"


def set_up(fence: dma_fence, ops: dma_fence_ops, lock: AbstractContextManager[Any] | None, point: tuple[int, int], issuer: Issuer) -> None:
    """Make ``fence`` live, with one reference."""
    fence.context, fence.seqno = point
    fence.ops = ops
    fence.lock = lock
    fence.error = 0
    fence._state = ACTIVE
    fence._timestamp = 0
    fence._enabled = False
    fence._callbacks = []
    fence._issuer = issuer
    fence._generation = generation()
    fence._gone = False
    fence.refcount = 1
    process.references["dma_fence"] += 1


def expect(value: object, kind: type[T], argument: str) -> T:
    """Return ``value`` if it is a ``kind``; TypeError names the argument."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def live(fence: object, argument: str = "fence") -> dma_fence:
    """Return a fence that may be used; ReferenceError for one whose last reference was put, or that never had one."""
    if not isinstance(fence, dma_fence):
        raise TypeError(f"{argument} must be a dma_fence, not {type(fence).__name__}")
    if fence._gone:
        raise ReferenceError(f"{argument} has no reference: dma_fence_init() was not called, or the last one was put")
    if fence._generation != generation() and fence._issuer.is_ours and not fence._state:
        raise RuntimeError(f"{argument} was made before fork() and is the parent's to signal; pass a sync_file to this process instead")
    return fence


def done(fence: dma_fence) -> bool:
    """Say whether ``fence`` has signalled as far as this process noticed."""
    return fence._state != ACTIVE


def warn(text: str) -> None:
    """What the kernel reports by WARN()."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
