"""One worker's process: ``python -m tests.chaos.worker '{"role": ...}'``.  A line on its standard input ends it; its report is a line of JSON."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - of these, whoever has become another user may not be able to read the files
import json
import os
import random
import select
import socket
import sys
import traceback  # noqa: F401
from typing import Any

import fencebroker.mapping  # noqa: F401
from tests.chaos.consuming import Consumer
from tests.chaos.ledger import Ledger
from tests.chaos.producing import Producer
from tests.chaos.visiting import Tracer, Visitor

__all__ = ["become", "main"]


def become(uid: int) -> None:
    """Be another user from here on."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def is_told_to_stop() -> bool:
    """Somebody wrote a line, or closed our standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Do the work of one role."""
    rng = random.Random(settings["seed"])
    path, patience = settings["path"], settings["patience"]
    sockets = [socket.socket(fileno=fd) for fd in settings["sockets"]]
    try:
        with Ledger(settings["ledger"]) as ledger:
            if settings["uid"]:
                become(settings["uid"])
            match settings["role"]:
                case "producer":
                    worker: Producer | Consumer | Visitor | Tracer = Producer(settings["number"], path, ledger, sockets, rng, patience)
                case "consumer":
                    worker = Consumer(path, ledger, sockets, rng, patience)
                case "visitor":
                    worker = Visitor(path, rng, patience)
                case _:
                    worker = Tracer(path)
            print("ready", flush=True)
            return worker.run(is_told_to_stop)
    finally:
        for sock in sockets:
            sock.close()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
