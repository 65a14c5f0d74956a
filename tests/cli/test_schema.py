"""The JSON is what docs/fencectl.md says; the rows of the wire mean what their names say."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

import fencebroker as fb
from fencebroker.cli.command import Verb
from fencebroker.cli.main import verbs
from fencebroker.rows import FenceRow, SessionRow, SyncFileRow, TimelineRow, read_row
from tests.cli.conftest import Fencectl, Scene
from tests.helpers import eventfd_id

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess

PAGE: Final = (pathlib.Path(__file__).parents[2] / "docs" / "fencectl.md").read_text("utf-8")


def documented(name: str, *also: str) -> set[str]:
    """The keys of an object's table; those that only some answers have (*info*) when they are asked for."""
    section = PAGE.split(f"\n#### {name}\n", 1)[1].split("\n#### ", 1)[0]
    keys = set()
    for line in section.splitlines():
        cells = line.split("|")
        only = re.match(r" \*(\w+)\*", cells[2]) if len(cells) == 4 else None
        if len(cells) == 4 and "`" in cells[1] and (only is None or only[1] in also):
            keys |= set(re.findall(r"`([a-z0-9_]+)`", cells[1]))
    assert keys
    return keys


def written(verb: str) -> set[str]:
    """The keys in the table of verbs."""
    (line,) = re.findall(rf"^\| `{verb}` \| (.*) \|$", PAGE.split("\n## JSON\n", 1)[1].split("\n#### ", 1)[0], re.MULTILINE)
    return set(re.findall(r"`([a-z0-9_]+)`", re.sub(r"\([^)]*\)", "", line)))


def test_the_page_shows_the_examples_of_the_help_pages() -> None:
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    examples = {name: command.example for name, command in verbs().items() if isinstance(command, Verb)}
    assert set(blocks) == {example for name, example in examples.items() if name != "restart"}
    listed = re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| \[(.*?)\]", PAGE, re.MULTILINE)))
    assert sorted(listed) == sorted(examples)


def test_ls(fencectl: Fencectl, scene: Scene) -> None:
    kinds = ("timelines", "fences", "sync_files", "sessions")
    value = fencectl("ls", *kinds, "--json").json()
    assert list(value) == ["now_ns", *kinds]
    for kind in kinds:
        assert value[kind]
        for each in value[kind]:
            assert set(each) == documented(kind.removesuffix("s")), kind
    assert set(value["timelines"][0]["owner"]) == documented("process")
    assert 0 < value["now_ns"] - value["timelines"][0]["created_ns"] < 60e9
    assert set(fencectl("ls", "--json").json()) == {"now_ns", "timelines", "sync_files"}


@pytest.mark.parametrize("kind", ["timeline", "fence", "sync_file"])
def test_info(fencectl: Fencectl, scene: Scene, kind: str) -> None:
    value = fencectl("info", {"timeline": "camera0", "fence": "camera0@7", "sync_file": "5"}[kind], "--json").json()
    assert set(value) == {"now_ns", "kind", kind}
    assert value["kind"] == kind
    assert set(value[kind]) == documented(kind, "info")
    match kind:
        case "timeline":
            assert [set(fence) for fence in value[kind]["active_fences"]] == [documented("fence")]
            assert [holder["pid"] for holder in value[kind]["holders"]] == [scene.capture.pid]
        case "fence":
            assert value[kind]["members"] == []
            assert [carrier["name"] for carrier in value[kind]["carried_by"]] == ["frame-7"]
        case "sync_file":
            members = value[kind]["fence"]["members"]
            assert [(member["timeline"], member["seqno"], member["kind"]) for member in members] == [
                ("camera0", 7, "point"), ("lens", 1, "placeholder"),
            ]  # fmt: skip
            assert set(members[0]) == documented("fence", "info") - {"carried_by", "holders", "history"}


def test_status_and_wait_and_advance(fencectl: Fencectl, scene: Scene) -> None:
    assert set(fencectl("status", "--json").json()) == documented("status")
    waited = fencectl("wait", "camera0@6", "--json").json()
    assert set(waited) == written("wait")
    assert [set(point) for point in waited["points"]] == [documented("point")]
    assert set(fencectl("advance", "camera0", 6, "--json").json()) == written("advance")
    assert set(fencectl("chmod", "0600", "camera0", "--json").json()) == written("chmod")
    quotas = fencectl("quota", "--json").json()
    assert set(quotas) == written("quota")
    assert [set(quota) for quota in quotas["quotas"]] == [documented("quota")] * 7


def test_why_and_holders(fencectl: Fencectl, scene: Scene) -> None:
    value = fencectl("why", "#5", "--json").json()
    assert set(value) == written("why") == {"now_ns", *documented("graph")} - {"links"}
    assert [set(each) for each in value["processes"]] == [{"key", "how", "links"} | documented("seen")]
    assert {frozenset(each) for each in value["fences"]} == {frozenset({"key", "links"} | documented("fence"))}
    assert [set(each) for each in value["nobody"]] == [{"key", "why"}]
    held = fencectl("holders", scene.capture.pid, "--json").json()
    assert set(held) == written("holders")
    assert {frozenset(each) for each in held["holders"]} == {frozenset(documented("seen", "holders"))}
    assert {frozenset(each) for each in held["owners"]} == {frozenset(documented("seen", "owners"))}
    entries = fencectl("info", "camera0@7", "--json").json()["fence"]["history"]
    assert {frozenset(each) for each in entries} == {frozenset(documented("entry"))}


