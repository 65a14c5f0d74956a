"""The command ``fencebrokerd``: parse, check, listen, run, leave with one exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fencebroker import places
from fencebrokerd import __version__
from fencebrokerd.config import LEVELS, POLICY, Config, ConfigError, load, settings
from fencebrokerd.core.broker import Broker
from fencebrokerd.keeper import GENERATION, STARTED, STEP_ASIDE, Keeper, leave, make_keeper
from fencebrokerd.shell import failpoints
from fencebrokerd.shell.journal import Journal, JournalError
from fencebrokerd.shell.listener import Listener
from fencebrokerd.shell.log import Log
from fencebrokerd.shell.notify import passed_sockets, say_ready
from fencebrokerd.shell.record import Listening
from fencebrokerd.shell.server import Server
from fencebrokerd.shell.takeover import left_behind, take_over

__all__ = ["main"]

#: A larger table than any fence needs would cost memory for nothing.
MOST_DESCRIPTORS = 1 << 19
#: What one session with a timeline, its ring and a fence needs, of the share that one user may have.
LEAST = 8
SYSTEM_CONFIG = Path("/etc/fencebroker/fencebroker.toml")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--listen",
    metavar="PATH",
    help="Listen on this Unix socket (SOCK_SEQPACKET). A live broker there is not disturbed; a stale socket is replaced.",
)
@click.option("--user", is_flag=True, help="Be the broker of this user: listen in $XDG_RUNTIME_DIR/fencebroker (or its stand-in).")
@click.option("--socket-mode", metavar="MODE", help="Permission bits of the socket made by --listen.  [default: 0600]")
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read this TOML file.  [default: /etc/fencebroker/fencebroker.toml if it exists, except with --user]",
)
@click.option("--check-config", is_flag=True, help="Check arguments, environment and file, print the configuration, and leave.")
@click.option("--ready-fd", metavar="N", type=int, help="Write one newline to descriptor N when clients can connect, then close it.")
@click.option(
    "--idle-exit", metavar="SECONDS", help="Leave after so long without a client, a timeline or an active fence; 0: never.  [default: 0]"
)
@click.option("--no-keeper", is_flag=True, help="Run without the process that replaces a broker that dies, for debuggers.")
@click.option("--rehearse", is_flag=True, hidden=True)
@click.option("--log-level", metavar="LEVEL", help=f"Leave out what is less important: {', '.join(LEVELS)}.  [default: notice]")
@click.version_option(__version__, prog_name="fencebrokerd")
@click.pass_obj
def cli(
    keeper: Keeper | None,
    /,
    listen: str | None,
    user: bool,
    config: Path | None,
    check_config: bool,
    ready_fd: int | None,
    no_keeper: bool,
    rehearse: bool,
    **arguments: Any,
) -> None:
    """The fence broker: owns timelines and hands out sync_file descriptors to the processes that connect.

    Sockets passed by a service manager (LISTEN_FDS) are used if there are any; otherwise it listens on --listen, or on the user's place
    (--user), or, as root, on /run/fencebroker/broker.sock.  Every option can also stand in the environment (FENCEBROKERD_IDLE_EXIT=30) or in
    the file (idle_exit = 30); arguments come before the environment, the environment before the file.

    SIGTERM ends it in order: active fences complete with ECANCELED.  SIGHUP loads the code and the configuration that are installed now, and
    loses nothing.  A broker that dies is replaced at once, and nobody who waits notices.
    """
    if listen is not None and user:
        raise click.UsageError("--listen and --user exclude each other")
    file = config
    if file is None and not user and SYSTEM_CONFIG.exists():
        file = SYSTEM_CONFIG

    def read() -> Config:
        return load({"listen": listen, **arguments}, os.environ, file)

    failpoints.start(1 if keeper is None else keeper.page.words[GENERATION])
    if keeper is not None and keeper.page.words[GENERATION] > 1:
        raise_descriptor_limit(None)
        try:
            server_and_log = take_over(keeper, read, ready_fd)
        except JournalError as err:
            Log("notice").write("error", f"what the last broker left cannot be read: {err}")
            leave(1)  # not by the end of the interpreter, which would close what others may go on with
        if server_and_log is not None:
            sys.exit(run(*server_and_log))
    try:
        loaded = read()
        if not rehearse:
            check_ready_fd(ready_fd)
    except ConfigError as err:
        if rehearse:
            Log("notice").write("error", f"the configuration stays as it was: {err}")
            sys.exit(1)
        raise click.UsageError(str(err)) from err
    if check_config:
        show(loaded)
    elif not rehearse:
        sys.exit(serve(loaded, read, user, ready_fd, keeper))


def check_ready_fd(ready_fd: int | None) -> None:
    """Refuse a descriptor that is not open before anything is started."""
    if ready_fd is None:
        return
    try:
        fcntl.fcntl(ready_fd, fcntl.F_GETFD)
        os.set_inheritable(ready_fd, False)
    except (OSError, OverflowError, ValueError):
        raise ConfigError(f"--ready-fd: descriptor {ready_fd} is not open; the parent must pass it on") from None


def show(config: Config) -> None:
    """Print the configuration in force, as the file would have it."""

    def say(key: str) -> None:
        value = getattr(config, key)
        click.echo(f"# {key} is not set" if value is None else f"{key} = {toml(key, value)}")

    for key in settings():
        if key not in POLICY:
            say(key)
    click.echo("\n[policy]")
    for key in POLICY:
        say(key)
    for uid, own in config.quotas.items():
        click.echo(f"\n[policy.quotas.{uid}]")
        for key, value in own.items():
            click.echo(f"{key} = {value}")
    click.echo("\n[limits]")
    for f in dataclasses.fields(config.limits):
        if not f.name.startswith("packet_"):
            click.echo(f"{f.name} = {getattr(config.limits, f.name)}")


def toml(key: str, value: object) -> str:
    """A value as a TOML file has it."""
    match value:
        case bool():
            return str(value).lower()
        case int() if key == "socket_mode":
            return f"0o{value:o}"
        case int() | float():
            return repr(value)
        case tuple():
            return repr(list(value))
        case _:
            return repr(str(value))


def raise_descriptor_limit(configured: int | None) -> int:
    """Raise the soft limit to the hard one and grow the table once, for growing it later stalls; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = max(soft, wanted)
    if configured is not None:
        limit = min(limit, configured)
    with contextlib.suppress(OSError):  # that number is in use: somebody of this table was killed right here, so it has grown
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(limit, 65_536) - 1))
    return limit


