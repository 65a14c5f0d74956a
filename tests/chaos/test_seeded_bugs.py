"""The gate: a broker with a bug in the order of its steps does not get past these tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from fencebrokerd.shell.failpoints import SEEDED_BUGS
from tests.chaos.crowd import Layout
from tests.chaos.frames import Wrong
from tests.chaos.rampage import rampage
from tests.chaos.stepping import sweep

#: Seconds after which a fence counts as lost here, where losing some is expected.
PATIENCE: Final = 2.5
#: Where a death shows it; a list that is out of date is only slower, for everything is tried in the end.
SHOWN_AT: Final = {
    "answer-before-append": ["append.before:2@*"],
    "act-before-append": ["append.before:2@*", "append.before:1@1,append.before:2@*"],
    "consume-before-append": ["append.before:6@*"],
    "consume-before-answer": ["answer.before:2@*"],
    "no-recovery": ["append.after:2@*"],
    "forget-last-serial": ["append.after:2@*"],
}
ANYWHERE: Final = ["append.after:2@*", "consume.before:2@*", "append.torn:2@*", "act.before:2@*", "act.after:2@*", "answer.after:2@*"]


def attempts(bug: str) -> Iterator[str]:
    """Try one thing after the other; yield what each found."""
    env = {"FENCEBROKERD_SEEDED_BUG": bug}
    for failpoints in SHOWN_AT.get(bug, []) + ANYWHERE:
        try:
            sweep(failpoints, ["once", "increase", "expiry"], env=env, patience=PATIENCE)
        except Wrong as err:
            yield str(err)
    try:
        rampage(7, 60, layout=Layout(patience=PATIENCE), env=env)
    except Wrong as err:
        yield str(err)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", SEEDED_BUGS)
def test_a_bug_is_found(bug: str) -> None:
    assert next(attempts(bug), None), f"{bug} survives: {SEEDED_BUGS[bug]}"


def test_there_are_bugs_to_find() -> None:
    wanted = {
        "answer-before-append",
        "consume-before-answer",
        "consume-before-append",
        "act-before-append",
        "no-recovery",
        "forget-last-serial",
    }
    assert wanted <= set(SEEDED_BUGS)
