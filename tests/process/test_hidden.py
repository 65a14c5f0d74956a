"""A broker for several users cannot be looked into by another process of its own user."""

from __future__ import annotations

import os

import pytest

from fencebrokerd.keeper import serves_others
from tests.helpers import Spawn, not_run

#: A process of an unprivileged user, hidden or not.
VICTIM = """
    import os, sys
    from fencebrokerd.keeper import hide_memory
    os.setgroups([]); os.setresgid(4100, 4100, 4100); os.setresuid(4100, 4100, 4100)
    import ctypes
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # a change of user has hidden it already
    if sys.argv[1] == "hidden":
        hide_memory()
    secret = os.eventfd(7, os.EFD_CLOEXEC)
    print(secret, flush=True)
    sys.stdin.read()
    assert os.readlink(f"/proc/self/fd/{secret}") == "anon_inode:[eventfd]"
    with open(f"/proc/self/fdinfo/{secret}") as info:
        assert "eventfd-count:                7" in info.read()
"""
#: Another process of that user tries to get at it.
THIEF = """
    import ctypes, os, sys
    pid, number = map(int, sys.argv[1:])
    os.setgroups([]); os.setresgid(4100, 4100, 4100); os.setresuid(4100, 4100, 4100)
    pidfd = os.pidfd_open(pid)
    stolen = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)  # pidfd_getfd
    print(stolen if stolen < 0 else os.eventfd_read(stolen))
    for what in (f"fdinfo/{number}", "maps", "environ"):
        try:
            with open(f"/proc/{pid}/{what}", "rb") as stream:
                print(len(stream.read()) > 0)
        except PermissionError:
            print("refused")
"""


@pytest.mark.parametrize(
    ("how", "expected"), [("open", ["7", "True", "True", "True"]), ("hidden", ["-1", "refused", "refused", "refused"])]
)
def test_the_same_user_cannot_look_in(spawn: Spawn, how: str, expected: list[str]) -> None:
    """Neither take a descriptor nor read what it has mapped; the process itself still can.  Without it both work, so the test can tell."""
    if os.getuid() != 0:
        not_run("becoming another user needs root")
    victim = spawn(VICTIM, how)
    number = victim.line()
    said = spawn(THIEF, victim.pid, number).finish().splitlines()
    if how == "open" and said[0] == "-1":
        not_run("this kernel lets nobody trace a process that is not a child (kernel.yama.ptrace_scope)")
    if how == "open":
        victim.kill()  # its counter was read
    else:
        victim.finish()
    assert said == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "serves"),
    [
        (["--config", "x"], {"LISTEN_FDS": "1"}, True),
        (["--user"], {"LISTEN_FDS": "1"}, False),
        (["--listen", "x"], {}, False),
    ],
)
def test_who_is_hidden(arguments: list[str], environment: dict[str, str], serves: bool) -> None:
    """The system's service; a user's own broker stays open to its debugger."""
    assert serves_others(arguments, environment) is serves
