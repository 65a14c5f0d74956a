"""The life of the service: on demand, ready, reloaded, restarted, killed, found out by the watchdog, stopped."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable

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
    until,
)

Hold = Callable[[str, int], Holder]
ECANCELED = "125"


def wait_for_the_next(pid: int) -> None:
    """Wait until systemd runs another broker than this one."""
    until(lambda: show("MainPID") not in ("0", str(pid)), "the next broker")


def test_the_first_client_starts_it() -> None:
    assert show("ActiveState") == "inactive"
    status = json.loads(run("fencectl", "status", "--json"))
    assert show("ActiveState") == "active"
    assert status["socket"] == str(SOCKET)
    assert status["pid"] == int(show("MainPID"))
    assert os.readlink(f"/proc/{status['pid']}/cwd") == "/"


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
    pid = broker()
    run("fencectl", "status")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "did not answer" in run("fencectl", "status", "--timeout", "0.5", code=4)
    finally:
        os.kill(pid, signal.SIGCONT)
    run("fencectl", "status")


def test_a_reload_loses_nothing(hold: Hold) -> None:
    pid = broker()
    holder = hold("ada", 2)
    with configured("[limits]\ntimelines_per_uid = 1\n"):
        reload()
        code = 'import fencebroker as fb\nfb.connect("/run/fencebroker/broker.sock").create_timeline()'
        assert "timelines per user: 1 of 1 are in use" in run(*as_user("ada", PYTHON, "-c", code), code=1)
    reload()
    run(*as_user("ada", PYTHON, "-c", code))
    assert int(show("MainPID")) == pid
    assert show("ActiveState") == "active"
    run(*as_user("ada", "fencectl", "advance", "held", "1"))
    assert holder.line() == "ok"


def test_a_wrong_configuration_does_not_get_in() -> None:
    pid = broker()
    with configured("log_level = 'loud'\n"):
        reload()
        assert "must be one of error, warning, notice, info, debug, not 'loud'" in reloads()[-1]
    reload()
    assert int(show("MainPID")) == pid


def test_a_restart_completes_active_fences(hold: Hold) -> None:
    pid = broker()
    holder = hold("ada", 3)
    run("systemctl", "restart", "fencebroker")
    assert holder.line() == ECANCELED
    assert int(show("MainPID")) != pid
    assert "fencebrokerd stopped: 3 active fences completed with ECANCELED" in messages()
    run(*as_user("ada", "fencectl", "status"))


def test_a_killed_broker_is_started_again(hold: Hold) -> None:
    """More often than systemd's usual limit of five in ten seconds; who connects meanwhile waits in the socket."""
    with changed("fencebroker.service", "[Service]\nRestartSec=0\n"):
        for _ in range(7):
            pid = broker()
            os.kill(pid, signal.SIGKILL)
            wait_for_the_next(pid)
    assert show("ActiveState") == "active"
    run(*as_user("ada", "fencectl", "status"))


def test_the_watchdog_lets_a_healthy_broker_live() -> None:
    with changed("fencebroker.service", "[Service]\nWatchdogSec=600ms\n"):
        run("systemctl", "restart", "fencebroker")
        pid, first = int(show("MainPID")), show("WatchdogTimestampMonotonic")
        until(lambda: int(show("WatchdogTimestampMonotonic")) > int(first) + 1_500_000, "a second and a half of watchdog")
        assert int(show("MainPID")) == pid
        assert "0 clients" in show("StatusText"), "the watchdog's own connection is no client"


def test_the_watchdog_kills_a_stopped_broker(hold: Hold) -> None:
    """Clients connect again to the next one."""
    with changed("fencebroker.service", "[Service]\nWatchdogSec=1s\n"):
        run("systemctl", "restart", "fencebroker")
        pid = int(show("MainPID"))
        os.kill(pid, signal.SIGSTOP)
        client = subprocess.Popen(as_user("ada", "fencectl", "status"), stdout=subprocess.PIPE)
        wait_for_the_next(pid)
        assert client.wait(LIMIT) in (0, 4)
        assert client.stdout is not None
        client.stdout.close()
        run("journalctl", "--sync")
        said = run("journalctl", "-o", "cat", "-u", "fencebroker.service", "-n", "30")
        assert "Watchdog timeout" in said
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
