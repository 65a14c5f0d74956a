"""The package is upgraded, removed and purged: an upgrade loses no fence, a configuration is kept, and in the end nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.systemd.inside.machine import CONFIG, SOCKET, Holder, as_user, broker, listing, run, show, status, until
from tests.systemd.inside.test_package import BEFORE

NEXT = next(Path("/opt/test/next").glob("*.deb"))


def test_an_upgrade_changes_the_broker_that_runs(hold: Callable[[str, int], Holder]) -> None:
    run("systemctl", "restart", "fencebroker")
    pid = broker()
    holder = hold("ada", 2)
    CONFIG.write_text(CONFIG.read_text() + "timelines_per_uid = 77\n")
    said = run("dpkg", "-i", str(NEXT))
    assert "warning" not in said.lower(), said
    found = until(lambda: (now := status())["version"] == "99.0.0" and now, "the new version")
    assert (found["keeper_pid"], found["recoveries"], found["reloads"]) == (pid, 0, 1)
    assert found["keeper_version"] != found["version"]
    run(*as_user("ada", "fencectl", "advance", "held", "1"))
    assert holder.line() == "ok"
    assert int(show("MainPID")) == pid
    assert "timelines_per_uid = 77" in CONFIG.read_text()
    assert run("fencebrokerd", "--check-config", "--config", str(CONFIG)).count("= 77") == 1


def test_an_upgrade_starts_no_broker_that_nobody_asked_for() -> None:
    run("systemctl", "stop", "fencebroker.service")
    run("dpkg", "-i", str(NEXT))
    assert show("ActiveState") == "inactive"
    assert show("ActiveState", "fencebroker.socket") == "active"


def test_what_an_administrator_disabled_stays_so() -> None:
    run("systemctl", "disable", "fencebroker.socket")
    run("dpkg", "-i", str(NEXT))
    assert run("systemctl", "is-enabled", "fencebroker.socket", code=1).strip() == "disabled"
    run("systemctl", "enable", "fencebroker.socket")


def test_a_removal_ends_it_and_keeps_the_configuration() -> None:
    broker()
    run("dpkg", "-r", "fencebroker")
    assert not SOCKET.parent.exists()
    assert show("ActiveState") == "inactive"
    assert "timelines_per_uid = 77" in CONFIG.read_text()


def test_it_comes_back_with_its_configuration() -> None:
    run("dpkg", "-i", str(NEXT))
    run("fencectl", "status")
    assert "timelines_per_uid = 77" in CONFIG.read_text()


def test_a_purge_leaves_nothing() -> None:
    run("dpkg", "-P", "fencebroker")
    before, after = json.loads(BEFORE.read_text()), listing()
    assert {path: state for path, state in after.items() if before.get(path) != state} == {}
    assert before.keys() - after.keys() == set()
    assert show("LoadState") == "not-found"
    assert show("LoadState", "fencebroker.socket") == "not-found"
