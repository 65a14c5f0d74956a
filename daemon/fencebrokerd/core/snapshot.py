"""The state as one value, and back.  What a journal begins with when it is written anew, so that it need not remember how it came to be.

Rules
  ``dump`` gives rows of plain values (integers, strings, booleans, None and tuples of these), and ``load`` builds the same state of them.
  What follows from the rest (accounts, heaps, who waits for whom, counts) is not in the rows and is built again.
  A fence or timeline that is not on record any more, but that one on record still speaks of, is in the rows too, and marked.
  A change of the form of rows changes ``FORM``, and the form before is still read: the next version reads what the last one wrote.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fencebrokerd.core.account import Charge, Slot
from fencebrokerd.core.events import SessionOpened
from fencebrokerd.core.fence import Array, Fence, Placeholder, Stub, SyncFile
from fencebrokerd.core.state import Session, State
from fencebrokerd.core.timeline import Ring, Timeline

__all__ = ["FORM", "dump", "load"]

FORM: Final = 1

Rows = tuple[Any, ...]
_POINT, _STUB, _ARRAY, _PLACEHOLDER = range(4)


def dump(state: State) -> Rows:
    """Return the rows of ``state``, which stays as it is."""
    fences = _reachable(state)
    timelines: dict[int, Timeline] = dict(state.timelines)
    for fence in fences.values():
        if fence.timeline is not None:
            timelines.setdefault(fence.timeline.context, fence.timeline)
    return (
        FORM,
        (state.next_context, state.next_socket, state.next_fence, state.next_handle, state.n_signalled),
        tuple(_session_row(session) for session in state.sessions.values()),
        tuple(_timeline_row(timeline, state) for timeline in timelines.values()),
        tuple(_fence_row(fence, fence.id in state.fences) for fence in fences.values()),
        tuple(_sync_file_row(sync_file) for sync_file in state.sync_files.values()),
        tuple(
            (account.uid, tuple(account.retained), tuple(account.returned))
            for account in sorted(state.accounts.values(), key=lambda account: account.uid)
            if account.retained or account.returned
        ),
        tuple(state.subscribers),
    )


def _reachable(state: State) -> dict[int, Fence]:
    """The fences on record, and those that merges still list; by id, so that members come before what was made of them."""
    found = dict(state.fences)
    work = [fence for fence in state.fences.values() if isinstance(fence, Array)]
    while work:
        for member in work.pop().members:
            if member.id not in found:
                found[member.id] = member
                if isinstance(member, Array):
                    work.append(member)
    return dict(sorted(found.items()))


def _session_row(session: Session) -> Rows:
    minting = tuple(sorted(session.minting))
    return session.id, session.uid, session.gid, tuple(sorted(session.groups)), session.pid, session.comm, session.created, minting


def _timeline_row(timeline: Timeline, state: State) -> Rows:
    t = timeline
    on_record = t.context in state.timelines
    sockets = tuple((socket, inode, state.socket_charges[socket].uid) for socket, inode in t.sockets.items())
    who = (t.uid, t.gid, t.pid, t.comm)
    failures = tuple((seqno, status, at) for seqno, (status, at) in t.failures.items())
    made = (t.context, t.name, t.driver, t.mode, t.expiry, who, t.creator, t.created)
    past = (tuple(t.past.entries), tuple(t.past.latencies.items()), t.past.n_fences, t.past.n_signalled, t.past.n_failed)
    ring = () if t.ring is None else (t.ring.socket, t.ring.holder, t.ring.taken, t.ring.frozen)
    return on_record, made, t.creator_alive, t.value, t.advanced_at, t.highest, failures, sockets, past, ring


def _fence_row(fence: Fence, on_record: bool) -> Rows:
    f = fence
    own: Rows
    match f:
        case Stub():
            kind, own = _STUB, (f.detached,)
        case Array():
            kind, own = _ARRAY, (f.any, f.error, f.n_pending, f.charge.n, tuple(member.id for member in f.members))
        case Placeholder():
            kind, own = _PLACEHOLDER, (f.owner, f.name, f.wanted)
        case _:
            kind, own = _POINT, ()
    return on_record, kind, f.id, f.context, f.seqno, f.uid, f.created, f.status, f.timestamp, f.deadline, f.expires, own


def _sync_file_row(sync_file: SyncFile) -> Rows:
    s = sync_file
    return s.handle, s.fence.id, s.name, s.session, (s.uid, s.pid, s.comm), s.created, s.private, s.tampered


# -- and back


def load(rows: Sequence[Any], remembered_failures: int, own_uid: int, failures_per_uid: int) -> State:
    """Build the state of ``rows``; ValueError if this version does not know their form."""
    form, numbers, sessions, timelines, fences, sync_files, accounts, subscribers = rows
    if form != FORM:
        raise ValueError(f"a snapshot of form {form}; this version reads form {FORM}")
    state = State(remembered_failures, own_uid, failures_per_uid)
    state.next_context, state.next_socket, state.next_fence, state.next_handle, state.n_signalled = numbers
    for row in sessions:
        _load_session(state, row)
    every_timeline = {timeline.context: timeline for timeline in (_load_timeline(state, row) for row in timelines)}
    for id, *_, minting in sessions:
        for context in minting:
            state.timelines[context].minters.add(id)
    _load_fences(state, fences, every_timeline)
    for row in sync_files:
        _load_sync_file(state, row)
    for uid, retained, returned in accounts:
        account = state.account(uid)
        account.retained, account.returned = dict.fromkeys(retained), dict.fromkeys(returned)
    state.subscribers = dict.fromkeys(subscribers)
    for timeline in state.rings.values():
        state.await_points(timeline)
    return state


def _load_session(state: State, row: Sequence[Any]) -> None:
    id, uid, gid, groups, pid, comm, created, minting = row
    opened = SessionOpened(id, uid, gid, tuple(groups), pid, comm, created)
    session = state.sessions[id] = Session(opened, Charge(state.account(uid), Slot.SESSIONS))
    session.minting = set(minting)
    state.account(uid).minters += len(minting)


def _load_timeline(state: State, row: Sequence[Any]) -> Timeline:
    on_record, made, creator_alive, value, advanced_at, highest, failures, sockets, past, ring = row
    context, name, driver, mode, expiry, who, creator, created = made
    charge = Charge(state.account(who[0]), Slot.TIMELINES)
    timeline = Timeline(context, name, driver, mode, expiry, tuple(who), creator, created, charge)
    timeline.creator_alive, timeline.value, timeline.advanced_at, timeline.highest = creator_alive, value, advanced_at, highest
    timeline.failures = {seqno: (status, at) for seqno, status, at in failures}
    timeline.sockets = {socket: inode for socket, inode, _ in sockets}
    entries, latencies, timeline.past.n_fences, timeline.past.n_signalled, timeline.past.n_failed = past
    timeline.past.entries.extend(entries)
    timeline.past.latencies.update(latencies)
    if on_record:
        state.timelines[context] = timeline
        if name is not None:
            state.names[timeline.uid, name] = timeline
        for socket, _, uid in sockets:
            state.sockets[socket] = timeline
            state.socket_charges[socket] = Charge(state.account(uid), Slot.SOCKETS)
        account = state.account(timeline.uid)
        account.failures += len(timeline.failures)
        account.creators += creator not in state.creators
        state.creators[creator] = state.creators.get(creator, 0) + 1
        if ring:
            socket, holder, taken, frozen = ring
            timeline.ring = Ring(socket, holder, Charge(account, Slot.RINGS))
            timeline.ring.taken, timeline.ring.frozen = taken, frozen
            state.rings[socket] = timeline
    else:
        charge.release()
    return timeline


def _load_fences(state: State, rows: Iterable[Sequence[Any]], timelines: dict[int, Timeline]) -> None:
    """A merge may have a placeholder's point among its members, which is younger than itself: so members come when all fences are there."""
    every: dict[int, Fence] = {}
    members: list[tuple[Array, Sequence[int]]] = []
    for on_record, kind, id, context, seqno, uid, created, status, timestamp, deadline, expires, own in rows:
        fence: Fence
        match kind:
            case 0:
                fence = Fence(id, context, seqno, uid, created, timelines[context])
            case 1:
                fence = Stub(id, status, timestamp, uid, created, own[0])
            case 2:
                fence = Array(id, context, (), own[0], uid, created, Charge(state.account(uid), Slot.MEMBERS, own[3]))
                fence.error, fence.n_pending = own[1], own[2]
                members.append((fence, own[4]))
            case _:
                fence = Placeholder(id, context, own[0], own[1], own[2], uid, created)
        fence.status, fence.timestamp, fence.deadline, fence.expires = status, timestamp, deadline, expires
        every[id] = fence
        if on_record:
            _put_on_record(state, fence)
        elif isinstance(fence, Array):
            fence.charge.release()
    for array, ids in members:
        array.members = dict.fromkeys(every[member] for member in ids)
        if array.id in state.fences and not array.status:
            for member in array.members:
                if not member.status:
                    member.add_array(array)


def _put_on_record(state: State, fence: Fence) -> None:
    state.fences[fence.id] = fence
    if fence.timeline is not None:
        fence.timeline.points[fence.seqno] = fence
    if fence.status:
        return
    if fence.timeline is not None:
        fence.timeline.add_pending(fence.seqno)
    elif isinstance(fence, Placeholder):
        state.placeholders.setdefault((fence.owner, fence.name), {})[fence.wanted, fence.uid] = fence
    if fence.expires is not None:
        heapq.heappush(state.expiries, (fence.expires, fence.id))


def _load_sync_file(state: State, row: Sequence[Any]) -> None:
    handle, fence_id, name, session, who, created, private, tampered = row
    fence = state.fences[fence_id]
    charge = Charge(state.account(who[0]), Slot.SYNC_FILES)
    sync_file = SyncFile(handle, fence, name, session or 0, tuple(who), created, private, charge)
    sync_file.session, sync_file.tampered = session, tampered
    state.sync_files[handle] = sync_file
    fence.sync_files[handle] = sync_file
    if session is not None:
        state.sessions[session].handles[handle] = sync_file
        fence.n_open += 1
