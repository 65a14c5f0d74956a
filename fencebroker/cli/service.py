"""``start``, ``stop``, ``restart``: one's own broker.  The system's belongs to the service manager.

Facts
  The kernel says who listens on a socket (SO_PEERCRED), in our own pid namespace; the broker says who it is when it answers.  Only when
  both agree is it stopped: a broker that a service manager listens for, or one from a container, is not ours to signal by pid.
  The process to stop is the broker's keeper, which replaces a broker that ends any other way: its parent, with the same command line.
  A broker of another version refuses the conversation, and a stopped one never answers; then the listener must at least be a fencebrokerd.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from fencebroker import BrokerUnavailable, places, requests
from fencebroker.cli.command import ANSWER_SECONDS, Failure, Invocation, Verb, answer_within, parsed, seconds, wants_json
from fencebroker.cli.render import span
from fencebroker.connection import Connection, connect_socket
from fencebroker.fds import OwnedFd
from fencebroker.finding import start_user_broker

__all__ = ["restart", "start", "stop"]

SO_PEERPIDFD: Final = 77  # Linux 6.5
_UCRED: Final = struct.Struct("3i")

START_EXAMPLE = """\
$ fencectl start --user
started pid 4187, keeper 4186, at /run/user/1000/fencebroker/broker.sock, log in /home/ada/.local/state/fencebroker/broker.log
"""
STOP_EXAMPLE = """\
$ fencectl stop --user
stopped pid 4187, keeper 4186, 3 active fences completed with ECANCELED
"""
RESTART_EXAMPLE = """\
$ fencectl restart --user
stopped pid 4187, keeper 4186, 3 active fences completed with ECANCELED
started pid 4302, keeper 4301, at /run/user/1000/fencebroker/broker.sock, log in /home/ada/.local/state/fencebroker/broker.log
"""

F = TypeVar("F", bound=Callable[..., Any])


def _users_own(function: F) -> F:
    """Add ``--user``, which must be given: these verbs do nothing to the system's broker."""

    def check(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if not value:
            raise click.UsageError(
                f"the system's broker is managed by the service manager (systemctl {ctx.info_name} fencebroker); "
                f"for your own broker: fencectl {ctx.info_name} --user",
                ctx,
            )
        if ctx.ensure_object(Invocation).socket is not None:
            raise click.UsageError("--user says which broker: leave --socket out", ctx)

    return click.option("--user", is_flag=True, expose_value=False, callback=check, help="Your own broker (must be given).")(function)


_timeout = click.option(
    "--timeout", metavar="SECONDS", callback=parsed(seconds), default="10", show_default=True, help="Give up after so long (exit code 3)."
)


@click.command(cls=Verb, example=START_EXAMPLE, short_help="Start your own broker.")
@_users_own
@wants_json
@click.pass_obj
def start(invocation: Invocation) -> None:
    """Start your own broker, and wait until it serves.

    It listens where programs of yours look for it, in $XDG_RUNTIME_DIR/fencebroker, and stays until it is stopped. There is no need to:
    the library starts one when a program asks for it, which leaves when nobody has used it for half a minute. If a broker serves there
    already, it is left alone.
    """
    _start(invocation, places.user_socket())


@click.command(cls=Verb, example=STOP_EXAMPLE, short_help="Stop your own broker.")
@_users_own
@_timeout
@wants_json
@click.pass_obj
def stop(invocation: Invocation, timeout: float) -> None:
    """Stop your own broker, and wait until it is gone.

    What was active completes with ECANCELED: whoever waits is told at once. Exit code 4 when there is no broker to stop.
    """
    path = places.user_socket()
    with contextlib.closing(find_running(path)) as running:
        invocation.output.json(_stop(invocation, running, timeout))


@click.command(cls=Verb, example=RESTART_EXAMPLE, short_help="Stop your own broker and start it anew.")
@_users_own
@_timeout
@wants_json
@click.pass_obj
def restart(invocation: Invocation, timeout: float) -> None:
    """Stop your own broker and start it anew, as after an update; if there is none, start it.

    What was active completes with ECANCELED: programs have to create their timelines again.
    """
    path = places.user_socket()
    stopped: dict[str, Any] | None = None
    with contextlib.suppress(NothingListens), contextlib.closing(find_running(path)) as running:
        stopped = _stop(invocation, running, timeout)
    _start(invocation, path, stopped=stopped)


# -- start


def _start(invocation: Invocation, path: Path, **more: Any) -> None:
    log = places.log_path()
    with answer_within(2 * ANSWER_SECONDS):
        serving = _serving(path)
        started = serving is None
        if serving is None:
            start_user_broker(path, idle_exit=0)
            serving = _serving(path)
    if serving is None:
        raise BrokerUnavailable(f"a broker was started at {path} but does not answer; its log is {log}")
    elsewhere = os.environ.get("FENCEBROKER_SOCKET")
    pid, keeper = serving
    invocation.output.json({**more, "pid": pid, "keeper_pid": keeper, "socket": str(path), "log": str(log), "started": started})
    who = _named(pid, keeper)
    invocation.output.line(f"started {who}, at {path}, log in {log}" if started else f"{who}, serves at {path} already")
    if elsewhere and elsewhere != str(path):
        invocation.output.line(f"programs started from here will not use it: FENCEBROKER_SOCKET is set to {elsewhere}")


def _named(pid: int, keeper: int | None) -> str:
    """The processes, for a person."""
    return f"pid {pid}" if keeper is None else f"pid {pid}, keeper {keeper}"


def _serving(path: Path) -> tuple[int, int | None] | None:
    """The pids of the broker that serves at ``path`` and of its keeper; None when nobody listens.

    BrokerUnavailable when what listens does not serve.
    """
    try:
        connection = Connection(path)
    except BrokerUnavailable:
        raise
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    with contextlib.closing(connection):
        return connection.pid, connection.call(requests.status()).get("keeper_pid")


# -- stop


class NothingListens(BrokerUnavailable):
    """There is no broker to stop."""


class _OneListensAnotherAnswers(Failure):
    """What listens at the path is not what answers there."""


class Running(NamedTuple):
    """A broker that runs; ``n_active`` is None when it could not be asked.  ``pidfd`` is its keeper's, or its own if it has none."""

    pid: int
    keeper: int | None
    pidfd: OwnedFd
    n_active: int | None

    def close(self) -> None:
        """Give the pidfd back."""
        self.pidfd.close()


def find_running(path: Path) -> Running:
    """Find the process to stop, and make sure that it is the broker.  The caller closes the result."""
    try:
        return _find_running(path)
    except _OneListensAnotherAnswers:
        return _find_running(path)  # so it is while a broker is replaced


def _find_running(path: Path) -> Running:
    connection: Connection | None = None
    try:
        with answer_within(ANSWER_SECONDS):
            connection = Connection(path)
    except BrokerUnavailable:
        sock = connect_socket(path)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NothingListens(f"no broker answers at {path}: there is nothing to stop") from None
    else:
        assert connection._sock is not None
        sock = connection._sock
    with contextlib.closing(connection if connection is not None else sock):
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if os.getuid() not in (0, uid) or pid <= 0:
            raise Failure(f"the process that listens at {path} (pid {pid}, uid {uid}) is not yours to stop")
        if connection is not None and connection.pid != pid:
            raise _OneListensAnotherAnswers(
                f"the broker at {path} says it is pid {connection.pid}, but pid {pid} listens there; "
                "if a service manager or a container runs it, stop it there"
            )
        pidfd = _pidfd_of(sock, pid, path)
        try:
            n_active = _check(connection, pid, path)
            keeper = _keeper_of(pid)
            if keeper is not None:
                broker, pidfd = pidfd, OwnedFd(os.pidfd_open(keeper))
                broker.close()
                if _keeper_of(pid) != keeper:  # no: that number was somebody else's by then
                    raise NothingListens(f"the broker at {path} (pid {pid}) has just ended")
            return Running(pid, keeper, pidfd, n_active)
        except ProcessLookupError:
            pidfd.close()
            raise NothingListens(f"the broker at {path} (pid {pid}) has just ended") from None
        except BaseException:
            pidfd.close()
            raise


def _pidfd_of(sock: socket.socket, pid: int, path: Path) -> OwnedFd:
    try:
        return OwnedFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError:
        pass  # an older kernel
    try:
        return OwnedFd(os.pidfd_open(pid))
    except ProcessLookupError:
        raise NothingListens(f"the broker at {path} (pid {pid}) has just ended") from None


def _check(connection: Connection | None, pid: int, path: Path) -> int | None:
    """Refuse a process that is not the broker; return how many active fences the broker has, if it can be asked."""
    if connection is None:
        if not _is_fencebrokerd(pid):
            raise Failure(f"what listens at {path} (pid {pid}) is no fencebrokerd: it is not stopped")
        return None
    with answer_within(ANSWER_SECONDS):
        return int(connection.call(requests.status())["active_fences"])  # it answers after the pidfd was opened: the pid is not reused


def _is_fencebrokerd(pid: int) -> bool:
    import psutil  # seldom needed, and every verb would wait for it

    try:
        arguments = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return any(os.path.basename(argument) == "fencebrokerd" for argument in arguments[:5])


def _keeper_of(pid: int) -> int | None:
    """The parent of a broker if it is its keeper: it never ran another program than what it cloned."""
    import psutil

    try:
        parent = psutil.Process(pid).parent()
        return parent.pid if parent is not None and parent.cmdline() == psutil.Process(pid).cmdline() else None
    except psutil.Error:
        return None


def _stop(invocation: Invocation, running: Running, timeout: float) -> dict[str, Any]:
    """End it, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
        signal.pidfd_send_signal(running.pidfd.fileno(), signal.SIGTERM)
    poller = select.poll()
    poller.register(running.pidfd, select.POLLIN)
    if not poller.poll(timeout * 1000):
        waited = span(int(timeout * 1e9))
        who = _named(running.pid, running.keeper)
        pids = running.pid if running.keeper is None else f"{running.keeper} {running.pid}"
        raise TimeoutError(f"{who}, was told to stop and still runs after {waited}; kill -KILL {pids} ends it at once")
    n = running.n_active
    cancelled = "" if n is None else f", {n} active fence{'' if n == 1 else 's'} completed with ECANCELED"
    invocation.output.line(f"stopped {_named(running.pid, running.keeper)}{cancelled}")
    return {"pid": running.pid, "keeper_pid": running.keeper, "cancelled": n}
