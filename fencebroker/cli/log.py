"""``logs``: what one's own broker said.

``tail`` does the reading: it finds the last lines of a long file without reading all of it, and with -F it follows a file that is
replaced or truncated, woken by the kernel and not by a clock.  Its lines come through here, so that nothing odd reaches the terminal.
"""

from __future__ import annotations

import re
import subprocess
from typing import IO, Final

import click

from fencebroker import places
from fencebroker.cli.command import Failure, Invocation, Verb, wants_json

__all__ = ["logs"]

_LINE: Final = re.compile(r"(?P<time>\S+) fencebrokerd\[(?P<pid>[0-9]+)\] (?P<level>[a-z]+): (?P<text>.*)", re.DOTALL)

EXAMPLE = """\
$ fencectl logs -n 1
2026-03-01T09:30:00+0000 fencebrokerd[4187] notice: fencebrokerd 0.1.0 serves /run/user/1000/fencebroker/broker.sock (descriptor limit 20000)
"""


@click.command(cls=Verb, example=EXAMPLE, short_help="What your own broker said.")
@click.option("-n", "--lines", metavar="LINES", type=click.IntRange(min=0), default=20, show_default=True, help="Show the last ones.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@wants_json
@click.pass_obj
def logs(invocation: Invocation, lines: int, follow: bool) -> None:
    """Show the log of your own broker.

    A broker that the library or "fencectl start --user" started logs to $XDG_STATE_HOME/fencebroker/broker.log (~/.local/state/... if that
    is not set). The system's broker logs to the journal: journalctl -u fencebroker.
    """
    path = places.log_path()
    if not path.exists():
        raise Failure(f"there is no log at {path}: no broker was started for you yet")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), "--", str(path)]
    try:
        tail = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Failure(f"the program tail is not installed; the log is {path}") from None
    with tail:
        assert tail.stdout is not None
        try:
            _copy(invocation, tail.stdout, follow)
        finally:
            tail.kill()
    if not follow and tail.returncode > 0:
        raise Failure(f"{path} could not be read")


def _copy(invocation: Invocation, stream: IO[bytes], follow: bool) -> None:
    for line in stream:
        text = line.rstrip(b"\n").decode(errors="backslashreplace")
        parsed = _LINE.fullmatch(text)
        value = parsed.groupdict() if parsed else {"time": None, "pid": None, "level": None, "text": text}
        invocation.output.json({**value, "pid": int(value["pid"]) if value["pid"] else None}, one_line=True)
        invocation.output.line(text)
        if follow:
            invocation.output.flush()
