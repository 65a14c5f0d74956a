"""The unit of a user: the same on demand, for one user alone, gone when nobody needs it."""

from __future__ import annotations

import json
import os
import pwd
import re
from pathlib import Path

from tests.systemd.inside.machine import SOCKET, as_user, files_allowed, run, until

UID = pwd.getpwnam("ada").pw_uid
RUNTIME = f"/run/user/{UID}"


def ada(*argv: str, code: int = 0) -> str:
    return run(*as_user("ada", f"XDG_RUNTIME_DIR={RUNTIME}", *argv), code=code)


def show(name: str) -> str:
    return ada("systemctl", "--user", "show", "--value", "-p", name, "fencebroker.service").strip()


def test_it_is_started_by_its_first_client() -> None:
    run("loginctl", "enable-linger", "ada")
    until(lambda: Path(f"{RUNTIME}/systemd/private").exists(), "the user's service manager")
    assert "fencebroker" not in ada("systemctl", "--user", "list-sockets"), "it is there for who enables it"
    ada("systemctl", "--user", "enable", "--now", "fencebroker.socket")
    assert show("ActiveState") == "inactive"
    status = json.loads(ada("fencectl", "status", "--json"))
    assert (status["socket"], status["uid"]) == (f"{RUNTIME}/fencebroker/broker.sock", UID)
    assert status["keeper_pid"] == int(show("MainPID"))
    assert show("ActiveState") == "active"


def test_it_serves_its_user_alone() -> None:
    for user, path in (("bob", f"{RUNTIME}/fencebroker/broker.sock"), ("ada", str(SOCKET))):
        said = run(*as_user(user, "fencectl", "status", "--socket", path), code=1 if user == "bob" else 0)
        assert ("Permission denied" in said) is (user == "bob")


def test_what_can_be_taken_away_without_privileges_is() -> None:
    pid = show("MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert re.search(rf"^Max open files +{files_allowed()} +{files_allowed()} ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user"), "in a namespace it could not tell users apart"


def test_it_does_not_stop_what_systemd_listens_for() -> None:
    assert "stop it there" in ada("fencectl", "stop", "--user", code=1)


def test_it_leaves_when_it_is_idle_and_comes_back() -> None:
    home = Path(pwd.getpwnam("ada").pw_dir, ".config/systemd/user/fencebroker.service.d")
    ada("mkdir", "-p", str(home))
    (home / "test.conf").write_text("[Service]\nExecStart=\nExecStart=/usr/bin/fencebrokerd --user --idle-exit 0.3\n")
    ada("systemctl", "--user", "daemon-reload")
    ada("systemctl", "--user", "restart", "fencebroker.service")
    until(lambda: show("ActiveState") == "inactive", "the end of an idle broker")
    assert show("Result") == "success"
    ada("fencectl", "status")
    ada("systemctl", "--user", "disable", "--now", "fencebroker.socket")
    run("loginctl", "disable-linger", "ada")
