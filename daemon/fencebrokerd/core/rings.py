"""The signal rings: who gets one, which of them a request has to be read first for, and when their producers must ring the doorbell.

What is in a ring has happened; the broker only does not know it yet.  So whatever reads or decides something about a timeline is preceded by
the draining of its ring (``concerned``, ``expiring``), and a point for which somebody waits whom the producer cannot wake itself is *awaited*:
the producer rings when it passes the lowest of them.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from fencebroker import ring, wire
from fencebroker.errors import Refusal
from fencebroker.model import parse_point
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core import signalling
from fencebrokerd.core.fence import Array, Fence
from fencebrokerd.core.minting import find_timeline

if TYPE_CHECKING:
    from fencebrokerd.core.state import State
    from fencebrokerd.core.timeline import Ring, Timeline
    from fencebrokerd.core.turn import Turn

__all__ = ["concerned", "drain", "expiring", "lowest_awaited", "open_ring"]

#: Requests that name a timeline by its context, and those that show what can depend on any of them.
_BY_CONTEXT: Final = frozenset({wire.EXPORT, wire.RING, wire.FORGET_TIMELINE, wire.HISTORY})
_OF_ALL: Final = frozenset(
    {wire.LIST, wire.LOOKUP, wire.STATUS, wire.SUBSCRIBE, wire.OPEN_TIMELINE, wire.SHOW_TIMELINE, wire.QUOTAS, wire.CHMOD}
)


def open_ring(turn: Turn, context: int, holder: int) -> None:
    """Give a timeline's creator a ring, as long as nobody else may signal."""
    timeline = turn.state.timelines.get(context)
    if timeline is None or turn.session.id not in timeline.minters:
        raise Refusal(errno.EBADF, f"context {context} is not a timeline of this session; create it first")
    if timeline.creator != turn.session.id or timeline.ring is not None or len(timeline.sockets) != 1:
        raise Refusal(errno.EBUSY, f"context {context} has a ring already, or others may signal it too; go on with packets")
    turn.check_ring()
    socket = next(iter(timeline.sockets))
    turn.emit(e.RingOpened(context, socket, holder))
    turn.do(fx.CreateRing(turn.session.id, turn.serial, socket))
    turn.answer(ring.RING_BYTES, ring=socket)


def drain(turn: Turn, timeline: Timeline, entries: Sequence[ring.Entry], now: int) -> None:
    """Decide what was committed, each entry at its own time."""
    known = timeline.ring
    assert known is not None
    for entry in entries:
        turn.now = entry.at
        if entry.op == ring.ADVANCE:
            signalling.advance(turn, timeline, entry.number)
        elif entry.op == ring.INC:
            signalling.inc(turn, timeline, entry.number)
        elif entry.op == ring.FAIL:
            signalling.fail(turn, timeline, entry.number, entry.error)
    turn.now = now
    turn.emit(e.RingDrained(timeline.context, entries[-1].serial))
    turn.effects[:] = _joined(turn.effects)
    if entries[-1].op == ring.CLOSE:
        turn.emit(e.RingClosed(timeline.context))
        turn.do(fx.CloseRing(known.socket))


def _joined(effects: Iterable[fx.Effect]) -> Iterator[fx.Effect]:
    """Join signals in a row that are the same: each costs a look, and a timer."""
    handles: list[int] = []
    status = 0
    for effect in effects:
        signal = effect if isinstance(effect, fx.Signal) else None
        if handles and (signal is None or signal.status != status):
            yield fx.Signal(handles, status, True)
            handles = []
        if signal is None:
            yield effect
        else:
            handles += signal.handles
            status = signal.status
    if handles:
        yield fx.Signal(handles, status, True)


# -- which rings to read first


def concerned(turn: Turn, message: Sequence[Any], references: Sequence[fx.Reference]) -> Iterable[int]:
    """The sockets whose rings have to be read before this request is handled."""
    state = turn.state
    rings = state.rings
    if not rings:
        return ()
    op = message[1]
    if op in _BY_CONTEXT:
        return _of(state.timelines.get(message[2]))
    if op == wire.SYNC_FILE:
        return _of(_named(turn, message[2]))
    if op in _OF_ALL:
        return list(rings)
    handles: Iterable[int] = ()
    if op in (wire.INFO, wire.SET_DEADLINE, wire.WAIT_START):
        handles = (message[2],) if message[2] is not None else ()
    elif op == wire.IMPORT:
        handles = (message[3],) if message[3] is not None else ()
    elif op == wire.MERGE:
        handles = (ref for ref in message[2] if ref is not None)
    elif op == wire.RELEASE:
        handles = (*message[2], *message[3])
    elif op == wire.RECLAIM:
        handles = message[2]
    shown = (reference.handle for reference in references if isinstance(reference, fx.KnownFence))
    sync_files = state.sync_files
    return _beneath(sync_files[handle].fence for handle in (*handles, *shown) if handle in sync_files)


def _of(timeline: Timeline | None) -> Iterable[int]:
    return () if timeline is None or timeline.ring is None else (timeline.ring.socket,)


def _named(turn: Turn, text: str) -> Timeline | None:
    try:
        point = parse_point(text)
        return find_timeline(turn, point.user, point.timeline)
    except (ValueError, Refusal):
        return None


def _beneath(fences: Iterable[Fence]) -> set[int]:
    """The rings of the points that these fences are, or wait for."""
    found: set[int] = set()
    arrays: list[Array] = []
    seen: set[Fence] = set()

    def look(fence: Fence) -> None:
        if fence.status:
            return
        if fence.timeline is not None:
            if fence.timeline.ring is not None:
                found.add(fence.timeline.ring.socket)
        elif isinstance(fence, Array) and fence not in seen:
            seen.add(fence)
            arrays.append(fence)

    for fence in fences:
        look(fence)
    # A list that grows while it is walked: arrays may be nested to any depth.
    for array in arrays:
        for member in array.members:
            look(member)
    return found


def expiring(state: State, now: int) -> set[int]:
    """The rings of what expires by ``now``: nobody but the broker may decide about those meanwhile, and what is in the ring came in time."""
    heap, fences = state.expiries, state.fences
    due: list[Fence] = []
    work = [0] if state.rings else []
    for i in work:  # a heap: below an entry that is not due none is
        if i < len(heap) and heap[i][0] <= now:
            work += (2 * i + 1, 2 * i + 2)
            fence = fences.get(heap[i][1])
            if fence is not None:
                due.append(fence)
    return _beneath(due)


# -- when the doorbell is to be rung


def lowest_awaited(timeline: Timeline, known: Ring) -> int:
    """The lowest point for which somebody waits whom the producer does not wake itself; 0 for none."""
    heap, points = known.awaited, timeline.points
    while heap:
        fence = points.get(heap[0])
        if fence is not None and not fence.status:
            return heap[0]
        heapq.heappop(heap)
    return 0
