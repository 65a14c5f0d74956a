"""``export``, ``merge``: a fence for a program that knows nothing of fencebroker but can poll a descriptor it is given."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final, Literal

import click

from fencebroker import SyncFile
from fencebroker.cli.child import become
from fencebroker.cli.command import CommandVerb, Invocation, asks_broker, parsed, point_name, wants_json
from fencebroker.cli.completion import complete_points
from fencebroker.limits import Limits
from fencebroker.model import check_sync_file_name

__all__ = ["export", "merge"]

#: Holds the number of the descriptor.
VARIABLE: Final = "FENCEBROKER_FD"

EXPORT_EXAMPLE: Final = """\
$ fencectl export camera0@7 -- sh -c 'readlink "/proc/self/fd/$FENCEBROKER_FD"'
anon_inode:[eventfd]
"""
MERGE_EXAMPLE: Final = """\
$ fencectl merge camera0@6 camera0@7 -- sh -c 'readlink "/proc/self/fd/$FENCEBROKER_FD"'
anon_inode:[eventfd]
"""

_name = click.option(
    "--name",
    metavar="TEXT",
    callback=parsed(check_sync_file_name),
    default="",
    help='What it is called in "ls".  [default: the broker\'s choice]',
)


@click.command(cls=CommandVerb, example=EXPORT_EXAMPLE, short_help="Run a command with a point's fence as a descriptor.")
@click.argument("point", callback=parsed(point_name), shell_complete=complete_points, metavar="NAME@N")
@asks_broker
@wants_json
@click.pass_obj
def export(invocation: Invocation, point: str, command: tuple[str, ...]) -> None:
    """Become CMD, which inherits a descriptor that carries the fence of a point. Its number is in $FENCEBROKER_FD.

    It is readable (poll) when the point has signalled, and writable too if the point may have failed. The point may be asked for before
    it was exported, and before its timeline exists. The exit code is that of CMD.
    """
    with invocation.connect() as broker:
        _hand(invocation, broker.sync_file(point), {"points": [point]}, command)


@click.command(cls=CommandVerb, example=MERGE_EXAMPLE, short_help="Run a command with one fence for several points.")
@click.argument("points", nargs=-1, required=True, callback=parsed(point_name), shell_complete=complete_points, metavar="NAME@N...")
@click.option("--any", "any_", is_flag=True, help="It signals with the first point, not with the last.")
@_name
@asks_broker
@wants_json
@click.pass_obj
def merge(invocation: Invocation, points: tuple[str, ...], any_: bool, name: str, command: tuple[str, ...]) -> None:
    """Become CMD, which inherits one descriptor whose fence signals when all points have, or one of them (--any).

    If a point fails, so does the merged fence, with the first error. Its number is in $FENCEBROKER_FD; "fencectl export --help" says how to
    wait for it. The exit code is that of CMD.
    """
    if len(points) > Limits().merge_members:
        raise click.UsageError(f"at most {Limits().merge_members} points can be merged, not {len(points)}", click.get_current_context())
    when: Literal["all", "any"] = "any" if any_ else "all"
    with invocation.connect() as broker, contextlib.ExitStack() as stack:
        members = [stack.enter_context(broker.sync_file(point)) for point in points]
        merged = broker.merge(members, name=name, when=when)
        stack.close()
        _hand(invocation, merged, {"points": list(points), "when": when}, command)


def _hand(invocation: Invocation, fence: SyncFile, value: dict[str, Any], command: tuple[str, ...]) -> None:
    """Give the descriptor to the command that this process becomes."""
    with fence:
        fd = fence.fileno()
        os.set_inheritable(fd, True)
        invocation.output.json({**value, "fd": fd}, one_line=True)
        invocation.output.flush()
        become(command, {VARIABLE: str(fd)})
