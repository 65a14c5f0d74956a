"""What there is, and everything about one thing."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Literal

import pytest

import fencebroker as fb
from tests.cli.conftest import Fencectl, Scene

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess, Spawn


def cells(lines: list[str]) -> list[list[str]]:
    """The cells of a plain table; two spaces separate them."""
    return [re.split(r" {2,}", line.strip()) for line in lines]


# ls


def test_ls_shows_timelines_and_sync_files(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("ls")
    assert (result.code, result.err) == (0, "")
    capture, encode = f"{scene.capture.pid} capture", f"{scene.encode.pid} encode"
    table = cells(result.lines())
    assert [row[:-1] for row in table if len(row) > 1] == [
        ["CONTEXT", "NAME", "VALUE", "ACTIVE", "OWNER"],
        ["1", "camera0", "6", "1", capture],
        ["ID", "NAME", "STATUS", "POINT", "CREATOR"],
        ["1", "frame-6", "ok", "camera0@6", capture],
        ["2", "frame-7", "active", "camera0@7", capture],
        ["5", "inputs", "active", "3:1 (all)", encode],
    ]
    assert [row for row in table if len(row) == 1] == [["timelines"], [""], ["sync_files"]]
    assert all(re.fullmatch(r"AGE|\d+ ms|\d\.\d s|\d+ s", row[-1]) for row in table if len(row) > 1)


def test_ls_of_one_kind_has_no_title(fencectl: Fencectl, scene: Scene) -> None:
    fences = cells(fencectl("ls", "fences").lines())
    assert [row[:4] for row in fences] == [
        ["FENCE", "POINT", "STATUS", "SYNC_FILES"],
        ["1:6", "camera0@6", "ok", "1"],
        ["1:7", "camera0@7", "active", "1"],
        ["2:1", "lens@1 (no timeline)", "active", "0"],
        ["3:1", "3:1 (all)", "active", "1"],
    ]
    sessions = cells(fencectl("ls", "sessions").lines())
    assert [row[1:4] for row in sessions[1:3]] == [[f"{scene.capture.pid} capture", "2", "1"], [f"{scene.encode.pid} encode", "1", "0"]]
    assert re.fullmatch(r"\d+ fencectl", sessions[3][1])
    assert len(sessions) == 4


def test_ls_with_nothing_to_show_says_so_by_its_heads_alone(fencectl: Fencectl) -> None:
    assert [line.split() for line in fencectl("ls").lines()] == [
        ["timelines"], ["CONTEXT", "NAME", "VALUE", "ACTIVE", "OWNER", "AGE"], [],
        ["sync_files"], ["ID", "NAME", "STATUS", "POINT", "CREATOR", "AGE"],
    ]  # fmt: skip


def test_ls_asks_for_every_page(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("many") as timeline:
        sync_files = timeline.export_many(range(1, 1001))
        found = fencectl("ls", "sync_files", "--json").json()["sync_files"]
        for sync_file in sync_files:
            sync_file.close()
    assert [each["seqno"] for each in found] == list(range(1, 1001))


def test_ls_marks_failures_unnamed_timelines_expiry_and_dead_creators(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn) -> None:
    creator = spawn(
        """
        import os, sys, time
        import fencebroker as fb
        with fb.connect() as broker, broker.create_timeline("orphan") as timeline:
            with timeline.share() as shared:
                holder = os.fork()
                if not holder:
                    print(os.getpid(), flush=True)
                    sys.stdin.read()  # holds ``shared`` until the test ends
                    os._exit(0)
                os.kill(os.getpid(), 9)
        """,
        env=broker.env,
    )
    holder = int(creator.line())
    assert creator.wait() == -9
    with fb.connect(broker.path) as connection, connection.create_timeline(expiry=100) as timeline:
        failed, kept = timeline.export(1, name="failed"), timeline.export(2, name="kept")
        timeline.fail(1, 5)
        assert not kept.check()
        own = f"{os.getpid()} "
        listed = cells(fencectl("ls", "timelines", "sync_files", "fences").lines())
        shown = fencectl("info", "orphan")
        failed.close()
        kept.close()
    assert listed[2][:4] == ["1", "orphan", "0", "0"]
    assert listed[2][4].startswith(f"{creator.pid} ")
    assert listed[2][4].endswith(" (gone)")
    assert listed[3][:4] == ["2", "-", "1", "1"]
    assert listed[3][4].startswith(own)
    by_name = {row[1]: row for row in listed if len(row) > 1}
    assert by_name["failed"][2:4] == ["EIO", "2:1"]
    assert by_name["kept"][2:4] == ["active", "2:2"]
    fence = next(row for row in listed if row[:2] == ["2:2", "2:2"])
    assert re.fullmatch(r"9\d s|100 s|2 min", fence[-1]), fence
    assert "that process is gone; the timeline lives on in other hands" in shown.out
    assert re.search(rf"held by +pid {holder}, ", shown.out)


def test_ls_says_when_somebody_wrote_to_a_sync_file(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(1, name="mine") as fence:
        os.eventfd_write(fence.fileno(), 7)
        connection.info(fence.fileno())  # the broker looks at it when it is shown
        listed = fencectl("ls", "sync_files")
        shown = fencectl("info", "1")
        value = fencectl("info", "1", "--json").json()["sync_file"]
    assert "active (tampered)" in listed.out
    assert "somebody who holds the descriptor wrote to it" in shown.out
    assert (value["tampered"], value["status"], value["state"]) == (True, 0, "active")


def listed(fencectl: Fencectl, *arguments: str) -> list[str]:
    """The first or the second cell of what is listed: names and points."""
    result = fencectl("ls", *arguments)
    assert (result.code, result.err) == (0, "")
    return [row[1] for row in cells(result.lines())[1:]]


def test_ls_lists_what_is_asked_for(fencectl: Fencectl, scene: Scene) -> None:
    own = str(os.getuid())
    for arguments, found in (
        (["--state", "active"], ["camera0@7", "lens@1 (no timeline)", "3:1 (all)"]),
        (["--state", "OK"], ["camera0@6"]),
        (["--state", "ENOENT"], []),
        (["--name", "camera*"], ["camera0@6", "camera0@7"]),
        (["--name", "lens@1"], ["lens@1 (no timeline)"]),
        (["--pid", str(scene.capture.pid)], ["camera0@6", "camera0@7"]),
        (["--user", own, "--name", "*@7"], ["camera0@7"]),
        (["--user", "65533"], []),
        (["--older", "1h"], []),
        (["--newer", "1h", "--state", "ok"], ["camera0@6"]),
    ):
        assert listed(fencectl, "fences", *arguments) == found, arguments
    assert listed(fencectl, "timelines", "--state", "active") == ["camera0"]
    assert listed(fencectl, "timelines", "--state", "failed") == []
    assert listed(fencectl, "sync_files", "--name", "frame-?", "--state", "active") == ["frame-7"]
    assert listed(fencectl, "sessions", "--name", "enc*") == [f"{scene.encode.pid} encode"]
    scene.do("timeline.fail(7, 5)")
    assert listed(fencectl, "fences", "--state", "failed") == ["camera0@7"]
    assert listed(fencectl, "timelines", "--state", "failed") == ["camera0"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--state", "enoen"], "must be active, ok, failed or the name of an errno, not 'enoen'; did you mean enoent"),
        (["--user", "nosuchuser0"], "there is no user 'nosuchuser0' on this machine"),
        (["--pid", "x"], "not a valid integer"),
        (["--older", "x"], "must be a time such as 2s, 500ms, 5min or 1h, not 'x'"),
        (["sessions", "--state", "ok"], "sessions have no state"),
    ],
)
def test_ls_refuses_what_selects_nothing(fencectl: Fencectl, arguments: list[str], complaint: str) -> None:
    result = fencectl("ls", *arguments)
    assert result.code == 2
    assert complaint in result.one_error()


# info


def values(result: Any) -> dict[str, list[str]]:
    """The facts of an info: name -> lines."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in result.lines()[1:]:
        start = re.match(r"  \S.*?  +", result.lines()[1])
        assert start is not None
        name = line[: start.end()].strip() or name
        found.setdefault(name, []).append(line[start.end() :])
    return found


