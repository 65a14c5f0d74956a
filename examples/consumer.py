"""Receive pictures from producer.py and look at each one as soon as it is ready, and not before.

In one terminal ``python examples/producer.py /tmp/pictures.sock``, in another the consumer with the same path.
It needs no broker: the fence that comes with each picture is a descriptor that becomes readable.
"""

import socket
import sys
from pathlib import Path

import fencebroker as fb

if len(sys.argv) != 2:
    sys.exit("usage: consumer.py SOCKET-PATH")
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as producer:
    try:
        producer.connect(sys.argv[1])
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}; start producer.py with this path first")
    while True:
        try:
            payload, fence = fb.recv_sync_file(producer)
        except EOFError:
            break
        picture = Path(payload.decode())
        with fence:
            print(f"waiting for {picture.stem}, fence {'active' if fence.status() == 0 else 'signalled'}", flush=True)
            try:
                fence.wait(timeout=10.0)
            except (fb.FenceError, TimeoutError) as error:
                sys.exit(f"{picture.stem} will not come: {error}")
        header, pixels = picture.read_bytes().split(b"\n", 1)
        print(f"{picture.stem}: {header.decode()}, {len(pixels)} pixels, mean brightness {sum(pixels) / len(pixels):.1f}", flush=True)
