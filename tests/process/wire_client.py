"""A client that speaks the wire by itself, so that it can say what the library never would."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Self

import pytest

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import OwnedFd, close_all, recv_packet, send_packet
from tests.helpers import LIMIT, wait_readable

__all__ = ["WireClient", "assert_closed_for", "descriptors_of", "lingering", "switches_of"]


class WireClient:
    """One session's socket.  ``greet=False`` connects and says nothing."""

    def __init__(self, path: str, *, greet: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._serial = 1
        try:
            self.sock.connect(path)  # waits for its turn; a socket with a timeout would be refused while many wait
            self.sock.settimeout(LIMIT)
            if greet:
                self.say([1, wire.HELLO, wire.VERSION, "wire client"])
                assert self.hear()[:2] == [1, 0]
        except BaseException:
            self.sock.close()
            raise

    def say(self, message: Sequence[Any] | bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet: a message, or bytes as they are."""
        if message == b"":
            self.sock.send(b"")
        else:
            send_packet(self.sock, message if isinstance(message, bytes) else wire.encode(message), fds)

    def take(self) -> tuple[bytes, list[OwnedFd]]:
        """Receive a packet and its descriptors, which the caller owns."""
        for _ in range(2):  # a reset comes before what was said, if anything was
            with contextlib.suppress(ConnectionResetError):
                return recv_packet(self.sock)
        return b"", []

    def hear(self) -> list[Any]:
        """Receive a message and close what came with it."""
        packet, fds = self.take()
        close_all(fds)
        assert packet, "the broker ended this session"
        return wire.decode_answer(packet)

    def ask(self, op: int, *arguments: Any, fds: Sequence[int] = ()) -> list[Any]:
        """Send a request and return its answer."""
        self._serial += 1
        self.say([self._serial, op, *arguments], fds)
        answer = self.hear()
        assert answer[0] == self._serial
        return answer

    def is_cut(self) -> bool:
        """Wait for the next packet, and say whether it is the end."""
        packet, fds = self.take()
        close_all(fds)
        return not packet

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def switches_of(pid: int) -> int:
    """How often the threads of a process have gone to sleep so far: a process that sleeps all the time keeps the number."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="ascii") as lines:
            total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def lingering(stack: contextlib.ExitStack, seconds: int = 4) -> int:
    """A TCP socket whose close blocks for so many seconds: unsent data and SO_LINGER, to a peer that does not read."""
    listener = stack.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sender = socket.create_connection(listener.getsockname())
    stack.enter_context(listener.accept()[0])
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(b"x" * 65536)
    return sender.detach()


def assert_closed_for(connection: fb.Broker) -> None:
    """Whoever sends something foreign in good faith has it closed."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0):
        with pytest.raises(fb.NotASyncFile):
            connection.info(writer)
        os.close(writer)
        wait_readable(reader)