def default_path(user: bool) -> Path:
    """Where this kind of broker listens."""
    if user or os.getuid() != 0:
        return places.user_socket()
    places.SYSTEM_SOCKET.parent.mkdir(mode=0o755, exist_ok=True)
    return places.SYSTEM_SOCKET


def serve(config: Config, read: Callable[[], Config], user: bool, ready_fd: int | None, keeper: Keeper | None) -> int:
    """Listen and run; returns the exit code.  ``read`` reads the configuration again, for SIGHUP.  Without a keeper nothing outlives it."""
    log = Log(config.log_level)
    listener = None
    host = make_keeper() if keeper is None else keeper
    try:
        sockets = passed_sockets(host.page.keeper)
        # Of a broker that died before it had a record nothing is needed but the socket that clients may wait in.
        left = set() if host.page.words[GENERATION] < 2 else left_behind(host, ready_fd) - {sock.fileno() for sock in sockets}
        if sockets:
            entries = [Listening(sock.detach(), None, None, None, None) for sock in sockets]
        else:
            listener = Listener(config.listen or default_path(user), config.socket_mode, left)
            left.difference_update(listener.filenos())
            entries = [listener.hand_over()]
        for fd in left:
            os.close(fd)
        if failpoints.IS_ARMED:
            failpoints.hit("listen.after")
    except (ConfigError, OSError) as err:
        log.write("error", str(err))
        return 1
    own = dataclasses.fields(config.limits)
    default = next(f.default for f in own if f.name == "descriptors")
    limit = raise_descriptor_limit(None if config.limits.descriptors == default else config.limits.descriptors)
    # What the interpreter, the log, the listeners and the epolls have is not for clients.
    limits = dataclasses.replace(config.limits, descriptors=limit - len(os.listdir("/proc/self/fd")) - 8)
    missing = limits.descriptor_reserve + LEAST - limits.descriptors
    if missing > 0:
        least = limit + missing
        log.write(
            "error", f"a limit of {limit} descriptors leaves none for clients; raise it to {least} at least (ulimit -Hn, LimitNOFILE=)"
        )
        return give_up(listener)
    config = dataclasses.replace(config, limits=limits)
    if keeper is None:
        host.page.words[GENERATION], host.page.words[STARTED] = 1, time.monotonic_ns()
    host.page.version = __version__
    journal = None if keeper is None else Journal(keeper.page)
    if journal is not None and not journal.has_room:
        log.write("error", f"there is no memory for the journal: {journal.shortage}")
        return give_up(listener)
    server = Server(config, Broker(limits, os.getuid()), entries, log, read, host, journal)
    where = " ".join(name for name in map(address, entries) if name)
    log.write("notice", f"fencebrokerd {__version__} serves {where} (descriptor limit {limit})")
    return run(server, listener, log, lambda: say_ready(ready_fd, host.page))


def give_up(listener: Listener | None) -> int:
    """Leave nothing behind; returns the exit code."""
    if listener is not None:
        listener.unlink()
    return 1


def run(server: Server, listener: Listener | None, log: Log, ready: Callable[[], None]) -> int:
    """Serve to the end; returns the exit code."""
    n = server.run(ready)
    if n is None:
        leave(STEP_ASIDE)
    if listener is not None:
        listener.unlink()
    log.write("notice", f"fencebrokerd stopped: {n} active {'fence' if n == 1 else 'fences'} completed with ECANCELED")
    return 0


def address(listening: Listening) -> str:
    """A listening socket's path, for the log."""
    sock = socket.socket(fileno=listening.fd)
    name = sock.getsockname()
    sock.detach()
    return name if isinstance(name, str) else "@" + name[1:].decode(errors="backslashreplace")


def main(keeper: Keeper | None) -> None:
    """Run the command, as the broker of ``keeper``."""
    cli(prog_name="fencebrokerd", obj=keeper)
