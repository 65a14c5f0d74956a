"""What the tests inside get without asking: two users; and clients that hold fences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.systemd.inside.machine import Holder, run


def pytest_configure() -> None:
    """Make two users: ada will be a member of the group that may connect, bob will not."""
    # What runs from here on is what is installed, not the tree that the tests are in.
    os.environ.pop("PYTHONPATH", None)
    for name in ("ada", "bob"):
        run("useradd", "--create-home", "--shell", "/bin/bash", name)


@pytest.fixture
def hold() -> Iterator[Callable[[str, int], Holder]]:
    """Start clients that hold fences; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(user: str, n: int) -> Holder:
            holder = Holder(user, n)
            stack.callback(holder.close)
            return holder

        yield start
