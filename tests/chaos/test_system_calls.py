"""The broker dies at the first, the second, the third ... of each system call that matters: where no failpoint is, too."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from tests.chaos.frames import Wrong
from tests.chaos.stepping import Steps
from tests.helpers import LIMIT, not_run

#: How many of each: with them, every kind of packet has been met.
FIRST: Final = 6
CALLS: Final = (
    "sendmsg", "recvmsg", "recvfrom", "write", "eventfd2", "socketpair", "accept4", "close", "epoll_ctl", "setitimer",
)  # fmt: skip


@contextlib.contextmanager
def killing_at(pid: int, call: str, n: int) -> Iterator[None]:
    """Attach strace to a broker: it dies on the way into its n-th such call from now on."""
    argv = ["strace", "-p", str(pid), "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}", "-o", "/dev/null"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                not_run(f"strace cannot attach to a process here: {said.strip()}")
            yield
        finally:
            tracer.terminate()
            tracer.communicate(timeout=LIMIT)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("call", CALLS)
def test_a_death_at_a_system_call(call: str) -> None:
    if shutil.which("strace") is None:
        not_run("strace is not installed")
    with Steps(env={}) as steps:
        n_died = 0
        for n in range(1, FIRST + 1):
            before = steps.status()
            try:
                with killing_at(before["pid"], call, n):
                    steps.do("once")
                    died = steps.status()["generation"] - before["generation"]
            except Wrong as err:
                raise Wrong(f"{call} {n}: {err}") from err
            assert died <= 1
            n_died += died
            if not died:
                break
        steps.finish()
    assert n_died, f"the broker never makes this call: {call}"
