"""run, export, merge: commands between fences."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from tests.cli.conftest import Fencectl, Scene, end_of
from tests.cli.test_timeline_verbs import failure
from tests.cli.test_wait_and_advance import n_sync_files
from tests.helpers import LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import BrokerProcess

#: What export and merge are for: wait with poll(), and say what came.
POLL = """
import os, select, sys
fd = int(os.environ["FENCEBROKER_FD"])
poll = select.poll()
poll.register(fd, select.POLLIN)
print("ready", flush=True)
poll.poll()
poll.register(fd, select.POLLIN | select.POLLOUT)
print("failed" if poll.poll(0)[0][1] & select.POLLOUT else "ok")
"""


@pytest.fixture
def timelines(broker: BrokerProcess) -> Iterator[dict[str, fb.Timeline]]:
    with fb.connect(broker.path) as connection, connection.create_timeline("i") as i, connection.create_timeline("o") as o:
        yield {"i": i, "o": o}


@contextlib.contextmanager
def waited_for(broker: BrokerProcess, point: str) -> Iterator[fb.Broker]:
    """Leave the block when somebody waits for a point."""
    with fb.connect(broker.path) as connection:
        events = connection.events()
        assert isinstance(events, Generator)
        with contextlib.closing(events):
            yield connection
            for _ in events:
                if n_sync_files(connection, point):
                    return


# run


def test_run_waits_then_runs_then_signals(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    with waited_for(broker, "i@2"):
        child = fencectl.spawn("run", "--wait", "i@1", "--wait", "i@2", "--signal", "o@3", "--", "sh", "-c", "echo ran; read line")
    with timelines["o"].export(3) as out:
        timelines["i"].advance(2)
        assert child.line() == "ran"
        assert out.status() == 0
        child.send("")
        out.wait(LIMIT)
        assert end_of(child).code == 0


def test_run_tells_a_program(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    value = fencectl("run", "--signal", "o@3", "--signal", "i@1", "--json", "--", "true").json()
    assert value.pop("waited_s") < LIMIT
    assert value == {"exit_status": 0, "signalled": ["i@1", "o@3"], "failed": [], "error": None}


@pytest.mark.parametrize(
    ("command", "how", "error"),
    [
        (["sh", "-c", "exit 7"], "sh ended with exit status 7", errno.EIO),
        (["sh", "-c", "kill -KILL $$"], "sh was killed by SIGKILL", errno.EIO),
        (["sh", "-c", "kill -INT $$"], "sh was killed by SIGINT", errno.ECANCELED),
        (["no-such-program"], "'no-such-program' cannot be run: No such file or directory", errno.EIO),
        (["/etc"], "'/etc' cannot be run: Permission denied", errno.EIO),
    ],
)
def test_a_command_that_fails_lets_the_points_fail(
    fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline], command: list[str], how: str, error: int
) -> None:
    result = fencectl("run", "--signal", "o@3", "--signal", "o@5", "--", *command)
    assert (result.code, result.one_error()) == (1, f"{how}; o@3, o@5 failed with {errno.errorcode[error]}")
    assert [failure(broker, point) for point in ("o@3", "o@5")] == [error, error]


def test_the_exit_status_is_told_to_a_program(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    result = fencectl("run", "--signal", "o@3", "--json", "--", "sh", "-c", "exit 7")
    assert (result.code, result.json()["exit_status"], result.json()["failed"]) == (1, 7, ["o@3"])
    assert result.json()["error"] == "sh ended with exit status 7; o@3 failed with EIO"


def test_an_input_that_fails_passes_its_error_on(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    timelines["i"].fail(1, errno.ENODATA)
    result = fencectl("run", "--wait", "i@1", "--signal", "o@3", "--", "echo", "never")
    assert result.code == 1
    assert result.one_error().startswith("i@1 failed with ENODATA")
    assert result.one_error().endswith("; o@3 failed with ENODATA")
    assert failure(broker, "o@3") == errno.ENODATA


def test_inputs_that_do_not_come_in_time(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    result = fencectl("run", "--timeout", "0.1", "--wait", "i@1", "--signal", "o@3", "--", "echo", "never")
    assert (result.code, result.one_error()) == (3, "i@1 did not signal within 0.1 s; o@3 failed with ETIME")
    assert failure(broker, "o@3") == errno.ETIME


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_is_told_to_end_while_it_waits(
    fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline], number: signal.Signals, code: int
) -> None:
    with waited_for(broker, "i@1"):
        child = fencectl.spawn("run", "--wait", "i@1", "--signal", "o@3", "--", "echo", "never")
    child.signal(number)
    result = end_of(child)
    assert (result.code, result.out, result.err) == (code, "", "")
    assert failure(broker, "o@3") == errno.ECANCELED


def test_ctrl_c_is_the_commands_to_answer(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    child = fencectl.spawn("run", "--signal", "o@3", "--", "sh", "-c", "trap 'exit 0' INT; echo ready; while :; do sleep 0.05; done")
    assert child.line() == "ready"
    os.killpg(child.pid, signal.SIGINT)  # as the terminal does
    assert end_of(child).code == 0
    with timelines["o"].export(3) as out:
        assert out.status() == 1


def test_sigterm_is_handed_on(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    child = fencectl.spawn("run", "--signal", "o@3", "--", "sh", "-c", "echo $$; exec sleep 100")
    child.line()
    child.signal(signal.SIGTERM)
    result = end_of(child)
    assert (result.code, result.one_error()) == (1, "sh was killed by SIGTERM; o@3 failed with ECANCELED")


def test_the_producers_end_while_the_command_runs(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    child = fencectl.spawn("run", "--signal", "o@3", "--", "sh", "-c", "echo ready; read line")
    assert child.line() == "ready"
    timelines["o"].close()
    assert len(fencectl("ls", "timelines", "--json").json()["timelines"]) == 2, "the handle of run keeps it"
    child.send("")
    assert end_of(child).code == 0


@pytest.mark.parametrize("status", [0, 1])
def test_the_brokers_end_while_the_command_runs(
    fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline], status: int
) -> None:
    child = fencectl.spawn("run", "--signal", "o@3", "--", "sh", "-c", f"echo ready; read line; exit {status}")
    assert child.line() == "ready"
    broker.stop()
    child.send("")
    result = end_of(child)
    assert result.code == 4
    assert "went away" in result.one_error()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--", "true"], 2, "Nothing to wait for and nothing to signal: give --wait, --signal, or both (see fencectl run --help)"),
        (["--wait", "i@1"], 2, "Missing the command to run, after '--' (see fencectl run --help)"),
        (
            ["--wait", "i", "--", "true"],
            2,
            "Invalid value for '--wait': point must look like 'camera0@7', not 'i' (see fencectl run --help)",
        ),
        (["--signal", "lens@1", "--", "true"], 1, "there is no timeline 'lens' here (or it is not yours to see)"),
        (["--signal", "o@0", "--", "echo", "x"], 1, "o@0 has signalled already, for o is at 0: the command was not run"),
        (["true"], 2, "Missing the command to run, after '--' (see fencectl run --help)"),
    ],
)
def test_run_refuses_what_makes_no_sense(
    fencectl: Fencectl, timelines: dict[str, fb.Timeline], arguments: list[str], code: int, complaint: str
) -> None:
    result = fencectl("run", *arguments)
    assert result.code == code
    assert result.one_error() == complaint or "unexpected extra argument" in result.one_error()


# export and merge


def test_export_gives_a_command_a_fence(fencectl: Fencectl, broker: BrokerProcess, timelines: dict[str, fb.Timeline]) -> None:
    child = fencectl.spawn("export", "i@1", "--", "python3", "-c", POLL)
    assert child.line() == "ready"
    timelines["i"].advance(1)
    assert (child.rest(), child.wait(), child.log()) == ("ok\n", 0, "")


def test_export_may_come_first(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = fencectl.spawn("export", "lens@1", "--", "python3", "-c", POLL)
    assert child.line() == "ready"
    with fb.connect(broker.path) as connection, connection.create_timeline("lens") as lens:
        lens.fail(1, errno.EIO)
        assert (child.rest(), child.wait(), child.log()) == ("failed\n", 0, "")


@pytest.mark.parametrize("option", [[], ["--any"]])
def test_merge_gives_a_command_one_fence(fencectl: Fencectl, timelines: dict[str, fb.Timeline], option: list[str]) -> None:
    child = fencectl.spawn("merge", "i@1", "o@1", *option, "--name", "both", "--", "python3", "-c", POLL)
    assert child.line() == "ready"
    assert [each["name"] for each in fencectl("ls", "sync_files", "--json").json()["sync_files"]][-1] == "both"
    timelines["i"].advance(1)
    if not option:
        assert child.process.poll() is None
        timelines["o"].advance(1)
    assert (child.rest(), child.wait(), child.log()) == ("ok\n", 0, "")


def test_only_the_fence_is_handed_on(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    listing = ["sh", "-c", "ls -l /proc/$$/fd"]
    result = fencectl("export", "i@1", "--json", "--", *listing)
    assert (result.code, result.err) == (0, "")
    told, *lines = result.lines()
    fd = json.loads(told)["fd"]
    others = [line for line in lines if ("->" in line and "socket:" in line) or ("eventfd" in line and f" {fd} ->" not in line)]
    assert any("eventfd" in line and f" {fd} ->" in line for line in lines)
    assert others == []


def test_the_exit_code_is_the_commands(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    assert fencectl("export", "i@1", "--", "sh", "-c", "exit 9").code == 9
    assert fencectl("merge", "i@1", "o@1", "--", "sh", "-c", "exit 9").code == 9
    assert fencectl("export", "i@1", "--", "no-such-program").one_error() == "'no-such-program' cannot be run: No such file or directory"


def test_the_process_is_the_command(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    child = fencectl.spawn("export", "i@1", "--", "sh", "-c", "echo $$")
    assert child.line() == str(child.pid)
    assert end_of(child).code == 0


def test_merge_tells_a_program(fencectl: Fencectl, timelines: dict[str, fb.Timeline]) -> None:
    value = fencectl("merge", "i@1", "o@1", "--any", "--json", "--", "true").json()
    assert (value["points"], value["when"]) == (["i@1", "o@1"], "any")


@pytest.mark.parametrize(
    ("verb", "arguments", "complaint"),
    [
        ("export", ["i@1"], "Missing the command to run, after '--'"),
        ("export", ["--", "true"], "Missing argument 'NAME@N'"),
        ("export", ["i", "--", "true"], "Invalid value for 'NAME@N': point must look like 'camera0@7', not 'i'"),
        ("merge", ["--", "true"], "Missing argument 'NAME@N...'"),
        ("merge", ["i@1", "--name", "x" * 32, "--", "true"], "Invalid value for '--name': name is 32 bytes long; at most 31 are allowed"),
        ("merge", [*(f"a@{n}" for n in range(1025)), "--", "true"], "at most 1024 points can be merged, not 1025"),
    ],
)
def test_they_refuse_what_makes_no_sense(fencectl: Fencectl, verb: str, arguments: list[str], complaint: str) -> None:
    result = fencectl(verb, *arguments)
    assert (result.code, result.one_error()) == (2, f"{complaint} (see fencectl {verb} --help)")


# wait


def test_a_name_that_looks_mistyped_is_said(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("wait", "camra0@7", "--timeout", "0.05")
    assert result.code == 3
    assert result.one_error() == "camra0@7 did not signal within 0.05 s (there is no timeline 'camra0' yet; did you mean camera0?)"
