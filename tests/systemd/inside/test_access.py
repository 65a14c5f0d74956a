"""Who may connect: the socket's group, then the two lists of the configuration; and what the broker says of whom."""

from __future__ import annotations

import json
import pwd
from collections.abc import Callable

from tests.systemd.inside.machine import SOCKET, Holder, as_user, broker, changed, configured, journal, reload, run


def connect(user: str, code: int = 0) -> str:
    return run(*as_user(user, "fencectl", "status", "--socket", str(SOCKET)), code=code)


def test_the_group_is_let_in_and_nobody_else() -> None:
    assert "everybody's" not in connect("ada")
    assert "Permission denied" in connect("bob", code=1)


def test_the_lists_refuse_with_a_text_and_one_entry_in_the_journal() -> None:
    """With a socket for everybody the configuration decides, and a reload changes it."""
    uid = pwd.getpwnam("bob").pw_uid
    with changed("fencebroker.socket", "[Socket]\nSocketMode=0666\n"), configured('[policy]\nallow_groups = ["fencebroker"]\n'):
        run("systemctl", "stop", "fencebroker.service")
        run("systemctl", "restart", "fencebroker.socket")
        broker()
        connect("ada")
        for _ in range(2):
            assert f"does not serve uid {uid}: neither allow_users nor allow_groups of the configuration names it" in connect("bob", code=1)
        (entry,) = journal(f"FENCEBROKER_UID={uid}")
        assert entry["FENCEBROKER_CAUSE"] == "not allowed"
        assert entry["PRIORITY"] == "4"
        assert entry["SYSLOG_IDENTIFIER"] == "fencebrokerd"
        assert entry["_UID"] == str(pwd.getpwnam("fencebroker").pw_uid)
        with configured('[policy]\nallow_users = ["bob"]\n'):
            reload()
            connect("bob")
            assert "does not serve uid" in connect("ada", code=1)
        reload()
    run("systemctl", "stop", "fencebroker.service")
    run("systemctl", "restart", "fencebroker.socket")
    assert "Permission denied" in connect("bob", code=1)


def test_an_incident_is_an_entry_with_fields() -> None:
    """A client that breaks the protocol is disconnected, and the journal knows who it was."""
    uid = pwd.getpwnam("ada").pw_uid
    code = (
        "import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"s.connect({str(SOCKET)!r})\ns.send(b'rubbish')\nassert s.recv(100) == b''"
    )
    run(*as_user("ada", "/usr/bin/python3", "-c", code))
    (entry,) = [entry for entry in journal(f"FENCEBROKER_UID={uid}") if entry["FENCEBROKER_CAUSE"] != "not allowed"]
    assert "disconnected pid" in entry["MESSAGE"]
    assert entry["PRIORITY"] == "4"


def test_listings_name_the_process(hold: Callable[[str, int], Holder]) -> None:
    """The sandbox lets the broker see what its clients are called."""
    holder = hold("ada", 1)
    (timeline,) = json.loads(run("fencectl", "ls", "timelines", "--json"))["timelines"]
    assert (timeline["owner"]["pid"], timeline["owner"]["uid"]) == (holder.process.pid, pwd.getpwnam("ada").pw_uid)
    assert timeline["owner"]["comm"].startswith("python")
