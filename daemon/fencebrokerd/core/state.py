"""The fold: one function per event, and the tables they keep.  Nothing else changes state.

The functions trust their event: whatever can be wrong was refused before it was emitted.  Given the same events they build the same
state, in any process.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final

from fencebrokerd.core import events as e
from fencebrokerd.core.account import Account, Charge, Slot
from fencebrokerd.core.fence import NO_ARRAYS, Array, Fence, Placeholder, Stub, SyncFile
from fencebrokerd.core.timeline import Ring, Timeline

__all__ = ["Session", "State", "nobody"]


class Session:
    """One client connection as the core sees it."""

    __slots__ = ("charge", "comm", "created", "gid", "groups", "handles", "id", "minting", "pid", "uid")

    def __init__(self, opened: e.SessionOpened, charge: Charge) -> None:
        self.id = opened.session
        self.uid = opened.uid
        self.gid = opened.gid
        self.groups = frozenset(opened.groups)
        self.pid = opened.pid
        self.comm = opened.comm
        self.created = opened.at
        self.charge = charge
        self.handles: dict[int, SyncFile] = {}
        self.minting: set[int] = set()

    @property
    def who(self) -> tuple[int, int, str]:
        """The process at the other end."""
        return self.pid, self.uid, self.comm


def nobody() -> Session:
    """Return a session that is nobody's: before the first request there is none."""
    return Session(e.SessionOpened(0, 0, 0, (), 0, "", 0), Charge(Account(0), Slot.SESSIONS))


