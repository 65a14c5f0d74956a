"""The page that a producer and the broker share: both roles over the same bytes, and whatever else may stand in them."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fencebroker import ring, wire
from fencebroker.model import MAX_ERRNO, U64_MAX
from fencebroker.ring import CAPACITY, RING_BYTES, Entry, Nonsense, Reader, Torn, Writer

NOW = 2**62


@pytest.fixture
def page() -> bytearray:
    return bytearray(RING_BYTES)


def both(page: bytearray) -> tuple[Writer, Reader]:
    return Writer(memoryview(page)), Reader(memoryview(page))


def words_of(page: bytearray) -> memoryview:
    return memoryview(page).cast("Q")


def place_of(serial: int) -> int:
    """The number of an entry's first word, from docs/protocol.md and not from the code."""
    return 32 + (serial - 1) % 248 * 4


def drain(reader: Reader, now: int = NOW) -> list[Entry]:
    head = reader.head()
    entries = reader.read(head, now)
    if entries:
        reader.take(entries)
        reader.free()
    return entries


def test_what_goes_in_comes_out(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.ADVANCE, 7, 0, 100)
    writer.commit(ring.INC, 2, 0, 200)
    writer.commit(ring.FAIL, U64_MAX, MAX_ERRNO, 300)
    writer.commit(ring.CLOSE, 0, 0, 400)
    assert drain(reader) == [
        (1, ring.ADVANCE, 7, 0, 100),
        (2, ring.INC, 2, 0, 200),
        (3, ring.FAIL, U64_MAX, MAX_ERRNO, 300),
        (4, ring.CLOSE, 0, 0, 400),
    ]
    assert reader.is_closed
    assert reader.taken == writer.committed == 4


def test_ops_are_those_of_the_socket() -> None:
    assert (ring.ADVANCE, ring.INC, ring.FAIL) == (wire.ADVANCE, wire.INC, wire.FAIL)
    assert ring.CLOSE not in wire.TIMELINE_OPS


def test_nothing_is_there_before_the_head_is_stored(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.ADVANCE, 1, 0, 1)
    words_of(page)[0] = 0
    assert reader.head() == 0
    assert reader.read(0, NOW) == []


def test_the_ring_goes_round_and_keeps_its_last_place(page: bytearray) -> None:
    writer, reader = both(page)
    taken = 0
    for lap in range(3):
        n = 0
        while writer.has_room():
            writer.commit(ring.INC, 1, 0, lap)
            n += 1
        assert n == CAPACITY - 1
        entries = drain(reader)
        taken += len(entries)
        assert len(entries) == n
    while writer.has_room():
        writer.commit(ring.INC, 1, 0, 9)
    writer.commit(ring.CLOSE, 0, 0, 9)
    assert len(drain(reader)) == CAPACITY
    assert reader.is_closed
    assert writer.committed == taken + CAPACITY


