"""The Debian package is installed: what is there then, and what runs."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
from pathlib import Path

from tests.systemd.inside.machine import CONFIG, PYTHON, SOCKET, listing, run, show

PACKAGE = next(Path("/opt/test/this").glob("*.deb"))
BEFORE = Path("/opt/before.json")


def test_it_installs_without_a_word_of_complaint() -> None:
    BEFORE.write_text(json.dumps(listing()))
    said = run("dpkg", "-i", str(PACKAGE), env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    assert "warning" not in said.lower(), said
    assert "error" not in said.lower(), said
    run("usermod", "--append", "--groups", "fencebroker", "ada")


def test_it_installs_again() -> None:
    """The scripts of the package change nothing that is as it should be."""
    before = listing()
    run("dpkg", "-i", str(PACKAGE))
    assert listing() == before


def test_the_socket_listens_and_the_broker_waits_for_a_client() -> None:
    assert run("systemctl", "is-enabled", "fencebroker.socket").strip() == "enabled"
    assert show("ActiveState", "fencebroker.socket") == "active"
    assert show("ActiveState") == "inactive"
    state = SOCKET.stat()
    assert stat.S_ISSOCK(state.st_mode)
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o660, 0, grp.getgrnam("fencebroker").gr_gid)
    folder = SOCKET.parent.stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o755, 0)


def test_the_user_is_a_systems_user() -> None:
    entry = pwd.getpwnam("fencebroker")
    assert 0 < entry.pw_uid < 1000
    assert (entry.pw_dir, entry.pw_shell) == ("/", "/usr/sbin/nologin")


def test_what_is_installed() -> None:
    """Commands, units in order, the configuration as a conffile, the manual, completions."""
    version = run(PYTHON, "-c", "import fencebroker; print(fencebroker.__version__)").strip()
    assert run("fencectl", "--version").strip().endswith(version)
    assert run("fencebrokerd", "--version").strip().endswith(version)
    run("fencebrokerd", "--check-config", "--config", str(CONFIG))
    assert str(CONFIG) in run("dpkg-query", "-W", "-f", "${Conffiles}", "fencebroker")
    units = [f"/usr/lib/systemd/{kind}/fencebroker.{suffix}" for kind in ("system", "user") for suffix in ("socket", "service")]
    for unit in units:
        assert Path(unit).exists()
    assert run("systemd-analyze", "verify", "--man=no", *units[:2]) == ""
    assert run("systemd-analyze", "verify", "--man=no", "--user", *units[2:], env={**os.environ, "XDG_RUNTIME_DIR": "/run"}) == ""
    for page in ("fencebrokerd.8", "fencectl.1", "fencebroker.toml.5", "fencebroker-protocol.7"):
        assert Path(f"/usr/share/man/man{page[-1]}/{page}.gz").is_file()
    assert "_fencectl_completion" in Path("/usr/share/bash-completion/completions/fencectl").read_text()


def test_dpkg_finds_every_file_as_it_was_packed() -> None:
    assert run("dpkg", "--verify", "fencebroker") == ""
