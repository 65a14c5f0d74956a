"""What is measured beside wakes and rates: each section is a table, the figures behind it, and what could not be measured.

Peers take turns inside each round here too, and each measurement has processes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.crowd import measure_clients, measure_growth
from benchmarks.fanout import FAN_OUT, measure_fan_out
from benchmarks.farm import run_apart
from benchmarks.frames import BUFFERS, FRAME_BYTES, FRAMES, measure_frames
from benchmarks.rest import Idle, IdleBroker, measure_daemon_start, measure_imports
from benchmarks.scale import SIZES, measure_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["FULL", "QUICK", "Section", "Size", "Verdict", "measure_sections"]

Row = tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A figure that has a target; ``met`` is what came out."""

    what: str
    value: str
    target: str
    met: bool


@dataclass(frozen=True)
class Section:
    """One table; ``data`` has the same as plain values, for programs and for plots."""

    key: str
    title: str
    text: str
    head: Row
    rows: list[Row]
    data: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    waiters: tuple[int, ...]
    fan_out_rounds: int
    signals: int  #: per round of a fan-out
    frame_rounds: int
    frames: int
    clients: tuple[int, ...]
    client_seconds: float
    active: tuple[int, ...]
    samples: int
    scales: tuple[int, ...]
    starts: int
    idle_seconds: float


FULL = Size((1, 8, 64, 256), 2, 8, 3, 300, (1, 2, 4, 8, 16, 32), 1.0, (10, 1_000, 15_000), 500, SIZES, 15, 60.0)
QUICK = Size((1, 2), 1, 1, 1, 20, (2,), 0.05, (10, 100), 20, SIZES[:1], 1, 0.0)


def measure_sections(size: Size, idle: IdleBroker, say: Callable[[str], None]) -> list[Section]:
    """Measure all; ``say`` is told what comes next."""
    made = []
    for title, measure in (
        ("fan-out", _fan_out),
        ("the pipeline", _frames),
        ("client processes", _clients),
        ("active fences", _growth),
        ("the core alone", _scale),
        ("start-up", _starts),
    ):
        say(title)
        made.append(measure(size))
    say("nothing")
    made.append(_idle(idle.result(size.idle_seconds)))
    return made


def _rounds(titles: Iterable[str], rounds: int, measure: Callable[[str], float | list[float]]) -> dict[str, list[float]]:
    """Measure each of ``titles`` in each round, beginning with another one each time."""
    order = list(titles)
    found: dict[str, list[float]] = {title: [] for title in order}
    for number in range(rounds):
        first = number * 3 % len(order)
        for title in order[first:] + order[:first]:
            value = measure(title)
            found[title] += value if isinstance(value, list) else [value]
    return found


def _fan_out(size: Size) -> Section:
    present = [title for title, (_, why) in FAN_OUT.items() if why() is None]
    data: dict[str, dict[str, list[float]]] = {title: {} for title in present}
    for waiters in size.waiters:
        found = _rounds(present, size.fan_out_rounds, lambda title, n=waiters: run_apart(measure_fan_out, title, n, size.signals))  # type: ignore[misc]  # bound at once
        for title, values in found.items():
            data[title][str(waiters)] = values
    rows: list[Row] = [(title, *(f"{median(values):,.0f}" for values in by.values())) for title, by in data.items()]
    rows += _not_run(FAN_OUT, len(size.waiters))
    return Section(
        "fan_out",
        "Fan-out: one signal, many waiters, until the last is awake",
        "Microseconds, the median. Each waiter is a process; all sleep when the signal comes; the scheduler places them. With more waiters than cores "
        "most of it is the time in which they take turns to say that they woke.",
        ("waiters", *map(str, size.waiters)),
        rows,
        data,
        list(_fan_out_verdicts(data)),
    )


def _fan_out_verdicts(data: dict[str, dict[str, list[float]]]) -> Iterable[Verdict]:
    ours = data.get("fencebrokerd, through the ring", {}).get("64")
    if ours is not None:
        for title, by in data.items():
            if not title.startswith("fencebrokerd") and title != "raw eventfd":
                ratio = median(ours) / median(by["64"])
                yield Verdict(f"fan-out to 64: through the ring / {title}", f"{ratio:.2f}", "<= 1.0", ratio <= 1.0)


def _not_run(table: dict[str, tuple[Any, Callable[[], str | None]]], columns: int) -> list[Row]:
    missing = [(title, why()) for title, (_, why) in table.items()]
    return [(f"{title}: NOT RUN, {why}", *[""] * columns) for title, why in missing if why is not None]


