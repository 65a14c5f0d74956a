"""trace and record: what happens, in lines and in a file that Perfetto opens."""

from __future__ import annotations

import collections
import errno
import json
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

import fencebroker as fb
from fencebroker.cli.chrome import Recording
from fencebroker.model import Event
from tests.cli.conftest import Fencectl, Scene, end_of
from tests.cli.test_schema import documented
from tests.helpers import LIMIT, is_readable

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess, Child

ROOT: Final = pathlib.Path(__file__).parents[2]
Records = list[dict[str, Any]]


# The file


class Trace:
    """A recording, checked as a viewer reads it."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.slices: dict[tuple[int, int], Records] = collections.defaultdict(list)
        self.tracks: dict[tuple[int, int], str] = {}
        for record in records:
            assert {"ph", "pid", "tid", "name"} <= record.keys(), record
            if record["ph"] == "M" and record["name"] == "thread_name":
                self.tracks[record["pid"], record["tid"]] = record["args"]["name"]
            elif record["ph"] == "X":
                self.slices[record["pid"], record["tid"]].append(record)
        self._check_slices()
        self._check_flows()

    def _check_slices(self) -> None:
        """Each lies on a track with a name, and none overlaps another."""
        assert self.slices.keys() <= self.tracks.keys()
        for slices in self.slices.values():
            slices.sort(key=lambda record: record["ts"])
            for record, following in zip(slices, [*slices[1:], None], strict=True):
                assert record["dur"] > 0
                if following is not None:
                    assert ns(record["ts"]) + ns(record["dur"]) <= ns(following["ts"])

    def _check_flows(self) -> None:
        """Each begins in a slice of an export, and if it ends, then in a slice of a timeline."""
        self.flows: dict[int, dict[str, str]] = collections.defaultdict(dict)
        for record in self.records:
            if record["ph"] in "sf":
                self.flows[record["id"]][record["ph"]] = self.enclosing(record)["name"]
        assert all("s" in ends for ends in self.flows.values())

    def enclosing(self, record: dict[str, Any]) -> dict[str, Any]:
        (found,) = [
            each
            for each in self.slices[record["pid"], record["tid"]]
            if ns(each["ts"]) <= ns(record["ts"]) < ns(each["ts"]) + ns(each["dur"])
        ]
        return found

    def signalled(self, track: str) -> dict[str, str]:
        """The points on a timeline's track, and how they ended."""
        return {
            point["point"]: point["state"]
            for key, slices in self.slices.items()
            if self.tracks[key] == track
            for record in slices
            if record["cat"] == "signal"
            for point in record["args"]["points"]
        }

    def counters(self, name: str) -> list[int]:
        counts = sorted((record for record in self.records if record["ph"] == "C" and record["name"] == name), key=lambda r: r["ts"])
        return [record["args"]["active"] for record in counts]

    @property
    def end(self) -> dict[str, int]:
        (record,) = [record for record in self.records if record.get("cat") == "end"]
        counts: dict[str, int] = record["args"]
        return counts


def ns(us: float) -> int:
    return round(us * 1000)


def load(path: pathlib.Path) -> Trace:
    return Trace(json.loads(path.read_text("ascii")))


def test_the_demo_with_every_frame_on_it(fencectl: Fencectl, tmp_path: pathlib.Path) -> None:
    """`fencectl record -o FILE -- make demo`, with fewer frames."""
    fencectl.cwd = ROOT
    demo = [sys.executable, "-m", "examples.pipeline", "--frames", "40", "--output", str(tmp_path / "demo.gif")]
    result = fencectl("record", "-o", tmp_path.joinpath("demo.json").as_posix(), "--", *demo, timeout=6 * LIMIT)
    assert (result.code, result.err) == (0, "")
    assert "torn 0" in result.out
    trace = load(tmp_path / "demo.json")
    for track in ("capture", "filter", "filter-release", "encode-release"):
        points = trace.signalled(track)
        assert points == {f"{track}@{n}": "ok" for n in range(1, 41)}
        assert max(trace.counters(f"{track}: active")) >= 1
        assert trace.counters(f"{track}: active")[-1] == 0
    assert trace.end["lost"] == 0
    assert trace.end["fences"] == trace.end["signalled"] == 160
    assert len(trace.flows) >= 160
    assert all("f" in ends for ends in trace.flows.values()), "an arrow that ends nowhere"


