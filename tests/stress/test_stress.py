"""A short run of ``make stress``."""

from __future__ import annotations

import sys

from tests.helpers import Spawn


def test_signals_through_the_ring_by_the_thousand(spawn: Spawn) -> None:
    child = spawn([sys.executable, "-m", "tests.stress", "--rounds", "12000", "--seed", "7"])
    assert child.line().startswith("seed 7: 12000 rounds")
    figures = dict(part.split(" ")[:2] for part in child.line(120).partition(";")[0].split(", "))
    assert int(figures["points"]) >= 12_000
    assert all(int(n) > 0 for n in figures.values()), f"something was never tried: {figures}"
    assert child.line() == f"{figures['points']} points: no wake-up was lost or early, and every descriptor of a point said the same"
    assert child.wait() == 0, child.log()
