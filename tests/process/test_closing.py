"""Descriptors that a client sends and that are not the broker's: closing them may take for ever, and it is their sender who pays.

What never finishes being closed is a file of a FUSE server that does not answer; a reaper that is stopped (SIGSTOP) looks the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import fencebroker as fb
from fencebroker import wire
from fencebrokerd.keeper import LANES
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, StartBroker, not_run
from tests.process import fuse
from tests.process.wire_client import WireClient, assert_closed_for, descriptors_of

EVIL, OTHER = 4301, 4302
QUOTA = "foreign descriptors still open per user"
MOST = 20

#: Becomes a user; for each line ``kind n`` it sends n descriptors, one a request, and prints what it was answered: errno and detail.
SENDER = """
    import contextlib, json, os, sys
    from fencebroker import wire
    from tests.process import fuse
    from tests.process.wire_client import WireClient
    path, uid, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    trap, server = fuse.mount_trap(folder) if folder else ("", 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    client = None
    print("ready", flush=True)
    for line in sys.stdin:
        kind, n = line.split()
        heard = []
        for _ in range(int(n)):
            fd = os.open(trap, os.O_RDWR) if kind == "fuse" else os.dup(0)
            try:
                if client is None:
                    client = WireClient(path)
                answer = client.ask(wire.INFO, None, 0, fds=[fd])
                heard.append([answer[1], answer[3] if answer[1] == 122 else None])
                if answer[1] == 122:
                    assert client.is_cut()
                    client.close()
                    client = None
            except (OSError, AssertionError) as err:
                heard.append([0, str(err)])
            if kind != "fuse":  # its own close would not finish either
                os.close(fd)
        print(json.dumps(heard), flush=True)
    if server:
        os.kill(server, 9)
"""


class Sender:
    """Another user's program that sends foreign descriptors."""

    def __init__(self, spawn: Spawn, broker: BrokerProcess, uid: int, folder: str = "") -> None:
        self.child: Child = spawn(SENDER, broker.path, uid, folder, env={"PYTHONPATH": os.getcwd()})
        assert self.child.line() == "ready"

    def send(self, kind: str, n: int) -> list[Any]:
        self.child.send(f"{kind} {n}")
        return json.loads(self.child.line())  # type: ignore[no-any-return]


@pytest.fixture
def public(root: None, start_broker: StartBroker, folder: str) -> BrokerProcess:
    """A broker that every user can reach, and that takes few foreign descriptors."""
    os.chmod(folder, 0o755)
    pathlib.Path(f"{folder}/few.toml").write_text(f"[limits]\nclosing_per_uid = {MOST}\n")
    return start_broker("--config", f"{folder}/few.toml", "--socket-mode", "0666", path=f"{folder}/broker")


@pytest.fixture
def connection(public: BrokerProcess) -> Iterator[fb.Broker]:
    with fb.connect(public.path) as connected:
        yield connected


def used(connection: fb.Broker, uid: int) -> int:
    """How many foreign descriptors of a user are open, as the broker counts them."""
    return next((row[2] for row in connection._quotas() if row[:2] == (uid, QUOTA)), 0)


def wait_used(connection: fb.Broker, uid: int, n: int) -> None:
    deadline = time.monotonic() + LIMIT
    while used(connection, uid) != n:
        assert time.monotonic() < deadline, used(connection, uid)


def reapers(connection: fb.Broker) -> list[psutil.Process]:
    status = connection._status()
    return [child for child in psutil.Process(status["keeper_pid"]).children() if child.pid != status["pid"]]


def work(connection: fb.Broker) -> None:
    with connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)


def test_a_file_that_is_never_closed_costs_its_sender_alone(
    public: BrokerProcess, connection: fb.Broker, spawn: Spawn, folder: str
) -> None:
    """FUSE: one reaper is stuck in its close, in a sleep that no signal ends.  Its user is charged, up to the limit, and then refused; others
    are served, and what they send is closed.  The next broker counts the same.  When the file system goes, all is given back.
    """
    if (why := fuse.why_not()) is not None:
        not_run(why)
    os.mkdir(f"{folder}/mount")
    evil = Sender(spawn, public, EVIL, f"{folder}/mount")
    other = Sender(spawn, public, OTHER)
    heard = evil.send("fuse", MOST + 1)
    assert heard == [[errno.EINVAL, None]] * MOST + [[errno.EDQUOT, [QUOTA, MOST, MOST]]]
    # Its socket went with a packet that nobody took: that needs no close of the file, only one of the queue, which waits for its turn.
    assert MOST <= used(connection, EVIL) <= MOST + 1
    assert evil.send("fuse", 1)[0][0] == 0  # not even a session
    for generation in range(3):
        for _ in range(5):
            assert other.send("plain", 10) == [[errno.EINVAL, None]] * 10
            wait_used(connection, OTHER, 0)
        assert_closed_for(connection)
        work(connection)
        assert MOST <= used(connection, EVIL) <= MOST + 1
        assert len(reapers(connection)) <= LANES
        assert sum(each.status() == psutil.STATUS_DISK_SLEEP for each in reapers(connection)) <= 1
        os.kill(connection._status()["pid"], signal.SIGKILL)
        assert connection._status()["recoveries"] == generation + 1
    evil.child.kill()  # the file system ends with it
    for uid in (EVIL, OTHER):
        wait_used(connection, uid, 0)
    assert_closed_for(connection)


