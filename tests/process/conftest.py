"""What the process tests share: a broker for a whole module where its tests do not disturb each other, and connections that close."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

import fencebroker as fb
from tests.helpers import BrokerProcess, StartBroker


@pytest.fixture(scope="module")
def module_broker() -> Iterator[BrokerProcess]:
    """One broker for all tests of a module; what they make in it they close."""
    with contextlib.ExitStack() as stack:
        yield StartBroker(stack)()


@pytest.fixture
def connection(module_broker: BrokerProcess) -> Iterator[fb.Broker]:
    """A connection to the module's broker."""
    with fb.connect(module_broker.path) as connected:
        yield connected


@pytest.fixture
def timeline(connection: fb.Broker) -> Iterator[fb.Timeline]:
    """A timeline without a name."""
    with connection.create_timeline() as created:
        yield created
