"""strace on processes that run already: it refuses a system call, or kills whoever makes it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

from tests.helpers import LIMIT, not_run

__all__ = ["injected", "strace"]


def strace() -> str:
    """Where it is; without it the test is not run."""
    path = shutil.which("strace")
    if path is None:
        not_run("strace is not installed")
    return path


@contextlib.contextmanager
def injected(call: str, fault: str, *pids: int, children: bool = False) -> Iterator[None]:
    """Let ``fault`` happen (strace's words) to that call of these processes, and of those that they start from now on, until the block ends."""
    who = [word for pid in pids for word in ("-p", str(pid))]
    argv = [strace(), *(["-f"] if children else []), *who, "-e", f"trace={call}", "-e", f"inject={call}:{fault}", "-o", "/dev/null"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            for _ in pids:
                said = tracer.stderr.readline()
                if "attached" not in said:
                    not_run(f"strace cannot attach to a process here: {said.strip()}")
            yield
        finally:
            tracer.terminate()
            tracer.communicate(timeout=LIMIT)
