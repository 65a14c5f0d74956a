"""The first broker dies before it has a record: nothing was promised to anybody, and the next one begins in its place."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

import fencebroker as fb
from fencebroker import wire
from tests.chaos.crowd import check_books
from tests.helpers import LIMIT, Child, Spawn, StartBroker, last_descendant, wait_readable
from tests.process.test_lifecycle import LAUNCHER
from tests.process.wire_client import WireClient

#: Where it has no record yet that counts: the journal is written anew for the first time.
EMPTY: Final = ("listen.after", "compact.before", "compact.torn", "compact.written")


def works(path: str, generation: int) -> dict[str, Any]:
    """The broker serves; its books are right."""
    with fb.connect(path, autostart=False) as connection:
        with connection.create_timeline() as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(LIMIT)
        status = connection._status()
        assert status["generation"] == generation
        check_books(connection)
    return status


@pytest.mark.parametrize("name", EMPTY)
def test_a_death_before_the_first_record(start_broker: StartBroker, name: str) -> None:
    broker = start_broker(env={"FENCEBROKERD_FAILPOINT": f"{name}:1@1,{name}:1@2"})  # ready is said by the third
    status = works(broker.path, 3)
    assert (status["recoveries"], status["last_reason"]) == (2, "it was ended by SIGKILL")


def begin(spawn: Spawn, folder: str, failpoint: str) -> Child:
    """Start a daemon that is not ready."""
    argv = [sys.executable, "-m", "fencebrokerd", "--listen", f"{folder}/broker", "--ready-fd", "1"]
    return spawn(argv, env={"FENCEBROKERD_FAILPOINT": failpoint})


def test_who_has_connected_already_is_served_by_the_next(spawn: Spawn, folder: str) -> None:
    """It waits in the socket, and sees nothing but a pause."""
    child = begin(spawn, folder, "listen.after:1=loop")
    child.wait_said("failpoint listen.after")
    with WireClient(f"{folder}/broker", greet=False) as early:
        early.say([1, wire.HELLO, wire.VERSION, "early"])
        os.kill(last_descendant(child.pid), signal.SIGKILL)
        assert early.hear()[:2] == [1, 0]
        assert early.ask(wire.STATUS)[1] == 0
    assert child.line() == ""
    works(f"{folder}/broker", 2)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    assert os.listdir(folder) == ["broker.lock"]


def test_a_socket_that_was_passed(spawn: Spawn, folder: str) -> None:
    env = {"FENCEBROKERD_FAILPOINT": "listen.after:1@1,compact.before:1@2"}
    child = spawn(LAUNCHER, f"{folder}/passed", "listener", "1", "me", "--ready-fd", "1", env=env)
    assert child.line() == ""
    works(f"{folder}/passed", 3)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def test_who_cannot_begin_leaves(spawn: Spawn, folder: str) -> None:
    """An error is not repeated, as a death is: not of the first one, and not of the next."""
    assert begin(spawn, folder, "listen.after:1=raise").wait() == 70
    child = begin(spawn, folder, "listen.after:1@1,listen.after:1@2=raise")
    assert child.wait() == 70
    assert child.log().count("the broker is replaced") == 1


def wait_for_change(folder: str, mask: int) -> Callable[[], None]:
    """Watch a folder from now on; the result waits."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    assert libc.inotify_add_watch(watch, folder.encode(), mask) >= 0

    def wait() -> None:
        try:
            wait_readable(watch)
        finally:
            os.close(watch)

    return wait


IN_ATTRIB, IN_CREATE = 0x4, 0x100


@pytest.mark.parametrize("mask", [IN_CREATE, IN_ATTRIB], ids=["lock", "socket"])
def test_a_kill_when_its_files_appear(spawn: Spawn, folder: str, mask: int) -> None:
    """From outside, as soon as its lock is made, or its socket has its mode: it binds, listens, or has begun already."""
    wait = wait_for_change(folder, mask)
    child = begin(spawn, folder, "")
    wait()
    os.kill(last_descendant(child.pid), signal.SIGKILL)
    assert child.line() == ""
    with fb.connect(f"{folder}/broker", autostart=False) as connection:
        assert connection._status()["recoveries"] <= 1  # the kill may have met the reaper
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def test_five_that_cannot_begin_are_the_end(spawn: Spawn, folder: str) -> None:
    """After growing pauses; and then another daemon can begin there."""
    began = time.monotonic()
    child = begin(spawn, folder, "listen.after:1@*")
    assert child.wait(3 * LIMIT) == 1
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4 + 0.8
    assert child.log().count("failpoint listen.after") == 5
    child = begin(spawn, folder, "")
    assert child.line() == ""
    works(f"{folder}/broker", 1)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
