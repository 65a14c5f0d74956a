"""The help pages tell the truth, and every verb has a test."""

from __future__ import annotations

import ast
import getpass
import os
import pathlib
import re
import shlex
import sys
from typing import TYPE_CHECKING, Final

import pytest

from fencebroker.cli import main
from fencebroker.cli.command import Verb
from tests.cli.conftest import FENCECTL, Fencectl, Result, Scene, end_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.helpers import Spawn

VERBS: Final = {name: command for name, command in main.verbs().items() if isinstance(command, Verb)}
#: They start and stop the broker of the user, and are shown with one.
SERVICE: Final = ("start", "stop", "restart", "logs")


def test_every_verb_is_of_the_kind_that_shows_an_example() -> None:
    assert VERBS.keys() == main.VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_run_by_a_test(verb: str) -> None:
    called = set()
    for path in pathlib.Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called.add((ast.unparse(node.func), node.args[0].value))
    runners = ("fencectl", "fencectl.spawn", "alone", "users_own", "terminal")
    assert any((runner, verb) in called for runner in runners), f"no test runs fencectl {verb}"


# Examples


def sessions(example: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (command, its output) of an example."""
    parts = re.split(r"^\$ ", example, flags=re.MULTILINE)
    assert parts[0] == ""
    for part in parts[1:]:
        command, *output = part.splitlines()
        yield command, output


def shape(text: str) -> list[str]:
    """Text without what differs from run to run: numbers, times, users, places; and columns are as wide as they need to be."""
    text = re.sub(r"\S+T\d\d:\d\d:\d\d\S+", "TIME", text)
    text = re.sub(r"\b\d+(\.\d+)? (ms|s|min|h|d)\b", "SPAN", text)
    text = re.sub(r"(?<=\s)/[^\s,]+", "/PATH", text)
    text = re.sub(rf"\b(ada|{re.escape(getpass.getuser())})\b", "USER", text)
    text = re.sub(r"\d+", "0", text)
    return [re.sub(r" +", " ", line) for line in text.splitlines()]


def test_the_shape_keeps_what_matters() -> None:
    assert shape("  12  ada  4.2 s  /run/user/1000/broker.sock") == shape(" 3 ada  12 ms  /tmp/b.sock")
    assert shape("1  of 2 s") != shape("1  of 2")
    assert shape("1  active") != shape("1  ok")
    assert shape("a\nb") != shape("a b")


def check_example(verb: str, run: Callable[[list[str]], Result]) -> None:
    for command, output in sessions(VERBS[verb].example):
        program, *arguments = shlex.split(command)
        assert (program, arguments[0]) == ("fencectl", verb)
        result = run(arguments)
        assert shape(result.out + result.err) == shape("\n".join(output)), result


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in SERVICE])
def test_the_example_of_a_help_page_is_real(fencectl: Fencectl, scene: Scene, tmp_path: pathlib.Path, verb: str) -> None:
    fencectl.cwd = tmp_path
    check_example(verb, lambda arguments: fencectl(arguments[0], *arguments[1:]))


@pytest.mark.parametrize("verb", SERVICE)
def test_the_example_of_a_service_page_is_real(
    users_own: Fencectl, make_scene: Callable[[Mapping[str, str | None]], Scene], verb: str
) -> None:
    if verb != "start":
        assert users_own("start", "--user").code == 0
    if verb in ("stop", "restart"):
        make_scene(users_own.env)
    check_example(verb, lambda arguments: users_own(arguments[0], *arguments[1:]))


@pytest.mark.parametrize("verb", VERBS)
def test_a_help_page_shows_the_example_as_it_is(spawn: Spawn, verb: str) -> None:
    page = spawn([FENCECTL, verb, "--help"], env={"COLUMNS": "50"}).finish()
    for line in VERBS[verb].example.splitlines():
        assert f"\n  {line}\n" in page or not line
    assert "--json" in page
    example = {f"  {line}" for line in VERBS[verb].example.splitlines()}
    assert max(len(line) for line in page.splitlines() if line not in example and not line.startswith("Usage:")) <= 60


def test_the_first_page_lists_the_verbs_and_the_exit_codes(spawn: Spawn) -> None:
    page = spawn([FENCECTL, "--help"], env={"COLUMNS": "100"}).finish()
    assert re.findall(r"^  ([a-z]+)  ", page[page.index("Commands:") :], re.MULTILINE) == sorted(VERBS)
    assert "..." not in page[page.index("Commands:") :], "a description is too long for its line"
    assert "0 ok, 1 failed, 2 wrong usage, 3 timeout, 4 no broker" in page


def test_completion_knows_the_verbs_and_their_options(spawn: Spawn) -> None:
    script = spawn([FENCECTL], env={"_FENCECTL_COMPLETE": "bash_source"}).finish()
    assert "complete " in script
    complete = {"_FENCECTL_COMPLETE": "bash_complete", "COMP_WORDS": "fencectl ", "COMP_CWORD": "1"}
    verbs = {line.partition(",")[2] for line in spawn([FENCECTL], env=complete).finish().splitlines()}
    assert verbs == set(VERBS)
    kinds = spawn([FENCECTL], env={**complete, "COMP_WORDS": "fencectl ls s", "COMP_CWORD": "2"}).finish()
    assert {"plain,sync_files", "plain,sessions"} <= set(kinds.split())


def test_the_module_is_the_command(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    pages = [spawn([*argv, "--help"], cwd=tmp_path).finish() for argv in ([sys.executable, "-m", "fencebroker.cli"], [FENCECTL])]
    assert pages[0] == pages[1]
    assert os.access(FENCECTL, os.X_OK)


def test_without_a_verb_it_says_what_is_missing(spawn: Spawn) -> None:
    result = end_of(spawn([FENCECTL]))
    assert result.code == 2
    assert result.one_error() == "Missing command (see fencectl --help)"
