"""``stats`` and ``top``: numbers, and the screen in a real terminal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

import fencebroker as fb
from fencebroker.cli.top import Line, Sample, View, lines_of
from fencebroker.latency import bucket_of
from fencebroker.model import ProcessInfo
from fencebroker.rows import TimelineRow
from tests.cli.conftest import FENCECTL, Fencectl, Scene
from tests.helpers import LIMIT, not_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.helpers import BrokerProcess, StartBroker

SECOND: Final = 10**9


# stats


def test_stats_counts(fencectl: Fencectl, scene: Scene) -> None:
    table = [re.split(r" {2,}", line.strip()) for line in fencectl("stats").lines()]
    assert table[0] == ["TIMELINE", "VALUE", "FENCES", "OK", "FAILED", "ACTIVE", "OLDEST", "P50", "P99", "OWNER"]
    assert table[1][:6] == ["camera0", "6", "2", "1", "0", "1"]
    assert table[1][9] == f"{scene.capture.pid} capture"
    assert all(re.fullmatch(r"[\d.]+ m?s", cell) for cell in table[1][6:9])
    value = fencectl("stats", "camera0", "--json").json()["timelines"][0]
    assert (value["fences"], value["signalled"], value["failed"]) == (2, 1, 0)
    assert value["p50_ns"] == value["p99_ns"] > 0
    assert (
        fencectl("stats", "camra0").one_error() == "there is no timeline 'camra0' here (or it is not yours to see); did you mean camera0?"
    )


# What top computes


def timeline(context: int, name: str, **changes: Any) -> TimelineRow:
    row = TimelineRow(context, name, "d", 0, 0, 0, 100 + context, os.getuid(), name, 0, 0o600, None, 1, True, (), 0, None, 0, 0, 0, ())
    return row._replace(**changes)


def sample(at: float, *rows: TimelineRow) -> Sample:
    return Sample(int(at * SECOND), {row.context: row for row in rows})


def test_rates_and_latencies_are_of_the_last_looks() -> None:
    slow, fast = bucket_of(SECOND), bucket_of(10**6)
    before = timeline(1, "camera0", n_signalled=100, n_failed=2, latencies=(slow, 100))
    after = timeline(1, "camera0", n_signalled=160, n_failed=2, n_active=3, oldest_ns=11 * SECOND, latencies=(slow, 100, fast, 60))
    (line,) = lines_of([sample(10, before), sample(12, after)])
    assert (line.rate, line.active, line.oldest, line.errors, line.has_new_errors) == (30.0, 3, SECOND, 2, False)
    assert line.p50 == line.p99 == pytest.approx(10**6, rel=0.13)
    (line,) = lines_of([sample(10, before), sample(12, after._replace(n_failed=4))])
    assert (line.rate, line.errors, line.has_new_errors) == (31.0, 4, True)


def test_a_new_timeline_is_measured_since_it_was_made() -> None:
    (line,) = lines_of([sample(10), sample(12, timeline(1, "camera0", created_ns=11 * SECOND, n_signalled=5))])
    assert line.rate == 5.0
    (line,) = lines_of([sample(12, timeline(1, "camera0", created_ns=2 * SECOND))])
    assert (line.rate, line.p50) == (0.0, None)


def entry(name: str, rate: float, active: int) -> Line:
    return Line(1, name, rate, None, None, active, 0, 0, False, ProcessInfo(1, 0, "capture"), True)


def test_the_view_sorts_filters_and_pauses() -> None:
    lines = [entry("b", 1.0, 5), entry("a", 3.0, 5), entry("c", 2.0, 9)]
    view = View()

    def order(keys: str) -> str:
        for key in keys:
            view.press(key)
        return "".join(line.name for line in view.arrange(lines))

    assert order("") == "acb"
    assert order("r") == "bca"
    assert order("r") == "acb"
    assert order("a") == "cab"
    assert order("n") == "abc"
    assert order("n") == "cba"
    for key in ("/", "b", "enter"):
        view.press(key)
    assert order("") == "b"
    assert not view.is_typing
    view.press("escape")
    assert order("") == "cba"
    for key in ("/", "x", "backspace", "q", "escape"):
        view.press(key)
    assert (view.filter, view.is_over) == ("", False)
    view.press(" ")
    assert view.is_paused
    view.press("q")
    assert view.is_over


# Where there is no screen


def test_top_in_a_pipe_writes_tables(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("top", "-n", 2, "--every", "100ms")
    assert (result.code, result.err) == (0, "")
    lines = result.lines()
    assert lines[0].split() == lines[3].split() == ["TIMELINE", "RATE", "P50", "P99", "ACTIVE", "OLDEST", "ERRORS", "OWNER"]
    assert lines[1].split()[:5] == ["camera0", "0.0", "-", "-", "1"]
    values = [json.loads(line) for line in fencectl("top", "-n", 2, "--every", "0.1", "--json").lines()]
    assert [value["timelines"][0]["name"] for value in values] == ["camera0", "camera0"]
    assert fencectl("top", "--every", "1ms").code == 2
    assert fencectl("top", "-n", "0").code == 2


# On a screen


class Tmux:
    """One program in a real terminal."""

    def __init__(self, folder: str, arguments: list[str], env: Mapping[str, str | None], size: tuple[int, int]) -> None:
        self._socket = f"{folder}/tmux"
        words = [f"{name}={value}" for name, value in env.items() if value is not None]
        command = shlex.join(["env", "-u", "NO_COLOR", *words, FENCECTL, *arguments])
        # "wait-for" tells when the program has ended; the shell that follows keeps the screen.
        command += "; echo ended with $?; exec cat"
        self._run("-f", "/dev/null", "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), command)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *arguments], capture_output=True, text=True, timeout=LIMIT, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout

    def screen(self, *options: str) -> str:
        """What is on the screen now."""
        return self._run("capture-pane", "-p", *options)

    def press(self, *keys: str) -> None:
        """Press keys."""
        self._run("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def until(self, pattern: str, *options: str, act: Callable[[], None] = lambda: None) -> str:
        """Wait until the screen shows something; nothing tells when a screen changes, so it is looked at (after ``act``) until it does."""
        deadline = time.monotonic() + LIMIT
        while True:
            act()
            shown = self.screen(*options)
            if re.search(pattern, shown, re.MULTILINE):
                return shown
            state = self._run("display-message", "-p", "#{pane_width}x#{pane_height}, dead: #{pane_dead}, alternate: #{alternate_on}")
            assert time.monotonic() < deadline, f"no {pattern!r} on the screen ({state}):\n{shown}"

    def pid(self) -> int:
        """The program's pid: the child of the shell in the pane."""
        shell = self._run("display-message", "-p", "#{pane_pid}").strip()
        with open(f"/proc/{shell}/task/{shell}/children") as children:
            return int(children.read().split()[0])

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")


