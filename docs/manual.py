"""The manual pages, made of the pages of this folder: Markdown in, roff (man macros and tbl) out.

    python -m docs --man FOLDER     write them all

A page of the manual is a page of the documentation with a name, a section and a line that says what it is.  Its second-level headings
become the manual's sections.  What follows from the code is in the page already (``docs/pages.py``), except the options of fencectl, which
its own help pages show and only the manual repeats.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from docs.reference import verbs
from fencebroker import __version__

__all__ = ["MANUAL", "Page", "rendered"]

HERE: Final = Path(__file__).parent
#: A column whose longest cell is wider shares the width of the page with the others of its kind.
WIDE: Final = 24


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the manual."""

    source: str
    name: str
    section: int
    what: str
    synopsis: str = ""

    @property
    def file(self) -> str:
        """Return its file's name."""
        return f"{self.name}.{self.section}"

    @property
    def reference(self) -> str:
        """Return how others refer to it."""
        return f"{self.name}({self.section})"


MANUAL: Final = (
    Page("fencebrokerd.md", "fencebrokerd", 8, "the broker of fences between processes", "fencebrokerd [OPTIONS]"),
    Page("fencectl.md", "fencectl", 1, "ask a fence broker, wait and signal from a shell", "fencectl VERB [OPTIONS] [ARGUMENTS]"),
    Page("configuration.md", "fencebroker.toml", 5, "configuration of fencebrokerd"),
    Page("protocol.md", "fencebroker-protocol", 7, "what clients and fencebrokerd say to each other"),
)


def rendered(page: Page) -> str:
    """Return a page as roff."""
    text = (HERE / page.source).read_text("utf-8")
    if page.name == "fencectl":
        text = text.replace("\n## JSON\n", f"\n## Options of the verbs\n\n{verbs()}\n## JSON\n")
    others = ", ".join(f"\\fB{other.name}\\fR({other.section})" for other in MANUAL if other is not page)
    lines = [
        "'\\\" t",
        f'.TH {page.name.upper()} {page.section} "{_date()}" "fencebroker {__version__}" "fencebroker"',
        ".SH NAME",
        f"{_escape(page.name)} \\- {page.what}",
        ".ad l",
        ".nh",
        *([".SH SYNOPSIS", _code(page.synopsis)] if page.synopsis else []),
        *_Roff().blocks(SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(text)).children),
        ".SH SEE ALSO",
        others,
    ]
    return "\n".join(lines) + "\n"


