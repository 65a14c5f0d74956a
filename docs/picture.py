"""Draws the picture of the README: who says what to whom, as SVG that is readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

__all__ = ["PICTURES"]

WIDTH: Final = 880
HEIGHT: Final = 440
# Where each process's line of life stands.
PRODUCER: Final = 150
BROKER: Final = 440
CONSUMER: Final = 730

STYLE: Final = """
  svg { color-scheme: light dark }
  text { font: 15px ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2328 }
  .head { font-weight: 600; font-size: 17px }
  .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 14px }
  .soft { fill: #59636e; font-size: 13px }
  .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5 }
  .life { stroke: #afb8c1; stroke-width: 1.5; stroke-dasharray: 2 5 }
  .line { stroke: #59636e; stroke-width: 1.6; fill: none }
  .own { stroke: #0969da; stroke-width: 2.4; fill: none }
  .tip { fill: #59636e }
  .tip-own, .fd { fill: #0969da }
  .work { fill: #8c959f }
  .wait { fill: #d4a72c }
  .good { fill: #1a7f37 }
  .bad { fill: #cf222e; color: #cf222e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .soft { fill: #9198a1 }
    .box { fill: #161b22; stroke: #6e7681 }
    .life { stroke: #3d444d }
    .line { stroke: #9198a1 }
    .own { stroke: #4493f8 }
    .tip { fill: #9198a1 }
    .tip-own, .fd { fill: #4493f8 }
    .work { fill: #6e7681 }
    .wait { fill: #d29922 }
    .good { fill: #3fb950 }
    .bad { fill: #f85149; color: #f85149 }
  }
"""


class _Drawing:
    """Collects the elements of one picture."""

    def __init__(self, title: str, description: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
            f"<title>{title}</title>",
            f"<desc>{description}</desc>",
            f"<style>{STYLE}</style>",
        ]

    def text(self, x: int, y: int, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Write one line of text."""
        self._parts.append(f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>')

    def process(self, x: int, name: str, what: str) -> None:
        """Draw a process: a box with a line of life below."""
        self._parts.append(f'<line x1="{x}" y1="72" x2="{x}" y2="{HEIGHT - 14}" class="life"/>')
        self._parts.append(f'<rect x="{x - 105}" y="14" width="210" height="58" rx="9" class="box"/>')
        self.text(x, 38, name, "head")
        self.text(x, 59, what, "soft")

    def arrow(self, start: int, end: int, y: int, *, own: bool = False, fd: bool = False) -> None:
        """Draw a message; ``fd``: a descriptor travels with it."""
        side = 1 if end > start else -1
        start, end = start + 8 * side, end - 8 * side
        suffix = "-own" if own else ""
        self._parts.append(f'<line x1="{start}" y1="{y}" x2="{end - 6 * side}" y2="{y}" class="{"own" if own else "line"}"/>')
        self._parts.append(f'<path d="M{end} {y}l{-11 * side} -5v10z" class="tip{suffix}"/>')
        if fd:
            self._parts.append(f'<circle cx="{end - 24 * side}" cy="{y}" r="7" class="fd"/>')

    def bar(self, x: int, y: int, end: int, kind: str) -> None:
        """Draw a span of time in a process's life."""
        self._parts.append(f'<rect x="{x - 6}" y="{y}" width="12" height="{end - y}" rx="5" class="{kind}"/>')

    def cross(self, x: int, y: int) -> None:
        """Draw the end of a process."""
        self._parts.append(f'<path d="M{x - 9} {y - 9}l18 18m0 -18l-18 18" stroke-width="4" class="bad" style="stroke: currentColor"/>')

    def rule(self, y: int) -> None:
        """Draw a line across."""
        self._parts.append(f'<line x1="20" y1="{y}" x2="{WIDTH - 20}" y2="{y}" class="life"/>')

    def done(self) -> str:
        """Return the whole picture."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def fence() -> str:
    """Draw the life of one fence, and what happens when its producer dies."""
    d = _Drawing(
        "A fence from producer to consumer",
        "The producer gets a descriptor from the broker and sends it to the consumer with a buffer that is not drawn yet. The consumer polls "
        "the descriptor. The producer draws, then tells the broker, and the descriptor becomes readable. If the producer dies first, the "
        "descriptor becomes readable with an error.",
    )
    d.process(PRODUCER, "producer", "any process")
    d.process(BROKER, "fencebrokerd", "owns the timelines")
    d.process(CONSUMER, "consumer", "any language, no library")
    middle, right = (PRODUCER + BROKER) // 2, (BROKER + CONSUMER) // 2

    d.arrow(PRODUCER, BROKER, 112)
    d.text(middle, 104, "export(1)", "code")
    d.arrow(BROKER, PRODUCER, 144, fd=True)
    d.text(middle, 136, "an eventfd", "soft")

    d.arrow(PRODUCER, CONSUMER, 192, own=True, fd=True)
    d.text(middle, 183, "“buffer 7” and the fence")
    d.text(right, 183, "over your own socket", "soft")
    d.bar(PRODUCER, 202, 262, "work")
    d.text(PRODUCER - 16, 237, "draws", "soft", "end")
    d.bar(CONSUMER, 202, 288, "wait")
    d.text(CONSUMER + 16, 250, "poll()", "code", "start")

    d.arrow(PRODUCER, BROKER, 272)
    d.text(middle, 264, "advance(1)", "code")
    d.arrow(BROKER, CONSUMER, 290)
    d.text(right, 282, "readable: OK", "soft")
    d.bar(CONSUMER, 292, 328, "good")
    d.text(CONSUMER + 16, 316, "reads buffer 7", "soft", "start")

    d.rule(350)
    d.text(middle, 372, "or, instead of advance", "soft")
    d.cross(PRODUCER, 396)
    d.text(PRODUCER - 16, 401, "kill -9", "code", "end")
    d.arrow(PRODUCER + 6, BROKER, 396)
    d.text(middle, 414, "the kernel closes its end", "soft")
    d.arrow(BROKER, CONSUMER, 396)
    d.text(right, 388, "readable: ENOENT", "soft")
    d.bar(CONSUMER, 388, 420, "bad")
    d.text(CONSUMER + 16, 408, "knows at once", "soft", "start")
    return d.done()


def trust() -> str:
    """Draw who trusts whom with what."""
    d = _Drawing(
        "Who trusts whom",
        "Two users and a broker between them. The broker checks, charges and takes in turn what either of them sends, and tells both the truth "
        "about fences. A sync_file that one user hands the other is a right to wait and no right to signal, and both can spoil it; after an import "
        "the other has a descriptor that nobody else holds. Without a mode or a descriptor they see nothing of each other.",
    )
    left, right = PRODUCER, CONSUMER
    d.process(left, "ada", "any user")
    d.process(BROKER, "fencebrokerd", "a user of its own, no privileges")
    d.process(right, "bob", "another user")
    middle, beyond = (left + BROKER) // 2, (BROKER + right) // 2
    for start, x in ((left, middle), (right, beyond)):
        d.arrow(start, BROKER, 118)
        d.text(x, 110, "packets, descriptors", "soft")
        d.text(x, 136, "checked, charged, in turn")
        d.arrow(BROKER, start, 176)
        d.text(x, 168, "what a fence's status is", "soft")
        d.text(x, 194, "believed")
    d.rule(218)
    d.arrow(left, right, 254, own=True, fd=True)
    d.text(middle, 246, "a sync_file, handed over", "soft")
    d.text(middle, 272, "a right to wait, not to signal")
    d.text(beyond, 272, "one eventfd: both can spoil it")
    d.arrow(right, BROKER, 312, fd=True)
    d.text(beyond, 304, "import", "code")
    d.arrow(BROKER, right, 340, own=True, fd=True)
    d.text(beyond, 358, "one that nobody else holds")
    d.text(middle, 318, "knows the truth,")
    d.text(middle, 338, "whatever was written to the other")
    d.rule(384)
    d.text(BROKER, 412, "no mode, no descriptor: ada and bob see nothing of each other, not even counts")
    return d.done()


PICTURES: Final[Mapping[Path, Callable[[], str]]] = {
    Path(__file__).parent / "fence.svg": fence,
    Path(__file__).parent / "trust.svg": trust,
}
