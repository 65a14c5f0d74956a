"""The broker dies at one named place after the other, or at one system call after the other, while a client does all that there is to do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import fencebroker as fb
from tests.chaos.crowd import ROOT, check_books
from tests.chaos.frames import Wrong
from tests.helpers import LIMIT, Child, StartBroker, complaints

__all__ = ["PATIENCE", "Steps", "sweep"]

#: Seconds after which the client gives a fence up for lost.
PATIENCE: Final = LIMIT


class Steps:
    """A broker, a client that does everything, and somebody who asks how the broker is."""

    def __init__(self, *arguments: str, env: Mapping[str, str | None], patience: float = PATIENCE) -> None:
        self._patience = patience
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            self._brokers = contextlib.ExitStack()
            self._stack.push(self._brokers)
            self.process = StartBroker(self._brokers)(*arguments, env=env)
            undo.callback(self.process.expect_trouble)  # what goes wrong from here on has its own words
            self.control = self._stack.enter_context(fb.connect(self.process.path, autostart=False))
            argv = [sys.executable, "-m", "tests.chaos.actions", self.process.path, str(patience)]
            self.client = Child(argv, cwd=ROOT)
            self._stack.callback(self.client.close)
            self._hear("ready")
            undo.pop_all()

    def _hear(self, line: str) -> None:
        try:
            # pytest's own failure is no Exception.
            heard = self.client.line(3 * self._patience)
        except BaseException as err:
            if isinstance(err, KeyboardInterrupt):
                raise
            raise Wrong(f"the client failed:\n{self.client.log()}\nthe end of the broker's log:\n{self.process.log()[-2500:]}") from None
        assert heard == line

    def do(self, action: str = "all") -> None:
        """Let the client do something; ``Wrong`` if it saw an error."""
        self.client.send(action)
        self._hear(f"done {action}")

    def status(self) -> dict[str, Any]:
        return self.control._status()

    def kill(self) -> None:
        """Kill the broker from outside, when nothing is in hand."""
        os.kill(self.status()["pid"], signal.SIGKILL)

    def finish(self) -> str:
        """The client leaves; the books must be empty and the broker end in order.  Returns its log."""
        self.client.finish(2 * LIMIT)
        check_books(self.control)
        code, log = self.process.stop()
        if code or complaints(log):
            raise Wrong(f"the broker ended with {code}:\n{log}")
        for bad in ("missing descriptor", "unknown descriptor"):
            if bad in log:
                raise Wrong("table and journal differ:\n" + "\n".join(line for line in log.splitlines() if bad in line))
        return log

    def close(self) -> None:
        if sys.exc_info()[0] is not None:
            self.process.kill()
        with contextlib.suppress(AssertionError) if sys.exc_info()[0] else contextlib.nullcontext():
            self._brokers.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sweep(
    failpoints: str, actions: Sequence[str], *, env: Mapping[str, str | None] | None = None, patience: float = PATIENCE
) -> dict[str, int]:
    """Let the client do ``actions`` while brokers die at ``failpoints``; how many died during each.  ``Wrong`` says where it went wrong."""
    try:
        steps = Steps(env={"FENCEBROKERD_FAILPOINT": failpoints, **(env or {})}, patience=patience)
    except OSError as err:
        raise Wrong(f"{failpoints}: the first connection: {err}") from err
    with steps:
        died: dict[str, int] = {}
        generation = 1
        for action in actions:
            try:
                steps.do(action)
                now = steps.status()["generation"]
            except (Wrong, OSError) as err:
                raise Wrong(f"{failpoints}, {action}, after {died}: {err}\n{steps.process.log()[-2500:]}") from err
            died[action] = died.get(action, 0) + now - generation
            generation = now
        try:
            steps.finish()
        except (Wrong, OSError) as err:
            raise Wrong(f"{failpoints}, after {died}: {err}") from err
        return died
