"""The example pipeline as `make demo` runs it: real processes, real shared memory, a real film at the end."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image
from rich.console import Console

from examples.pipeline import clip, effect
from examples.pipeline.__main__ import conclude
from examples.pipeline.encode import GifFilm
from examples.pipeline.report import Report
from examples.pipeline.summary import Summary
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, complaints

_ROOT = Path(__file__).parents[2]
_MODULE = "examples.pipeline"
_STAGES = ("capture", "filter", "encode")
#: The whole demo, on a busy machine.
_PATIENCE = 4 * LIMIT


def _start(spawn: Spawn, *arguments: object) -> Child:
    return spawn([sys.executable, "-m", _MODULE, *map(str, arguments)], cwd=_ROOT)


def _finish(demo: Child) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a demo that ends by itself."""
    output = demo.rest(_PATIENCE)
    code = demo.wait()
    assert not complaints(demo.log()), demo.log()
    return code, output, demo.log()


def _torn(output: str) -> int:
    found = re.search(r"torn (\d+)$", output.strip().splitlines()[-1])
    assert found, output
    return int(found[1])


def test_no_frame_tears_and_the_film_holds_exactly_the_filtered_frames(spawn: Spawn, tmp_path: Path) -> None:
    code, output, log = _finish(_start(spawn, "--frames", 90, "--output", tmp_path / "demo.gif"))
    assert (code, log) == (0, "")
    assert _torn(output) == 0
    assert "90/90 frames, torn 0" in output, "the progress line"
    for stage in _STAGES:
        assert re.search(rf"{stage} +. (out-fence|release fence)", output), output
    assert "frames/s" in output

    # The same work in one process, without any sharing, must give the same file, byte for byte.
    film = GifFilm()
    frames = clip.load(clip.SHIPPED).frames
    for sequence in range(90):
        film.add(effect.neon(frames[sequence % len(frames)].pixels()))
    film.save(tmp_path / "expected.gif", 25)
    assert (tmp_path / "demo.gif").read_bytes() == (tmp_path / "expected.gif").read_bytes()
    with Image.open(tmp_path / "demo.gif") as picture:
        assert (picture.size, picture.format) == ((256, 144), "GIF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gif", "expected.gif"]


@pytest.mark.parametrize("buffers", [1, 2, 16])
def test_any_number_of_buffers_will_do(spawn: Spawn, tmp_path: Path, buffers: int) -> None:
    code, output, log = _finish(_start(spawn, "--frames", 40, "--buffers", buffers, "--output", tmp_path / "demo.gif"))
    assert (code, _torn(output), log) == (0, 0, "")


def test_without_the_waits_frames_tear(spawn: Spawn, tmp_path: Path) -> None:
    code, output, _ = _finish(_start(spawn, "--frames", 90, "--without-fences", "--output", tmp_path / "demo.gif"))
    assert _torn(output) > 0
    assert code == 0


def test_without_the_waits_frames_tear_on_a_single_core_too(spawn: Spawn, tmp_path: Path) -> None:
    one_core = """
        import os, runpy, sys
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    """
    demo = spawn(one_core, _MODULE, "--frames", 90, "--without-fences", "--output", str(tmp_path / "demo.gif"), cwd=_ROOT)
    code, output, _ = _finish(demo)
    assert _torn(output) > 0
    assert code == 0


@pytest.mark.parametrize(
    ("torn", "without_fences", "code", "complaint"),
    [
        (0, False, 0, ""),
        (3, False, 1, ""),
        (3, True, 0, ""),
        (0, True, 1, "this run proves nothing"),
    ],
)
def test_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: int, without_fences: bool, code: int, complaint: str
) -> None:
    """With fences nothing may tear; without them something must, or the check itself would be worth nothing."""
    film = tmp_path / "demo.gif"
    film.write_bytes(b"GIF89a")
    summary = Summary(10)
    for sequence in range(torn):
        summary.add(Report("filter", "torn", sequence=sequence))
        summary.add(Report("encode", "torn", sequence=sequence))  # the same frame, seen twice
    with pytest.raises(SystemExit) as verdict:
        conclude(Console(), summary, film, without_fences, None, 0)
    assert verdict.value.code == code
    output, log = capsys.readouterr()
    assert _torn(output) == torn
    assert complaint in log


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        ([("capture", errno.ENOENT), ("encode", errno.ENOENT)], 0),
        ([("capture", errno.ENOENT)], 1),
        ([("capture", 0), ("encode", 0)], 1),
    ],
)
def test_the_verdict_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str], seen: list[tuple[str, int]], code: int) -> None:
    """Every survivor must have noticed, and a closed socket alone is not what fences are for."""
    summary = Summary(10)
    for stage, error in seen:
        summary.add(Report(stage, "broken", "out-fence", 3, 2_000_000, error, "the fence failed"))
    with pytest.raises(SystemExit) as verdict:
        conclude(Console(), summary, tmp_path / "demo.gif", False, "filter", 1_000_000)
    assert verdict.value.code == code
    output, log = capsys.readouterr()
    assert "1.0 ms after the kill of filter" in output
    assert ("not in order" in log) == (code == 1)


