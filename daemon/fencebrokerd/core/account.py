"""Accounts: what one uid has in use.  A charge is embedded in the object that costs and is given back exactly once.

Limits are checked before anything changes (``check_*``), charges are made and released by the fold of events, so an account is right
after a replay too.  ``statistics()`` of the state asserts nothing; ``State.assert_empty`` does, at the end of a broker's life.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Account", "Charge", "Slot"]


class Slot(Enum):
    """What is counted."""

    SESSIONS = "sessions"
    TIMELINES = "timelines"
    SYNC_FILES = "sync_files"
    MEMBERS = "members"


class Account:
    """One uid's use.

    ``retained`` holds the ids of signalled fences without an open handle, ``returned`` the handles of its sync_files that were given back and
    whose fence has signalled; both oldest first.
    """

    __slots__ = ("members", "retained", "returned", "sessions", "sync_files", "timelines", "uid")

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.sessions = 0
        self.timelines = 0
        self.sync_files = 0
        self.members = 0
        self.retained: dict[int, None] = {}
        self.returned: dict[int, None] = {}

    @property
    def is_empty(self) -> bool:
        return not (self.sessions or self.timelines or self.sync_files or self.members or self.retained or self.returned)


class Charge:
    """So many units of one slot of one account, from its making until ``release``."""

    __slots__ = ("_account", "_slot", "n")

    def __init__(self, account: Account, slot: Slot, n: int = 1) -> None:
        self._account: Account | None = account
        self._slot = slot
        self.n = n
        self._add(account, n)

    def release(self) -> None:
        """Give it back; a second time is a bug of the broker."""
        account, self._account = self._account, None
        if account is None:
            raise AssertionError(f"a charge of {self._slot.value} was released twice")
        self._add(account, -self.n)

    def _add(self, account: Account, n: int) -> None:
        if self._slot is Slot.SYNC_FILES:
            account.sync_files += n
        elif self._slot is Slot.TIMELINES:
            account.timelines += n
        elif self._slot is Slot.MEMBERS:
            account.members += n
        else:
            account.sessions += n
