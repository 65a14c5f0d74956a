"""How timelines, fences and sync_files come and go: create, open, show, export, import, merge, wait by name, release."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fencebroker.errors import Refusal
from fencebroker.model import ACTIVE, OK, U64_MAX, Point, check_driver_name, check_timeline_name, parse_point
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core.account import Slot
from fencebrokerd.core.fence import Array, Fence, Stub, SyncFile
from fencebrokerd.core.merge import Plan, plan_all, plan_any, unwrap
from fencebrokerd.core.signalling import cancel, completed, forget, forget_if_unused, signal
from fencebrokerd.core.timeline import READ, WRITE, Timeline
from fencebrokerd.core.turn import QUOTAS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fencebrokerd.core.state import Session
    from fencebrokerd.core.turn import Turn

__all__ = [
    "chmod",
    "create_timeline",
    "end_session",
    "end_socket",
    "export",
    "find_fence",
    "import_sync_file",
    "merge",
    "open_timeline",
    "reclaim",
    "release",
    "show_timeline",
    "sync_file",
    "uid_of",
]

T = TypeVar("T")

#: The id of a fence that is not on record; merges tell such fences apart by identity.
_UNRECORDED = 0

NOT_A_SYNC_FILE = ("not a sync_file",)


# -- timelines


def create_timeline(turn: Turn, name: str | None, driver: str, mode: int, expiry: int | None) -> None:
    """Create a timeline.  What already waits for points of its name is bound when its socket exists (``socket_made``)."""
    _check(lambda: check_driver_name(driver))
    if name is not None:
        _check(lambda: check_timeline_name(name))
        holder = turn.state.names.get((turn.session.uid, name))
        if holder is not None:
            raise Refusal(
                errno.EEXIST,
                f"the timeline name {name!r} is in use by pid {holder.pid} ({holder.comm}); choose another, or end that process",
                (holder.pid, holder.comm),
            )
    turn.check_timelines()
    context, socket = turn.state.next_context, turn.state.next_socket
    turn.emit(e.TimelineCreated(context, socket, turn.session.id, name, driver, mode, expiry, turn.now))
    turn.do(fx.CreateSocket(turn.session.id, turn.serial, socket))
    turn.answer(context, socket=socket)


def socket_made(turn: Turn, socket: int, inode: int) -> None:
    """A timeline's socketpair exists.  With the first one nothing can stop the timeline from existing, and placeholders are bound."""
    timeline = turn.state.sockets[socket]
    turn.emit(e.SocketMade(timeline.context, socket, inode))
    if timeline.name is not None and len(timeline.sockets) == 1:
        _bind_placeholders(turn, timeline, timeline.name)


def _bind_placeholders(turn: Turn, timeline: Timeline, name: str) -> None:
    """Give the placeholders for this name their points, where the mode lets who asked for them wait."""
    waiting = turn.state.placeholders.get((timeline.uid, name), {})
    for placeholder in list(waiting.values()):
        if not timeline.allows(placeholder.uid, *_groups_of(turn, placeholder.uid), READ):
            continue
        handles, arrays = list(placeholder.sync_files), list(placeholder.arrays.values())
        point = mint(turn, timeline, placeholder.wanted, placeholder.uid)
        turn.emit(e.PlaceholderBound(placeholder.id, point.id))
        if point.status:  # seqno 0 is signalled from the beginning
            if handles:
                turn.do(fx.Signal(handles, point.status))
            signal(turn, completed(arrays, point.status))
            turn.crowded.add(point.uid)


def _groups_of(turn: Turn, uid: int) -> tuple[int, frozenset[int]]:
    """The groups of a user as its sessions have them now; none when it has no session left."""
    for session in turn.state.sessions.values():
        if session.uid == uid:
            return session.gid, session.groups
    return -1, frozenset()


def find_timeline(turn: Turn, user: str | None, name: str) -> Timeline | None:
    """Look a name up; None if it does not exist."""
    return turn.state.names.get((uid_of(turn, user), name))


