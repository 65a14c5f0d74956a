"""A newer version is installed over the running one, and taken over under load; one that does not even start is not."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig

import pytest

from fencebroker import __version__
from tests.chaos.crowd import Crowd, Layout
from tests.helpers import LIMIT, package_folder, wait_readable


class Installation:
    """An environment of its own with fencebroker in it; everything else comes from ours."""

    def __init__(self, folder: pathlib.Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=6 * LIMIT)
        self.python = str(folder / "bin/python")
        self._site = next(folder.glob("lib/python*/site-packages"))
        (self._site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.install(__version__)

    def install(self, version: str, damage: str | None = None) -> None:
        """Put a version over the one that is there, file by file, as installers do; ``damage`` names a module that cannot be imported."""
        for name in ("fencebroker", "fencebrokerd"):
            fresh = self._site / f"{name}.new"
            shutil.copytree(package_folder(name), fresh, ignore=shutil.ignore_patterns("__pycache__"))
            if name == "fencebroker":
                init = fresh / "__init__.py"
                text, n = re.subn(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text())
                assert n == 1
                init.write_text(text)
            if damage and damage.startswith(f"{name}/"):
                (fresh / damage.partition("/")[2]).write_text("raise ImportError('this module is damaged')\n")
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._site / name)
            fresh.rename(self._site / name)


@pytest.fixture
def installation(tmp_path: pathlib.Path) -> Installation:
    return Installation(tmp_path / "venv")


class Notices:
    """What the broker tells the service manager: the only way to hear of the end of a reload without asking again and again."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.path)

    def wait_for(self, word: str) -> None:
        while True:
            wait_readable(self._sock.fileno(), 3 * LIMIT)
            if word in self._sock.recv(4096).decode().splitlines():
                return

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def notices(folder: str, cleanup: contextlib.ExitStack) -> Notices:
    made = Notices(folder)
    cleanup.callback(made.close)
    return made


@pytest.mark.timeout(120)
def test_a_newer_version_takes_over_under_load(installation: Installation, notices: Notices) -> None:
    with Crowd(3, Layout(), env={"NOTIFY_SOCKET": notices.path}, python=installation.python) as crowd:
        notices.wait_for("READY=1")
        before = crowd.control._status()
        assert before["version"] == __version__
        for version in ("98.0.0", "99.0.0"):
            installation.install(version)
            crowd.process.process.signal(signal.SIGHUP)
            notices.wait_for("READY=1")
            crowd.check_workers()
            after = crowd.control._status()
            assert after["version"] == version
            # What a reload cannot replace is said.
            assert after["keeper_pid"] == before["keeper_pid"]
            assert after["keeper_version"] == __version__
            assert after["pid"] != before["pid"]
        os.kill(crowd.control._status()["pid"], signal.SIGKILL)
        assert crowd.control._status()["version"] == "99.0.0"
        totals = crowd.finish()
        crowd.check_books()
        crowd.stop()
    assert totals["frames"] > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", ["fencebrokerd/core/broker.py", "fencebrokerd/shell/server.py", "fencebroker/wire.py"])
def test_a_version_that_cannot_be_imported_changes_nothing(installation: Installation, notices: Notices, damage: str) -> None:
    with Crowd(4, Layout(producers=1, consumers=1), env={"NOTIFY_SOCKET": notices.path}, python=installation.python) as crowd:
        notices.wait_for("READY=1")
        before = crowd.control._status()
        installation.install("99.0.0", damage)
        crowd.process.process.signal(signal.SIGHUP)
        crowd.process.process.wait_said("the broker goes on as it is", timeout=3 * LIMIT)
        after = crowd.control._status()
        assert (after["version"], after["pid"], after["generation"]) == (__version__, before["pid"], before["generation"])
        assert "this module is damaged" in crowd.process.log()
        # The next one repairs it.
        installation.install("99.0.1")
        crowd.process.process.signal(signal.SIGHUP)
        notices.wait_for("READY=1")
        assert crowd.control._status()["version"] == "99.0.1"
        crowd.finish()
        crowd.check_books()
        crowd.process.expect_trouble()


@pytest.mark.timeout(120)
def test_a_death_does_not_change_the_code(installation: Installation, notices: Notices) -> None:
    """Nobody asked for a reload: what dies meanwhile goes on with the version it had, or says that it cannot."""
    with Crowd(5, Layout(producers=1, consumers=1), env={"NOTIFY_SOCKET": notices.path}, python=installation.python) as crowd:
        notices.wait_for("READY=1")
        installation.install("99.0.0")
        os.kill(crowd.control._status()["pid"], signal.SIGKILL)
        version = crowd.control._status()["version"]
        crowd.finish()
        crowd.check_books()
        log = crowd.stop()
    assert version == __version__ or "99.0.0" in log
