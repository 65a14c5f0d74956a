"""The socket between two neighbours of the pipeline: what is said on it, and how long one waits for it.

A link is a SOCK_SEQPACKET Unix socket.  First the producer describes its frame pool and the consumer
confirms that it has mapped it.  Then packets of one form go both ways, each with a sync_file:

    producer -> consumer    "frame S is in buffer B once this fence signals"          (out-fence)
    consumer -> producer    "frame S in buffer B is no longer read once this one does" (release fence)
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
from typing import NamedTuple, Self

import fencebroker as fb
from examples.pipeline.pool import Layout

#: Seconds after which a stage stops waiting for its neighbour.  In order, nothing takes this long.
PATIENCE = 10.0

_MESSAGE = struct.Struct("<QI")
_ATTACHED = b"attached"
_MOST_BYTES = 4096


class LinkClosed(ConnectionError):
    """The neighbour closed its end.  Why is not known from the socket; a fence of its timeline tells."""


class Hello(NamedTuple):
    """What a producer says first: where its frames are, how many will come, and how fast to show them."""

    pool: str
    layout: Layout
    frames: int
    rate: int

    def to_bytes(self) -> bytes:
        return json.dumps([self.pool, self.layout, self.frames, self.rate]).encode()

    @classmethod
    def from_bytes(cls, packet: bytes) -> Self:
        pool, layout, frames, rate = json.loads(packet)
        return cls(pool, Layout(*layout), frames, rate)


class Message(NamedTuple):
    """A fence and the frame and buffer it is about; the receiver closes it."""

    sequence: int
    buffer: int
    fence: fb.SyncFile


class Link:
    """One end of the connection to a neighbour."""

    def __init__(self, sock: socket.socket) -> None:
        """Take ownership of a connected socket."""
        self._sock = sock

    @classmethod
    def connect(cls, path: str) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    def accept(cls, listener: socket.socket) -> Self:
        if not _readable(listener, PATIENCE):
            raise TimeoutError(f"no neighbour connected within {PATIENCE:g} s")
        sock, _ = listener.accept()
        return cls(sock)

    def introduce(self, hello: Hello) -> None:
        """Describe one's frames and return once the neighbour has mapped them."""
        self._sock.send(hello.to_bytes())
        if self._first_packet() != _ATTACHED:
            raise ConnectionError("the neighbour did not confirm the frame pool")

    def introduction(self) -> Hello:
        return Hello.from_bytes(self._first_packet())

    def confirm(self) -> None:
        self._sock.send(_ATTACHED)

    def send(self, sequence: int, buffer: int, fence: fb.SyncFile) -> None:
        """Send a fence; the caller still owns its copy.

        That a neighbour is gone is no error here: its fences, which tell more, are looked at next.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            fb.send_sync_file(self._sock, _MESSAGE.pack(sequence, buffer), fence)

    def receive(self, timeout: float = PATIENCE) -> Message:
        """Return the next message; TimeoutError if none comes in time, LinkClosed if none will come."""
        while True:
            if not _readable(self._sock, timeout):
                raise TimeoutError(f"the neighbour sent no fence within {timeout:g} s")
            try:
                payload, fence = fb.recv_sync_file(self._sock)
            except ConnectionResetError:
                # The neighbour died with packets from here unread.  Linux says so once, and only then
                # hands out what the neighbour had still sent.
                continue
            except EOFError:
                raise LinkClosed("the neighbour closed the connection") from None
            sequence, buffer = _MESSAGE.unpack(payload)
            return Message(sequence, buffer, fence)

    def close(self) -> None:
        self._sock.close()

    def _first_packet(self) -> bytes:
        if not _readable(self._sock, PATIENCE):
            raise TimeoutError(f"the neighbour said nothing within {PATIENCE:g} s")
        packet = self._sock.recv(_MOST_BYTES)
        if not packet:
            raise LinkClosed("the neighbour closed the connection before it described its frames")
        return packet


def listen(path: str) -> socket.socket:
    """Return a socket at which one neighbour can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(path)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _readable(sock: socket.socket, timeout: float) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
