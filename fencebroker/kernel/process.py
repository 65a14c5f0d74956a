"""What one process has of this API: one lock, one connection to a broker, a census of references, and the reason of the last failure.

``lock`` guards the state of every fence and file of the process.  It is a leaf: no callback, no operation of a driver and no request to the
broker runs under it.
"""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections import Counter
from typing import Self

from fencebroker.client import Broker, connect
from fencebroker.connection import Connection
from fencebroker.fds import OwnedFd

__all__ = ["Line", "process"]


class Line:
    """A connection, and a copy of its socket that shows when the broker is gone.

    The copy is this module's to close: it can be watched while another thread finds the connection dead and closes its own.  It is closed
    when the process and all that came by this line have dropped it, and in a forked child, for there the session is not the child's.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        peer = self.connection.peer_fd()
        assert peer is not None, "it was opened just now"
        self._hangup = OwnedFd(os.dup(peer))
        self._users = 1

    @property
    def connection(self) -> Connection:
        return self.broker._connection

    @property
    def hangup(self) -> int | None:
        """A descriptor that hangs up when the broker is gone, borrowed; None where that cannot be seen."""
        return None if self._hangup.closed else self._hangup.fileno()

    @property
    def is_lost(self) -> bool:
        """The broker is gone, or has ended this session."""
        if self._hangup.closed:
            return False
        poller = select.poll()
        poller.register(self._hangup, 0)
        return bool(poller.poll(0))

    def hold(self) -> Self:
        """One more user."""
        with process.lock:
            self._users += 1
        return self

    def drop(self) -> None:
        """One user less; after the last the copy is closed."""
        with process.lock:
            self._users -= 1
            if not self._users:
                self._hangup.close()

    def after_fork(self) -> None:
        """In the child."""
        self._hangup.close()


class _Reason(threading.local):
    error: Exception | None = None


class Process:
    """The state of this process; there is one instance, ``process``."""

    def __init__(self) -> None:
        #: References that somebody owes a put for: to fences, to files, and numbers that are reserved.
        self.references: Counter[str] = Counter()
        self._reason = _Reason()
        self._line: Line | None = None
        self._lines: weakref.WeakSet[Line] = weakref.WeakSet()
        self._renew()

    def _renew(self) -> None:
        self.lock = threading.RLock()
        self.callback_done = threading.Condition(self.lock)
        self._connecting = threading.Lock()

    def line(self) -> Line:
        """Return the connection to the default broker, made when first needed and anew when the broker went away.

        Raises what ``fencebroker.connect()`` raises.
        """
        with self._connecting:
            line = self._line
            if line is None or line.broker.closed or line.is_lost:
                self._hang_up()
                broker = connect()
                try:
                    line = Line(broker)
                except BaseException:
                    broker.close()
                    raise
                self._lines.add(line)
                self._line = line
            return line

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.broker.close()
            line.drop()

    def close(self) -> None:
        """Close the connection."""
        with self._connecting:
            self._hang_up()

    # -- failures that C reports as NULL or a negative number

    def fail(self, error: Exception) -> None:
        """Remember why the function in hand fails."""
        self._reason.error = error

    @property
    def last_error(self) -> Exception | None:
        return self._reason.error

    # -- fork

    def before_fork(self) -> None:
        """No other thread is in the middle of a change."""
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """The connection is the parent's: this process makes its own when it needs one."""
        self._renew()
        for line in self._lines:
            line.after_fork()
        self._hang_up()


process = Process()
os.register_at_fork(
    before=process.before_fork,
    after_in_parent=process.after_fork_in_parent,
    after_in_child=process.after_fork_in_child,
)