def test_info_on_a_timeline(fencectl: Fencectl, scene: Scene) -> None:
    for target in ("camera0", "1:"):
        result = fencectl("info", target)
        assert result.lines()[0] == "timeline camera0"
        found = values(result)
        assert found["context"] == ["1"]
        assert re.fullmatch(r"6, since .*", found["value"][0])
        assert found["highest export"] == ["7"]
        assert re.fullmatch(r"7, asked for .* ago, 1 sync_file", found["active points"][0])
        assert found["created by"][0].startswith(f"pid {scene.capture.pid}, capture, ")
        assert found["held by"][0].startswith(f"pid {scene.capture.pid}, capture, ")
        assert found["mode"] == ["0600"]


def test_info_on_a_fence(fencectl: Fencectl, scene: Scene) -> None:
    for target in ("camera0@7", "1:7", f"{os.getuid()}/camera0@7"):
        result = fencectl("info", target)
        found = values(result)
        assert result.lines()[0] == "fence camera0@7"
        assert found["fence"] == ["1:7"]
        assert found["status"][0].startswith("active for ")
        assert found["owner"][0].startswith(f"pid {scene.capture.pid}, capture, ")
        assert found["sync_files"][0].startswith(f"2, frame-7, pid {scene.capture.pid}, capture, ")
    assert values(fencectl("info", "camera0@6"))["status"][0].startswith("ok, ")


