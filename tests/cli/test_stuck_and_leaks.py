"""``stuck`` and ``leaks``: what lasts too long, what was never closed, what nobody holds."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from tests.cli.conftest import Fencectl, Result, Scene
from tests.helpers import LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import BrokerProcess, Child


def cells(result: Result) -> list[list[str]]:
    assert (result.code, result.err) == (0, "")
    return [re.split(r" {2,}", line.strip()) for line in result.lines() if line]


# stuck


def test_stuck_names_the_owner_and_who_waits(fencectl: Fencectl, stage: Callable[..., Child]) -> None:
    camera, viewer = stage("camera"), stage("viewer", "camera@1")
    camera.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, camera.pid, os.WSTOPPED | os.WNOWAIT)
    table = cells(fencectl("stuck", "--older", "0s"))
    assert table[0] == ["POINT", "ACTIVE", "OWNER", "STATE", "TIMELINE", "WAITING"]
    assert [[row[0], row[2], row[3], row[5]] for row in table[1:]] == [
        ["camera@1", f"{camera.pid} camera", "stopped, SIGSTOP", f"{viewer.pid} viewer"],
        ["viewer@1", f"{viewer.pid} viewer", "asleep", "-"],
    ]
    value = fencectl("stuck", "--older", "0", "--json").json()
    assert [(each["timeline"], each["owners"][0]["stopped_by"], [w["pid"] for w in each["waiting"]]) for each in value["stuck"]] == [
        ("camera", signal.SIGSTOP, [viewer.pid]), ("viewer", None, []),
    ]  # fmt: skip


def test_stuck_sees_who_waits_through_a_merge_and_leaves_merges_out(fencectl: Fencectl, scene: Scene) -> None:
    assert [row[0] for row in cells(fencectl("stuck", "--older", "0s"))[1:]] == ["camera0@7", "lens@1 (no timeline)"]
    assert cells(fencectl("stuck", "--older", "1h")) == [["nothing is active for 60 min or longer"]]


@pytest.mark.parametrize("age", ["", "x", "-1", "2x", "inf", "nan", "1e99", "s"])
def test_an_age_must_be_one(fencectl: Fencectl, age: str) -> None:
    for verb in ("stuck", "leaks"):
        result = fencectl(verb, "--older", age)
        assert result.code == 2
        assert "must be a time such as 2s, 500ms, 5min or 1h" in result.one_error()


# leaks


def test_leaks_counts_what_a_process_should_have_closed(fencectl: Fencectl, scene: Scene) -> None:
    table = cells(fencectl("leaks", "--older", "0s"))
    assert table == [
        ["signalled and still held"],
        ["PROCESS", "DESCRIPTORS", "OLDEST", "NO RECORD", "OF"],
        [f"{scene.capture.pid} capture", "1", table[2][2], "0", "camera0@6"],
    ]
    assert cells(fencectl("leaks")) == [["no leaks of 60 s or older"]]
    value = fencectl("leaks", "--older", "0", "--json").json()
    assert [(each["pid"], len(each["fds"]), each["forgotten"]) for each in value["held"]] == [(scene.capture.pid, 1, 0)]
    assert (value["unheld"], value["reclaimed"]) == ([], [])


def test_what_nobody_holds_is_found_and_given_up(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(1) as kept:
        os.close(timeline.export(2, name="lost").detach())
        connection._status()  # what was given back is told by now
        table = cells(fencectl("leaks", "--older", "0s"))
        assert table[0] == ["active and held by nobody"]
        assert [row[1:4] + row[6:] for row in table[2:]] == [["lost", "active", "camera0@2", "given back"]]
        before = connection._status()
        result = fencectl("leaks", "--older", "0s", "--reclaim")
        assert result.lines()[-1] == "1 given up"
        after = connection._status()
        assert (before["sync_files"], after["sync_files"]) == (2, 1)
        assert (before["active_fences"], after["active_fences"]) == (2, 1)
        assert not kept.status()
        timeline.advance(2)
        kept.wait(LIMIT)


def test_a_holder_that_is_not_seen_does_not_hang(fencectl: Fencectl, broker: BrokerProcess) -> None:
    """A descriptor in the queue of a socket is held by nobody that can be seen."""
    import socket

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        with timeline.export(1) as fence:
            fb.send_sync_file(left, b"frame", fence)
        connection._status()
        assert fencectl("leaks", "--older", "0s", "--reclaim").lines()[-1] == "1 given up"
        _, received = fb.recv_sync_file(right)
        with received:
            assert received.status() < 0
            with pytest.raises(fb.FenceError, match="cancelled"):
                received.wait(1.0)
