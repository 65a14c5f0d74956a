"""How the daemon starts, says that it is ready, shares its path with nobody, and ends in order."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, StartBroker, complaints, wait_readable

DAEMON = (sys.executable, "-m", "fencebrokerd")


def refuse(child: Child, code: int) -> str:
    """Check that a daemon gave up with ``code`` and without a traceback; return what it said."""
    assert child.rest() == ""
    assert child.wait() == code
    assert not complaints(child.log()), child.log()
    return child.log()


# Readiness


def test_ready_fd_gets_one_newline_and_is_closed(spawn: Spawn, folder: str) -> None:
    """``--ready-fd N``: one newline when clients can connect, then the descriptor is closed while the broker lives on."""
    ready, told = os.pipe()
    with open(ready, "rb", buffering=0) as stream:
        with open(told, "wb", buffering=0):
            child = spawn([*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", str(told)], pass_fds=[told])
        wait_readable(ready)
        assert stream.read(10) == b"\n"
        wait_readable(ready)
        assert stream.read(10) == b""
    fb.connect(f"{folder}/broker").close()
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def test_standard_output_can_be_the_ready_fd(spawn: Spawn, folder: str) -> None:
    """A closed standard stream stays occupied: its number must not become a client's descriptor."""
    child = spawn([*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", "1"])
    assert child.line() == ""
    with fb.connect(f"{folder}/broker"):
        assert os.readlink(f"/proc/{child.pid}/fd/1") == "/dev/null"
    assert child.rest() == ""
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def test_nobody_needs_to_read_the_newline(spawn: Spawn, folder: str) -> None:
    """Whoever wanted to know may have gone: the broker serves all the same."""
    ready, told = os.pipe()
    os.close(ready)
    child = spawn([*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", str(told)], pass_fds=[told])
    os.close(told)
    with _watch(folder) as appeared:
        if not os.path.exists(f"{folder}/broker"):
            wait_readable(appeared)
    _connect_when_listening(f"{folder}/broker")
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    assert not complaints(child.log())


@contextlib.contextmanager
def _watch(folder: str) -> Iterator[int]:
    """A descriptor that is readable when something happens in ``folder``."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    libc.inotify_add_watch(fd, folder.encode(), 0x100 | 0x4)  # IN_CREATE, IN_ATTRIB
    try:
        yield fd
    finally:
        os.close(fd)


def _connect_when_listening(path: str) -> None:
    """Between bind and listen a connection is refused; there are some instructions between them."""
    for _ in range(1000):
        with contextlib.suppress(fb.BrokerUnavailable):
            fb.connect(path).close()
            return
    pytest.fail(f"nobody listens at {path}")


def test_ready_fd_that_is_not_open_is_refused(spawn: Spawn, folder: str) -> None:
    """``--ready-fd`` names a descriptor that the parent must have passed on."""
    for number in ("97", "-1", "99999999999999"):
        said = refuse(spawn([*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", number]), 2)
        assert f"descriptor {number} is not open" in said
    said = refuse(spawn([*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", "x"]), 2)
    assert "'x' is not a valid integer" in said


@pytest.mark.parametrize("abstract", [False, True])
def test_sd_notify(start_broker: StartBroker, folder: str, abstract: bool) -> None:
    """READY=1 with MAINPID to $NOTIFY_SOCKET (a path, or @ for the abstract namespace), STOPPING=1 at the end."""
    name = f"@{folder}/notify" if abstract else f"{folder}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(LIMIT)
        manager.bind("\0" + name[1:] if abstract else name)
        broker = start_broker(env={"NOTIFY_SOCKET": name})
        assert manager.recv(100).decode().splitlines() == ["READY=1", f"MAINPID={broker.process.pid}"]
        assert broker.stop()[0] == 0
        while (said := manager.recv(100)).startswith(b"STATUS="):
            pass
        assert said == b"STOPPING=1"


def test_a_service_manager_that_does_not_listen_is_no_obstacle(start_broker: StartBroker, folder: str) -> None:
    """sd_notify never blocks and never fails the broker."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler, contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"full", socket.MSG_DONTWAIT, f"{folder}/notify")
        full = start_broker(env={"NOTIFY_SOCKET": f"{folder}/notify"})
        gone = start_broker(env={"NOTIFY_SOCKET": f"{folder}/nothing"})
        for broker in (full, gone):
            fb.connect(broker.path).close()
            assert broker.stop()[0] == 0


# Sockets from a service manager

#: Becomes the daemon with descriptor 3 as a service manager would leave it.
LAUNCHER = """
    import os, socket, sys
    path, kind, count, owner, *arguments = sys.argv[1:]
    family, kind, listens = {
        "listener": (socket.AF_UNIX, socket.SOCK_SEQPACKET, True),
        "stream": (socket.AF_UNIX, socket.SOCK_STREAM, True),
        "deaf": (socket.AF_UNIX, socket.SOCK_SEQPACKET, False),
        "network": (socket.AF_INET, socket.SOCK_DGRAM, False),
        "file": (None, None, None),
    }[kind]
    if family is None:
        fd = os.open("/dev/null", os.O_RDONLY)
    else:
        sock = socket.socket(family, kind)
        if family == socket.AF_UNIX:
            sock.bind(path)
        if listens:
            sock.listen()
        fd = sock.fileno()
    os.dup2(fd, 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()) if owner == "me" else "1", LISTEN_FDS=count)
    os.execv(sys.executable, [sys.executable, "-m", "fencebrokerd", *arguments])
"""


def test_listen_fds(spawn: Spawn, folder: str) -> None:
    """A listening socket passed by LISTEN_FDS is served, and its path belongs to who made it."""
    child = spawn(LAUNCHER, f"{folder}/passed", "listener", "1", "me", "--ready-fd", "1")
    assert child.line() == ""
    with fb.connect(f"{folder}/passed") as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    assert f"serves {folder}/passed" in child.log()
    assert stat.S_ISSOCK(os.stat(f"{folder}/passed").st_mode)


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        ("stream", "1", "descriptor 3 must be a SOCK_SEQPACKET Unix socket"),
        ("network", "1", "descriptor 3 must be a SOCK_SEQPACKET Unix socket"),
        ("deaf", "1", "descriptor 3 must be a listening socket"),
        ("file", "1", "descriptor 3 is not a socket"),
        ("listener", "many", "must be a count of descriptors, not 'many'"),
        ("listener", "2000", "must be a count of descriptors, not '2000'"),
        ("listener", "7", "is not a socket: "),
    ],
)
def test_listen_fds_are_checked(spawn: Spawn, folder: str, kind: str, count: str, said: str) -> None:
    """What LISTEN_FDS passes must be listening SOCK_SEQPACKET Unix sockets; anything else is one line and exit code 1."""
    assert said in refuse(spawn(LAUNCHER, f"{folder}/passed", kind, count, "me"), 1)


def test_listen_fds_for_another_process_are_left_alone(spawn: Spawn, folder: str) -> None:
    """LISTEN_PID says whose they are: those of another process are not touched."""
    child = spawn(LAUNCHER, f"{folder}/passed", "stream", "1", "somebody", "--listen", f"{folder}/own", "--ready-fd", "1")
    assert child.line() == ""
    fb.connect(f"{folder}/own").close()
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_completes_active_fences(broker: BrokerProcess, number: int) -> None:
    """SIGTERM (and SIGINT) complete active fences with -ECANCELED, say how many, exit with 0 and remove the socket."""
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        fences = timeline.export_many(range(1, 5))
        timeline.advance(1)
        merged = connection.merge(fences[2:])  # the later one of them, so it adds none
        ahead = connection.sync_file("camera1@1")
        broker.process.signal(number)
        for fence in (*fences[1:], merged, ahead):
            with pytest.raises(fb.FenceError) as caught:
                fence.wait(LIMIT)
            assert caught.value.error == errno.ECANCELED
        fences[0].wait(0)
        code, log = broker.stop()
        for fence in (*fences, merged, ahead):
            fence.close()
    assert code == 0
    assert "stopped: 4 active fences completed with ECANCELED" in log
    assert not os.path.exists(broker.path)


def test_a_healthy_run_has_two_log_lines(broker: BrokerProcess) -> None:
    """Start and stop, whatever well-behaved clients do in between."""
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        for fence in timeline.export_many(range(1, 100)):
            fence.close()
        with pytest.raises(fb.NotASyncFile):
            connection.info(0)
        with pytest.raises(FileExistsError):
            connection.create_timeline("camera0")
        timeline.advance(50)
    lines = broker.stop()[1].splitlines()
    assert len(lines) == 2, lines
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert re.fullmatch(rf"{stamp} fencebrokerd\[{broker.pid}\] notice: fencebrokerd \S+ serves {broker.path} .*", lines[0])
    assert re.fullmatch(rf"{stamp} fencebrokerd\[{broker.pid}\] notice: fencebrokerd stopped: 0 active fences .*", lines[1])


def test_journal_priorities_where_the_journal_reads(spawn: Spawn, folder: str) -> None:
    """With $JOURNAL_STREAM naming standard error, lines carry a priority and no time stamp of their own."""
    argv = [*DAEMON, "--listen", f"{folder}/broker", "--ready-fd", "1"]
    journal = spawn(["sh", "-c", 'JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "$@"', "sh", *argv])
    assert journal.line() == ""
    journal.signal(signal.SIGTERM)
    assert journal.wait() == 0
    assert [line[:15] for line in journal.log().splitlines()] == ["<5>fencebrokerd"] * 2
    other = spawn(argv, env={"JOURNAL_STREAM": "1:2"})
    assert other.line() == ""
    other.signal(signal.SIGTERM)
    assert other.wait() == 0
    assert "<5>" not in other.log()


@pytest.mark.parametrize("missing", ["0<&-", "1<&-", "2<&-", "0<&- 1<&- 2<&-"])
def test_missing_standard_streams_are_replaced(spawn: Spawn, folder: str, missing: str) -> None:
    """A number below 3 never becomes a client's descriptor: a stray message would signal its fence."""
    argv = [*DAEMON, "--listen", f"{folder}/broker", "--ready-fd"]
    ready, told = os.pipe()
    child = spawn(["sh", "-c", f'exec "$@" {missing}', "sh", *argv, str(told)], pass_fds=[told])
    os.close(told)
    with open(ready, "rb", buffering=0) as stream:
        wait_readable(ready)
        assert stream.read(1) == b"\n"
    with fb.connect(f"{folder}/broker") as connection, connection.create_timeline() as timeline, timeline.export(1):
        for number in range(3):
            target = os.readlink(f"/proc/{child.pid}/fd/{number}")
            assert not target.startswith(("anon_inode:", "socket:")), (number, target)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


# One path, one broker


def test_a_live_broker_is_not_disturbed(broker: BrokerProcess, spawn: Spawn) -> None:
    """A second broker on the same path is refused with one clear line and exit code 1; the first one's clients notice nothing."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        said = refuse(spawn([*DAEMON, "--listen", broker.path]), 1)
        assert f"{broker.path}: in use by a live broker; stop it first, or listen elsewhere" in said
        assert len(said.splitlines()) == 1
        timeline.advance(1)
        fence.wait(LIMIT)
        fb.connect(broker.path).close()


def test_a_stopped_broker_is_live_too(broker: BrokerProcess, spawn: Spawn) -> None:
    """Live is who holds the path, not who answers at the moment."""
    broker.freeze()
    try:
        assert "in use by a live broker" in refuse(spawn([*DAEMON, "--listen", broker.path]), 1)
    finally:
        broker.thaw()
    fb.connect(broker.path).close()


def test_a_stale_socket_is_taken_over(broker: BrokerProcess, start_broker: StartBroker) -> None:
    """What a killed broker left behind does not keep the next one away."""
    broker.kill()
    assert stat.S_ISSOCK(os.stat(broker.path).st_mode)
    with pytest.raises(fb.BrokerUnavailable, match="no broker answers"):
        fb.connect(broker.path)
    start_broker(path=broker.path)
    fb.connect(broker.path).close()


def test_what_is_no_socket_is_left_alone(spawn: Spawn, folder: str) -> None:
    """A file, a folder or a link in the way is refused and stays as it is."""
    path = f"{folder}/broker"
    with open(path, "w", encoding="ascii") as stream:
        stream.write("precious")
    assert f"{path}: exists and is not a socket; remove it or listen elsewhere" in refuse(spawn([*DAEMON, "--listen", path]), 1)
    with open(path, encoding="ascii") as stream:
        assert stream.read() == "precious"
    os.symlink(path, f"{folder}/link")
    assert "exists and is not a socket" in refuse(spawn([*DAEMON, "--listen", f"{folder}/link"]), 1)
    assert "exists and is not a socket" in refuse(spawn([*DAEMON, "--listen", folder]), 1)


def test_another_kind_of_server_is_left_alone(spawn: Spawn, folder: str) -> None:
    """A listening stream socket belongs to somebody else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(f"{folder}/other")
        other.listen()
        said = refuse(spawn([*DAEMON, "--listen", f"{folder}/other"]), 1)
        assert f"{folder}/other: exists and cannot be probed" in said


def test_a_place_that_is_not_there_is_one_line(spawn: Spawn, folder: str) -> None:
    """The path is named, and what is wrong with it."""
    said = refuse(spawn([*DAEMON, "--listen", f"{folder}/none/broker"]), 1)
    assert f"{folder}/none/broker: cannot listen here" in said
    assert "No such file or directory" in said


def test_only_its_own_socket_is_removed(broker: BrokerProcess) -> None:
    """At the end the path is removed if it is still what the broker made."""
    os.unlink(broker.path)
    with open(broker.path, "w", encoding="ascii"):
        pass
    assert broker.stop()[0] == 0
    assert os.path.isfile(broker.path)


def test_the_sockets_mode(start_broker: StartBroker) -> None:
    """``--socket-mode`` says who may connect; 0600 without it, whatever the umask is."""
    assert stat.S_IMODE(os.stat(start_broker().path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(start_broker("--socket-mode", "0666").path).st_mode) == 0o666


# Questions


def test_help_and_version(spawn: Spawn) -> None:
    """``--help`` and ``--version`` print to standard output and exit with 0."""
    text = spawn([*DAEMON, "--help"]).finish()
    for option in ("--listen", "--user", "--socket-mode", "--config", "--check-config", "--ready-fd", "--idle-exit", "--log-level"):
        assert option in text
    assert spawn([*DAEMON, "--version"]).finish() == f"fencebrokerd, version {fb.__version__}\n"


def test_an_unknown_option_is_one_line(spawn: Spawn) -> None:
    """A mistake on the command line is exit code 2 and no traceback."""
    assert "No such option" in refuse(spawn([*DAEMON, "--lisen", "x"]), 2)
