"""The broker dies at the first, the second, the third ... of each system call that matters: where no failpoint is, too."""

from __future__ import annotations

from typing import Final

import pytest

from tests.chaos.frames import Wrong
from tests.chaos.stepping import Steps
from tests.chaos.tracing import injected

#: How many of each: with them, every kind of packet has been met.
FIRST: Final = 6
CALLS: Final = (
    "sendmsg", "recvmsg", "recvfrom", "write", "eventfd2", "socketpair", "accept4", "close", "epoll_ctl", "setitimer",
)  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("call", CALLS)
def test_a_death_at_a_system_call(call: str) -> None:
    with Steps(env={}) as steps:
        n_died = 0
        for n in range(1, FIRST + 1):
            before = steps.status()
            try:
                with injected(call, f"signal=KILL:when={n}", before["pid"]):  # on the way into its n-th from now on
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
