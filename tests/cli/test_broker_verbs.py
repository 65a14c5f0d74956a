"""status, start, stop, restart, logs: the broker itself."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import fencebroker as fb
from tests.cli.conftest import FENCECTL, Fencectl, Scene, end_of
from tests.helpers import last_descendant, not_run, wait_gone, wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.helpers import BrokerProcess, Child, Spawn, StartBroker

#: Stands at a path where a broker should be, and says something else; it is the peer of what is tested.
PEER = """
    import socket, sys
    import msgpack
    path, answer = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        hello = connection.recv(4096)
        if hello and answer != "nothing":
            connection.send(eval(answer))
        if hello:
            connection.recv(4096)
        connection.close()
"""
OTHER_VERSION = "msgpack.packb([1, 93, 'this broker speaks version 2 of the protocol, the client version 1; restart the older', []])"


def pretend(spawn: Spawn, path: str, answer: str) -> Child:
    child = spawn(PEER, path, answer)
    assert child.line() == "ready"
    return child


# status


def test_status_of_a_broker_that_is_well(fencectl: Fencectl, scene: Scene, broker: BrokerProcess) -> None:
    result = fencectl("status")
    assert (result.code, result.err) == (0, "")
    assert result.lines()[0].split() == ["broker", "pid", f"{broker.pid},", "fencebroker", f"{fb.__version__},", "user", _own_user()]
    keeper = broker.process.pid
    assert result.lines()[1].split() == ["socket", broker.path]
    assert result.lines()[3].split() == ["keeper", "pid", f"{keeper},", "fencebroker", fb.__version__]
    value = fencectl("status", "--json").json()
    assert (value["pid"], value["version"], value["socket"], value["uid"]) == (broker.pid, fb.__version__, broker.path, os.getuid())
    assert (value["sessions"], value["timelines"], value["sync_files"], value["fences"], value["active_fences"]) == (3, 1, 3, 4, 3)
    assert (value["keeper_pid"], value["keeper_version"], value["generation"]) == (keeper, fb.__version__, 1)
    assert (value["recoveries"], value["reloads"], value["last_reason"]) == (0, 0, None)
    assert value["uptime_ns"] > 0
    assert value["descriptor_limit"] > value["descriptors"] > 0


def test_status_tells_of_recoveries_and_reloads(fencectl: Fencectl, broker: BrokerProcess) -> None:
    keeper = broker.process.pid
    os.kill(broker.pid, signal.SIGKILL)
    wanted = "2, after 1 recoveries and 0 reloads; the last one that was replaced: it was ended by SIGKILL"
    assert fencectl("status").lines()[4].split(maxsplit=1) == ["generation", wanted]
    os.kill(last_descendant(keeper), signal.SIGKILL)
    broker.reload()
    value = fencectl("status", "--json").json()
    assert (value["generation"], value["recoveries"], value["reloads"], value["last_reason"]) == (4, 2, 1, "it was ended by SIGKILL")
    assert value["pid"] == last_descendant(keeper)


def test_status_of_a_broker_without_a_keeper(fencectl: Fencectl, start_broker: StartBroker) -> None:
    broker = start_broker("--no-keeper")
    result = fencectl("status", "--socket", broker.path)
    assert result.lines()[3].split(maxsplit=1) == ["keeper", "none: if the broker dies, all is lost"]
    value = fencectl("status", "--json", "--socket", broker.path).json()
    assert (value["keeper_pid"], value["keeper_version"], value["generation"]) == (None, None, 1)
    assert value["uptime_ns"] < 60e9


def _own_user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def test_status_without_a_broker(alone: Fencectl, folder: str) -> None:
    result = alone("status")
    assert result.code == 4
    assert result.one_error().startswith(f"no broker answers at {folder}/fencebroker/broker.sock or ")
    assert os.listdir(f"{folder}/fencebroker") == [], "it started something"


@pytest.mark.parametrize("verb", ["ls", "info", "wait", "advance", "status"])
def test_no_verb_starts_a_broker(alone: Fencectl, folder: str, verb: str) -> None:
    arguments = {"info": ["1"], "wait": ["a@1"], "advance": ["a", "1"]}.get(verb, [])
    for more in ([], ["--socket", f"{folder}/nothing"], ["--socket", "/dev/null"], ["--socket", folder]):
        result = alone(verb, *arguments, *more)
        assert result.code == 4
        assert "no broker answers" in result.one_error()
    assert os.listdir(f"{folder}/fencebroker") == []


def test_the_socket_may_be_named_before_or_after_the_verb(alone: Fencectl, broker: BrokerProcess, folder: str) -> None:
    for arguments in (("status", "--socket", broker.path), ("--socket", broker.path, "status")):
        assert alone(arguments[0], *arguments[1:], "--json").json()["pid"] == broker.pid
    # What is typed wins over the environment.
    named = alone("status", "--socket", broker.path, "--json", env={"FENCEBROKER_SOCKET": f"{folder}/nothing"})
    assert named.json()["pid"] == broker.pid


@pytest.mark.parametrize("path", ["", "/" + "x" * 200, "relative/nowhere", "\udcff"])
def test_a_socket_that_cannot_be_is_one_line(fencectl: Fencectl, path: str) -> None:
    result = fencectl("status", "--socket", path)
    assert result.code in {1, 4}
    assert result.one_error()


def test_a_broker_of_another_version_is_named(spawn: Spawn, alone: Fencectl, folder: str) -> None:
    path = f"{folder}/other"
    pretend(spawn, path, OTHER_VERSION)
    result = alone("status", "--socket", path)
    assert (result.code, result.one_error()) == (4, "this broker speaks version 2 of the protocol, the client version 1; restart the older")


@pytest.mark.parametrize("answer", ["b'\\x93nonsense'", "b'GET / HTTP/1.0'", "msgpack.packb([1])"])
def test_something_else_that_listens_is_no_broker(spawn: Spawn, alone: Fencectl, folder: str, answer: str) -> None:
    pretend(spawn, f"{folder}/other", answer)
    result = alone("ls", "--socket", f"{folder}/other")
    assert result.code == 4
    assert "does not speak this protocol" in result.one_error()


def test_a_broker_that_says_nothing_does_not_hang_the_health_check(fencectl: Fencectl, broker: BrokerProcess) -> None:
    broker.freeze()
    try:
        result = fencectl("status", "--timeout", "0.2")
    finally:
        broker.thaw()
    assert result.code == 4
    assert result.one_error() == "the broker accepts connections but did not answer within 0.2 s; is it stopped or stuck?"


def test_a_broker_that_does_not_let_one_in(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn) -> None:
    os.chmod(broker.path, 0)
    if os.getuid() != 0:
        result = fencectl("ls")
    elif shutil.which("setpriv") is None:
        not_run("root passes every mode, and setpriv is not there to run fencectl as another user")
    else:
        os.chmod(os.path.dirname(broker.path), 0o755)
        result = end_of(spawn(["setpriv", "--reuid=65533", "--clear-groups", FENCECTL, "ls"], env=broker.env, cwd="/"))
        if not result.err.startswith("fencectl: "):
            not_run("another user cannot run this interpreter here")
    assert result.code == 1
    assert result.one_error() == f"the broker at {broker.path} does not serve you: Permission denied"


# start, stop, restart


def test_start_and_stop(users_own: Fencectl, folder: str) -> None:
    path, log = f"{folder}/fencebroker/broker.sock", f"{folder}/fencebroker/broker.log"
    started = users_own("start", "--user", "--json").json()
    keeper = started["keeper_pid"]
    assert started == {"pid": started["pid"], "keeper_pid": keeper, "socket": path, "log": log, "started": True}
    status = users_own("status", "--json").json()
    assert (status["pid"], status["keeper_pid"]) == (started["pid"], keeper)
    who = f"pid {started['pid']}, keeper {keeper}"
    again = users_own("start", "--user")
    assert (again.code, again.out) == (0, f"{who}, serves at {path} already\n")
    stopped = users_own("stop", "--user")
    assert (stopped.code, stopped.out) == (0, f"stopped {who}, 0 active fences completed with ECANCELED\n")
    for pid in (started["pid"], keeper):
        with pytest.raises(ProcessLookupError):
            os.kill(buried(pid), 0)
    nothing = users_own("stop", "--user")
    assert (nothing.code, nothing.one_error()) == (4, f"no broker answers at {path}: there is nothing to stop")


def test_stop_finds_a_broker_that_replaced_another_one(users_own: Fencectl) -> None:
    """The kernel's word of who listens follows the replacement; a stop ends the keeper too, also when it comes while the next one begins."""
    started = users_own("start", "--user", "--json").json()
    os.kill(started["pid"], signal.SIGKILL)
    stopped = users_own("stop", "--user", "--json").json()
    assert (stopped["keeper_pid"], stopped["cancelled"]) == (started["keeper_pid"], 0)
    assert stopped["pid"] != started["pid"]
    wait_gone(stopped["keeper_pid"], 0.0)


