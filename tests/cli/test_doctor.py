"""doctor: each finding, and the cure of what is not well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

import fencebroker as fb
from fencebroker.cli.doctor import CHECKS, of_probes, of_scope
from fencebroker.cli.probes import PROBES, Probe
from tests.cli.conftest import FENCECTL, Fencectl, end_of
from tests.cli.test_broker_verbs import OTHER_VERSION, pretend
from tests.cli.test_schema import documented
from tests.helpers import not_run, wait_readable

if TYPE_CHECKING:
    from tests.helpers import BrokerProcess, Spawn

STATES: Final = {"ok", "note", "bad"}


def findings(value: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [each for each in value["findings"] if each["check"] == check]


def test_all_is_well(fencectl: Fencectl, broker: BrokerProcess) -> None:
    result = fencectl("doctor")
    assert (result.code, result.err) == (0, "")
    value = fencectl("doctor", "--json").json()
    assert value["reachable"] is True
    assert {each["check"] for each in value["findings"]} == set(CHECKS)
    assert all(each.keys() == documented("finding") and each["state"] in STATES for each in value["findings"])
    (found,) = findings(value, "broker")
    assert found["found"].startswith(f"pid {broker.pid}, fencebroker {fb.__version__}, ")
    (kernel,) = findings(value, "kernel")
    assert (kernel["state"], kernel["cure"]) == ("ok", None)


def test_every_finding_that_is_not_well_has_a_cure(alone: Fencectl) -> None:
    result = alone("doctor", "--json")
    assert result.code == 4
    value = result.json()
    assert value["reachable"] is False
    (found,) = findings(value, "broker")
    assert found["state"] == "bad"
    assert found["cure"].startswith("fencectl start --user, or ")
    assert all(each["cure"] for each in value["findings"] if each["state"] != "ok")
    assert "cure: fencectl start --user" in alone("doctor", "broker").out


def test_only_what_is_asked_for(fencectl: Fencectl) -> None:
    value = fencectl("doctor", "kernel", "ptrace", "--json").json()
    assert {each["check"] for each in value["findings"]} == {"kernel", "ptrace"}
    refused = fencectl("doctor", "everything")
    assert refused.code == 2
    assert "'everything'" in refused.one_error()


def test_a_broker_that_is_named_and_is_not_there(alone: Fencectl, folder: str) -> None:
    result = alone("doctor", "broker", "--socket", f"{folder}/nothing")
    assert result.code == 4
    assert "leave --socket and $FENCEBROKER_SOCKET out" in result.out


def test_a_broker_of_another_version(spawn: Spawn, alone: Fencectl, folder: str) -> None:
    pretend(spawn, f"{folder}/other", OTHER_VERSION)
    (found,) = alone("doctor", "broker", "--socket", f"{folder}/other", "--json").json()["findings"]
    assert found["found"].startswith("this broker speaks version 2")
    assert found["cure"].startswith("restart the older of the two")


def test_a_broker_that_is_stopped(fencectl: Fencectl, broker: BrokerProcess) -> None:
    pids = (broker.process.pid, broker.pid)  # the keeper first, which would replace a broker that is stopped
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        (found,) = fencectl("doctor", "broker", "--json").json()["findings"]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert "did not answer" in found["found"]
    assert "kill -CONT" in found["cure"]


def test_a_runtime_folder_that_is_not_there(fencectl: Fencectl) -> None:
    result = fencectl("doctor", "--json", env={"XDG_RUNTIME_DIR": "/nowhere/at/all"})
    assert result.code == 1
    (bad,) = [each for each in result.json()["findings"] if each["state"] == "bad"]
    assert bad["check"] == "access"
    assert "/nowhere/at/all" in bad["found"]
    assert "XDG_RUNTIME_DIR" in bad["cure"]


def test_a_low_limit_of_ones_own(spawn: Spawn, fencectl: Fencectl) -> None:
    result = end_of(spawn(["sh", "-c", f"ulimit -S -n 512; {FENCECTL} doctor limits"], env=fencectl.env))
    assert result.code == 0
    note, cure, *_ = result.lines()
    assert note.startswith("note")
    assert "your programs: 512 descriptors" in note
    assert "cure: " in cure
    assert "ulimit -n " in cure


def test_a_broker_whose_descriptors_are_nearly_used_up(spawn: Spawn, folder: str, alone: Fencectl) -> None:
    path = f"{folder}/broker"
    ready, told = os.pipe()
    argv = [sys.executable, "-m", "fencebrokerd", "--listen", path, "--ready-fd", str(told)]
    broker = spawn(["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *argv], pass_fds=[told], cwd=folder)
    os.close(told)
    wait_readable(ready)
    os.close(ready)
    with fb.connect(path) as connection, connection.create_timeline() as timeline:
        fences = timeline.export_many(range(1, 120))
        (_, found) = alone("doctor", "limits", "--socket", path, "--json").json()["findings"]
        for fence in fences:
            fence.close()
    assert "soft limit 256, hard 256" in found["found"]
    words = found["found"].split()
    assert found["state"] == ("bad" if int(words[-3]) >= 0.9 * (int(words[2]) - 64) else "ok"), found
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0


def test_a_broker_in_another_pid_namespace(spawn: Spawn, fencectl: Fencectl) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True, check=False, timeout=20).returncode:
        not_run("making a pid namespace needs unshare and root")
    result = end_of(spawn([*unshare, FENCECTL, "doctor", "namespaces", "--json"], env=fencectl.env))
    (found,) = result.json()["findings"]
    assert found["state"] == "note"
    assert "another pid namespace" in found["found"]
    assert "containers.md" in found["cure"]


# Findings of other machines


def fails() -> bool:
    raise OSError(38, "Function not implemented")


def test_what_the_kernel_lacks() -> None:
    good = Probe("good", "nothing", "3.0", True, lambda: True)
    lacking = [Probe("a", "this", "5.3", True, fails), Probe("b", "that", "", False, lambda: False)]
    assert [finding.state for finding in of_probes([good])] == ["ok"]
    first, second = of_probes([good, *lacking])
    assert (first.state, first.found) == ("bad", "a does not work: this")
    assert (second.state, second.found) == ("note", "b does not work: that")
    assert first.cure is not None
    assert first.cure.startswith("Linux 5.3 or newer; ")


def test_every_probe_gives_back_what_it_took() -> None:
    for probe in PROBES:
        assert probe.works() in (True, False)


@pytest.mark.parametrize(
    ("scope", "may", "state"),
    [(None, False, "ok"), (0, False, "ok"), (1, True, "ok"), (2, True, "ok"), (1, False, "note"), (2, False, "note"), (3, True, "note")],
)
def test_yama(scope: int | None, may: bool, state: str) -> None:
    finding = of_scope(scope, may)
    assert finding.state == state
    assert (finding.cure is None) == (state == "ok")
