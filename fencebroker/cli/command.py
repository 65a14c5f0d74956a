"""What the verbs share: the options ``--socket`` and ``--json``, what arguments must be, help pages with real output, and connecting."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from fencebroker import Broker, BrokerUnavailable, connect
from fencebroker.cli.output import Output
from fencebroker.client import wire_name, wire_point
from fencebroker.model import U64_MAX

__all__ = [
    "CommandVerb",
    "Failure",
    "Invocation",
    "Verb",
    "answer_within",
    "asks_broker",
    "duration",
    "files",
    "in_command",
    "parsed",
    "permission_bits",
    "point_name",
    "seconds",
    "seqno",
    "timeline_name",
    "wants_json",
]

#: A broker that lives answers in well under a second; one that does not by then is stopped or hangs.
ANSWER_SECONDS: Final = 10.0

_IN_COMMAND: Final = f"{__name__}.in_command"

F = TypeVar("F", bound=Callable[..., Any])


class Failure(Exception):
    """The verb could not do what it was asked; the text says why.  Exit code 1."""


class Invocation:
    """What one call of fencectl knows; click hands it to the verbs.  ``code`` is the exit code when nothing is raised."""

    def __init__(self) -> None:
        self.output = Output()
        self.socket: Path | None = None
        self.code = 0

    def connect(self, seconds: float = ANSWER_SECONDS) -> Broker:
        """Connect to the broker that was named, or the one that is found; never start one."""
        with answer_within(seconds):
            try:
                return connect(self.socket, autostart=False)
            except BrokerUnavailable:
                raise
            except PermissionError as err:
                named = self.socket or os.environ.get("FENCEBROKER_SOCKET")
                where = f" at {named}" if named else ""
                raise Failure(f"the broker{where} does not serve you: {err.filename or ''}{err.strerror}") from err


@contextlib.contextmanager
def answer_within(seconds: float) -> Iterator[None]:
    """Raise BrokerUnavailable in the block after so many seconds: a broker that was stopped (SIGSTOP) accepts, and says nothing."""

    def give_up(number: int, frame: object) -> NoReturn:
        raise BrokerUnavailable(f"the broker accepts connections but did not answer within {seconds:g} s; is it stopped or stuck?")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # 0 would mean: never
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# -- help pages


class Verb(click.Command):
    """A verb whose help page shows a command and its real output.  A test runs the command and compares."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example between the description and the options, as it is."""
        formatter.write_paragraph()
        for line in self.example.splitlines():
            formatter.write(f"  {line}\n" if line else "\n")
        super().format_options(ctx, formatter)


class CommandVerb(Verb):
    """A verb that runs a command: what comes after ``--`` is its parameter ``command``, a tuple, empty if it may be left out and was."""

    def __init__(self, *args: Any, required: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.required = required

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Add the command to the line of usage."""
        return [*super().collect_usage_pieces(ctx), "-- CMD..." if self.required else "[-- CMD...]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the command off before the arguments are told apart."""
        at = args.index("--") if "--" in args else len(args)
        command = tuple(args[at + 1 :])
        ctx.meta[_IN_COMMAND] = at < len(args)
        rest = super().parse_args(ctx, args[:at])
        if not command and (self.required or at < len(args)) and not ctx.resilient_parsing:
            raise click.UsageError("Missing the command to run, after '--'.", ctx)
        ctx.params["command"] = command
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer files, once the command has begun."""
        return files(incomplete) if in_command(ctx) else super().shell_complete(ctx, incomplete)


def in_command(ctx: click.Context) -> bool:
    """Whether what is to be completed belongs to the command that a verb runs."""
    return bool(ctx.meta.get(_IN_COMMAND))


def files(incomplete: str) -> list[CompletionItem[str]]:
    """Have the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


# -- options


def _set_socket(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Invocation).socket = value


def _set_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).output.as_json = True


def wants_json(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", is_flag=True, expose_value=False, callback=_set_json, help="Write JSON, for programs.")(function)


def asks_broker(function: F) -> F:
    """Add ``--socket``."""
    return click.option(
        "--socket",
        metavar="PATH",
        type=click.Path(path_type=Path, readable=False),
        expose_value=False,
        callback=_set_socket,
        help="Ask the broker that listens there.  [default: $FENCEBROKER_SOCKET, else your own broker, else the system's]",
    )(function)


# -- arguments


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Make an argument's callback of a function that raises ValueError with a text that says what would be right."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(each) for each in value)
            return None if value is None else parse(value)
        except ValueError as err:
            raise click.BadParameter(str(err), ctx, parameter) from err

    return callback


def seqno(text: str) -> int:
    """0..2**64-1, in decimal digits."""
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > U64_MAX:
        raise ValueError(f"must be a whole number between 0 and 2**64-1, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """0 or more; infinity and NaN are no lengths of time."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e9:
        raise ValueError(f"must be a number of seconds, 0 or more, not {text!r}")
    return number


def permission_bits(text: str) -> int:
    """Octal permission bits."""
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"must be octal permission bits such as 0640, not {text!r}")
    return int(text, 8)


#: Ending -> seconds.
_UNITS: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z]*)")


def duration(text: str) -> float:
    """``2s``, ``500ms``, ``5min``, ``1h``, ``2d``, or a number of seconds."""
    found = _DURATION.fullmatch(text)
    if found is None or found[2] not in _UNITS or (length := float(found[1]) * _UNITS[found[2]]) >= 1e9:
        raise ValueError(f"must be a time such as 2s, 500ms, 5min or 1h, not {text!r}")
    return length


def point_name(text: str) -> str:
    """``camera0@7`` or ``user/camera0@7``, of a user who exists."""
    wire_point(text)
    return text


def timeline_name(text: str) -> str:
    """``camera0`` or ``user/camera0``, of a user who exists."""
    wire_name(text)
    return text
