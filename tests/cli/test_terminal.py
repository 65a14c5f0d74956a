"""What reaches a terminal, a pipe, a file: nothing odd, nothing too wide, nothing coloured where it should not be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import unicodedata
from typing import TYPE_CHECKING, Final

import pytest

import fencebroker as fb
from fencebroker.cli.render import Column, Table, facts, lines, span, state
from fencebroker.model import printable
from tests.cli.conftest import FENCECTL, Fencectl, Scene, Terminal
from tests.helpers import complaints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import BrokerProcess, Spawn

COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
#: Names that a sync_file may have: what would colour, move, retitle, ring, or turn the reading direction.
HOSTILE: Final = (
    "\x1b[31mred",
    "a\rb\nc",
    "\x1b]0;title\x07",
    "\x9b2J\x7f",
    "\u202eevil\u2066",
    "zero\u200bwidth",
    "\ufeff\u00a0x",
    "日本語カメラ",
)


@pytest.fixture
def hostile(broker: BrokerProcess, spawn: Spawn) -> Iterator[None]:
    """Things with names as odd as they may be: sync_files of any name, a printable timeline, and a process called ESC[5m."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path))
        timeline = stack.enter_context(connection.create_timeline("カメラ🎥é\u0301 \\x1b"))
        for n, name in enumerate(HOSTILE, 1):
            stack.enter_context(timeline.export(n, name=name))
        child = spawn(
            """
            import sys
            import fencebroker as fb
            open("/proc/self/comm", "wb").write(b"\\x1b[5m\\xff\\n")
            with fb.connect() as broker, broker.create_timeline():
                print("ready", flush=True)
                sys.stdin.read()
            """,
            env=broker.env,
        )
        assert child.line() == "ready"
        yield


SEEING: Final = (
    ("why", "#1"), ("why", "#1", "--dot"), ("holders", "#1"), ("stuck", "--older", "0"), ("leaks", "--older", "0"), ("stats",),
    ("top", "-n", "1", "--every", "100ms"),
)  # fmt: skip
VIEWS: Final = (
    ("ls",),
    ("ls", "fences", "sessions"),
    ("info", "1"),
    ("info", "カメラ🎥é\u0301 \\x1b"),
    ("info", "1:1"),
    ("status",),
    *SEEING,
)


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_no_name_gets_through_to_a_pipe(fencectl: Fencectl, hostile: None, view: tuple[str, ...]) -> None:
    result = fencectl(*view)
    assert result.code == 0
    assert all(line.isprintable() for line in result.lines())
    if "--dot" in view:
        return
    value = fencectl(*view, "--json")
    assert re.fullmatch(r"[\n -~]*", value.out)


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_no_name_gets_through_to_a_terminal(terminal: Terminal, hostile: None, view: tuple[str, ...]) -> None:
    shown = COLOURS.sub("", terminal(*view, columns=120))
    assert all(line.isprintable() for line in shown.split("\n"))


def test_odd_names_are_shown_and_kept(fencectl: Fencectl, hostile: None) -> None:
    out = fencectl("ls").out
    for name in (
        "\\x1b[31mred",
        "a\\rb\\nc",
        "\\x1b]0;title\\x07",
        "\\x9b2J\\x7f",
        "\\u202eevil\\u2066",
        "日本語カメラ",
        "カメラ🎥é\u0301 \\x1b@1",
    ):
        assert name in out
    assert "[5m" in out  # the process; the broker, too, keeps what is not printable to itself
    assert [each["name"] for each in fencectl("ls", "--json").json()["sync_files"]] == list(HOSTILE)


def test_columns_line_up_for_wide_and_combining_characters(fencectl: Fencectl, hostile: None) -> None:
    lines = fencectl("ls", "sync_files").lines()
    starts = {
        sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in re.split("active|STATUS", line)[0])
        for line in lines
    }
    assert len(starts) == 1


@pytest.mark.parametrize(
    "arguments", [["info", "\x1b[31mx"], ["info", "\x1b[31m"], ["wait", "\x1b[31m"], ["advance", "x", "\x1b[31m"], ["\x1b[31m"], ["ls", "--\x1b"],
                  ["ls", "\u202e"], ["status", "--socket", "/\x1b[31m\n/x"]],
)  # fmt: skip
def test_no_argument_gets_through_to_the_error(fencectl: Fencectl, arguments: list[str]) -> None:
    result = fencectl(*arguments)
    assert result.code in {1, 2, 4}
    assert result.one_error().isprintable()


def test_escaping() -> None:
    assert printable("plain, ünïcode, 日本, 🎥") == "plain, ünïcode, 日本, 🎥"
    assert printable("\x1b[0m\n\t\x00\x7f\x9b\u202e\ud800\U000e0001") == r"\x1b[0m\n\t\x00\x7f\x9b\u202e\ud800\U000e0001"


# Words


@pytest.mark.parametrize(
    ("ns", "words"),
    [(-5, "0 ms"), (0, "0 ms"), (1_500_000, "2 ms"), (999_000_000, "999 ms"), (4_230_000_000, "4.2 s"), (42 * 10**9, "42 s"),
     (100 * 10**9, "2 min"), (90 * 60 * 10**9, "90 min"), (5 * 3600 * 10**9, "5 h"), (72 * 3600 * 10**9, "3 d")],
)  # fmt: skip
def test_times_are_said_as_a_person_says_them(ns: int, words: str) -> None:
    assert span(ns) == words


def test_states_are_words() -> None:
    assert [state(status) for status in (0, 1, -2, -110, -4095)] == ["active", "ok", "ENOENT", "ETIMEDOUT", "error 4095"]


def as_lines(table: Table, width: int | None) -> list[str]:
    return list(lines([table], width, lambda text, style: text))


