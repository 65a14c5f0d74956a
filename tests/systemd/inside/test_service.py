"""The life of the service: on demand, ready, reloaded, restarted, killed, found out by the watchdog, stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.systemd.inside.machine import (
    LIMIT,
    PYTHON,
    SOCKET,
    Holder,
    as_user,
    broker,
    changed,
    configured,
    journal,
    messages,
    reload,
    reloads,
    run,
    show,
    status,
    until,
)

Hold = Callable[[str, int], Holder]
ECANCELED = "125"


def wait_for_the_next(pid: int) -> None:
    """Wait until systemd runs another broker than this one."""
    until(lambda: show("MainPID") not in ("0", str(pid)), "the next broker")


def test_the_first_client_starts_it() -> None:
    assert show("ActiveState") == "inactive"
    found = status()
    assert show("ActiveState") == "active"
    assert found["socket"] == str(SOCKET)
    assert found["keeper_pid"] == int(show("MainPID"))
    assert (found["generation"], found["recoveries"]) == (1, 0)
    assert os.readlink(f"/proc/{found['pid']}/cwd") == "/"


def test_it_is_active_when_clients_are_answered() -> None:
    """Type=notify: ``systemctl start`` returns when READY=1 was said."""
    run("systemctl", "stop", "fencebroker.service")
    run("systemctl", "start", "fencebroker.service")
    assert show("ActiveState") == "active"
    run("fencectl", "status")
    assert show("NRestarts") == "0"


def test_systemctl_status_says_how_it_is(hold: Hold) -> None:
    """STATUS= changes with clients and timelines."""
    until(lambda: show("StatusText") == "0 clients, 0 timelines", "the status of a broker without clients")
    hold("ada", 3)
    until(lambda: show("StatusText") == "1 client, 1 timeline", "the status with one client")
    assert "1 client, 1 timeline" in run("systemctl", "status", "fencebroker")


def test_the_health_check() -> None:
    """``fencectl status`` ends with 0 when the broker answers, with 4 when it does not."""
    pids = broker(), status()["pid"]
    for pid in pids:  # the keeper first: it replaces a broker that is stopped
        os.kill(pid, signal.SIGSTOP)
    try:
        assert "did not answer" in run("fencectl", "status", "--timeout", "0.5", code=4)
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
    run("fencectl", "status")


def test_a_reload_loses_nothing(hold: Hold) -> None:
    pid, before = broker(), status()
    holder = hold("ada", 2)
    with configured("[limits]\ntimelines_per_uid = 1\n"):
        reload()
        code = 'import fencebroker as fb\nfb.connect("/run/fencebroker/broker.sock").create_timeline()'
        assert "timelines per user: 1 of 1 are in use" in run(*as_user("ada", PYTHON, "-c", code), code=1)
    reload()
    run(*as_user("ada", PYTHON, "-c", code))
    assert int(show("MainPID")) == pid
    assert show("ActiveState") == "active"
    now = status()
    assert now["pid"] != before["pid"]
    assert (now["generation"], now["reloads"]) == (before["generation"] + 2, before["reloads"] + 2)
    run(*as_user("ada", "fencectl", "advance", "held", "1"))
    assert holder.line() == "ok"


def test_a_wrong_configuration_does_not_get_in() -> None:
    pid, before = broker(), status()["pid"]
    with configured("log_level = 'loud'\n"):
        reload()
        assert "must be one of error, warning, notice, info, debug, not 'loud'" in reloads()[-1]
        until(lambda: any("the broker goes on as it is" in text for text in messages()), "the keeper's word")
    assert status()["pid"] == before
    reload()
    assert int(show("MainPID")) == pid


def test_code_that_does_not_start_does_not_get_in(hold: Hold) -> None:
    """An installation that went wrong: the broker that runs goes on, and the journal says why."""
    pid, before = broker(), status()["pid"]
    holder = hold("ada", 1)
    (file,) = Path("/usr/lib/fencebroker").glob("lib/python3*/site-packages/fencebrokerd/shell/server.py")
    text = file.read_text()
    n = len([text for text in messages() if "the broker goes on as it is" in text])
    file.write_text(text + "\nimport something_that_is_not_there\n")
    try:
        run("systemctl", "reload", "fencebroker")
        until(lambda: len([text for text in messages() if "the broker goes on as it is" in text]) > n, "the keeper's word")
    finally:
        file.write_text(text)
    assert any("No module named 'something_that_is_not_there'" in text for text in messages())
    assert (int(show("MainPID")), status()["pid"], show("ActiveState")) == (pid, before, "active")
    run(*as_user("ada", "fencectl", "advance", "held", "1"))
    assert holder.line() == "ok"


def test_a_restart_completes_active_fences(hold: Hold) -> None:
    pid = broker()
    holder = hold("ada", 3)
    run("systemctl", "restart", "fencebroker")
    assert holder.line() == ECANCELED
    assert int(show("MainPID")) != pid
    assert "fencebrokerd stopped: 3 active fences completed with ECANCELED" in messages()
    run(*as_user("ada", "fencectl", "status"))


def test_a_killed_broker_is_replaced_and_systemd_hears_nothing_of_it(hold: Hold) -> None:
    """In the sandbox of the unit: the unit stays active, and the fences stay, also for a poll()."""
    pid, restarts, before = broker(), show("NRestarts"), status()
    holder = hold("ada", 3)
    for _ in range(7):
        os.kill(status()["pid"], signal.SIGKILL)
    now = status()
    assert (now["recoveries"], now["last_reason"]) == (before["recoveries"] + 7, "it was ended by SIGKILL")
    assert (now["timelines"], now["active_fences"], now["keeper_pid"]) == (1, 3, pid)
    assert (int(show("MainPID")), show("NRestarts"), show("ActiveState")) == (pid, restarts, "active")
    until(lambda: show("StatusText") == "1 client, 1 timeline", "the status that the next broker says")
    run(*as_user("ada", "fencectl", "advance", "held", "1"))
    assert holder.line() == "ok"
    assert not [text for text in messages() if "a fault of the broker's own" in text]


def test_a_killed_keeper_is_started_again(hold: Hold) -> None:
    """What was active is completed; more often than systemd's usual limit of five in ten seconds; who connects meanwhile waits in the socket."""
    broker()
    holder = hold("ada", 1)
    with changed("fencebroker.service", "[Service]\nRestartSec=0\n"):
        for _ in range(7):
            pid = broker()
            os.kill(pid, signal.SIGKILL)
            wait_for_the_next(pid)
    assert holder.line() == ECANCELED
    run(*as_user("ada", "fencectl", "status"))
    assert show("ActiveState") == "active"


