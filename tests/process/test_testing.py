"""``fencebroker.testing`` as a user has it: in a project of its own, with a pytest of its own."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import sysconfig
from typing import Final

import pytest

import fencebroker as fb
from fencebroker.testing import descriptors, start_broker
from tests.helpers import LIMIT, not_run

ROOT: Final = pathlib.Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "testing.md"
#: Each of these builds, installs, or runs a whole pytest, which starts brokers of its own.
pytestmark = pytest.mark.timeout(200)
CONFTEST: Final = 'pytest_plugins = ["fencebroker.testing"]\n'


def run_pytest(project: pathlib.Path, python: str = sys.executable, *arguments: str) -> tuple[int, str]:
    """Run pytest in a project; returns its exit code and its output."""
    done = subprocess.run(
        [python, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *arguments],
        cwd=project,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))},
        capture_output=True,
        text=True,
        timeout=15 * LIMIT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """A project that names the module in its conftest.py."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    return tmp_path


def from_the_page(project: pathlib.Path) -> None:
    """Write the files that docs/testing.md shows."""
    if not PAGE.exists():
        not_run("docs/testing.md is in the checkout, and these tests run without one")
    for name, source in re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        (project / name).write_text(source)


def test_the_page_is_a_project_that_works(project: pathlib.Path) -> None:
    from_the_page(project)
    code, output = run_pytest(project)
    assert code == 0, output
    assert "2 passed" in output


def test_it_works_from_a_wheel_in_a_fresh_environment(project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the checkout is in reach there: only what the wheel brings, and what it depends on."""
    from_the_page(project)
    folder = tmp_path_factory.mktemp("wheel")
    for command in (
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT],
        [sys.executable, "-m", "venv", "--without-pip", folder / "venv"],
    ):
        subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=15 * LIMIT)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([str(word) for word in install], check=True, capture_output=True, timeout=15 * LIMIT)
    # The libraries it needs are those of this environment; its editable install is not followed from a path.
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (project / "test_where.py").write_text(
        "import fencebroker, fencebrokerd, fencebroker.testing\n"
        f"def test_where(): assert all(m.__file__.startswith({str(folder)!r}) for m in (fencebroker, fencebrokerd, fencebroker.testing))\n"
    )
    code, output = run_pytest(project, str(python))
    assert code == 0, output
    assert "3 passed" in output


def test_a_leak_is_found_and_named(project: pathlib.Path) -> None:
    (project / "test_leak.py").write_text(
        "import os, socket\n"
        "def test_open(fence_census): os.dup(0)\n"
        "def test_good(fence_census): os.close(os.dup(0))\n"
        "def test_failing(fence_census): os.dup(0); assert False\n"
        "def test_fence(fence_broker, fence_census):\n"
        "    with fence_broker.connect() as broker, broker.create_timeline() as timeline: timeline.export(1).detach()\n"
        "def test_default_connection(fence_broker, fence_census):\n"
        "    from fencebroker import libsync\n"
        "    os.close(libsync.sw_sync_timeline_create())\n"
    )
    code, output = run_pytest(project)
    assert code == 1
    assert "3 passed" in output or "4 passed" in output, output  # a test whose census fails has passed itself
    assert re.search(r"descriptor \d+ was left open: anon_inode:\[eventfd\]", output)
    failures = re.findall(r"^(?:ERROR|FAILED) test_leak\.py::(\w+)", output, re.MULTILINE)
    assert sorted(failures) == ["test_failing", "test_fence", "test_open"]


def test_a_failing_test_shows_what_the_broker_said(project: pathlib.Path) -> None:
    (project / "test_log.py").write_text(
        "def test_bad(fence_broker): assert 'serves' in fence_broker.log(); assert False\ndef test_good(fence_broker): pass\n"
    )
    code, output = run_pytest(project)
    assert code == 1
    assert "1 failed, 1 passed" in output
    assert len(re.findall(r"fencebrokerd\[\d+\] notice: fencebrokerd .* serves", output)) == 1


def test_the_broker_can_be_ended_in_every_way(project: pathlib.Path) -> None:
    (project / "test_ends.py").write_text(
        "import errno, os, signal, pytest\n"
        "import fencebroker as fb\n"
        "def test_stop(fence_broker):\n"
        "    with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1) as fence:\n"
        "        assert fence_broker.stop() == 0\n"
        "        with pytest.raises(fb.FenceError) as caught: fence.check()\n"
        "        assert caught.value.error == errno.ECANCELED\n"
        "def test_kill(fence_broker):\n"
        "    fence_broker.kill()\n"
        "    with pytest.raises(fb.BrokerUnavailable): fb.connect()\n"
        "def test_stopped(fence_broker): os.kill(fence_broker.pid, signal.SIGSTOP)\n"
        "def test_crash(fence_broker):\n"
        "    with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1) as fence:\n"
        "        os.kill(fence_broker.pid, signal.SIGKILL)\n"
        "        timeline.advance(1)\n"
        "        fence.wait(10)\n"
    )
    code, output = run_pytest(project)
    assert (code, "4 passed" in output) == (0, True), output


def test_each_test_has_a_broker_of_its_own(project: pathlib.Path) -> None:
    (project / "test_own.py").write_text(
        "import fencebroker as fb, pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_name(fence_broker, n):\n"
        "    with fb.connect() as broker, broker.create_timeline('camera0') as timeline: assert timeline.context == 1\n"
    )
    code, output = run_pytest(project, sys.executable, "-n", "2")
    assert (code, "4 passed" in output) == (0, True), output


def test_start_broker_without_fixtures() -> None:
    before = descriptors()
    with start_broker("--log-level", "debug") as broker:
        folder = os.path.dirname(broker.path)
        with broker.connect() as connection:
            assert connection._status()["pid"] > 0
        assert "serves" in broker.log()
        os.kill(broker.pid, signal.SIGCONT)
    assert not os.path.exists(folder)
    assert descriptors() == before


def test_a_broker_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="nonsense"), start_broker("--log-level", "nonsense"):
        pass


def test_only_this_module_imports_pytest() -> None:
    code = "import sys, fencebroker, fencebroker.libsync, fencebroker.kernel, fencebroker.aio, fencebroker.cli.main; print('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT).stdout == "False\n"
    assert fb.__all__.count("testing") == 0