def test_stuck_and_leaks_and_stats_and_top(fencectl: Fencectl, scene: Scene) -> None:
    stuck = fencectl("stuck", "--older", "0", "--json").json()
    assert set(stuck) == written("stuck")
    assert {frozenset(each) for each in stuck["stuck"]} == {frozenset(documented("fence", "stuck"))}
    leaks = fencectl("leaks", "--older", "0", "--json").json()
    assert set(leaks) == written("leaks")
    assert {frozenset(each) for each in leaks["held"]} == {frozenset(documented("hoard"))}
    stats = fencectl("stats", "--json").json()
    assert set(stats) == written("stats")
    assert [set(each) for each in stats["timelines"]] == [documented("timeline", "stats")]
    top = fencectl("top", "-n", "1", "--every", "0.1", "--json").json()
    assert set(top) == written("top")
    assert [set(each) for each in top["timelines"]] == [documented("rate")]


def test_start_and_stop_and_restart_and_logs(users_own: Fencectl) -> None:
    assert set(users_own("start", "--user", "--json").json()) == written("start")
    restarted = users_own("restart", "--user", "--json").json()
    assert set(restarted) == written("start") | written("restart") - {"start", "stop"}
    stopped = users_own("stop", "--user", "--json").json()
    assert set(stopped) == set(restarted["stopped"]) == written("stop")
    assert set(json.loads(users_own("logs", "-n", "1", "--json").out)) == written("logs")


# Rows


def row(connection: fb.Broker, name: str) -> Any:
    return read_row(*connection._lookup(name))


def test_the_columns_of_the_wire_mean_what_they_are_called(broker: BrokerProcess) -> None:
    before = time.monotonic_ns()
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline("camera0", mode=0o640, expiry=50) as timeline,
        timeline.export(9, name="nine") as nine,
        timeline.export(3, name="three") as three,
        connection.merge([nine], name="same") as same,
        connection.sync_file("lens@4") as lens,
        connection.merge([nine, lens], name="both", when="any") as both,
    ):
        timeline.fail(3, errno.EIO)
        nine.set_deadline(before + 10**12)
        info = connection.info(nine)
        own = info.creator
        assert own is not None
        assert (own.pid, own.uid) == (os.getpid(), os.getuid())
        inode = int(re.findall(r"\d+", os.readlink(f"/proc/self/fd/{timeline._signaller.fileno()}"))[0])
        after = time.monotonic_ns()

        found: Any = row(connection, "camera0")
        assert isinstance(found, TimelineRow)
        assert before < found.created_ns < after
        assert found == TimelineRow(
            context=timeline.context, name="camera0", driver="fencebroker", value=3, highest=9, n_active=1, pid=own.pid, uid=own.uid,
            comm=own.comm, created_ns=found.created_ns, mode=0o640, expiry_ns=50 * 10**9, n_descriptors=1, creator_alive=True, inodes=(inode,),
            advanced_ns=found.advanced_ns, oldest_ns=found.oldest_ns, n_fences=2, n_signalled=0, n_failed=1, latencies=(),
        )  # fmt: skip
        assert found.oldest_ns is not None
        assert before < found.created_ns < found.oldest_ns < found.advanced_ns < after
        assert found.owner == own

        point: Any = row(connection, "camera0@9")
        assert isinstance(point, FenceRow)
        assert before < point.created_ns < after
        assert point == FenceRow(
            id=point.id, kind="point", n_sync_files=2, uid=own.uid, obj_name="camera0", driver_name="fencebroker", status=0, timestamp_ns=0,
            context=timeline.context, seqno=9, owner=own, created_ns=point.created_ns, deadline_ns=before + 10**12,
            expires_ns=point.created_ns + 50 * 10**9, timeline="camera0", timeline_uid=own.uid, members=(),
        )  # fmt: skip

        placeholder: Any = row(connection, "lens@4")
        assert (placeholder.kind, placeholder.seqno, placeholder.owner) == ("placeholder", 4, None)
        assert (placeholder.timeline, placeholder.timeline_uid, placeholder.obj_name) == ("lens", own.uid, "lens")
        merged = connection.info(both)
        array: Any = row(connection, f"{merged.context}:{merged.seqno}")
        assert (array.kind, array.members, array.timeline, array.timeline_uid) == ("any", (point.id, placeholder.id), None, None)

        failed: Any = row(connection, f"#{connection.info(three).id}")
        assert isinstance(failed, SyncFileRow)
        assert before < failed.created_ns < failed.timestamp_ns < after
        assert failed == SyncFileRow(
            id=connection.info(three).id, name="three", status=-errno.EIO, context=timeline.context, seqno=3, pid=own.pid, uid=own.uid,
            comm=own.comm, created_ns=failed.created_ns, timestamp_ns=failed.timestamp_ns, tampered=False, is_open=True,
            fence=row(connection, "camera0@3").id, kind="point", timeline="camera0", timeline_uid=own.uid,
            eventfd_id=eventfd_id(three.fileno()),
        )  # fmt: skip
        assert failed.creator == own
        assert row(connection, f"#{connection.info(same).id}").fence == row(connection, f"#{info.id}").fence == point.id

        (session,) = [read_row("session", columns) for columns in connection._listing("sessions")]
        assert isinstance(session, SessionRow)
        assert session.created_ns < found.created_ns
        assert session == SessionRow(
            id=session.id, pid=own.pid, uid=own.uid, comm=own.comm, n_sync_files=5, n_timelines=1, created_ns=session.created_ns
        )


def test_a_row_may_grow_and_may_not_shrink() -> None:
    columns = [1, 2, 3, "comm", 4, 5, 6]
    assert read_row("session", [*columns, "of tomorrow"]) == read_row("session", columns) == SessionRow(1, 2, 3, "comm", 4, 5, 6)
    with pytest.raises(ValueError, match=r"a session has 6 columns and should have 7; the broker is older"):
        read_row("session", columns[:-1])
