"""The journal: what has happened, in memory that outlives the broker.

Facts
  It is a memfd in the table of descriptors that broker and keeper share, so a killed broker leaves it behind.  What was stored in it before the
  kill is there, in the order in which it was stored; no disk is involved, and a power cut ends the fences' processes too.
  A record counts when the word behind it in the page says so: a torn one is past the end.  It has a checksum all the same, against ourselves.
  There are two halves.  When one has grown to a multiple of what it began with, the state is written into the other as one record, and then one
  word says that the other counts.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from fencebrokerd.keeper import BASE, HALF, JOURNAL_BYTES, LENGTH, PAGE_BYTES, Page
from fencebrokerd.shell import failpoints

__all__ = ["Journal", "JournalError"]

#: It is written anew when it is so many times as long as it was when it was last; but not below the least.
GROWTH: Final = 3
LEAST: Final = 1024 * 1024
#: Memory is taken in steps: where there is none left, the step says so, and a store would be a SIGBUS.
STEP: Final = 256 * 1024
_HEAD: Final = struct.Struct("<II")
_HEAD_BYTES: Final = _HEAD.size
_pack_head: Final = _HEAD.pack
_HALF_BYTES: Final = JOURNAL_BYTES // 2


class JournalError(Exception):
    """The journal cannot be read, or does not fit; the text says where."""


class Journal:
    """Writes into the keeper's mapping, behind the page."""

    def __init__(self, page: Page) -> None:
        """Go on where the words of the page say that it ends; JournalError when that cannot be."""
        self._fd = page.fd
        self._words = page.words
        self._map = page.map
        half = page.words[HALF]
        if half > 1:
            raise JournalError(f"the words of its page are damaged: there is no half {half}")
        if page.words[LENGTH + half] > _HALF_BYTES:
            raise JournalError(f"the words of its page are damaged: {page.words[LENGTH + half]} bytes do not fit into a half")
        self._take(half)

    def _take(self, half: int) -> None:
        self._half = half
        self._start = PAGE_BYTES + half * _HALF_BYTES
        self._end = self._start + self._words[LENGTH + half]
        self._room = self._end  # memory up to here is ours
        self._long = self._start + max(LEAST, GROWTH * self._words[BASE])

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def is_long(self) -> bool:
        """Whether it should be written anew."""
        return self._end > self._long

    def append(self, payload: bytes) -> None:
        """Add a record, which counts when this returns.  OSError when the machine has no memory for it."""
        n = len(payload)
        start, end = self._end, self._end + _HEAD_BYTES + n
        if end > self._room:
            self._room = self._make_room(self._start, end)
        if failpoints.IS_ARMED and failpoints.is_hit("append.torn"):
            self._map[start : start + _HEAD.size + len(payload) // 2] = self._packed(payload)[: _HEAD.size + len(payload) // 2]
            failpoints.strike("append.torn")
        self._map[start:end] = _pack_head(n, zlib.crc32(payload)) + payload
        self._words[LENGTH + self._half] = end - self._start
        self._end = end

    @staticmethod
    def _packed(payload: bytes) -> bytes:
        return _pack_head(len(payload), zlib.crc32(payload)) + payload

    def _make_room(self, start: int, end: int) -> int:
        room = start - -(end - start) // STEP * STEP
        if room - start > _HALF_BYTES:
            raise JournalError(f"the journal would need {room - start} bytes, and has {_HALF_BYTES}")
        os.posix_fallocate(self._fd, start, room - start)
        return room

    def rewrite(self, payload: bytes) -> None:
        """Begin anew with one record in place of all."""
        old, half = self._half, 1 - self._half
        start = PAGE_BYTES + half * _HALF_BYTES
        end = start + _HEAD.size + len(payload)
        room = self._make_room(start, end)
        if failpoints.IS_ARMED:
            failpoints.hit("compact.before")
            if failpoints.is_hit("compact.torn"):
                self._map[start : start + len(payload) // 2] = payload[: len(payload) // 2]
                failpoints.strike("compact.torn")
        self._map[start:end] = self._packed(payload)
        self._words[LENGTH + half] = end - start
        if failpoints.IS_ARMED:
            failpoints.hit("compact.written")
        self._words[HALF] = half
        if failpoints.IS_ARMED:
            failpoints.hit("compact.after")
        self._words[BASE] = end - start
        self._take(half)
        self._room = room
        self._map.madvise(mmap.MADV_REMOVE, PAGE_BYTES + old * _HALF_BYTES, _HALF_BYTES)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield what counts, oldest first, each with where it begins.  JournalError at a record that is not what was written."""
        at, end = self._start, self._end
        while at < end:
            first = at + _HEAD.size
            n, checksum = _HEAD.unpack_from(self._map, at) if first <= end else (0, 0)
            if first + n > end or zlib.crc32(payload := self._map[first : first + n]) != checksum:
                raise JournalError(f"the record at byte {at - self._start} of {len(self)} is damaged")
            yield at - self._start, payload
            at = first + n
