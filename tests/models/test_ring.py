"""The order of the ring's steps, explored in full; and each mistake that was put in on purpose, found."""

from __future__ import annotations

from functools import cache
from typing import Final

import pytest

from tests.models.checker import Report, explore
from tests.models.ring import BUGS, SCENARIOS, model

#: Which scenario shows each mistake, and what is seen there.
FOUND_IN: Final[dict[str, tuple[str, str]]] = {
    "arm without a barrier": ("import", "lost wake-up: the private descriptor of point 2"),
    "arm without a second look": ("import", "lost wake-up: the private descriptor of point 2"),
    "armed loaded before the commit": ("import", "lost wake-up: the private descriptor of point 2"),
    "freeze without a barrier": ("expiry", "two descriptors of point 1 disagree"),
    "freeze without a drain": ("expiry", "two descriptors of point 1 disagree"),
    "frozen not loaded after the commit": ("expiry", "two descriptors of point 1 disagree"),
    "unfrozen before its writes": ("expiry", "two descriptors of point 1 disagree"),
    "recovery unfreezes first": ("expiry", "two descriptors of point 1 disagree"),
    "own write before the commit": ("import", "two descriptors of point 1 disagree"),
    "head before the entry": ("import", "an honest producer is taken for a liar"),
    "entry read without a barrier": ("import, weak memory", "an honest producer is taken for a liar"),
    "tail before the journal": ("full", "an honest producer is taken for a liar"),
    "tail of the page trusted": ("full of increments", "the broker is at 2, its producer at 1"),
    "a full ring is overwritten": ("full of increments", "an honest producer is taken for a liar"),
    "end-of-file without a drain": ("import", "two descriptors of point 1 disagree"),
    "a packet without a drain": ("hand-out", "two descriptors of point 1 disagree"),
    "the ring after a packet": ("full", "point 2 has status 1, which its producer never gave it"),
    "own writes after the hand-out": ("hand-out and failure", "two descriptors of point 2 disagree"),
    "handed out without CLOSE": ("hand-out and failure", "two descriptors of point 2 disagree"),
    "a late export is not told of": ("late export", "lost wake-up: the own descriptor of point 1"),
    "recovery does not arm": ("import", "lost wake-up: the private descriptor of point 2"),
    "a packet is handled again": ("full of increments", "the broker is at 3, its producer at 2"),
    "the doorbell is taken before the drain": ("late export", "lost wake-up: the own descriptor of point 1"),
    "opened without a freeze": ("second signaller", "two descriptors of point 2 disagree"),
}


@cache
def explored(name: str) -> Report:
    return explore(model(SCENARIOS[name]))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_of_the_steps_is_right(name: str) -> None:
    report = explored(name)
    assert report.wrong is None, str(report)
    assert report.at_rest, "a model that never comes to rest shows no lost wake-up"


@pytest.mark.parametrize("bug", BUGS)
def test_a_mistake_is_found(bug: str) -> None:
    name, seen = FOUND_IN[bug]
    report = explore(model(SCENARIOS[name], bug))
    assert report.wrong is not None, f"{bug} passes unseen: {report}"
    assert seen in report.wrong, str(report)


def test_each_mistake_has_its_scenario() -> None:
    assert FOUND_IN.keys() == BUGS.keys()


def test_the_scenarios_take_every_step() -> None:
    """A step that no scenario takes would be right whatever it did."""
    taken = {
        label
        for name in ("import", "expiry", "hand-out", "full of increments", "second signaller", "late export", "closed")
        for label in explored(name).labels
    }
    for step in (
        "P begins advance 1", "P commits inc 1", "P looks at armed", "P finds it frozen", "P writes 1", "P rings", "P is done",
        "P sends inc 1", "P begins to hand out", "P commits hand out 0", "P hands out", "P closes", "P is killed",
        "P takes the descriptor of 1", "P takes the descriptor of 1, passed meanwhile", "P rings for the descriptor of 1",
        "X sends fail 2", "B is killed", "B wakes for a packet", "B wakes for the end-of-file", "B: head", "B: barrier", "B: recover",
        "B: import 2", "B: export 1", "B: expire 1", "B: open", "B: packet", "B: taken", "B: end", "B: write 1",
        "P's store of head becomes visible", "P's store of first half becomes visible", "B's store of armed becomes visible",
        "B's store of frozen becomes visible", "B's store of tail becomes visible", "B's store of seen becomes visible",
    ):  # fmt: skip
        assert step in taken, step
