"""How a broker is found, and how one is started for a user who has none."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import stat
from collections.abc import Iterator

import psutil
import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, complaints, last_descendant, not_run, wait_gone


class Home:
    """The environment of a user who has no broker."""

    def __init__(self, folder: str) -> None:
        self.runtime = f"{folder}/run"
        self.state = f"{folder}/state"
        os.mkdir(self.runtime, 0o700)
        self.env: dict[str, str | None] = {
            "XDG_RUNTIME_DIR": self.runtime,
            "XDG_STATE_HOME": self.state,
            "HOME": folder,
            "FENCEBROKER_SOCKET": None,
            "FENCEBROKERD_IDLE_EXIT": None,
        }
        self.socket = f"{self.runtime}/fencebroker/broker.sock"
        self.log = f"{self.state}/fencebroker/broker.log"

    def brokers(self) -> list[int]:
        """The pids of the brokers that listen here."""
        return [last_descendant(pid) for pid in self.keepers()]

    def keepers(self) -> list[int]:
        """The pids of what was started here and keeps a broker."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as stream:
                    arguments = stream.read().split(b"\0")
                    if b"fencebrokerd" in arguments and self.socket.encode() in arguments:
                        found.append(int(name))
        return [pid for pid in found if psutil.Process(pid).ppid() not in found]  # broker and reaper are children of their keeper


@pytest.fixture
def home(folder: str) -> Iterator[Home]:
    """A user without a broker; one that was started for it is ended."""
    home = Home(folder)
    yield home
    for pid in home.keepers():
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
    if os.path.exists(home.log):
        with open(home.log, encoding="utf-8") as stream:
            assert not complaints(stream.read())


#: Connects as any program would, and says what it found.
CLIENT = """
    import sys, fencebroker as fb
    with fb.connect() as broker:
        print(broker._connection.path, broker._connection.pid, flush=True)
        sys.stdin.read()
"""


def test_the_environment_names_it(spawn: Spawn, broker: BrokerProcess, home: Home) -> None:
    """$FENCEBROKER_SOCKET comes first; nothing is started."""
    said = spawn(CLIENT, env={**home.env, **broker.env}).finish()
    assert said == f"{broker.path} {broker.pid}\n"
    assert home.brokers() == []


def test_a_named_broker_that_is_not_there_is_not_replaced(spawn: Spawn, home: Home) -> None:
    """Who names one wants that one."""
    child = spawn(
        """
        import fencebroker as fb
        try:
            fb.connect()
        except fb.BrokerUnavailable as err:
            print(err)
        """,
        env={**home.env, "FENCEBROKER_SOCKET": "/nowhere/broker"},
    )
    assert child.finish() == "no broker answers at /nowhere/broker ($FENCEBROKER_SOCKET names it): No such file or directory\n"
    assert home.brokers() == []


def test_an_explicit_path_comes_before_the_environment(spawn: Spawn, broker: BrokerProcess, start_broker: StartBroker) -> None:
    """As text or as a path."""
    other = start_broker()
    child = spawn(
        """
        import pathlib, sys, fencebroker as fb
        for path in (sys.argv[1], pathlib.Path(sys.argv[1])):
            with fb.connect(path) as connection:
                print(connection._connection.pid)
        """,
        other.path,
        env=broker.env,
    )
    assert child.finish() == f"{other.pid}\n" * 2


def test_an_empty_variable_is_none(spawn: Spawn, home: Home, start_broker: StartBroker) -> None:
    """FENCEBROKER_SOCKET= means nothing; the user's own broker is found."""
    os.mkdir(f"{home.runtime}/fencebroker", 0o700)
    own = start_broker(path=home.socket)
    assert spawn(CLIENT, env={**home.env, "FENCEBROKER_SOCKET": ""}).finish() == f"{home.socket} {own.pid}\n"


