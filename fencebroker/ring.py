"""The signal ring: what the only owner of a timeline tells the broker without waking it.  Pure: both roles over a page of shared memory.

Facts
  One writer, one reader.  A word is stored and loaded at once only through ``memoryview.cast("Q")``; ``struct.pack_into`` tears.
  The store of ``head`` is the commit: an entry that was cut off by its writer's death was never there.
  On x86-64 stores become visible in the order in which they are made.  Elsewhere the reader needs a barrier between the head and the entries;
  what is torn or not there yet fails the checksum, which covers the entry's serial.
Rules
  The reader believes nothing: it copies first and checks the copy, it keeps its own count of what it took, and never reads back a word
  that it wrote.  ``docs/protocol.md`` has the layout, ``tests/models/ring.py`` the order of the steps on both sides.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from fencebroker.model import MAX_ERRNO, U64_MAX

__all__ = ["ADVANCE", "CAPACITY", "CLOSE", "FAIL", "INC", "RING_BYTES", "Entry", "Nonsense", "Reader", "Torn", "Writer"]

#: As much as a broker's memfd has; a client maps all of it.
RING_BYTES: Final = 8192
ENTRY_BYTES: Final = 32
_FIRST_BYTE: Final = 256
CAPACITY: Final = (RING_BYTES - _FIRST_BYTE) // ENTRY_BYTES

# Words, by their number of eight bytes each; the writer's and the reader's are in cache lines of their own.
HEAD: Final = 0  #: the writer's: how many entries were committed
TAIL: Final = 8  #: the reader's: how many are taken and on record; their places are free
SEEN: Final = 9  #: the reader's: the counter of the writer's last packet that was handled
ARMED: Final = 10  #: the reader's: ring the doorbell when the value reaches this; 0: nobody waits there
FROZEN: Final = 11  #: the reader's: not 0 while it decides by itself; write nothing, and ring the doorbell

# What an entry says.  The first three are the messages of a timeline's socket.
ADVANCE: Final = 1
INC: Final = 2
FAIL: Final = 3
CLOSE: Final = 15  #: nothing more comes through the ring: the descriptor is about to be handed out

#: Serial, error and op share a word.
SERIAL_MAX: Final = 2**48 - 1
_ERROR_SHIFT: Final = 4
_SERIAL_SHIFT: Final = 16

_pack: Final = Struct("=QQQ").pack
_unpack: Final = Struct("=QQQQ").unpack


class Torn(Exception):
    """An entry below the head is not there, or not whole: either the head was seen before it, or somebody wrote garbage."""


class Nonsense(Exception):
    """No writer that keeps the rules leaves this behind."""


class Entry(NamedTuple):
    """One entry: the number is the value to advance to, how much to add, or the seqno that fails; ``at`` is when, CLOCK_MONOTONIC ns."""

    serial: int
    op: int
    number: int
    error: int
    at: int


class Writer:
    """The producer's end.  Its caller holds a lock, and asks ``has_room`` before each commit."""

    __slots__ = ("_bytes", "_half_at", "committed", "limit", "words")

    def __init__(self, page: memoryview) -> None:
        """Begin on a fresh page; ``close`` lets go of it."""
        self._bytes = page[:RING_BYTES]
        self.words = self._bytes.cast("Q")
        self.committed = 0
        self.limit = CAPACITY - 1
        self._half_at = CAPACITY // 2

    def has_room(self) -> bool:
        """Whether another entry fits; the last place is kept for CLOSE."""
        if self.committed < self.limit:
            return True
        self._look_at_tail()
        return self.committed < self.limit

    def commit(self, op: int, number: int, error: int, at: int) -> bool:
        """Add an entry, which counts when this returns.  True: the ring is half full, and the reader should be told."""
        serial = self.committed + 1
        start = _FIRST_BYTE + self.committed % CAPACITY * ENTRY_BYTES
        packed = _pack(serial << _SERIAL_SHIFT | error << _ERROR_SHIFT | op, number, at)
        self._bytes[start : start + 24] = packed
        words = self.words
        words[(start >> 3) + 3] = crc32(packed)
        words[HEAD] = self.committed = serial
        return serial >= self._half_at and self._is_half_full()

    def _look_at_tail(self) -> None:
        tail = min(self.words[TAIL], self.committed)
        self.limit = min(tail + CAPACITY - 1, SERIAL_MAX - 1)
        self._half_at = tail + CAPACITY // 2

    def _is_half_full(self) -> bool:
        """Said once for each half that fills up: one doorbell is enough."""
        self._look_at_tail()
        if self.committed < self._half_at:
            return False
        self._half_at = self.committed + CAPACITY // 2
        return True

    @property
    def is_frozen(self) -> bool:
        return self.words[FROZEN] != 0

    def is_awaited(self, value: int) -> bool:
        """Whether somebody at the reader's waits for a point up to ``value``."""
        armed = self.words[ARMED]
        return armed != 0 and value >= armed

    @property
    def seen(self) -> int:
        """The counter of the last packet that the reader has handled."""
        return self.words[SEEN]

    def close(self) -> None:
        """Let go of the page."""
        self.words.release()
        self._bytes.release()


