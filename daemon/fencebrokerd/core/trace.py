"""Events as lines for subscribers, with the kernel's trace names where there is one (include/trace/events/dma_fence.h).  Pure.

A line is rendered before its event is folded in, while what it speaks of still exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fencebrokerd.core import events as e

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fencebrokerd.core.fence import Fence
    from fencebrokerd.core.state import State
    from fencebrokerd.core.timeline import Timeline

__all__ = ["Line", "render"]


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


def render(state: State, event: e.Event, now: int) -> Iterator[Line]:
    """Yield the lines of ``event``; bookkeeping that no user asks about has none."""
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
            yield _timeline("dma_fence_init", timeline, now)._replace(seqno=event.seqno, status=event.status, uid=event.uid)
        case e.ArrayCreated():
            yield Line(event.uid, "dma_fence_init", now, event.context, 1, "unbound", "dma_fence_array", 0, 0, "")
        case e.PlaceholderCreated():
            yield Line(event.uid, "dma_fence_init", now, event.context, event.seqno, event.name, "placeholder", 0, 0, "")
        case e.SyncFileCreated():
            who = state.sessions[event.session]
            yield _fence("dma_fence_emit", state.fences[event.fence], now)._replace(pid=who.pid, comm=who.comm, uid=who.uid)
        case e.FenceSignalled():
            yield _fence("dma_fence_signaled", state.fences[event.fence], now)._replace(status=event.status)
        case e.FenceForgotten():
            yield _fence("dma_fence_destroy", state.fences[event.fence], now)


def _timeline(name: str, timeline: Timeline, now: int) -> Line:
    return Line(timeline.uid, name, now, timeline.context, timeline.value, timeline.label, timeline.driver, 0, timeline.pid, timeline.comm)


def _fence(name: str, fence: Fence, now: int) -> Line:
    driver, label = fence.names
    pid, comm = (0, "") if fence.timeline is None else (fence.timeline.pid, fence.timeline.comm)
    return Line(fence.uid, name, now, fence.context, fence.seqno, label, driver, fence.status, pid, comm)
