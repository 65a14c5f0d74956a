"""What each operation costs in system calls, exactly: a guard against slowness that is no timed test.

Client and broker run under strace.  Each operation is done so many times, the broker asleep between two, and every system call of either
side is counted; but for memory, which Python asks for when it likes.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers import LIMIT, BrokerProcess, Spawn, not_run

if TYPE_CHECKING:
    from tests.helpers import Child

TIMES: Final = 8
#: So often before, until what is done once only is done, and what is kept is full.
WARM: Final = 34

#: Operation -> system calls of the client, of the broker.  This is the one place to change when an operation costs more or less.
COSTS: Final[dict[str, tuple[dict[str, int], dict[str, int]]]] = {
    "export": (
        {"fcntl": 1, "recvmsg": 1, "sendto": 1},
        {"epoll_wait": 2, "eventfd2": 1, "recvfrom": 1, "recvmsg": 1, "sendmsg": 1},
    ),
    "advance that signals one": (
        {"close": 1, "write": 1},
        {},
    ),
    "advance that signals none": (
        {},
        {},
    ),
    "info by handle": (
        {"recvmsg": 1, "sendto": 1},
        {"epoll_wait": 2, "recvfrom": 1, "recvmsg": 1, "sendto": 1},
    ),
    "sync_file_info of a known number": (
        {"fcntl": 1, "poll": 1, "recvmsg": 1, "sendto": 1},
        {"epoll_wait": 2, "recvfrom": 1, "recvmsg": 1, "sendto": 1},
    ),
    "sync_file_info of another": (
        {"fcntl": 1, "recvmsg": 1, "sendmsg": 1},
        {"close": 1, "epoll_wait": 2, "fcntl": 1, "poll": 1, "recvfrom": 1, "recvmsg": 1, "sendto": 1},
    ),
    "sync_merge of known numbers": (
        {"close": 1, "fcntl": 3, "poll": 2, "recvmsg": 1, "sendto": 1},
        {"epoll_wait": 2, "eventfd2": 1, "recvfrom": 1, "recvmsg": 1, "sendmsg": 1},
    ),
    "sync_merge of others": (
        {"close": 1, "fcntl": 2, "recvmsg": 1, "sendmsg": 1},
        {"close": 2, "epoll_wait": 2, "eventfd2": 1, "fcntl": 6, "poll": 2, "recvfrom": 1, "recvmsg": 1, "sendmsg": 1},
    ),
    "import by handle": (
        {"recvmsg": 1, "sendto": 1},
        {"epoll_wait": 2, "eventfd2": 1, "recvfrom": 1, "recvmsg": 1, "sendmsg": 1},
    ),
}

CLIENT = """
    import itertools, os
    import fencebroker as fb
    from fencebroker import libsync
    broker = fb.connect()
    timeline, other, idle = (broker.create_timeline() for _ in range(3))
    numbers = itertools.count(1)
    active = other.export(1)
    raw = [libsync.sw_sync_fence_create(libsync.sw_sync_timeline_create(), "", 1) for _ in range(2)]
    copies = [os.dup(fd) for fd in raw]
    kept, signalled = timeline.export_many(range(1, 200)), itertools.count(1)


    operations = {
        "export": lambda: kept.append(other.export()),
        "advance that signals one": lambda: timeline.advance(next(signalled)),
        "advance that signals none": lambda: idle.advance(next(numbers)),
        "info by handle": lambda: broker.info(active),
        "sync_file_info of a known number": lambda: libsync.sync_file_info(raw[0]),
        "sync_file_info of another": lambda: libsync.sync_file_info(copies[0]),
        "sync_merge of known numbers": lambda: kept.append(libsync.sync_merge("", *raw)),
        "sync_merge of others": lambda: kept.append(libsync.sync_merge("", *copies)),
        "import by handle": lambda: kept.append(broker.import_sync_file(active)),
    }
    while (name := os.read(0, 100).decode().strip()):
        operations[name]()
        os.write(1, b"done\\n")
    os._exit(0)
"""

#: Memory, and what strace itself or the pacing causes.
_IGNORED: Final = {"mmap", "munmap", "mremap", "madvise", "brk", "futex", "restart_syscall"}
_LINE: Final = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?:\((\d*)| resumed)")


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"S"


class Tracer:
    """strace on a process, from its start until ``counts``."""

    def __init__(self, pid: int, file: Path) -> None:
        self._file = file
        self._strace = subprocess.Popen(["strace", "-f", "-o", str(file), "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()
        if "attached" not in line:
            self._strace.kill()
            self._strace.communicate()
            not_run(f"strace cannot attach to a process here: {line.strip()}")

    def counts(self) -> Counter[str]:
        self._strace.send_signal(signal.SIGINT)
        self._strace.communicate(timeout=LIMIT)
        counted: Counter[str] = Counter()
        for line in self._file.read_text().splitlines():
            match = _LINE.match(line)
            # A call that something came between is one line when it begins and one when it ends: counted when it ends.
            if match and "<unfinished" not in line and "<detached" not in line and "= ?" not in line:
                name, first = match.groups()
                if name not in _IGNORED and (name, first) not in {("read", "0"), ("write", "1")}:
                    counted[name] += 1
        return counted


def cost(client: Child, broker: BrokerProcess, operation: str, folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Do it often, and return what it costs each side once."""
    for _ in range(WARM):
        do(client, broker, operation)
    counts: list[Counter[str]] = []
    for _ in range(20):
        tracers = [Tracer(pid, folder / name) for name, pid in (("client", client.pid), ("broker", broker.pid))]
        for _ in range(TIMES):
            do(client, broker, operation)
        counts = [tracer.counts() for tracer in tracers]
        # The call in which it slept when strace came, or went, may be seen or not.  On a busy machine the timer that guards the broker's
        # writes goes off now and then, and a batch of releases may have been due: then once more.
        if all(n % TIMES in (0, 1, TIMES - 1) for counted in counts for n in counted.values()):
            ours, theirs = ({name: round(n / TIMES) for name, n in sorted(counted.items()) if n > 1} for counted in counts)
            return ours, theirs
    pytest.fail(f"{operation} does not cost the same each time: {counts}")


def do(client: Child, broker: BrokerProcess, operation: str) -> None:
    """Have it done once, and wait until both sleep."""
    client.send(operation)
    assert client.line() == "done"
    deadline = time.monotonic() + LIMIT
    while not (is_asleep(client.pid) and is_asleep(broker.pid)):
        assert time.monotonic() < deadline, "somebody does not go to sleep"


@pytest.mark.timeout(180)
def test_each_operation_costs_what_the_table_says(broker: BrokerProcess, spawn: Spawn, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        not_run("no strace to see the system calls with")
    client = spawn(CLIENT, env=broker.env)
    costs = {operation: cost(client, broker, operation, tmp_path) for operation in COSTS}
    assert costs == COSTS
    client.send("")
    assert client.wait() == 0