class State:
    """All tables of the broker.  ``next_*`` are the ids that the next event of that kind must use."""

    def __init__(self, remembered_failures: int, own_uid: int = 0, failures_per_uid: int = 65_536) -> None:
        self.remembered_failures = remembered_failures
        self.failures_per_uid = failures_per_uid
        self.own_uid = own_uid
        self.accounts: dict[int, Account] = {}
        self.sessions: dict[int, Session] = {}
        self.timelines: dict[int, Timeline] = {}
        self.names: dict[tuple[int, str], Timeline] = {}
        self.sockets: dict[int, Timeline] = {}
        #: Timelines that have a ring, by their socket.
        self.rings: dict[int, Timeline] = {}
        #: Of those: contexts where what their producers must ring for may have changed.  Whoever tells them empties it.
        self.rearm: dict[int, None] = {}
        self.socket_charges: dict[int, Charge] = {}
        self.creators: dict[int, int] = {}  # session -> how many timelines that it created still exist
        self.fences: dict[int, Fence] = {}
        self.sync_files: dict[int, SyncFile] = {}
        self.placeholders: dict[tuple[int, str], dict[tuple[int, int], Placeholder]] = {}
        self.expiries: list[tuple[int, int]] = []
        self.next_context = 1  # 0 is the stub's
        self.next_socket = 1
        self.next_fence = 1
        self.next_handle = 1
        self.n_signalled = 0
        self._sweep_at = 64
        #: Sessions that follow the events, in the order in which they asked.
        self.subscribers: dict[int, None] = {}

    def sees_all(self, uid: int) -> bool:
        """Whether a user may look at everybody's objects: root, and the broker's own."""
        return uid in (0, self.own_uid)

    def account(self, uid: int) -> Account:
        """Return the account of ``uid``, made when it is first needed."""
        account = self.accounts.get(uid)
        if account is None:
            if len(self.accounts) >= self._sweep_at:  # users come and go, and an empty account says nothing
                self.accounts = {known: account for known, account in self.accounts.items() if not account.is_empty}
                self._sweep_at = 2 * len(self.accounts) + 64
            account = self.accounts[uid] = Account(uid)
        return account

    def apply(self, event: e.Event) -> None:
        """Fold one event in."""
        FOLD[type(event)](self, event)

    @property
    def n_descriptors(self) -> int:
        """Descriptors in use for clients: one a session, a pidfd for each that has created a timeline which still exists, one a descriptor
        of a timeline, one its ring, one a sync_file.
        """
        return len(self.sessions) + len(self.creators) + len(self.sockets) + len(self.rings) + len(self.sync_files)

    @property
    def is_idle(self) -> bool:
        """Nobody is connected, no timeline exists, nothing active waits."""
        return not self.sessions and not self.timelines and all(fence.status for fence in self.fences.values())

    def assert_empty(self) -> None:
        """After every session and timeline is gone and everything is forgotten, every account is zero.  Otherwise a charge leaked."""
        for account in self.accounts.values():
            if not account.is_empty:
                raise AssertionError(f"an account is not empty: {account}")
        tables = (
            self.sessions,
            self.timelines,
            self.names,
            self.sockets,
            self.socket_charges,
            self.rings,
            self.creators,
            self.fences,
            self.sync_files,
        )
        for table in (*tables, self.placeholders):
            if table:
                raise AssertionError(f"a table is not empty: {table}")

    # -- helpers of the fold

    def _add_fence(self, fence: Fence, expires: int | None) -> None:
        self.fences[fence.id] = fence
        self.next_fence = fence.id + 1
        if expires is not None:
            fence.expires = expires
            heapq.heappush(self.expiries, (expires, fence.id))
            if len(self.expiries) > 2 * len(self.fences) + 64:  # most entries belong to fences that signalled in time
                active = (other for other in self.fences.values() if other.expires is not None and not other.status)
                self.expiries = [(other.expires, other.id) for other in active if other.expires is not None]
                heapq.heapify(self.expiries)
        if fence.status:
            self._retain(fence)

    def _retain(self, fence: Fence) -> None:
        """Queue a signalled fence without an open handle for being forgotten, newest last."""
        if not fence.n_open:
            self.account(fence.uid).retained[fence.id] = None

    def _unretain(self, fence: Fence) -> None:
        self.account(fence.uid).retained.pop(fence.id, None)

    def _return(self, sync_files: Iterable[SyncFile]) -> None:
        """Queue those of a signalled fence's sync_files that were given back for being dropped, newest last."""
        for sync_file in sync_files:
            if sync_file.session is None:
                self.account(sync_file.uid).returned[sync_file.handle] = None

    def _use_context(self, context: int) -> None:
        self.next_context = max(self.next_context, context + 1)

    # -- sessions and timelines

    def _session_opened(self, event: e.SessionOpened) -> None:
        self.sessions[event.session] = Session(event, Charge(self.account(event.uid), Slot.SESSIONS))

    def _session_closed(self, event: e.SessionClosed) -> None:
        session = self.sessions.pop(event.session)
        if event.session in self.subscribers:
            del self.subscribers[event.session]
            self._rearm_all()
        assert not session.handles
        for context in session.minting:
            self.timelines[context].minters.discard(session.id)
        self.account(session.uid).minters -= len(session.minting)
        session.charge.release()

    def _timeline_created(self, event: e.TimelineCreated) -> None:
        session = self.sessions[event.session]
        owner = (session.uid, session.gid, session.pid, session.comm)
        charge = Charge(self.account(session.uid), Slot.TIMELINES)
        timeline = Timeline(event.context, event.name, event.driver, event.mode, event.expiry, owner, event.session, event.at, charge)
        self.timelines[event.context] = timeline
        if event.name is not None:
            self.names[session.uid, event.name] = timeline
        timeline.past.note(event.at, "created", who=session.who)
        self._use_context(event.context)
        n_created = self.creators.get(session.id, 0)
        self.creators[session.id] = n_created + 1
        self.account(session.uid).creators += not n_created
        self._add_socket(timeline, event.socket, session)
        self._add_minter(timeline, session)

    def _timeline_opened(self, event: e.TimelineOpened) -> None:
        timeline, session = self.timelines[event.context], self.sessions[event.session]
        timeline.past.note(event.at, "opened", timeline.value, who=session.who)
        self._add_socket(timeline, event.socket, session)
        self._add_minter(timeline, session)

    def _timeline_shown(self, event: e.TimelineShown) -> None:
        self._add_minter(self.timelines[event.context], self.sessions[event.session])

    def _timeline_forgotten(self, event: e.TimelineForgotten) -> None:
        self._remove_minter(self.timelines[event.context], self.sessions[event.session])

    def _timeline_mode_set(self, event: e.TimelineModeSet) -> None:
        self.timelines[event.context].mode = event.mode

    def _add_socket(self, timeline: Timeline, socket: int, session: Session) -> None:
        timeline.sockets[socket] = 0
        self.sockets[socket] = timeline
        self.socket_charges[socket] = Charge(self.account(session.uid), Slot.SOCKETS)
        self.next_socket = socket + 1

    def _add_minter(self, timeline: Timeline, session: Session) -> None:
        if timeline.context not in session.minting:
            timeline.minters.add(session.id)
            session.minting.add(timeline.context)
            self.account(session.uid).minters += 1

    def _remove_minter(self, timeline: Timeline, session: Session) -> None:
        if timeline.context in session.minting:
            timeline.minters.discard(session.id)
            session.minting.discard(timeline.context)
            self.account(session.uid).minters -= 1

    def _socket_made(self, event: e.SocketMade) -> None:
        self.timelines[event.context].sockets[event.socket] = event.inode

    def _creator_died(self, event: e.CreatorDied) -> None:
        for timeline in self.timelines.values():
            if timeline.creator == event.session:
                timeline.creator_alive = False
                timeline.past.note(event.at, "orphaned", timeline.value)

    def _socket_closed(self, event: e.SocketClosed) -> None:
        del self.timelines[event.context].sockets[event.socket]
        del self.sockets[event.socket]
        self.socket_charges.pop(event.socket).release()
        if event.socket in self.rings:
            self._remove_ring(self.rings[event.socket])

    # -- rings

    def _ring_opened(self, event: e.RingOpened) -> None:
        timeline = self.timelines[event.context]
        timeline.ring = Ring(event.socket, event.holder, Charge(self.account(timeline.uid), Slot.RINGS))
        self.rings[event.socket] = timeline
        self.await_points(timeline)

    def await_points(self, timeline: Timeline) -> None:
        """Find out for which of its points the producer has to ring."""
        for fence in timeline.points.values():
            if fence.arrays or any(sync_file.private for sync_file in fence.sync_files.values()):
                self._await(fence)
        self.rearm[timeline.context] = None

    def _ring_drained(self, event: e.RingDrained) -> None:
        known = self.timelines[event.context].ring
        assert known is not None
        known.taken = event.serial
        self.rearm[event.context] = None

    def _ring_frozen(self, event: e.RingFrozen) -> None:
        known = self.timelines[event.context].ring
        assert known is not None
        known.frozen = True

    def _ring_closed(self, event: e.RingClosed) -> None:
        self._remove_ring(self.timelines[event.context])

    def _remove_ring(self, timeline: Timeline) -> None:
        known, timeline.ring = timeline.ring, None
        assert known is not None
        known.charge.release()
        del self.rings[known.socket]
        self.rearm.pop(timeline.context, None)

    def _await(self, fence: Fence) -> None:
        """Somebody waits for ``fence`` whom its producer does not wake: if it is a ring's, the producer must ring when it passes it."""
        timeline = fence.timeline
        if timeline is not None and timeline.ring is not None and not fence.status:
            heapq.heappush(timeline.ring.awaited, fence.seqno)
            self.rearm[timeline.context] = None

    # -- the end of a timeline

    def _timeline_closed(self, event: e.TimelineClosed) -> None:
        timeline = self.timelines.pop(event.context)
        assert not timeline.sockets
        if timeline.name is not None:
            del self.names[timeline.uid, timeline.name]
        for session in list(timeline.minters):
            self._remove_minter(timeline, self.sessions[session])
        self.account(timeline.uid).failures -= len(timeline.failures)
        self.creators[timeline.creator] -= 1
        if not self.creators[timeline.creator]:
            del self.creators[timeline.creator]
            self.account(timeline.uid).creators -= 1
        timeline.charge.release()

    def _timeline_advanced(self, event: e.TimelineAdvanced) -> None:
        timeline = self.timelines[event.context]
        timeline.value = event.value
        timeline.advanced_at = event.at
        timeline.past.advanced(event.value, event.at)

    def _timeline_exported(self, event: e.TimelineExported) -> None:
        timeline = self.timelines[event.context]
        timeline.highest = event.highest
        timeline.past.note(event.at, "exported", event.highest, who=self.sessions[event.session].who)

    def _point_failed(self, event: e.PointFailed) -> None:
        timeline = self.timelines[event.context]
        timeline.past.note(event.at, "failed", event.seqno, event.status)
        failures, account = timeline.failures, self.account(timeline.uid)
        account.failures += event.seqno not in failures
        failures[event.seqno] = (event.status, event.at)
        # A user with many timelines pays with the oldest failure of the one that fails now; each keeps at least its last.
        if len(failures) > self.remembered_failures or (account.failures > self.failures_per_uid and len(failures) > 1):
            del failures[next(iter(failures))]
            account.failures -= 1

    # -- fences

    def _fence_created(self, event: e.FenceCreated) -> None:
        timeline = self.timelines[event.context]
        fence = Fence(event.fence, event.context, event.seqno, event.uid, event.at, timeline)
        fence.status = event.status
        fence.timestamp = event.timestamp
        timeline.points[event.seqno] = fence
        timeline.past.n_fences += 1
        if not event.status:
            timeline.add_pending(event.seqno)
        self._add_fence(fence, event.expires)

    def _stub_created(self, event: e.StubCreated) -> None:
        self._add_fence(Stub(event.fence, event.status, event.timestamp, event.uid, event.at, event.detached), None)

    def _array_created(self, event: e.ArrayCreated) -> None:
        members = tuple(self.fences[member] for member in event.members)
        charge = Charge(self.account(event.uid), Slot.MEMBERS, len(members))
        array = Array(event.fence, event.context, members, event.any, event.uid, event.at, charge)
        self._use_context(event.context)
        for member in members:
            if not member.status:
                member.add_array(array)
                self._await(member)
        self._add_fence(array, event.expires)

    def _placeholder_created(self, event: e.PlaceholderCreated) -> None:
        fence = Placeholder(event.fence, event.context, event.owner, event.name, event.seqno, event.uid, event.at)
        self._use_context(event.context)
        self.placeholders.setdefault((event.owner, event.name), {})[event.seqno, event.uid] = fence
        self._add_fence(fence, None)

    def _placeholder_bound(self, event: e.PlaceholderBound) -> None:
        fence = self.fences.pop(event.fence)
        point = self.fences[event.point]
        assert isinstance(fence, Placeholder)
        self._remove_placeholder(fence)
        self._await(point)
        if fence.n_open:
            self._unretain(point)
        for sync_file in fence.sync_files.values():
            sync_file.fence = point
        point.sync_files.update(fence.sync_files)
        if point.status:
            self._return(fence.sync_files.values())
        point.n_open += fence.n_open
        for array in fence.arrays.values():
            # Two users may have waited for one point: an array of both has one member then.
            del array.members[fence]
            array.members[point] = None
            if point.status or array.id in point.arrays:
                array.n_pending -= 1
            else:
                point.add_array(array)
            if point.status < 0 and not array.error:
                array.error = point.status
        if fence.deadline is not None and not point.status and (point.deadline is None or fence.deadline < point.deadline):
            point.deadline = fence.deadline

    def _remove_placeholder(self, fence: Placeholder) -> None:
        key = fence.owner, fence.name
        waiting = self.placeholders[key]
        del waiting[fence.wanted, fence.uid]
        if not waiting:
            del self.placeholders[key]

    def _fence_signalled(self, event: e.FenceSignalled) -> None:
        fence = self.fences[event.fence]
        fence.status = event.status
        fence.timestamp = event.at
        timeline = fence.timeline
        if timeline is not None:
            timeline.n_active -= 1
            timeline.past.signalled(fence, event.status, event.at)
        elif isinstance(fence, Array):
            self._unlink_array(fence)
        elif isinstance(fence, Placeholder):
            self._remove_placeholder(fence)
        for array in fence.arrays.values():
            array.n_pending -= 1
            if event.status < 0 and not array.error:
                array.error = event.status
        fence.arrays = NO_ARRAYS
        self.n_signalled += 1
        if fence.n_open < len(fence.sync_files):
            self._return(fence.sync_files.values())
        self._retain(fence)

    def _unlink_array(self, array: Array) -> None:
        for member in array.members:
            member.arrays.pop(array.id, None)

    def _deadline_set(self, event: e.DeadlineSet) -> None:
        self.fences[event.fence].deadline = event.deadline

    def _fence_forgotten(self, event: e.FenceForgotten) -> None:
        fence = self.fences.pop(event.fence)
        assert not fence.sync_files
        assert not fence.arrays
        self._unretain(fence)
        timeline = fence.timeline
        if timeline is not None:
            if timeline.points.get(fence.seqno) is fence:
                del timeline.points[fence.seqno]
            if not fence.status:
                timeline.n_active -= 1
        elif isinstance(fence, Array):
            fence.charge.release()
            if not fence.status:
                self._unlink_array(fence)
        elif isinstance(fence, Placeholder) and not fence.status:
            self._remove_placeholder(fence)

    # -- sync_files

    def _sync_file_created(self, event: e.SyncFileCreated) -> None:
        session = self.sessions[event.session]
        fence = self.fences[event.fence]
        charge = Charge(self.account(session.uid), Slot.SYNC_FILES)
        who = (session.uid, session.pid, session.comm)
        sync_file = SyncFile(event.handle, fence, event.name, event.session, who, event.at, event.private, charge)
        self.sync_files[event.handle] = sync_file
        self.next_handle = event.handle + 1
        if event.private:
            self._await(fence)
        session.handles[event.handle] = sync_file
        fence.sync_files[event.handle] = sync_file
        fence.n_open += 1
        if fence.status:
            self._unretain(fence)

    def _sync_file_released(self, event: e.SyncFileReleased) -> None:
        sync_file = self.sync_files[event.handle]
        assert sync_file.session is not None
        del self.sessions[sync_file.session].handles[event.handle]
        sync_file.session = None
        fence = sync_file.fence
        fence.n_open -= 1
        if fence.status:
            self._return((sync_file,))
            self._retain(fence)

    def _sync_file_dropped(self, event: e.SyncFileDropped) -> None:
        sync_file = self.sync_files[event.handle]
        if sync_file.session is not None:
            self._sync_file_released(e.SyncFileReleased(event.handle))
        del self.sync_files[event.handle]
        del sync_file.fence.sync_files[event.handle]
        self.account(sync_file.uid).returned.pop(event.handle, None)
        sync_file.charge.release()

    def _sync_file_tampered(self, event: e.SyncFileTampered) -> None:
        self.sync_files[event.handle].tampered = True

    def _subscribed(self, event: e.Subscribed) -> None:
        self.subscribers[event.session] = None
        self._rearm_all()

    def _rearm_all(self) -> None:
        """Whoever follows the events is told of each signal as it comes."""
        self.rearm.update((timeline.context, None) for timeline in self.rings.values())


