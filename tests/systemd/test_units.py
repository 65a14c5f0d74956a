"""The units as systemd's own tools read them; what they do is shown on a machine that runs them (``make test-systemd``)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.helpers import not_run

FOLDER: Final = Path(__file__).parents[2] / "systemd"
DAEMON: Final = Path(sys.executable).parent / "fencebrokerd"


def tool(name: str, *arguments: str | Path, **env: str) -> str:
    """Run one of systemd's tools and return all it wrote."""
    if shutil.which(name) is None:
        not_run(f"{name} is not installed")
    command = [name, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a command that is there."""
    folder = tmp_path / "systemd"
    shutil.copytree(FOLDER, folder)
    for service in folder.rglob("*.service"):
        service.write_text(service.read_text("utf-8").replace("/usr/bin/fencebrokerd", str(DAEMON)), "utf-8")
    return folder


def test_verify_prints_nothing(units: Path) -> None:
    """An unknown key is only a line of output: the output must be empty."""
    assert tool("systemd-analyze", "verify", "--man=no", units / "fencebroker.socket", units / "fencebroker.service") == ""


def test_verify_prints_nothing_for_the_users(units: Path, folder: str) -> None:
    files = [units / "user" / name for name in ("fencebroker.socket", "fencebroker.service")]
    assert tool("systemd-analyze", "verify", "--man=no", "--user", *files, XDG_RUNTIME_DIR=folder) == ""


def test_exposure_is_at_most_one(units: Path) -> None:
    """systemd's own measure of a unit's hardening, from 0 to 10."""
    shown = tool("systemd-analyze", "security", "--no-pager", "--offline=true", units / "fencebroker.service")
    found = re.search(r"Overall exposure level for fencebroker\.service: ([\d.]+)", shown)
    assert found is not None, shown
    assert float(found[1]) <= 1.0


def test_the_user_and_the_folder_can_be_made(tmp_path: Path) -> None:
    """sysusers.d and tmpfiles.d do what the units rely on, in a root of their own."""
    if os.getuid() != 0:
        not_run("making users and folders for root needs root")
    (tmp_path / "etc").mkdir()
    tool("systemd-sysusers", f"--root={tmp_path}", FOLDER / "fencebroker.sysusers")
    assert re.search(r"^fencebroker:x:\d+:\d+:Fence broker:/:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    tool("systemd-tmpfiles", "--create", f"--root={tmp_path}", FOLDER / "fencebroker.tmpfiles")
    assert (tmp_path / "run/fencebroker").stat().st_mode & 0o777 == 0o755


def test_what_both_services_have_in_common() -> None:
    """The user's unit lacks what needs privileges and nothing else."""
    system, user = (set((FOLDER / name).read_text("utf-8").splitlines()) for name in ("fencebroker.service", "user/fencebroker.service"))
    directives = {line for line in user if re.match(r"[A-Z]\w+=", line)}
    own = {line.partition("=")[0] for line in directives - system}
    assert own == {"Description", "ExecStart", "Restart"}
