"""Random kills while everybody works."""

from __future__ import annotations

import secrets

import pytest

from tests.chaos.crowd import Crowd, Layout
from tests.chaos.rampage import rampage

#: More than 200 in all, in parts that run beside each other.
PARTS, KILLS = 4, 55


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", range(PARTS))
def test_nobody_notices_that_the_broker_is_killed(part: int) -> None:
    rampage(secrets.randbits(31), KILLS)


def test_the_workers_are_content_when_nobody_is_killed() -> None:
    """Otherwise what they find would say nothing about kills."""
    with Crowd(1, Layout(producers=1, consumers=1)) as crowd:
        crowd.finish()
        crowd.check_books()
        crowd.stop()
