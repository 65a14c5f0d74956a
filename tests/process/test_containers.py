"""docs/containers.md: brokers and clients in namespaces of their own, as the page says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.helpers import BrokerProcess, Child, Spawn, complaints, not_run, wait_readable

PAGE: Final = (Path(__file__).parents[2] / "docs" / "containers.md").read_text("utf-8")
#: The program that the page tells its reader to save.
WHO: Final = re.search(r"<!-- runnable: who\.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1]  # type: ignore[index]
#: What the page shows that it prints: pid and uid here, pid and command for the broker.
SEEN: Final = re.compile(r"here: pid (\d+), uid (\d+); for the broker: pid (\d+), (.+)\nsignalled: 1\n")
REFUSED: Final = re.search(r"```\n(the broker sees uid 65534, .*)\n```", PAGE)[1]  # type: ignore[index]


@pytest.fixture
def who(tmp_path: Path) -> str:
    """Save the page's program as it says."""
    path = tmp_path / "who.py"
    path.write_text(WHO, "utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Skip where namespaces of one's own are not allowed."""
    if shutil.which("unshare") is None:
        not_run("namespaces: no command unshare")
    tried = subprocess.run(["unshare", "-Upnr", "--fork", "--mount-proc", "true"], capture_output=True, text=True, timeout=20, check=False)
    if tried.returncode:
        not_run(f"namespaces: {tried.stderr.strip()}")


def start_broker_in(spawn: Spawn, folder: str, *unshare: str, env: dict[str, str] | None = None) -> tuple[Child, dict[str, str]]:
    """Start a broker in namespaces of its own; returns it, and what its clients need in their environment."""
    path = f"{folder}/broker.sock"
    ready, told = os.pipe2(os.O_CLOEXEC)
    try:
        command = ["unshare", *unshare, "--fork", sys.executable, "-m", "fencebrokerd", "--listen", path, "--ready-fd", str(told)]
        child = spawn(command, pass_fds=[told], cwd=folder, env=env)
        os.close(told)
        told = -1
        wait_readable(ready)
        assert os.read(ready, 1) == b"\n", child.log()
    finally:
        os.close(ready)
        if told >= 0:
            os.close(told)
    return child, {"FENCEBROKER_SOCKET": path}


def stop_broker_in(unshare: Child) -> None:
    """End a broker whose pid ``unshare`` keeps to itself."""
    (broker,) = psutil.Process(unshare.pid).children()
    broker.send_signal(signal.SIGTERM)
    assert unshare.wait() == 0, unshare.log()
    assert not complaints(unshare.log())


def seen(printed: str) -> tuple[int, int, int, str]:
    found = SEEN.fullmatch(printed)
    assert found is not None, printed
    return int(found[1]), int(found[2]), int(found[3]), found[4]


def test_the_page_shows_what_the_program_prints() -> None:
    assert len(SEEN.findall(PAGE)) == 4
    assert PAGE.count(REFUSED) == 2


@pytest.mark.parametrize(("options", "uid_inside"), [(["-Upn"], 65534), (["-Upnr", "--mount-proc"], 0)])
def test_a_client_inside_is_seen_as_who_it_is_outside(
    broker: BrokerProcess, spawn: Spawn, who: str, options: list[str], uid_inside: int
) -> None:
    client = spawn(["unshare", *options, "--fork", sys.executable, who], env=broker.env)
    pid, uid, pid_for_broker, comm = seen(client.finish())
    assert (pid, uid) == (1, uid_inside)
    assert pid_for_broker > 1
    assert comm == "who.py"


def test_a_client_that_the_broker_inside_cannot_see_has_pid_0(spawn: Spawn, folder: str, who: str) -> None:
    broker, env = start_broker_in(spawn, folder, "-Upnr", "--mount-proc")
    client = spawn([sys.executable, who], env=env)
    assert seen(client.finish()) == (client.pid, os.getuid(), 0, "who.py")
    stop_broker_in(broker)


def test_a_user_that_the_broker_inside_does_not_know_is_refused(spawn: Spawn, folder: str, who: str) -> None:
    broker, env = start_broker_in(spawn, folder, "-Upn")
    client = spawn([sys.executable, who], env=env)
    assert client.wait() == 1
    assert client.log().splitlines()[-1] == f"PermissionError: [Errno 1] {REFUSED}"
    stop_broker_in(broker)


def test_it_is_served_if_the_broker_is_told_to(spawn: Spawn, folder: str, who: str) -> None:
    broker, env = start_broker_in(spawn, folder, "-Upn", env={"FENCEBROKERD_ALLOW_OVERFLOW_UID": "true"})
    client = spawn([sys.executable, who], env=env)
    assert seen(client.finish()) == (client.pid, os.getuid(), 0, "who.py")
    stop_broker_in(broker)


def test_a_client_without_proc_is_told_so(broker: BrokerProcess, spawn: Spawn) -> None:
    message = re.search(r"`(\[Errno 38\] /proc is not mounted; .*?)`", PAGE)[1]  # type: ignore[index]
    program = "import os, fencebroker; fencebroker.SyncFile.from_fd(os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC))"
    inside = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", sys.executable, "-c", program]
    client = spawn(["unshare", "-Umr", *inside], env=broker.env)
    assert client.wait() == 1
    assert client.log().splitlines()[-1] == f"OSError: {message}"