def _date() -> str:
    """The day of the source for a build that must come out the same each time, else today."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(seconds), dt.UTC) if seconds else dt.datetime.now(dt.UTC)
    return moment.date().isoformat()


def _escape(text: str) -> str:
    return text.replace("\\", "\\[rs]").replace("~", "\\[ti]").replace("^", "\\[ha]").replace("`", "\\[ga]").replace("'", "\\[aq]")


def _literal(text: str) -> str:
    """Text that people copy: its hyphens are minus signs."""
    return _escape(text).replace("-", "\\-")


def _code(text: str) -> str:
    return f"\\fB{_literal(text)}\\fR"


def _line(text: str) -> str:
    """A line of the output: what would be a request begins with a character of no width."""
    return "\\&" + text if text.startswith((".", "'")) else text


class _Roff:
    """Writes blocks; knows whether it is inside a list, and whether a heading has opened the text."""

    def __init__(self) -> None:
        self._depth = 0
        self._has_section = False
        self._after_heading = False

    def blocks(self, nodes: Iterable[SyntaxTreeNode]) -> Iterator[str]:
        for node in nodes:
            if node.type == "heading":
                yield from self._heading(node)
                continue
            if node.type == "html_block" or _is_contents(node):
                continue
            if not self._has_section:
                self._has_section = self._after_heading = True
                yield ".SH DESCRIPTION"
            yield from self._block(node)
            self._after_heading = False

    def _block(self, node: SyntaxTreeNode) -> Iterator[str]:
        match node.type:
            case "paragraph":
                if not self._after_heading:
                    yield ".PP"
                yield from _lines(_inline(node))
            case "fence" | "code_block":
                yield from ([".RS 4"] if self._after_heading else [".PP", ".RS 4"])
                yield ".nf"
                yield from (_line(_literal(line)) for line in node.content.rstrip("\n").split("\n"))
                yield from (".fi", ".RE")
            case "bullet_list" | "ordered_list":
                yield from self._list(node)
            case "table":
                yield from () if self._after_heading else (".PP",)
                yield from _table(node)
            case "blockquote":
                yield ".RS 4"
                yield from self.blocks(node.children)
                yield ".RE"
            case _:
                raise ValueError(f"the manual has no form for a {node.type} ({node.content[:60]!r})")

    def _heading(self, node: SyntaxTreeNode) -> Iterator[str]:
        level = int(node.tag[1])
        title = _inline(node)
        if level == 2:
            self._has_section = True
            yield ".SH " + (title if "\\" in title else title.upper())
        elif level > 2:
            yield f".SS {title}"
        self._after_heading = level > 1

    def _list(self, node: SyntaxTreeNode) -> Iterator[str]:
        self._depth += 1
        if self._depth > 1:
            yield ".RS 2"
        for number, item in enumerate(node.children, int(node.attrs.get("start", 1))):
            term, rest = _term(item)
            if term is not None:
                yield from (".TP", term)
                yield from _lines(rest)
                following = item.children[1:]
            else:
                yield ".IP \\(bu 2" if node.type == "bullet_list" else f".IP {number}. 4"
                yield from _lines(_inline(item.children[0]))
                following = item.children[1:]
            for child in following:
                if child.type == "paragraph":
                    yield ".IP"
                    yield from _lines(_inline(child))
                else:
                    self._after_heading = True  # no paragraph of its own: it would leave the list
                    yield from (".RS 4",) if child.type == "table" else ()
                    yield from self._block(child)
                    yield from (".RE",) if child.type == "table" else ()
        if self._depth > 1:
            yield ".RE"
        self._depth -= 1


def _is_contents(node: SyntaxTreeNode) -> bool:
    """A line of links into the same page serves a browser."""
    return node.type == "paragraph" and node.children[0].content.startswith("Contents: [")


def _term(item: SyntaxTreeNode) -> tuple[str | None, str]:
    """An item whose first line is code alone is a term, and what follows explains it."""
    first = item.children[0]
    if first.type != "paragraph":
        return None, ""
    parts = first.children[0].children
    if len(parts) > 1 and parts[0].type == "code_inline" and parts[1].type == "softbreak":
        return _code(parts[0].content), "".join(map(_part, parts[2:]))
    return None, ""


def _inline(node: SyntaxTreeNode) -> str:
    return "".join(_part(part) for child in node.children for part in child.children)


def _part(node: SyntaxTreeNode) -> str:
    inner = "".join(map(_part, node.children)) if node.children else ""
    match node.type:
        case "text":
            return _escape(node.content)
        case "code_inline":
            return _code(node.content)
        case "strong":
            return f"\\fB{inner}\\fR"
        case "em":
            return f"\\fI{inner}\\fR"
        case "softbreak" | "hardbreak":
            return "\n"
        case "link":
            return inner + _where(str(node.attrs["href"]))
        case "image":
            return ""
    raise ValueError(f"the manual has no form for {node.type} in a line")


def _where(target: str) -> str:
    """What a link says besides its text: a page of the manual, or the address of something outside."""
    if target.startswith("http"):
        return f" ({_escape(target)})"
    source = target.partition("#")[0]
    for page in MANUAL:
        if page.source == source:
            return f" (\\fB{page.name}\\fR({page.section}))"
    return ""


def _lines(text: str) -> Iterator[str]:
    yield from map(_line, text.split("\n"))


def _table(node: SyntaxTreeNode) -> Iterator[str]:
    rows = [[_inline(cell) for cell in row.children] for part in node.children for row in part.children]
    widths = [max(len(_bare(row[column])) for row in rows) for column in range(len(rows[0]))]
    wide = [width > WIDE for width in widths]
    if sum(widths) + 3 * len(widths) <= 66:
        wide = [False] * len(widths)
    elif not any(wide):
        wide[-1] = True
    yield from (".TS", "tab(|);")
    yield "2 ".join("lbx" if is_wide else "lb" for is_wide in wide)
    yield "2 ".join("lx" if is_wide else "l" for is_wide in wide) + "."
    for row in rows:
        yield "|".join(_cell(cell, is_wide) for cell, is_wide in zip(row, wide, strict=True))
    yield ".TE"


def _cell(text: str, is_wide: bool) -> str:
    text = text.replace("|", "\\[ba]").replace("\n", " ")
    return f"T{{\n{_line(text)}\nT}}" if is_wide else _line(text)


def _bare(text: str) -> str:
    return re.sub(r"\\f.|\\\[..\]|\\", "", text)
