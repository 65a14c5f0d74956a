"""``run``: a command between the points it waits for and the points it signals."""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from fencebroker import Broker, BrokerUnavailable, FenceError, Timeline
from fencebroker.cli.child import Child, ended_by_signals
from fencebroker.cli.command import CommandVerb, Failure, Invocation, asks_broker, parsed, point_name, seconds, wants_json
from fencebroker.cli.completion import complete_points
from fencebroker.cli.render import state
from fencebroker.cli.suggest import suggesting
from fencebroker.cli.timeline import advance_point, fail_point
from fencebroker.cli.waiting import error_of, wait_for

__all__ = ["run"]

EXAMPLE: Final = """\
$ fencectl run --wait camera0@6 --signal camera0@7 -- echo encoded
encoded
$ fencectl run --signal camera0@8 -- false
fencectl: false ended with exit status 1; camera0@8 failed with EIO
"""


class Target(NamedTuple):
    """A point to signal, and the handle of its timeline."""

    label: str
    name: str
    seqno: int
    timeline: Timeline


@click.command(cls=CommandVerb, example=EXAMPLE, short_help="Wait for points, run a command, signal points.")
@click.option(
    "--wait", "waits", multiple=True, metavar="NAME@N", callback=parsed(point_name), shell_complete=complete_points,
    help="Wait for this point first.  May be given several times.",
)  # fmt: skip
@click.option(
    "--signal", "signals", multiple=True, metavar="NAME@N", callback=parsed(point_name), shell_complete=complete_points,
    help="Signal this point afterwards.  May be given several times.",
)  # fmt: skip
@click.option(
    "--timeout",
    metavar="SECONDS",
    callback=parsed(seconds),
    help="Give up waiting after so long (exit code 3).  [default: wait for ever]",
)
@asks_broker
@wants_json
@click.pass_obj
def run(invocation: Invocation, waits: tuple[str, ...], signals: tuple[str, ...], timeout: float | None, command: tuple[str, ...]) -> None:
    """Wait until points signal, run CMD, and signal points when it has succeeded.

    A point to be signalled belongs to a timeline that exists, lets you write, and is below that point. It fails instead, so that nobody
    waits in vain: with EIO if CMD fails (exit code 1, and standard error says the exit status), with the error of the point that was
    waited for if that failed, with ETIME if the time was over, and with ECANCELED if this process is told to end (Ctrl-C, SIGTERM). In all
    cases but the first, CMD is not run, or is ended too.
    """
    if not waits and not signals:
        raise click.UsageError("Nothing to wait for and nothing to signal: give --wait, --signal, or both.", click.get_current_context())
    with ended_by_signals(), invocation.connect() as broker, contextlib.ExitStack() as stack:
        targets = _open(broker, signals, stack)
        found: dict[str, Any] = {"waited_s": None, "exit_status": None, "signalled": [], "failed": [], "error": None}
        try:
            with _failing(broker, targets, found):
                _wait(broker, waits, timeout, found)
                with Child(command) as child:
                    found["exit_status"] = child.wait()
                if found["exit_status"]:
                    raise CommandFailed(child)
            for target in targets:
                advance_point(broker, target.name, target.timeline, target.seqno)
                found["signalled"].append(target.label)
        except (Failure, OSError) as err:
            found["error"] = str(err)
            raise
        finally:
            invocation.output.json(found)


def _open(broker: Broker, points: Sequence[str], stack: contextlib.ExitStack) -> list[Target]:
    """Find the timelines before anything is run, the lowest point of each first."""
    targets = []
    for label in points:
        name, _, seqno = label.rpartition("@")
        with suggesting(broker, name):
            targets.append(Target(label, name, int(seqno), stack.enter_context(broker.open_timeline(name))))
    for target in targets:
        if target.seqno <= target.timeline.value:
            raise Failure(f"{target.label} has signalled already, for {target.name} is at {target.timeline.value}: the command was not run")
    return sorted(targets, key=lambda target: target.seqno)


def _wait(broker: Broker, points: Sequence[str], timeout: float | None, found: dict[str, Any]) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        fences = [stack.enter_context(broker.sync_file(point)) for point in points]
        try:
            wait_for(broker, fences, False, timeout)
        finally:
            found["waited_s"] = round(time.monotonic() - started, 6)
        for error in map(error_of, fences):
            if error is not None:
                raise error


class CommandFailed(Failure):
    """The command ended badly.  ``error`` is the errno for those who wait for its work."""

    def __init__(self, child: Child) -> None:
        super().__init__(child.ending())
        self.error = errno.ECANCELED if -child.wait() in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) else errno.EIO


@contextlib.contextmanager
def _failing(broker: Broker, targets: Sequence[Target], found: dict[str, Any]) -> Iterator[None]:
    """Let the points fail when the block does; the error that goes on says so."""
    try:
        yield
    except BrokerUnavailable:
        raise  # it has completed them, or nobody can
    except (Failure, FenceError, OSError) as err:
        match err:
            case CommandFailed() | FenceError():
                error = err.error
            case TimeoutError():
                error = errno.ETIME
            case _:
                error = errno.EIO
        text = f"{err}{_fail(broker, targets, error, found)}"
        raise (TimeoutError(text) if isinstance(err, TimeoutError) else Failure(text)) from err
    except BaseException:
        with contextlib.suppress(BrokerUnavailable):
            _fail(broker, targets, errno.ECANCELED, found)
        raise


def _fail(broker: Broker, targets: Sequence[Target], error: int, found: dict[str, Any]) -> str:
    """Let the points fail; returns the end of the complaint."""
    others = []
    for target in targets:
        try:
            fail_point(broker, target.name, target.timeline, target.seqno, error)
            found["failed"].append(target.label)
        except Failure as err:
            others.append(f"; {err}")
    failed = f"; {', '.join(found['failed'])} failed with {state(-error)}" if found["failed"] else ""
    return failed + "".join(others)