def uid_of(turn: Turn, user: str | None) -> int:
    """The user that a name or point speaks of: None is one's own."""
    if user is None:
        return turn.session.uid
    if not (user.isascii() and user.isdigit()) or len(user) > 10:
        raise Refusal(errno.EINVAL, f"the user of a point must be a numeric uid on the wire, not {user!r}")
    return int(user)


def open_timeline(turn: Turn, text: str) -> None:
    """Hand out another descriptor of a named timeline, to somebody whom its mode lets signal."""
    user, slash, name = text.rpartition("/")
    timeline = find_timeline(turn, user if slash else None, name)
    session = turn.session
    if timeline is None or not timeline.allows(session.uid, session.gid, session.groups, READ | WRITE):
        raise Refusal(errno.ENOENT, f"there is no timeline {text!r} here (or it is not yours to see)")
    if not timeline.allows(session.uid, session.gid, session.groups, WRITE):
        raise Refusal(errno.EACCES, f"the mode {timeline.mode:04o} of {text!r} does not let you signal it; it would need 'w' for you")
    turn.check_sockets()
    freeze_ring(turn, timeline)
    socket = turn.state.next_socket
    turn.emit(e.TimelineOpened(timeline.context, socket, session.id, turn.now))
    turn.do(fx.CreateSocket(session.id, turn.serial, socket))
    turn.answer(timeline.context, timeline.value, socket=socket)


def freeze_ring(turn: Turn, timeline: Timeline) -> None:
    """Somebody else may signal from now on: the first owner is no longer the only one, and has to ask as everybody does."""
    if timeline.ring is not None and not timeline.ring.frozen:
        turn.emit(e.RingFrozen(timeline.context))
        turn.do(fx.FreezeRing(timeline.ring.socket))


def chmod(turn: Turn, text: str, mode: int) -> None:
    """Change who may open a timeline by name: its owner may, and root.  Descriptors that are out stay good; whoever waits for points by
    name, and may now, gets them.
    """
    user, slash, name = text.rpartition("/")
    timeline = find_timeline(turn, user if slash else None, name)
    session = turn.session
    if timeline is None or not (
        session.uid in (0, timeline.uid) or timeline.allows(session.uid, session.gid, session.groups, READ | WRITE)
    ):
        raise Refusal(errno.ENOENT, f"there is no timeline {text!r} here (or it is not yours to see)")
    if session.uid not in (0, timeline.uid):
        raise Refusal(errno.EPERM, f"the timeline {text!r} is uid {timeline.uid}'s: only its owner and root change its mode")
    before = timeline.mode
    if mode != before:
        turn.emit(e.TimelineModeSet(timeline.context, mode))
        _bind_placeholders(turn, timeline, name)
    turn.answer(before)


def show_timeline(turn: Turn, reference: fx.Reference) -> None:
    """Who shows a timeline's descriptor may mint on it."""
    timeline = turn.state.sockets.get(reference.socket) if isinstance(reference, fx.KnownTimeline) else None
    if timeline is None:
        what = reference.what if isinstance(reference, fx.Foreign) else "a sync_file"
        raise Refusal(errno.EINVAL, f"fd must be a timeline's descriptor of this broker, not {what}")
    if turn.session.id not in timeline.minters:
        turn.check_share(turn.session.uid, Slot.MINTERS)
        turn.emit(e.TimelineShown(timeline.context, turn.session.id))
    turn.answer(timeline.context, timeline.value, timeline.name)


def forget_timeline(turn: Turn, context: int) -> None:
    """The session's last descriptor of that timeline is closed."""
    timeline = turn.state.timelines.get(context)
    if timeline is not None and turn.session.id in timeline.minters:
        turn.emit(e.TimelineForgotten(context, turn.session.id))


def end_socket(turn: Turn, socket: int) -> None:
    """A timeline's socket reached end-of-file: the last copy was closed.  With the last socket the timeline ends, with -ENOENT."""
    timeline = turn.state.sockets[socket]
    turn.emit(e.SocketClosed(timeline.context, socket))
    ends = not timeline.sockets
    turn.do(fx.CloseSocket(socket, timeline.creator if ends and turn.state.creators[timeline.creator] == 1 else None))
    if ends:
        cancel(turn, timeline, errno.ENOENT)
        turn.emit(e.TimelineClosed(timeline.context, turn.now))


