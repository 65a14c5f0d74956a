"""What is distributed: the wheel holds the two packages and nothing else, and both commands are there."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile
from typing import Final

import pytest

import fencebroker
from tests.helpers import package_folder

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
IS_CHECKOUT: Final = (ROOT / "fencebroker").is_dir()
CHECK: Final = [sys.executable, str(ROOT / ".ci" / "check_wheel.py")]
DIST_INFO: Final = f"fencebroker-{fencebroker.__version__}.dist-info"


def run(*argv: str | os.PathLike[str], cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=50, check=False)


def write_wheel(path: pathlib.Path, *names: str) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    return path


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the names of the files that a user gets: a wheel built now, or the one that these tests run against."""
    if not IS_CHECKOUT:
        files = importlib.metadata.files("fencebroker")
        assert files is not None
        # RECORD also lists what the installer made: commands in ../../../bin, and compiled files.
        return [str(path) for path in files if path.parts[0] != ".." and path.suffix != ".pyc"]
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    checked = run(*CHECK, wheel)
    assert checked.returncode == 0, checked.stderr
    with tarfile.open(sdist) as archive:
        parts = {pathlib.PurePath(name).parts[1] for name in archive.getnames() if "/" in name}
    assert parts - {"PKG-INFO", ".gitignore", "pyproject.toml"} <= {
        "fencebroker", "daemon", "systemd", "packaging", "tests", "examples", "benchmarks", "docs", ".ci",
        "Makefile", "README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE",
    }  # fmt: skip
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        return archive_of_wheel.namelist()


def test_two_top_level_names_and_no_third(distributed: list[str]) -> None:
    tops = {name.partition("/")[0] for name in distributed}
    assert tops - {DIST_INFO, f"fencebroker-{fencebroker.__version__}.data"} == {"fencebroker", "fencebrokerd"}


@pytest.mark.parametrize("name", ["fencebroker", "fencebrokerd"])
def test_every_module_is_shipped(distributed: list[str], name: str) -> None:
    folder = package_folder(name)
    modules = {f"{name}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
    assert f"{name}/__init__.py" in modules
    assert modules <= set(distributed)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["tests/__init__.py"], "unexpected top-level name: tests"),
        (["daemon/fencebrokerd/__init__.py"], "unexpected top-level name: daemon"),
        (["fencebroker/__pycache__/x.pyc"], "should not be shipped: fencebroker/__pycache__/x.pyc"),
    ],
)
def test_the_check_of_the_wheel_finds_an_accident(tmp_path: pathlib.Path, extra: list[str], complaint: str) -> None:
    licence = "fencebroker-1.0.dist-info/licenses/LICENSE"
    good = ["fencebroker/py.typed", "fencebrokerd/py.typed", licence]
    assert run(*CHECK, write_wheel(tmp_path / "good.whl", *good)).returncode == 0
    checked = run(*CHECK, write_wheel(tmp_path / "bad.whl", *good, *extra))
    assert checked.returncode == 1
    assert complaint in checked.stderr


@pytest.mark.parametrize("missing", ["fencebroker/py.typed", "fencebrokerd/py.typed", "fencebroker-1.0.dist-info/licenses/LICENSE"])
def test_the_check_of_the_wheel_finds_what_is_missing(tmp_path: pathlib.Path, missing: str) -> None:
    names = {"fencebroker/py.typed", "fencebrokerd/py.typed", "fencebroker-1.0.dist-info/licenses/LICENSE"}
    checked = run(*CHECK, write_wheel(tmp_path / "bad.whl", *(names - {missing})))
    assert checked.returncode == 1
    assert f"missing file: {missing.rpartition('licenses/')[2]}" in checked.stderr


@pytest.mark.parametrize("command", ["fencebrokerd", "fencectl"])
def test_the_commands_are_installed_and_say_their_version(command: str) -> None:
    shown = run(pathlib.Path(sys.executable).parent / command, "--version")
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"\b{re.escape(fencebroker.__version__)}\b", shown.stdout), shown.stdout


def test_the_metadata_names_the_dependencies_and_the_oldest_python() -> None:
    metadata = importlib.metadata.metadata("fencebroker")
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {re.split(r"[<>=!~ ;\[]", line)[0] for line in importlib.metadata.requires("fencebroker") or () if "extra ==" not in line}
    assert needed == {"msgpack", "psutil", "click", "rich"}