def _frames(size: Size) -> Section:
    present = [title for title, (_, why) in FRAMES.items() if why() is None]
    data = _rounds(present, size.frame_rounds, lambda title: run_apart(measure_frames, title, size.frames))
    rows: list[Row] = [(title, f"{median(v):,.0f}", f"{min(v):,.0f} - {max(v):,.0f}") for title, v in data.items()]
    return Section(
        "frames",
        "A pipeline of three processes, with one means of synchronisation after the other",
        f"The shape of the example pipeline: capture, filter and encode with {BUFFERS} buffers of {FRAME_BYTES // 1024} KiB between each two, and next to no work per frame, so that "
        "what is compared is the synchronisation. A frame needs two of them on each link: it is there, and its buffer is free. A frame that is torn ends the run.",
        ("means", "frames per second", "slowest and fastest round"),
        rows + _not_run(FRAMES, 2),
        dict(data),
    )


def _clients(size: Size) -> Section:
    data = {str(n): run_apart(measure_clients, n, size.client_seconds) for n in size.clients}
    return Section(
        "clients",
        "Client processes",
        "Export, advance and close, one at a time, by so many processes at once; all of them together.",
        ("client processes", "per second"),
        [(n, f"{rate:,.0f}") for n, rate in data.items()],
        data,
    )


def _growth(size: Size) -> Section:
    found = run_apart(measure_growth, size.active, size.samples)

    def memory(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    rows: list[Row] = [
        (f"{g.active:,}", f"{g.operation:.1f}", f"{g.question:.1f}", memory(g.broker_memory), memory(g.client_memory)) for g in found
    ]
    verdicts = []
    last = found[-1]
    if last.broker_memory is not None and last.active >= 1000:
        verdicts.append(
            Verdict(
                f"resident memory of the broker per active sync_file ({last.active:,} of them)",
                f"{last.broker_memory:,.0f} bytes",
                "<= 1024",
                last.broker_memory <= 1024,
            )
        )
    return Section(
        "active",
        "Active fences",
        "What an operation costs while so many fences are active, in microseconds, and how much the resident memory of broker and client has grown for each, in bytes. "
        "The client holds a SyncFile and a descriptor for each. As far as the descriptor limit goes.",
        ("active fences", "export + advance + close, p50", "info, p50", "broker, per fence", "client, per fence"),
        rows,
        {str(g.active): g._asdict() for g in found},
        verdicts,
    )


def _scale(size: Size) -> Section:
    found = [run_apart(measure_scale, n) for n in size.scales]
    first = found[0].advance
    return Section(
        "core",
        "The core alone",
        "No sockets and no descriptors: fences made in random order, the lowest signalled one at a time, then all that are left at once. Processor time per fence, in microseconds.",
        ("active fences", "make one", "advance by one", "advance over the rest, each", "against the first row"),
        [(f"{s.size:,}", f"{s.mint:.1f}", f"{s.advance:.1f}", f"{s.sweep:.1f}", f"{s.advance / first:.2f}") for s in found],
        {str(s.size): s._asdict() for s in found},
    )


def _starts(size: Size) -> Section:
    imports, daemon = run_apart(measure_imports, size.starts), run_apart(measure_daemon_start, max(1, size.starts // 3))
    extra = median(b - a for a, b in imports)
    bare = median(a for a, _ in imports)
    return Section(
        "start",
        "Start-up",
        "Milliseconds, the median; the bare Python and the one that imports take turns.",
        ("what", "ms"),
        [
            ("a bare Python, start to end", f"{bare:.1f}"),
            ("`import fencebroker` over it", f"{extra:.1f}"),
            ("fencebrokerd, from exec until clients can connect", f"{median(daemon):.1f}"),
        ],
        {"imports_ms": imports, "daemon_ms": daemon},
        [Verdict("`import fencebroker` over a bare Python", f"{extra:.1f} ms", "<= 60", extra <= 60)],
    )


def _idle(idle: Idle) -> Section:
    return Section(
        "idle",
        "Idle",
        "A broker with one client that holds a timeline and an active fence, while the other figures of this page were taken; from three seconds "
        "after its last answer on, when its keeper has looked once more.",
        ("seconds", "processes", "wake-ups", "processor time", "memory (PSS) of all"),
        [(f"{idle.seconds:.0f}", str(idle.processes), str(idle.wake_ups), f"{idle.cpu_ms:.0f} ms", f"{idle.pss_mib:.1f} MiB")],
        idle._asdict(),
        [
            Verdict("wake-ups of an idle broker", f"{idle.wake_ups} in {idle.seconds:.0f} s", "none", idle.wake_ups == 0),
            Verdict("memory (PSS) of an idle broker", f"{idle.pss_mib:.1f} MiB", "<= 40", idle.pss_mib <= 40),
        ],
    )