# -- fences and sync_files


def mint(turn: Turn, timeline: Timeline, seqno: int, uid: int) -> Fence:
    """Return the fence of a point, made if it is not on record.  At or below the value it is born signalled, with the point's error."""
    fence = timeline.points.get(seqno)
    if fence is not None:
        return fence
    status, timestamp = 0, 0
    if seqno <= timeline.value:
        status, timestamp = timeline.failures.get(seqno, (OK, timeline.advanced_at))
    expires = None if status or timeline.expiry is None else min(turn.now + timeline.expiry, U64_MAX)
    id = turn.state.next_fence
    turn.emit(e.FenceCreated(id, timeline.context, seqno, status, timestamp, uid, expires, turn.now))
    return turn.state.fences[id]


def carry(turn: Turn, fence: Fence, name: str) -> int:
    """Make one sync_file for ``fence``, to which only the broker writes, and its eventfd; returns the handle.  Its signal, if it has
    signalled, comes right after.
    """
    handle = turn.state.next_handle
    turn.emit(e.SyncFileCreated(handle, fence.id, turn.session.id, name, True, turn.now))
    turn.do(fx.CreateEventfds(turn.session.id, turn.serial, handle, 1))
    if fence.status:
        turn.do(fx.Signal((handle,), fence.status))
    return handle


def export(turn: Turn, context: int, seqnos: list[int] | None, name: str, private: bool) -> None:
    """Make a sync_file for each seqno, all or none."""
    timeline = turn.state.timelines.get(context)
    session = turn.session
    if timeline is None or session.id not in timeline.minters:
        raise Refusal(errno.EBADF, f"context {context} is not a timeline of this session; create, open or show it first")
    if seqnos is None:
        following = max(timeline.value, timeline.highest) + 1
        if following > U64_MAX:
            raise Refusal(errno.EINVAL, "the timeline has reached 2**64-1; there is no next point")
        seqnos = [following]
    turn.check_sync_files(len(seqnos))
    highest = max(seqnos)
    if highest > timeline.highest:
        turn.emit(e.TimelineExported(context, highest, session.id, turn.now))
    first = handle = turn.state.next_handle
    born: dict[int, list[int]] = {}
    for seqno in seqnos:
        fence = timeline.points.get(seqno)
        if fence is None:
            fence = mint(turn, timeline, seqno, session.uid)
        turn.emit(e.SyncFileCreated(handle, fence.id, session.id, name, private, turn.now))
        if fence.status:
            born.setdefault(fence.status, []).append(handle)
        handle += 1
    turn.do(fx.CreateEventfds(session.id, turn.serial, first, handle - first))
    for status, handles in born.items():
        turn.do(fx.Signal(handles, status))
    turn.answer(first, seqnos[0], timeline.value, handles=range(first, handle))


def find_fence(turn: Turn, ref: int | None, reference: fx.Reference | None, error: int = errno.EINVAL) -> Fence:
    """Return the fence that a handle or a descriptor stands for; Refusal with ``error`` if the descriptor is no sync_file of ours.

    A session may name what it asked for as long as it is on record, also when it has given the handle back: it may still have the
    descriptor.  The fence of a detached descriptor is not on record; ``_on_record`` puts it there.
    """
    state = turn.state
    if ref is not None:
        named = state.sync_files.get(ref)
        if named is None or named.asker != turn.session.id:
            raise Refusal(errno.EBADF, f"handle {ref} is not one of this session")
        return named.fence
    if isinstance(reference, fx.KnownFence):
        sync_file = state.sync_files[reference.handle]
        # What carries nothing was looked at just before it was signalled: a count that was written never comes back to 0.
        if reference.carried not in (ACTIVE, sync_file.fence.status) and not sync_file.tampered:
            turn.emit(e.SyncFileTampered(reference.handle))
        return sync_file.fence
    if isinstance(reference, fx.DetachedFence):
        return Stub(_UNRECORDED, reference.status, 0, turn.session.uid, turn.now, True)
    what = reference.what if isinstance(reference, fx.Foreign) else "a timeline's descriptor"
    raise Refusal(error, f"fd must be a sync_file of this broker, not {what}", NOT_A_SYNC_FILE)


