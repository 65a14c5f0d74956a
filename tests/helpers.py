"""What the tests share: processes with their clean-up from birth, and questions about descriptors.

Nothing here sleeps.  To wait means to poll a descriptor that becomes readable when the event happens (a pipe, a socket,
an eventfd, a pidfd), and each wait has a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import TYPE_CHECKING, Final, NoReturn, Self

import psutil
import pytest

from fencebroker.testing import descriptors, differences, helpers_of_multiprocessing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "LIMIT",
    "NOT_RUN",
    "BrokerProcess",
    "Census",
    "Child",
    "Spawn",
    "StartBroker",
    "assert_closed_on_exec",
    "assert_not_fd",
    "complaints",
    "descriptors",
    "eventfd_count",
    "eventfd_id",
    "is_readable",
    "last_descendant",
    "not_run",
    "package_folder",
    "same_file",
    "short_folder",
    "wait_gone",
    "wait_readable",
]

#: Seconds that any single wait may take.  Reaching it is a failure; nothing healthy comes near.
LIMIT: Final = 10.0

#: How the reason of a test begins that could not run here.
NOT_RUN: Final = "NOT RUN: "

#: A healthy program never writes one of these, whatever a test does to it.
_COMPLAINTS: Final = ("Traceback (most recent call last)", "ResourceWarning", "Exception ignored", "Fatal Python error")


def not_run(why: str) -> NoReturn:
    """Leave the test: it cannot run on this machine.  The last lines of the whole run repeat why."""
    pytest.skip(NOT_RUN + why)


# Descriptors


def is_readable(fd: int) -> bool:
    """Say whether ``fd`` is readable now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def wait_readable(fd: int, timeout: float = LIMIT) -> int:
    """Wait until ``fd`` is readable or hung up, and return poll's event mask.  Fails the test after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ready = poll.poll(timeout * 1000)
    if not ready:
        target = descriptors().get(fd, "not open")
        pytest.fail(f"descriptor {fd} ({target}) did not become readable within {timeout} s")
    return ready[0][1]


def _fdinfo(fd: int, field: str) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
    raise ValueError(f"descriptor {fd} ({descriptors().get(fd)}) is no eventfd: its fdinfo has no {field}")


def eventfd_id(fd: int) -> int:
    """Return the kernel's number of the eventfd behind ``fd``; unique while any copy of it is open."""
    return int(_fdinfo(fd, "eventfd-id"))


def eventfd_count(fd: int) -> int:
    """Return the counter of the eventfd behind ``fd`` without reading from it."""
    return int(_fdinfo(fd, "eventfd-count"), 16)


def same_file(fd: int, other: int) -> bool:
    """Say whether two descriptors of this process refer to one and the same open thing.

    All eventfds share one inode, so they are told apart by their number in fdinfo; sockets, pipes and files by inode.
    """
    first, second = os.fstat(fd), os.fstat(other)
    if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino):
        return False
    if os.readlink(f"/proc/self/fd/{fd}").startswith("anon_inode:"):
        return eventfd_id(fd) == eventfd_id(other)
    return True


def assert_not_fd(number: int) -> None:
    """Fail unless ``number`` is closed.  Only meaningful while nothing else can have opened it again."""
    target = descriptors().get(number)
    assert target is None, f"descriptor {number} ({target}) is open and should be closed"


def assert_closed_on_exec(*fds: int) -> None:
    """Prove with a real exec that a new program does not get these descriptors.

    ``close_fds=False``: nothing but close-on-exec stands between them and the program.
    """
    numbers = [str(fd) for fd in fds]
    for fd in fds:
        os.fstat(fd)  # an argument that is closed already would prove nothing
    code = """
        import os, sys
        for number in sys.argv[1:]:
            try:
                os.fstat(int(number))
            except OSError:
                continue
            print(number)
    """
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *numbers],
        close_fds=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    leaked = [f"{number} ({descriptors()[int(number)]})" for number in child.stdout.split()]
    assert not leaked, "a program started with exec got descriptor " + ", ".join(leaked)


# Folders


def package_folder(name: str) -> pathlib.Path:
    """Return the folder of one of the project's packages as the tests import it: the checkout's, or an installed wheel's."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    assert spec.submodule_search_locations, f"{name} is no package"
    return pathlib.Path(spec.submodule_search_locations[0])


def short_folder() -> str:
    """Make a folder whose path leaves room for a socket name: the kernel allows 107 bytes, and pytest's own are longer."""
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="fb-", dir=base if len(base) < 50 else "/tmp")


# Processes


def _environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    # A leak in a child is as bad as a leak in a test; the child says so on its standard error.
    merged: dict[str, str | None] = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning", **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


def complaints(log: str) -> list[str]:
    """Return the lines of a program's standard error that no healthy program writes."""
    return [line for line in log.splitlines() if any(sign in line for sign in _COMPLAINTS)]


