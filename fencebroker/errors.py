"""The exceptions a user sees, and the errno table of the wire with a cure for each.  Pure.

A *refusal* is an answer: it changed nothing, it has an errno, and its text names what was wrong and what would be right.
Anything that is not in ``REFUSALS`` is a bug of the broker and never travels.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fencebroker.model import ProcessInfo

__all__ = ["REFUSALS", "BrokerUnavailable", "FenceError", "NotASyncFile", "QuotaExceeded", "Refusal", "exception_from_refusal"]

#: errno -> (when it occurs, what cures it).  The whole set; ``docs/protocol.md`` prints it.
REFUSALS: Final[dict[int, tuple[str, str]]] = {
    errno.EINVAL: ("an argument is out of its range or two do not fit together", "the text names the argument and what would be right"),
    errno.ENOENT: (
        "the name, timeline or sync_file is not known to this broker, or not yours to see",
        "check the spelling and that the producer runs with the same broker; a mode such as 0644 lets other users wait",
    ),
    errno.EBADF: ("the handle or context is not one of this session", "use handles only on the connection that received them"),
    errno.EEXIST: ("a timeline of that name is in use; its holder's pid is in the answer", "choose another name, or end that process"),
    errno.EBUSY: (
        "a ring is for a timeline that only its creator signals, and one is enough",
        "go on with packets on the timeline's socket",
    ),
    errno.EACCES: ("the timeline is yours to wait on but not to signal", "ask its owner for a mode with 'w', or for its descriptor"),
    errno.EPERM: ("the broker does not serve this user", "an administrator can allow the user in the broker's configuration"),
    errno.EDQUOT: ("a quota is used up; quota, limit and usage are in the answer", "close what is no longer needed, or raise the quota"),
    errno.EMFILE: (
        "the broker's descriptor limit is used up; limit and usage are in the answer",
        "close what is no longer needed, or raise the broker's RLIMIT_NOFILE",
    ),
    errno.ENFILE: ("the machine's table of open files is full", "raise fs.file-max, or find the leak with lsof"),
    errno.ENOMEM: ("the kernel has no memory for another descriptor, or for what the broker would have to remember", "free memory"),
    errno.ETOOMANYREFS: ("too many descriptors are on their way to clients that do not read", "read answers before asking for more"),
    errno.ENOSYS: ("the broker does not know this request, or its machine cannot do it", "update the broker: fencectl restart --user"),
    errno.EPROTONOSUPPORT: ("client and broker speak different versions", "restart the older of the two: fencectl restart --user"),
}


class Refusal(Exception):
    """A request was refused and changed nothing.  ``detail`` holds the numbers that belong to the errno (see ``docs/protocol.md``)."""

    def __init__(self, error: int, text: str, detail: tuple[int | str, ...] = ()) -> None:
        super().__init__(error, text, detail)
        self.error = error
        self.text = text
        self.detail = detail


class FenceError(Exception):
    """A fence signalled with an error.

    ``error`` is the positive errno, ``fence`` names it if that is known, ``owner`` is the process that should have signalled it,
    if an open connection to the broker could tell.
    """

    def __init__(self, error: int, fence: str | None = None, owner: ProcessInfo | None = None, why: str | None = None) -> None:
        super().__init__(error, fence, owner, why)
        self.error = error
        self.fence = fence
        self.owner = owner
        self.why = why

    def __str__(self) -> str:
        subject = self.fence or "the fence"
        if self.why is not None:
            return f"{subject}: {self.why}"
        if self.error == errno.ENOENT:
            whose = "its producer" if self.owner is None else f"its producer ({self.owner})"
            return f"{subject} will not be signalled as OK: {whose} died or closed the timeline"
        if self.error == errno.ETIME:
            return f"{subject} expired before its producer signalled it{self._by()}"
        if self.error == errno.ECANCELED:
            return f"{subject} was cancelled{self._by()}"
        name = errno.errorcode.get(self.error, "unknown error")
        return f"{subject} failed with {name} ({os.strerror(self.error)}){self._by()}"

    def _by(self) -> str:
        return "" if self.owner is None else f" (producer: {self.owner})"


class BrokerUnavailable(ConnectionError):
    """No broker answers, it went away, or it speaks another version.  The text says which and what helps."""


class QuotaExceeded(OSError):
    """A quota or the descriptor limit is used up.  ``quota`` names it, ``limit`` and ``used`` are counts; nothing was changed."""

    def __init__(self, error: int, text: str, quota: str, limit: int, used: int) -> None:
        super().__init__(error, text)
        self.quota = quota
        self.limit = limit
        self.used = used

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.strerror, self.quota, self.limit, self.used)


class NotASyncFile(ValueError):
    """The descriptor is open but carries no fence of this broker.  ``fd`` is its number, ``error`` the errno the kernel would set."""

    def __init__(self, text: str, fd: int | None = None, error: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.fd = fd
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.fd, self.error)


def exception_from_refusal(error: int, text: str, detail: tuple[int | str, ...]) -> Exception:
    """Rebuild what the broker refused as the exception a user catches.  The one place where an errno becomes an exception."""
    if error in (errno.EDQUOT, errno.EMFILE) and len(detail) == 3:
        quota, limit, used = detail
        return QuotaExceeded(error, text, str(quota), int(limit), int(used))
    if error == errno.EPROTONOSUPPORT:
        return BrokerUnavailable(text)
    if detail == ("not a sync_file",):
        return NotASyncFile(text, error=error)
    return OSError(error, text)
