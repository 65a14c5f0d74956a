"""A pool of frames in shared memory, and the check that tells a torn frame.

Each buffer is a header and the pixels.  Whoever fills a buffer writes into its header which frame it
is about to hold and the checksum of the pixels it is about to write; whoever reads it computes the
checksum of what is really there.  Both must agree, before and after the use.

Ownership of the name: the producer creates the block, its neighbour attaches it, and then the
producer unlinks the name at once.  From there on the memory lives as long as somebody has it mapped,
and a stage that is killed leaves nothing in /dev/shm.
"""

from __future__ import annotations

import sys
import zlib
from multiprocessing import resource_tracker, shared_memory
from typing import NamedTuple, Self

import numpy as np

from examples.pipeline.scene import Pixels

#: One cache line per header.  The two times are CLOCK_MONOTONIC nanoseconds, which all processes share.
_HEADER = np.dtype(
    {
        "names": ["sequence", "checksum", "signalled_ns", "released_ns"],
        "formats": ["<i8", "<u4", "<i8", "<i8"],
        "offsets": [0, 8, 16, 24],
        "itemsize": 64,
    }
)
_NOTHING = -1  # the sequence in the header of a buffer that was never filled


class Layout(NamedTuple):
    """What both sides must know to find their way in the block."""

    buffers: int
    width: int
    height: int

    @property
    def pixel_bytes(self) -> int:
        return self.width * self.height * 3

    @property
    def total_bytes(self) -> int:
        return self.buffers * (_HEADER.itemsize + self.pixel_bytes)


class Buffer:
    """One frame of the pool.  The views into it end when the pool is closed."""

    def __init__(self, header: np.ndarray, pixels: Pixels) -> None:
        self._header = header
        self.pixels = pixels

    def begin(self, sequence: int, checksum: int) -> None:
        """Say which frame the pixels will be; call it before the first pixel is written."""
        self._header["sequence"] = sequence
        self._header["checksum"] = checksum

    def forget(self) -> None:
        """Give up the views, so that the memory can be unmapped."""
        self._header = np.zeros((), dtype=_HEADER)
        self.pixels = np.zeros((0, 0, 3), dtype=np.uint8)

    def holds(self, sequence: int) -> bool:
        """Say whether this is frame ``sequence``, whole: header and pixels agree."""
        return int(self._header["sequence"]) == sequence and int(self._header["checksum"]) == checksum_of(self.pixels)

    @property
    def signalled_ns(self) -> int:
        """When the producer was about to signal the out-fence."""
        return int(self._header["signalled_ns"])

    @signalled_ns.setter
    def signalled_ns(self, value: int) -> None:
        self._header["signalled_ns"] = value

    @property
    def released_ns(self) -> int:
        """When the consumer was about to signal the release fence."""
        return int(self._header["released_ns"])

    @released_ns.setter
    def released_ns(self, value: int) -> None:
        self._header["released_ns"] = value


class FramePool:
    """The buffers of one link of the pipeline, mapped into this process."""

    def __init__(self, block: shared_memory.SharedMemory, layout: Layout) -> None:
        """Take ownership of ``block``; use :meth:`create` or :meth:`attach`."""
        if block.size < layout.total_bytes:
            block.close()
            raise ValueError(f"the shared memory has {block.size} bytes and should have {layout.total_bytes}")
        self.layout = layout
        self.name = block.name
        self._block = block
        self._buffers = [self._view(index) for index in range(layout.buffers)]

    @classmethod
    def create(cls, layout: Layout) -> Self:
        pool = cls(shared_memory.SharedMemory(create=True, size=layout.total_bytes), layout)
        for index in range(len(pool)):
            pool[index].begin(_NOTHING, 0)
        return pool

    @classmethod
    def attach(cls, name: str, layout: Layout) -> Self:
        """Map the block another process created, without becoming responsible for its name."""
        if sys.version_info >= (3, 13):
            return cls(shared_memory.SharedMemory(name, track=False), layout)
        # Before 3.13 attaching registers the name with this process's resource tracker, which would
        # unlink it when we exit, and complain.  The tracker knows names with their slash.
        block = shared_memory.SharedMemory(name)
        resource_tracker.unregister(f"/{block.name}", "shared_memory")
        return cls(block, layout)

    def __getitem__(self, index: int) -> Buffer:
        return self._buffers[index]

    def __len__(self) -> int:
        return len(self._buffers)

    def forget_name(self) -> None:
        """Remove the name from /dev/shm; the mappings stay."""
        self._block.unlink()

    def close(self) -> None:
        """End this process's mapping.  Pixels still in use elsewhere are a BufferError."""
        for buffer in self._buffers:
            buffer.forget()
        self._block.close()

    def _view(self, index: int) -> Buffer:
        layout = self.layout
        start = index * (_HEADER.itemsize + layout.pixel_bytes)
        shape = (layout.height, layout.width, 3)
        return Buffer(
            np.ndarray((), dtype=_HEADER, buffer=self._block.buf, offset=start),
            np.ndarray(shape, dtype=np.uint8, buffer=self._block.buf, offset=start + _HEADER.itemsize),
        )


def checksum_of(pixels: Pixels) -> int:
    """Return the CRC-32 of the pixels, row after row."""
    return zlib.crc32(pixels.data)
