"""``top``: a screen of timelines that is kept current, or the same as lines where there is no screen."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from fencebroker import Broker, BrokerUnavailable
from fencebroker.cli import names
from fencebroker.cli.catalogue import list_rows
from fencebroker.cli.command import Invocation, Verb, answer_within, asks_broker, duration, parsed, wants_json
from fencebroker.cli.render import Column, Table, latency, process, span
from fencebroker.cli.schema import process as process_json
from fencebroker.cli.stats import latencies
from fencebroker.latency import percentile
from fencebroker.model import ProcessInfo
from fencebroker.rows import TimelineRow

__all__ = ["HEADS", "ORDERS", "Line", "Sample", "View", "Watch", "lines_of", "ticks", "top", "words"]

#: What is shown is over so many intervals, so that a timeline of one frame in two intervals has a rate too.
WINDOW: Final = 5
#: A broker that does not answer for so long is taken to be gone.
ANSWER_SECONDS: Final = 5.0

EXAMPLE = """\
$ fencectl top -n 1 --every 0.1s
TIMELINE  RATE  P50  P99  ACTIVE  OLDEST  ERRORS  OWNER
camera0    0.0    -    -       1   4.2 s       0  4211 capture
"""


class Sample(NamedTuple):
    """What there was at one moment."""

    now: int
    timelines: dict[int, TimelineRow]


class Line(NamedTuple):
    """A timeline over the last intervals."""

    context: int
    name: str
    rate: float  #: fences that signalled, or failed, a second
    p50: int | None
    p99: int | None
    active: int
    oldest: int  #: for how long the oldest active fence is waited for, ns; 0: none is active
    errors: int  #: since the timeline was made
    has_new_errors: bool
    owner: ProcessInfo
    owner_alive: bool


def lines_of(samples: Sequence[Sample]) -> list[Line]:
    """Compare the newest sample with the oldest one that has the same timeline."""
    newest = samples[-1]
    return [_line(row, newest.now, samples) for row in newest.timelines.values()]


def _line(row: TimelineRow, now: int, samples: Sequence[Sample]) -> Line:
    since, before = next(
        ((sample.now, sample.timelines[row.context]) for sample in samples[:-1] if row.context in sample.timelines), (row.created_ns, None)
    )
    counts = latencies(row)
    n_done, n_failed = row.n_signalled + row.n_failed, row.n_failed
    if before is not None:
        earlier = latencies(before)
        counts = {bucket: n - earlier.get(bucket, 0) for bucket, n in counts.items()}
        n_done -= before.n_signalled + before.n_failed
        n_failed -= before.n_failed
    return Line(
        row.context,
        names.timeline(row) if row.name is not None else f"{row.context}:",
        n_done / max(1e-9, (now - since) / 1e9),
        percentile(counts, 50),
        percentile(counts, 99),
        row.n_active,
        0 if row.oldest_ns is None else max(0, now - row.oldest_ns),
        row.n_failed,
        n_failed > 0,
        row.owner,
        row.creator_alive,
    )


# -- what the user chose

#: Key -> the column that it sorts by, and how.  The first press puts the largest first, another turns it round.
ORDERS: Final[dict[str, tuple[str, Callable[[Line], Any]]]] = {
    "n": ("TIMELINE", lambda line: line.name),
    "r": ("RATE", lambda line: line.rate),
    "m": ("P50", lambda line: line.p50 or 0),
    "l": ("P99", lambda line: line.p99 or 0),
    "a": ("ACTIVE", lambda line: line.active),
    "o": ("OLDEST", lambda line: line.oldest),
    "e": ("ERRORS", lambda line: line.errors),
    "w": ("OWNER", lambda line: line.owner),
}


class View:
    """Order, filter and pause; ``press`` takes a key."""

    def __init__(self) -> None:
        self.order = "r"
        self.is_reversed = False
        self.filter = ""
        self.is_typing = False
        self.is_paused = False
        self.is_over = False

    def press(self, key: str) -> None:
        """Do what a key is for."""
        if self.is_typing:
            self._type(key)
        elif key in ORDERS:
            self.is_reversed = key == self.order and not self.is_reversed
            self.order = key
        elif key == "/":
            self.is_typing, self.filter = True, ""
        elif key == "escape":
            self.filter = ""
        elif key == " ":
            self.is_paused = not self.is_paused
        elif key == "q":
            self.is_over = True

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.is_typing = False
            if key == "escape":
                self.filter = ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif key.isprintable() and len(key) == 1:
            self.filter += key

    def arrange(self, lines: Sequence[Line]) -> list[Line]:
        """Leave out what does not match, and sort the rest; ties by name, so that nothing jumps."""
        wanted = self.filter.casefold()
        matching = [line for line in lines if wanted in line.name.casefold() or wanted in process(line.owner).casefold()]
        matching.sort(key=lambda line: line.name)
        _, key = ORDERS[self.order]
        matching.sort(key=key, reverse=(self.order != "n") is not self.is_reversed)
        return matching


#: The columns, and whether they are to the right.
HEADS: Final = (
    ("TIMELINE", False), ("RATE", True), ("P50", True), ("P99", True), ("ACTIVE", True), ("OLDEST", True), ("ERRORS", True), ("OWNER", False),
)  # fmt: skip


def words(line: Line) -> list[str]:
    """Return the cells of a line."""
    who = process(line.owner) + ("" if line.owner_alive else " (gone)")
    oldest = span(line.oldest) if line.active else "-"
    return [line.name, f"{line.rate:.1f}", latency(line.p50), latency(line.p99), str(line.active), oldest, str(line.errors), who]


def _title(broker: Broker, sample: Sample) -> str:
    active = sum(row.n_active for row in sample.timelines.values())
    return f"fencebrokerd {broker._connection.pid}: {len(sample.timelines)} timelines, {active} active points"


# -- the verb


@click.command(cls=Verb, example=EXAMPLE, short_help="A live screen of timelines: rates, latencies, errors.")
@click.option("--every", metavar="TIME", callback=parsed(duration), default="1s", show_default=True, help="Look so often.")
@click.option("-n", "--count", metavar="N", type=click.IntRange(min=1), help="End after so many looks.  [default: go on]")
@asks_broker
@wants_json
@click.pass_obj
def top(invocation: Invocation, every: float, count: int | None) -> None:
    """Show timelines as they work: RATE is fences signalled a second, P50 and P99 how long those were active from export to signal, over the
    last five looks; ACTIVE how many are active now, OLDEST for how long the oldest of them; ERRORS how many failed since the timeline was
    made.

    Keys: n r m l a o e w sort by a column (timeline, rate, P50, P99, active, oldest, errors, owner), the same key again turns the order
    round; / filters by name or owner; space pauses; q quits. When the broker goes away, the screen says so and waits for the next one.

    Without a terminal it writes a table for each look, with --json an object a line.
    """
    if every < 0.05:
        raise click.BadParameter("must be 50ms or more", param_hint="--every")
    watch = Watch(invocation, every)
    with contextlib.closing(watch):
        if invocation.output.is_terminal and not invocation.output.as_json and sys.stdin.isatty() and os.environ.get("TERM") != "dumb":
            from fencebroker.cli.screen import show  # what draws screens takes its time to load, and no other verb needs it

            show(watch, invocation.output.is_coloured, count)
        else:
            _write(watch, count)


class Watch:
    """Takes samples, and waits for a broker that has gone away."""

    def __init__(self, invocation: Invocation, every: float) -> None:
        self.invocation = invocation
        self.every = every
        self.samples: deque[Sample] = deque(maxlen=WINDOW + 1)
        self.trouble = ""
        self.title = ""
        self._broker: Broker | None = invocation.connect()
        self.look()

    def look(self) -> bool:
        """Take a sample; False when there is no broker to take it from."""
        try:
            if self._broker is None:
                self._broker = self.invocation.connect(ANSWER_SECONDS)
                self.samples.clear()
            with answer_within(ANSWER_SECONDS):
                rows = [row for row in list_rows(self._broker, "timelines") if isinstance(row, TimelineRow)]
        except BrokerUnavailable:
            self.close()
            self.trouble = self.trouble or f"the broker went away at {time.strftime('%H:%M:%S')}; waiting for the next one"
            return False
        self.trouble = ""
        sample = Sample(time.monotonic_ns(), {row.context: row for row in rows})
        self.samples.append(sample)
        self.title = _title(self._broker, sample)
        return True

    def lines(self) -> list[Line]:
        return lines_of(list(self.samples)) if self.samples else []

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()
            self._broker = None


def ticks(every: float) -> Iterator[float]:
    """Yield when the next look is due; one that is missed is left out."""
    due = time.monotonic()
    while True:
        due = max(due + every, time.monotonic())
        yield due


def _write(watch: Watch, count: int | None) -> None:
    output = watch.invocation.output
    columns = [Column(head, right, head in ("TIMELINE", "OWNER")) for head, right in HEADS]
    view = View()
    n_looks = 0
    for due in ticks(watch.every):
        time.sleep(max(0.0, due - time.monotonic()))
        was_there = not watch.trouble
        if not watch.look():
            if was_there:
                click.echo(f"fencectl: {watch.trouble}", err=True)
            continue
        lines = view.arrange(watch.lines())
        if n_looks:
            output.line("")
        output.tables(Table("", columns, [words(line) for line in lines]))
        output.json({"now_ns": watch.samples[-1].now, "timelines": [_json(line) for line in lines]}, one_line=True)
        output.flush()
        n_looks += 1
        if n_looks == count:
            return


def _json(line: Line) -> dict[str, Any]:
    return {
        "context": line.context,
        "name": line.name,
        "rate": round(line.rate, 3),
        "p50_ns": line.p50,
        "p99_ns": line.p99,
        "active": line.active,
        "oldest_ns": line.oldest if line.active else None,
        "failed": line.errors,
        "owner": process_json(line.owner),
        "owner_alive": line.owner_alive,
    }
