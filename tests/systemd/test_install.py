"""``make install`` below DESTDIR and ``make uninstall``: all of it comes, all of it goes, and a changed configuration stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

import fencebroker

ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = "etc/fencebroker/fencebroker.toml"

# Two installations fetch packages and compile them.
pytestmark = pytest.mark.timeout(240)


def script(name: str, destdir: Path | str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of packaging/ as the Makefile does."""
    return subprocess.run(
        [ROOT / "packaging" / name],
        env={**os.environ, "RUN": sys.executable, "PYTHON": sys.executable, "DESTDIR": str(destdir), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's files with some of the folders there already, and an installation."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("usr/local/bin", "usr/local/lib", "usr/local/share/man/man1", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "usr/local/bin/other").write_text("somebody else's")
    done = script("install.sh", folder)
    assert done.returncode == 0, done.stdout
    assert f"installed in {folder}/usr/local" in done.stdout
    return folder


def test_the_programs_begin_where_the_package_says(destdir: Path) -> None:
    """What pip would install and what ``make install`` does must be the same."""
    for name, target in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"].items():
        module, _, function = target.partition(":")
        assert f"from {module} import {function}\n" in (destdir / "usr/local/bin" / name).read_text("utf-8")


def test_the_programs_run(destdir: Path) -> None:
    """Where the environment stands does not matter to it."""
    python = destdir / "usr/local/lib/fencebroker/bin/python3"
    for module in ("fencebrokerd", "fencebroker.cli"):
        shown = subprocess.run([python, "-I", "-m", module, "--version"], capture_output=True, text=True, timeout=30, check=True)
        assert fencebroker.__version__ in shown.stdout
    code = "import sys, fencebrokerd, msgpack; print(fencebrokerd.__file__, msgpack.__file__, sep='\\n')"
    shown = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert all(line.startswith(str(destdir)) for line in shown.stdout.splitlines())
    for name in ("fencebrokerd", "fencectl"):
        assert os.readlink(destdir / f"usr/local/bin/{name}") == f"../lib/fencebroker/bin/{name}"
        assert (destdir / f"usr/local/lib/fencebroker/bin/{name}").read_text().startswith("#!/usr/local/lib/fencebroker/bin/python3 -I\n")


def test_the_units_start_what_was_installed(destdir: Path) -> None:
    for kind in ("system", "user"):
        assert "\nExecStart=/usr/local/bin/fencebrokerd " in (destdir / f"usr/local/lib/systemd/{kind}/fencebroker.service").read_text()
    for file in ("lib/sysusers.d/fencebroker.conf", "lib/tmpfiles.d/fencebroker.conf", "share/man/man8/fencebrokerd.8"):
        assert (destdir / "usr/local" / file).is_file()


def test_no_file_names_the_place_where_it_was_made(destdir: Path) -> None:
    found = []
    for path in destdir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            if b"fencebroker-install." in text or os.fsencode(ROOT) + b"/" in text or os.fsencode(destdir) in text:
                found.append(str(path.relative_to(destdir)))
    # The interpreter that was chosen is named where Python looks for it.
    assert [name for name in found if not name.endswith("pyvenv.cfg")] == []


@pytest.mark.parametrize(
    ("shell", "file", "check"),
    [
        ("bash", "bash-completion/completions/fencectl", ["bash", "-n"]),
        ("zsh", "zsh/site-functions/_fencectl", ["zsh", "-n"]),
        ("fish", "fish/vendor_completions.d/fencectl.fish", ["fish", "-n"]),
    ],
)
def test_completions_are_in_the_language_of_their_shell(destdir: Path, shell: str, file: str, check: list[str]) -> None:
    path = destdir / "usr/local/share" / file
    assert f"{shell}_complete" in path.read_text()
    if shutil.which(shell):
        subprocess.run([*check, path], check=True, timeout=30)


def test_bash_completes_verbs(destdir: Path) -> None:
    """As at a prompt: the installed script asks fencectl."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    path = destdir / "usr/local/share/bash-completion/completions/fencectl"
    code = f'source "{path}"; COMP_LINE="fencectl "; COMP_POINT=9; _fencectl_completion fencectl "" fencectl; echo "${{COMPREPLY[@]}}"'
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True, timeout=30, check=True)
    assert {"ls", "info", "wait", "advance", "status"} <= set(shown.stdout.split())


def test_nothing_is_left(destdir: Path) -> None:
    """Installed once more over itself, with a changed configuration; what was there before stays."""
    before = {
        "usr",
        "usr/local",
        "usr/local/bin",
        "usr/local/lib",
        "usr/local/share",
        "usr/local/share/man",
        "usr/local/share/man/man1",
        "etc",
    }
    before.add("usr/local/bin/other")
    installed = listing(destdir)
    (destdir / CONFIG).write_text("log_level = 'info'\n")
    again = script("install.sh", destdir)
    assert again.returncode == 0, again.stdout
    assert f"/{CONFIG} was changed and stays as it is" in again.stdout
    assert listing(destdir) == installed
    assert (destdir / CONFIG).read_text() == "log_level = 'info'\n"
    removed = script("uninstall.sh", destdir)
    assert removed.returncode == 0, removed.stdout
    assert f"/{CONFIG} was changed and stays" in removed.stdout
    assert listing(destdir) == before | {"etc/fencebroker", CONFIG}
    assert "nothing is installed" in script("uninstall.sh", destdir).stdout


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PREFIX": "usr"}, "PREFIX must be an absolute path without blanks, not 'usr'"),
        ({"PREFIX": "/a b"}, "PREFIX must be an absolute path without blanks, not '/a b'"),
        ({"DESTDIR": "here"}, "DESTDIR must be an absolute path, not 'here'"),
        ({"SYSTEM_SITE": "maybe"}, "SYSTEM_SITE must be yes or no, not 'maybe'"),
        ({"PREFIX": "/" + "x" * 100}, "PREFIX is too long"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path: Path, env: dict[str, str], said: str) -> None:
    done = script("install.sh", tmp_path, **env)
    assert (done.returncode, said in done.stdout) == (1, True), done.stdout
    assert list(tmp_path.iterdir()) == []
