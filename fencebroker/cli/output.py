"""What fencectl writes to its standard output: tables for a person at a terminal, plain columns for a pipe, JSON for a program."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from fencebroker.cli.render import Cell, Table, escape, plain_lines
from fencebroker.fds import OwnedFd

__all__ = ["Output", "OutputError"]


class OutputError(Exception):
    """Standard output failed, which says nothing about the broker; ``cause`` is what happened."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Output:
    """Writes to standard output; ``as_json`` is set once the verb's options are known, and silences everything else."""

    def __init__(self) -> None:
        self.as_json = False
        self.is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self.is_coloured = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def json(self, value: dict[str, Any], *, one_line: bool = False) -> None:
        """Write one JSON object, in ASCII: what is not is escaped, so a terminal may show it too.  Only when JSON was asked for."""
        if self.as_json:
            text = json.dumps(value, indent=None if one_line else 2)
            self._write(text.replace("\x7f", "\\u007f"))

    def line(self, text: str) -> None:
        """Write one line for a person."""
        if not self.as_json:
            self._write(escape(text))

    def tables(self, *tables: Table) -> None:
        """Write tables for a person."""
        if self.as_json:
            return
        if self.is_terminal:
            self._print(tables)
        else:
            for line in plain_lines(tables):
                self._write(line)

    def flush(self) -> None:
        """Give what was written to the reader now; raises what went wrong since."""
        if sys.stdout is not None:
            sys.stdout.flush()

    def silence(self) -> None:
        """Let what is still buffered go nowhere: the interpreter would try to write it at its end, and complain."""
        with OwnedFd(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)) as nowhere:
            os.dup2(nowhere.fileno(), 1)

    def _write(self, line: str) -> None:
        if sys.stdout is not None:
            try:
                sys.stdout.write(line + "\n")
            except OSError as err:
                raise OutputError(err) from err

    def _print(self, tables: Sequence[Table]) -> None:
        from rich.console import Console  # not needed in a pipe, and it doubles the start-up

        size = shutil.get_terminal_size()
        console = Console(
            width=size.columns,
            height=size.lines,  # given both, rich believes them also where TERM is dumb
            color_system="standard" if self.is_coloured else None,
            force_terminal=True,
            markup=False,
            highlight=False,
            emoji=False,
        )
        with console.capture() as captured:
            for i, table in enumerate(tables):
                if i:
                    console.print()
                if table.title:
                    console.print(_text(Cell(table.title, "bold underline"), False))
                console.print(_rich_table(table))
        self._write(captured.get().removesuffix("\n"))


def _rich_table(table: Table) -> Any:
    from rich.table import Table as RichTable

    made = RichTable(box=None, show_header=table.header, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in table.columns:
        made.add_column(_text(Cell(column.title, "bold"), False), justify="right" if column.right else "left", no_wrap=not column.shrinks)
    for row in table.rows:
        made.add_row(*(_text(cell, table.folds and column.shrinks) for cell, column in zip(row, table.columns, strict=True)))
    return made


def _text(cell: str | Cell, folds: bool) -> Any:
    from rich.text import Text

    text, style = (cell.text, cell.style) if isinstance(cell, Cell) else (cell, "")
    return Text(escape(text), style, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
