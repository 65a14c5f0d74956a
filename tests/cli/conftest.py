"""fencectl as a real process, against a real broker with something in it, in a pipe or at a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, complaints, wait_gone, wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: As it is installed, next to the interpreter.
FENCECTL: Final = str(pathlib.Path(sys.executable).parent / "fencectl")

CAPTURE: Final = """
    import sys
    import fencebroker as fb
    open("/proc/self/comm", "w").write("capture")
    with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
        with timeline.export(6, name="frame-6"), timeline.export(7, name="frame-7"):
            timeline.advance(6)
            print("ready", flush=True)
            for line in sys.stdin:
                exec(line)
                print("done", flush=True)
"""
ENCODE: Final = """
    import sys
    import fencebroker as fb
    open("/proc/self/comm", "w").write("encode")
    with fb.connect() as broker:
        with broker.sync_file("camera0@7") as frame, broker.sync_file("lens@1") as lens:
            inputs = broker.merge([frame, lens], name="inputs")
        with inputs:
            print("ready", flush=True)
            sys.stdin.read()
"""


#: A stage of a pipeline: makes the timeline of its name, exports point 1 of it, and waits for the points that are its other arguments.
STAGE: Final = """
    import sys
    import fencebroker as fb
    name, *sources = sys.argv[1:]
    open("/proc/self/comm", "w").write(name)
    with fb.connect() as broker, broker.create_timeline(name) as timeline, timeline.export(1):
        fences = [broker.sync_file(source) for source in sources]
        print("ready", flush=True)
        if fences:
            fb.wait_all(fences)
        sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call of fencectl did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its output, which must be JSON."""
        return json.loads(self.out)

    def lines(self) -> list[str]:
        """Its output."""
        return self.out.splitlines()

    def one_error(self) -> str:
        """The one line on its standard error, without the prefix; nothing on its standard output."""
        assert self.out == ""
        assert self.err.startswith("fencectl: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err[len("fencectl: ") : -1]


def asleep(child: Child, *calls: str) -> Child:
    """Wait until a program sleeps in one of these system calls.  Nothing tells when it does, so /proc is asked, and its end is noticed."""
    deadline = time.monotonic() + LIMIT
    pidfd = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while True:
            sleeping = pathlib.Path(f"/proc/{child.pid}/wchan").read_text()
            if any(call in sleeping for call in calls or ("poll",)):
                return child
            assert not poll.poll(10), f"{child} ended:\n{child.log()}"
            assert time.monotonic() < deadline, f"{child} sleeps in {sleeping!r}"
    finally:
        os.close(pidfd)


class Fencectl:
    """The fixture ``fencectl``: run a verb to its end.  ``fencectl.spawn`` leaves it running."""

    def __init__(self, spawn: Spawn, env: Mapping[str, str | None]) -> None:
        self._spawn = spawn
        #: Commands that fencectl runs, shells mostly, find it too.
        self.env: dict[str, str | None] = {"PATH": f"{os.path.dirname(FENCECTL)}:{os.environ['PATH']}", **env}
        #: Where it runs; None: where the tests do.
        self.cwd: pathlib.Path | None = None

    def spawn(self, verb: str, *arguments: str | int, env: Mapping[str, str | None] | None = None) -> Child:
        """Start ``fencectl verb arguments`` and return it, running."""
        return self._spawn([FENCECTL, verb, *map(str, arguments)], env={**self.env, **(env or {})}, cwd=self.cwd)

    def __call__(self, verb: str, *arguments: str | int, env: Mapping[str, str | None] | None = None, timeout: float = 2 * LIMIT) -> Result:
        """Run ``fencectl verb arguments``."""
        return end_of(self.spawn(verb, *arguments, env=env), timeout)


def end_of(child: Child, timeout: float = 2 * LIMIT) -> Result:
    """Wait for a program's end; it may fail, but not with a traceback or a leak."""
    out = child.rest(timeout)
    code = child.wait()
    err = child.log()
    assert not complaints(err), err
    return Result(code, out, err)


@pytest.fixture
def fencectl(spawn: Spawn, broker: BrokerProcess) -> Fencectl:
    """fencectl with a broker of the test's own."""
    return Fencectl(spawn, broker.env)


@pytest.fixture
def alone(spawn: Spawn, folder: str) -> Fencectl:
    """fencectl where no broker is, and where a per-user one may be started."""
    return Fencectl(spawn, {"XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder, "FENCEBROKER_SOCKET": None})


@pytest.fixture
def users_own(alone: Fencectl) -> Iterator[Fencectl]:
    """fencectl in the same place; a broker that is left there is stopped at the end."""
    yield alone
    status = alone("status", "--json")
    if status.code == 0:
        pid = status.json()["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The pipeline of the help pages: ``capture`` is at 6 of camera0, ``encode`` waits for 7 and for a lens that does not exist."""

    capture: Child
    encode: Child

    def do(self, code: str) -> None:
        """Have ``capture`` run a line of Python; it knows ``timeline`` and ``broker``."""
        self.capture.send(code)
        assert self.capture.line() == "done"


@pytest.fixture
def make_scene(spawn: Spawn) -> Callable[[Mapping[str, str | None]], Scene]:
    """Set the scene with the broker of an environment."""

    def make(env: Mapping[str, str | None]) -> Scene:
        capture = spawn(CAPTURE, env=env)
        assert capture.line() == "ready"
        encode = spawn(ENCODE, env=env)
        assert encode.line() == "ready"
        return Scene(capture, encode)

    return make


@pytest.fixture
def scene(make_scene: Callable[[Mapping[str, str | None]], Scene], fencectl: Fencectl) -> Scene:
    """Set the scene with the test's own broker."""
    return make_scene(fencectl.env)


@pytest.fixture
def stage(spawn: Spawn, fencectl: Fencectl) -> Callable[..., Child]:
    """Start a stage of a pipeline; it sleeps when it is returned."""

    def start(name: str, *sources: str) -> Child:
        child = spawn(STAGE, name, *sources, env=fencectl.env)
        assert child.line() == "ready"
        return asleep(child) if sources else child

    return start


class Terminal:
    """The fixture ``terminal``: run fencectl with a terminal of so many columns as its output."""

    def __init__(self, cleanup: contextlib.ExitStack, env: Mapping[str, str | None]) -> None:
        self._cleanup = cleanup
        self._env = env

    def __call__(self, verb: str, *arguments: str | int, columns: int = 80, env: Mapping[str, str | None] | None = None) -> str:
        """Return what the terminal got; the exit code must be 0."""
        ours, theirs = os.openpty()
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
            changed = {**os.environ, "TERM": "xterm", "NO_COLOR": None, "COLUMNS": None, "LINES": None, **self._env, **(env or {})}
            process = subprocess.Popen(
                [FENCECTL, verb, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env={name: value for name, value in changed.items() if value is not None},
            )
        finally:
            os.close(theirs)
        self._cleanup.callback(_end, process)
        try:
            got = b"".join(_blocks(ours))
        finally:
            os.close(ours)
        assert process.wait(LIMIT) == 0, got
        return got.decode().replace("\r\n", "\n")


def _blocks(terminal: int) -> Iterator[bytes]:
    deadline = time.monotonic() + 2 * LIMIT
    while True:
        wait_readable(terminal, max(0.1, deadline - time.monotonic()))
        try:
            yield os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed everywhere
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def terminal(cleanup: contextlib.ExitStack, broker: BrokerProcess) -> Terminal:
    """fencectl at a terminal, with the test's own broker."""
    return Terminal(cleanup, broker.env)
