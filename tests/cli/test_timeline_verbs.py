"""create, inc, fail: a timeline's owner in a shell."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from tests.cli.conftest import FENCECTL, Fencectl, Scene, end_of
from tests.helpers import LIMIT, wait_gone

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess, Child, Spawn

THERE = "lens is there, until this process ends"


@pytest.fixture
def held(fencectl: Fencectl) -> Child:
    """A timeline ``lens`` that is held in the foreground."""
    child = fencectl.spawn("create", "lens")
    assert child.line() == THERE
    return child


def failure(broker: BrokerProcess, point: str) -> int:
    """The error with which a point fails."""
    with fb.connect(broker.path) as connection, connection.sync_file(point) as fence, pytest.raises(fb.FenceError) as caught:
        fence.wait(LIMIT)
    return caught.value.error


# create


def test_create_holds_a_timeline_for_others(fencectl: Fencectl, held: Child, broker: BrokerProcess) -> None:
    assert fencectl("wait", "lens@0").code == 0
    (timeline,) = fencectl("ls", "timelines", "--json").json()["timelines"]
    assert (timeline["name"], timeline["mode"], timeline["expiry_ns"]) == ("lens", "0600", None)
    assert timeline["owner"]["pid"] == held.pid
    assert held.process.poll() is None


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (signal.SIGINT, 130, errno.ECANCELED),
        (signal.SIGTERM, 143, errno.ECANCELED),
        (signal.SIGHUP, 129, errno.ECANCELED),
        (signal.SIGKILL, -9, errno.ENOENT),
    ],
)
def test_the_end_of_create_is_the_end_of_the_timeline(
    held: Child, broker: BrokerProcess, number: signal.Signals, code: int, error: int
) -> None:
    with fb.connect(broker.path) as connection, connection.sync_file("lens@1") as fence:
        assert fence.status() == 0
        held.signal(number)
        with pytest.raises(fb.FenceError) as caught:
            fence.wait(LIMIT)
    assert caught.value.error == error
    assert (held.rest(), held.wait(), held.log()) == ("", code, "")


@pytest.mark.parametrize("shell_dies_by", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_shell_dies_who_waits_is_told(
    spawn: Spawn, fencectl: Fencectl, broker: BrokerProcess, shell_dies_by: signal.Signals
) -> None:
    shell = spawn(["sh", "-c", "fencectl create lens & echo $!; read line; :"], env=fencectl.env)
    pid = int(shell.line())
    assert shell.line() == THERE
    with fb.connect(broker.path) as connection, connection.sync_file("lens@1") as fence:
        assert fence.status() == 0
        os.kill(shell.pid, shell_dies_by)
        with pytest.raises(fb.FenceError, match=rf"producer \(pid {pid}, fencectl\) died or closed"):
            fence.wait(LIMIT)
    wait_gone(pid)


def test_a_script_that_ends_takes_its_timelines_with_it(spawn: Spawn, fencectl: Fencectl, broker: BrokerProcess) -> None:
    code = "fencectl create lens >/dev/null & fencectl wait lens@0 && fencectl advance lens 3 && fencectl wait lens@3 && echo $!"
    pid = int(spawn(["sh", "-c", code], env=fencectl.env).finish(2 * LIMIT))
    wait_gone(pid)
    assert fencectl("ls", "timelines", "--json").json()["timelines"] == []


def test_create_ends_with_its_command(fencectl: Fencectl, broker: BrokerProcess) -> None:
    result = fencectl("create", "lens", "--", "sh", "-c", "fencectl ls timelines --json; fencectl advance lens 2; echo $PPID")
    assert (result.code, result.err) == (0, "")
    assert '"name": "lens"' in result.out
    assert fencectl("ls", "timelines", "--json").json()["timelines"] == []


def test_a_command_that_fails_cancels_what_is_active(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.sync_file("lens@5") as fence:
        result = fencectl("create", "lens", "--", "sh", "-c", "exit 3")
        assert (result.code, result.one_error()) == (1, "sh ended with exit status 3")
        with pytest.raises(fb.FenceError, match="lens@5 was cancelled"):
            fence.wait(LIMIT)


def test_a_signal_reaches_the_command(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = fencectl.spawn("create", "lens", "--", "sh", "-c", "trap 'echo told; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    assert child.line() == "ready"
    child.signal(signal.SIGTERM)
    result = end_of(child)
    assert (result.code, result.out, result.err) == (1, "told\n", "fencectl: sh ended with exit status 4\n")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_create_says_that_the_broker_went(fencectl: Fencectl, broker: BrokerProcess, held: Child, how: str) -> None:
    if how == "stop":
        broker.stop()
    else:
        broker.kill()
    result = end_of(held)
    assert (result.code, result.one_error()) == (4, f"the broker at {broker.path} went away")


def test_a_name_in_use_names_its_holder(fencectl: Fencectl, held: Child) -> None:
    result = fencectl("create", "lens")
    assert result.code == 1
    assert f"pid {held.pid}" in result.one_error()


def test_create_tells_a_program(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = fencectl.spawn("create", "lens", "--json", "--mode", "640", "--expiry", "0.5")
    assert child.line() == f'{{"name": "lens", "context": 1, "pid": {child.pid}}}'
    (timeline,) = fencectl("ls", "timelines", "--json").json()["timelines"]
    assert (timeline["mode"], timeline["expiry_ns"]) == ("0640", 500_000_000)
    child.signal(signal.SIGINT)
    assert end_of(child).code == 130


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing argument 'NAME'"),
        (["a@1"], "Invalid value for 'NAME': name must be printable and free of '@', '/', ':' and '#', not 'a@1'"),
        (["ada/a"], "Invalid value for 'NAME': must be a name without a user, for a timeline is created for oneself, not 'ada/a'"),
        (["a", "--mode", "rw"], "Invalid value for '--mode': must be octal permission bits such as 0640, not 'rw'"),
        (["a", "--mode", "1777"], "Invalid value for '--mode': must be octal permission bits such as 0640, not '1777'"),
        (["a", "--expiry", "0"], "Invalid value for '--expiry': must be more than 0 seconds"),
        (["a", "--"], "Missing the command to run, after '--'"),
    ],
)
def test_create_refuses_what_makes_no_sense(fencectl: Fencectl, arguments: list[str], complaint: str) -> None:
    result = fencectl("create", *arguments)
    assert (result.code, result.one_error()) == (2, f"{complaint} (see fencectl create --help)")


def test_a_command_that_is_not_there(fencectl: Fencectl) -> None:
    result = fencectl("create", "lens", "--", "no-such-program")
    assert (result.code, result.one_error()) == (1, "'no-such-program' cannot be run: No such file or directory")


# inc and fail


def test_inc_counts(fencectl: Fencectl, scene: Scene) -> None:
    assert fencectl("inc", "camera0", "-v").out == "camera0 went from 6 to 7\n"
    assert fencectl("inc", "camera0", 5, "--json").json() == {"name": "camera0", "context": 1, "before": 7, "value": 12}
    assert fencectl("inc", "camera0", 0, "-v").out == "camera0 is at 12 already\n"
    assert fencectl("inc", "camra0").one_error().endswith("; did you mean camera0?")
    assert fencectl("inc", "camera0", "x").code == 2


def test_no_count_is_lost(spawn: Spawn, fencectl: Fencectl, scene: Scene) -> None:
    children = [fencectl.spawn("inc", "camera0") for _ in range(6)]
    assert [end_of(child).code for child in children] == [0] * 6
    assert fencectl("ls", "timelines", "--json").json()["timelines"][0]["value"] == 12


@pytest.mark.parametrize(("typed", "number"), [("EIO", 5), ("110", 110), ("4095", 4095)])
def test_fail_with_an_errno(fencectl: Fencectl, scene: Scene, broker: BrokerProcess, typed: str, number: int) -> None:
    assert fencectl("fail", "camera0", "8", typed).out == ""
    assert failure(broker, "camera0@8") == number
    assert fencectl("wait", "camera0@7").code == 0  # what lies below is OK


def test_fail_tells_a_program(fencectl: Fencectl, scene: Scene) -> None:
    assert fencectl("fail", "camera0", "7", "EIO", "--json").json() == {
        "name": "camera0", "context": 1, "seqno": 7, "error": "EIO", "before": 6, "value": 7,
    }  # fmt: skip


def test_what_has_signalled_stays_so(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("fail", "camera0", "6", "EIO")
    assert result.code == 1
    assert result.one_error() == "camera0@6 has signalled already, for camera0 is at 6: what has signalled stays so"


@pytest.mark.parametrize(
    ("typed", "words"),
    [("EOI", "not 'EOI'; did you mean"), ("0", "not '0'"), ("4096", "not '4096'"), ("-5", ""), ("", "not ''"), ("eio", "did you mean EIO")],
)
def test_an_errno_that_is_none(fencectl: Fencectl, scene: Scene, typed: str, words: str) -> None:
    result = fencectl("fail", "camera0", "7", typed)
    assert result.code == 2
    assert words in result.one_error()


@pytest.mark.parametrize("verb", ["inc", "fail", "advance"])
def test_a_timeline_that_is_not_there(fencectl: Fencectl, verb: str) -> None:
    result = fencectl(verb, "lens", *{"inc": [], "fail": ["1", "EIO"], "advance": ["1"]}[verb])
    assert (result.code, result.one_error()) == (1, "there is no timeline 'lens' here (or it is not yours to see)")


def test_create_works_where_nobody_is_a_parent_that_could_end(spawn: Spawn, fencectl: Fencectl) -> None:
    """As under a service manager: the process that started it is gone at once, and somebody adopted it before."""
    child = spawn(["sh", "-c", f"exec {FENCECTL} create lens"], env=fencectl.env)
    assert child.line() == THERE
    child.signal(signal.SIGTERM)
    assert end_of(child).code == 143
