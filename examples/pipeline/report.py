"""What a stage tells the launcher: one JSON object per line on standard output."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Report:
    """One line.  Times are CLOCK_MONOTONIC nanoseconds, so the launcher can compare them with its own."""

    stage: str
    #: "listening"; "frame": done with it; "torn": it was; "wakes": how fast its waits were; "done";
    #: "broken": a fence failed or a neighbour left
    event: str
    #: "wakes", "broken": which fences; "done": the file written, if any.
    subject: str = ""
    #: "frame", "torn", "broken": which frame; "done": how many.
    sequence: int = 0
    #: "frame", "broken": when.
    at_ns: int = 0
    #: "broken": the positive errno (0 for a neighbour that left), and in words.
    error: int = 0
    text: str = ""
    #: "wakes": how many waits slept, and how long after the signal they woke.
    waits: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0

    def send(self) -> None:
        """Write the line in one piece: the stages share a pipe, and up to PIPE_BUF bytes are never mixed."""
        line = json.dumps(asdict(self)).encode() + b"\n"
        os.write(sys.stdout.fileno(), line)

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        fields: dict[str, Any] = json.loads(line)
        return cls(**fields)
