"""A mistyped name is refused together with the name that was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker.cli.suggest import did_you_mean, near
from tests.cli.conftest import Fencectl

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess

KNOWN = ["camera0", "camera1", "Front-Camera", "lens", "ada/camera0", "日本語"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("camra0", ["camera0", "camera1", "ada/camera0"]),
        ("camera", ["camera1", "camera0", "ada/camera0"]),
        ("front", ["Front-Camera"]),
        ("LENS", ["lens"]),
        ("日本", ["日本語"]),
        ("ada/camera1", ["ada/camera0", "camera1", "camera0"]),
        ("encode", []),
        ("", []),
        ("a", []),
    ],
)
def test_what_is_near(word: str, found: list[str]) -> None:
    assert near(word, KNOWN) == found


def test_a_name_is_not_near_itself() -> None:
    assert near("lens", ["lens", "Lens"]) == ["Lens"]


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([], ""),
        (["encode"], ""),
        (["camera0"], "; did you mean camera0?"),
        (["camera0", "camra1"], "; did you mean camera0 or camra1?"),
        (["camera0", "camra1", "camra2"], "; did you mean camera0, camra2 or camra1?"),
    ],
)
def test_the_end_of_a_complaint(known: list[str], words: str) -> None:
    assert did_you_mean("camra0", known) == words


def test_advance_suggests_a_timeline(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0"), connection.create_timeline():
        result = fencectl("advance", "camra0", "1")
    assert (result.code, result.one_error()) == (
        1,
        "there is no timeline 'camra0' here (or it is not yours to see); did you mean camera0?",
    )


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("advanc", "No such verb 'advanc'; did you mean advance? (see fencectl --help)"),
        ("zzzz", "No such verb 'zzzz' (see fencectl --help)"),
    ],
)
def test_a_verb_is_suggested(fencectl: Fencectl, typed: str, complaint: str) -> None:
    result = fencectl(typed)
    assert (result.code, result.one_error()) == (2, complaint)


def test_an_option_is_suggested(fencectl: Fencectl) -> None:
    result = fencectl("wait", "camera0@1", "--timeot", "1")
    assert result.code == 2
    assert "--timeout" in result.one_error()
