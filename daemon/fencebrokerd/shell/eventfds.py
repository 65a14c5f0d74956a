"""The broker's copies of all eventfds, and the writing of statuses to them.

A holder can clear the O_NONBLOCK that all copies share and fill the counter; our write would then block for ever.  So an interval timer
is armed around each batch: a write that blocks is interrupted within 20 ms, again and again, and the eventfd is reported as poisoned.
From then on O_NONBLOCK is set again before each write to one of that user's.

A write also wakes everybody who waits, and a holder can see to it that those are very many.  So a batch that takes long is cut: the rest is
put off, by user, and written when it is their turn again.  Whoever shows such a descriptor meanwhile finds it written.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from fencebroker.fds import OK_WORD, SignalResult, is_signalled, new_fence_eventfd, peek_status, status_word, write_status
from fencebrokerd.shell.identity import Identity
from fencebrokerd.shell.record import EventfdsMade

__all__ = ["Eventfds"]

GUARD_SECONDS: Final = 0.02
#: So long one batch of writes may take.  Waking 100,000 waiters of one descriptor takes as long, all of it within the write.
BATCH_SECONDS: Final = 0.02
_IN_OUT: Final = select.POLLIN | select.POLLOUT


class Eventfds:
    """Owns one eventfd per handle."""

    def __init__(self, identity: Identity) -> None:
        self._fds: dict[int, int] = identity.fds
        #: What did not fit into a batch: uid -> handle -> status, in order.
        self._put_off: dict[int, dict[int, int]] = {}
        #: Users one of whose sync_files has blocked.
        self._suspects: set[int] = set()
        self._identity = identity
        signal.signal(signal.SIGALRM, lambda *_: None)  # its only work is to interrupt

    def adopt(self, fds: dict[int, int]) -> None:
        """Take over what another broker of this table made: handle -> descriptor."""
        for handle, fd in fds.items():
            self._fds[handle] = fd
            self._identity.add_eventfd(handle, fd)

    def create(self, first: int, count: int) -> tuple[int, ...]:
        """Make an eventfd for each handle, all or none, and return the descriptors, borrowed; OSError is the kernel's."""
        made = []
        try:
            for handle in range(first, first + count):
                fd = new_fence_eventfd()
                self._fds[handle] = fd
                made.append(handle)
                self._identity.add_eventfd(handle, fd)
        except OSError:
            self.close(made)
            raise
        return tuple(self.numbers(made))

    def numbers(self, handles: Iterable[int]) -> list[int]:
        """Return the descriptors of ``handles``, borrowed."""
        return [self._fds[handle] for handle in handles]

    def signal(self, handles: Iterable[int], status: int, uid_of: Callable[[int], int]) -> tuple[list[int], list[int]]:
        """Write ``status``, or put off what does not fit into the time for one batch.

        Returns the handles that were tampered with, and the poisoned ones: those that blocked, and the rest of their uid's.
        A status that is there already stands: writing again is harmless, whoever wrote first.
        """
        waiting = deque(handles)
        tampered, poisoned = self._write(waiting, status, uid_of)
        for handle in waiting:
            self._put_off.setdefault(uid_of(handle), {})[handle] = status
        return tampered, poisoned

    def not_ok(self, handles: Iterable[int]) -> list[int]:
        """Those of ``handles`` that do not say OK, by one look at all: what says exactly that is readable and takes no more."""
        fds = {fd: handle for handle in handles if (fd := self._fds.get(handle)) is not None}
        poll = select.poll()
        for fd in fds:
            poll.register(fd, _IN_OUT)
        for fd, happened in poll.poll(0):
            if happened == select.POLLIN:
                del fds[fd]
        return list(fds.values())

    def put_off(self) -> list[int]:
        """The users for whose sync_files there is something left to write."""
        return list(self._put_off)

    def resume(self, uid: int, uid_of: Callable[[int], int]) -> tuple[list[int], list[int]]:
        """Go on with what was put off for a user, for as long as one batch may take."""
        left = self._put_off.pop(uid, {})
        if not left:
            return [], []
        status = next(iter(left.values()))
        same = [handle for handle, each in left.items() if each == status]
        for handle in same:
            del left[handle]
        waiting = deque(same)
        tampered, poisoned = self._write(waiting, status, uid_of)
        rest = {**dict.fromkeys(waiting, status), **left}
        if rest:
            self._put_off[uid] = {**rest, **self._put_off.get(uid, {})}
        return tampered, poisoned

    def settle(self, handles: Iterable[int]) -> None:
        """Write now what was put off for these, because somebody looks at them, or our copy is about to be closed."""
        if self._put_off:
            for handle in handles:
                for uid, left in self._put_off.items():
                    status = left.pop(handle, None)
                    if status is not None:
                        self._write(deque((handle,)), status, lambda _, uid=uid: uid)  # type: ignore[misc]
            self._put_off = {uid: left for uid, left in self._put_off.items() if left}

    def _write(self, waiting: deque[int], status: int, uid_of: Callable[[int], int]) -> tuple[list[int], list[int]]:
        """Write to one after the other, until the time of a batch is over; what is left stays in ``waiting``."""
        word = status_word(status)
        fds = self._fds
        tampered: list[int] = []
        poisoned: list[int] = []
        hostile: set[int] = set()
        end = time.monotonic() + BATCH_SECONDS
        signal.setitimer(signal.ITIMER_REAL, GUARD_SECONDS, GUARD_SECONDS)
        try:
            while waiting:
                handle = waiting.popleft()
                fd = fds.get(handle)
                if fd is None:
                    continue
                if hostile and uid_of(handle) in hostile:
                    poisoned.append(handle)
                    continue
                if self._suspects and uid_of(handle) in self._suspects:
                    os.set_blocking(fd, False)  # once more; who wins this race costs what the guard allows
                try:
                    if word == OK_WORD or not is_signalled(fd):
                        os.eventfd_write(fd, word)
                    elif (result := self._insist(fd, word)) is None:
                        raise InterruptedError
                    elif result != SignalResult.ALREADY:
                        tampered.append(handle)
                except BlockingIOError:
                    with contextlib.suppress(OSError):  # no descriptor left to look at the count with
                        if peek_status(fd) == status:
                            continue  # its producer was first
                    result = self._insist(fd, word)
                    if result is None:
                        hostile.add(uid_of(handle))
                        poisoned.append(handle)
                        continue
                    if result != SignalResult.ALREADY:
                        tampered.append(handle)
                except InterruptedError:
                    hostile.add(uid_of(handle))
                    poisoned.append(handle)
                    continue
                if time.monotonic() > end and not hostile:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._suspects |= hostile
        return tampered, poisoned

    def _insist(self, fd: int, word: int) -> int | None:
        """Somebody wrote before us: top a forged count up; None if that write blocked."""
        try:
            result = write_status(fd, word)
        except InterruptedError:
            return None
        except OSError:  # no descriptor left to look at the count with
            return SignalResult.TAMPERED
        return SignalResult.TAMPERED if result == SignalResult.WRITTEN else result

    def close(self, handles: Iterable[int]) -> None:
        """Close our copies.  They are recognised as ours, so closing them cannot block."""
        handles = list(handles)
        self.settle(handles)
        for handle in handles:
            fd = self._fds.pop(handle, None)
            if fd is not None:
                self._identity.remove_eventfd(handle)
                os.close(fd)

    def carries(self, handle: int) -> int | None:
        """The status that an eventfd says, None if no broker left it so."""
        return peek_status(self._fds[handle]) if handle in self._fds else None

    def unsignalled(self, handles: Iterable[int]) -> set[int]:
        """Those of ``handles`` whose eventfd nobody has written to."""
        fds = {self._fds[handle]: handle for handle in handles if handle in self._fds}
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        written = {fds[fd] for fd, _ in poll.poll(0)}
        return set(fds.values()) - written

    def entries(self) -> Iterator[EventfdsMade]:
        """Say which descriptor each handle's copy is, those of handles in a row together."""
        run: list[int] = []
        first = 0
        for handle, fd in self._fds.items():
            if handle != first + len(run):
                if run:
                    yield EventfdsMade(first, tuple(run))
                first, run = handle, []
            run.append(fd)
        if run:
            yield EventfdsMade(first, tuple(run))

    def close_all(self) -> None:
        """Close every copy."""
        self.close(list(self._fds))

    def __len__(self) -> int:
        return len(self._fds)
