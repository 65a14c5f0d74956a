"""Completion as the shells do it, with what the broker has at that moment."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Final

import pytest

import fencebroker as fb
from tests.cli.conftest import Fencectl, end_of
from tests.helpers import not_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import BrokerProcess, Spawn

#: Print what a shell would offer for the line in $1.
BASH: Final = """
    eval "$(_FENCECTL_COMPLETE=bash_source fencectl)"
    compopt() { echo "compopt $*"; }
    COMP_LINE=$1 COMP_POINT=${#1}
    _fencectl_completion fencectl
    printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH: Final = """
    compdef() { }
    compadd() { print -rl -- $completions }
    _describe() { print -rl -- ${completions_with_descriptions%%:*} }
    _path_files() { print -r -- compopt files }
    eval "$(_FENCECTL_COMPLETE=zsh_source fencectl)"
    words=("${(@s: :)1}") CURRENT=${#words}
    _fencectl_completion
"""
FISH: Final = """
    _FENCECTL_COMPLETE=fish_source fencectl | source
    complete -C $argv[1]
"""


@pytest.fixture(params=["bash", "zsh", "fish"])
def offered(request: pytest.FixtureRequest, spawn: Spawn, fencectl: Fencectl) -> Callable[[str], set[str]]:
    """What a shell offers for a line."""
    shell = request.param
    if shutil.which(shell) is None:
        not_run(f"{shell} is not installed, so its completion is not tried")
    argv = {
        "bash": ["bash", "--norc", "-c", BASH, "bash"],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
        "fish": ["fish", "--no-config", "-c", FISH],
    }

    def offer(line: str) -> set[str]:
        result = end_of(spawn([*argv[shell], line], env=fencectl.env))
        assert result.err == ""
        words = {each.partition("\t")[0] for each in result.lines() if each}
        if shell == "bash" and "@" in line.rpartition(" ")[2]:
            # It puts its words behind the "@".
            return {f"{line.rpartition(' ')[2].rpartition('@')[0]}@{word}" for word in words}
        return words

    return offer


@pytest.fixture
def timelines(broker: BrokerProcess) -> Iterator[None]:
    """Timelines at different values, and one whose name would be run."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(fb.connect(broker.path))
        for name in ("camera0", "cameraman", "lens", "$(touch x)", "ä"):
            timeline = stack.enter_context(connection.create_timeline(name))
            if name == "camera0":
                stack.enter_context(timeline.export(9))
                timeline.advance(6)
        yield


def test_verbs(offered: Callable[[str], set[str]]) -> None:
    assert {"wait", "advance", "create", "run"} <= offered("fencectl ")
    assert offered("fencectl adv") == {"advance"}


def test_options(offered: Callable[[str], set[str]]) -> None:
    assert offered("fencectl wait --ti") == {"--timeout"}


@pytest.mark.usefixtures("timelines")
def test_timelines_by_name(offered: Callable[[str], set[str]]) -> None:
    assert offered("fencectl advance cam") == {"camera0", "cameraman"}
    assert offered("fencectl inc ") == {"camera0", "cameraman", "lens", "ä"}


@pytest.mark.usefixtures("timelines")
def test_points_that_come_next_and_that_were_exported(offered: Callable[[str], set[str]]) -> None:
    assert offered("fencectl wait camera0") == {"camera0@7", "camera0@9"}
    assert offered("fencectl wait camera0@") == {"camera0@7", "camera0@9"}
    assert offered("fencectl run --wait lens@1 --signal cameram") == {"cameraman@1"}
    assert offered("fencectl merge lens@1 camera0@9") == {"camera0@9"}


@pytest.mark.usefixtures("timelines")
def test_nothing_of_ours_belongs_to_a_command_that_is_run(offered: Callable[[str], set[str]]) -> None:
    assert not {"camera0", "camera0@7", "cameraman", "--json"} & offered("fencectl merge lens@1 -- c")
    assert not {"camera0", "camera0@7", "--timeout"} & offered("fencectl run --wait lens@1 -- --t")


def test_without_a_broker_nothing_is_offered(offered: Callable[[str], set[str]], broker: BrokerProcess) -> None:
    broker.stop()
    assert offered("fencectl advance ") <= {"compopt files"}


def test_an_option_and_its_value_in_one_word(spawn: Spawn, fencectl: Fencectl, timelines: None) -> None:
    if shutil.which("bash") is None:
        not_run("bash is not installed, so its completion is not tried")
    for typed, rest in (("--wait=camera0@", "7"), ("--wait=len", "lens@1")):
        result = end_of(spawn(["bash", "--norc", "-c", BASH, "bash", f"fencectl run {typed}"], env=fencectl.env))
        assert rest in result.lines()