def test_nothing_in_the_pipeline_sleeps() -> None:
    """What tears must tear by itself, and what waits must wait for a fence."""
    for path in (_ROOT / "examples/pipeline").glob("*.py"):
        assert not re.search(r"\bsleep\b", path.read_text()), path


@pytest.mark.parametrize(
    ("victim", "expected"),
    [
        ("capture", {"filter": "ENOENT", "encode": "ECANCELED"}),
        ("filter", {"capture": "ENOENT", "encode": "ENOENT"}),
        ("encode", {"filter": "ENOENT", "capture": "ECANCELED"}),
    ],
)
def test_the_death_of_a_stage_is_seen_by_the_others_at_once(spawn: Spawn, tmp_path: Path, victim: str, expected: dict[str, str]) -> None:
    path = tmp_path / "demo.gif"
    code, output, log = _finish(_start(spawn, "--kill", victim, "--output", path))
    assert (code, log) == (0, "")
    seen = {stage: (error, float(ms)) for stage, error, ms in re.findall(r"^(\w+) saw -(\w+) ([\d.]+) ms after", output, re.MULTILINE)}
    assert {stage: error for stage, (error, _) in seen.items()} == expected, output
    assert all(ms < 1000 * LIMIT for _, ms in seen.values())
    assert _torn(output) == 0
    assert path.exists() == (victim != "encode")
    assert sorted(tmp_path.iterdir()) == ([path] if path.exists() else [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_in_order(spawn: Spawn, tmp_path: Path, number: signal.Signals) -> None:
    demo = _start(spawn, "--frames", 3000, "--output", tmp_path / "demo.gif")
    assert "600/3000" in demo.line(_PATIENCE)  # all stages are at work
    children = psutil.Process(demo.pid).children(recursive=True)
    modules = " ".join(word for child in children for word in child.cmdline())
    assert all(f"{_MODULE}.{stage}" in modules for stage in _STAGES)
    _assert_unrelated(demo.pid, children)
    demo.signal(number)
    demo.rest()
    assert demo.wait() == 128 + number
    assert demo.log() == f"ended by {number.name}, with all stages and the broker\n"
    assert not [(child, child.cmdline()) for child in children if _is_alive(child)]
    assert list(tmp_path.iterdir()) == []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _assert_unrelated(launcher: int, children: list[psutil.Process]) -> None:
    """Check that each stage is a program of its own, and that its frames have no name that could be left behind."""
    own = os.getsid(launcher)
    for child in children:
        assert os.getsid(child.pid) != own
        for name in re.findall(r"/dev/shm/.*", Path(f"/proc/{child.pid}/maps").read_text()):
            assert name.endswith("(deleted)")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "demo.mp4"], ".gif"),
        (["--output", "/nowhere/demo.gif"], "/nowhere does not exist"),
        (["--frames", "0"], "--frames"),
        (["--frames", "many"], "--frames"),
        (["--buffers", "33"], "--buffers"),
        (["--kill", "camera"], "capture"),
        (["--kill", "filter", "--frames", "50"], "92 or more"),
        (["--kill", "filter", "--without-fences"], "--without-fences"),
        (["frames"], "unexpected extra argument"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(spawn: Spawn, tmp_path: Path, arguments: list[str], complaint: str) -> None:
    demo = spawn([sys.executable, "-m", _MODULE, *arguments], cwd=_ROOT)
    code, output, log = _finish(demo)
    assert (code, output) == (2, "")
    assert complaint in " ".join(log.split())


def test_help_names_every_option(spawn: Spawn) -> None:
    output = _start(spawn, "--help").finish()
    for option in ("--frames", "--buffers", "--output", "--without-fences", "--kill"):
        assert option in output


def test_a_stage_says_what_it_misses(spawn: Spawn, broker: BrokerProcess, folder: str, tmp_path: Path) -> None:
    """Each stage is a program that can be run alone, and complains in one line."""
    no_clip = tmp_path / "no-clip"
    no_clip.write_bytes(b"GIF89a")
    capture = f"{_MODULE}.capture"
    wrong = {
        "compressed with xz": ["--connect", f"{folder}/nobody", "--clip", str(no_clip)],
        "No such file": ["--connect", f"{folder}/nobody"],
        "Missing option '--connect'": [],
    }
    for complaint, arguments in wrong.items():
        child = spawn([sys.executable, "-m", capture, *arguments], cwd=_ROOT, env=broker.env)
        code, output, log = _finish(child)
        assert (code in (1, 2), output) == (True, "")
        assert complaint in log


def test_a_folder_with_too_long_a_path_is_named(spawn: Spawn, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    demo = spawn([sys.executable, "-m", _MODULE, "--output", str(tmp_path / "demo.gif")], cwd=_ROOT, env={"TMPDIR": str(folder)})
    code, output, log = _finish(demo)
    assert (code, output) == (1, "")
    assert "set TMPDIR to a shorter one" in log
    assert list(folder.iterdir()) == []