def test_a_table_gives_way_where_it_may() -> None:
    columns = (Column("ID", right=True), Column("NAME", shrinks=True), Column("POINT", shrinks=True))
    table = Table("", columns, [("1", "a" * 30, "b" * 10), ("22", "日本" * 5, "-")])
    assert as_lines(table, None) == [
        "ID  NAME                            POINT",
        " 1  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  bbbbbbbbbb",
        "22  日本日本日本日本日本            -",
    ]
    assert as_lines(table, 26) == ["ID  NAME        POINT", " 1  aaaaaaaaa…  bbbbbbbbbb", "22  日本日本…   -"]
    assert as_lines(table, 12) == ["ID  NA…  PO…", " 1  aa…  bb…", "22  日…  -"]


def test_a_fact_goes_on_in_the_next_line() -> None:
    table = facts("t", [("name", "日本語カメラ"), ("none", ""), ("two", ["one", "other"])])
    assert as_lines(table, 13) == ["t", "  name  日本", "        語カ", "        メラ", "  none", "  two   one", "        other"]
    assert as_lines(table, 4)[-1].strip()  # absurd, and still the end of it


# The terminal


def test_a_terminal_gets_colours_and_a_pipe_none(fencectl: Fencectl, terminal: Terminal, scene: Scene) -> None:
    assert COLOURS.search(terminal("ls"))
    assert not COLOURS.search(fencectl("ls").out)
    assert not COLOURS.search(fencectl("ls", env={"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}).out)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_no_colour_means_none(terminal: Terminal, scene: Scene, env: dict[str, str]) -> None:
    shown = terminal("ls", "fences", "sync_files", "timelines", "sessions", env=env)
    assert "\x1b" not in shown
    assert "camera0@7" in shown


def test_an_empty_no_color_means_nothing(terminal: Terminal, scene: Scene) -> None:
    assert COLOURS.search(terminal("ls", env={"NO_COLOR": ""}))


def test_json_is_the_same_on_a_terminal(terminal: Terminal, scene: Scene) -> None:
    assert json.loads(terminal("ls", "--json"))["timelines"][0]["name"] == "camera0"


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
@pytest.mark.parametrize(
    "view",
    [
        ("ls",),
        ("ls", "fences", "sessions"),
        ("info", "1"),
        ("info", "12345"),
        ("status",),
        *(view for view in SEEING if "--dot" not in view),
    ],
    ids=" ".join,
)
def test_no_line_is_wider_than_the_terminal(broker: BrokerProcess, terminal: Terminal, columns: int, view: tuple[str, ...]) -> None:
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline("12345") as timeline,
        connection.create_timeline("w" * 255) as wide,
        timeline.export(1, name="日本語カメラ"),
        wide.export(2, name="x" * 31),
    ):
        shown = COLOURS.sub("", terminal(*view, columns=columns, env={"TERM": "dumb"} if columns == 60 else None))
    widths = [sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line.rstrip()) for line in shown.split("\n")]
    assert max(widths) <= columns
    if view == ("ls",):
        assert "…" in shown
        assert ("w" * 255 in shown) is False


def test_columns_can_be_asked_for(broker: BrokerProcess, terminal: Terminal, scene: Scene) -> None:
    assert max(map(len, COLOURS.sub("", terminal("ls", columns=200, env={"COLUMNS": "40"})).split("\n"))) <= 40


def test_a_pipe_gets_names_in_full(broker: BrokerProcess, fencectl: Fencectl) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("w" * 255):
        assert "w" * 255 in fencectl("ls", env={"COLUMNS": "40"}).out


def test_info_folds_where_ls_cuts(broker: BrokerProcess, terminal: Terminal) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("w" * 255):
        shown = COLOURS.sub("", terminal("info", "1:", columns=50))
    assert re.sub(r"[^w]", "", shown).count("w") >= 255


# Readers that go, and places that are full


def run_with_output(arguments: list[str], output: int, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [FENCECTL, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, env={**os.environ, **env}, text=True,
        timeout=20, check=False,
    )  # fmt: skip
    assert not complaints(done.stderr), done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments", [["ls"], ["ls", "sync_files", "--json"], ["--help"], ["ls", "--help"], ["--version"], ["status"], ["wait", "many@1", "-v", "--timeout", "0"]],
)  # fmt: skip
def test_a_reader_that_goes_is_no_error(broker: BrokerProcess, arguments: list[str]) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("many") as timeline:
        sync_files = timeline.export_many(range(1, 1001))  # more than a pipe or a buffer holds
        timeline.advance(1)
        ours, theirs = os.pipe()
        os.close(ours)
        try:
            assert run_with_output(arguments, theirs, broker.env) == (141, "")
        finally:
            os.close(theirs)
            for sync_file in sync_files:
                sync_file.close()


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["status"]])
def test_a_full_disk_is_said_once(broker: BrokerProcess, arguments: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    try:
        code, err = run_with_output(arguments, full, broker.env)
    finally:
        os.close(full)
    assert (code, err) == (1, "fencectl: the output could not be written: No space left on device\n")


def test_closed_standard_streams_harm_nobody(broker: BrokerProcess) -> None:
    env = {**os.environ, **broker.env}
    for command, code in (('"$1" ls >&-', 0), ('"$1" ls <&- >&- 2>&-', 0), ('"$1" info nobody 2>&-', 1), ('"$1" status --json <&-', 0)):
        done = subprocess.run(["sh", "-c", command, "sh", FENCECTL], env=env, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_an_encoding_without_the_characters_is_no_error(fencectl: Fencectl, hostile: None, env: dict[str, str]) -> None:
    result = fencectl("ls", env=env)
    assert (result.code, result.err) == (0, "")
    assert "\\u65e5\\u672c" in result.out
