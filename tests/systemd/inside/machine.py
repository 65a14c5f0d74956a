"""A machine with a real systemd: how its tests ask and change it.  They run as root, in order, on a Debian that is thrown away afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

#: Seconds for one thing to come about, and for one command to end.  A healthy machine takes a tenth of them; CI may be a busy one.
LIMIT: Final = 30.0
COMMAND_LIMIT: Final = 90.0
SOCKET: Final = Path("/run/fencebroker/broker.sock")
CONFIG: Final = Path("/etc/fencebroker/fencebroker.toml")
#: The interpreter that the package's programs run in; it has the library.
PYTHON: Final = "/usr/lib/fencebroker/bin/python3"


def run(*argv: str, code: int = 0, **options: Any) -> str:
    """Run a command to its end; return what it wrote, and fail unless it ended with ``code``."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_LIMIT,
        check=False,
        **options,
    )
    assert done.returncode == code, f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def show(name: str, unit: str = "fencebroker.service") -> str:
    """Return a property of a unit as systemd has it now."""
    return run("systemctl", "show", "--value", "-p", name, unit).strip()


def until(check: Callable[[], Any], what: str) -> Any:
    """Ask again until the answer is true.  systemd tells of its changes only who subscribes on D-Bus; asking is simpler."""
    deadline = time.monotonic() + LIMIT
    while not (answer := check()):
        assert time.monotonic() < deadline, f"{what} did not come about within {LIMIT} s"
        select.select([], [], [], 0.02)
    return answer


def journal(*match: str) -> list[dict[str, Any]]:
    """Return the broker's entries in the journal, oldest first."""
    run("journalctl", "--sync")
    lines = run("journalctl", "-o", "json", "-u", "fencebroker.service", *match).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def messages() -> list[str]:
    """Return the texts of the journal."""
    return [str(entry["MESSAGE"]) for entry in journal()]


def broker() -> int:
    """Return the main process, the keeper, of the broker that runs; a client starts it if none does."""
    run("fencectl", "status")
    return int(show("MainPID"))


def status() -> dict[str, Any]:
    """Return what the broker says of itself."""
    found: dict[str, Any] = json.loads(run("fencectl", "status", "--json"))
    return found


def as_user(name: str, *argv: str) -> list[str]:
    """Return the command that runs another one as a user, with the user's groups."""
    entry = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "env", f"HOME={entry.pw_dir}", *argv]


def drop_in(unit: str, text: str) -> Path:
    """Change a unit the way an administrator does."""
    file = Path("/etc/systemd/system") / f"{unit}.d" / "test.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    run("systemctl", "daemon-reload")
    return file


@contextlib.contextmanager
def changed(unit: str, text: str) -> Iterator[None]:
    """A drop-in for the length of a block."""
    file = drop_in(unit, text)
    try:
        yield
    finally:
        shutil.rmtree(file.parent)
        run("systemctl", "daemon-reload")


@contextlib.contextmanager
def configured(text: str) -> Iterator[None]:
    """Another configuration for the length of a block.  Whoever wants it in force reloads."""
    before = CONFIG.read_text()
    CONFIG.write_text(text)
    try:
        yield
    finally:
        CONFIG.write_text(before)


def reload() -> None:
    """Have the broker read its configuration, and wait until it says what came of it."""
    n = len(reloads())
    run("systemctl", "reload", "fencebroker")
    until(lambda: len(reloads()) > n, "the reload")


def reloads() -> list[str]:
    return [text for text in messages() if text.startswith(("the configuration was read again", "the configuration stays"))]


#: Holds a timeline and so many active fences, says so, and then says how the first one ended.
HOLDER: Final = """
import sys
import fencebroker as fb
broker = fb.connect("/run/fencebroker/broker.sock", autostart=False)
timeline = broker.create_timeline("held")
fences = timeline.export_many(range(1, int(sys.argv[1]) + 1))
print("ready", flush=True)
try:
    fences[0].wait(60)
    print("ok", flush=True)
except fb.FenceError as err:
    print(err.error, flush=True)
"""


class Holder:
    """A client of a user's that holds active fences."""

    def __init__(self, user: str, n: int) -> None:
        self.process = subprocess.Popen(as_user(user, PYTHON, "-c", HOLDER, str(n)), stdout=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        """Return the next line it writes."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        assert ready, "the client is silent"
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        assert self.process.stdout is not None
        self.process.stdout.close()


def listing() -> dict[str, str]:
    """Return every file of the machine that is not the record of something that happened, with what it is."""
    volatile = (
        "/proc",
        "/sys",
        "/dev",
        "/tmp",
        "/var/tmp",
        "/var/log",
        "/var/lib/dpkg",
        "/var/cache",
        "/var/lib/systemd",
        "/opt",
        "/root",
        "/home",
    )
    # Written by whoever changes a user, as a copy of what was before.
    backups = {f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")}
    own = (
        "/run/systemd",
        "/run/user",
        "/run/log",
        "/run/udev",
        "/run/dbus",
        "/run/utmp",
        "/run/lock",
        "/run/credentials",
        "/run/initctl",
        "/run/host",
    )
    found = {}
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if not os.path.join(folder, name).startswith((*volatile, *own))]
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if path not in backups and not path.startswith((*volatile, *own)):
                state = os.lstat(path)
                found[path] = f"{state.st_mode:o} {state.st_uid} {state.st_gid}"
    for name in ("passwd", "group"):
        found[f"lines of {name}"] = Path("/etc", name).read_text()
    return found


def files_allowed() -> int:
    """Return what LimitNOFILE=65536 comes to on a machine that has fewer for everybody."""
    limit = re.search(r"^Max open files +\d+ +(\d+) ", Path("/proc/1/limits").read_text(), re.MULTILINE)
    assert limit is not None
    return min(65_536, int(limit[1]))
