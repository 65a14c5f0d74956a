"""The search itself: it reaches every state, takes the shortest way to a wrong one, and does not claim more than it did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import pytest

from tests.models.checker import Model, TooManyStates, explore

T = TypeVar("T")


class Two(NamedTuple):
    """Two programs that each add one to a common number: load, then store."""

    number: int = 0
    loaded: tuple[int | None, int | None] = (None, None)
    done: tuple[bool, bool] = (False, False)


def _replace(pair: tuple[T, T], i: int, value: T) -> tuple[T, T]:
    return (value, pair[1]) if i == 0 else (pair[0], value)


def _steps(state: Two) -> Iterator[tuple[str, Two]]:
    for i in range(2):
        loaded = state.loaded[i]
        if state.done[i]:
            continue
        if loaded is None:
            yield f"{i} loads", state._replace(loaded=_replace(state.loaded, i, state.number))
        else:
            yield f"{i} stores", state._replace(number=loaded + 1, done=_replace(state.done, i, True))


def _atomic_steps(state: Two) -> Iterator[tuple[str, Two]]:
    for i in range(2):
        if not state.done[i]:
            yield f"{i} adds", state._replace(number=state.number + 1, done=_replace(state.done, i, True))


def _is_two(state: Two) -> str | None:
    return None if state.number == 2 else f"the number is {state.number}"


def test_a_lost_update_is_found_by_the_shortest_way() -> None:
    report = explore(Model([Two()], _steps, wrong_at_rest=_is_two))
    assert report.wrong == "the number is 1"
    assert len(report.trace) == 4
    assert sorted(report.trace) == ["0 loads", "0 stores", "1 loads", "1 stores"]
    assert {step.split()[1] for step in report.trace[:2]} == {"loads"}
    assert str(report).splitlines() == ["the number is 1", *(f"   {n} {step}" for n, step in enumerate(report.trace, 1))]


def test_every_state_is_reached() -> None:
    report = explore(Model([Two()], _atomic_steps, wrong_at_rest=_is_two))
    assert report.wrong is None
    assert (report.states, report.steps, report.depth, report.at_rest) == (4, 4, 2, 1)
    assert report.labels == {"0 adds", "1 adds"}
    assert str(report) == "4 states, 4 steps, 2 deep, 1 at rest: nothing wrong"


def test_a_state_can_be_wrong_on_the_way() -> None:
    report = explore(Model([Two()], _steps, wrong=lambda state: "both" if None not in state.loaded else None))
    assert report.wrong == "both"
    assert report.trace == ("0 loads", "1 loads")


def test_a_first_state_can_be_wrong() -> None:
    report = explore(Model([Two()], _steps, wrong=lambda _: "at once"))
    assert (report.wrong, report.trace) == ("at once", ())


def test_a_circle_comes_to_an_end_and_never_to_rest() -> None:
    report = explore(Model([0], lambda n: [("on", (n + 1) % 5)], wrong_at_rest=lambda _: "at rest"))
    assert report.wrong is None
    assert (report.states, report.steps, report.at_rest) == (5, 5, 0)


def test_what_only_a_fault_would_mend_is_at_rest() -> None:
    model = Model(["waits"], lambda s: [("wake", "done")] if s == "woken" else [], lambda _: None, lambda s: s if s == "waits" else None)
    assert explore(model).wrong == "waits"
    mended = model._replace(faults=lambda s: [("die", "woken")] if s == "waits" else [])
    assert explore(mended).wrong == "waits"
    report = explore(mended._replace(wrong_at_rest=lambda s: s if s == "done" else None))
    assert (report.wrong, report.trace) == ("done", ("die", "wake"))


def test_what_was_not_searched_to_its_end_shows_nothing() -> None:
    with pytest.raises(TooManyStates, match="more than 100 states after 100 steps"):
        explore(Model([0], lambda n: [("on", n + 1)]), limit=100)