def test_one_is_started(spawn: Spawn, home: Home) -> None:
    """A per-user broker: own session, cwd /, no inherited descriptors, a log; it outlives who started it and others find it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first = spawn(
            """
            import os, sys, fencebroker as fb
            os.dup2(int(sys.argv[1]), 50)
            os.set_inheritable(50, True)
            with fb.connect() as broker:
                print(broker._connection.pid, os.getsid(0), flush=True)
                sys.stdin.read()
            """,
            theirs.fileno(),
            pass_fds=[theirs.fileno()],
            env={**home.env, "NOTIFY_SOCKET": f"{home.runtime}/notify", "LISTEN_FDS": "1", "LISTEN_PID": "1", "WATCHDOG_USEC": "1000"},
        )
        pid, session = map(int, first.line().split())
        assert home.brokers() == [pid]
        assert os.getsid(pid) != session
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        with open(f"/proc/{pid}/environ", "rb") as stream:
            names = {entry.partition(b"=")[0] for entry in stream.read().split(b"\0")}
        assert not {name for name in names if name.startswith((b"NOTIFY_", b"LISTEN_", b"WATCHDOG_"))}
        targets = {int(number): os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert targets[0] == "/dev/null"
        assert targets[1] == targets[2] == home.log
        inode = os.fstat(theirs.fileno()).st_ino
        assert f"socket:[{inode}]" not in targets.values()
    assert stat.S_IMODE(os.stat(os.path.dirname(home.socket)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(home.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(home.log).st_mode) == 0o600
    second = spawn(CLIENT, env=home.env)
    assert second.line() == f"{home.socket} {pid}"
    first.kill()
    assert home.brokers() == [pid]
    second.finish()


def test_autostart_can_be_declined(spawn: Spawn, home: Home) -> None:
    """``autostart=False``: where it looked, and what starts one."""
    child = spawn(
        """
        import fencebroker as fb
        try:
            fb.connect(autostart=False)
        except fb.BrokerUnavailable as err:
            print(err)
        """,
        env=home.env,
    )
    said = child.finish()
    if "no broker answers" not in said:
        not_run("a broker of the system serves this machine")
    assert (
        said
        == f"no broker answers at {home.socket} or /run/fencebroker/broker.sock; start one (fencectl start --user) or let autostart do it\n"
    )
    assert home.brokers() == []


def test_twenty_at_once_start_one(spawn: Spawn, home: Home) -> None:
    """Two simultaneous starts give one broker; so do twenty."""
    children = [spawn(CLIENT, env=home.env) for _ in range(20)]
    said = {child.line(3 * LIMIT) for child in children}
    assert len(said) == 1
    assert home.brokers() == [int(said.pop().split()[1])]
    for child in children:
        child.finish()


def test_what_a_killed_one_left_behind_is_no_obstacle(spawn: Spawn, home: Home) -> None:
    """A stale socket, a stale lock: the next one who asks starts the next one."""
    first = spawn(CLIENT, env=home.env)
    pid = int(first.line().split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    first.kill()
    second = spawn(CLIENT, env=home.env)
    path, other = second.line().split()
    assert (path, int(other) != pid) == (home.socket, True)
    second.finish()


def test_it_leaves_when_idle(spawn: Spawn, home: Home) -> None:
    """It was started with --idle-exit; nobody has to end it."""
    client = spawn(CLIENT, env=home.env)
    pid = int(client.line().split()[1])
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        arguments = stream.read().split(b"\0")
    assert arguments[arguments.index(b"--idle-exit") + 1] == b"30"
    client.finish()


def test_a_start_that_fails_names_the_log(spawn: Spawn, home: Home) -> None:
    """The reason is in the log; no half a broker is left."""
    child = spawn(
        """
        import fencebroker as fb
        try:
            fb.connect()
        except fb.BrokerUnavailable as err:
            print(err)
        """,
        env={**home.env, "FENCEBROKERD_LOG_LEVEL": "loud"},
    )
    assert child.finish() == f"a broker for this user could not be started; its log is {home.log}\n"
    with open(home.log, encoding="utf-8") as stream:
        assert "FENCEBROKERD_LOG_LEVEL: must be one of" in stream.read()
    assert home.brokers() == []


TRY = """
    import fencebroker as fb
    try:
        fb.connect()
    except OSError as err:
        print(type(err).__name__, err)
"""


def test_a_runtime_folder_of_somebody_else_is_refused(spawn: Spawn, home: Home) -> None:
    """As after su: neither is a folder made in it, nor one trusted that others may write to."""
    if os.getuid() != 0:
        not_run("giving a folder to another user needs root")
    os.chown(home.runtime, 4242, 4242)
    said = spawn(TRY, env=home.env).finish()
    assert said.startswith(f"PermissionError $XDG_RUNTIME_DIR ({home.runtime}) belongs to uid 4242, not to uid 0, as after su; unset it")
    assert os.listdir(home.runtime) == []


def test_a_fencebroker_folder_of_somebody_else_is_refused(spawn: Spawn, home: Home) -> None:
    """Whoever owns or can write to the folder could listen in our place."""
    path = f"{home.runtime}/fencebroker"
    wanted = (
        f"PermissionError {path} must be a folder of uid {os.getuid()} that nobody else may write to; remove it or set XDG_RUNTIME_DIR\n"
    )
    os.mkdir(path)
    os.chmod(path, 0o777)
    assert spawn(TRY, env=home.env).finish() == wanted
    os.rmdir(path)
    os.symlink("/tmp", path)
    assert spawn(TRY, env=home.env).finish() == wanted
    os.unlink(path)
    if os.getuid() == 0:
        os.mkdir(path, 0o700)
        os.chown(path, 4242, 4242)
        assert spawn(TRY, env=home.env).finish() == wanted


def test_places_that_cannot_be_used_are_named(spawn: Spawn, home: Home, tmp_path: pathlib.Path) -> None:
    """A runtime folder that is not there, a log that cannot be made."""
    said = spawn(TRY, env={**home.env, "XDG_RUNTIME_DIR": f"{home.runtime}/none"}).finish()
    assert said.startswith("BrokerUnavailable ")
    assert (
        f"$XDG_RUNTIME_DIR cannot be used (No such file or directory); unset it, or name a broker with FENCEBROKER_SOCKET: '{home.runtime}/none'"
        in said
    )
    (tmp_path / "file").touch()
    said = spawn(TRY, env={**home.env, "XDG_STATE_HOME": f"{tmp_path}/file"}).finish()
    assert (
        said
        == f"BrokerUnavailable a broker for this user could not be started: no place for its log {tmp_path}/file/fencebroker/broker.log: Not a directory\n"
    )


def test_a_broker_that_refuses_is_an_answer(spawn: Spawn, home: Home, start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """A full one is not replaced by another one beside it."""
    os.mkdir(f"{home.runtime}/fencebroker", 0o700)
    file = tmp_path / "fencebroker.toml"
    file.write_text("[limits]\nsessions_per_uid = 1\n")
    own = start_broker("--config", str(file), path=home.socket)
    with fb.connect(home.socket):
        assert spawn(TRY, env=home.env).finish() == "QuotaExceeded [Errno 122] sessions per user: 1 of 1 are in use and 1 more do not fit\n"
    assert home.brokers() == [own.pid]
