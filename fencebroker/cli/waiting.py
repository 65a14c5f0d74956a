"""``wait``: until points signal, by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import click

from fencebroker import Broker, FenceError, SyncFile, wait_all
from fencebroker.cli.command import Invocation, Verb, asks_broker, parsed, point_name, seconds, wants_json
from fencebroker.cli.render import Column, Table, state, status_cell
from fencebroker.model import OK, Limits

__all__ = ["wait"]

EXAMPLE = """\
$ fencectl wait -v camera0@6
camera0@6  ok
"""


@click.command(cls=Verb, example=EXAMPLE)
@click.argument("points", nargs=-1, required=True, callback=parsed(point_name), metavar="NAME@N...")
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
            _wait(broker, fences, any_, timeout)
        except TimeoutError as err:
            timed_out = err
        errors = [_error(fence) for fence in fences]
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


def _wait(broker: Broker, fences: Sequence[SyncFile], any_: bool, timeout: float | None) -> None:
    """Wait, and notice when the broker goes.  How the fences stand is for the caller to see; only TimeoutError is raised for them."""
    with contextlib.suppress(FenceError):
        if any_ and len(fences) > 1:
            with broker.merge(fences, when="any") as first:
                try:
                    first.wait(timeout)
                except TimeoutError:
                    raise TimeoutError(f"none of {', '.join(fence.label for fence in fences)} signalled in time") from None
        else:
            wait_all(fences, timeout)


def _error(fence: SyncFile) -> FenceError | None:
    try:
        fence.check()
    except FenceError as err:
        return err
    return None


def _json(point: str, status: int, error: FenceError | None) -> dict[str, Any]:
    return {"point": point, "status": status, "state": state(status), "error": None if error is None else str(error)}
