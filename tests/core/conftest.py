"""Every world that a test of the core builds is checked at its end, and then ended: accounts empty, every descriptor closed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.core.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fencebroker.limits import Limits
    from tests.core.world import MakeWorld


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Make worlds with limits of the test's own."""
    worlds: list[World] = []

    def make(limits: Limits | None = None) -> World:
        worlds.append(World() if limits is None else World(limits))
        return worlds[-1]

    yield make
    for world in worlds:
        world.check()
        world.end()
        world.check()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Return a world with roomy limits."""
    return make_world()
