"""Fences that came from elsewhere by a descriptor, and the thread that watches those that somebody waits for by callback.

Each is a private import: its descriptor is this process's alone, and carries the status.
"""
# ruff: noqa: ARG002 - an issuer has the same methods for every kind of fence

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING, Any, Final

from fencebroker import requests, wire
from fencebroker.connection import Request, Session
from fencebroker.errors import NotASyncFile
from fencebroker.fds import OwnedFd, new_fence_eventfd, peek_status, status_word, write_status
from fencebroker.kernel.callbacks import drop_callbacks
from fencebroker.kernel.fence import complete, dma_fence_get, dma_fence_put, log
from fencebroker.kernel.process import Line, process
from fencebroker.kernel.structs import Issuer, dma_fence, dma_fence_ops, set_up
from fencebroker.model import ACTIVE, OK

if TYPE_CHECKING:
    from fencebroker.model import SyncFileInfo
    from fencebroker.sync_file import SyncFile

__all__ = ["Import", "import_fence", "made_of", "stop_watching"]


class Import(Issuer):
    """Issues one fence: the one that its descriptor carries."""

    def __init__(self, sync_file: SyncFile, line: Line) -> None:
        self.sync_file = sync_file
        self.line = line.hold()
        self._info: SyncFileInfo | None = None
        self._watched = False
        self._owes = False

    def number(self) -> int:
        """The descriptor, borrowed."""
        return self.sync_file._number()

    def look(self, fence: dma_fence) -> None:
        status = self._status()
        if status != ACTIVE:
            complete(fence, 0 if status == OK else status)

    def _status(self) -> int:
        try:
            status = peek_status(self.number())
        except OSError as err:  # at the descriptor limit there is none left to read an error with
            process.fail(err)
            status = None
        if status is None:
            info = self._ask()
            status = -errno.EBADMSG if info is None else info.status
        return status

    def lose(self, fence: dma_fence) -> None:
        """The broker is gone: what it did not signal nobody will."""
        self.look(fence)
        complete(fence, -errno.ECANCELED)

    # -- callbacks: while there are any, the watcher has a reference, as the one who signals it has in the kernel

    def watch(self, fence: dma_fence) -> None:
        if not self._watched:
            _the_watcher().add(self.number(), fence, self.line)
            fence.refcount += 1
            process.references["dma_fence"] += 1
            self._watched = True

    def unwatch(self, fence: dma_fence) -> None:
        if self._watched:
            if _watcher is not None:
                _watcher.remove(self.number())
            self._watched = False
            self._owes = True

    def signalled(self, fence: dma_fence) -> int:
        with process.lock:
            self.unwatch(fence)
        return 0

    def settle(self, fence: dma_fence) -> None:
        with process.lock:
            owed, self._owes = self._owes, False
        if owed:
            dma_fence_put(fence)

    def released(self, fence: dma_fence) -> None:
        self.sync_file.close()
        self.line.drop()

    def forget_watch(self, fence: dma_fence) -> None:
        """In a forked child, which has no watcher."""
        drop_callbacks(fence)
        fence.refcount -= 1
        process.references["dma_fence"] -= 1
        self._watched = False

    # -- what only the broker knows

    def export(self, fence: dma_fence, name: str = "") -> SyncFile:
        connection = process.line().connection
        return connection.call(requests.import_sync_file(connection, self.sync_file, name))

    def _ask(self) -> SyncFileInfo | None:
        try:
            return process.line().broker.info(self.sync_file)
        except (OSError, NotASyncFile) as err:
            process.fail(err)
            return None

    def timestamp(self, fence: dma_fence) -> int:
        info = self._ask()
        return 0 if info is None else info.timestamp_ns

    def names(self) -> tuple[str, str]:
        self._info = self._info or self._ask()
        if self._info is None or not self._info.fences:
            return "unknown", "unknown"
        if self._info.num_fences > 1:
            return "dma_fence_array", "unbound"
        return self._info.fences[0].driver_name, self._info.fences[0].obj_name

    def set_deadline(self, fence: dma_fence, deadline: int) -> None:
        try:
            connection = process.line().connection
            connection.call(requests.set_deadline(connection, self.sync_file, deadline))
        except (OSError, NotASyncFile) as err:
            process.fail(err)  # it was a hint


