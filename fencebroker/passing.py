"""Sending a sync_file over one's own socket, and receiving it: one message, one descriptor."""

from __future__ import annotations

import os
import socket

from fencebroker.errors import NotASyncFile
from fencebroker.fds import HasFileno, Truncated, borrow, close_all, recv_packet, send_packet
from fencebroker.sync_file import SyncFile

__all__ = ["recv_sync_file", "send_sync_file"]


def send_sync_file(sock: socket.socket, payload: bytes, fence: int | HasFileno) -> None:
    """Send ``payload`` and a copy of a sync_file's descriptor over a connected Unix socket, in one message.

    ``fence`` is borrowed: close yours whenever you like.  ``payload`` must not be empty (it would read like end-of-file) and at most
    16 KiB long; on a stream socket framing is yours.
    """
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
    if not payload:
        raise ValueError("payload must not be empty: it would read like end-of-file")
    if len(payload) > 16 * 1024:
        raise ValueError(f"payload must be at most 16384 bytes, not {len(payload)}")
    send_packet(sock, bytes(payload), [borrow(fence, "fence")])


def recv_sync_file(sock: socket.socket) -> tuple[bytes, SyncFile]:
    """Receive what ``send_sync_file`` sent: the payload and a SyncFile that the caller owns, close-on-exec.

    Raises EOFError when the other end has closed, NotASyncFile when the message carried no descriptor or another kind, OSError when this
    process has no room for a descriptor.  No descriptor stays open then.
    """
    try:
        payload, fds = recv_packet(sock)
    except Truncated as err:
        close_all(err.fds)
        raise
    if not payload:
        close_all(fds)
        raise EOFError("the other end closed the socket")
    if len(fds) != 1:
        close_all(fds)
        raise NotASyncFile(f"the message came with {len(fds)} descriptors, not one sync_file")
    number = fds[0].detach()
    try:
        return payload, SyncFile.from_fd(number)
    except BaseException:
        os.close(number)
        raise