class StartTmux(Protocol):
    """The fixture ``tmux``: start fencectl in a terminal of its own."""

    def __call__(self, *arguments: str, env: Mapping[str, str | None], size: tuple[int, int] = (100, 24)) -> Tmux: ...


@pytest.fixture
def tmux(folder: str, cleanup: contextlib.ExitStack) -> StartTmux:
    if shutil.which("tmux") is None:
        not_run("tmux is not installed")

    def start(*arguments: str, env: Mapping[str, str | None], size: tuple[int, int] = (100, 24)) -> Tmux:
        terminal = Tmux(folder, list(arguments), env, size)
        cleanup.callback(terminal.close)
        return terminal

    return start


def work(timeline: fb.Timeline, seqno: int) -> None:
    """Export a point and signal it."""
    with timeline.export(seqno) as fence:
        timeline.advance(seqno)
        fence.wait(LIMIT)


def rows(shown: str) -> list[str]:
    """The names in the table."""
    lines = shown.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("TIMELINE"))
    return [line.split()[0] for line in lines[head + 1 :] if re.search(r" \d+ \w", line) and not line.startswith("sort")]


def test_top_on_a_screen(fencectl: Fencectl, broker: BrokerProcess, tmux: StartTmux) -> None:
    with fb.connect(broker.path) as connection, contextlib.ExitStack() as stack:
        camera, lens, idle = (stack.enter_context(connection.create_timeline(name)) for name in ("camera0", "lens", "idle"))
        stack.enter_context(lens.export(1))
        stack.enter_context(camera.export(1))
        stack.enter_context(camera.export(2))
        top = tmux("top", "--every", "100ms", env=broker.env)
        shown = top.until(r"^fencebrokerd \d+: 3 timelines, 3 active points")
        top.press("a")
        assert rows(top.until("ACTIVE▼")) == ["camera0", "lens", "idle"]
        top.press("a")
        assert rows(top.until("ACTIVE▲")) == ["idle", "lens", "camera0"]
        top.press("n")
        assert rows(top.until("TIMELINE▼")) == ["camera0", "idle", "lens"]
        # It is alive: what happens shows.
        seqnos = itertools.count(10)
        top.until(r"^camera0 +\d*[1-9.]+\d* +[\d.]+ m?s +[\d.]+ m?s ", act=lambda: work(camera, next(seqnos)))
        lens.fail(1, 5)
        top.until(r"^lens .* 1 +\d+ ")
        top.press("/", "c", "a", "m")
        top.until(r"^filter: cam_")
        top.press("Enter")
        assert rows(top.until(r"^filter: cam  sort:")) == ["camera0"]
        top.press("Escape")
        assert len(rows(top.until(r"^sort:"))) == 3
        top.resize(60, 10)
        shown = top.until(r"^sort: n r m l a o e w, again: turn round .*…$")
        assert max(map(len, shown.splitlines())) <= 60
        top.press("q")
        assert "ended with 0" in top.until("ended with")
        assert idle.value == 0