class Reader:
    """The broker's end.  ``taken`` is how many entries are on record, ``at`` the time of the last."""

    __slots__ = ("_bytes", "_value", "_words", "at", "is_closed", "taken")

    def __init__(self, page: memoryview, taken: int = 0, at: int = 0) -> None:
        """Begin on a fresh page, or go on after ``taken`` entries."""
        self._bytes = page[:RING_BYTES]
        self._words = self._bytes.cast("Q")
        self._value = 0
        self.taken = taken
        self.at = at
        self.is_closed = False

    def head(self) -> int:
        """How many entries are committed.  Nonsense when that cannot be."""
        head = self._words[HEAD]
        if not 0 <= head - self.taken <= CAPACITY:
            raise Nonsense(f"a head of {head} where {self.taken} entries were taken")
        return head

    def read(self, head: int, now: int) -> list[Entry]:
        """Return the entries up to ``head``, their times between the last one and ``now``.  Nothing counts as taken by that.

        Raises Torn, after which the same may be read again, or Nonsense.
        """
        entries: list[Entry] = []
        value, last, page = self._value, self.at, self._bytes
        for serial in range(self.taken + 1, head + 1):
            start = _FIRST_BYTE + (serial - 1) % CAPACITY * ENTRY_BYTES
            copy = bytes(page[start : start + ENTRY_BYTES])  # what is checked is a copy that nobody can change
            word, number, at, checksum = _unpack(copy)
            if checksum != crc32(copy[:24]) or word >> _SERIAL_SHIFT != serial:
                raise Torn(f"entry {serial} is not whole")
            op, error = word & 0xF, word >> _ERROR_SHIFT & 0xFFF
            if op in (ADVANCE, FAIL):
                if number <= value:
                    raise Nonsense(f"entry {serial} goes back to {number} from {value}")
                value = number
            elif op == INC:
                value = min(value + number, U64_MAX)
            elif op != CLOSE:
                raise Nonsense(f"entry {serial} has op {op}")
            elif serial != head:
                raise Nonsense(f"entry {serial} is CLOSE and not the last")
            if (op == FAIL) != (1 <= error <= MAX_ERRNO):
                raise Nonsense(f"entry {serial} has error {error} with op {op}")
            last = max(last, min(at, now))
            entries.append(Entry(serial, op, number, error, last))
        return entries

    def take(self, entries: list[Entry]) -> None:
        """Count ``entries`` as taken.  Their places are free for others when ``free`` says so, which waits until they are on record."""
        last = entries[-1]
        self.taken = last.serial
        self.at = last.at
        for entry in entries:
            self._value = min(self._value + entry.number, U64_MAX) if entry.op == INC else max(self._value, entry.number)
        self.is_closed = last.op == CLOSE

    def free(self) -> None:
        """Let the writer have the places of what was taken."""
        self._words[TAIL] = self.taken

    def arm(self, value: int) -> None:
        """Have the doorbell rung at ``value``; 0 for not at all.  A barrier and a look at the head come after."""
        self._words[ARMED] = value

    def freeze(self, frozen: bool) -> None:
        """Stop the writer from writing by itself, or let it.  A barrier and a look at the head come after."""
        self._words[FROZEN] = frozen

    def saw(self, counter: int) -> None:
        """Say that the writer's packets up to ``counter`` were handled, and everything that they brought about was done."""
        self._words[SEEN] = counter

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._bytes.release()
