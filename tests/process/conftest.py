"""What the process tests share: a broker for a whole module where its tests do not disturb each other, and connections that close."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import pytest

import fencebroker as fb
from tests.helpers import BrokerProcess, Spawn, StartBroker, not_run


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


@pytest.fixture
def root() -> None:
    """The test becomes other users."""
    if os.getuid() != 0:
        not_run("becoming another user needs root")


@pytest.fixture
def public(root: None, start_broker: StartBroker, folder: str) -> BrokerProcess:
    """A broker that every user can reach."""
    os.chmod(folder, 0o755)
    return start_broker("--socket-mode", "0666", path=f"{folder}/broker")


@pytest.fixture
def start_inside(spawn: Spawn, folder: str, cleanup: contextlib.ExitStack) -> Callable[..., BrokerProcess]:
    """Start a broker inside another command: ``start_inside(["unshare", "-p", "--fork"], "--idle-exit", "9")``."""

    def start(prefix: list[str], *arguments: str) -> BrokerProcess:
        path = f"{folder}/inside"
        child = spawn([*prefix, sys.executable, "-m", "fencebrokerd", "--listen", path, "--ready-fd", "1", *arguments])
        assert child.line() == ""
        started = BrokerProcess(child, path)
        cleanup.callback(started.check)
        return started

    return start


@pytest.fixture
def start_limited(start_inside: Callable[..., BrokerProcess]) -> Callable[..., BrokerProcess]:
    """Start a broker that may have so many descriptors (RLIMIT_NOFILE)."""
    return lambda limit, *arguments: start_inside(["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh"], *arguments)
