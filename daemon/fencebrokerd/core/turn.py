"""One turn: the state, the time, and what the decisions of this turn have emitted so far."""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

from fencebroker.errors import Refusal
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core.account import Slot, allowance
from fencebrokerd.core.state import FOLD, nobody
from fencebrokerd.core.trace import render

if TYPE_CHECKING:
    from fencebroker.limits import Limits
    from fencebrokerd.core.account import Account
    from fencebrokerd.core.events import Event
    from fencebrokerd.core.fence import Array, Fence
    from fencebrokerd.core.state import State
    from fencebrokerd.core.trace import Line

__all__ = ["QUOTAS", "Turn"]

#: What a user is told about a slot.
QUOTAS: Final = {
    Slot.SESSIONS: "sessions per user",
    Slot.TIMELINES: "timelines per user",
    Slot.SOCKETS: "timeline descriptors per user",
    Slot.SYNC_FILES: "sync_files per user",
    Slot.MEMBERS: "members of merges per user",
    Slot.MINTERS: "timelines that sessions mint on per user",
    Slot.CLOSING: "foreign descriptors still open per user",
}

#: Where the limits of a slot stand: in all, and with ``_per_uid`` for one user.
TABLES: Final = {
    Slot.SESSIONS: "sessions",
    Slot.TIMELINES: "timelines",
    Slot.SOCKETS: "timelines",
    Slot.MEMBERS: "members",
    Slot.CLOSING: "closing",
}


