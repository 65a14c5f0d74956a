"""The screen of ``top``: drawn with rich, driven by keys, a clock and the terminal's size."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fencebroker.cli.live import Keys, Resized
from fencebroker.cli.top import HEADS, ORDERS, Line, View, Watch, ticks, words
from fencebroker.model import printable

__all__ = ["screen", "show"]


def screen(view: View, lines: Sequence[Line], title: str, trouble: str, width: int, height: int) -> RenderableType:
    """Put it together: a line about the broker, the table, a line about the keys."""
    arranged = view.arrange(lines)
    room = max(1, height - 4)
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    chosen = ORDERS[view.order][0]
    for column, right in HEADS:
        mark = ("▲" if view.is_reversed else "▼") if column == chosen else ""
        table.add_column(column + mark, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", ratio=None if right else 1)
    for line in arranged[:room]:
        table.add_row(*_cells(line))
    more = f"  {len(arranged) - room} more" if len(arranged) > room else ""
    head = Text(trouble, "bold white on red") if trouble else Text(title + ("  paused" if view.is_paused else ""), "bold")
    if view.is_typing:
        foot = Text(f"filter: {printable(view.filter)}_  (enter: keep, escape: all)", "reverse")
    else:
        kept = f"filter: {printable(view.filter)}  " if view.filter else ""
        foot = Text(f"{kept}sort: n r m l a o e w, again: turn round   / filter   space pause   q quit{more}", "dim")
    for text in (head, foot):
        text.truncate(width, overflow="ellipsis")
    nothing = Text("no timeline" + (" that matches" if lines else ""), "dim")
    return Group(head, Text(""), table if arranged else nothing, foot)


def _cells(line: Line) -> list[Text]:
    styles = ["bold", "green" if line.rate else "dim", "", "", "", "yellow" if line.oldest > 2e9 else "", "", ""]
    styles[6] = "bold red" if line.has_new_errors else "red" if line.errors else ""
    styles[7] = "" if line.owner_alive else "red"
    return [Text(printable(word), style) for word, style in zip(words(line), styles, strict=True)]


def show(watch: Watch, is_coloured: bool, count: int | None) -> None:
    """Keep the screen current until somebody has seen enough, or for ``count`` looks."""
    console = Console(no_color=not is_coloured, highlight=False)
    view = View()
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        with Keys() as keys, Resized() as resized, Live(console=console, screen=True, auto_refresh=False) as live:
            poll = select.poll()
            poll.register(keys.fileno(), select.POLLIN)
            poll.register(resized.fileno(), select.POLLIN)
            n_looks = 0
            for due in ticks(watch.every):
                while not view.is_over:
                    console.size = _size()
                    shown = screen(view, watch.lines(), watch.title, watch.trouble, *console.size)
                    live.update(shown, refresh=True)
                    ready = dict(poll.poll(max(0.0, (due - time.monotonic()) * 1000)))
                    if keys.fileno() in ready:
                        for key in keys.read():
                            view.press(key)
                    if resized.fileno() in ready:
                        resized.clear()
                    if not ready:
                        break
                if view.is_over or n_looks == count:
                    return
                if not view.is_paused:
                    watch.look()
                    n_looks += 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _size() -> ConsoleDimensions:
    """The terminal as it is now.  COLUMNS and LINES may make the screen smaller, and no larger: what is written below the end scrolls it."""
    wanted, real = shutil.get_terminal_size(), os.get_terminal_size(sys.stdout.fileno())
    return ConsoleDimensions(min(wanted.columns, real.columns), min(wanted.lines, real.lines))


def _terminated(number: int, frame: object) -> NoReturn:
    """Leave in order, so that the terminal is left as it was."""
    sys.exit(128 + number)
