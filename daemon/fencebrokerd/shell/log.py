"""The log: lines with a level on stderr, with journal priorities when the journal reads them.

A healthy run has two lines, start and stop.  What a client does wrong is said once per uid and cause, and never in its own words:
names are escaped.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

from fencebrokerd.keeper import PRIORITIES, log_line, stderr_is_journal

__all__ = ["Log", "escape"]

JOURNAL: Final = "/run/systemd/journal/socket"
_ONE_LINE: Final = {ord("\n"): " "}


def escape(text: str) -> str:
    """Make a client's words safe for a terminal: printable, one line, bounded."""
    return text[:200].encode("unicode_escape").decode("ascii")


escape("")  # loads the codec now: later there may be no descriptor left to load it with


class Log:
    """Writes lines to stderr."""

    def __init__(self, level: str) -> None:
        self._least = PRIORITIES[level]
        self._journal = stderr_is_journal()
        self._said: set[tuple[int, str]] = set()

    def set_level(self, level: str) -> None:
        """Leave out what is less important from now on."""
        self._least = PRIORITIES[level]

    def write(self, level: str, text: str) -> None:
        """Write one line."""
        if PRIORITIES[level] > self._least:
            return
        try:
            sys.stderr.write(log_line(level, text, self._journal))
            sys.stderr.flush()
        except OSError:
            # A full disk or a closed pipe must not stop a broker; there is nowhere left to say so.
            self._least = -1

    def once(self, uid: int, cause: str, text: str) -> None:
        """Write a warning about a client, once per uid and cause."""
        if (uid, cause) not in self._said and len(self._said) < 10_000:
            self._said.add((uid, cause))
            text = f"{text} (uid {uid}; said once)"
            if not self._journal or PRIORITIES["warning"] > self._least or not _send_to_journal(text, uid, cause):
                self.write("warning", text)


def _send_to_journal(text: str, uid: int, cause: str) -> bool:
    """Write an incident as a journal entry with fields (systemd's native protocol: one datagram of KEY=value lines); False if it cannot be."""
    fields = {
        "MESSAGE": text,
        "PRIORITY": PRIORITIES["warning"],
        "SYSLOG_IDENTIFIER": "fencebrokerd",
        "FENCEBROKER_UID": uid,
        "FENCEBROKER_CAUSE": cause,
    }
    datagram = "".join(f"{key}={str(value).translate(_ONE_LINE)}\n" for key, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(datagram.encode(errors="replace"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, JOURNAL)
        except OSError:
            return False
    return True
