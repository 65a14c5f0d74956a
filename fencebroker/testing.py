"""Fixtures for the tests of programs that use fencebroker: a broker of the test's own, and a census of descriptors.

Name this module in the ``conftest.py`` at the root of your tests (docs/testing.md shows it)::

    pytest_plugins = ["fencebroker.testing"]

It is the only module that imports pytest.  ``start_broker``, ``descriptors`` and ``differences`` serve without pytest's fixtures.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from typing import IO, Final

import pytest

from fencebroker.client import Broker, connect
from fencebroker.fds import OwnedFd
from fencebroker.finding import close_shared

__all__ = ["BrokerProcess", "descriptors", "differences", "fence_broker", "fence_census", "start_broker"]

#: A broker starts in a fraction of a second; a machine may be busy.
START_SECONDS: Final = 30.0
#: It ends at once when it is told to; after this it is killed.
STOP_SECONDS: Final = 10.0
#: Should the tests be killed, their broker leaves by itself.
IDLE_SECONDS: Final = 600

_FAILED: Final = pytest.StashKey[bool]()


# -- a broker


class BrokerProcess:
    """A real ``fencebrokerd`` in a process of its own, which serves."""

    def __init__(self, process: subprocess.Popen[bytes], path: str, log: IO[bytes]) -> None:
        """For ``start_broker``."""
        self._process = process
        self._log = log
        #: Where it listens.
        self.path = path
        with self.connect() as broker:
            #: The process that serves.  When it dies, its keeper has another one go on, and no fence is lost.
            self.pid: int = broker._status()["pid"]
        #: What a client needs in its environment.
        self.env: Mapping[str, str] = {"FENCEBROKER_SOCKET": path}

    def connect(self) -> Broker:
        """Connect to it.  The caller closes the result."""
        return connect(self.path)

    def log(self) -> str:
        """What it said so far."""
        return _read(self._log)

    def stop(self) -> int:
        """End it in order: active fences complete with ECANCELED.  Returns its exit code; a second time too."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGCONT)  # a test may have stopped it
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """End it and its keeper with SIGKILL, to see what a program does when the broker is gone for good."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _wait_gone(self.pid)

    def __repr__(self) -> str:
        return f"<fencebrokerd pid {self.pid} at {self.path}>"


def _read(log: IO[bytes]) -> str:
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def _wait_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError), OwnedFd(os.pidfd_open(pid)) as pidfd:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(STOP_SECONDS * 1000)


def _end(process: subprocess.Popen[bytes]) -> None:
    """For what did not become a BrokerProcess."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def start_broker(*arguments: str) -> Iterator[BrokerProcess]:
    """Run a broker in the block, with these arguments of fencebrokerd more; no configuration of the machine counts."""
    with contextlib.ExitStack() as stack:
        # Sockets have short paths: the kernel allows 107 bytes, and the folders of tests are often longer.
        base = tempfile.gettempdir()
        folder = tempfile.mkdtemp(prefix="fence-", dir=base if len(os.fsencode(base)) < 60 else "/tmp")  # noqa: S108 - a new folder, 0700
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context(tempfile.TemporaryFile())
        ready_r, ready_w = (stack.enter_context(OwnedFd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
        path = f"{folder}/broker.sock"
        command = [sys.executable, "-P", "-m", "fencebrokerd", "--listen", path, "--config", "/dev/null"]
        command += ["--ready-fd", str(ready_w.fileno()), "--idle-exit", str(IDLE_SECONDS), *arguments]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith(("FENCEBROKERD_", "LISTEN_", "NOTIFY_"))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(ready_w.fileno(),),
            start_new_session=True,  # Ctrl-C ends the tests, and they end the broker
        )
        stack.callback(_end, process)
        ready_w.close()
        poller = select.poll()
        poller.register(ready_r, select.POLLIN)
        if not poller.poll(START_SECONDS * 1000) or os.read(ready_r.fileno(), 1) != b"\n":
            _end(process)
            raise RuntimeError(f"fencebrokerd did not start: {_read(log).strip() or 'it did not say why'}")
        ready_r.close()
        broker = BrokerProcess(process, path, log)
        stack.callback(broker.stop)
        yield broker


# -- descriptors


def descriptors() -> dict[int, str]:
    """Return every open descriptor of this process and what it refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor that lists the folder is in the list, and closed by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def differences(before: Mapping[int, str], after: Mapping[int, str]) -> list[str]:
    """Describe what changed between two results of ``descriptors``; empty when nothing did."""
    found = []
    for fd in sorted(before.keys() | after.keys()):
        was, is_now = before.get(fd), after.get(fd)
        if was == is_now:
            continue
        if was is None:
            found.append(f"descriptor {fd} was left open: {is_now}")
        elif is_now is None:
            found.append(f"descriptor {fd} was closed, and it was not the test's: {was}")
        else:
            found.append(f"descriptor {fd} was {was} and is now {is_now}")
    return found


def helpers_of_multiprocessing() -> tuple[set[int], set[int]]:
    """The descriptors and the pids of the two processes that ``multiprocessing`` keeps until the interpreter ends, where they run."""
    attributes = (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_fd", "_pid"),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd", "_forkserver_pid"),
    )
    fds, pids = set(), set()
    for module, name, fd, pid in attributes:
        helper = getattr(sys.modules.get(module), name, None)
        fds.add(getattr(helper, fd, None))
        pids.add(getattr(helper, pid, None))
    return {fd for fd in fds if fd is not None}, {pid for pid in pids if pid is not None}


# -- fixtures


@pytest.fixture
def fence_broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerProcess]:
    """A broker of the test's own.  ``fencebroker.connect()`` finds it, here and in the programs that the test starts.

    When the test fails, the report shows what the broker said.
    """
    if "fence_census" in request.fixturenames:
        request.getfixturevalue("fence_census")  # it counts when the broker is gone
    with start_broker() as broker:
        monkeypatch.setenv("FENCEBROKER_SOCKET", broker.path)
        yield broker
        close_shared()
        broker.stop()
        if request.node.stash.get(_FAILED, False):
            sys.stderr.write(broker.log())


@pytest.fixture
def fence_census(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor open, or closes one that is not its own.

    Nothing is collected before the count: what waits for the garbage collector was not closed.  A test that failed is not counted.
    """
    before = descriptors()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # its traceback keeps its objects alive
    after = descriptors()
    excused, _ = helpers_of_multiprocessing()
    kept = [{fd: target for fd, target in each.items() if fd not in excused} for each in (before, after)]
    found = differences(*kept)
    if found:
        pytest.fail("the test did not leave its descriptors as it found them:\n  " + "\n  ".join(found), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the fixtures whether the test itself failed."""
    report = yield
    if report.failed and report.when != "teardown":
        item.stash[_FAILED] = True
    return report