def import_sync_file(turn: Turn, name: str, ref: int | None, reference: fx.Reference | None) -> None:
    """Make a private sync_file for the fence that a descriptor carries."""
    turn.check_sync_files(1, (ref,), () if reference is None else (reference,))
    fence = _on_record(turn, find_fence(turn, ref, reference))
    handle = carry(turn, fence, name)
    turn.answer(handle, fence.context, fence.shown_seqno, handles=(handle,))


def merge(turn: Turn, refs: Sequence[int | None], references: Sequence[fx.Reference], name: str, any: bool) -> None:
    """Make one sync_file of several fences."""
    turn.check_sync_files(1, refs, references)
    shown = iter(references)
    flat = unwrap([find_fence(turn, ref, next(shown) if ref is None else None, errno.ENOENT) for ref in refs], any)
    limit = turn.limits.merge_members
    if len(flat) > limit:
        raise Refusal(errno.EINVAL, f"fences must have at most {limit} members when unwrapped, not {len(flat)}")
    plan = plan_any(flat) if any else plan_all(flat)
    _check_members(turn, len(plan.members))
    fence = _build(turn, plan, any)
    handle = carry(turn, fence, name)
    turn.answer(handle, fence.context, fence.shown_seqno, handles=(handle,))


def _check_members(turn: Turn, n: int) -> None:
    """Refuse when ``n`` more members of merges do not fit.  Merges that are only kept in case somebody asks give way."""
    account, limit = turn.state.account(turn.session.uid), turn.limit_of(turn.session.uid, Slot.MEMBERS)
    excess = account.members + n - limit
    if not n or excess <= 0:
        return
    kept = (fence for id in account.retained if isinstance(fence := turn.state.fences[id], Array))
    given = []
    for array in kept:
        given.append(array)
        excess -= array.charge.n
        if excess <= 0:
            break
    else:
        turn.refuse(errno.EDQUOT, QUOTAS[Slot.MEMBERS], limit, account.members, n)
    for array in given:
        forget(turn, array)


def _build(turn: Turn, plan: Plan, any: bool) -> Fence:
    state = turn.state
    if plan.fence is not None:
        return _on_record(turn, plan.fence)
    id = state.next_fence
    if not plan.members:
        turn.emit(e.StubCreated(id, OK, plan.timestamp, turn.session.uid, False, turn.now))
        return state.fences[id]
    members = tuple([_on_record(turn, member).id for member in plan.members])
    id = state.next_fence
    turn.emit(e.ArrayCreated(id, state.next_context, members, any, turn.session.uid, None, turn.now))
    return state.fences[id]


def _on_record(turn: Turn, fence: Fence) -> Fence:
    """A detached fence never was on record, and a failed member may have been forgotten while its array still lists it: a stub stands for
    either, with its error.
    """
    if turn.state.fences.get(fence.id) is fence:
        return fence
    id = turn.state.next_fence
    detached = isinstance(fence, Stub) and fence.detached
    turn.emit(e.StubCreated(id, fence.status, fence.timestamp, turn.session.uid, detached, turn.now))
    return turn.state.fences[id]


def sync_file(turn: Turn, text: str, expiry: int | None) -> None:
    """Make a sync_file for a point by name, which may not be minted yet and whose timeline may not exist yet."""
    point = _check(lambda: parse_point(text))
    session, state = turn.session, turn.state
    uid = uid_of(turn, point.user)
    turn.check_sync_files(1)
    if expiry is not None:
        _check_members(turn, 1)  # an expiry of its own is an array of one
    timeline = state.names.get((uid, point.timeline))
    if timeline is not None and timeline.allows(session.uid, session.gid, session.groups, READ):
        fence = mint(turn, timeline, point.seqno, session.uid)
    else:
        # Whether it is missing or forbidden looks the same.
        fence = _placeholder(turn, uid, point)
    if expiry is not None and not fence.status:
        id = state.next_fence
        turn.emit(e.ArrayCreated(id, state.next_context, (fence.id,), False, session.uid, min(turn.now + expiry, U64_MAX), turn.now))
        fence = state.fences[id]
    handle = carry(turn, fence, "")
    turn.answer(handle, fence.context, fence.shown_seqno, handles=(handle,))


