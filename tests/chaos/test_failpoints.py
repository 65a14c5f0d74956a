"""The broker dies at each step that matters, with every kind of packet in hand, also when it is about to complete what another left."""

from __future__ import annotations

import itertools
import signal

import pytest

import fencebroker as fb
from fencebrokerd.shell.failpoints import FAILPOINTS
from tests.chaos.stepping import Steps, sweep
from tests.helpers import StartBroker

#: Where a broker can be cut off again while it completes what the one before it left.
AGAIN = [name for name in FAILPOINTS if name.partition(".")[0] in ("recover", "act", "answer", "consume")]
#: Steps of every packet; the others belong to a few.
OF_EVERY_PACKET = ("append", "consume")
#: Packets, ends and expiries in one pass.
PACKETS = 20
#: More than any pass has packets.
DEATHS = 30


def every_other(first: str, second: str, generations: int = 120) -> str:
    """``first`` kills the odd generations, ``second`` the even ones."""
    return ",".join(f"{name}@{n}" for n, name in zip(range(1, generations), itertools.cycle((first, second)), strict=False))


@pytest.mark.timeout(120)
# No packet of these freezes a ring; tests/process/test_ring_recovery.py has what does.
@pytest.mark.parametrize("name", [name for name in FAILPOINTS if not name.startswith(("listen", "recover", "compact", "ring.frozen"))])
def test_a_death_at_a_step_of_every_packet(name: str) -> None:
    # A generation gets past one hit and dies at the next: so every other packet is met, and by the second sweep those between them.
    # The last ones are left alone, so that the books can be read.
    often = ",".join(f"{name}:2@{n}" for n in range(2, DEATHS + 1))
    died = [sweep(failpoints, ["once"])["once"] for failpoints in (f"{name}:2@1,{often}", f"{name}:1@1,{often}")]
    if name.partition(".")[0] in OF_EVERY_PACKET:
        assert sum(died) >= PACKETS, died
    else:
        assert sum(died) >= 1, died


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", AGAIN)
def test_a_second_death_while_the_first_is_repaired(name: str) -> None:
    died = sweep(every_other("append.after:5", f"{name}:1"), ["once"])
    assert died["once"] >= 2, died


def test_a_guest_who_is_not_on_record_outlives_two_brokers(start_broker: StartBroker) -> None:
    """It was taken in by the first; the second dies before it has noted it."""
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": "accept.after:1@1,recover.reconciled:1@2"})
    with fb.connect(broker.path, autostart=False) as connection:
        assert connection._status()["generation"] == 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [name for name in FAILPOINTS if name.startswith("compact")])
def test_a_death_while_the_journal_is_written_anew(name: str) -> None:
    # The first time is at the start; a reload is the second.
    with Steps(env={"FENCEBROKERD_FAILPOINT": f"{name}:2@1"}) as steps:
        steps.do("once")
        steps.process.process.signal(signal.SIGHUP)
        steps.do("once")
        steps.do("stood")
        steps.process.process.wait_said(f"failpoint {name}")
        assert steps.status()["recoveries"] == 1
        steps.finish()