@pytest.fixture
def recording(fencectl: Fencectl, scene: Scene, tmp_path: pathlib.Path) -> Child:
    """A recording to ``camera0.json`` that has begun, with the scene's fences active before."""
    fencectl.cwd = tmp_path
    child = fencectl.spawn("record", "-o", "camera0.json", "--", "sh", "-c", "echo begun; read line")
    assert child.line() == "begun"
    return child


def test_what_was_active_before_and_what_comes(recording: Child, fencectl: Fencectl, scene: Scene, tmp_path: pathlib.Path) -> None:
    scene.do("timeline.export(9).close(); frames = timeline.export_many([8, 10])")
    scene.do("timeline.advance(8); timeline.fail(10, 5)")
    scene.do("[frame.close() for frame in frames]")
    recording.send("")
    result = end_of(recording)
    assert (result.code, result.err) == (0, "")
    trace = load(tmp_path / "camera0.json")
    assert trace.signalled("camera0") == {"camera0@7": "ok", "camera0@8": "ok", "camera0@10": "EIO"}
    assert sorted(ends["s"] for ends in trace.flows.values()) == ["camera0@8 ... camera0@10"] * 2 + ["camera0@9"]
    assert [ends.get("f") for ends in trace.flows.values()].count("camera0@10") == 1
    still = [record["name"] for slices in trace.slices.values() for record in slices if record["cat"] == "active"]
    assert len(still) == 2, "the merge and the point of a timeline that does not exist"
    assert any(name.startswith("lens@1") for name in still)
    assert trace.counters("active fences")[-1] == 2


def test_a_point_that_was_asked_for_before_its_timeline(recording: Child, scene: Scene, tmp_path: pathlib.Path) -> None:
    scene.do("early = broker.sync_file('mic@1'); mic = broker.create_timeline('mic'); mic.advance(1); early.close(); mic.close()")
    recording.send("")
    assert end_of(recording).code == 0
    trace = load(tmp_path / "camera0.json")
    assert trace.signalled("mic") == {"mic@1": "ok"}
    assert {"s": "mic@1", "f": "mic@1"} in trace.flows.values()


def test_record_tells_a_program(fencectl: Fencectl, scene: Scene, tmp_path: pathlib.Path) -> None:
    fencectl.cwd = tmp_path
    value = fencectl("record", "-o", "x.json", "--json", "--", "fencectl", "advance", "camera0", "7").json()
    took = value.pop("recorded_ns")
    assert 0 < took < 10 * LIMIT * 1e9
    assert value == {"file": "x.json", "events": 2, "fences": 3, "signalled": 1, "lost": 0}
    assert {key: value[key] for key in ("events", "fences", "signalled", "lost")} == load(tmp_path / "x.json").end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_recording_well(fencectl: Fencectl, broker: BrokerProcess, tmp_path: pathlib.Path, number: signal.Signals) -> None:
    fencectl.cwd = tmp_path
    child = fencectl.spawn("record", "-o", "x.json")
    with fb.connect(broker.path) as connection, connection.create_timeline("a") as timeline:
        deadline = time.monotonic() + LIMIT
        while not (tmp_path / "x.json").exists():  # it follows the events since before that
            assert time.monotonic() < deadline
            connection._status()
        with timeline.export(1):
            timeline.advance(1)
            connection._status()
        child.signal(number)
        result = end_of(child)
    assert (result.code, result.err) == (0, "")
    assert "x.json: " in result.out
    assert load(tmp_path / "x.json").signalled("a") == {"a@1": "ok"}


