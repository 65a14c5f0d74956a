"""``create``, ``advance``, ``inc``, ``fail``: what a timeline's owner does, from a shell.

Facts
  A timeline lives as long as somebody holds its descriptor.  ``create`` holds it, and nobody else can say for whom: so it ends with the
  command that it was given, or with the process that started it, a shell mostly, whichever way that goes.  The other verbs open a timeline
  by its name for one message, and hold nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable, Iterator
from typing import Final

import click

from fencebroker import Broker, BrokerUnavailable, Timeline
from fencebroker.cli.catalogue import find
from fencebroker.cli.child import Child, ended_by_signals
from fencebroker.cli.command import (
    CommandVerb,
    Failure,
    Invocation,
    Verb,
    asks_broker,
    parsed,
    permission_bits,
    seconds,
    seqno,
    timeline_name,
    wants_json,
)
from fencebroker.cli.completion import complete_timelines
from fencebroker.cli.render import state
from fencebroker.cli.suggest import did_you_mean, suggesting
from fencebroker.client import wire_name
from fencebroker.fds import OwnedFd
from fencebroker.model import MAX_ERRNO, check_timeline_name
from fencebroker.rows import TimelineRow

__all__ = ["advance", "advance_point", "create", "fail", "fail_point", "inc"]

CREATE_EXAMPLE: Final = """\
$ fencectl create lens -- fencectl advance -v lens 1
lens went from 0 to 1
"""
ADVANCE_EXAMPLE: Final = """\
$ fencectl advance -v camera0 7
camera0 went from 6 to 7
"""
INC_EXAMPLE: Final = """\
$ fencectl inc -v camera0
camera0 went from 6 to 7
"""
FAIL_EXAMPLE: Final = """\
$ fencectl fail -v camera0 7 EIO
camera0@7 failed with EIO; camera0 went from 6 to 7
"""


# -- arguments


def own_name(text: str) -> str:
    """A name for a timeline of one's own."""
    if "/" in text:
        raise ValueError(f"must be a name without a user, for a timeline is created for oneself, not {text!r}")
    return check_timeline_name(text)


def expiry_seconds(text: str) -> float:
    """More than 0 seconds."""
    number = seconds(text)
    if not number:
        raise ValueError("must be more than 0 seconds")
    return number


def error_number(text: str) -> int:
    """An errno by its name or its number."""
    known = {name: number for number, name in errno.errorcode.items()}
    if text in known:
        return known[text]
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_ERRNO:
        return int(text)
    raise ValueError(f"must be an errno, a name such as EIO or a number from 1 to {MAX_ERRNO}, not {text!r}{did_you_mean(text, known)}")


_named = click.argument("name", callback=parsed(timeline_name), shell_complete=complete_timelines)
_says = click.option("-v", "--verbose", is_flag=True, help="Say what the value was and is.")


# -- create


@click.command(cls=CommandVerb, required=False, example=CREATE_EXAMPLE, short_help="Create a timeline and hold it.")
@click.argument("name", callback=parsed(own_name))
@click.option(
    "--mode",
    metavar="BITS",
    callback=parsed(permission_bits),
    default="0600",
    show_default=True,
    help="Who may wait (r) and signal (w), as for a file.",
)
@click.option(
    "--expiry",
    metavar="SECONDS",
    callback=parsed(expiry_seconds),
    help="Let a point fail with ETIME so long after it was first asked for.  [default: never]",
)
@asks_broker
@wants_json
@click.pass_obj
def create(invocation: Invocation, name: str, mode: int, expiry: float | None, command: tuple[str, ...]) -> None:
    """Create a timeline, and hold it while CMD runs; without one until Ctrl-C, or until the process that started this ends.

    So a script starts this in the background: when the script dies, in whatever way, the timeline ends as that of any other owner, and
    who waits is told (ENOENT). "fencectl wait NAME@0" returns when the timeline is there. When CMD fails, what is still active fails with
    ECANCELED, and the exit code is 1.
    """
    parent = None if command else _parent()
    try:
        with ended_by_signals(), invocation.connect() as broker, broker.create_timeline(name, mode=mode, expiry=expiry) as timeline:
            invocation.output.json({"name": name, "context": timeline.context, "pid": os.getpid()}, one_line=True)
            if command:
                invocation.output.flush()
                with Child(command) as child:
                    child.check()
            else:
                invocation.output.line(f"{name} is there, until this process ends")
                invocation.output.flush()
                _hold(broker, timeline, name, parent)
    finally:
        if parent is not None:
            parent.close()


def _parent() -> OwnedFd | None:
    """Who started this; None when that is nobody whose end could be seen."""
    pid = os.getppid()
    if pid <= 1:
        return None
    try:
        pidfd = OwnedFd(os.pidfd_open(pid))
    except ProcessLookupError:
        return None
    return pidfd