def test_half_full_is_said_once_for_each_half(page: bytearray) -> None:
    writer, reader = both(page)
    said = [i for i in range(CAPACITY - 1) if writer.commit(ring.INC, 1, 0, 0)]
    assert said == [CAPACITY // 2 - 1]
    drain(reader)
    said = [i for i in range(CAPACITY - 1) if writer.commit(ring.INC, 1, 0, 0)]
    assert said == [CAPACITY // 2 - 1]


def test_a_reader_that_keeps_up_is_never_told(page: bytearray) -> None:
    writer, reader = both(page)
    for _ in range(10 * CAPACITY):
        assert not writer.commit(ring.INC, 1, 0, 0)
        drain(reader)


def test_places_are_free_when_the_reader_says_so(page: bytearray) -> None:
    writer, reader = both(page)
    while writer.has_room():
        writer.commit(ring.INC, 1, 0, 0)
    entries = reader.read(reader.head(), NOW)
    reader.take(entries)
    assert not writer.has_room()
    reader.free()
    assert writer.has_room()


def test_a_reader_goes_on_where_another_one_ended(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.ADVANCE, 5, 0, 10)
    drain(reader)
    writer.commit(ring.INC, 1, 0, 20)
    following = Reader(memoryview(page), reader.taken, reader.at)
    assert drain(following) == [(2, ring.INC, 1, 0, 20)]


def test_times_lie_between_the_last_one_and_now(page: bytearray) -> None:
    writer, reader = both(page)
    for at in (50, 20, NOW + 5, 60):
        writer.commit(ring.INC, 1, 0, at)
    assert [entry.at for entry in drain(reader)] == [50, 50, NOW, NOW]
    writer.commit(ring.INC, 1, 0, 7)
    assert drain(reader)[0].at == NOW


def test_the_words_of_the_reader(page: bytearray) -> None:
    writer, reader = both(page)
    frozen = []
    for word in (False, True, False):
        reader.freeze(word)
        frozen.append(writer.is_frozen)
    assert frozen == [False, True, False]
    assert not writer.is_awaited(U64_MAX)
    reader.arm(7)
    assert not writer.is_awaited(6)
    assert writer.is_awaited(7)
    reader.saw(11)
    assert writer.seen == 11


def test_a_page_is_let_go_of(page: bytearray) -> None:
    writer, reader = both(page)
    with pytest.raises(BufferError):
        page.append(0)
    writer.close()
    reader.close()
    page.append(0)
    with pytest.raises(ValueError, match="released"):
        writer.commit(ring.INC, 1, 0, 0)


# -- what is torn, late, or garbage


@pytest.mark.parametrize("missing", range(1, 15))
def test_an_entry_of_which_words_are_missing_is_torn(page: bytearray, missing: int) -> None:
    """Each set of the four words that is not there yet, over an entry of the lap before that looks as much like it as can be."""
    writer, reader = both(page)
    for _ in range(CAPACITY):
        writer.commit(ring.INC, 1, 0, 1)
        drain(reader)
    words = words_of(page)
    first = place_of(CAPACITY + 1)
    before = list(words[first : first + 4])
    writer.commit(ring.INC, 2, 0, 2)
    after = list(words[first : first + 4])
    assert all(old != new for old, new in zip(before, after, strict=True))
    for i in range(4):
        if missing >> i & 1:
            words[first + i] = before[i]
    with pytest.raises(Torn, match=f"entry {CAPACITY + 1} "):
        reader.read(reader.head(), NOW)
    for i in range(4):
        words[first + i] = after[i]
    assert drain(reader) == [(CAPACITY + 1, ring.INC, 2, 0, 2)]


def test_the_entry_of_another_lap_is_torn(page: bytearray) -> None:
    """Whole, with its checksum, and in its place: only the serial tells it from the one that is to come."""
    writer, reader = both(page)
    for _ in range(CAPACITY):
        writer.commit(ring.INC, 1, 0, 1)
        drain(reader)
    words_of(page)[0] = CAPACITY + 1
    with pytest.raises(Torn):
        reader.read(reader.head(), NOW)


@pytest.mark.parametrize("head", [CAPACITY + 1, 2**64 - 1, 2**63])
def test_a_head_that_cannot_be_is_nonsense(page: bytearray, head: int) -> None:
    _, reader = both(page)
    words_of(page)[0] = head
    with pytest.raises(Nonsense, match=str(head)):
        reader.head()


def test_a_head_that_goes_back_is_nonsense(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.INC, 1, 0, 0)
    drain(reader)
    words_of(page)[0] = 0
    with pytest.raises(Nonsense):
        reader.head()


@pytest.mark.parametrize(
    ("op", "number", "error"),
    [
        (0, 9, 0),
        (4, 9, 0),
        (5, 9, 1),
        (14, 9, 0),
        (ring.ADVANCE, 9, errno.EIO),
        (ring.INC, 9, errno.EIO),
        (ring.CLOSE, 0, errno.EIO),
        (ring.FAIL, 9, 0),
        (ring.ADVANCE, 3, 0),
        (ring.ADVANCE, 2, 0),
        (ring.FAIL, 3, errno.EIO),
        (ring.ADVANCE, 0, 0),
    ],
)
def test_an_entry_that_nobody_writes_is_nonsense(page: bytearray, op: int, number: int, error: int) -> None:
    writer, reader = both(page)
    writer.commit(ring.ADVANCE, 3, 0, 1)
    writer.commit(op, number, error, 1)
    with pytest.raises(Nonsense, match="entry 2 "):
        reader.read(reader.head(), NOW)


def test_nothing_comes_after_close(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.CLOSE, 0, 0, 1)
    writer.commit(ring.INC, 1, 0, 1)
    with pytest.raises(Nonsense, match="CLOSE"):
        reader.read(reader.head(), NOW)


def test_a_sum_stops_at_the_end(page: bytearray) -> None:
    writer, reader = both(page)
    writer.commit(ring.ADVANCE, U64_MAX - 1, 0, 1)
    writer.commit(ring.INC, U64_MAX, 0, 1)
    writer.commit(ring.INC, 1, 0, 1)
    assert len(drain(reader)) == 3
    writer.commit(ring.ADVANCE, U64_MAX, 0, 1)
    with pytest.raises(Nonsense):
        reader.read(reader.head(), NOW)


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(0, RING_BYTES - 1), st.randoms())
@settings(max_examples=300)
def test_garbage_is_refused_or_reads_like_an_entry(garbage: bytes, n: int, where: int, dice: random.Random) -> None:
    """Whatever a client writes into its page: the reader refuses, or what it takes keeps every promise of ``read``."""
    page = bytearray(RING_BYTES)
    writer, reader = both(page)
    for _ in range(min(n, CAPACITY - 1)):
        writer.commit(dice.choice([ring.INC, ring.INC, ring.ADVANCE]), writer.committed + 2, 0, dice.randrange(2**64))
    end = min(RING_BYTES, where + len(garbage))
    page[where:end] = garbage[: end - where]
    try:
        entries = reader.read(reader.head(), NOW)
    except (Torn, Nonsense):
        return
    value, at = 0, 0
    for serial, entry in enumerate(entries, 1):
        assert entry.serial == serial
        assert at <= entry.at <= NOW
        assert entry.op in (ring.ADVANCE, ring.INC, ring.FAIL, ring.CLOSE)
        assert entry.error == 0 or entry.op == ring.FAIL
        at = entry.at
        if entry.op in (ring.ADVANCE, ring.FAIL):
            assert entry.number > value
            value = entry.number
        elif entry.op == ring.INC:
            value = min(value + entry.number, U64_MAX)


@given(st.lists(st.tuples(st.integers(0, RING_BYTES - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(1, CAPACITY - 1))
def test_a_changed_byte_of_an_entry_never_passes(changes: list[tuple[int, int]], n: int) -> None:
    page = bytearray(RING_BYTES)
    writer, reader = both(page)
    for _ in range(n):
        writer.commit(ring.INC, 1, 0, 5)
    untouched = bytes(page)
    expected = reader.read(reader.head(), NOW)
    for where, byte in changes:
        page[where] = byte
    try:
        assert reader.read(reader.head(), NOW) == expected[: reader.head()]
    except (Torn, Nonsense):
        assert bytes(page) != untouched


class TwoRoles(RuleBasedStateMachine):
    """Writer and reader in any order, with stores that become visible late, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.page = bytearray(RING_BYTES)
        self.writer = Writer(memoryview(self.page))
        self.reader = Reader(memoryview(self.page))
        self.value = 0
        self.written: list[Any] = []
        self.read: list[Any] = []
        self.held: list[tuple[int, int]] = []  # words of the last commit that the reader does not see yet
        self.is_open = True

    @precondition(lambda self: self.is_open)
    @rule(op=st.sampled_from([ring.ADVANCE, ring.INC, ring.FAIL]), n=st.integers(1, 2**40), at=st.integers(0, NOW))
    def commit(self, op: int, n: int, at: int) -> None:
        self.show_all()
        if not self.writer.has_room():
            assert len(self.written) - len(self.read) == CAPACITY - 1
            return
        number = n if op == ring.INC else self.value + n
        if self.value + n > U64_MAX:
            return
        self.value += n
        error = errno.EIO if op == ring.FAIL else 0
        self.writer.commit(op, number, error, at)
        self.written.append((op, number, error))

    @precondition(lambda self: self.is_open)
    @rule(mask=st.integers(1, 15))
    def commit_late(self, mask: int) -> None:
        """The head is there, and some words of the entry are not."""
        self.show_all()
        if not self.writer.has_room():
            return
        words = words_of(self.page)
        first = place_of(self.writer.committed + 1)
        before = list(words[first : first + 4])
        self.value += 1
        self.writer.commit(ring.INC, 1, 0, 0)
        self.written.append((ring.INC, 1, 0))
        for i in range(4):
            if mask >> i & 1 and words[first + i] != before[i]:
                self.held.append((first + i, words[first + i]))
                words[first + i] = before[i]

    @rule()
    def show_all(self) -> None:
        words = words_of(self.page)
        for place, word in self.held:
            words[place] = word
        self.held.clear()

    @rule()
    def drain(self) -> None:
        if self.reader.is_closed:
            return
        try:
            entries = drain(self.reader)
        except Torn:
            assert self.held
            return
        assert not self.held
        self.read += [(entry.op, entry.number, entry.error) for entry in entries]

    @precondition(lambda self: self.is_open)
    @rule()
    def close(self) -> None:
        self.show_all()
        self.writer.commit(ring.CLOSE, 0, 0, 0)
        self.written.append((ring.CLOSE, 0, 0))
        self.is_open = False

    @invariant()
    def what_was_read_is_what_was_written(self) -> None:
        assert self.read == self.written[: len(self.read)]
        assert self.reader.taken == len(self.read)


TestTwoRoles = TwoRoles.TestCase
TestTwoRoles.settings = settings(max_examples=40, stateful_step_count=60)


def test_words_of_a_page_are_where_the_documentation_says(page: bytearray) -> None:
    writer, reader = both(page)
    words = words_of(page)
    writer.commit(ring.ADVANCE, 1, 0, 1)
    entries = reader.read(reader.head(), NOW)
    reader.take(entries)
    reader.free()
    reader.saw(2)
    reader.arm(3)
    reader.freeze(True)
    assert {i: word for i, word in enumerate(words[:32]) if word} == {0: 1, 8: 1, 9: 2, 10: 3, 11: 1}
    assert place_of(1) == 32
    assert words[32] == 1 << 16 | 1
    assert (RING_BYTES - 256) // 32 == CAPACITY == 248


def _stores(page: bytearray, op: int, number: int, error: int) -> Iterator[int]:
    before = bytes(page)
    Writer(memoryview(page)).commit(op, number, error, 5)
    for i in range(0, RING_BYTES, 8):
        if page[i : i + 8] != before[i : i + 8]:
            yield i // 8


def test_a_commit_touches_its_entry_and_the_head_alone(page: bytearray) -> None:
    assert set(_stores(page, ring.FAIL, 7, errno.EIO)) == {0, 32, 33, 34, 35}
