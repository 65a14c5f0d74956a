"""A broker and the workers that use it, and what must be so when they have left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from typing import Self

import fencebroker as fb
from tests.chaos.frames import Wrong
from tests.chaos.ledger import Ledger
from tests.helpers import LIMIT, BrokerProcess, Child, StartBroker, complaints, short_folder

__all__ = ["Crowd", "Layout", "check_books", "descriptors_of"]

#: The folder that holds the package ``tests``; workers import it.
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How many workers of each kind; every producer serves every consumer."""

    producers: int = 2
    consumers: int = 2
    visitors: int = 1
    tracers: int = 1
    #: Seconds after which a worker gives a fence up for lost.
    patience: float = LIMIT
    #: Whose processes they are; 0: our own user's.
    uid: int = 0


def descriptors_of(pid: int) -> dict[int, str]:
    """What a process has open."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # it was killed
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


class Crowd:
    """Owns the broker and the workers; ``with`` ends them all, however it is left."""

    def __init__(
        self, seed: int, layout: Layout, *arguments: str, env: Mapping[str, str | None] | None = None, python: str = sys.executable
    ) -> None:
        self.seed = seed
        self._stack = contextlib.ExitStack()
        self._workers: list[tuple[str, Child]] = []
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            folder = short_folder()
            self._stack.callback(shutil.rmtree, folder)
            self._brokers = contextlib.ExitStack()
            self._stack.push(self._brokers)
            if layout.uid:
                arguments = (*arguments, "--socket-mode", "0666")
            self.process: BrokerProcess = StartBroker(self._brokers)(*arguments, env=env, python=python)
            if layout.uid:
                os.chmod(os.path.dirname(self.process.path), 0o755)
            self.control = self._stack.enter_context(fb.connect(self.process.path, autostart=False))
            self._start(folder, layout)
            undo.pop_all()

    def _start(self, folder: str, layout: Layout) -> None:
        rng = random.Random(self.seed)
        ledger = f"{folder}/ledger"
        Ledger(ledger, layout.producers).close()
        pairs = [
            [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(layout.consumers)] for _ in range(layout.producers)
        ]
        try:
            common = {"path": self.process.path, "ledger": ledger, "patience": layout.patience, "uid": layout.uid}
            roles: list[tuple[str, int, list[socket.socket]]] = [("tracer", i, []) for i in range(layout.tracers)]
            roles += [("consumer", j, [row[j][1] for row in pairs]) for j in range(layout.consumers)]
            roles += [("producer", i, [pair[0] for pair in row]) for i, row in enumerate(pairs)]
            roles += [("visitor", i, []) for i in range(layout.visitors)]
            for role, number, sockets in roles:
                numbers = [sock.fileno() for sock in sockets]
                settings = {**common, "role": role, "number": number, "seed": rng.random(), "sockets": numbers}
                argv = [sys.executable, "-m", "tests.chaos.worker", json.dumps(settings)]
                child = Child(argv, pass_fds=numbers, cwd=ROOT)
                self._stack.callback(child.close)
                self._workers.append((f"{role} {number}", child))
        finally:
            for row in pairs:
                for pair in row:
                    for sock in pair:
                        sock.close()
        for who, child in self._workers:
            self._expect(who, child, "ready")

    def _expect(self, who: str, child: Child, line: str) -> None:
        assert child.line(3 * LIMIT) == line, f"{who}:\n{child.log()}"

    def check_workers(self) -> None:
        """Raise what the first worker that ended found wrong."""
        for who, child in self._workers:
            if child.process.poll() is not None:
                raise Wrong(f"{who} ended with {child.process.returncode}:\n{child.log()}")

    def finish(self) -> dict[str, int]:
        """Let every worker come to its end, and add up what they did."""
        totals: dict[str, int] = {}
        # Consumers and producers end together; those who only come and go, and who watches, when there is nothing more to see.
        order = ("producer", "visitor", "consumer", "tracer")
        for role in order:
            mine = [(who, child) for who, child in self._workers if who.startswith(role)]
            for _, child in mine:
                with contextlib.suppress(BrokenPipeError):
                    child.send("stop")
            for who, child in mine:
                try:
                    report = json.loads(child.finish(6 * LIMIT).splitlines()[-1])
                except (AssertionError, IndexError) as err:
                    raise Wrong(f"{who}: {err}\n{child.log()}") from err
                for key, value in report.items():
                    totals[key] = totals.get(key, 0) + value
        self._workers.clear()
        return totals

    def check_books(self) -> None:
        """Nobody is there any more but us."""
        check_books(self.control)

    def stop(self) -> str:
        """Stop the broker in order; its log."""
        code, log = self.process.stop()
        if code or complaints(log):
            raise Wrong(f"the broker ended with {code}:\n{log}")
        return log

    def close(self) -> None:
        """End everything at once."""
        self._brokers.pop_all().close() if sys.exc_info()[0] is None else self._abandon()
        self._stack.close()

    def _abandon(self) -> None:
        """Something is wrong already: the broker's own complaints would hide it."""
        self.process.kill()
        with contextlib.suppress(AssertionError):
            self._brokers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_books(control: fb.Broker) -> None:
    """Nobody else is connected: every account must be empty, and the table of descriptors equal to what the books account for."""
    deadline = time.monotonic() + LIMIT
    while True:
        status = control._status()
        wrong = [f"{key}: {status[key]}" for key in ("timelines", "active_fences") if status[key]]
        if status["sessions"] != 1:
            wrong.append(f"sessions: {status['sessions']}")
        if status["open_descriptors"] != status["known_descriptors"]:
            wrong.append(f"{status['open_descriptors']} descriptors are open and {status['known_descriptors']} known")
        if not wrong:
            return
        time.sleep(0.05)  # an end-of-file may be on its way, and the reaper closes in its own time: no event tells of either
        if time.monotonic() > deadline:
            table = sorted(descriptors_of(status["pid"]).items())
            wrong += [str(row) for row in control._listing("sessions")]
            raise Wrong(f"the books do not balance: {'; '.join(wrong)}; {status}\n" + "\n".join(f"{fd} {what}" for fd, what in table))
