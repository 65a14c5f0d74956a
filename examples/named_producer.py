"""Promise work by name: print lines such as ``camera0@7`` that any medium can carry.

    python examples/named_producer.py | python examples/named_consumer.py

No descriptor and no socket passes between the two: who knows the name can wait for the point.
"""

import sys
import time
import zlib

import fencebroker as fb

FRAMES = 5


def expose(number: int) -> int:
    """Do some work that takes a moment."""
    return zlib.crc32(bytes(20_000_000), number)


with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
    for number in range(1, FRAMES + 1):
        print(f"camera0@{number}", flush=True)  # a promise; nothing was exported
        expose(number)
        timeline.advance(number)
    # A timeline ends with its owner, and whoever asked for its points later would wait in vain.  So stay
    # until the reader is done, which it says in the same way: by a point of its own, that may not exist yet.
    started = time.monotonic()
    try:
        with broker.sync_file(f"viewer0@{FRAMES}", expiry=10.0) as done:
            done.wait(timeout=10.0)
    except (fb.FenceError, TimeoutError) as error:
        sys.exit(f"nobody read the frames: {error}")
    print(f"all frames were seen, {time.monotonic() - started:.3f} s after the last one", file=sys.stderr)
