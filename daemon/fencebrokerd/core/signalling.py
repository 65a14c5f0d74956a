"""How fences signal: advance, fail, single points, cancellation, expiry, and the arrays that follow.

Order within a turn: the value first, then fences from the lowest seqno, then the arrays they complete.  Status and timestamp are in
the record before the eventfd is written, so whoever is woken and asks sees them.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from fencebroker.model import OK, U64_MAX
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core.fence import Array, Fence

if TYPE_CHECKING:
    from fencebrokerd.core.timeline import Timeline
    from fencebrokerd.core.turn import Turn

__all__ = ["advance", "cancel", "cancel_all", "expire", "fail", "forget_if_unused", "inc", "set_deadline", "signal_point", "tidy"]


#: Of the quota of records one part in so many is made free at a time, for letting go of many at once costs less.
SLACK: Final = 32


def signal(turn: Turn, fences: Iterable[tuple[Fence, int]]) -> None:
    """Signal active fences with their statuses, then every array that is complete by that."""
    groups: dict[int, list[int]] = {}
    work = list(fences)
    # A list that grows while it is walked: arrays may complete arrays, to any depth, without recursion.
    for fence, status in work:
        if not fence.status:
            work += _signal_one(turn, fence, status, groups.setdefault(status, []))
            if isinstance(fence, Array):
                turn.leftovers.append(fence)
    for status, handles in groups.items():
        if handles:
            turn.do(fx.Signal(handles, status))


def _signal_one(turn: Turn, fence: Fence, status: int, handles: list[int]) -> Iterable[tuple[Fence, int]]:
    """Signal one fence, note the handles to write to, and return the arrays that follow, each with its status."""
    arrays, sync_files = fence.arrays, fence.sync_files
    turn.emit(e.FenceSignalled(fence.id, status, turn.now))
    turn.crowded.add(fence.uid)
    if fence.n_open < len(sync_files):
        turn.crowded.update(sync_file.uid for sync_file in sync_files.values())
    handles += sync_files
    return completed(arrays.values(), status) if arrays else ()


def tidy(turn: Turn) -> None:
    """Let go of what a signal left behind: active members of arrays that did not wait for them, and records over the quota."""
    leftovers, turn.leftovers = turn.leftovers, []
    for array in leftovers:
        for member in array.members:
            forget_if_unused(turn, member)
    crowded, turn.crowded = turn.crowded, set()
    for uid in crowded:
        trim(turn, uid)


def completed(arrays: Iterable[Array], status: int) -> list[tuple[Array, int]]:
    """Of the arrays of a fence that has just signalled with ``status``: those that are complete now, with their own status."""
    done = (array for array in arrays if not array.status and (array.any or not array.n_pending))
    return [(array, status if array.any else array.error or OK) for array in done]


def trim(turn: Turn, uid: int) -> None:
    """Forget the oldest of what ``uid`` has on record of signalled fences, beyond the quota: descriptors given back, then fences.

    Some at a time: what is over makes room for some more.
    """
    account, most = turn.state.account(uid), turn.limits_of(uid).retained_records
    if len(account.returned) <= most and len(account.retained) <= most:
        return
    most -= most // SLACK
    excess = len(account.returned) - most
    if excess > 0:
        handles = list(islice(account.returned, excess))
        for handle in handles:
            turn.emit(e.SyncFileDropped(handle))
        turn.do(fx.CloseHandles(handles))
    # In one go: the first key of a dict is dear to find when many before it were deleted.
    for id in list(islice(account.retained, max(0, len(account.retained) - most))):
        forget(turn, turn.state.fences[id])


def forget(turn: Turn, fence: Fence) -> None:
    """Drop the record of a fence and the broker's copies of its descriptors, and what was on record for its sake alone."""
    work = [fence]
    # A list that grows while it is walked: arrays of arrays may be nested to any depth.
    for current in work:
        handles = list(current.sync_files)
        for handle in handles:
            turn.emit(e.SyncFileDropped(handle))
        if handles:
            turn.do(fx.CloseHandles(handles))
        turn.emit(e.FenceForgotten(current.id))
        if isinstance(current, Array) and not current.status:
            work.extend(member for member in current.members if is_forgotten(turn, member))


