"""Asking a broker what there is: rows with names, one thing by what a person types, and the fences that a merge waits for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fencebroker import Broker, BrokerUnavailable, requests
from fencebroker.client import wire_name, wire_point
from fencebroker.model import U64_MAX, ProcessInfo
from fencebroker.rows import FenceRow, Row, TimelineRow, read_row

__all__ = ["Entry", "Fences", "Node", "find", "history", "list_rows", "read", "wire_target"]

#: Merges within merges that are written out.
DEPTH: Final = 30

_CONTEXT: Final = re.compile(r"([0-9]+):")
_NUMBERS: Final = re.compile(r"#[0-9]+|[0-9]+:[0-9]*")


def read(kind: str, columns: list[object]) -> Row:
    """Give the columns of one row their names; BrokerUnavailable when the broker is older than this program."""
    try:
        return read_row(kind, columns)
    except ValueError as err:
        raise BrokerUnavailable(f"{err}: fencectl restart --user") from err


def list_rows(broker: Broker, kind: str) -> Iterator[Row]:
    """Yield what there is of one kind (``wire.KINDS``), oldest first."""
    for columns in broker._listing(kind):
        yield read(kind.removesuffix("s"), columns)


def wire_target(text: str) -> str:
    """Check what a person typed and put it as the wire wants it; ValueError says what would be right."""
    if "@" in text:
        return wire_point(text)[0]
    if text.startswith("#") or ":" in text:
        numbers = re.findall(r"[0-9]+", text)
        if not _NUMBERS.fullmatch(text) or any(len(number) > 20 or int(number) > U64_MAX for number in numbers):
            raise ValueError(f"must be NAME, NAME@N, ID, CONTEXT: or CONTEXT:SEQNO with numbers up to 2**64-1, not {text!r}")
        return text
    return wire_name(text)


def find(broker: Broker, target: str) -> Row:
    """Find one thing; FileNotFoundError when there is none.  ``target`` comes from ``wire_target``."""
    context = _CONTEXT.fullmatch(target)
    if context is not None:
        return _timeline_by_context(broker, int(context[1]))
    try:
        return read(*broker._lookup(target))
    except FileNotFoundError:
        if target.isascii() and target.isdigit():  # a number is a sync_file's, unless it is a timeline's name
            return read(*broker._lookup(f"#{target}"))
        raise


def _timeline_by_context(broker: Broker, context: int) -> TimelineRow:
    if context:
        _, rows = broker._connection.call(requests.listing("timelines", context - 1))
        for columns in rows[:1]:
            row = read("timeline", columns)
            if isinstance(row, TimelineRow) and row.context == context:
                return row
    raise FileNotFoundError(2, f"there is no timeline with the context {context} here (or it is not yours to see)")


class Entry(NamedTuple):
    """Something that happened to a timeline or a fence; docs/protocol.md has the words."""

    time_ns: int
    what: str
    seqno: int
    status: int
    who: ProcessInfo | None


def history(broker: Broker, context: int) -> list[Entry]:
    """Return what a timeline did of late, oldest first."""
    entries = broker._connection.call(requests.history(context))
    return [Entry(time_ns, what, seqno, status, who and ProcessInfo(*who)) for time_ns, what, seqno, status, who, *_ in entries]


class Node(NamedTuple):
    """A fence and what it waits for.

    ``row`` is None when the fence is not on record any more, or not yours to see.  ``members`` is None for a merge that is not written out
    here; ``is_deep`` says why: it lies too deep, or else it is in the tree already.
    """

    row: FenceRow | None
    members: Sequence[Node] | None
    is_deep: bool = False


class Fences:
    """Fences by id, asked for when they are needed, a page at a time: the members of a merge are mostly neighbours."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known: dict[int, FenceRow | None] = {}

    def get(self, id: int) -> FenceRow | None:
        """None when it is not on record any more, or not yours to see."""
        if id not in self._known:
            self._known[id] = None
            _, rows = self._broker._connection.call(requests.listing("fences", id - 1))
            for columns in rows:
                row = read("fence", columns)
                assert isinstance(row, FenceRow)
                self._known[row.id] = row
        return self._known[id]

    def tree(self, row: FenceRow) -> Node:
        """What ``row`` waits for.  A client may nest merges as deep and share members as often as it likes; each is written out once."""
        return self._node(row, set(), 0)

    def _node(self, row: FenceRow | None, seen: set[int], depth: int) -> Node:
        if row is None or not row.members:
            return Node(row, ())
        if row.id in seen or depth == DEPTH:
            return Node(row, None, row.id not in seen)
        seen.add(row.id)
        return Node(row, [self._node(self.get(member), seen, depth + 1) for member in row.members])
