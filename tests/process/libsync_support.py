"""What the tests of ``fencebroker.libsync`` share: raw descriptors with somebody who closes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fencebroker import libsync
from fencebroker.finding import close_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import BrokerProcess

__all__ = ["Own", "own"]


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


@pytest.fixture
def own(module_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    """Let ``libsync`` find the module's broker, and close what the test owns."""
    monkeypatch.setenv("FENCEBROKER_SOCKET", module_broker.path)
    owned = Own()
    yield owned
    owned.close_all()
    close_shared()
