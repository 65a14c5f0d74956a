"""A name that does not exist is mostly a name that was mistyped: the near ones are said with the refusal."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Final

from fencebroker import Broker, BrokerUnavailable
from fencebroker.cli import names
from fencebroker.cli.catalogue import list_rows
from fencebroker.rows import TimelineRow

__all__ = ["did_you_mean", "near", "suggesting", "timeline_names"]

#: More than three are a list to read, not a suggestion.
SHOWN: Final = 3
#: How alike two names must be, from 0 to 1: ``camra0`` and ``camera0`` are 0.92, ``lens`` and ``camera0`` 0.18.
ALIKE: Final = 0.6


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known words that ``word`` may stand for, the likeliest first: those that are like it, then those that contain it."""
    folded: dict[str, list[str]] = {}
    for each in known:
        if each != word:
            folded.setdefault(each.casefold(), []).append(each)
    wanted = word.casefold()
    alike = difflib.get_close_matches(wanted, folded, SHOWN, ALIKE)
    if len(wanted) > 2:
        alike += sorted(each for each in folded if wanted in each and each not in alike)
    return [original for each in alike for original in folded[each]][:SHOWN]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint, such as ``; did you mean camera0 or camera1?``; empty when nothing is near."""
    found = near(word, known)
    if not found:
        return ""
    *others, last = found
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"


def timeline_names(broker: Broker) -> list[str]:
    """The names under which one may ask for the timelines one sees: ``camera0``, or ``user/camera0`` for another user's."""
    rows = list_rows(broker, "timelines")
    return [names.timeline(row) for row in rows if isinstance(row, TimelineRow) and row.name is not None]


@contextlib.contextmanager
def suggesting(broker: Broker, typed: str) -> Iterator[None]:
    """Around asking for a timeline, or a point of one, by a name that a person typed: FileNotFoundError says which names are near."""
    try:
        yield
    except FileNotFoundError as err:
        raise FileNotFoundError(err.errno, f"{err.strerror}{_near_timelines(broker, typed)}") from err


def _near_timelines(broker: Broker, typed: str) -> str:
    name, _, _ = typed.partition("@")
    with contextlib.suppress(BrokerUnavailable):  # what is wrong with the name is still true
        return did_you_mean(name, timeline_names(broker))
    return ""