def test_as_many_users_as_there_are_reapers(public: BrokerProcess, connection: fb.Broker, spawn: Spawn, folder: str) -> None:
    """Every reaper is stuck, each for another user: what others send stays open, charged to them, and everything else goes on."""
    if (why := fuse.why_not()) is not None:
        not_run(why)
    evils = []
    for i in range(LANES):
        os.mkdir(f"{folder}/{i}")
        evils.append(Sender(spawn, public, EVIL + 10 + i, f"{folder}/{i}"))
        assert evils[-1].send("fuse", 3) == [[errno.EINVAL, None]] * 3
    other = Sender(spawn, public, OTHER)
    assert other.send("plain", 5) == [[errno.EINVAL, None]] * 5
    work(connection)
    assert [used(connection, EVIL + 10 + i) for i in range(LANES)] == [3] * LANES
    assert used(connection, OTHER) == 5
    assert len(reapers(connection)) == LANES
    evils[0].child.kill()
    wait_used(connection, OTHER, 0)
    for evil in evils:
        evil.child.kill()
    for i in range(LANES):
        wait_used(connection, EVIL + 10 + i, 0)


def test_the_limit_is_exact_and_what_was_stopped_goes_on(public: BrokerProcess, connection: fb.Broker, spawn: Spawn) -> None:
    """A reaper that does not move (SIGSTOP): exactly the limit is taken; when it goes on, all is closed and the user is served again."""
    evil, other = Sender(spawn, public, EVIL), Sender(spawn, public, OTHER)
    (reaper,) = reapers(connection)
    reaper.suspend()
    assert evil.send("plain", MOST + 1) == [[errno.EINVAL, None]] * MOST + [[errno.EDQUOT, [QUOTA, MOST, MOST]]]
    for _ in range(5):
        assert other.send("plain", 10) == [[errno.EINVAL, None]] * 10
        wait_used(connection, OTHER, 0)
    assert "closing" not in public.log()
    assert f"uid {EVIL}" in public.log()
    reaper.resume()
    wait_used(connection, EVIL, 0)
    assert evil.send("plain", 5) == [[errno.EINVAL, None]] * 5


def test_a_reaper_that_is_killed_at_work_is_replaced(public: BrokerProcess, connection: fb.Broker, spawn: Spawn) -> None:
    """Its successor closes the rest, and the account is right again."""
    evil = Sender(spawn, public, EVIL)
    (reaper,) = reapers(connection)
    reaper.suspend()
    assert evil.send("plain", MOST) == [[errno.EINVAL, None]] * MOST
    reaper.kill()
    wait_used(connection, EVIL, 0)
    assert_closed_for(connection)


def test_a_socket_takes_no_descriptors_before_its_hello_is_accepted(public: BrokerProcess) -> None:
    """So whoever is turned away leaves nothing behind that would have to be closed (Linux 6.16)."""
    from fencebroker.fds import send_packet
    from fencebrokerd.shell.door import SO_PASSRIGHTS

    with WireClient(public.path, greet=False) as client:
        try:
            client.sock.getsockopt(1, SO_PASSRIGHTS)
        except OSError:
            not_run("this kernel has no SO_PASSRIGHTS")
        with pytest.raises(PermissionError):
            send_packet(client.sock, wire.encode([1, wire.HELLO, wire.VERSION, "x"]), [0])
    with WireClient(public.path) as client:
        assert client.ask(wire.INFO, None, 0, fds=[0])[1] == errno.EINVAL


@pytest.mark.parametrize("n", [1, 300])
def test_sessions_that_end_with_descriptors_unread(public: BrokerProcess, connection: fb.Broker, n: int) -> None:
    """They go with their socket, and nothing is left of them."""
    there = descriptors_of(public.pid)
    for _ in range(n):
        with WireClient(public.path) as evil, contextlib.suppress(OSError):
            evil.say(b"\xc1")
            evil.say([3, wire.INFO, None, 0], [0, 0])
            evil.say([4, wire.INFO, None, 0], [0])
    wait_used(connection, 0, 0)
    deadline = time.monotonic() + LIMIT
    while descriptors_of(public.pid) > there:
        assert time.monotonic() < deadline
