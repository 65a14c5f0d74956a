"""``wait``: until points signal, by name."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from fencebroker import Broker, FenceError, SyncFile, wait_all
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, point_name, seconds, wants_json
from fencebroker.cli.completion import complete_points
from fencebroker.cli.render import Column, Table, state, status_cell
from fencebroker.cli.suggest import did_you_mean, timeline_names
from fencebroker.limits import Limits
from fencebroker.model import OK, printable

__all__ = ["error_of", "wait", "wait_for"]

#: So many pending points are named when the time is over.
SHOWN: Final = 5

EXAMPLE = """\
$ fencectl wait -v camera0@6
camera0@6  ok
$ fencectl wait --timeout 0.1 camera0@6 camera0@7
fencectl: camera0@7 did not signal within 0.1 s
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="Wait until points signal, by name.")
@click.argument("points", nargs=-1, required=True, callback=parsed(point_name), shell_complete=complete_points, metavar="NAME@N...")
@click.option("--any", "any_", is_flag=True, help="Wait for the first one, not for all of them.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    callback=parsed(seconds),
    help="Give up after so long (exit code 3); 0: only ask.  [default: wait for ever]",
)
@click.option("-v", "--verbose", is_flag=True, help="Say how each of them stands in the end.")
@asks_broker
@wants_json
@click.pass_obj
def wait(invocation: Invocation, points: tuple[str, ...], any_: bool, timeout: float | None, verbose: bool) -> None:
    """Wait until points signal: all of them, or one (--any).

    A point may be waited for before it was exported, and before its timeline exists. Nothing is printed when all goes well. When a point
    fails, standard error says why and who should have signalled it, and the exit code is 1; with --any only if nothing that has signalled
    was OK.
    """
    if any_ and len(points) > Limits().merge_members:
        raise click.UsageError(f"--any takes at most {Limits().merge_members} points, not {len(points)}", click.get_current_context())
    started = time.monotonic()
    with invocation.connect() as broker, contextlib.ExitStack() as stack:
        fences = [stack.enter_context(broker.sync_file(point)) for point in points]
        timed_out: TimeoutError | None = None
        try:
            wait_for(broker, fences, any_, timeout)
        except TimeoutError as err:
            timed_out = err
        errors = [error_of(fence) for fence in fences]
        statuses = [fence.status() for fence in fences]
    waited = time.monotonic() - started
    if verbose:
        rows = [(point, status_cell(status)) for point, status in zip(points, statuses, strict=True)]
        invocation.output.tables(Table("", (Column("", shrinks=True), Column("")), rows, header=False))
    answers = zip(points, statuses, errors, strict=True)
    invocation.output.json({"waited_s": round(waited, 6), "points": [_json(*answer) for answer in answers]})
    if timed_out is not None:
        raise timed_out
    failed = [error for error in errors if error is not None]
    if failed and not (any_ and OK in statuses):
        raise failed[0]


def wait_for(broker: Broker, fences: Sequence[SyncFile], any_: bool, timeout: float | None) -> None:
    """Wait, and notice when the broker goes.  How the fences stand is for the caller to see; only TimeoutError is raised for them.

    At a terminal somebody is told at once of a name that does not exist and looks mistyped; it may also be about to come.
    """
    if timeout != 0 and sys.stderr is not None and sys.stderr.isatty():
        for note in mistyped(broker, fences):
            click.echo(f"fencectl: {note}", err=True)
    try:
        if any_ and len(fences) > 1:
            with broker.merge(fences, when="any") as first:
                first.wait(timeout)
        else:
            wait_all(fences, timeout)
    except FenceError:
        pass
    except TimeoutError:
        pending = [fence.label for fence in fences if not fence.status()]
        more = f" and {len(pending) - SHOWN} more" if len(pending) > SHOWN else ""
        notes = [f" ({note})" for note in mistyped(broker, fences)]
        raise TimeoutError(f"{', '.join(pending[:SHOWN])}{more} did not signal within {timeout:g} s{''.join(notes)}") from None


def mistyped(broker: Broker, fences: Sequence[SyncFile]) -> list[str]:
    """Say which timelines do not exist while one of nearly that name does."""
    absent = dict.fromkeys(fence.label.partition("@")[0] for fence in fences if not fence.status())
    known = timeline_names(broker) if absent else []
    names = [(name, did_you_mean(name, known)) for name in absent if name not in known]
    return [printable(f"there is no timeline {name!r} yet{near}") for name, near in names if near]


def error_of(fence: SyncFile) -> FenceError | None:
    """Why a fence failed; None when it did not."""
    try:
        fence.check()
    except FenceError as err:
        return err
    return None


def _json(point: str, status: int, error: FenceError | None) -> dict[str, Any]:
    return {"point": point, "status": status, "state": state(status), "error": None if error is None else str(error)}
