"""Render pictures and hand each one on before it is ready.  See consumer.py.

In one terminal ``python examples/producer.py /tmp/pictures.sock``, in another the consumer with the same path.
"""

import socket
import sys
import tempfile
from pathlib import Path

import fencebroker as fb

PICTURES, SIZE = 5, 120


def render(path: Path, depth: int) -> None:
    """Draw the Mandelbrot set into a PGM file, one row after the other."""
    with path.open("wb") as file:
        file.write(b"P5 %d %d 255\n" % (SIZE, SIZE))
        for y in range(SIZE):
            file.write(bytes(255 * escape(complex(3 * x / SIZE - 2.2, 3 * y / SIZE - 1.5), depth) // depth for x in range(SIZE)))


def escape(c: complex, depth: int) -> int:
    z = 0j
    for step in range(depth):
        z = z * z + c
        if abs(z) > 2:
            return step
    return depth


if len(sys.argv) != 2:
    sys.exit("usage: producer.py SOCKET-PATH")
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, tempfile.TemporaryDirectory() as folder:
    try:
        listener.bind(sys.argv[1])
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}; give a path where nothing is yet")
    listener.listen()
    print("waiting for a consumer", flush=True)
    consumer, _ = listener.accept()
    Path(sys.argv[1]).unlink()
    with consumer, fb.connect() as broker, broker.create_timeline("pictures") as timeline:
        for number in range(1, PICTURES + 1):
            path = Path(folder, f"picture-{number}.pgm")
            with timeline.export(number, name=path.stem) as fence:
                fb.send_sync_file(consumer, bytes(path), fence)  # the picture does not exist yet
            render(path, depth=10 * number)
            timeline.advance(number)  # now it does
            print(f"{path.stem} is ready", flush=True)
        consumer.shutdown(socket.SHUT_WR)  # no more; the files stay until the consumer has left
        consumer.recv(1)