@pytest.mark.parametrize("target", ["5", "#5"])
def test_info_on_a_merge_shows_what_it_waits_for(fencectl: Fencectl, scene: Scene, target: str) -> None:
    found = values(fencectl("info", target))
    assert found["name"] == ["inputs"]
    assert found["carries"] == ["3:1 (all)"]
    assert re.fullmatch(rf"camera0@7, active, pid {scene.capture.pid}, capture, \S+", found["waits for"][0])
    assert found["waits for"][1:] == ["lens@1 (no timeline), active"]
    scene.do("timeline.advance(7)")
    assert values(fencectl("info", target))["waits for"][0] == "camera0@7, ok"


def test_info_on_a_point_that_is_waited_for_before_its_timeline_exists(fencectl: Fencectl, scene: Scene) -> None:
    for target in ("lens@1", "2:1"):
        assert fencectl("info", target).lines()[0] == "fence lens@1 (no timeline)"


def test_info_draws_merges_of_merges_each_once(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path))
        timelines = [stack.enter_context(connection.create_timeline(name)) for name in "abc"]
        a, b, c = (stack.enter_context(timeline.export(1)) for timeline in timelines)
        some = stack.enter_context(connection.merge([a, b], when="any"))
        every = stack.enter_context(connection.merge([some, c]))
        either = stack.enter_context(connection.merge([every, a], when="any"))
        top = stack.enter_context(connection.merge([some, either], name="top"))
        id = connection.info(top).id
        result = fencectl("info", id)
        tree = fencectl("info", id, "--json").json()["sync_file"]["fence"]
    lines = [re.sub(r", pid .*", "", line) for line in values(result)["waits for"]]
    assert lines == [
        "4:1 (any), active",
        "├─ a@1, active",
        "└─ b@1, active",
        "6:1 (any), active",
        "├─ a@1, active",
        "└─ 5:1 (all), active",
        "   ├─ c@1, active",
        "   └─ 4:1 (any), active, see above",
    ]
    repeated = tree["members"][1]["members"][1]["members"][1]
    assert (repeated["context"], repeated["members"]) == (4, None)
    assert tree["members"][0]["members"][0]["members"] == []


