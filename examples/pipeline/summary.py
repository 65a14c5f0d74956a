"""What the demo found out, and how it is shown."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from rich.table import Table

from examples.pipeline.report import Report


@dataclass
class Summary:
    """Everything the stages reported."""

    frames: int
    #: Frames that were not whole when some stage read them.
    torn: set[int] = field(default_factory=set)
    torn_by_stage: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    first_ns: int = 0
    last_ns: int = 0
    wakes: list[Report] = field(default_factory=list)
    broken: list[Report] = field(default_factory=list)
    done: dict[str, Report] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        match report.event:
            case "frame":
                self.finished += 1
                self.first_ns = self.first_ns or report.at_ns
                self.last_ns = report.at_ns
            case "torn":
                self.torn.add(report.sequence)
                self.torn_by_stage[report.stage] = self.torn_by_stage.get(report.stage, 0) + 1
            case "wakes":
                self.wakes.append(report)
            case "broken":
                self.broken.append(report)
            case "done":
                self.done[report.stage] = report

    @property
    def seconds(self) -> float:
        """From the first finished frame to the last; starting Python is nobody's frame rate."""
        return (self.last_ns - self.first_ns) / 1e9

    @property
    def frames_per_second(self) -> float:
        return (self.finished - 1) / self.seconds if self.seconds else 0.0

    def progress(self) -> str:
        return f"{self.finished}/{self.frames} frames, torn {len(self.torn)}"

    def table(self) -> Table:
        table = Table(title="wake latency: from a fence's signal to its waiter running again")
        table.add_column("stage")
        table.add_column("waits for")
        for heading in ("frames", "torn", "slept", "p50 us", "p99 us"):
            table.add_column(heading, justify="right")
        for row in self.wakes:
            frames = str(self.done[row.stage].sequence) if row.stage in self.done else "-"
            # Only who reads a frame can find it torn; release fences are waited for by those who write.
            torn = str(self.torn_by_stage.get(row.stage, 0)) if row.subject == "out-fence" else "-"
            latency = (f"{row.p50_us:.0f}", f"{row.p99_us:.0f}") if row.waits else ("-", "-")
            table.add_row(row.stage, row.subject, frames, torn, str(row.waits), *latency)
        return table

    def who_saw_what(self, killed: str, killed_ns: int) -> list[str]:
        """One line for each stage that noticed the death of another."""
        lines = []
        for report in sorted(self.broken, key=lambda report: report.at_ns):
            saw = f"-{errno.errorcode[report.error]}" if report.error else "its neighbour's socket closed"
            lines.append(f"{report.stage} saw {saw} {(report.at_ns - killed_ns) / 1e6:.1f} ms after the kill of {killed}: {report.text}")
        return lines
