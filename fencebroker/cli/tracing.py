"""``trace``: events as they come; ``record``: into a file that Perfetto opens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import click

from fencebroker.cli import schema
from fencebroker.cli.child import Child, Stop
from fencebroker.cli.chrome import Record, Recording
from fencebroker.cli.command import CommandVerb, Invocation, asks_broker, wants_json
from fencebroker.cli.events import OWN, Stream
from fencebroker.cli.render import span
from fencebroker.model import Event

__all__ = ["record", "trace"]

TRACE_EXAMPLE: Final = """\
$ fencectl trace -- fencectl advance camera0 7
4711.123456: sync_timeline: name=camera0 value=6 pid=4211 uid=1000 comm=capture
4711.123456: dma_fence_signaled: driver=fencebroker timeline=camera0 context=1 seqno=7 status=1 pid=4211 uid=1000 comm=capture
"""
RECORD_EXAMPLE: Final = """\
$ fencectl record -o camera0.json -- fencectl advance camera0 7
camera0.json: 2 events, 4 fences, 1 signalled, 0 events lost, 310 ms; open it at https://ui.perfetto.dev or in chrome://tracing
"""


def _follow(stream: Stream, child: Child | None, stop: Stop | None) -> Iterator[list[Event]]:
    """Yield events, as many as there are at a time, until the command ends, or somebody asks to stop."""
    poller = select.poll()
    for source in (stream, child, stop):
        if source is not None:
            poller.register(source, select.POLLIN)
    ends = {source.fileno() for source in (child, stop) if source is not None}
    while not ends & {fd for fd, _ in poller.poll()}:
        yield list(stream.read())
    yield list(stream.rest())


def _stream(invocation: Invocation) -> Stream:
    """Follow the broker that is found; it is asked on a session of its own."""
    with invocation.connect() as broker:
        return Stream(broker._connection.path)


def _child(stream: Stream, command: tuple[str, ...]) -> Child:
    """Run the command, with the broker that is followed."""
    return Child(command, {"FENCEBROKER_SOCKET": os.path.abspath(stream.path)})


# -- trace


@click.command(cls=CommandVerb, required=False, example=TRACE_EXAMPLE, short_help="Show what happens, as it happens.")
@asks_broker
@wants_json
@click.pass_obj
def trace(invocation: Invocation, command: tuple[str, ...]) -> None:
    """Show what happens in the broker, as it happens, until Ctrl-C or until CMD ends.

    CMD uses this broker. The names are those of the kernel's trace events, and so is the form of a line; at its end is the process that created the timeline, or
    that asked for a sync_file (emit). The broker waits for nobody: what could not be shown in time is counted, and a line says how much.
    """
    with _stream(invocation) as stream, contextlib.ExitStack() as stack:
        child = stack.enter_context(_child(stream, command)) if command else None
        for events in _follow(stream, child, None):
            for event in events:
                _show(invocation, event)
            invocation.output.flush()


def _show(invocation: Invocation, event: Event) -> None:
    if event.lost:
        invocation.output.line(f"{event.lost} events were lost here: they came faster than they were read")
    own = event.driver == OWN
    if event.lost or not own:
        invocation.output.json({"lost": event.lost, "event": None if own else schema.event(event)}, one_line=True)
    if not own:
        invocation.output.line(str(event))


# -- record


class File:
    """The file of a recording: a JSON array that is whole once ``close`` was called, and that viewers open also if that never happened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named():
            self._stream: TextIO = open(path, "w", encoding="ascii")  # noqa: SIM115 - closed by close()
            self._stream.write("[\n")
        self._is_first = True

    def write(self, record: Record) -> None:
        """Add a record."""
        with self._named():
            self._stream.write(
                json.dumps(record, separators=(",", ":")) if self._is_first else ",\n" + json.dumps(record, separators=(",", ":"))
            )
        self._is_first = False

    def close(self) -> None:
        """Complete it."""
        with self._named(), self._stream:
            self._stream.write("\n]\n")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error says which file it was."""
        try:
            yield
        except OSError as err:
            with contextlib.suppress(OSError, AttributeError):
                self._stream.close()
            raise OSError(err.errno, err.strerror, str(self._path)) from err


@click.command(cls=CommandVerb, required=False, example=RECORD_EXAMPLE, short_help="Record what happens, for Perfetto.")
@click.option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to; it is overwritten.",
)
@asks_broker
@wants_json
@click.pass_obj
def record(invocation: Invocation, path: Path, command: tuple[str, ...]) -> None:
    """Record what happens in the broker, until Ctrl-C or until CMD ends, as a trace that Perfetto and chrome://tracing open.

    CMD uses this broker. Each timeline has a track, on which its points lie one after the other, and a counter of its active fences; an arrow goes from each
    sync_file, at the process that asked for it, to its signal. Fences that were active before are there, too. The broker waits for nobody:
    what could not be written in time is counted, and marked in the trace. If CMD fails, the exit code is 1, and the trace is good.
    """
    child: Child | None = None
    with _stream(invocation) as stream, contextlib.ExitStack() as stack:
        stop = None if command else stack.enter_context(Stop())
        started = time.monotonic_ns()
        file = File(path)
        stack.callback(file.close)
        recording = Recording(file.write)
        stack.callback(lambda: recording.finish(time.monotonic_ns()))
        _take_active(stream, recording)
        if command:
            child = stack.enter_context(_child(stream, command))
        for events in _follow(stream, child, stop):
            for event in events:
                _take(recording, event)
            if any(event.lost for event in events):
                _take_active(stream, recording)
        took = time.monotonic_ns() - started
    _tell(invocation, path, recording, took)
    if child is not None:
        child.check()


def _take(recording: Recording, event: Event) -> None:
    if event.lost:
        recording.lost(event.lost, event.time_ns)
    if event.driver != OWN:
        recording.event(event)


def _take_active(stream: Stream, recording: Recording) -> None:
    """At the beginning, and after a loss: what is active, and what happens while that is asked."""
    now, lost = time.monotonic_ns(), -1
    while lost != recording.n_lost:
        lost = recording.n_lost
        for each in stream.active():
            if isinstance(each, Event):
                _take(recording, each)
            else:
                recording.active(each, now)


def _tell(invocation: Invocation, path: Path, recording: Recording, took: int) -> None:
    counts: dict[str, Any] = {
        "events": recording.n_events,
        "fences": recording.n_fences,
        "signalled": recording.n_signalled,
        "lost": recording.n_lost,
    }
    invocation.output.json({"file": os.fspath(path), **counts, "recorded_ns": took})
    invocation.output.line(
        f"{path}: {recording.n_events} events, {recording.n_fences} fences, {recording.n_signalled} signalled, "
        f"{recording.n_lost} events lost, {span(took)}; open it at https://ui.perfetto.dev or in chrome://tracing"
    )