def test_info_is_not_drowned_by_nesting(fencectl: Fencectl, broker: BrokerProcess) -> None:
    """Each level waits for the one below twice: written out in full it would be 2**100 lines, and 100 levels deep."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path))
        kinds: tuple[Literal["all", "any"], ...] = ("any", "all")
        points = []
        for i in range(3):
            timeline = stack.enter_context(connection.create_timeline(f"t{i}"))
            points.append(stack.enter_context(timeline.export(1)))
        top = points[0]
        for level in range(100):
            sides = [stack.enter_context(connection.merge([top, point], when=kinds[level % 2])) for point in points[1:]]
            top = stack.enter_context(connection.merge(sides, when=kinds[(level + 1) % 2]))
        id = connection.info(top).id
        result = fencectl("info", id)
        value = fencectl("info", id, "--json")
    assert (result.code, value.code) == (0, 0)
    assert 30 < len(result.lines()) < 500
    assert "see above" in result.out
    assert "further down" in result.out


def test_info_on_a_point_without_a_record_says_how_the_timeline_stands(fencectl: Fencectl, scene: Scene) -> None:
    for target, complaint in (
        ("camera0@3", "camera0@3 has signalled and is no longer on record: the timeline is at 6"),
        ("camera0@44", "camera0@44 was not exported yet, and nobody waits for it: the timeline is at 6"),
        ("lens@2", "nobody waits for lens@2, and there is no timeline of that name (or it is not yours to see)"),
        ("nobody", "there is no 'nobody' here (or it is not yours to see)"),
        ("99", "there is no '#99' here (or it is not yours to see)"),
        ("99:", "there is no timeline with the context 99 here (or it is not yours to see)"),
        ("0:", "there is no timeline with the context 0 here (or it is not yours to see)"),
        ("99999999:9", "there is no fence 99999999:9 here (or it is not yours to see), and no process 99999999"),
    ):
        result = fencectl("info", target)
        assert (result.code, result.one_error()) == (1, complaint)


@pytest.mark.parametrize(
    "target",
    ["", "a:b", "#x", "#", ":7", "1:7:8", "a@", "a@x", "@1", "a@-1", "a@" + "9" * 21, "1:" + "9" * 20, "#" + "9" * 30, "x" * 256, "a\nb",
     "nosuchuser0/x", "nosuchuser0/x@1", "a/b/c", "\udcff"],
)  # fmt: skip
def test_info_refuses_what_names_nothing(fencectl: Fencectl, target: str) -> None:
    result = fencectl("info", target)
    assert result.code == 2
    assert re.search(r" \(see fencectl info --help\)$", result.one_error())


def test_a_number_may_be_a_timelines_name(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("1") as timeline, timeline.export(1):
        assert fencectl("info", "1").lines()[0] == "timeline 1"
        assert fencectl("info", "#1").lines()[0] == "sync_file 1"
        assert fencectl("info", "2").code == 1


# info --debugfs


def test_debugfs_is_the_kernels_text(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("info", "--debugfs")
    assert (result.code, result.err) == (0, "")
    assert re.sub(r"@\d+\.\d{9}", "@T", result.out) == (
        "objs:\n--------------\n"
        "camera0: 6\n  fence active: 7 / 6\n\n"
        "fences:\n--------------\n"
        "[0000000000000001] frame-6: signaled\n  camera0_fence signaled@T: 6 / 6\n\n"
        "[0000000000000002] frame-7: active\n  camera0_fence active: 7 / 6\n\n"
        "[0000000000000005] inputs: active\n  camera0_fence active: 7 / 6\n  lens_fence active: 1\n\n"
    )


@pytest.mark.parametrize("arguments", [["--debugfs", "camera0"], ["--debugfs", "--json"], []])
def test_debugfs_is_instead_of_one_thing(fencectl: Fencectl, arguments: list[str]) -> None:
    result = fencectl("info", *arguments)
    assert (result.code, result.out) == (2, "")
    assert "--debugfs" in result.err