class Turn:
    """Collects events and effects.  An event changes the state at once, so that what is decided next sees it.

    ``events`` are those since the shell last took them.
    """

    __slots__ = (
        "beside",
        "crowded",
        "effects",
        "events",
        "leftovers",
        "limits",
        "lines",
        "now",
        "quotas",
        "serial",
        "session",
        "state",
        "waits",
    )

    def __init__(self, state: State, limits: Limits) -> None:
        self.state = state
        self.limits = limits
        self.now = 0
        #: Whose request is in hand, or was last; at first nobody's.
        self.session = nobody()
        self.serial = 0
        self.events: list[Event] = []
        self.effects: list[fx.Effect] = []
        #: Limits of users who have their own, by uid.
        self.quotas: Mapping[int, Limits] = {}
        #: Descriptors in use that the state does not know of: of connections before their hello, in queues, still to be closed.
        self.beside = 0
        #: While anybody follows the events, each is rendered as a line.
        self.lines: list[Line] = []
        #: Waits that were announced while somebody followed the events: by session, then by number.
        self.waits: dict[int, dict[int, Fence]] = {}
        #: What ``signalling.tidy`` has to look at after the effects are carried out, for whoever waits is woken first: users whose signalled
        #: records may be over the quota, and arrays that may have left active members behind.
        self.crowded: set[int] = set()
        self.leftovers: list[Array] = []

    def emit(self, event: Event) -> None:
        """Record ``event`` and fold it in."""
        self.events.append(event)
        if self.state.subscribers:
            self.lines.extend(render(self.state, event, self.now, self.session))
        FOLD[type(event)](self.state, event)

    def do(self, effect: fx.Effect) -> None:
        """Ask the shell for something, after what was asked before."""
        self.effects.append(effect)

    def answer(self, *results: object, handles: tuple[int, ...] | range = (), socket: int | None = None, ring: int | None = None) -> None:
        """Answer the request in hand."""
        self.effects.append(fx.Send(self.session.id, [self.serial, 0, *results], handles, socket, ring))

    # -- quotas: checked before anything is emitted

    def limits_of(self, uid: int) -> Limits:
        """The limits of one user: what the policy gives it, else everybody's."""
        return self.quotas.get(uid, self.limits)

    def limit_of(self, uid: int, slot: Slot) -> int:
        """How many units of ``slot`` a user may have at this moment: its own limit, or its share of what there is."""
        limits, accounts = self.limits_of(uid), self.state.accounts.values()
        account = self.state.account(uid)
        mine = account.used(slot)
        if slot is Slot.MINTERS:
            return limits.minters_per_uid
        if slot is Slot.SYNC_FILES:
            return max(0, self.share_of(uid, limits.sync_files_share) - account.descriptors + mine)
        name = TABLES[slot]
        own: int = getattr(limits, f"{name}_per_uid")
        pool: int = getattr(self.limits, name)
        if slot is Slot.CLOSING:
            pool = min(pool, (limits.descriptors - limits.descriptor_reserve) // 4)
        used = [other.used(slot) for other in accounts if other is not account]
        return min(own, allowance(pool, pool - mine - sum(used), mine, sum(map(bool, used))))

    def share_of(self, uid: int, alone: float) -> int:
        """How many of the broker's descriptors there may be for a user at this moment; ``alone`` of all while nobody else wants any."""
        state, limits = self.state, self.limits
        account = state.account(uid)
        pool = limits.descriptors - limits.descriptor_reserve - self.beside
        used = n_others = 0
        for other in state.accounts.values():
            used += other.descriptors
            # Who only looks takes nothing that others want.
            n_others += other is not account and bool(other.sockets or other.used(Slot.SYNC_FILES))
        return min(int(pool * alone), allowance(pool, pool - used, account.descriptors, n_others, alone))

    def check_share(self, uid: int, slot: Slot, n: int = 1) -> None:
        """Refuse with EDQUOT when a user may not have ``n`` more units of ``slot``."""
        used = self.state.account(uid).used(slot)
        limit = self.limit_of(uid, slot)
        if used + n > limit:
            self.refuse(errno.EDQUOT, QUOTAS[slot], limit, used, n)

    def check_sync_files(self, n: int, refs: Iterable[int | None] = (), references: Iterable[fx.Reference] = ()) -> None:
        """Refuse with EMFILE or EDQUOT when ``n`` more sync_files of this session's uid do not fit.

        Copies of signalled ones, kept in case somebody asks, give way; not those that this request names or shows.
        """
        uid, state, limits = self.session.uid, self.state, self.limits
        account = state.account(uid)
        mine = account.descriptors + len(account.returned) + n
        pool = limits.descriptors - limits.descriptor_reserve - self.beside
        # The rule with everybody known taken for a user: who passes it needs no counting.
        if mine * (len(state.accounts) + 1) <= pool - state.n_descriptors and mine <= int(pool * self.limits_of(uid).sync_files_share):
            return
        keep = {ref for ref in refs if ref is not None}
        keep.update(reference.handle for reference in references if isinstance(reference, fx.KnownFence))
        self.check_descriptors(n, "sync_files", keep)
        limit = self.limit_of(uid, Slot.SYNC_FILES)
        excess = account.sync_files + n - limit
        if excess > 0 and not self._make_room([account], excess, keep):
            self.refuse(errno.EDQUOT, QUOTAS[Slot.SYNC_FILES], limit, account.sync_files, n)

    def check_descriptors(self, n: int, what: str, keep: Container[int] = ()) -> None:
        """Refuse with EMFILE when the broker's descriptor limit less the reserve does not fit ``n`` more."""
        room = self.limits.descriptors - self.limits.descriptor_reserve
        used = self.state.n_descriptors + self.beside
        if used + n > room:
            accounts = sorted(self.state.accounts.values(), key=lambda account: len(account.returned), reverse=True)
            if not self._make_room(accounts, used + n - room, keep):
                self.refuse(errno.EMFILE, f"descriptors of the broker ({what})", room, used, n)

    def _make_room(self, accounts: Iterable[Account], n: int, keep: Container[int]) -> bool:
        """Let go of ``n`` descriptors that were given back and have signalled, oldest first; False, and nothing, if there are fewer."""
        candidates = (handle for account in accounts for handle in account.returned if handle not in keep)
        handles = list(islice(candidates, n))
        if len(handles) < n:
            return False
        for handle in handles:
            self.emit(e.SyncFileDropped(handle))
        self.do(fx.CloseHandles(handles))
        return True

    def check_timelines(self) -> None:
        """Refuse when another timeline does not fit."""
        limits, state, uid = self.limits, self.state, self.session.uid
        account = state.account(uid)
        own = self.limits_of(uid).timelines_per_uid
        if account.timelines < own and len(state.timelines) >= limits.timelines:
            self.refuse(errno.EDQUOT, "timelines in all", limits.timelines, len(state.timelines), 1)
        self.check_share(uid, Slot.TIMELINES)
        self.check_sockets()

    def check_sockets(self) -> None:
        """Refuse when another descriptor of a timeline does not fit."""
        uid = self.session.uid
        self.check_share(uid, Slot.SOCKETS)
        self.check_descriptors(2, "timelines")
        self._check_share_of_descriptors()

    def check_ring(self) -> None:
        """Refuse when a ring does not fit."""
        self.check_descriptors(1, "rings")
        self._check_share_of_descriptors()

    def _check_share_of_descriptors(self) -> None:
        uid = self.session.uid
        share, used = self.share_of(uid, 1.0), self.state.account(uid).descriptors
        if used >= share:
            self.refuse(errno.EDQUOT, "descriptors per user", share, used, 1)

    def refuse(self, error: int, quota: str, limit: int, used: int, n: int) -> NoReturn:
        """Refuse for a quota."""
        raise Refusal(error, f"{quota}: {used} of {limit} are in use and {n} more do not fit", (quota, limit, used))

    @property
    def sees_all(self) -> bool:
        """Whether this session may inspect other users' objects."""
        return self.state.sees_all(self.session.uid)
