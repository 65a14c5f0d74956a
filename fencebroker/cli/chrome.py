"""Events -> the Trace Event Format, which Perfetto and chrome://tracing open.  Pure; no I/O and no clock.

What is shown
  Under each process that created timelines, one track per timeline.  Its slices lie between what happened: each lasts from the signal
  before (or from when there was something to wait for) until the moment at which its points signalled, and has their name.
  Under each process that asked for sync_files, a track of that; an arrow (flow) goes from each sync_file to the signal of its fence.
  A counter of active fences per timeline, and one for all.
Facts
  The slices of a track must not overlap, and an arrow ends in the slice that encloses its time: so no slice is shorter than a nanosecond,
  and the arrow ends one before the slice does.  Several events of one turn of the broker have one time: they become one slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

from fencebroker.cli.render import state
from fencebroker.model import Event, printable
from fencebroker.rows import FenceRow

__all__ = ["Record", "Recording"]

Record = dict[str, Any]

#: Numbers for tracks begin where the kernel's process ids end.
FIRST_TRACK: Final = 2**22 + 1
#: Processes whose number the broker does not know (those in another pid namespace), or does not tell.
UNKNOWN_PID: Final = 2**22
#: How long the asking for a sync_file is drawn, if nothing else comes in between.
DRAWN_NS: Final = 1000
#: So many points are named in one slice.
NAMED: Final = 1000


class Fence:
    """A fence that is on record: its name, and the arrows that will end at its signal."""

    __slots__ = ("asked_ns", "flows", "name", "seqno", "status", "track")

    def __init__(self, track: TimelineTrack, name: str, seqno: int, asked_ns: int | None) -> None:
        self.track = track
        self.name = name
        self.seqno = seqno
        self.asked_ns = asked_ns  # None: before the recording
        self.status = 0
        self.flows: list[int] = []


class Track:
    """A row of slices that do not overlap."""

    def __init__(self, write: Callable[[Record], None], pid: int, tid: int, name: str) -> None:
        self._write = write
        self.pid, self.tid, self.name = pid, tid, name
        self._drawn_until = 0
        write({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})

    def slice(self, name: str, begin: int, end: int, category: str, args: Record) -> tuple[int, int]:
        """Draw a slice, and return where it lies."""
        begin = max(begin, self._drawn_until)
        end = max(end, begin + 1)
        self._drawn_until = end
        self.put("X", name, begin, cat=category, dur=(end - begin) / 1000, args=args)
        return begin, end

    def put(self, phase: str, name: str, at: int, **more: Any) -> None:
        """Write a record of this track."""
        self._write({"ph": phase, "name": name, "pid": self.pid, "tid": self.tid, "ts": at / 1000, **more})


class TimelineTrack(Track):
    """The track of a timeline (or of merges, or of points whose timeline does not exist yet)."""

    def __init__(self, write: Callable[[Record], None], pid: int, tid: int, name: str) -> None:
        super().__init__(write, pid, tid, name)
        self.active: dict[tuple[int, int], Fence] = {}
        self._since: int | None = None  # when the slice that is not over began
        self._over: tuple[int, int, list[Fence]] | None = None  # it is drawn when its moment has passed
        self._counted: tuple[int, int] | None = None

    def add(self, key: tuple[int, int], fence: Fence, at: int) -> None:
        """A fence is active."""
        self.settle(at)
        if self._since is None:
            self._since = at
        self.active[key] = fence
        self._count(at)

    def remove(self, key: tuple[int, int], at: int, *, signalled: bool) -> None:
        """It is active no more."""
        fence = self.active.pop(key, None)
        if fence is None:
            return
        self.settle(at)
        if signalled:
            if self._over is None:
                self._over = (at if self._since is None else self._since, at, [])
            self._over[2].append(fence)
            self._since = at
        if not self.active:
            self._since = None
        self._count(at)

    def _count(self, at: int) -> None:
        self._counted = (at, len(self.active))

    def settle(self, at: int) -> None:
        """Draw what was over before this moment."""
        if self._counted is not None and self._counted[0] != at:
            self.put("C", f"{self.name}: active", self._counted[0], args={"active": self._counted[1]})
            self._counted = None
        if self._over is None or self._over[1] == at:
            return
        begin, end, fences = self._over
        self._over = None
        _, end = self.slice(_names(fences), begin, end, "signal", {"points": [_point(fence, end) for fence in fences[:NAMED]]})
        for fence in fences:
            for flow in fence.flows:
                self.put("f", "fence", end - 1, cat="fence", id=flow, bp="e")

    def finish(self, at: int) -> None:
        """Draw everything; the slice that is not over ends here."""
        self.settle(-1)
        if self.active and self._since is not None:
            fences = list(self.active.values())
            self.slice(f"{_names(fences)} active", self._since, at, "active", {"points": [_point(fence, at) for fence in fences[:NAMED]]})
        self.active.clear()
        self._since = None


class ProcessTrack(Track):
    """The sync_files that a process asked for."""

    def __init__(self, write: Callable[[Record], None], pid: int, tid: int, name: str) -> None:
        super().__init__(write, pid, tid, name)
        self._pending: tuple[int, list[Fence], list[int]] | None = None

    def add(self, fence: Fence, flow: int, at: int) -> None:
        """It got one for a fence."""
        self.settle(at)
        if self._pending is None:
            self._pending = (at, [], [])
        self._pending[1].append(fence)
        self._pending[2].append(flow)

    def settle(self, at: int) -> None:
        """Draw what happened before this moment."""
        if self._pending is None or self._pending[0] == at:
            return
        begin, fences, flows = self._pending
        self._pending = None
        end = begin + DRAWN_NS if at < 0 else min(begin + DRAWN_NS, at)
        begin, _ = self.slice(_names(fences), begin, end, "export", {"points": [fence.name for fence in fences[:NAMED]]})
        for flow in flows:
            self.put("s", "fence", begin, cat="fence", id=flow)


def _names(fences: list[Fence]) -> str:
    return fences[0].name if len(fences) == 1 else f"{fences[0].name} ... {fences[-1].name}"


def _point(fence: Fence, at: int) -> Record:
    since = None if fence.asked_ns is None else round((at - fence.asked_ns) / 1000, 3)
    return {"point": fence.name, "status": fence.status, "state": state(fence.status), "us": since}


class Recording:
    """Owns what is known of tracks and fences; ``write`` gets each record once it is settled."""

    def __init__(self, write: Callable[[Record], None]) -> None:
        self._write = write
        self._tids = itertools.count(FIRST_TRACK)
        self._flows = itertools.count(1)
        self._timelines: dict[tuple[str, int | str], TimelineTrack] = {}
        self._processes: dict[int, ProcessTrack] = {}
        self._named: set[int] = set()
        self._fences: dict[tuple[int, int], Fence] = {}
        self._points: dict[tuple[str, int], Fence] = {}
        self._n_active = 0
        self._total: tuple[int, int] | None = None
        self.n_events = self.n_fences = self.n_signalled = self.n_lost = 0

    # -- what comes in

    def event(self, event: Event) -> None:
        """Take an event."""
        self.n_events += 1
        at, key = event.time_ns, (event.context, event.seqno)
        match event.name:
            case "dma_fence_init":
                self.n_fences += 1
                self._born(self._track_of(event), event, at)
            case "dma_fence_emit":
                self._asked(event, at)
            case "dma_fence_signaled":
                self._signalled(key, event.status, at)
            case "dma_fence_destroy":
                self._destroyed(key, event, at)
            case "timeline_create" | "timeline_destroy":
                self._track_of(event).put("i", event.name.removeprefix("timeline_"), at, s="t", cat="timeline")
            case "dma_fence_wait_start" | "dma_fence_wait_end":
                phase = "b" if event.name.endswith("start") else "e"
                self._process(event.pid, event.comm).put(
                    phase, "wait", at, cat="wait", id=f"{event.pid}:{event.context}:{event.seqno}", args={"point": _name_of(event)}
                )

    def active(self, row: FenceRow, now: int) -> None:
        """Take a fence that was active already."""
        key = (row.context, row.seqno)
        if key in self._fences:
            return
        pid, comm = (0, "") if row.owner is None else (row.owner.pid, row.owner.comm)
        driver = "dma_fence_array" if row.kind in ("all", "any") else row.driver_name
        label = row.timeline or row.obj_name
        event = Event("", now, row.context, row.seqno, label, driver, 0, pid, row.uid, comm)
        self.n_fences += 1
        self._born(self._track_of(event), event, None)

    def lost(self, n: int, at: int) -> None:
        """So many events were lost before this moment: what was thought to be active may not be."""
        self.n_lost += n
        self._write(
            {"ph": "i", "s": "g", "cat": "lost", "name": f"{n} events were lost", "ts": at / 1000, "pid": 0, "tid": 0, "args": {"lost": n}}
        )
        for track in self._timelines.values():
            track.finish(at)
        self._fences.clear()
        self._points.clear()
        self._change(-self._n_active, at)

    def finish(self, now: int) -> None:
        """Write what is not over yet, and the counts."""
        for timeline in self._timelines.values():
            timeline.finish(now)
        for process in self._processes.values():
            process.settle(-1)
        self._change(0, -1)
        counts = {"events": self.n_events, "fences": self.n_fences, "signalled": self.n_signalled, "lost": self.n_lost}
        self._write({"ph": "i", "s": "g", "cat": "end", "name": "end of recording", "ts": now / 1000, "pid": 0, "tid": 0, "args": counts})

    # -- fences

    def _born(self, track: TimelineTrack, event: Event, at: int | None) -> None:
        fence = Fence(track, _name_of(event), event.seqno, at)
        key = (event.context, event.seqno)
        self._fences[key] = fence
        if event.driver not in ("placeholder", "dma_fence_array"):
            self._points[event.timeline, event.seqno] = fence
        track.add(key, fence, event.time_ns)
        self._change(1, event.time_ns)

    def _asked(self, event: Event, at: int) -> None:
        fence = self._fences.get((event.context, event.seqno))
        if fence is None:  # signalled before the recording began
            fence = Fence(self._track_of(event), _name_of(event), event.seqno, None)
        flow = next(self._flows)
        fence.flows.append(flow)
        self._process(event.pid, event.comm).add(fence, flow, at)

    def _signalled(self, key: tuple[int, int], status: int, at: int) -> None:
        fence = self._fences.get(key)
        if fence is not None and not fence.status:
            fence.status = status
            self.n_signalled += 1
            fence.track.remove(key, at, signalled=True)
            self._change(-1, at)

    def _destroyed(self, key: tuple[int, int], event: Event, at: int) -> None:
        fence = self._fences.pop(key, None)
        if fence is None:
            return
        if not fence.status:
            fence.track.remove(key, at, signalled=False)
            self._change(-1, at)
        if event.driver == "placeholder":
            # Its timeline has come, and what waits for it waits for the timeline's own point now.
            point = self._points.get((event.timeline, event.seqno))
            if point is not None:
                point.flows += fence.flows
        elif self._points.get((event.timeline, event.seqno)) is fence:
            del self._points[event.timeline, event.seqno]

    def _change(self, by: int, at: int) -> None:
        if self._total is not None and self._total[0] != at:
            then, n = self._total
            self._write({"ph": "C", "name": "active fences", "ts": then / 1000, "pid": 0, "tid": 0, "args": {"active": n}})
        self._n_active += by
        self._total = (at, self._n_active)

    # -- tracks

    def _track_of(self, event: Event) -> TimelineTrack:
        label = printable(event.timeline)
        key: tuple[str, int | str]
        match event.driver:
            case "dma_fence_array":
                name, key = "merges", ("merges", event.pid)
            case "placeholder":
                name, key = f"{label} (no timeline)", ("placeholder", event.timeline)
            case _:
                name, key = label, ("timeline", event.context)
        track = self._timelines.get(key)
        if track is None:
            track = self._timelines[key] = TimelineTrack(self._write, self._pid(event.pid, event.comm), next(self._tids), name)
        return track

    def _process(self, pid: int, comm: str) -> ProcessTrack:
        pid = self._pid(pid, comm)
        track = self._processes.get(pid)
        if track is None:
            track = self._processes[pid] = ProcessTrack(self._write, pid, pid, "sync_files")
        return track

    def _pid(self, pid: int, comm: str) -> int:
        if not pid:
            pid, comm = UNKNOWN_PID, "unknown process"
        if pid not in self._named:
            self._named.add(pid)
            self._write({"ph": "M", "name": "process_name", "pid": pid, "tid": pid, "args": {"name": printable(comm) or str(pid)}})
        return pid


def _name_of(event: Event) -> str:
    if event.driver == "dma_fence_array":
        return f"merge {event.context}:{event.seqno}"
    return f"{printable(event.timeline)}@{event.seqno}"
