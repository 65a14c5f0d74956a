"""What the tests of ``fencebroker.kernel`` share: a driver's life around each test, and a census of references."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from fencebroker import kernel as k
from fencebroker.kernel.process import process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import BrokerProcess

__all__ = ["Driver", "driver"]


class Driver:
    """Makes fences on one context."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.context = k.dma_fence_context_alloc(1)

    def fence(self, seqno: int = 1, ops: k.dma_fence_ops | None = None, context: int | None = None) -> k.dma_fence:
        """Return a live fence; the caller owns its reference."""
        fence = k.dma_fence()
        k.dma_fence_init(fence, k.dma_fence_ops() if ops is None else ops, None, self.context if context is None else context, seqno)
        return fence

    def install(self, fence: k.dma_fence, flags: int = os.O_CLOEXEC) -> int:
        """Do what the guide says to send an out-fence; the caller owns the descriptor."""
        sync_file = k.sync_file_create(fence)
        assert sync_file is not None, k.last_error()
        fd = k.get_unused_fd_flags(flags)
        assert fd >= 0, k.last_error()
        k.fd_install(fd, sync_file.file)
        return fd


@pytest.fixture
def driver(module_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Run the test as a driver of the module's broker; fail it if a reference is outstanding afterwards."""
    monkeypatch.setenv("FENCEBROKER_SOCKET", module_broker.path)
    with contextlib.ExitStack() as undo:
        undo.callback(process.references.clear)  # a test that fails does not fail the next one too
        undo.callback(k.shutdown)
        yield Driver(module_broker)
        left = k.references()
    assert not left, f"references were left: {left}"
