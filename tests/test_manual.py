"""The manual pages and the default configuration: made of the code and the documentation, and in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.helpers import Spawn, not_run

ROOT: Final = Path(__file__).parent.parent
FILE: Final = ROOT / "docs" / "fencebroker.toml"
PAGES: Final = ["man1/fencectl.1", "man5/fencebroker.toml.5", "man7/fencebroker-protocol.7", "man8/fencebrokerd.8"]


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as ``make man`` builds them."""
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "-m", "docs", "--man", str(folder)], cwd=ROOT, check=True, timeout=30)
    return folder


def test_there_are_four_pages(manual: Path) -> None:
    assert sorted(str(path.relative_to(manual)) for path in manual.rglob("*.*")) == PAGES


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [80, 132])
def test_man_shows_a_page_without_a_complaint(manual: Path, page: str, width: int) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        not_run("man or groff is not installed")
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": str(width)}
    shown = subprocess.run(["man", "--warnings", "-l", str(manual / page)], env=env, capture_output=True, text=True, timeout=30, check=True)
    # Where a row of a table crosses what would be the end of a page on paper, tbl says so.
    assert [line for line in shown.stderr.splitlines() if "will not fit on one page" not in line] == []
    text = re.sub(r".\x08", "", shown.stdout)
    for heading in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{heading}\n" in text
    assert "\\f" not in text
    assert "`" not in text.replace("[^`]", ""), "markup of the source is left over"


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_finds_no_fault(manual: Path, page: str) -> None:
    if shutil.which("mandoc") is None:
        not_run("mandoc is not installed")
    checked = subprocess.run(["mandoc", "-Tlint", "-Wwarning", str(manual / page)], capture_output=True, text=True, timeout=30, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_manual_has_every_option(manual: Path, spawn: Spawn) -> None:
    """What ``--help`` lists stands in the manual, of the daemon and of each verb."""
    for page, program in (("man8/fencebrokerd.8", ["fencebrokerd"]), ("man1/fencectl.1", ["fencectl", "wait"])):
        text = (manual / page).read_text("utf-8").replace("\\-", "-")
        shown = spawn([str(Path(sys.executable).parent / program[0]), *program[1:], "--help"]).finish()
        options = re.findall(r"^ +(?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
        assert len(options) > 4
        for option in options:
            assert f"{option}" in text, option


# The default configuration


def test_the_default_configuration_is_the_default(spawn: Spawn, tmp_path: Path) -> None:
    """As installed, the file changes nothing but who is served: the group that the system's socket belongs to, and nobody else."""
    text = FILE.read_text("utf-8")
    assert re.findall(r"^[^#\n].*", text, re.MULTILINE) == ["[policy]", 'allow_groups = ["fencebroker"]', "[limits]"]
    (tmp_path / "installed.toml").write_text(text.replace('["fencebroker"]', "[61234]"))
    check = [sys.executable, "-m", "fencebrokerd", "--check-config"]
    shown = spawn([*check, "--config", str(tmp_path / "installed.toml")]).finish()
    assert shown == spawn(check).finish().replace("# allow_groups is not set", "allow_groups = [61234]")


def test_every_key_can_be_switched_on(spawn: Spawn, tmp_path: Path) -> None:
    """Without the sign in front of it, each key is accepted, and all of them are there."""
    switched_on = re.sub(r"^#([\w\[])", r"\1", FILE.read_text("utf-8"), flags=re.MULTILINE)
    switched_on = (
        switched_on.replace('["ada", 1001]', '["root", 1001]').replace('["fencebroker"]', '["root"]').replace("quotas.ada", "quotas.0")
    )
    (tmp_path / "on.toml").write_text(switched_on)
    shown = tomllib.loads(spawn([sys.executable, "-m", "fencebrokerd", "--check-config", "--config", str(tmp_path / "on.toml")]).finish())
    read = tomllib.loads(switched_on)
    assert shown.keys() == read.keys()
    assert shown["limits"].keys() == read["limits"].keys()
    assert shown["policy"].keys() == read["policy"].keys()
    assert len(read["limits"]) > 10