def wait_gone(pid: int, timeout: float = LIMIT) -> None:
    """Wait until a process has ended that was not started through ``spawn``, such as a broker in the background."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(pidfd, timeout)
    finally:
        os.close(pidfd)
    # An orphan is ours since its parent ended (see ``adopt_orphans`` in conftest.py), and ours to bury.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


class Child:
    """A program under test: its standard input and output are pipes, its standard error a file.

    It leads a session of its own, so that whatever it starts ends with it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Collection[int] = (),
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self._received = b""
        with contextlib.ExitStack() as undo:
            # Unlike a pipe, a file never makes its writer wait for us.
            self._stderr = undo.enter_context(tempfile.TemporaryFile())
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                pass_fds=tuple(pass_fds),
                env=_environment(env),
                cwd=cwd,
                start_new_session=True,
            )
            undo.pop_all()
        self.pid: int = self.process.pid

    def send(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def line(self, timeout: float = LIMIT) -> str:
        """Return the next line of its standard output, without the newline.  Fails when it ends or stays silent."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            block = self._read(deadline, f"wrote no line within {timeout} s")
            if not block:
                pytest.fail(f"{self} ended without another line, only {self._received!r}; its standard error:\n{self.log()}")
            self._received += block
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def wait(self, timeout: float = LIMIT) -> int:
        """Wait until it ends and return its exit code, negative for a signal."""
        if self.process.poll() is None:
            # subprocess waits by sleeping; a pidfd says it at once.
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    pytest.fail(f"{self} did not end within {timeout} s; its standard error:\n{self.log()}")
            finally:
                os.close(pidfd)
        return self.process.wait()

    def rest(self, timeout: float = LIMIT) -> str:
        """Close its standard input, and return the rest of its standard output when it has closed that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        deadline = time.monotonic() + timeout
        while block := self._read(deadline, f"did not end within {timeout} s"):
            self._received += block
        rest, self._received = self._received, b""
        return rest.decode()

    def finish(self, timeout: float = LIMIT) -> str:
        """Return the rest of its standard output, and check that it ended well."""
        deadline = time.monotonic() + timeout
        rest = self.rest(timeout)
        code = self.wait(max(0.1, deadline - time.monotonic()))
        assert code == 0, f"{self} ended with {code}; its standard error:\n{self.log()}"
        assert not complaints(self.log()), self.log()
        return rest

    def _read(self, deadline: float, failure: str) -> bytes:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            pytest.fail(f"{self} {failure}; its standard error:\n{self.log()}")
        return os.read(self.process.stdout.fileno(), 65536)

    def log(self) -> str:
        """Return what it wrote to its standard error so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        # pread: the offset of the file is shared with the child.
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def wait_said(self, text: str, times: int = 1, timeout: float = LIMIT) -> None:
        """Wait until ``text`` has been written to its standard error so many times."""
        libc = ctypes.CDLL(None, use_errno=True)
        watch = libc.inotify_init1(os.O_CLOEXEC)
        try:
            assert libc.inotify_add_watch(watch, f"/proc/self/fd/{self._stderr.fileno()}".encode(), 0x2) >= 0  # IN_MODIFY
            deadline = time.monotonic() + timeout
            while self.log().count(text) < times:
                left = deadline - time.monotonic()
                if left <= 0:
                    pytest.fail(f"{self} did not say {text!r} {times} times within {timeout} s; its standard error:\n{self.log()}")
                wait_readable(watch, left)
                os.read(watch, 65536)
        finally:
            os.close(watch)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it and everything it started, and wait until they are gone."""
        if self.process.poll() is None:
            # Not waited for yet: its number, and so its group's, cannot be anybody else's.
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(LIMIT)
        # Its own children became ours when it died (see ``adopt_orphans`` in conftest.py).
        while members := _children_in_group(self.pid):
            for pid in members:
                os.kill(pid, signal.SIGKILL)
                wait_gone(pid)

    def close(self) -> None:
        """Kill it if it still runs, and give back everything it cost."""
        try:
            self.kill()
        finally:
            for stream in (self.process.stdin, self.process.stdout, self._stderr):
                if stream is not None:
                    stream.close()

    def __repr__(self) -> str:
        return f"<child {self.pid}: {textwrap.shorten(' '.join(map(str, self.process.args)), 80)}>"  # type: ignore[arg-type]


def _children_in_group(group: int) -> list[int]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(child.pid) == group:
                found.append(child.pid)
    return found


class Spawn:
    """The fixture ``spawn``: start a program; at the end of the test it is killed and waited for, the last one first.

    ``spawn(code, "argument", pass_fds=[3])`` runs Python source in a fresh interpreter;
    ``spawn(["fencectl", "ls"])`` runs any program.
    """

    def __init__(self, cleanup: contextlib.ExitStack) -> None:
        self._cleanup = cleanup

    def __call__(
        self,
        program: str | Sequence[str],
        *args: str | int,
        pass_fds: Collection[int] = (),
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Child:
        """Start ``program`` and return it, running."""
        argv = [sys.executable, "-c", textwrap.dedent(program)] if isinstance(program, str) else list(program)
        child = Child([*argv, *map(str, args)], pass_fds=pass_fds, env=env, cwd=cwd)
        self._cleanup.callback(child.close)
        return child


class BrokerProcess:
    """A real ``fencebrokerd`` in its own process, ready to serve."""

    def __init__(self, child: Child, path: str) -> None:
        self.process = child
        #: The broker's own, at first.  Whoever was started is its keeper, or what runs that.
        self.pid = last_descendant(child.pid)
        #: Where it listens.
        self.path = path
        #: What a client process needs in its environment.
        self.env = {"FENCEBROKER_SOCKET": path}
        self._must_stop_well = True
        self._may_complain = False

    def log(self) -> str:
        """Return what it wrote to its standard error so far."""
        return self.process.log()

    def stop(self, timeout: float = LIMIT) -> tuple[int, str]:
        """End it with SIGTERM; return its exit code and its log."""
        if self.process.process.poll() is None:
            self.process.signal(signal.SIGTERM)
        return self.process.wait(timeout), self.log()

    def freeze(self) -> None:
        """Stop it, keeper and all: a keeper replaces a broker that is stopped alone."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def reload(self) -> None:
        """Have it load the code and the configuration again, and wait until it has, or has said that it cannot."""
        times = self.log().count("the configuration was read again") + 1
        self.process.signal(signal.SIGHUP)
        self.process.wait_said("the configuration was read again", times)

    def kill(self) -> None:
        """End it with SIGKILL, keeper and all, as an operator or the kernel might; its exit code then says nothing about it."""
        self._must_stop_well = False
        self.process.kill()

    def expect_trouble(self) -> None:
        """From here on it may write tracebacks, and end as it likes: the test makes it."""
        self._may_complain, self._must_stop_well = True, False

    def check(self) -> None:
        """Stop it if it still runs, and fail unless it ended in order and has nothing to complain about."""
        code, log = self.stop()
        assert self._may_complain or not complaints(log), f"the broker complained:\n{log}"
        if self._must_stop_well:
            assert code == 0, f"the broker ended with {code}:\n{log}"


def last_descendant(pid: int) -> int:
    """Of a keeper's two children the broker is started last."""
    with contextlib.suppress(FileNotFoundError):  # it has ended already
        while children := pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            pid = int(children[-1])
    return pid


class StartBroker:
    """The fixture ``start_broker``: start a broker with arguments of the test's own; it is stopped and checked at the end."""

    def __init__(self, cleanup: contextlib.ExitStack) -> None:
        self._cleanup = cleanup

    def __call__(
        self, *args: str, path: str | None = None, env: Mapping[str, str | None] | None = None, python: str = sys.executable
    ) -> BrokerProcess:
        """Start ``fencebrokerd --listen PATH *args`` and return it when it is ready; ``python`` has another installation of it."""
        folder = short_folder()
        self._cleanup.callback(shutil.rmtree, folder)
        path = path or f"{folder}/broker"
        assert len(os.fsencode(path)) < 100, f"the kernel allows 107 bytes for the path of a socket: {path}"
        ready, told = os.pipe()
        try:
            argv = [python, "-m", "fencebrokerd", "--listen", path, "--ready-fd", str(told), *args]
            # Its own folder as working directory: -m must find what is installed, not what lies in the checkout.
            child = Child(argv, pass_fds=[told], env=env, cwd=folder)
            self._cleanup.callback(child.close)
            os.close(told)
            told = -1
            wait_readable(ready)
            if os.read(ready, 1) != b"\n":
                code = child.wait()
                pytest.fail(f"the broker ended with {code} before it was ready:\n{child.log()}")
        finally:
            os.close(ready)
            if told >= 0:
                os.close(told)
        broker = BrokerProcess(child, path)
        self._cleanup.callback(broker.check)
        return broker


# What a test leaves behind


class Census:
    """Every descriptor and every child process of this process at one moment.

    Two things are excused, because they belong to the interpreter and not to a test: the two processes that
    ``multiprocessing`` keeps until the interpreter ends (the resource tracker and the fork server), each with its pipe.
    """

    def __init__(self, fds: Mapping[int, str], children: Mapping[int, str]) -> None:
        self.fds = fds
        self.children = children

    @classmethod
    def take(cls) -> Self:
        """Count now."""
        excused_fds, excused_pids = helpers_of_multiprocessing()
        children = {}
        for child in psutil.Process().children(recursive=True):
            if child.pid in excused_pids:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    children[child.pid] = " ".join(child.cmdline()) or child.name()
        fds = {fd: target for fd, target in descriptors().items() if fd not in excused_fds}
        return cls(fds, children)

    def differences(self, later: Census) -> list[str]:
        """Describe what changed since; empty when nothing did."""
        found = differences(self.fds, later.fds)
        found += [f"process {pid} was left running: {later.children[pid]}" for pid in later.children.keys() - self.children.keys()]
        return found

    def kill_left_over(self, later: Census) -> None:
        """End the processes that are in ``later`` only, so that the next test starts clean."""
        left = [pid for pid in later.children if pid not in self.children]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
