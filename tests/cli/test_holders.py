"""``holders``, and what a process holds as a descriptor."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import fencebroker as fb
from tests.cli.conftest import Fencectl, Result, Scene, asleep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import BrokerProcess, Child, Spawn


def cells(result: Result) -> list[list[str]]:
    assert (result.code, result.err) == (0, "")
    return [re.split(r" {2,}", line.strip()) for line in result.lines() if line]


def test_who_holds_a_fence_and_how(fencectl: Fencectl, stage: Callable[..., Child]) -> None:
    camera, viewer = stage("camera"), stage("viewer", "camera@1")
    table = cells(fencectl("holders", "camera@1"))
    assert table[:3] == [["owners"], ["TIMELINE", "PROCESS", "STATE"], ["camera", f"{camera.pid} camera", "asleep"]]
    assert table[3:5] == [["holders"], ["PROCESS", "FD", "HOW", "ID", "NAME", "POINT", "STATUS", "AGE"]]
    found = {row[0]: (row[2], row[5], row[6]) for row in table[5:]}
    assert found == {
        f"{camera.pid} camera": ("holds", "camera@1", "active"),
        f"{viewer.pid} viewer": ("poll", "camera@1", "active"),
    }
    value = fencectl("holders", viewer.pid, "--json").json()
    assert [(each["pid"], each["how"], each["sync_file"]["timeline"]) for each in value["holders"] if each["how"] == "poll"] == [
        (viewer.pid, "poll", "camera")
    ]
    assert [(each["pid"], each["timeline"]) for each in value["owners"]] == [(viewer.pid, "viewer")]


def test_the_owner_is_whoever_holds_the_timeline_now(fencectl: Fencectl, spawn: Spawn) -> None:
    creator = spawn(
        """
        import os, sys
        import fencebroker as fb
        with fb.connect() as broker, broker.create_timeline("orphan") as timeline, timeline.export(1):
            with timeline.share() as shared:
                heir = os.fork()
                if not heir:
                    open("/proc/self/comm", "w").write("heir")
                    print(os.getpid(), flush=True)
                    sys.stdin.read()
                    os._exit(0)
                os.kill(os.getpid(), 9)
        """,
        env=fencectl.env,
    )
    heir = int(creator.line())
    assert creator.wait() == -9
    assert cells(fencectl("holders", "orphan"))[2] == ["orphan", f"{heir} heir", "asleep"]
    shown = fencectl("why", "orphan@1")
    assert f" <- {heir} heir (asleep)" in shown.lines()[0]


def test_an_epoll_set_is_seen_where_nobody_sleeps(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn) -> None:
    child = spawn(
        """
        import select, sys
        import fencebroker as fb
        with fb.connect() as broker, broker.sync_file("camera0@7") as fence, select.epoll() as epoll:
            epoll.register(fence.fileno(), select.EPOLLIN)
            print(fence.fileno(), flush=True)
            sys.stdin.read()
        """,
        env=fencectl.env,
    )
    fd = child.line()
    asleep(child, "pipe")
    (row,) = cells(fencectl("holders", child.pid))[2:]
    assert row[1:3] == [fd, "epoll set"]
    shown = fencectl("info", f"{child.pid}:{fd}")
    assert re.search(rf"held by +pid {child.pid}, .*, descriptor {fd}, in an epoll set", shown.out)


def test_every_copy_of_a_descriptor_counts(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline("camera0") as timeline,
        timeline.export(1, private=True) as fence,
    ):
        copy = os.dup(fence.fileno())
        try:
            value = fencectl("holders", "1", "--json").json()
        finally:
            os.close(copy)
        assert sorted(each["fd"] for each in value["holders"]) == sorted([fence.fileno(), copy])
        assert {each["pid"] for each in value["holders"]} == {os.getpid()}


def test_nobody_holds_it(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        with timeline.export(1, private=True) as fence:  # private: the producer keeps no copy
            os.close(os.dup(fence.fileno()))  # exposed: the broker keeps its copy
            id = connection.info(fence).id
        result = fencectl("holders", f"#{id}")
        assert [row for row in cells(result) if row[0].startswith("nobody")] == [["nobody that can be seen holds it"]]
    assert cells(fencectl("holders", os.getppid())) == [[cells(fencectl("holders", os.getppid()))[0][0]]]


def test_what_signalled_long_ago_is_known_by_its_count(fencectl: Fencectl, start_broker: Callable[..., BrokerProcess], folder: str) -> None:
    """A broker that keeps no record of what signalled; the descriptors carry their status all the same."""
    with open(f"{folder}/broker.toml", "w") as config:
        config.write("[limits]\nretained_records = 1\n")
    broker = start_broker("--config", f"{folder}/broker.toml")
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        numbers = [timeline.export(seqno).detach() for seqno in (1, 2, 3)]
        timeline.advance(1)
        timeline.fail(2, 5)
        timeline.advance(3)
        assert connection._status()["sync_files"] == 1
        try:
            held = fencectl("holders", os.getpid(), env=broker.env)
            value = fencectl("holders", os.getpid(), "--json", env=broker.env).json()
            shown = fencectl("info", f"/proc/{os.getpid()}/fd/{numbers[1]}", env=broker.env)
        finally:
            for number in numbers:
                os.close(number)
    assert held.lines()[-1].endswith(" also holds 2 that signalled so long ago that no record is left")
    assert value["forgotten"] == 2
    assert shown.one_error().endswith(" is a sync_file that has signalled (EIO), and no record of it is left")


# info PID:FD


def test_info_finds_what_a_descriptor_is(fencectl: Fencectl, scene: Scene, broker: BrokerProcess) -> None:
    value = fencectl("holders", scene.capture.pid, "--json").json()
    by_name = {each["sync_file"]["name"]: each["fd"] for each in value["holders"]}
    for target in (f"{scene.capture.pid}:{by_name['frame-7']}", f"/proc/{scene.capture.pid}/fd/{by_name['frame-7']}"):
        assert fencectl("info", target).lines()[0] == "sync_file 2"
    with fb.connect(broker.path) as connection, connection.create_timeline("mine") as timeline:
        descriptor = f"{os.getpid()}:{timeline._signaller.fileno()}"
        assert fencectl("info", descriptor).lines()[0] == "timeline mine"
    assert (
        fencectl("info", f"{scene.capture.pid}:0")
        .one_error()
        .startswith(
            f"there is no fence {scene.capture.pid}:0, and descriptor 0 of {scene.capture.pid} capture is no sync_file or timeline of this broker"
        )
    )
    assert fencectl("info", f"/proc/{scene.capture.pid}/fd/999").one_error() == f"descriptor 999 of {scene.capture.pid} capture is not open"


def test_info_tells_what_happened(fencectl: Fencectl, scene: Scene) -> None:
    scene.do("timeline.advance(7)")
    value = fencectl("info", "camera0", "--json").json()["timeline"]
    assert [(entry["what"], entry["seqno"]) for entry in value["history"]] == [
        ("created", 0), ("exported", 6), ("exported", 7), ("advanced", 6), ("advanced", 7),
    ]  # fmt: skip
    assert value["history"][1]["process"]["pid"] == scene.capture.pid
    shown = fencectl("info", "camera0@7").out
    assert re.search(r"history +.* ago: asked for\n +.* ago: a sync_file made, \d+ capture\n.*\n? *.* ago: signalled, ok", shown)