def test_a_command_that_fails_leaves_a_good_trace(fencectl: Fencectl, scene: Scene, tmp_path: pathlib.Path) -> None:
    fencectl.cwd = tmp_path
    result = fencectl("record", "-o", "x.json", "--", "sh", "-c", "fencectl advance camera0 7; exit 4")
    assert (result.code, result.err) == (1, "fencectl: sh ended with exit status 4\n")
    assert load(tmp_path / "x.json").signalled("camera0") == {"camera0@7": "ok"}


def test_a_broker_that_goes_leaves_a_good_trace(recording: Child, broker: BrokerProcess, tmp_path: pathlib.Path) -> None:
    broker.kill()
    recording.send("")
    result = end_of(recording)
    assert result.code == 4
    assert result.err == f"fencectl: the broker at {broker.path} went away\n"
    assert load(tmp_path / "camera0.json").end["signalled"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "Missing option '-o' / '--output' (see fencectl record --help)"),
        (["-o", "/nowhere/x.json"], 1, "/nowhere/x.json: No such file or directory"),
        (["-o", "/dev/full", "--", "true"], 1, "/dev/full: No space left on device"),
        (["-o", "/"], 2, "Invalid value for '-o' / '--output': File '/' is a directory (see fencectl record --help)"),
        (["-o", "/dev/null", "--"], 2, "Missing the command to run, after '--' (see fencectl record --help)"),
        (["-o", "/dev/null", "--", "no-such-program"], 1, "'no-such-program' cannot be run: No such file or directory"),
    ],
)
def test_record_refuses_what_makes_no_sense(fencectl: Fencectl, arguments: list[str], code: int, complaint: str) -> None:
    result = fencectl("record", *arguments)
    assert (result.code, result.one_error()) == (code, complaint)


# Lost events


def event(name: str, at: int, seqno: int, **more: Any) -> Event:
    values = {"context": 1, "timeline": "a", "driver": "fencebroker", "status": 0, "pid": 7, "uid": 0, "comm": "p", **more}
    return Event(name, at, seqno=seqno, **values)


def test_a_loss_is_marked_and_what_was_active_is_forgotten() -> None:
    records: Records = []
    recording = Recording(records.append)
    recording.event(event("dma_fence_init", 1000, 1))
    recording.event(event("dma_fence_emit", 1000, 1))
    recording.lost(7, 5000)
    recording.event(event("dma_fence_init", 6000, 2))
    recording.event(event("dma_fence_signaled", 9000, 2, status=1))
    recording.finish(10000)
    trace = Trace(records)
    assert [record["args"]["lost"] for record in records if record.get("cat") == "lost"] == [7]
    assert trace.end == {"events": 4, "fences": 2, "signalled": 1, "lost": 7}
    assert trace.counters("active fences") == [1, 0, 1, 0]
    assert trace.signalled("a") == {"a@2": "ok"}


def test_everything_at_one_moment_still_makes_a_trace() -> None:
    records: Records = []
    recording = Recording(records.append)
    for n in range(1, 4):
        recording.event(event("dma_fence_init", 1000, n))
        recording.event(event("dma_fence_emit", 1000, n))
    for n in range(1, 4):
        recording.event(event("dma_fence_signaled", 1000, n, status=-errno.EIO))
    recording.event(event("dma_fence_init", 1000, 9))
    recording.finish(1000)
    trace = Trace(records)
    assert trace.signalled("a") == {f"a@{n}": "EIO" for n in range(1, 4)}
    assert [ends["f"] for ends in trace.flows.values()] == ["a@1 ... a@3"] * 3


