"""``make install`` for real: into /usr/local of a machine with systemd, over itself, and away again without a trace."""

from __future__ import annotations

import os
import pwd

from tests.systemd.inside.machine import SOCKET, broker, listing, run, show

TREE = "/opt/test/tree"
#: As the Makefile calls its scripts; the packages that it needs were fetched before.
ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    "RUN": "/opt/venv/bin/python3",
    "PYTHON": "/usr/bin/python3",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/opt/test/wheels",
}


def test_it_is_installed_run_and_removed() -> None:
    before = listing()
    said = run(f"{TREE}/packaging/install.sh", env=ENV)
    assert "installed in /usr/local; start it with: systemctl enable --now fencebroker.socket" in said
    assert pwd.getpwnam("fencebroker").pw_uid < 1000
    assert show("ActiveState", "fencebroker.socket") == "inactive"
    run("systemctl", "enable", "--now", "fencebroker.socket")
    assert show("ActiveState") == "inactive"
    assert "/usr/local/bin" in run("sh", "-c", "command -v fencectl")
    pid = broker()
    assert "/usr/local/bin/fencebrokerd" in show("ExecStart")

    installed = listing()
    run(f"{TREE}/packaging/install.sh", env=ENV)
    assert listing().keys() == installed.keys()
    assert int(show("MainPID")) not in (0, pid), "what runs is what is installed"
    run("fencectl", "status")
    assert listing().keys() == installed.keys(), "the programs write no file that no list names"

    assert "removed from" in run(f"{TREE}/packaging/uninstall.sh", env=ENV)
    assert not SOCKET.exists()
    assert show("ActiveState") == "inactive"
    assert listing() == before
