"""Bytes that nobody who means well would send.  Only ``Malformed`` ever comes out, at once, and at a bounded price."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fencebroker import wire

if TYPE_CHECKING:
    from collections.abc import Callable

DECODERS: Final[list[Callable[[bytes], object]]] = [
    lambda packet: wire.decode_request(packet, 0),
    wire.decode_timeline,
    wire.decode_answer,
]
#: ``FENCEBROKER_TEST_EXAMPLES=1000000`` sends that many of each kind.
EXAMPLES: Final = int(os.environ.get("FENCEBROKER_TEST_EXAMPLES", "300"))
IDS: Final = ["request", "timeline", "answer"]


def each(packet: bytes) -> None:
    """Only Malformed may escape, from any decoder."""
    for decode in DECODERS:
        try:
            decode(packet)
        except wire.Malformed:
            continue


HOSTILE: Final = {
    "empty": b"",
    "array of 2**32-1": b"\xdd\xff\xff\xff\xff",
    "array of 65535": b"\xdc\xff\xff",
    "map of 2**32-1": b"\xdf\xff\xff\xff\xff",
    "string of 2**32-1": b"\x92\x01\xdb\xff\xff\xff\xff",
    "binary of 2**32-1": b"\x92\x01\xc6\xff\xff\xff\xff",
    "extension of 2**32-1": b"\x92\x01\xc9\xff\xff\xff\xff\x00",
    "a truncated array": b"\x92\x01",
    "a truncated integer": b"\x92\xcf\x00\x00",
    "trailing bytes": b"\x92\x01\x0f\x00",
    "two messages": b"\x92\x01\x0f\x92\x02\x0f",
    "the byte that is never used": b"\xc1",
    "that byte within": b"\x92\x01\xc1",
    "nil": b"\xc0",
    "an integer": b"\x01",
    "a map": b"\x81\x01\x0f",
    "an empty map": b"\x80",
    "a string": b"\xa1x",
    "no UTF-8": b"\x93\x01\x03\xa2\xff\xfe",
    "a surrogate as UTF-8": b"\x93\x01\x03\xa3\xed\xa0\x80",
    "an overlong slash": b"\x93\x01\x03\xa2\xc0\xaf",
    "half a letter": b"\x93\x01\x03\xa1\xc3",
    "a timestamp": b"\x93\x01\x08\xd6\xff\x00\x00\x00\x00",
    "a long timestamp": b"\x93\x01\x08\xc7\x0c\xff" + b"\xff" * 12,
    "nested arrays": b"\x91" * 16_000,
    "nested maps": b"\x81" * 16_000,
    "nested arrays that end": b"\x91" * 8_000 + b"\x90",
    "array in array in array": b"\xdd\x00\x00\x08\x00" * 3_000,
}


@pytest.mark.parametrize("packet", list(HOSTILE.values()), ids=list(HOSTILE))
@pytest.mark.parametrize("decode", DECODERS, ids=IDS)
def test_it_is_malformed(decode: Callable[[bytes], object], packet: bytes) -> None:
    with pytest.raises(wire.Malformed):
        decode(packet)


@pytest.mark.parametrize("decode", DECODERS, ids=IDS)
@pytest.mark.parametrize("depth", [*range(1, 20), 500, 1_000, 1_023, 1_024, 1_025, 2_000, 16_000])
def test_nesting_of_any_depth(decode: Callable[[bytes], object], depth: int) -> None:
    with pytest.raises(wire.Malformed):
        decode(b"\x91" * depth + b"\x90")
    with pytest.raises(wire.Malformed):
        decode(b"\x93\x01\x01" + b"\x91" * depth + b"\x01" + b"\x01")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 8, 12, 16, 17])
@pytest.mark.parametrize("decode", DECODERS[:2], ids=IDS[:2])
def test_every_extension_is_refused(decode: Callable[[bytes], object], size: int) -> None:
    for code in range(-128, 128):
        extension = _extension(code, size)
        for packet in (extension, b"\x92\x01" + extension, b"\x93\x01\x0e" + extension, b"\x94\x01\x01\x01" + extension):
            with pytest.raises(wire.Malformed):
                decode(packet)


def _extension(code: int, size: int) -> bytes:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
    head = bytes([fixed[size]]) if size in fixed else bytes([0xC7, size])
    return head + bytes([code & 0xFF]) + bytes(size)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x92\x01" + b"\xdc\x07\xff" + b"\x90" * 2_047,
        b"\xdc\x08\x00" + b"\x80" * 2_048,
        b"\x92\x01" + b"\xdc\x08\x00" + (b"\x97" + b"\x90" * 7) * 2_000,
        b"\x92\x01\xda\x3f\x00" + b"\xf0\x9f\x93\xb7" * 4_000,
        b"\xdd\x00\x00\x08\x00" * 3_276,
    ],
    ids=["empty arrays", "empty maps", "arrays of arrays", "wide letters", "declared, not there"],
)
def test_what_one_packet_costs_is_bounded(packet: bytes) -> None:
    assert len(packet) <= wire.PACKET_BYTES
    each(packet)  # once before, so that nothing is counted which stays
    tracemalloc.start()
    try:
        each(packet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 1024 * 1024


def test_a_refused_packet_keeps_nothing() -> None:
    packets = list(HOSTILE.values())
    for packet in packets:
        each(packet)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(50):
            for packet in packets:
                each(packet)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8 * 1024


VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(width=32)
    | st.text(max_size=40)
    | st.binary(max_size=10)
    | st.sampled_from(["camera0", "camera0@7", *wire.KINDS]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200))
@example(b"\x93\x01\x0b\x90")
def test_random_bytes(packet: bytes) -> None:
    each(packet)


@settings(max_examples=EXAMPLES)
@given(st.lists(VALUES, max_size=8))
def test_random_values_in_msgpack(message: list[Any]) -> None:
    each(msgpack.packb(message))


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from([*wire.REQUESTS, *wire.TIMELINE_OPS]),
    st.lists(VALUES, max_size=6),
    st.integers(0, 300),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
)
def test_messages_that_are_nearly_right(op: int, arguments: list[Any], n_descriptors: int, flips: list[tuple[int, int]]) -> None:
    for head in ([1, op], [1, 1, op]):
        packet = bytearray(msgpack.packb([*head, *arguments]))
        for where, value in flips:
            packet[where % len(packet)] = value
        each(bytes(packet))
        try:
            message, spec = wire.decode_request(bytes(packet), n_descriptors)
        except wire.Malformed:
            continue
        assert type(message[0]) is int
        if spec is not None:
            assert len(message) == 2 + len(spec.fields)
            assert all(field.check(value) for field, value in zip(spec.fields, message[2:], strict=True))
