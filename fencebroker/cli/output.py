"""What fencectl writes to its standard output: tables for a person at a terminal, plain columns for a pipe, JSON for a program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from fencebroker.cli.render import Table, lines
from fencebroker.fds import OwnedFd
from fencebroker.model import printable

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
            self._write(printable(text))

    def tables(self, *tables: Table) -> None:
        """Write tables for a person."""
        if not self.as_json:
            width = shutil.get_terminal_size().columns if self.is_terminal else None
            for line in lines(tables, width, _paint if self.is_coloured else _leave):
                self._write(line)

    @contextlib.contextmanager
    def rewriting(self, *, enabled: bool = True) -> Iterator[Callable[[Sequence[Table]], None] | None]:
        """Yield what writes tables over those before, on a screen; None where there is no screen, or JSON was asked for."""
        if not enabled or self.as_json or not self.is_terminal or os.environ.get("TERM") == "dumb":
            yield None
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(no_color=not self.is_coloured, highlight=False, soft_wrap=True)
        with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

            def write(tables: Sequence[Table]) -> None:
                shown = lines(tables, console.width, _paint if self.is_coloured else _leave)
                live.update(Text("\n").join(Text.from_ansi(line) for line in shown), refresh=True)

            yield write

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


def _paint(text: str, style: str) -> str:
    """Colour and attributes, such as ``bold red``, for a terminal."""
    words = style.split()
    colour = next((word for word in words if word not in ("bold", "underline")), None)
    return click.style(text, fg=colour, bold="bold" in words or None, underline="underline" in words or None)


def _leave(text: str, style: str) -> str:
    return text