def is_forgotten(turn: Turn, fence: Fence) -> bool:
    """An active fence that nobody can see any more leaves its timeline, as in the kernel when the last descriptor is closed."""
    return not fence.status and fence.is_unused and fence.id in turn.state.fences


def forget_if_unused(turn: Turn, fence: Fence) -> None:
    """Forget ``fence`` if nobody can see it any more."""
    if is_forgotten(turn, fence):
        forget(turn, fence)


def advance(turn: Turn, timeline: Timeline, value: int) -> None:
    """Raise the value to ``value`` and signal what it passes.  At or below the value: nothing."""
    if value <= timeline.value:
        return
    passed = timeline.pop_passed(value)
    turn.emit(e.TimelineAdvanced(timeline.context, value, turn.now))
    handles: list[int] = []
    following: list[tuple[Fence, int]] = []
    for fence in passed:
        following += _signal_one(turn, fence, OK, handles)
    if handles:
        turn.do(fx.Signal(handles, OK))
    if following:
        signal(turn, following)


def inc(turn: Turn, timeline: Timeline, n: int) -> None:
    """Raise the value by ``n``; it stops at 2**64-1."""
    advance(turn, timeline, min(timeline.value + n, U64_MAX))


def fail(turn: Turn, timeline: Timeline, seqno: int, error: int) -> None:
    """Everything below ``seqno`` is OK, ``seqno`` fails, the value is ``seqno``.  At or below the value nothing can fail any more."""
    if seqno <= timeline.value:
        return
    passed = timeline.pop_passed(seqno)
    turn.emit(e.PointFailed(timeline.context, seqno, -error, turn.now))
    turn.emit(e.TimelineAdvanced(timeline.context, seqno, turn.now))
    signal(turn, [(fence, -error if fence.seqno == seqno else OK) for fence in passed])


def signal_point(turn: Turn, timeline: Timeline, seqno: int, error: int) -> None:
    """Signal one point by itself (dma_fence_signal); the value and the other points stay.  The first signal counts."""
    fence = timeline.points.get(seqno)
    if fence is not None and not fence.status:
        signal(turn, [(fence, -error if error else OK)])


def active_points(timeline: Timeline) -> list[Fence]:
    return sorted((fence for fence in timeline.points.values() if not fence.status), key=lambda fence: fence.seqno)


def cancel(turn: Turn, timeline: Timeline, error: int) -> None:
    """Fail every active fence of the timeline."""
    signal(turn, [(fence, -error) for fence in active_points(timeline)])


def cancel_all(turn: Turn, error: int) -> int:
    """Fail every active fence there is; returns how many.  Arrays fail of themselves when their members do."""
    active = [fence for fence in turn.state.fences.values() if not fence.status]
    signal(turn, [(fence, -error) for fence in active if not isinstance(fence, Array)])
    signal(turn, [(fence, -error) for fence in active if not fence.status])
    return len(active)


def expire(turn: Turn) -> None:
    """Fail what has passed its expiry with ETIME."""
    expiries = turn.state.expiries
    late = []
    while expiries and expiries[0][0] <= turn.now:
        fence = turn.state.fences.get(heapq.heappop(expiries)[1])
        if fence is not None and not fence.status:
            late.append((fence, -errno.ETIME))
    if late:
        signal(turn, late)


def next_expiry(turn: Turn) -> int | None:
    """When the next active fence expires.  Entries of fences that signalled in time are dropped here, so that they wake nobody."""
    expiries, fences = turn.state.expiries, turn.state.fences
    while expiries:
        fence = fences.get(expiries[0][1])
        if fence is not None and not fence.status:
            return expiries[0][0]
        heapq.heappop(expiries)
    return None


def set_deadline(turn: Turn, fence: Fence, deadline: int) -> None:
    """Note that somebody wants ``fence``, and each member of an array, by ``deadline``.  The soonest stands; signalled ones are passed over."""
    work = [fence]
    seen = {fence.id}
    for current in work:
        if current.status:
            continue
        if current.deadline is None or deadline < current.deadline:
            turn.emit(e.DeadlineSet(current.id, deadline))
        if isinstance(current, Array):
            for member in current.members:
                if member.id not in seen:
                    seen.add(member.id)
                    work.append(member)
