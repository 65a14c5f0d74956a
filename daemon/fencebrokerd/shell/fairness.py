"""Whose turn it is: the user who was served least so far, of those who want something.

Rule (start-time fair queueing)
  Each user has a clock that runs while the broker works for it.  Whoever's clock shows least goes first.  A clock that shows less than the one
  of who was served last is set to that: wanting little, or nothing for a while, is no credit.  So n users who want everything get a n-th each,
  however many sessions and timelines each of them has, and who wants little is served next.
Plan
  epoll says who wants something.  After ``QUANTUM`` it is asked again, for somebody may have come who was served less.  While only one user
  wants something, which is nearly always, it is asked after ``ALONE``, and none of the rest costs anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

__all__ = ["EVERYBODY", "NOBODY", "Fairness"]

#: Work that comes before everybody's: signals to the process, its own watchdog.
NOBODY: Final = -2
#: Work for users who are not known yet: connections that come in.
EVERYBODY: Final = -1
#: How long the work on one answer of epoll goes on while others wait, in nanoseconds: some ten packets.
QUANTUM: Final = 100_000
#: The same while nobody else wants anything: so long whoever comes waits.
ALONE: Final = 200_000
#: Whoever was worked for so long of late is busy.  Of late: what is older by ``HALF`` counts half.
BUSY: Final = 1_000_000
HALF: Final = 50_000_000
#: Users whose clocks are kept; one that shows no more than the least is as good as none.
KEPT: Final = 1024

Event = tuple[int, int]


class Fairness:
    """Orders what there is to do.  ``now`` is the clock, for tests."""

    def __init__(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._served: dict[int, int] = {}
        self._recent: dict[int, tuple[float, int]] = {}  # time of late, and when that was
        self._least = 0
        self._user = NOBODY
        self._since = 0
        self._next: dict[int, int] = {}  # by user: the descriptor with which to go on

    def order(self, events: Sequence[Event], uid_of: Callable[[int], int]) -> Iterable[Event]:
        """The events of an epoll in the order in which they are to be handled; those that are left out come with the next poll."""
        return events if len(events) == 1 else self._in_turns(events, uid_of)

    def _in_turns(self, events: Sequence[Event], uid_of: Callable[[int], int]) -> Iterator[Event]:
        waiting: dict[int, deque[Event]] = {}
        for event in events:
            waiting.setdefault(uid_of(event[0]), deque()).append(event)
        yield from waiting.pop(NOBODY, ())
        self._go_on(waiting)
        began = self._now()
        if len(waiting) < 2:
            for uid, queue in waiting.items():
                elapsed = 0
                while queue and elapsed <= ALONE:
                    yield queue.popleft()
                    elapsed = self._now() - began
                if queue:
                    self._next[uid] = queue[0][0]
                self._note(uid, elapsed, began + elapsed)
            return
        self._forget()
        while waiting:
            uid = min(waiting, key=self.served)
            queue = waiting[uid]
            event = queue.popleft()
            if not queue:
                del waiting[uid]
            self._least = self.served(uid)
            before = self.work_for(uid)
            yield event
            self.work_for(before)
            if self._since - began > QUANTUM:
                self._next = {uid: queue[0][0] for uid, queue in waiting.items()}
                return

    def _go_on(self, waiting: dict[int, deque[Event]]) -> None:
        """Begin where it was left last time: epoll reports in the same order again and again, and whoever comes late in it would never be served."""
        while self._next:
            uid, first = self._next.popitem()
            queue = waiting.get(uid, deque[Event]())
            for n, (fd, _) in enumerate(queue):
                if fd == first:
                    queue.rotate(-n)
                    break

    def served(self, uid: int) -> int:
        """What the clock of ``uid`` shows."""
        return max(self._served.get(uid, 0), self._least)

    def is_busy(self, uid: int) -> bool:
        """Whether there was much work for ``uid`` of late."""
        recent, at = self._recent.get(uid, (0.0, 0))
        return recent > BUSY and recent * 0.5 ** ((self._now() - at) / HALF) > BUSY

    def work_for(self, uid: int) -> int:
        """From now on the broker works for ``uid``; returns for whom it did until now."""
        now, before = self._now(), self._user
        if before != NOBODY:
            self._served[before] = self.served(before) + now - self._since
            self._note(before, now - self._since, now)
        self._user, self._since = uid, now
        return before

    def _note(self, uid: int, elapsed: int, now: int) -> None:
        """So long there was work for ``uid``.  Its clock runs only while others wait too: else whoever comes would be first for as long."""
        recent, at = self._recent.get(uid, (0.0, now))
        self._recent[uid] = recent * 0.5 ** ((now - at) / HALF) + elapsed, now
        if len(self._recent) > KEPT:  # who is busy is known to be again after ``BUSY``
            self._recent.clear()

    def _forget(self) -> None:
        if len(self._served) > KEPT:
            self._served = {uid: clock for uid, clock in self._served.items() if clock > self._least}
