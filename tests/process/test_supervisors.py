"""docs/running.md under the supervisors that it names: the files on the page are the ones that are tried."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

import fencebroker as fb
from tests.helpers import LIMIT, Child, Spawn, not_run, wait_gone

PAGE: Final = (Path(__file__).parents[2] / "docs" / "running.md").read_text("utf-8")
#: The page calls the commands by their names.
ENV: Final = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def write_service(folder: Path, supervisor: str, socket: str) -> Path:
    """Write the files of a service from the page: here the socket is elsewhere, the user is whoever runs the tests, and a start is told."""
    service = folder / "fencebroker"
    service.mkdir()
    found = re.findall(rf"<!-- {supervisor}: ([\w-]+) -->\n```\w*\n(.*?)```", PAGE, re.DOTALL)
    assert found
    for name, text in found:
        changed = (
            text.replace("/run/fencebroker/broker.sock", socket)
            .replace("s6-setuidgid fencebroker ", "")
            .replace("chpst -u fencebroker ", "")
        )
        if name == "run":
            changed = changed.replace("#!/bin/sh\n", "#!/bin/sh\necho started\n", 1)
        (service / name).write_text(changed)
        if text.startswith("#!"):
            (service / name).chmod(0o755)
    return service


def supervise(spawn: Spawn, *argv: str | Path) -> Child:
    """Start a supervisor; its standard output is also that of what it starts."""
    if shutil.which(str(argv[0])) is None:
        not_run(f"{argv[0]} is not installed")
    supervisor = spawn([str(word) for word in argv], env=ENV)
    assert supervisor.line() == "started"
    return supervisor


def serving(spawn: Spawn, socket: str, who: str = "pid") -> int:
    """The pid of the broker that answers, or of its keeper."""
    return int(json.loads(spawn(["fencectl", "status", "--json", "--socket", socket], env=ENV).finish())[who])


def test_s6(spawn: Spawn, folder: str, tmp_path: Path) -> None:
    """s6-svwait -U returns when clients can connect; a killed keeper is started again."""
    socket = f"{folder}/broker.sock"
    service = write_service(tmp_path, "s6", socket)
    supervisor = supervise(spawn, "s6-supervise", service)
    spawn(["s6-svwait", "-U", "-t", str(int(LIMIT * 1000)), str(service)]).finish()
    pid = serving(spawn, socket)
    os.kill(serving(spawn, socket, "keeper_pid"), signal.SIGKILL)
    assert supervisor.line() == "started"
    spawn(["s6-svwait", "-U", "-t", str(int(LIMIT * 1000)), str(service)]).finish()
    assert serving(spawn, socket) != pid
    pid = serving(spawn, socket)
    spawn(["s6-svc", "-dx", str(service)]).finish()
    wait_gone(pid)
    assert supervisor.wait() == 0


def test_s6_does_not_retry_a_wrong_configuration(spawn: Spawn, folder: str, tmp_path: Path) -> None:
    """Exit code 2 becomes 125: down for good."""
    service = write_service(tmp_path, "s6", f"{folder}/broker.sock")
    run = service / "run"
    run.write_text(run.read_text().replace("--ready-fd 3", "--ready-fd 3 --log-level loud"))
    supervisor = supervise(spawn, "s6-supervise", service)
    spawn(["s6-svwait", "-D", "-t", str(int(LIMIT * 1000)), str(service)]).finish()
    assert "down (exitcode 2)" in spawn(["s6-svstat", str(service)]).finish()
    spawn(["s6-svc", "-x", str(service)]).finish()
    assert supervisor.wait() == 0
    assert "must be one of error, warning, notice, info, debug, not 'loud'" in supervisor.log()


def test_runit(spawn: Spawn, folder: str, tmp_path: Path) -> None:
    """``sv start`` returns when ``check`` says that clients are served; ``sv hup`` reloads, ``sv exit`` ends it in order."""
    socket = f"{folder}/broker.sock"
    service = write_service(tmp_path, "runit", socket)
    supervisor = supervise(spawn, "runsv", service)
    assert "ok: run" in spawn(["sv", "-w", str(int(LIMIT)), "start", str(service)], env=ENV).finish()
    pid = serving(spawn, socket)
    with fb.connect(socket) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        spawn(["sv", "hup", str(service)]).finish()
        connection.create_timeline().close()
        timeline.advance(1)
        fence.wait(LIMIT)
        until = time.monotonic() + LIMIT
        while serving(spawn, socket) == pid:  # a reload is a broker of its own
            assert time.monotonic() < until
    spawn(["sv", "exit", str(service)]).finish()
    assert supervisor.wait() == 0
    assert "the configuration was read again" in (said := supervisor.rest())
    assert "stopped: 0 active fences completed with ECANCELED" in said


def test_a_script_of_its_own(spawn: Spawn, folder: str) -> None:
    """The script on the page waits for the newline, uses the broker and ends it."""
    (script,) = re.findall(r"<!-- shell: script -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    child = spawn(["sh", "-ec", script], cwd=folder, env=ENV)
    assert child.finish() == "serving\n"
    assert "stopped: 0 active fences" in child.log()
