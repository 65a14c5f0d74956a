"""``docs/parity.md`` as a program reads it, and what can be wrong with it.  Pure.

A row is a heading ``### A3 ● advance by increment`` and a list below it:

    - Kernel: what the kernel does.
    - Here: what we do.
    - Functions: `libsync.sw_sync_timeline_inc`
    - Shown by: `tests/parity/test_timelines.py::test_increments`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["CORE", "SYNCOBJ", "Record", "Row", "findings", "parse"]


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The rows of the kernel's sync_file, dma_fence and sw_sync: every one has to be there and shown.
CORE: Final = _ids(
    "A1 A2 A3 A4 A5 A6 A7 A8 B1 B2 B3 B4 B5 B6 B7 B9 B10 B11 B12 B13 B14 B15 "
    "C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 C11 C12 C13 C14 C15 C16 C17 C18 C19 C20 C21 D1 D3 D4 E1 E2 E3 E11 H1 H2 H3"
)
#: The rows of its syncobj: each says whether we have it.
SYNCOBJ: Final = _ids("A9 A10 A11 A12 D2 D5 D6 E4 E5 E6 E7 E8 F1 F2 F3 F4 F5 F6")

_HEADING: Final = re.compile(r"^### (\S+) ([●○]) (.+)$", re.MULTILINE)
_NAME: Final = re.compile(r"`([^`]+)`")


class Row(NamedTuple):
    """One row of the page."""

    id: str
    mark: str
    title: str
    kernel: str
    here: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What a run of the named tests came to: test -> outcomes of its cases, and test -> public functions that it called."""

    outcomes: Mapping[str, list[str]]
    calls: Mapping[str, set[str]]


def parse(page: str) -> list[Row]:
    """Read every row."""
    headings = list(_HEADING.finditer(page))
    ends = [heading.start() for heading in headings[1:]] + [len(page)]
    return [_row(heading, page[heading.end() : end]) for heading, end in zip(headings, ends, strict=True)]


def _row(heading: re.Match[str], text: str) -> Row:
    text = re.split(r"^#", text, maxsplit=1, flags=re.MULTILINE)[0]
    items = dict.fromkeys(("Kernel", "Here", "Functions", "Shown by"), "")
    for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
        name, _, value = item.partition(":")
        if name in items:
            items[name] = value.strip()
    functions, tests = (tuple(_NAME.findall(items[name])) for name in ("Functions", "Shown by"))
    return Row(heading[1], heading[2], heading[3], items["Kernel"], items["Here"], functions, tests)


def findings(rows: Iterable[Row], record: Record) -> list[str]:
    """Say what is wrong; empty when the page is true."""
    rows = list(rows)
    found = [f"{row.id} is there twice" for index, row in enumerate(rows) if row.id in {other.id for other in rows[:index]}]
    marks = {row.id: row.mark for row in rows}
    for ids, mark in ((CORE, "●"), (SYNCOBJ, "○")):
        found += [f"{id} is missing, or not marked {mark}" for id in sorted(ids) if marks.get(id) != mark]
    for row in rows:
        found += [f"{row.id}: {text}" for text in _findings(row, record)]
    return found


def _findings(row: Row, record: Record) -> Iterable[str]:
    if not row.kernel or not row.here:
        yield "does not say what the kernel does and what we do"
    if row.mark == "○" and not row.tests:
        if not row.here.startswith("not yet"):
            yield "names no test and does not say 'not yet'"
        return
    if not row.tests:
        yield "names no test"
    if not row.functions:
        yield "names no public function"
    called: set[str] = set()
    for test in row.tests:
        outcomes = record.outcomes.get(test, [])
        if not outcomes:
            yield f"{test} does not exist"
        elif set(outcomes) != {"passed"}:
            yield f"{test} did not pass: {', '.join(sorted(set(outcomes)))}"
        called |= record.calls.get(test, set())
    for function in row.functions:
        if function not in called:
            yield f"none of its tests called {function}"
