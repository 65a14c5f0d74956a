"""Descriptors on their way to a client count for its user, also when the broker that sent them is gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import fencebroker as fb
from fencebroker import wire
from tests.helpers import LIMIT, BrokerProcess, StartBroker
from tests.process.wire_client import WireClient

#: For a session it is 256, and for a user, here:
PER_USER = 300


@pytest.fixture
def broker(start_broker: StartBroker, tmp_path: Path) -> BrokerProcess:
    file = tmp_path / "fencebroker.toml"
    file.write_text(f"[limits]\nunread_per_uid = {PER_USER}\n")
    return start_broker("--config", str(file))


def replace(control: fb.Broker, broker: BrokerProcess, how: str) -> None:
    """The next broker takes over."""
    if how == "reload":
        broker.reload()
    else:
        os.kill(control._status()["pid"], signal.SIGKILL)
    assert control._status()["generation"] == 2


def ask(client: WireClient, first: int, times: int) -> None:
    """Ask for a descriptor so many times, and read no answer."""
    for serial in range(first, first + times):
        client.say([serial, wire.SYNC_FILE, f"nobody@{serial}", None])


def wait_for(control: fb.Broker, **wanted: int) -> None:
    """Ask until the broker's status says so: it has handled what it was sent."""
    deadline = time.monotonic() + LIMIT
    while any((status := control._status())[key] != value for key, value in wanted.items()):
        assert time.monotonic() < deadline, status


@pytest.mark.parametrize("how", ["kill", "reload"])
def test_what_a_session_has_not_read_counts_on(broker: BrokerProcess, how: str) -> None:
    """200 before, and 57 after: the last one is one too many."""
    with fb.connect(broker.path, autostart=False) as control:
        with WireClient(broker.path) as client:
            ask(client, 3, 200)
            wait_for(control, sync_files=200)
            replace(control, broker, how)
            ask(client, 203, 56)
            wait_for(control, sync_files=256)
            assert control._status()["sessions"] == 2
            ask(client, 259, 1)
            wait_for(control, sessions=1)
        assert broker.log().count("it left answers with 256 descriptors unread") == 1


@pytest.mark.parametrize("how", ["kill", "reload"])
def test_what_it_has_read_does_not(broker: BrokerProcess, how: str) -> None:
    with fb.connect(broker.path, autostart=False) as control:
        with WireClient(broker.path) as client:
            for first in (3, 203):
                ask(client, first, 200)
                for _ in range(200):
                    client.hear()
                if first == 3:
                    replace(control, broker, how)
        wait_for(control, sessions=1)
        assert "unread" not in broker.log()


@pytest.mark.parametrize("how", ["kill", "reload"])
def test_what_was_left_by_a_session_that_has_ended_counts_on(broker: BrokerProcess, how: str) -> None:
    """Until its client reads it, or closes its end."""
    with fb.connect(broker.path, autostart=False) as control:
        with WireClient(broker.path) as gone:
            ask(gone, 3, 250)
            wait_for(control, sync_files=250)
            gone.say(b"\xc1")
            wait_for(control, sessions=1)
            replace(control, broker, how)
            with WireClient(broker.path) as other:
                ask(other, 3, 51)
                wait_for(control, sessions=1)
            assert broker.log().count("its user left too many descriptors unread") == 1
        with WireClient(broker.path) as other:
            ask(other, 3, 250)
            for _ in range(250):
                other.hear()
        status = control._status()
        assert status["open_descriptors"] == status["known_descriptors"]
