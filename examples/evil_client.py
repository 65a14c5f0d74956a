"""Do not copy this example!

It does to a broker what no client should: it floods, it lies, it hangs.  The tests run it to show that
the broker and its other clients do not care.

    python examples/evil_client.py flood      # ask and ask, and never read an answer
    python examples/evil_client.py lie        # packets out of form, and a fence it made itself
    python examples/evil_client.py hang       # connect many times and say nothing

``flood`` and ``hang`` say when they are at their worst and then stay so until standard input ends.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import ExitStack

from fencebroker import fds, wire

HELLO = wire.encode([1, wire.HELLO, wire.VERSION, "evil"])
#: More than any quota lets through.
MOST_REQUESTS = 100_000
CONNECTIONS = 32
PATIENCE_MS = 5000


def main(arguments: list[str]) -> None:
    modes = {"flood": flood, "lie": lie, "hang": hang}
    path = os.environ.get("FENCEBROKER_SOCKET")
    if len(arguments) != 1 or arguments[0] not in modes or path is None:
        sys.exit(f"usage: FENCEBROKER_SOCKET=PATH evil_client.py {'|'.join(modes)}")
    modes[arguments[0]](path)


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    return sock


def greeted(path: str) -> socket.socket:
    sock = connect(path)
    fds.send_packet(sock, HELLO)
    answer, _ = fds.recv_packet(sock)
    assert wire.decode_answer(answer)[1] == 0, answer
    return sock


def flood(path: str) -> None:
    """Send requests until the broker takes no more, and read nothing."""
    with greeted(path) as sock:
        sent = 0
        how = "it swallowed all of them"
        try:
            for serial in range(2, MOST_REQUESTS):
                fds.send_packet(sock, wire.encode([serial, wire.STATUS]), flags=socket.MSG_DONTWAIT)
                sent += 1
        except BlockingIOError:
            how = "then it stopped reading"
        except ConnectionError:
            how = "then it hung up"
        print(f"flood: {sent} requests, {how}", flush=True)
        sys.stdin.read()


def hang(path: str) -> None:
    """Occupy connections without a word; one more greets and then goes quiet in the middle of a request."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(path))
        quiet = stack.enter_context(greeted(path))
        fds.send_packet(quiet, wire.encode([2, wire.STATUS]))
        print(f"hang: {CONNECTIONS + 1} connections", flush=True)
        sys.stdin.read()


def lie(path: str) -> None:
    """Say wrong things, each on a connection of its own, and print what came of it."""
    forged = os.eventfd(5, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    lies = {
        "not MessagePack": (b"\xc1 hello?", ()),
        "not an array": (wire.encode({}), ()),  # type: ignore[arg-type]
        "an array without end": (b"\xdd\xff\xff\xff\xff", ()),
        "a negative serial": (wire.encode([-1, wire.STATUS]), ()),
        "an argument too many": (wire.encode([2, wire.STATUS, "please"]), ()),
        "a descriptor nobody asked for": (wire.encode([2, wire.STATUS]), (writer,)),
        "a descriptor that is missing": (wire.encode([2, wire.INFO, None, 0]), ()),
        "somebody else's handle": (wire.encode([2, wire.INFO, 1, 0]), ()),
        "a pipe for a fence": (wire.encode([2, wire.INFO, None, 0]), (reader,)),
        "an eventfd it made itself": (wire.encode([2, wire.INFO, None, 0]), (forged,)),
        "a second hello": (HELLO, ()),
        "a packet of 64 KiB": (bytes(65536), ()),
    }
    for what, (packet, numbers) in lies.items():
        with greeted(path) as sock:
            fds.send_packet(sock, packet, numbers)
            print(f"lie: {what}: {outcome(sock)}", flush=True)
    for fd in (forged, reader, writer):
        os.close(fd)


def outcome(sock: socket.socket) -> str:
    """Say how the broker took it."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if not poller.poll(PATIENCE_MS):
        return "no reaction"
    try:
        packet, _ = fds.recv_packet(sock)
    except ConnectionResetError:
        return "disconnected"
    if not packet:
        return "disconnected"
    answer = wire.decode_answer(packet)
    return f"refused: {answer[2]}" if answer[1] else "believed"


if __name__ == "__main__":
    main(sys.argv[1:])
