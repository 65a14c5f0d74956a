"""The command ``fencectl``: its verbs, and how everything that goes wrong becomes one line and one exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Final

import click
from click.shell_completion import shell_complete

from fencebroker import BrokerUnavailable, FenceError, __version__
from fencebroker.cli.command import Failure, Invocation, asks_broker
from fencebroker.cli.output import OutputError
from fencebroker.cli.suggest import did_you_mean
from fencebroker.model import printable

__all__ = ["VERBS", "cli", "main", "verbs"]

COMPLETE = "_FENCECTL_COMPLETE"

# Exit codes; docs/fencectl.md explains them.
FAILED, USAGE, TIMEOUT, NO_BROKER, INTERRUPTED, READER_GONE = 1, 2, 3, 4, 130, 141


#: The verbs, and the module of each.  It is imported when it is wanted: scripts call fencectl often, with one verb at a time.
VERBS: Final = {
    "ls": "listing",
    "info": "details",
    "why": "why",
    "holders": "holders",
    "stuck": "stuck",
    "leaks": "leaks",
    "stats": "stats",
    "top": "top",
    "status": "health",
    "doctor": "doctor",
    "trace": "tracing",
    "record": "tracing",
    "wait": "waiting",
    "run": "job",
    "export": "handing",
    "merge": "handing",
    "create": "timeline",
    "advance": "timeline",
    "inc": "timeline",
    "fail": "timeline",
    "chmod": "rights",
    "quota": "rights",
    "start": "service",
    "stop": "service",
    "restart": "service",
    "logs": "log",
}


class Verbs(click.Group):
    """The verbs; an unknown one is refused with those that are near."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Their names, in the order of the help page."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a verb."""
        return _verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb."""
        if args and args[0].isalnum() and args[0] not in VERBS and not ctx.resilient_parsing:
            raise click.UsageError(f"No such verb '{args[0]}'{did_you_mean(args[0], list(VERBS))}", ctx)
        return super().resolve_command(ctx, args)


def _verb(name: str) -> click.Command:
    verb: click.Command = getattr(importlib.import_module(f"fencebroker.cli.{VERBS[name]}"), name)
    return verb


def verbs() -> dict[str, click.Command]:
    """All of them."""
    return {name: _verb(name) for name in VERBS}


@click.group(
    cls=Verbs,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 timeout, 4 no broker.\n\n"
    f'Completion for bash (for zsh and fish alike): eval "$({COMPLETE}=bash_source fencectl)"',
)
@click.version_option(__version__, prog_name="fencectl")
@asks_broker
def cli() -> None:
    """See and signal fences: what is this waiting for, and who should have signalled it?"""


def main() -> int:
    """Run one verb; returns the exit code."""
    _prepare_streams()
    if COMPLETE in os.environ:
        import fencebroker.cli.completion  # noqa: F401 - it is registered with click by this

        return shell_complete(cli, {}, "fencectl", COMPLETE, os.environ[COMPLETE])
    invocation = Invocation()
    try:
        code = _run(invocation, sys.argv[1:])
        invocation.output.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        invocation.output.silence()
        return READER_GONE
    except OSError as err:
        invocation.output.silence()
        _say(f"the output could not be written: {err.strerror}")
        return FAILED
    return code


def _prepare_streams() -> None:
    """Make sure that 0, 1 and 2 are taken, so that no socket gets their numbers, and that no odd character can fail to be written."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _run(invocation: Invocation, arguments: list[str]) -> int:
    try:
        with cli.make_context("fencectl", arguments, obj=invocation) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except OutputError as err:
        raise err.cause from err
    except BrokenPipeError:  # click's own writing of a help page
        raise
    except (click.UsageError, Failure, FenceError, OSError) as err:
        code, text = explain(err)
        _say(text)
        return code
    return invocation.code


def explain(err: Exception) -> tuple[int, str]:
    """The exit code and the line for an error that is the user's, the broker's, or the machine's.  Any other exception is a bug."""
    match err:
        case click.UsageError():
            path = err.ctx.command_path if err.ctx is not None else "fencectl"
            return USAGE, f"{' '.join(err.format_message().split()).rstrip('.')} (see {path} --help)"
        case BrokerUnavailable():
            return NO_BROKER, str(err)
        case TimeoutError():
            return TIMEOUT, str(err)
        case OSError() if err.strerror:
            return FAILED, f"{os.fsdecode(err.filename)}: {err.strerror}" if err.filename else err.strerror
        case _:
            return FAILED, str(err)


def _say(text: str) -> None:
    """Write one line to standard error, if anybody is there."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"fencectl: {printable(text)}\n")
            sys.stderr.flush()
