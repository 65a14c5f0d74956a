"""A broker that takes over cannot know whether an answer was sent, so it sends it again: clients drop what they have, and close what came with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import fencebroker as fb
from fencebroker import aio, wire
from fencebroker.fds import close_all, new_fence_eventfd, recv_packet, send_packet
from tests.helpers import LIMIT
from tests.sockets.scarcity import descriptors_left

#: What a broker answers: results, and how many descriptors.
ANSWERS: dict[int, tuple[list[Any], int]] = {
    wire.HELLO: ([wire.VERSION, "0", 1, 1], 0),
    wire.SYNC_FILE: ([7], 1),
    wire.STATUS: ([[["sessions", 1]]], 0),
}


@contextlib.contextmanager
def twice(folder: str) -> Iterator[str]:
    """Something that listens, and gives each answer twice."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path := f"{folder}/twice")
        listener.listen()
        listener.settimeout(LIMIT)

        def serve() -> None:
            guest, _ = listener.accept()
            with guest:
                guest.settimeout(LIMIT)
                while True:
                    try:
                        packet, fds = recv_packet(guest)
                    except ConnectionResetError:  # it left with a second answer unread
                        return
                    close_all(fds)
                    if not packet:
                        return
                    serial, op, *_ = wire.decode_request(packet, len(fds))[0]
                    if op not in ANSWERS:
                        continue
                    results, n = ANSWERS[op]
                    made = [new_fence_eventfd() for _ in range(n)]
                    try:
                        for _ in range(2):
                            send_packet(guest, wire.encode([serial, 0, *results]), made)
                    except BrokenPipeError:  # it left with the first
                        return
                    finally:
                        for fd in made:
                            os.close(fd)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join(LIMIT)


def test_the_blocking_client_drops_what_it_has(folder: str) -> None:
    with twice(folder) as path, fb.connect(path, autostart=False) as broker:
        for _ in range(3):
            with broker.sync_file("a@1") as fence:
                assert fence.status() == 0
            assert broker._status() == {"sessions": 1}


def test_the_client_of_a_loop_drops_what_it_has(folder: str) -> None:
    async def run(path: str) -> None:
        async with await aio.connect(path, autostart=False) as broker:
            for _ in range(3):
                with await broker.sync_file("a@1") as fence:
                    assert fence.status() == 0

    with twice(folder) as path:
        asyncio.run(run(path))


def test_a_second_answer_that_has_no_room_is_nobodys_failure(folder: str) -> None:
    """The one that waits comes after it."""
    with twice(folder) as path, fb.connect(path, autostart=False) as broker, broker.sync_file("a@1"), descriptors_left(0):
        assert broker._status() == {"sessions": 1}
