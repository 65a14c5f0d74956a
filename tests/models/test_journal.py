"""The order of the broker's steps holds wherever it is killed, and the search finds every other order that does not."""

from __future__ import annotations

import pytest

from tests.models.checker import explore
from tests.models.journal import BUGS, SCENARIOS, model


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_right_order_survives_every_kill(name: str) -> None:
    report = explore(model(SCENARIOS[name]))
    assert report.wrong is None, str(report)
    # What never happened was not explored.
    scenario = SCENARIOS[name]
    expected = ["kill", "keeper: the next broker", "broker: consume session", "broker: the answer has to wait", "client: drops answer"]
    expected += ["broker: expiry", "time passes"] if scenario.expires else []
    expected += ["broker: end-of-file", "client: closes the timeline"] if scenario.closes else []
    expected += ["broker: compacts"] if scenario.compacts else []
    expected += ["broker: no memory for a record"] if scenario.is_cramped else []
    missing = [step for step in expected if not any(label.startswith(step) for label in report.labels)]
    assert not missing, f"these steps were never taken: {missing}"
    assert report.at_rest > 1


@pytest.mark.parametrize("bug", BUGS)
def test_every_other_order_is_found(bug: str) -> None:
    what, scenario = BUGS[bug]
    assert explore(model(SCENARIOS[scenario], bug)).wrong, f"{bug} survives: {what}"


def test_nothing_goes_wrong_where_nobody_dies() -> None:
    """So what the search finds in the bugs comes from the kills, but for two orders that are wrong by themselves."""
    alone = {bug for bug in BUGS if any(explore(model(scenario._replace(kills=0), bug)).wrong for scenario in SCENARIOS.values())}
    # An answer that has to wait keeps the record behind it waiting too, and another packet is decided meanwhile.
    assert alone == {"no-sweep-before-expiry", "answer-before-append"}