def _hold(broker: Broker, timeline: Timeline, name: str, parent: OwnedFd | None) -> None:
    """Return when the parent has ended; raise when the broker has ended the timeline."""
    poller = select.poll()
    held = timeline._signaller.fileno()
    poller.register(held, 0)  # POLLHUP is always reported
    if parent is not None:
        poller.register(parent, select.POLLIN)
    if any(fd == held for fd, _ in poller.poll()):
        broker._status()  # says so, if it is the broker that went away
        raise Failure(f"the broker has ended {name}")


# -- advance, inc, fail


@click.command(cls=Verb, example=ADVANCE_EXAMPLE, short_help="Signal every point of a timeline up to N.")
@_named
@click.argument("n", callback=parsed(seqno))
@_says
@asks_broker
@wants_json
@click.pass_obj
def advance(invocation: Invocation, name: str, n: int, verbose: bool) -> None:
    """Signal every point of a timeline up to N, in place of its producer.

    The timeline must have a name and let you write: one's own timelines always do, another's (user/name) if its mode has a "w" for you.
    A timeline that is at N or above stays as it is, and that is no error. Nothing is printed when all goes well.
    """
    _raise_value(invocation, name, verbose, Timeline.advance, n)


@click.command(cls=Verb, example=INC_EXAMPLE, short_help="Raise a timeline's value by one, or by N.")
@_named
@click.argument("n", callback=parsed(seqno), default="1", required=False)
@_says
@asks_broker
@wants_json
@click.pass_obj
def inc(invocation: Invocation, name: str, n: int, verbose: bool) -> None:
    """Raise a timeline's value by N (1 if it is left out), and signal every point that this passes.

    For those who count and do not name points: of several that do so at the same time none is lost. What a timeline must be is said under
    "fencectl advance --help".
    """
    _raise_value(invocation, name, verbose, Timeline.inc, n)


def _raise_value(invocation: Invocation, name: str, verbose: bool, send: Callable[[Timeline, int], None], n: int) -> None:
    with invocation.connect() as broker, suggesting(broker, name), broker.open_timeline(name) as timeline:
        before = timeline.value
        with _ended(broker, name):
            send(timeline, n)
        after = _value_now(broker, name, timeline)
    invocation.output.json({"name": name, "context": timeline.context, "before": before, "value": after})
    if verbose:
        invocation.output.line(_went(name, before, after))


@click.command(cls=Verb, example=FAIL_EXAMPLE, short_help="Let a point fail with an errno.")
@_named
@click.argument("n", callback=parsed(seqno))
@click.argument("error", callback=parsed(error_number), metavar="ERRNO")
@_says
@asks_broker
@wants_json
@click.pass_obj
def fail(invocation: Invocation, name: str, n: int, error: int, verbose: bool) -> None:
    """Let point N of a timeline fail with an errno, such as EIO; what lies below it signals as OK.

    What has signalled stays so: N must be above the timeline's value. What a timeline must be is said under "fencectl advance --help".
    """
    with invocation.connect() as broker, suggesting(broker, name), broker.open_timeline(name) as timeline:
        before = timeline.value
        after = fail_point(broker, name, timeline, n, error)
    found = {"name": name, "context": timeline.context, "seqno": n, "error": state(-error), "before": before, "value": after}
    invocation.output.json(found)
    if verbose:
        invocation.output.line(f"{name}@{n} failed with {state(-error)}; {_went(name, before, after)}")


def advance_point(broker: Broker, name: str, timeline: Timeline, n: int) -> int:
    """Signal every point up to ``n``; returns the value now."""
    with _ended(broker, name):
        timeline.advance(n)
    return _value_now(broker, name, timeline)


def fail_point(broker: Broker, name: str, timeline: Timeline, n: int, error: int) -> int:
    """Let a point fail; returns the value now.  Failure when it has signalled otherwise."""
    if n <= timeline.value:
        raise Failure(f"{name}@{n} has signalled already, for {name} is at {timeline.value}: what has signalled stays so")
    with _ended(broker, name):
        timeline.fail(n, error)
    after = _value_now(broker, name, timeline)
    with timeline.export(n) as fence:
        status = fence.status()
    if status != -error:  # another was faster
        raise Failure(f"{name}@{n} has signalled already ({state(status)}): what has signalled stays so")
    return after


@contextlib.contextmanager
def _ended(broker: Broker, name: str) -> Iterator[None]:
    """Around signalling: when it has ended, that is no broker that went away, as long as the broker answers."""
    try:
        yield
    except BrokerUnavailable as err:
        broker._status()
        raise Failure(f"{name} has ended: its producer died or closed it") from err


def _value_now(broker: Broker, name: str, timeline: Timeline) -> int:
    """The value; messages on a timeline are one-way, but those sent before this question have been carried out when it is answered."""
    with contextlib.suppress(FileNotFoundError):
        row = find(broker, wire_name(name))
        if isinstance(row, TimelineRow) and row.context == timeline.context:
            return row.value
    raise Failure(f"{name} has ended: its producer died or closed it")


def _went(name: str, before: int, after: int) -> str:
    return f"{name} went from {before} to {after}" if after > before else f"{name} is at {after} already"
