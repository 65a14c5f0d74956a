"""Where a test can end the broker, and what it can get wrong on purpose.  Both do nothing unless the environment asks for it.

``FENCEBROKERD_FAILPOINT="append.after:3"`` kills the broker at the third time that it comes there.  ``NAME:COUNT@GENERATION=ACTION``: in which
broker (1 unless said, ``*``: in each), and what happens instead of a SIGKILL: ``raise`` an exception, ``stop`` (SIGSTOP) or ``loop``.  Several
are separated by commas.  ``FENCEBROKERD_SEEDED_BUG=act-before-append`` makes one mistake in the order of steps; a suite that does not notice
it is no good.

``python -m fencebrokerd.shell.failpoints`` lists both.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Final, NamedTuple

__all__ = ["BUG", "FAILPOINTS", "IS_ARMED", "SEEDED_BUGS", "hit", "is_hit", "start"]

#: Steps of a turn, in order; each can be killed before or after it.
FAILPOINTS: Final = {
    "listen.after": "the first broker listens, and nothing is in the journal",
    "append.before": "the decision is made and nothing of it is in the journal",
    "append.torn": "half of the record is written",
    "append.after": "the record is in the journal and nothing was done",
    "act.before": "before an effect: a status written, descriptors or a socket closed",
    "act.after": "after it",
    "answer.before": "before the answer is sent",
    "answer.after": "after it",
    "consume.before": "before the packet leaves its socket",
    "consume.after": "after it",
    "eventfds.after": "eventfds were made, and are not in the journal",
    "timeline.before": "before a timeline's socketpair is made",
    "timeline.after": "it was made, and is not in the journal",
    "ring.after": "a ring's memory was made, and is not in the journal",
    "ring.drained": "entries of a ring are in the journal and acted upon, and their places are not free yet",
    "ring.frozen": "a ring is frozen, and nothing was decided yet",
    "ring.armed": "a producer is told to ring, and its ring was not looked at again yet",
    "accept.before": "it is noted that a connection is being taken in",
    "accept.after": "it was accepted, and is not in the journal",
    "accept.journalled": "it is in the journal",
    "end.before": "a connection's end is in the journal, and it is not closed",
    "compact.before": "the journal is about to be written anew",
    "compact.torn": "half of the new one is written",
    "compact.written": "the new one is written and does not count yet",
    "compact.after": "it counts",
    "recover.replayed": "the journal was read",
    "recover.reconciled": "descriptors that nobody knows were closed",
    "recover.signalled": "statuses were written again",
    "recover.recognised": "packets that were in hand were answered again",
}

#: Mistakes in the order of steps.
SEEDED_BUGS: Final = {
    "answer-before-append": "the answer is sent before the journal knows",
    "act-before-append": "eventfds are written before the journal knows",
    "consume-before-append": "the packet is gone before the journal knows",
    "consume-before-answer": "the packet is gone before it is answered",
    "no-recovery": "what the last broker had in hand is not done again",
    "forget-last-serial": "a packet whose effect is in the journal is taken for a new one",
}


class _Point(NamedTuple):
    name: str
    times: int
    generation: str
    action: str


def _parse(text: str) -> list[_Point]:
    points = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([a-z.]+):([0-9]+)(?:@([0-9]+|\*))?(?:=(kill|raise|stop|loop))?", part)
        if found is None or found[1] not in FAILPOINTS:
            raise ValueError(f"FENCEBROKERD_FAILPOINT: must be NAME:COUNT[@GENERATION][=kill|raise|stop|loop], not {part!r}")
        points.append(_Point(found[1], int(found[2]), found[3] or "1", found[4] or "kill"))
    return points


_points: Final = _parse(os.environ.get("FENCEBROKERD_FAILPOINT", ""))
#: Asked at each place before ``hit`` is called, so that it costs next to nothing.
IS_ARMED: Final = bool(_points)
#: The mistake that is made; empty: none.
BUG: Final = os.environ.get("FENCEBROKERD_SEEDED_BUG", "")
if BUG and BUG not in SEEDED_BUGS:
    raise ValueError(f"FENCEBROKERD_SEEDED_BUG: must be one of {', '.join(SEEDED_BUGS)}, not {BUG!r}")

_left: dict[int, int] = {}


def start(generation: int) -> None:
    """Arm what is meant for this broker."""
    _left.clear()
    _left.update({i: point.times for i, point in enumerate(_points) if point.generation in ("*", str(generation))})


def is_hit(name: str) -> bool:
    """Count one more time at ``name``; True when its turn has come, for a place that does half of its work before ``strike``."""
    for i in list(_left):
        if _points[i].name == name:
            _left[i] -= 1
            if not _left[i]:
                return True
    return False


def hit(name: str) -> None:
    """Be at ``name``."""
    if is_hit(name):
        strike(name)


def strike(name: str) -> None:
    """Do what was asked for at ``name``."""
    action = next(point.action for i, point in enumerate(_points) if point.name == name and _left.get(i) == 0)
    sys.stderr.write(f"failpoint {name}: {action}\n")
    sys.stderr.flush()
    if action == "raise":
        raise RuntimeError(f"failpoint {name}")
    if action == "loop":
        while True:
            pass
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


if __name__ == "__main__":
    for names in (FAILPOINTS, SEEDED_BUGS):
        for name, what in names.items():
            print(f"{name:24} {what}")  # noqa: T201 - that is its work