FOLD: Final[dict[type, Callable[[State, Any], None]]] = {
    e.SessionOpened: State._session_opened,
    e.SessionClosed: State._session_closed,
    e.TimelineCreated: State._timeline_created,
    e.TimelineOpened: State._timeline_opened,
    e.TimelineShown: State._timeline_shown,
    e.TimelineForgotten: State._timeline_forgotten,
    e.TimelineModeSet: State._timeline_mode_set,
    e.SocketMade: State._socket_made,
    e.RingOpened: State._ring_opened,
    e.RingDrained: State._ring_drained,
    e.RingFrozen: State._ring_frozen,
    e.RingClosed: State._ring_closed,
    e.CreatorDied: State._creator_died,
    e.SocketClosed: State._socket_closed,
    e.TimelineClosed: State._timeline_closed,
    e.TimelineAdvanced: State._timeline_advanced,
    e.TimelineExported: State._timeline_exported,
    e.PointFailed: State._point_failed,
    e.FenceCreated: State._fence_created,
    e.StubCreated: State._stub_created,
    e.ArrayCreated: State._array_created,
    e.PlaceholderCreated: State._placeholder_created,
    e.PlaceholderBound: State._placeholder_bound,
    e.FenceSignalled: State._fence_signalled,
    e.DeadlineSet: State._deadline_set,
    e.FenceForgotten: State._fence_forgotten,
    e.SyncFileCreated: State._sync_file_created,
    e.SyncFileReleased: State._sync_file_released,
    e.SyncFileDropped: State._sync_file_dropped,
    e.SyncFileTampered: State._sync_file_tampered,
    e.Subscribed: State._subscribed,
}
