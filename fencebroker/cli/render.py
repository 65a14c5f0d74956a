"""Values -> text.  No I/O, no terminal: ``output`` decides how wide and how colourful it becomes.

Rule
  Names come from other processes.  Whatever is printed goes through ``escape``, so that no name can move a cursor, set a title, or read
  from right to left; tables escape their cells themselves, so that no caller can forget it.
"""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from fencebroker.model import ACTIVE, OK, ProcessInfo

__all__ = ["Branch", "Cell", "Column", "Table", "branches", "escape", "facts", "plain_lines", "process", "span", "state", "status_cell"]


def escape(text: str) -> str:
    """Write every character that is not printable as Python would: control characters, line ends, reading directions, odd spaces."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# -- words


def state(status: int) -> str:
    """A status in a word: ``active``, ``ok``, or the name of the errno."""
    if status in (ACTIVE, OK):
        return "ok" if status else "active"
    return errno.errorcode.get(-status, f"error {-status}")


def span(ns: int) -> str:
    """A length of time as a person says it, two digits."""
    seconds = max(0, ns) / 1e9
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size, limit in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def process(who: ProcessInfo | None) -> str:
    """A process in a table: its pid and what it is called."""
    return "-" if who is None else f"{who.pid} {who.comm}"


# -- tables


class Cell(NamedTuple):
    """Text with a style, which only a terminal shows."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column; one that ``shrinks`` gives way first when the terminal is narrow."""

    title: str
    right: bool = False
    shrinks: bool = False


Row: TypeAlias = Sequence[str | Cell]


class Table(NamedTuple):
    """Rows under a title.  With ``folds`` a long cell goes on in the next line; otherwise it is cut, when there is a terminal."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    header: bool = True
    folds: bool = False


_STYLES: Final = {"active": "yellow", "ok": "green"}


def status_cell(status: int, tampered: bool = False) -> Cell:
    """A status for a table."""
    word = state(status)
    return Cell(f"{word} (tampered)", "bold red") if tampered else Cell(word, _STYLES.get(word, "red"))


def facts(title: str, pairs: Sequence[tuple[str, str | Cell | Sequence[str | Cell]]]) -> Table:
    """What is known about one thing: names and values, a value of several lines in several rows."""
    rows: list[Row] = []
    for name, value in pairs:
        lines = [value] if isinstance(value, (str, Cell)) else value
        rows += [[Cell("" if i else name, "bold"), line] for i, line in enumerate(lines)]
    return Table(title, (Column(""), Column("", shrinks=True)), rows, header=False, folds=True)


def plain_lines(tables: Sequence[Table]) -> Iterator[str]:
    """Yield the tables' lines for a file or a pipe: in columns, never cut."""
    for i, table in enumerate(tables):
        if i:
            yield ""
        indent = "  " if table.title else ""
        if table.title:
            yield escape(table.title)
        rows = [[escape(cell.text if isinstance(cell, Cell) else cell) for cell in row] for row in table.rows]
        if table.header:
            rows.insert(0, [column.title for column in table.columns])
        widths = [max((width(row[n]) for row in rows), default=0) for n in range(len(table.columns))]
        for row in rows:
            cells = []
            for column, size, cell in zip(table.columns, widths, row, strict=True):
                padding = " " * (size - width(cell))
                cells.append(padding + cell if column.right else cell + padding)
            yield (indent + "  ".join(cells)).rstrip()


# -- trees


class Branch(NamedTuple):
    """One line of a tree, and what hangs below it."""

    line: str
    below: Sequence[Branch] = ()


def branches(tree: Branch) -> Iterator[str]:
    """Yield the lines of a tree."""
    yield tree.line
    yield from _below(tree.below, "")


def _below(trees: Sequence[Branch], indent: str) -> Iterator[str]:
    for i, tree in enumerate(trees):
        last = i == len(trees) - 1
        yield f"{indent}{'└─ ' if last else '├─ '}{tree.line}"
        yield from _below(tree.below, indent + ("   " if last else "│  "))
