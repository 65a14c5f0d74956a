"""A broker for each module of rows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from tests.helpers import BrokerProcess, StartBroker
from tests.process.kernel_support import Driver, driver
from tests.process.libsync_support import Own, own

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Driver", "Own", "driver", "own"]


@pytest.fixture(scope="module")
def module_broker() -> Iterator[BrokerProcess]:
    """One broker for all rows of a module."""
    with contextlib.ExitStack() as stack:
        yield StartBroker(stack)()


@pytest.fixture
def connection(module_broker: BrokerProcess) -> Iterator[fb.Broker]:
    """A connection of the library to the same broker."""
    with fb.connect(module_broker.path) as connected:
        yield connected