def test_the_watchdog_lets_a_healthy_broker_live() -> None:
    with changed("fencebroker.service", "[Service]\nWatchdogSec=600ms\n"):
        run("systemctl", "restart", "fencebroker")
        pid, first = int(show("MainPID")), show("WatchdogTimestampMonotonic")
        until(lambda: int(show("WatchdogTimestampMonotonic")) > int(first) + 1_500_000, "a second and a half of watchdog")
        assert int(show("MainPID")) == pid
        assert "0 clients" in show("StatusText"), "the watchdog's own connection is no client"


def test_the_watchdog_ends_a_stopped_broker(hold: Hold) -> None:
    """Keeper and all, for a keeper would have replaced it.  What is active is completed, and clients connect again to the next one."""
    with changed("fencebroker.service", "[Service]\nWatchdogSec=1s\n"):
        run("systemctl", "restart", "fencebroker")
        holder = hold("ada", 1)
        pid = int(show("MainPID"))
        for each in (pid, status()["pid"]):
            os.kill(each, signal.SIGSTOP)
        client = subprocess.Popen(as_user("ada", "fencectl", "status"), stdout=subprocess.PIPE)
        wait_for_the_next(pid)
        assert client.wait(LIMIT) in (0, 4)
        assert client.stdout is not None
        client.stdout.close()
        run("journalctl", "--sync")
        said = run("journalctl", "-o", "cat", "-u", "fencebroker.service", "-n", "30")
        assert "Watchdog timeout" in said
        assert holder.line() == ECANCELED
        assert "Failed with result 'watchdog'" in said
        run(*as_user("ada", "fencectl", "status"))
    run("systemctl", "restart", "fencebroker")


def test_a_wrong_configuration_at_the_start_is_cured_by_the_right_one() -> None:
    """The socket keeps listening, whoever connects waits, and nobody has to reset anything."""
    run("systemctl", "stop", "fencebroker.service")
    with configured("[limits]\ntimelines = 0\n"):
        said = run("systemctl", "start", "fencebroker.service", code=1)
        assert "control process exited" in said or "failed" in said
        until(
            lambda: any("limits.timelines: must be a positive integer, not 0" in text for text in messages()), "the reason in the journal"
        )
        client = subprocess.Popen(as_user("ada", "fencectl", "status"), stdout=subprocess.PIPE)
        assert client.stdout is not None
        assert select.select([client.stdout], [], [], 0.5)[0] == []
        assert show("ActiveState", "fencebroker.socket") == "active"
    assert client.wait(LIMIT) == 0
    client.stdout.close()
    assert show("ActiveState") == "active"


def test_a_healthy_run_has_two_lines() -> None:
    run("systemctl", "restart", "fencebroker")
    n = len(journal("_SYSTEMD_INVOCATION_ID=" + show("InvocationID")))
    run("fencectl", "status")
    invocation = show("InvocationID")
    run("systemctl", "stop", "fencebroker.service")
    lines = [str(entry["MESSAGE"]) for entry in journal(f"_SYSTEMD_INVOCATION_ID={invocation}") if "SYSLOG_IDENTIFIER" in entry]
    own = [line for line in lines if line.startswith("fencebrokerd ")]
    assert n >= 1
    assert len(own) == 2
    assert own[1] == "fencebrokerd stopped: 0 active fences completed with ECANCELED"


def test_a_stop_completes_active_fences_and_takes_the_socket_away(hold: Hold) -> None:
    broker()
    holder = hold("ada", 1)
    run("systemctl", "stop", "fencebroker.socket", "fencebroker.service")
    assert holder.line() == ECANCELED
    assert "fencebrokerd stopped: 1 active fence completed with ECANCELED" in messages()
    assert not SOCKET.exists()
    assert SOCKET.parent.is_dir(), "a container that has the folder mounted must see the next socket"
    assert "no broker answers" in run("fencectl", "status", code=4)
    run("systemctl", "start", "fencebroker.socket")
    run("fencectl", "status")
