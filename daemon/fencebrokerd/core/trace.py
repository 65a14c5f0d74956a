"""Events as lines for subscribers, with the kernel's trace names where there is one (include/trace/events/dma_fence.h).  Pure.

A line is rendered before its event is folded in, while what it speaks of still exists.  Every fence has one ``dma_fence_init`` and one
``dma_fence_destroy``, and at most one ``dma_fence_signaled`` between them.
Two lines stand for no change of state: ``dma_fence_wait_start`` and ``dma_fence_wait_end`` are what a client says of itself, for a poll() of a
descriptor cannot be seen.  ``dma_fence_enable_signal`` has no meaning here: every fence signals without being asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fencebrokerd.core import events as e

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fencebrokerd.core.fence import Fence
    from fencebrokerd.core.state import Session, State
    from fencebrokerd.core.timeline import Timeline

__all__ = ["Line", "render", "wait"]


class Line(NamedTuple):
    """One rendered event; ``uid`` is whose object it is, the rest is documented in docs/protocol.md."""

    uid: int
    name: str
    time: int
    context: int
    seqno: int
    timeline: str
    driver: str
    status: int
    pid: int
    comm: str


def render(state: State, event: e.Event, now: int, asker: Session) -> Iterator[Line]:
    """Yield the lines of ``event``; bookkeeping that no user asks about has none.

    ``asker`` is the session whose request is in hand: it makes the fences that have no timeline.
    """
    match event:
        case e.TimelineCreated():
            who = state.sessions[event.session]
            yield Line(who.uid, "timeline_create", now, event.context, 0, event.name or who.comm, event.driver, 0, who.pid, who.comm)
        case e.TimelineClosed():
            yield _timeline("timeline_destroy", state.timelines[event.context], now)
        case e.TimelineAdvanced():
            # As in the kernel, sync_timeline shows the value before it changes.
            yield _timeline("sync_timeline", state.timelines[event.context], now)
        case e.FenceCreated():
            timeline = state.timelines[event.context]
            yield from _born(_timeline("", timeline, now)._replace(seqno=event.seqno, uid=event.uid), event.status)
        case e.StubCreated():
            driver, label = ("detached-driver", "signaled-timeline") if event.detached else ("stub", "stub")
            yield from _born(Line(event.uid, "", now, 0, 0, label, driver, 0, asker.pid, asker.comm), event.status)
        case e.ArrayCreated():
            yield Line(event.uid, "dma_fence_init", now, event.context, 1, "unbound", "dma_fence_array", 0, asker.pid, asker.comm)
        case e.PlaceholderCreated():
            yield Line(event.uid, "dma_fence_init", now, event.context, event.seqno, event.name, "placeholder", 0, asker.pid, asker.comm)
        case e.PlaceholderBound():
            yield _fence("dma_fence_destroy", state.fences[event.fence], now)
        case e.SyncFileCreated():
            who = state.sessions[event.session]
            yield _fence("dma_fence_emit", state.fences[event.fence], now)._replace(pid=who.pid, comm=who.comm, uid=who.uid)
        case e.FenceSignalled():
            yield _fence("dma_fence_signaled", state.fences[event.fence], now)._replace(status=event.status)
        case e.FenceForgotten():
            yield _fence("dma_fence_destroy", state.fences[event.fence], now)


def wait(ends: bool, fence: Fence, session: Session, now: int) -> Line:
    """A client begins, or ends, to sleep until ``fence`` signals."""
    return _fence("dma_fence_wait_end" if ends else "dma_fence_wait_start", fence, now)._replace(
        pid=session.pid, comm=session.comm, uid=session.uid
    )


def _born(line: Line, status: int) -> Iterator[Line]:
    yield line._replace(name="dma_fence_init")
    if status:
        yield line._replace(name="dma_fence_signaled", status=status)


def _timeline(name: str, timeline: Timeline, now: int) -> Line:
    return Line(timeline.uid, name, now, timeline.context, timeline.value, timeline.label, timeline.driver, 0, timeline.pid, timeline.comm)


def _fence(name: str, fence: Fence, now: int) -> Line:
    driver, label = fence.names
    # Who has to signal it; where that is nobody in particular, who asked for it.
    who = fence.timeline or next(iter(fence.sync_files.values()), None)
    pid, comm = (0, "") if who is None else (who.pid, who.comm)
    return Line(fence.uid, name, now, fence.context, fence.shown_seqno, label, driver, fence.status, pid, comm)
