"""Accounts: what one uid has in use.  A charge is embedded in the object that costs and is given back exactly once.

Limits are checked before anything changes (``Turn.check_*``), charges are made and released by the fold of events, so an account is right
after a replay too.  ``State.assert_empty`` asserts at the end of a broker's life that every account is zero.

How much of a pool one uid may have (``allowance``)
  Nothing that is in use can be taken away again, and nobody knows who will come.  So the rule is about what is left: after a grant, what is
  left of the pool must be at least n times what the asker has then, n being the number of users that have some of it, the asker included.

  Be P the pool, F what is left of it, m what the asker has, s what it would have after the grant:  n * s <= F - (s - m), that is
  s <= (F + m) / (n + 1).  Of n users that come one after the other and take all they can, each leaves F' = F * n / (n + 1), so that
  F = P / (n + 1) is left, and the n-th has P / (n * (n + 1)).  However greedy n users are, the next one gets 1 / (n + 1) of what nobody has
  taken yet, and between 1/n and 1/n**2 of a pool that was shared evenly.  This is what dbus-broker guarantees its users.

  Two things differ.  A user who is alone may have more than half, ``alone`` of the pool: on most machines there is one.  Those who come after
  it share the rest by the rule above, so with 0.8 the n-th of n greedy users has 0.4 * P / (n * (n + 1)).  And whoever has nothing gets one
  while one is left, so that a small pool serves as many users as it has units.

  What gives way on demand (descriptors that are kept in case they come back) counts as left.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Account", "Charge", "Slot", "allowance"]


class Slot(Enum):
    """What is counted; the value is the attribute of the account."""

    SESSIONS = "sessions"
    TIMELINES = "timelines"
    #: Descriptors of timelines: who opens another's timeline pays for its own descriptor.
    SOCKETS = "sockets"
    #: Memory that producers share with the broker.
    RINGS = "rings"
    #: Sessions whose process is watched, because it created timelines that still exist.
    CREATORS = "creators"
    SYNC_FILES = "sync_files"
    MEMBERS = "members"
    #: Timelines on which sessions may mint, once per session.
    MINTERS = "minters"
    #: Failed points that timelines remember.
    FAILURES = "failures"
    #: Descriptors that a user sent and that are not the broker's, until they are closed.  No event tells of them: the shell charges them.
    CLOSING = "closing"


class Account:
    """One uid's use.

    ``retained`` holds the ids of signalled fences without an open handle, ``returned`` the handles of its sync_files that were given back and
    whose fence has signalled; both oldest first.
    """

    __slots__ = (
        "closing",
        "creators",
        "failures",
        "members",
        "minters",
        "retained",
        "returned",
        "rings",
        "sessions",
        "sockets",
        "sync_files",
        "timelines",
        "uid",
    )

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.sessions = 0
        self.timelines = 0
        self.sockets = 0
        self.rings = 0
        self.creators = 0
        self.sync_files = 0
        self.members = 0
        self.minters = 0
        self.failures = 0
        self.closing = 0
        self.retained: dict[int, None] = {}
        self.returned: dict[int, None] = {}

    def used(self, slot: Slot) -> int:
        """How many units of ``slot`` there are; of sync_files those that do not give way."""
        if slot is Slot.SYNC_FILES:
            return self.sync_files - len(self.returned)
        used: int = getattr(self, slot._value_)
        return used

    @property
    def descriptors(self) -> int:
        """How many descriptors of the broker's there are for this user; those that give way do not count."""
        return self.sessions + self.sockets + self.rings + self.creators + self.sync_files - len(self.returned)

    @property
    def is_empty(self) -> bool:
        return not (self.retained or self.returned or any(getattr(self, slot.value) for slot in Slot))

    def __repr__(self) -> str:
        use = ", ".join(f"{slot.value} {getattr(self, slot.value)}" for slot in Slot)
        return f"<account of uid {self.uid}: {use}, retained {len(self.retained)}, returned {len(self.returned)}>"


class Charge:
    """So many units of one slot of one account, from its making until ``release``."""

    __slots__ = ("_account", "_slot", "n")

    def __init__(self, account: Account, slot: Slot, n: int = 1) -> None:
        self._account: Account | None = account
        self._slot = slot
        self.n = n
        self._add(account, n)

    @property
    def uid(self) -> int:
        """Who pays."""
        assert self._account is not None
        return self._account.uid

    def release(self) -> None:
        """Give it back; a second time is a bug of the broker."""
        account, self._account = self._account, None
        if account is None:
            raise AssertionError(f"a charge of {self._slot.value} was released twice")
        self._add(account, -self.n)

    def _add(self, account: Account, n: int) -> None:
        if self._slot is Slot.SYNC_FILES:  # the one that is made all the time
            account.sync_files += n
        else:
            name = self._slot._value_  # without the detour of ``value``, which costs as much as the rest
            setattr(account, name, getattr(account, name) + n)


def allowance(pool: int, left: int, mine: int, n_others: int, alone: float = 1.0) -> int:
    """How many units of ``pool`` a user who has ``mine`` may have in all, while ``left`` are left and ``n_others`` have some; see above."""
    most = (left + mine) // (n_others + 2) if n_others else int(pool * alone)
    return max(min(most, left + mine), 1 if left > 0 and not mine else 0)
