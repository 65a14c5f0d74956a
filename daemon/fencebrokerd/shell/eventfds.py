"""The broker's copies of all eventfds, and the writing of statuses to them.

A holder can clear the O_NONBLOCK that all copies share and fill the counter; our write would then block for ever.  So an interval timer
is armed around each batch: a write that blocks is interrupted within 20 ms, again and again, and the eventfd is reported as poisoned.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fencebroker.fds import OK_WORD, SignalResult, is_signalled, new_fence_eventfd, status_word, write_status
from fencebrokerd.shell.identity import Identity

__all__ = ["Eventfds"]

GUARD_SECONDS: Final = 0.02


class Eventfds:
    """Owns one eventfd per handle."""

    def __init__(self, identity: Identity) -> None:
        self._fds: dict[int, int] = {}
        self._identity = identity
        signal.signal(signal.SIGALRM, lambda *_: None)  # its only work is to interrupt

    def create(self, first: int, count: int) -> None:
        """Make an eventfd for each handle, all or none; OSError is the kernel's."""
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

    def numbers(self, handles: Iterable[int]) -> list[int]:
        """Return the descriptors of ``handles``, borrowed."""
        return [self._fds[handle] for handle in handles]

    def signal(self, handles: Sequence[int], status: int, uid_of: Callable[[int], int]) -> tuple[list[int], list[int]]:
        """Write ``status``.  Returns the handles that were tampered with, and the poisoned ones: those that blocked, and the rest of their uid's.

        A status that is there already stands: writing again is harmless, whoever wrote first.
        """
        word = status_word(status)
        fds = self._fds
        tampered: list[int] = []
        poisoned: list[int] = []
        hostile: set[int] = set()
        signal.setitimer(signal.ITIMER_REAL, GUARD_SECONDS, GUARD_SECONDS)
        try:
            for handle in handles:
                fd = fds.get(handle)
                if fd is None:
                    continue
                if hostile and uid_of(handle) in hostile:
                    poisoned.append(handle)
                    continue
                try:
                    if word == OK_WORD or not is_signalled(fd):
                        os.eventfd_write(fd, word)
                        continue
                except BlockingIOError:
                    pass
                except InterruptedError:
                    hostile.add(uid_of(handle))
                    poisoned.append(handle)
                    continue
                result = self._insist(fd, word)
                if result is None:
                    hostile.add(uid_of(handle))
                    poisoned.append(handle)
                elif result != SignalResult.ALREADY:
                    tampered.append(handle)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
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
        for handle in handles:
            fd = self._fds.pop(handle, None)
            if fd is not None:
                self._identity.remove_eventfd(handle)
                os.close(fd)

    def close_all(self) -> None:
        """Close every copy."""
        self.close(list(self._fds))

    def __len__(self) -> int:
        return len(self._fds)