def buried(pid: int) -> int:
    """An orphan that has ended is this process's to bury; then its pid is free."""
    wait_gone(pid, 0.0)
    return pid


def test_a_started_broker_stays_and_holds_nothing_of_its_starter(users_own: Fencectl) -> None:
    pid = users_own("start", "--user", "--json").json()["pid"]
    arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[arguments.index(b"--idle-exit") + 1] == b"0"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) not in (os.getsid(0), os.getpid())
    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    pipes = Counter(target for target in targets if target.startswith("pipe:"))
    assert set(pipes.values()) <= {2}, "it has both ends of its own"


def test_stop_wakes_whoever_waits(users_own: Fencectl, make_scene: Callable[[Mapping[str, str | None]], Scene]) -> None:
    users_own("start", "--user")
    make_scene(users_own.env)
    stopped = users_own("stop", "--user", "--json").json()
    assert stopped["cancelled"] == 3
    wait_gone(stopped["pid"])


def test_restart_says_what_it_ended(users_own: Fencectl, make_scene: Callable[[Mapping[str, str | None]], Scene]) -> None:
    first = users_own("restart", "--user", "--json").json()
    assert first["stopped"] is None
    assert first["started"] is True
    make_scene(users_own.env)
    second = users_own("restart", "--user", "--json").json()
    assert second["stopped"] == {"pid": first["pid"], "keeper_pid": first["keeper_pid"], "cancelled": 3}
    assert second["pid"] != first["pid"]
    assert users_own("status", "--json").json()["pid"] == second["pid"]
    wait_gone(first["pid"])


