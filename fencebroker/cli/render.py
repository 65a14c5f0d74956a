"""Values -> text.  No I/O, no terminal: ``output`` decides how wide and how colourful it becomes.

Rule
  Names come from other processes.  Whatever is printed goes through ``printable``, so that no name can move a cursor, set a title, or read
  from right to left; tables escape their cells themselves, so that no caller can forget it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from rich.cells import cell_len, set_cell_size

from fencebroker.model import ACTIVE, OK, ProcessInfo, printable

__all__ = ["Branch", "Cell", "Column", "Table", "branches", "facts", "latency", "lines", "process", "span", "state", "status_cell"]


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


def latency(ns: int | None) -> str:
    """A length of time where a tenth of a millisecond matters."""
    if ns is None:
        return "-"
    return f"{ns / 1e6:.2f} ms" if ns < 1e7 else span(ns)


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
    """Rows under a title.  With ``folds`` a cell that is too long goes on in the next line; otherwise it is cut."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    header: bool = True
    folds: bool = False


_STYLES: Final = {"active": "yellow", "ok": "green"}
_GAP: Final = "  "


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


def lines(tables: Sequence[Table], width: int | None, paint: Callable[[str, str], str]) -> Iterator[str]:
    """Yield the tables' lines, ``width`` columns of a terminal wide at most (None: as wide as they are).

    ``paint`` gets a text and its style, and returns what the terminal is sent.
    """
    for i, table in enumerate(tables):
        if i:
            yield ""
        indent = _GAP if table.title else ""
        if table.title:
            yield paint(_cut(printable(table.title), width), "bold underline")
        rows = [[_cell(cell) for cell in row] for row in table.rows]
        if table.header:
            rows.insert(0, [Cell(column.title, "bold") for column in table.columns])
        widths = [max((cell_len(row[n].text) for row in rows), default=0) for n in range(len(table.columns))]
        if width is not None:
            widths = _fit(widths, [n for n, column in enumerate(table.columns) if column.shrinks], width - len(indent))
        for row in rows:
            for piece in _pieces(row, widths) if table.folds else [row]:
                yield (indent + _line(piece, table.columns, widths, paint)).rstrip()


def _cell(cell: str | Cell) -> Cell:
    return Cell(printable(cell.text), cell.style) if isinstance(cell, Cell) else Cell(printable(cell))


def _fit(widths: Sequence[int], shrinking: Sequence[int], room: int) -> list[int]:
    """Take from the widest column that shrinks; when those are down to 8, from the widest of all."""
    fitted = list(widths)
    gaps = len(_GAP) * (len(fitted) - 1)
    for candidates, least in ((shrinking, 8), (range(len(fitted)), 1)):
        while candidates and sum(fitted) + gaps > room:
            widest = max(candidates, key=fitted.__getitem__)
            if fitted[widest] <= least:
                break
            fitted[widest] -= 1
    return fitted


def _pieces(row: Sequence[Cell], widths: Sequence[int]) -> Iterator[list[Cell]]:
    """A row in as many lines as its longest cell needs."""
    chopped = [_chop(cell.text, size) for cell, size in zip(row, widths, strict=True)]
    for n in range(max(map(len, chopped))):
        yield [Cell(texts[n] if n < len(texts) else "", cell.style) for texts, cell in zip(chopped, row, strict=True)]


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int], paint: Callable[[str, str], str]) -> str:
    cells = []
    for column, size, (text, style) in zip(columns, widths, row, strict=True):
        text = _cut(text, size)
        padding = " " * (size - cell_len(text))
        painted = paint(text, style) if style and text else text
        cells.append(padding + painted if column.right else painted + padding)
    return _GAP.join(cells)


def _chop(text: str, size: int) -> list[str]:
    """Cut into pieces of at most ``size`` columns, each with one character at least; an empty text is one piece."""
    pieces, room = [""], size
    for c in text:
        room -= cell_len(c)
        if room < 0 and pieces[-1]:
            pieces.append("")
            room = size - cell_len(c)
        pieces[-1] += c
    return pieces


def _cut(text: str, size: int | None) -> str:
    if size is None or cell_len(text) <= size:
        return text
    return set_cell_size(text, size - 1).rstrip() + "…"


# -- trees


class Branch(NamedTuple):
    """One line of a tree, lines that follow it at the same height, and what hangs below them."""

    line: str
    below: Sequence[Branch] = ()
    more: Sequence[str] = ()


def branches(tree: Branch) -> Iterator[str]:
    """Yield the lines of a tree."""
    yield tree.line
    yield from tree.more
    yield from _below(tree.below, "")


def _below(trees: Sequence[Branch], indent: str) -> Iterator[str]:
    for i, tree in enumerate(trees):
        last = i == len(trees) - 1
        inner = indent + ("   " if last else "│  ")
        yield f"{indent}{'└─ ' if last else '├─ '}{tree.line}"
        yield from (inner + line for line in tree.more)
        yield from _below(tree.below, inner)
