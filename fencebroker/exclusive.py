"""What the only owner of a timeline does by itself: it commits to the ring, then writes its own eventfds, and the broker sleeps on.

Facts
  A commit comes before the writes: a producer that dies in between leaves the writing to the broker, and one that dies before has signalled
  nothing.  ``tests/models/ring.py`` has every order of the steps.
  A SyncFile may be given back at any moment, also while objects are collected in the middle of anything: so taking a duplicate out of the table
  is one step of a dict, and needs no lock.
Rules
  The caller holds the timeline's lock, except for ``forget``.
  A duplicate is kept for each active export, also after the user's own was closed or detached, for others may have it.
"""

from __future__ import annotations

import os
from heapq import heapify, heappop, heappush
from time import monotonic_ns
from typing import Final

from fencebroker.fds import OK_WORD, OwnedFd, is_signalled, signal_and_close, status_word
from fencebroker.mapping import Mapping
from fencebroker.ring import CLOSE, FROZEN, RING_BYTES, Writer

__all__ = ["Exclusive"]

#: In place of a duplicate that could not be made, at the descriptor limit: the broker is to write that one.
_NOT_OURS: Final = -1


class Exclusive:
    """Owns the producer's end of a ring, and the duplicates of its timeline's active exports."""

    _is_open = False  # until it is made

    def __init__(self, memory: OwnedFd) -> None:
        """Map the memory the broker sent, which stays the caller's.  OSError where that is not possible."""
        self._mapping = Mapping(memory.fileno(), RING_BYTES)
        self._writer = Writer(self._mapping.view)
        self._words = self._writer.words
        self._unread = 0  # the counter of the last packet, until the broker has handled it
        self._duplicates: dict[int, int] = {}  # by handle
        self._order: list[tuple[int, int]] = []  # a heap of seqno and handle
        self._is_open = True

    @property
    def committed(self) -> int:
        """How much of what was signalled here nothing can undo."""
        return self._writer.committed

    def is_ready(self) -> bool:
        """Whether the next signal may go through the ring: nothing on the socket is to come before it, and it fits."""
        writer = self._writer
        if self._unread:
            if writer.seen != self._unread:
                return False
            self._unread = 0
        return (writer.committed < writer.limit or writer.has_room()) and not self._words[FROZEN]

    def sent(self, counter: int) -> None:
        """A packet went out on the socket: what comes after it waits until the broker has handled it."""
        self._unread = counter

    def signal(self, op: int, number: int, error: int, value: int) -> bool | None:
        """Commit, and write what the new ``value`` passes, in few steps, for whoever signals slept before.  True: ring the doorbell.

        None, and nothing is done, while it is not ready.
        """
        if not self.is_ready():
            return None
        writer = self._writer
        bell = writer.commit(op, number, error, monotonic_ns())
        if self._words[FROZEN]:  # the broker decides for itself just now, and writes this too
            self.leave(value)
            return True
        order, duplicates = self._order, self._duplicates
        while order and order[0][0] <= value:
            seqno, handle = heappop(order)
            fd = duplicates.pop(handle, None)
            if fd is not None:
                word = status_word(-error) if error and seqno == value else OK_WORD
                bell = fd == _NOT_OURS or not signal_and_close(fd, word) or bell
        return bell or writer.is_awaited(value)

    def leave(self, value: int) -> None:
        """Leave the writing of what ``value`` passes to the broker."""
        order = self._order
        while order and order[0][0] <= value:
            self.forget(heappop(order)[1])

    def keep(self, handle: int, seqno: int, fd: int, value: int) -> bool:
        """Keep a duplicate of a new export.  True: ring the doorbell, for another thread passed it while its export was under way."""
        if seqno <= value:
            return not is_signalled(fd)
        try:
            self._duplicates[handle] = os.dup(fd)
        except OSError:
            self._duplicates[handle] = _NOT_OURS
        heappush(self._order, (seqno, handle))
        if len(self._order) > 2 * len(self._duplicates) + 64:  # those that were given back leave their place behind
            self._order = [place for place in self._order if place[1] in self._duplicates]
            heapify(self._order)
        return False

    def forget(self, handle: int) -> None:
        """Nobody can see this one any more, or it is not to be written here.  From any thread."""
        fd = self._duplicates.pop(handle, _NOT_OURS)
        if fd != _NOT_OURS:
            os.close(fd)

    def leave_all(self) -> None:
        """Leave everything that is active to the broker."""
        for handle in list(self._duplicates):
            self.forget(handle)

    def hand_out(self) -> None:
        """Say that nothing more comes this way, and let go: others may signal from here on."""
        self._writer.commit(CLOSE, 0, 0, monotonic_ns())
        self.close()

    def close(self) -> None:
        """Let go of everything."""
        self._is_open = False
        self.leave_all()
        self._writer.close()
        self._mapping.close()

    def __del__(self) -> None:
        if self._is_open:
            self.close()

    def abandon(self) -> None:
        """In a forked child: the duplicates are its own copies, the ring is not here."""
        self._is_open = False
        self.leave_all()
        self._writer.close()
        self._mapping.abandon()