def slow_reader(broker: BrokerProcess, child: Child, n: int) -> None:
    """Stop the reader while more happens than fits on the way to it; not for so long that the broker gives it up."""
    os.kill(child.pid, signal.SIGSTOP)
    try:
        with fb.connect(broker.path) as connection, connection.create_timeline("many") as timeline:
            for first in range(1, n, 100):
                for fence in timeline.export_many(range(first, first + 100)):
                    fence.close()
                timeline.advance(first + 99)
            connection._status()
    finally:
        os.kill(child.pid, signal.SIGCONT)


def test_lost_events_are_counted_in_a_recording(recording: Child, broker: BrokerProcess, tmp_path: pathlib.Path) -> None:
    slow_reader(broker, recording, 2_000)
    recording.send("")
    result = end_of(recording)
    assert (result.code, result.err) == (0, "")
    trace = load(tmp_path / "camera0.json")
    assert trace.end["lost"] > 0
    assert f" {trace.end['lost']} events lost" in result.out
    assert trace.end["lost"] == sum(record["args"]["lost"] for record in trace.records if record.get("cat") == "lost")
    # 2,000 fences, each with init, emit, signaled, and most of them a destroy by now: nothing is missing that was not counted.
    assert trace.end["events"] + trace.end["lost"] >= 6_000
    assert trace.counters("active fences")[-1] == 3, "what is active was asked again after the loss"


# trace


def test_trace_shows_lines_of_the_kernels_form(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("trace", "--", "fencectl", "advance", "camera0", "7")
    assert (result.code, result.err) == (0, "")
    who = f"pid={scene.capture.pid} uid={os.getuid()} comm=capture"
    assert [line.partition(": ")[2] for line in result.lines()] == [
        f"sync_timeline: name=camera0 value=6 {who}",
        f"dma_fence_signaled: driver=fencebroker timeline=camera0 context=1 seqno=7 status=1 {who}",
    ]


def test_trace_for_programs(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("trace", "--json", "--", "fencectl", "fail", "camera0", "7", "EIO")
    lines = [json.loads(line) for line in result.lines()]
    assert all(line["lost"] == 0 and line["event"].keys() == documented("event") for line in lines)
    signalled = [line["event"] for line in lines if line["event"]["name"] == "dma_fence_signaled"]
    assert [(each["seqno"], each["status"], each["state"]) for each in signalled] == [(7, -5, "EIO")]


def test_trace_is_live_and_ends_with_ctrl_c(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = fencectl.spawn("trace")
    assert child.process.stdout is not None
    with fb.connect(broker.path) as connection, connection.create_timeline("a") as timeline:
        deadline = time.monotonic() + LIMIT
        while not is_readable(child.process.stdout.fileno()):  # until it has subscribed
            assert time.monotonic() < deadline
            timeline.inc()
            connection._status()
        assert "timeline" in child.line()
    child.signal(signal.SIGINT)
    result = end_of(child)
    assert (result.code, result.err) == (130, "")


def test_trace_says_what_was_lost(fencectl: Fencectl, scene: Scene, broker: BrokerProcess) -> None:
    child = fencectl.spawn("trace", "--", "sh", "-c", "echo begun; read line")
    assert child.line() == "begun"
    slow_reader(broker, child, 2_000)
    child.send("")
    result = end_of(child)
    lost = [int(line.split()[0]) for line in result.lines() if line.endswith("events were lost here: they came faster than they were read")]
    assert lost
    assert sum(lost) + len(result.lines()) - len(lost) >= 6_000


def test_a_command_of_trace_uses_the_broker_that_is_traced(alone: Fencectl, broker: BrokerProcess) -> None:
    result = alone("trace", "--socket", broker.path, "--", "fencectl", "create", "a", "--", "true")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[1] for line in result.lines()] == ["timeline_create:", "timeline_destroy:"]


def test_trace_says_that_the_broker_went(fencectl: Fencectl, broker: BrokerProcess) -> None:
    child = fencectl.spawn("trace", "--", "sh", "-c", "echo begun; read line")
    assert child.line() == "begun"
    broker.kill()
    child.send("")
    assert end_of(child).code == 4
