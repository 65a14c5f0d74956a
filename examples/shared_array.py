"""A numpy array in shared memory, filled by one process and read by another, with fences both ways.

    python examples/shared_array.py

The fence of each buffer goes through a ``multiprocessing`` pipe beside its number.  The reader answers
with a release fence before it has read, so that the writer can go on with other buffers meanwhile.
"""

from __future__ import annotations

from multiprocessing import connection, get_context, shared_memory

import numpy as np
from numpy.typing import NDArray

import fencebroker as fb

ROUNDS, BUFFERS, SIZE = 40, 2, 250_000


def array_in(memory: shared_memory.SharedMemory) -> NDArray[np.int64]:
    return np.ndarray((BUFFERS, SIZE), dtype=np.int64, buffer=memory.buf)


def read(pipe: connection.Connection, name: str) -> None:
    """Check that each buffer holds one value throughout; run in a process of its own."""
    memory = shared_memory.SharedMemory(name)  # a child shares its parent's resource tracker: the name stays the parent's
    array = array_in(memory)
    torn = 0
    with fb.connect() as broker, broker.create_timeline() as timeline:
        for number in range(1, ROUNDS + 1):
            buffer, filled = pipe.recv()
            with timeline.export(number) as release:
                pipe.send(release)
            with filled:
                filled.wait(timeout=10.0)
            torn += not (array[buffer] == number).all()
            timeline.advance(number)
        pipe.recv()  # the writer has waited for the last release fence: the timeline may go
    del array
    memory.close()
    pipe.send(torn)


def write(pipe: connection.Connection, array: NDArray[np.int64]) -> None:
    """Fill the buffers in turn, each only after its last reader released it."""
    with fb.connect() as broker, broker.create_timeline() as timeline:
        releases: list[fb.SyncFile] = []
        for number in range(1, ROUNDS + 1):
            buffer = number % BUFFERS
            with timeline.export(number) as filled:
                pipe.send((buffer, filled))  # announced, not yet filled
            releases.append(pipe.recv())
            if number > BUFFERS:
                with releases.pop(0) as release:
                    release.wait(timeout=10.0)
            array[buffer] = number
            timeline.advance(number)
        for release in releases:
            with release:
                release.wait(timeout=10.0)
    pipe.send("done")


if __name__ == "__main__":
    context = get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=BUFFERS * SIZE * 8)
    ours, theirs = context.Pipe()
    reader = context.Process(target=read, args=(theirs, memory.name))
    reader.start()
    theirs.close()
    try:
        array = array_in(memory)
        write(ours, array)
        print(f"{ROUNDS} rounds over {BUFFERS} buffers of {SIZE:,} numbers, torn {ours.recv()}")
        del array
    finally:
        ours.close()
        reader.join(10.0)
        memory.close()
        memory.unlink()