def test_start_tells_when_the_environment_leads_elsewhere(users_own: Fencectl) -> None:
    result = users_own("start", "--user", env={"FENCEBROKER_SOCKET": "/elsewhere"})
    assert result.lines()[1:] == ["programs started from here will not use it: FENCEBROKER_SOCKET is set to /elsewhere"]


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_only_ones_own_broker_is_started_and_stopped(alone: Fencectl, verb: str) -> None:
    result = alone(verb)
    assert result.code == 2
    assert result.one_error() == (
        f"the system's broker is managed by the service manager (systemctl {verb} fencebroker); "
        f"for your own broker: fencectl {verb} --user (see fencectl {verb} --help)"
    )
    both = alone("--socket", "/x", verb, "--user")
    assert (both.code, both.one_error()) == (2, f"--user says which broker: leave --socket out (see fencectl {verb} --help)")


def test_start_says_where_the_log_is_when_the_broker_does_not_start(alone: Fencectl, folder: str) -> None:
    """Something that is no socket lies where the broker would listen."""
    os.mkdir(f"{folder}/fencebroker", 0o700)
    pathlib.Path(f"{folder}/fencebroker/broker.sock").touch()
    result = alone("start", "--user")
    assert result.code == 4
    assert result.one_error() == f"a broker for this user could not be started; its log is {folder}/fencebroker/broker.log"
    assert "exists and is not a socket" in alone("logs").out


def at_the_users_place(folder: str) -> str:
    os.mkdir(f"{folder}/fencebroker", 0o700)
    return f"{folder}/fencebroker/broker.sock"


def test_stop_leaves_a_process_alone_that_only_claims_to_be_the_broker(spawn: Spawn, alone: Fencectl, folder: str) -> None:
    victim = spawn("import sys; sys.stdin.read()")
    path = at_the_users_place(folder)
    peer = pretend(spawn, path, f"msgpack.packb([1, 0, 1, '0.1.0', {victim.pid}, 1])")
    result = alone("stop", "--user")
    assert result.code == 1
    assert result.one_error() == (
        f"the broker at {path} says it is pid {victim.pid}, but pid {peer.pid} listens there; "
        "if a service manager or a container runs it, stop it there"
    )
    assert victim.process.poll() is None
    assert peer.process.poll() is None


def test_stop_leaves_a_listener_alone_that_is_no_broker(spawn: Spawn, alone: Fencectl, folder: str) -> None:
    path = at_the_users_place(folder)
    peer = pretend(spawn, path, OTHER_VERSION)
    for verb in ("stop", "restart"):
        result = alone(verb, "--user")
        assert (result.code, result.one_error()) == (1, f"what listens at {path} (pid {peer.pid}) is no fencebrokerd: it is not stopped")
    assert peer.process.poll() is None


