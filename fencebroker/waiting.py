"""Waiting for several fences at once."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from fencebroker.connection import Session
from fencebroker.errors import FenceError
from fencebroker.sync_file import SyncFile, deadline_of, milliseconds_until

__all__ = ["WaitTimeout", "wait_all", "wait_any"]


class WaitTimeout(TimeoutError):
    """``wait_all`` ran out of time; ``pending`` lists what had not signalled, in argument order."""

    def __init__(self, pending: Sequence[SyncFile]) -> None:
        super().__init__(f"{len(pending)} of the fences did not signal in time: {', '.join(fence.label for fence in pending[:5])}")
        self.pending = list(pending)


def _list(fences: Iterable[SyncFile]) -> list[SyncFile]:
    listed = list(fences)
    for index, fence in enumerate(listed):
        if not isinstance(fence, SyncFile):
            raise TypeError(f"fences[{index}] must be a SyncFile, not {type(fence).__name__}; SyncFile.from_fd() makes one of a descriptor")
    return listed


def wait_any(fences: Iterable[SyncFile], timeout: float | None = None) -> list[SyncFile]:
    """Wait until at least one has signalled, and return all that have, in argument order.

    A failed fence has signalled too: nothing is raised for it.  Raises TimeoutError; ValueError when there is nothing to wait for;
    BrokerUnavailable when a connection that one of them came from has lost its broker.
    """
    listed = _list(fences)
    if not listed:
        raise ValueError("fences must not be empty: wait_any would never return")
    deadline = deadline_of(timeout)
    ready = [fence for fence in listed if fence.status()]
    if ready:
        return ready
    with ExitStack() as stack:
        poller = select.poll()
        fence_of: dict[int, SyncFile] = {}
        connection_of: dict[int, Session] = {}
        # Another thread may close one of them meanwhile; the wait for it goes on.
        owned = [(fence, stack.enter_context(fence._dup_fd())) for fence in listed]
        for fence, own in owned:
            poller.register(own, select.POLLIN)
            fence_of[own.fileno()] = fence
            connection = fence._connection
            watched = None if connection is None else connection.peer_fd()
            if connection is not None and watched is not None:
                poller.register(watched, 0)  # POLLHUP comes unasked
                connection_of[watched] = connection
            elif connection is not None and connection.is_lost:
                raise fence._broker_gone(connection)
        while True:
            happened = poller.poll(milliseconds_until(deadline))
            ready = [fence for fence, own in owned if fence._status_of(own)]
            if ready:
                return ready
            if not happened and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"none of {len(listed)} fences signalled in time")
            for fd, _ in happened:
                poller.unregister(fd)
                if fd in fence_of:  # readable, and yet active: somebody wrote to it
                    poller.register(stack.enter_context(fence_of.pop(fd)._private()), select.POLLIN)
                elif fd in connection_of:
                    gone = connection_of.pop(fd)
                    if gone.is_open or gone.is_lost:  # else it was closed on purpose
                        raise next(fence for fence in listed if fence._connection is gone)._broker_gone(gone)


def wait_all(fences: Iterable[SyncFile], timeout: float | None = None) -> None:
    """Wait until every fence has signalled.

    Raises TimeoutError with ``pending`` when the time is over first; otherwise FenceError of the first failed one in argument order.  Of
    nothing it returns at once.
    """
    listed = _list(fences)
    deadline = deadline_of(timeout)
    failed: FenceError | None = None
    for fence in listed:
        try:
            fence.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise WaitTimeout([other for other in listed if not other.status()]) from None
        except FenceError as err:
            failed = failed or err
    if failed is not None:
        raise failed
