"""One turn: the state, the time, and what the decisions of this turn have emitted so far."""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

from fencebroker.errors import Refusal
from fencebrokerd.core import effects as fx
from fencebrokerd.core import events as e
from fencebrokerd.core.state import FOLD
from fencebrokerd.core.trace import render

if TYPE_CHECKING:
    from fencebroker.model import Limits
    from fencebrokerd.core.account import Account
    from fencebrokerd.core.events import Event
    from fencebrokerd.core.fence import Array, Fence
    from fencebrokerd.core.state import Session, State
    from fencebrokerd.core.trace import Line

__all__ = ["Turn"]


class Turn:
    """Collects events and effects.  An event changes the state at once, so that what is decided next sees it."""

    __slots__ = ("crowded", "effects", "events", "leftovers", "limits", "lines", "now", "serial", "session", "state", "tracing", "waits")

    def __init__(self, state: State, limits: Limits) -> None:
        self.state = state
        self.limits = limits
        self.now = 0
        self.session: Session
        self.serial = 0
        self.events: list[Event] = []
        self.effects: list[fx.Effect] = []
        #: Sessions that asked for events; while there are any, each event is rendered as a line.
        self.tracing: set[int] = set()
        self.lines: list[Line] = []
        #: Waits that were announced while somebody was tracing: by session, then by number.
        self.waits: dict[int, dict[int, Fence]] = {}
        #: What ``signalling.tidy`` has to look at after the effects are carried out, for whoever waits is woken first: users whose signalled
        #: records may be over the quota, and arrays that may have left active members behind.
        self.crowded: set[int] = set()
        self.leftovers: list[Array] = []

    def emit(self, event: Event) -> None:
        """Record ``event`` and fold it in."""
        self.events.append(event)
        if self.tracing:
            self.lines.extend(render(self.state, event, self.now, self.session))
        FOLD[type(event)](self.state, event)

    def do(self, effect: fx.Effect) -> None:
        """Ask the shell for something, after what was asked before."""
        self.effects.append(effect)

    def answer(self, *results: object, handles: tuple[int, ...] | range = (), socket: int | None = None) -> None:
        """Answer the request in hand."""
        self.effects.append(fx.Send(self.session.id, [self.serial, 0, *results], handles, socket))

    # -- quotas: checked before anything is emitted

    def check_sync_files(self, n: int, keep: Iterable[fx.Reference] = ()) -> None:
        """Refuse with EMFILE or EDQUOT when ``n`` more sync_files of this session's uid do not fit.

        Copies of signalled ones, kept in case somebody asks, give way; not those that this request shows (``keep``).
        """
        handles = {reference.handle for reference in keep if isinstance(reference, fx.KnownFence)}
        self.check_descriptors(n, "sync_files", handles)
        limits, state = self.limits, self.state
        account = state.account(self.session.uid)
        pool = limits.descriptors - limits.descriptor_reserve - 2 * len(state.sessions) - len(state.sockets)
        share = int(pool * limits.sync_files_share)
        if account.sync_files + n > share and not self._make_room([account], account.sync_files + n - share, handles):
            self.refuse(errno.EDQUOT, "sync_files per user", share, account.sync_files, n)

    def check_descriptors(self, n: int, what: str, keep: Container[int] = ()) -> None:
        """Refuse with EMFILE when the broker's descriptor limit less the reserve does not fit ``n`` more."""
        room = self.limits.descriptors - self.limits.descriptor_reserve
        used = self.state.n_descriptors
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
        limits, state = self.limits, self.state
        account = state.account(self.session.uid)
        if account.timelines >= limits.timelines_per_uid:
            self.refuse(errno.EDQUOT, "timelines per user", limits.timelines_per_uid, account.timelines, 1)
        if len(state.timelines) >= limits.timelines:
            self.refuse(errno.EDQUOT, "timelines in all", limits.timelines, len(state.timelines), 1)
        self.check_descriptors(2, "timelines")

    def refuse(self, error: int, quota: str, limit: int, used: int, n: int) -> NoReturn:
        """Refuse for a quota."""
        raise Refusal(error, f"{quota}: {used} of {limit} are in use and {n} more do not fit", (quota, limit, used))

    @property
    def sees_all(self) -> bool:
        """Whether this session may inspect other users' objects."""
        return self.session.uid in (0, self.state.own_uid)
