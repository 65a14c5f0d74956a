"""Waiting and signalling from a shell."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker.rows import FenceRow, read_row
from tests.cli.conftest import Fencectl, Scene, end_of

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess, Child


def started_waiting(fencectl: Fencectl, broker: BrokerProcess, *arguments: str) -> Child:
    """Start ``fencectl wait``, and return when the broker has made a sync_file for each of the points."""
    points = [argument for argument in arguments if "@" in argument]
    with fb.connect(broker.path) as connection:
        events = connection.events()
        assert isinstance(events, Generator)
        with contextlib.closing(events):
            child = fencectl.spawn("wait", *arguments)
            for _ in events:
                if all(n_sync_files(connection, point) > 0 for point in points):
                    return child
    raise AssertionError("the broker went away")


def n_sync_files(connection: fb.Broker, point: str) -> int:
    try:
        row = read_row(*connection._lookup(point))
    except FileNotFoundError:
        return 0
    assert isinstance(row, FenceRow)
    return row.n_sync_files


# wait


def test_wait_prints_nothing_when_all_goes_well(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("wait", "camera0@6", "camera0@2")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_wait_returns_when_the_last_point_signals(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("a") as a:
        child = started_waiting(fencectl, broker, "a@1", "b@5", "-v")  # b does not exist yet
        a.advance(1)
        assert child.process.poll() is None
        with connection.create_timeline("b") as b:
            b.advance(5)
            result = end_of(child)
    assert (result.code, result.err) == (0, "")
    assert [line.split() for line in result.lines()] == [["a@1", "ok"], ["b@5", "ok"]]


def test_wait_for_any_returns_with_the_first(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("wait", "--any", "camera0@7", "camera0@6", "-v")
    assert result.code == 0
    assert [line.split() for line in result.lines()] == [["camera0@7", "active"], ["camera0@6", "ok"]]
    assert fencectl("wait", "--any", "camera0@6").code == 0


def test_wait_tells_why_a_point_failed_and_who_should_have_signalled(fencectl: Fencectl, scene: Scene) -> None:
    pid = scene.capture.pid
    child = fencectl.spawn("wait", "camera0@7")
    scene.do("timeline.fail(7, 5)")
    result = end_of(child)
    assert (result.code, result.one_error()) == (1, f"camera0@7 failed with EIO (Input/output error) (producer: pid {pid}, capture)")
    value = fencectl("wait", "camera0@7", "camera0@6", "--json")
    assert value.code == 1
    assert [(p["point"], p["status"], p["state"]) for p in value.json()["points"]] == [
        ("camera0@7", -5, "EIO"), ("camera0@6", 1, "ok"),
    ]  # fmt: skip
    assert value.json()["points"][0]["error"] == result.one_error()
    assert value.err.count("\n") == 1


def test_wait_learns_of_the_producers_death(fencectl: Fencectl, broker: BrokerProcess, scene: Scene) -> None:
    child = started_waiting(fencectl, broker, "camera0@9")
    scene.capture.kill()
    result = end_of(child)
    assert result.code == 1
    expected = f"camera0@9 will not be signalled as OK: its producer (pid {scene.capture.pid}, capture) died or closed the timeline"
    assert result.one_error() == expected


def test_wait_for_any_fails_only_when_nothing_was_ok(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("a") as a, connection.create_timeline("b") as b:
        a.fail(1, errno.ENODATA)
        failed = fencectl("wait", "--any", "a@1", "b@1")
        b.advance(1)
        mixed = fencectl("wait", "--any", "a@1", "b@1")
    assert failed.code == 1
    assert failed.one_error().startswith("a@1 failed with ENODATA")
    assert (mixed.code, mixed.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["camera0@7"], "camera0@7 did not signal within 0.05 s"),
        (["camera0@6", "camera0@8", "camera0@9"], "camera0@8, camera0@9 did not signal within 0.05 s"),
        (["--any", "camera0@8", "lens@9"], "camera0@8, lens@9 did not signal within 0.05 s"),
        ([f"lens@{n}" for n in range(8)], "lens@0, lens@1, lens@2, lens@3, lens@4 and 3 more did not signal within 0.05 s"),
    ],
)
def test_wait_gives_up_in_time(fencectl: Fencectl, scene: Scene, arguments: list[str], complaint: str) -> None:
    result = fencectl("wait", "--timeout", "0.05", *arguments)
    assert (result.code, result.one_error()) == (3, complaint)


def test_wait_can_only_ask(fencectl: Fencectl, scene: Scene) -> None:
    assert fencectl("wait", "camera0@6", "--timeout", "0").code == 0
    asked = fencectl("wait", "camera0@6", "camera0@7", "--timeout", "0", "--json")
    assert asked.code == 3
    assert [point["state"] for point in asked.json()["points"]] == ["ok", "active"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing argument 'NAME@N...'"),
        (["camera0"], "Invalid value for 'NAME@N...': point must look like 'camera0@7', not 'camera0'"),
        (["camera0@-1"], "Invalid value for 'NAME@N...': point must end in '@' and a seqno such as 'camera0@7', not 'camera0@-1'"),
        (["camera0@7", "nosuchuser0/x@1"], "Invalid value for 'NAME@N...': there is no user 'nosuchuser0' on this machine"),
        (["camera0@7", "--timeout", "soon"], "Invalid value for '--timeout': must be a number of seconds, 0 or more, not 'soon'"),
        (["camera0@7", "--timeout", "-1"], "Invalid value for '--timeout': must be a number of seconds, 0 or more, not '-1'"),
        (["camera0@7", "--timeout", "nan"], "Invalid value for '--timeout': must be a number of seconds, 0 or more, not 'nan'"),
        (["camera0@7", "--timeout", "inf"], "Invalid value for '--timeout': must be a number of seconds, 0 or more, not 'inf'"),
        (["--any", *(f"a@{n}" for n in range(1025))], "--any takes at most 1024 points, not 1025"),
    ],
)
def test_wait_refuses_what_makes_no_sense(fencectl: Fencectl, arguments: list[str], complaint: str) -> None:
    result = fencectl("wait", *arguments)
    assert (result.code, result.one_error()) == (2, f"{complaint} (see fencectl wait --help)")


def test_an_unknown_option_is_wrong_usage(fencectl: Fencectl) -> None:
    result = fencectl("wait", "camera0@7", "--nonsense")
    assert result.code == 2
    assert re.fullmatch(r"No such option:? '?--nonsense'? \(see fencectl wait --help\)", result.one_error())


@pytest.mark.parametrize("arguments", [["a@1"], ["--any", "a@1", "b@1"]])
def test_wait_notices_that_the_broker_was_killed(fencectl: Fencectl, broker: BrokerProcess, arguments: list[str]) -> None:
    child = started_waiting(fencectl, broker, *arguments)
    broker.kill()
    result = end_of(child)
    assert result.code == 4
    assert re.fullmatch(rf"the broker at {re.escape(broker.path)} went away(; .* may never signal)?", result.one_error())


def test_wait_hears_that_the_broker_stops(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = started_waiting(fencectl, broker, "a@1")
    broker.stop()
    result = end_of(child)
    assert (result.code, result.one_error()) == (1, "a@1 was cancelled")


def test_ctrl_c_ends_a_wait_without_a_word(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = started_waiting(fencectl, broker, "a@1")
    child.signal(signal.SIGINT)
    result = end_of(child)
    assert (result.code, result.out, result.err) == (130, "", "")


# advance


def test_advance_signals_in_place_of_the_producer(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("advance", "camera0", "7")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert fencectl("wait", "camera0@7", "--timeout", "0").code == 0
    assert fencectl("advance", "camera0", "9", "-v").out == "camera0 went from 7 to 9\n"
    assert fencectl("advance", "camera0", "8", "-v").out == "camera0 is at 9 already\n"
    assert fencectl("advance", "camera0", 2**64 - 1, "--json").json() == {
        "name": "camera0", "context": 1, "before": 9, "value": 2**64 - 1,
    }  # fmt: skip
    scene.do("assert broker._lookup('camera0')[1][3] == 2**64 - 1")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["lens", "1"], 1, "there is no timeline 'lens' here (or it is not yours to see)"),
        (["camera0"], 2, "Missing argument 'N' (see fencectl advance --help)"),
        (["camera0", "x"], 2, "Invalid value for 'N': must be a whole number between 0 and 2**64-1, not 'x' (see fencectl advance --help)"),
        (["camera0", "1.0"], 2, "Invalid value for 'N': must be a whole number between 0 and 2**64-1, not '1.0' (see fencectl advance --help)"),
        (["camera0", 2**64], 2, f"Invalid value for 'N': must be a whole number between 0 and 2**64-1, not '{2**64}' (see fencectl advance --help)"),
        (["a@b", "1"], 2, "Invalid value for 'NAME': name must be printable and free of '@', '/', ':' and '#', not 'a@b' (see fencectl advance --help)"),
        (["", "1"], 2, "Invalid value for 'NAME': name must not be empty; leave it out for a timeline without a name (see fencectl advance --help)"),
    ],
)  # fmt: skip
def test_advance_refuses_what_makes_no_sense(fencectl: Fencectl, scene: Scene, arguments: list[str], code: int, complaint: str) -> None:
    result = fencectl("advance", *arguments)
    assert (result.code, result.one_error()) == (code, complaint)
