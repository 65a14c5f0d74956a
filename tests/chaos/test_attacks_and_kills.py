"""Hostile clients of other users at full speed while the broker is killed again and again: a pipeline of one user notices neither."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from fencebroker.mapping import has_barrier
from tests.chaos.attacking import ATTACKS
from tests.chaos.crowd import ROOT, Layout
from tests.chaos.rampage import rampage
from tests.helpers import LIMIT, Child, not_run

PIPELINE, EVIL = 4200, 4301  # uids that nobody has
KILLS: Final = 20
#: Seconds; on a busy machine some kills may be left out.
MOST: Final = 15.0
FEWEST: Final = 5
#: Long enough for each of them to get something done.
LIFE: Final = 0.4


@contextlib.contextmanager
def attackers(path: str) -> Iterator[None]:
    """One of each kind, of two users in turn.  Each got something done, and none was able to make a fence lie."""
    with contextlib.ExitStack() as stack:
        children = {}
        for i, name in enumerate(ATTACKS):
            child = Child([sys.executable, "-m", "tests.chaos.attacking", name, path, str(EVIL + i % 2)], cwd=ROOT)
            stack.callback(child.close)
            children[name] = child
        for child in children.values():
            assert child.line(3 * LIMIT) == "ready"
        yield
        for child in children.values():  # on a busy machine one or the other has had no turn yet
            assert child.line(3 * LIMIT) == "attacked"
        for child in children.values():  # all at once: they are in each other's way
            assert child.process.stdin is not None
            child.process.stdin.close()
        done = {name: int(child.finish(3 * LIMIT)) for name, child in children.items()}
        assert min(done.values()) > 0, done


@pytest.mark.timeout(120)
def test_a_pipeline_notices_neither_attacks_nor_kills() -> None:
    """No error, nothing lost, nothing early; afterwards the accounts are empty and the table is what the journal says."""
    if os.getuid() != 0:
        not_run("becoming other users needs root")
    if not has_barrier():
        not_run("no membarrier here, so no ring")
    seen = 0

    def progress(killer: object) -> None:
        nonlocal seen
        seen += 1

    layout = Layout(producers=1, consumers=1, uid=PIPELINE)
    rampage(5, KILLS, layout=layout, limit=MOST, longest=LIFE, company=attackers, progress=progress)
    assert seen >= FEWEST