def test_a_broker_of_another_version_can_be_restarted(spawn: Spawn, users_own: Fencectl, folder: str) -> None:
    """What stands for an older broker must look like one to the process table, as `python -m fencebrokerd` does."""
    path = at_the_users_place(folder)
    old = pathlib.Path(f"{folder}/fencebrokerd")
    old.write_text(textwrap.dedent(PEER))
    peer = spawn([sys.executable, str(old), path, OTHER_VERSION])
    assert peer.line() == "ready"
    assert users_own("status").code == 4
    result = users_own("restart", "--user", "--json").json()
    assert result["stopped"] == {"pid": peer.pid, "keeper_pid": None, "cancelled": None}
    assert peer.wait() == -signal.SIGTERM
    assert users_own("status", "--json").json()["pid"] == result["pid"]


def test_stop_gives_up_on_a_broker_that_does_not_end(users_own: Fencectl) -> None:
    started = users_own("start", "--user", "--json").json()
    pid, keeper = started["pid"], started["keeper_pid"]
    group = os.getpgid(pid)
    os.killpg(group, signal.SIGSTOP)  # keeper and all
    child = users_own.spawn("stop", "--user", "--timeout", "0.1")
    try:
        result = end_of(child, 20)
    finally:
        os.killpg(group, signal.SIGCONT)
    assert result.code == 3
    assert result.one_error() == (
        f"pid {pid}, keeper {keeper}, was told to stop and still runs after 100 ms; kill -KILL {keeper} {pid} ends it at once"
    )
    wait_gone(pid)


# logs


def test_logs_shows_the_last_lines(users_own: Fencectl, folder: str) -> None:
    none = users_own("logs")
    assert none.code == 1
    assert none.one_error() == f"there is no log at {folder}/fencebroker/broker.log: no broker was started for you yet"
    pid = users_own("start", "--user", "--json").json()["pid"]
    users_own("stop", "--user")
    wait_gone(pid)
    lines = users_own("logs").lines()
    assert len(lines) == 2
    assert f"fencebrokerd[{pid}] notice: fencebrokerd {fb.__version__} serves {folder}/fencebroker/broker.sock" in lines[0]
    assert lines[1].endswith("fencebrokerd stopped: 0 active fences completed with ECANCELED")
    assert users_own("logs", "-n", "1").lines() == lines[1:]
    assert users_own("logs", "-n", "0").out == ""
    values = [json.loads(line) for line in users_own("logs", "--json").lines()]
    assert [(value["pid"], value["level"]) for value in values] == [(pid, "notice"), (pid, "notice")]
    assert values[1]["text"] == "fencebrokerd stopped: 0 active fences completed with ECANCELED"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", values[0]["time"])
    assert users_own("logs", "-n", "-1").code == 2
    assert users_own("logs", "-n", "x").code == 2


def a_log(folder: str, content: bytes) -> pathlib.Path:
    os.makedirs(f"{folder}/fencebroker", 0o700, exist_ok=True)
    path = pathlib.Path(f"{folder}/fencebroker/broker.log")
    path.write_bytes(content)
    return path


def test_logs_follows_the_log_also_when_it_is_replaced(alone: Fencectl, folder: str) -> None:
    path = a_log(folder, b"one\ntwo\n")
    child = alone.spawn("logs", "-n", "1", "--follow")
    assert child.line() == "two"
    with path.open("ab") as log:
        log.write(b"three\n")
    assert child.line() == "three"
    path.rename(f"{path}.1")
    path.write_bytes(b"four\n")
    assert child.line() == "four"
    child.signal(signal.SIGINT)
    result = end_of(child)
    assert (result.code, result.out, result.err) == (130, "", "")


def test_logs_lets_no_control_character_through(alone: Fencectl, folder: str) -> None:
    a_log(folder, b"\x1b[31mred\x07 \xff\xe2\x80\xae\n")
    assert alone("logs").out == "\\x1b[31mred\\x07 \\xff\\u202e\n"
    value: Any = json.loads(alone("logs", "--json").out)
    assert value == {"time": None, "pid": None, "level": None, "text": "\x1b[31mred\x07 \\xff\u202e"}
    assert "\x1b" not in alone("logs", "--json").out


def test_logs_is_read_by_tail(alone: Fencectl, folder: str, tmp_path: pathlib.Path) -> None:
    path = a_log(folder, b"one\n")
    result = alone("logs", env={"PATH": str(tmp_path)})
    assert (result.code, result.one_error()) == (1, f"the program tail is not installed; the log is {path}")


def test_the_fake_peer_is_reached(spawn: Spawn, folder: str) -> None:
    """The peer above answers to whoever says something, so the tests that use it cannot pass for want of a listener."""
    pretend(spawn, f"{folder}/peer", "b'answer'")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(f"{folder}/peer")
        sock.send(b"hello")
        wait_readable(sock.fileno())
        assert sock.recv(100) == b"answer"