def test_top_in_colour_and_without(fencectl: Fencectl, scene: Scene, broker: BrokerProcess, tmux: StartTmux) -> None:
    top = tmux("top", "--every", "100ms", env=broker.env)
    assert "\x1b[1m" in top.until("camera0", "-e")
    os.kill(top.pid(), signal.SIGTERM)
    assert "ended with 143" in top.until("ended with")
    plain = tmux_again(top, broker)
    assert "camera0" in plain


def tmux_again(top: Tmux, broker: BrokerProcess) -> str:
    """The same without colour, in a window of its own."""
    command = shlex.join(
        ["env", "NO_COLOR=1", *(f"{name}={value}" for name, value in broker.env.items()), FENCECTL, "top", "--every", "0.1"]
    )
    top._run("new-window", command)
    shown = top.until("camera0", "-e")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)
    top.press("q")
    return shown


def test_top_waits_for_a_broker_that_goes_away(start_broker: StartBroker, folder: str, tmux: StartTmux) -> None:
    first = start_broker()
    with fb.connect(first.path) as connection, connection.create_timeline("before"):
        top = tmux("top", "--every", "100ms", env=first.env)
        top.until("^before")
        first.stop()
        assert "before" in top.until(r"^the broker went away at \d\d:\d\d:\d\d; waiting for the next one")
    second = start_broker(path=first.path)
    with fb.connect(second.path) as connection, connection.create_timeline("after"):
        shown = top.until("^after")
        assert "went away" not in shown
        top.press("q")
        top.until("ended with 0")


def test_a_timelines_name_cannot_move_the_cursor_of_top(broker: BrokerProcess, tmux: StartTmux) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("[bold]x 日本 \\x1b"):
        top = tmux("top", "--every", "100ms", env=broker.env)
        assert "[bold]x 日本 \\x1b" in top.until(r"\[bold\]")
        top.press("q")
        top.until("ended with 0")