def _placeholder(turn: Turn, owner: int, point: Point) -> Fence:
    state = turn.state
    known = state.placeholders.get((owner, point.timeline), {}).get((point.seqno, turn.session.uid))
    if known is not None:
        return known
    id = state.next_fence
    turn.emit(e.PlaceholderCreated(id, state.next_context, owner, point.timeline, point.seqno, turn.session.uid, turn.now))
    return state.fences[id]


# -- endings


def release(turn: Turn, unexposed: Iterable[int], exposed: Iterable[int]) -> None:
    """Close handles.  Of an unexposed one nobody else can have the descriptor, so the broker's copy goes too.  Unknown ones are passed over."""
    handles = turn.session.handles
    dropped = []
    fences = []
    for handle in unexposed:
        sync_file = handles.get(handle)
        if sync_file is not None:
            turn.emit(e.SyncFileDropped(handle))
            dropped.append(handle)
            fences.append(sync_file.fence)
    if dropped:
        turn.do(fx.CloseHandles(dropped))
    for fence in fences:
        forget_if_unused(turn, fence)
        turn.crowded.add(fence.uid)
    for handle in exposed:
        sync_file = handles.get(handle)
        if sync_file is not None:
            _give_back(turn, sync_file)


def _give_back(turn: Turn, sync_file: SyncFile) -> None:
    """A session has done with a sync_file; others may still have its descriptor."""
    turn.emit(e.SyncFileReleased(sync_file.handle))
    turn.crowded.update((sync_file.uid, sync_file.fence.uid))


def drop(turn: Turn, handles: Iterable[int]) -> None:
    """Forget sync_files whose eventfd could not be made, or was turned against the broker."""
    for handle in handles:
        sync_file = turn.state.sync_files.get(handle)
        if sync_file is not None:
            fence = sync_file.fence
            turn.emit(e.SyncFileDropped(handle))
            turn.do(fx.CloseHandles([handle]))
            forget_if_unused(turn, fence)


def reclaim(turn: Turn, handles: Iterable[int]) -> None:
    """Give up sync_files that were given back and, says who asks, are held by nobody.

    Somebody may hold one all the same, whom nobody could see: what is active is completed with ECANCELED, so that he does not hang.
    """
    known = turn.state.sync_files
    taken = [
        sync_file
        for handle in dict.fromkeys(handles)
        if (sync_file := known.get(handle)) is not None
        and sync_file.session is None
        and (turn.sees_all or sync_file.uid == turn.session.uid)
    ]
    active = [sync_file.handle for sync_file in taken if not sync_file.fence.status]
    for sync_file in taken:
        turn.emit(e.SyncFileDropped(sync_file.handle))
    if active:
        turn.do(fx.Signal(active, -errno.ECANCELED))
    numbers = [sync_file.handle for sync_file in taken]
    turn.do(fx.CloseHandles(numbers))
    for sync_file in taken:
        forget_if_unused(turn, sync_file.fence)
        turn.crowded.add(sync_file.fence.uid)
    turn.answer(numbers)


def end_session(turn: Turn, session: Session) -> None:
    """A client is gone.  Others may have its descriptors, so its active fences stay until they signal."""
    for sync_file in list(session.handles.values()):
        _give_back(turn, sync_file)
    turn.emit(e.SessionClosed(session.id, turn.now))


def forget_everything(turn: Turn) -> None:
    """Forget every record; for the end of a broker's life, when all sessions and timelines are gone."""
    fences = turn.state.fences
    while fences:
        containers = [fence for fence in fences.values() if not fence.arrays]
        for fence in containers:
            if fence.id in fences:
                forget(turn, fence)


def _check(check: Callable[[], T]) -> T:
    """Turn what the shared checks raise into a refusal."""
    try:
        return check()
    except (TypeError, ValueError) as err:
        raise Refusal(errno.EINVAL, str(err)) from err
