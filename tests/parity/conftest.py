"""A broker for each module of rows, and descriptors that close at the end of a test."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from fencebroker import libsync
from fencebroker.finding import close_shared
from tests.helpers import BrokerProcess, StartBroker
from tests.process.kernel_support import Driver, driver

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Driver", "driver"]


class Own:
    """Owns raw descriptors, as a careful C program does."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def __call__(self, fd: int) -> int:
        """Close ``fd`` at the end of the test, unless it is closed earlier."""
        self._open.append(fd)
        return fd

    def close(self, *fds: int) -> None:
        """Close them now: nothing but os.close()."""
        for fd in fds:
            self._open.remove(fd)
            os.close(fd)

    def timeline(self) -> int:
        """A timeline of sw_sync."""
        return self(libsync.sw_sync_timeline_create())

    def fence(self, timeline: int, value: int) -> int:
        """A fence of it."""
        return self(libsync.sw_sync_fence_create(timeline, "", value))

    def merge(self, first: int, second: int, name: str = "merged") -> int:
        """A merged one."""
        return self(libsync.sync_merge(name, first, second))

    def close_all(self) -> None:
        for fd in self._open:
            os.close(fd)


@pytest.fixture(scope="module")
def module_broker() -> Iterator[BrokerProcess]:
    """One broker for all rows of a module."""
    with contextlib.ExitStack() as stack:
        yield StartBroker(stack)()


@pytest.fixture
def own(module_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    """Let ``libsync`` find the module's broker, and close what the test owns."""
    monkeypatch.setenv("FENCEBROKER_SOCKET", module_broker.path)
    owned = Own()
    yield owned
    owned.close_all()
    close_shared()


@pytest.fixture
def connection(module_broker: BrokerProcess) -> Iterator[fb.Broker]:
    """A connection of the library to the same broker."""
    with fb.connect(module_broker.path) as connected:
        yield connected