def made_of(request: Request[SyncFile], line: Line) -> dma_fence:
    """Make a fence of a request whose answer is handle, context, seqno and a descriptor.  Raises what the library raises."""

    def finish(connection: Session, results: list[Any], fds: list[OwnedFd]) -> tuple[SyncFile, int, int]:
        return request.finish(connection, results, fds), results[1], results[2]

    sync_file, context, seqno = line.connection.call(Request(request.op, request.arguments, finish, request.fds, request.makes))
    fence = dma_fence()
    set_up(fence, dma_fence_ops(), None, (context, seqno), Import(sync_file, line))
    return fence


def import_fence(fd: int) -> dma_fence:
    """Return the fence that ``fd`` carries, with one reference.  Raises what ``Broker.import_sync_file()`` raises."""
    line = process.line()
    request = requests.import_sync_file(line.connection, fd)
    assert request.op == wire.IMPORT
    return made_of(request, line)


# -- the watcher

#: A callback that never returns must not keep the process from ending.
_STOP_SECONDS: Final = 5.0


class Watcher:
    """One thread that sleeps in one epoll until a watched fence signals, and completes it there."""

    def __init__(self) -> None:
        self._fences: dict[int, dma_fence] = {}
        self._lines: dict[int, Line] = {}
        self._epoll = select.epoll()
        try:
            self._stop = OwnedFd(new_fence_eventfd())
            self._epoll.register(self._stop, select.EPOLLIN)
        except BaseException:
            self._epoll.close()
            raise
        self._thread = threading.Thread(target=self._run, name="fencebroker.kernel", daemon=True)
        self._thread.start()

    def add(self, number: int, fence: dma_fence, line: Line) -> None:
        """Watch ``fence`` by its descriptor, and the line it came by.  Under the lock."""
        hangup = line.hangup
        if hangup is not None and self._lines.get(hangup) is not line:
            self._epoll.register(hangup, 0)  # EPOLLHUP comes unasked
            self._lines[hangup] = line
        self._epoll.register(number, select.EPOLLIN)
        self._fences[number] = fence

    def remove(self, number: int) -> None:
        """Stop watching it, before its descriptor is closed.  Under the lock."""
        if self._fences.pop(number, None) is not None:
            self._epoll.unregister(number)

    def _run(self) -> None:
        try:
            while True:
                for number, _ in self._epoll.poll():
                    if number == self._stop.fileno():
                        return
                    self._handle(number)
        finally:
            self._close()

    def _handle(self, number: int) -> None:
        with process.lock:
            line = self._lines.get(number)
            fences = [self._fences[number]] if number in self._fences else []
            lost = not fences and line is not None and line.is_lost
            if lost:
                del self._lines[number]
                self._epoll.unregister(number)
                fences = [fence for fence in self._fences.values() if issuer_of(fence).line is line]
            for fence in fences:
                dma_fence_get(fence)
        for fence in fences:
            try:
                issuer_of(fence).lose(fence) if lost else issuer_of(fence).look(fence)
            except BaseException:  # noqa: BLE001 - a callback that raises SystemExit must not end the others' thread
                log.exception("a callback of %r raised", fence)
            finally:
                dma_fence_put(fence)

    def cancel(self) -> None:
        """Fail what is watched."""
        with process.lock:
            fences = [dma_fence_get(fence) for fence in self._fences.values()]
        for fence in fences:
            try:
                issuer_of(fence).lose(fence)
            finally:
                dma_fence_put(fence)

    def stop(self) -> None:
        """End the thread, and wait for it unless this is it."""
        write_status(self._stop.fileno(), status_word(OK))
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECONDS)

    def _close(self) -> None:
        with process.lock:
            self._epoll.close()
            self._stop.close()

    def after_fork(self) -> None:
        """In the child, which has no such thread."""
        for fence in self._fences.values():
            issuer_of(fence).forget_watch(fence)
        self._close()


def issuer_of(fence: dma_fence) -> Import:
    """What stands behind a fence that is watched."""
    assert isinstance(fence._issuer, Import)
    return fence._issuer


_watcher: Watcher | None = None


def _the_watcher() -> Watcher:
    global _watcher  # noqa: PLW0603 - there is one
    if _watcher is None:
        _watcher = Watcher()
    return _watcher


def stop_watching(*, cancel: bool) -> None:
    """End the thread.  With ``cancel``, the fences it watches fail with -ECANCELED and their callbacks run."""
    global _watcher  # noqa: PLW0603 - there is one
    with process.lock:
        watcher = _watcher
    if watcher is None:
        return
    if cancel:
        watcher.cancel()
    with process.lock:
        _watcher = None
    watcher.stop()


def _after_fork_in_child() -> None:
    global _watcher
    watcher, _watcher = _watcher, None
    if watcher is not None:
        watcher.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
