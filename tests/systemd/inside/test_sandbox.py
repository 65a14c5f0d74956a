"""The hardening is in force: what the unit may not do is tried from inside its sandbox, and fails; what the broker needs works."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.inside.machine import LIMIT, broker, files_allowed, run, show

PROBE = Path("/opt/test/tree/tests/systemd/inside/probe.py")
OUT = Path("/opt/test/probe.json")
UNIT = Path("/run/systemd/system/fencebroker-probe.service")


@pytest.fixture(scope="module")
def probed() -> dict[str, Any]:
    """Run the probe in the broker's own unit, with another command in it."""
    text = Path("/usr/lib/systemd/system/fencebroker.service").read_text()
    text = re.sub(r"^ExecStart=.*$", f"ExecStart=/usr/bin/python3 {PROBE}\nStandardOutput=file:{OUT}", text, flags=re.MULTILINE)
    text = re.sub(r"^Type=.*$", "Type=oneshot", text, flags=re.MULTILINE)
    text = re.sub(r"^(Restart|RestartSec|WatchdogSec|Requires|After|Also|ExecReload)=.*\n", "", text, flags=re.MULTILINE)
    UNIT.write_text(text)
    run("systemctl", "daemon-reload")
    subprocess.run(["systemctl", "start", UNIT.name], check=False, timeout=LIMIT)
    assert show("Result", UNIT.name) == "success", run("journalctl", "-o", "cat", "-u", UNIT.name)
    UNIT.unlink()
    run("systemctl", "daemon-reload")
    found: dict[str, Any] = json.loads(OUT.read_text())
    return found


def test_what_it_may_not_do_fails(probed: dict[str, Any]) -> None:
    done = {what: outcome for what, outcome in probed["forbidden"].items() if outcome == "done"}
    assert not done
    assert len(probed["forbidden"]) > 25


def test_each_fails_for_the_reason_that_the_unit_gives(probed: dict[str, Any]) -> None:
    """A probe that fails for some other reason would prove nothing."""
    wrong = {
        what: (outcome, probed["expected"][what])
        for what, outcome in probed["forbidden"].items()
        if outcome not in probed["expected"][what].split("|")
    }
    assert not wrong


def test_what_the_broker_needs_works(probed: dict[str, Any]) -> None:
    assert {what: outcome for what, outcome in probed["needed"].items() if outcome != "done"} == {}


def test_the_probe_sees_nothing_of_others(probed: dict[str, Any]) -> None:
    assert probed["seen"]["interfaces"] == ["lo"]
    assert probed["seen"]["/tmp"] == []
    assert probed["seen"]["uid"] == pwd.getpwnam("fencebroker").pw_uid


def test_the_broker_has_no_privileges() -> None:
    pid = broker()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(pwd.getpwnam("fencebroker").pw_uid)] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind


def can_be_spared() -> bool:
    """Whether this machine lets root make a process less likely to be killed."""
    try:
        Path("/proc/self/oom_score_adj").write_text("-900")
    except PermissionError:
        return False
    Path("/proc/self/oom_score_adj").write_text("0")
    return True


def test_limits_are_in_force() -> None:
    pid = broker()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(rf"^Max open files +{files_allowed()} +{files_allowed()} ", limits, re.MULTILINE)
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    if can_be_spared():
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-900"
    assert show("OOMScoreAdjust") == "-900"
    status = json.loads(run("fencectl", "status", "--json"))
    assert files_allowed() - 100 < status["descriptor_limit"] < files_allowed()
    assert (show("MemoryMax"), show("MemorySwapMax"), show("TasksMax")) == (str(512 << 20), "0", "16")
