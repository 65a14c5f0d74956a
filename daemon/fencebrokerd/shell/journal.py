"""The journal: what has happened, in memory that outlives the broker.

Facts
  It is a memfd in the table of descriptors that broker and keeper share, so a killed broker leaves it behind.  What was stored in it before the
  kill is there, in the order in which it was stored; no disk is involved, and a power cut ends the fences' processes too.
  A record counts when the word behind it in the page says so: a torn one is past the end.  It has a checksum all the same, against ourselves.
  There are two halves.  When one has grown to a multiple of what it began with, the state is written into the other as one record, and then one
  word says that the other counts.
  The kernel may have no memory for it.  A store would then be a SIGBUS, so memory is taken before, and ahead: in both halves, for twice as much
  as there is in the one that counts.  A state takes less than twice what its records take (a sync_file that has signalled 1.8 times, where it
  was exported with many others, by a large uid with a long name).
Rule
  Who would make more asks first whether ``has_room``, and leaves it when there is none.  What cannot be left, a signal or an end, goes into what
  is there; when that is full everything is written anew in the other half, where it fits, for what has ended is not in it any more.
"""

from __future__ import annotations

import errno
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
#: Memory is taken in steps.
STEP: Final = 256 * 1024
#: Word of the page: so many bytes of memory each half has.  It is not among the keeper's, which may be older than this broker.
ROOM: Final = 24
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
        for word in (LENGTH + half, ROOM):
            if page.words[word] > _HALF_BYTES:
                raise JournalError(f"the words of its page are damaged: {page.words[word]} bytes do not fit into a half")
        #: Why there was no memory when it was last asked for; empty: there was.
        self.shortage = ""
        self._take(half)

    def _take(self, half: int) -> None:
        self._half = half
        self._start = PAGE_BYTES + half * _HALF_BYTES
        self._end = self._start + self._words[LENGTH + half]
        self._long = self._start + max(LEAST, GROWTH * self._words[BASE])
        self._have(max(self._words[ROOM], len(self)))

    def _have(self, room: int) -> None:
        self._room = room
        self._ahead = self._start + (room - STEP) // 2

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def is_long(self) -> bool:
        """Whether it should be written anew."""
        return self._end > self._long

    def append(self, payload: bytes) -> None:
        """Add a record, which counts when this returns.  OSError when there is no memory for it."""
        n = len(payload)
        start, end = self._end, self._end + _HEAD_BYTES + n
        if end > self._ahead:
            self._grow(end - self._start)
        if failpoints.IS_ARMED and failpoints.is_hit("append.torn"):
            self._map[start : start + _HEAD.size + len(payload) // 2] = self._packed(payload)[: _HEAD.size + len(payload) // 2]
            failpoints.strike("append.torn")
        self._map[start:end] = _pack_head(n, zlib.crc32(payload)) + payload
        self._words[LENGTH + self._half] = end - self._start
        self._end = end

    @staticmethod
    def _packed(payload: bytes) -> bytes:
        return _pack_head(len(payload), zlib.crc32(payload)) + payload

    @property
    def has_room(self) -> bool:
        """Whether there is memory for what a request may add, and for writing everything anew after it."""
        if self._end > self._ahead or self.shortage:
            self._grow(len(self))
        return not self.shortage

    @property
    def is_worth_it(self) -> bool:
        """Whether it would get shorter when it is written anew."""
        return len(self) > self._words[BASE] + STEP

    def _grow(self, n: int) -> None:
        """Take memory ahead of ``n`` bytes.  What there is may have to do; OSError when it does not."""
        wanted = -(-(2 * n + STEP) // STEP) * STEP
        possible = min(wanted, _HALF_BYTES)
        try:
            if possible > self._room:
                for half in (0, 1):
                    os.posix_fallocate(self._fd, PAGE_BYTES + half * _HALF_BYTES + self._room, possible - self._room)
                self._words[ROOM] = possible
            self._have(max(possible, self._room))
            if possible < wanted:
                raise OSError(errno.EFBIG, f"it has {len(self)} bytes, and {_HALF_BYTES} at most")
            self.shortage = ""
        except OSError as err:
            self.shortage = err.strerror or os.strerror(err.errno or 0)
            if n > self._room:
                raise
            self._ahead = self._start + min(n + STEP // 4, self._room)  # it is asked again then

    def rewrite(self, payload: bytes, following: bytes | None = None) -> None:
        """Begin anew with one record in place of all, and with another one ``following`` it.  OSError when there is no memory for it: then all
        is as before.
        """
        half = 1 - self._half
        content = self._packed(payload) + (b"" if following is None else self._packed(following))
        start, n = PAGE_BYTES + half * _HALF_BYTES, len(content)
        if n > self._room:
            self._long = self._end + STEP
            self._grow(n)
        if failpoints.IS_ARMED:
            failpoints.hit("compact.before")
            if failpoints.is_hit("compact.torn"):
                self._map[start : start + n // 2] = content[: n // 2]
                failpoints.strike("compact.torn")
        self._map[start : start + n] = content
        self._words[LENGTH + half] = n
        if failpoints.IS_ARMED:
            failpoints.hit("compact.written")
        self._words[HALF] = half
        if failpoints.IS_ARMED:
            failpoints.hit("compact.after")
        self._words[BASE] = n
        self._take(half)
        if not self.shortage:
            self._give_back()

    def _give_back(self) -> None:
        """Keep what is needed ahead, and a step to grow into."""
        had, room = self._room, -(-(2 * len(self) + 2 * STEP) // STEP) * STEP
        if room < had:
            self._words[ROOM] = room
            self._have(room)
            for half in (0, 1):
                self._map.madvise(mmap.MADV_REMOVE, PAGE_BYTES + half * _HALF_BYTES + room, had - room)

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
