"""The harness: what every test gets without asking, and the fixtures that start things.

Without asking: a census of descriptors and child processes, a deadline (``timeout`` in pyproject.toml), a private
environment that no broker of the machine is found through, and a last line that says what did not run.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import os
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING, Final

import hypothesis
import pytest

from tests.helpers import NOT_RUN, BrokerProcess, Census, Spawn, StartBroker, short_folder

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# The processes that multiprocessing spawns import the test module by its name, `tests.process.test_x`.
# At the end of the path, so that an installed package always wins over the checkout.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

# No deadline per example: on a busy machine it fails tests for being slow, and the deadline per test is enough.
# In CI the examples are the same in each run, so that a failure is the change's and not the dice's.
hypothesis.settings.register_profile("fencebroker", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("fencebroker")

# These run inside a booted system, started by tests/systemd/run.sh, with settings of their own.
collect_ignore: Final = ["systemd/inside"]

_FAILED: Final = pytest.StashKey[bool]()
_PR_SET_CHILD_SUBREAPER: Final = 36


@pytest.fixture(scope="session", autouse=True)
def private_environment() -> Iterator[None]:
    """Keep the tests away from the brokers, settings and services of whoever runs them."""
    folder = short_folder()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("FENCEBROKER_", "LISTEN_", "XDG_", "NOTIFY_", "WATCHDOG_")):
                patch.delenv(name)
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            path = f"{folder}/{name[4:].lower()}"
            os.mkdir(path, 0o700)
            patch.setenv(name, path)
        yield
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def adopt_orphans() -> None:
    """Make the process that runs the tests the parent of every orphan, so that the census sees it.

    Otherwise a broker that went into the background, or the child of a killed child, would silently become init's.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@pytest.fixture(autouse=True)
def census(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor or a process behind, or that closes a descriptor which is not its own.

    There is no gc.collect() before the count: what waits for the garbage collector was not closed.
    """
    before = Census.take()
    yield
    after = Census.take()
    before.kill_left_over(after)
    if request.node.stash.get(_FAILED, False):
        # Its traceback keeps its objects alive, and they would vanish in the middle of another test.
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        gc.collect()
        return
    found = before.differences(after)
    if found:
        pytest.fail("the test did not leave things as it found them:\n  " + "\n  ".join(found), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the census whether the test itself failed."""
    report = yield
    if report.failed and report.when != "teardown":
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say at the very end what did not run, and why."""
    yield
    reasons: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ").removeprefix(NOT_RUN)] += 1
    for reason, n_tests in sorted(reasons.items()):
        terminalreporter.write_line(f"{NOT_RUN}{reason}" + (f" ({n_tests} tests)" if n_tests > 1 else ""))


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    """Undo things at the end of the test, the last one first: register each one in the breath that made it."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(cleanup: contextlib.ExitStack) -> str:
    """Return an empty folder with a short path, for sockets; ``tmp_path`` serves everything else."""
    path = short_folder()
    cleanup.callback(shutil.rmtree, path)
    return path


@pytest.fixture
def spawn(cleanup: contextlib.ExitStack) -> Spawn:
    """Start programs that end with the test."""
    return Spawn(cleanup)


@pytest.fixture
def start_broker(cleanup: contextlib.ExitStack) -> StartBroker:
    """Start brokers with arguments of the test's own."""
    return StartBroker(cleanup)


@pytest.fixture
def broker(start_broker: StartBroker) -> BrokerProcess:
    """Return a broker of the test's own, ready to serve."""
    return start_broker()
