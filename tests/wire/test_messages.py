"""Every message: what is right passes unchanged, and everything else is malformed, one wrong thing at a time."""

from __future__ import annotations

from typing import Any, Final

import pytest

from fencebroker import wire
from fencebroker.limits import Limits
from fencebroker.model import U64_MAX

U64: Final[list[Any]] = [0, 1, 127, 128, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, U64_MAX]
POSITIVE: Final = U64[1:]

#: What no field of any message takes: of no type that a message has.
NEVER: Final[list[Any]] = [1.0, 0.0, -1.5, float("nan"), float("inf"), b"", b"1", {}, {"a": 1}]
NO_INTEGER: Final[list[Any]] = [*NEVER, True, False, "1", [], [1]]
NO_U64: Final[list[Any]] = [*NO_INTEGER, -1, -(2**63)]
NO_TEXT: Final[list[Any]] = [*NEVER, True, 0, 1, [], ["a"], "a\0b", "\0"]
NO_BOOL: Final[list[Any]] = [*NEVER, None, 0, 1, "", "true", []]


def long(n: int) -> list[str]:
    """Texts one byte over the limit, also in letters of several bytes."""
    return ["x" * (n + 1), "ä" * (n // 2 + 1), "\U0001f4f7" * (n // 4 + 1)]


#: (message, field) -> (values that are right, values that are wrong beside NEVER).
SHAPES: Final[dict[tuple[str, str], tuple[list[Any], list[Any]]]] = {
    ("hello", "version"): ([0, 1, 0xFFFF], [*NO_U64, None, 0x10000]),
    ("hello", "client"): (["", "x" * 255], [*NO_TEXT, None, *long(255)]),
    ("create_timeline", "name"): ([None, "camera0", "x" * 255, "ä" * 127], [*NO_TEXT, *long(255)]),
    ("create_timeline", "driver"): (["fencebroker", "", "x" * 31], [*NO_TEXT, None, *long(31)]),
    ("create_timeline", "mode"): ([0, 0o600, 0o777], [*NO_U64, None, 0o1000]),
    ("create_timeline", "expiry_ns"): ([None, *POSITIVE], [*NO_U64, 0]),
    ("open_timeline", "name"): (["camera0", "1000/camera0", "x" * 511], [*NO_TEXT, None, *long(511)]),
    ("forget_timeline", "context"): (U64, [*NO_U64, None]),
    ("export", "context"): (U64, [*NO_U64, None]),
    ("export", "seqnos"): (
        [None, [0], [U64_MAX] * 253, list(range(253))],
        [0, True, "1", [], [-1], [True], [1.0], [None], ["1"], [[1]], [1] * 254],
    ),
    ("export", "name"): (["", "x" * 31], [*NO_TEXT, None, *long(31)]),
    ("export", "private"): ([True, False], NO_BOOL),
    ("import", "name"): (["", "x" * 31], [*NO_TEXT, None, *long(31)]),
    ("import", "ref"): (POSITIVE, [*NO_U64, 0]),
    ("merge", "refs"): (
        [[1], [U64_MAX, 1], list(range(1, 1025))],
        [*NO_INTEGER[:-1], None, 1, [], [0], [-1], [True], [1.0], ["1"], [[1]], [1] * 1025],
    ),
    ("merge", "name"): (["", "x" * 31], [*NO_TEXT, None, *long(31)]),
    ("merge", "any"): ([True, False], NO_BOOL),
    ("sync_file", "point"): (["camera0@7", "x" * 532], [*NO_TEXT, None, *long(532)]),
    ("sync_file", "expiry_ns"): ([None, *POSITIVE], [*NO_U64, 0]),
    ("info", "ref"): (POSITIVE, [*NO_U64, 0]),
    ("info", "cursor"): (U64, [*NO_U64, None]),
    ("set_deadline", "ref"): (POSITIVE, [*NO_U64, 0]),
    ("set_deadline", "deadline_ns"): (U64, [*NO_U64, None]),
    ("release", "unexposed"): ([[], [1], [1] * 512], [*NO_INTEGER[:-2], None, 1, [0], [None], [True], [1.0], [1] * 513]),
    ("release", "exposed"): ([[], [1], [1] * 512], [*NO_INTEGER[:-2], None, 1, [0], [None], [True], [1.0], [1] * 513]),
    ("list", "kind"): (list(wire.KINDS), [*NO_TEXT, None, "", "timeline", "Timelines", "fences "]),
    ("list", "cursor"): (U64, [*NO_U64, None]),
    ("lookup", "name"): (["camera0", "#1", "x" * 532], [*NO_TEXT, None, *long(532)]),
    ("wait_start", "ref"): (POSITIVE, [*NO_U64, 0]),
    ("wait_end", "wait"): (POSITIVE, [*NO_U64, 0, None]),
    ("history", "context"): (U64, [*NO_U64, None]),
    ("reclaim", "handles"): ([[], [1], [1] * 512], [*NO_INTEGER[:-2], None, 1, [0], [None], [True], [1.0], [1] * 513]),
    ("chmod", "name"): (["camera0", "1000/camera0", "x" * 511], [*NO_TEXT, None, *long(511)]),
    ("chmod", "mode"): ([0, 0o600, 0o777], [*NO_U64, None, 0o1000]),
    ("ring", "context"): (U64, [*NO_U64, None]),
    ("ring", "holder"): (U64, [*NO_U64, None]),
    ("quotas", "cursor"): (U64, [*NO_U64, None]),
    ("advance", "value"): (U64, [*NO_U64, None]),
    ("inc", "n"): (U64, [*NO_U64, None]),
    ("fail", "seqno"): (U64, [*NO_U64, None]),
    ("fail", "error"): ([1, 5, 4095], [*NO_U64, None, 0, 4096, U64_MAX]),
    ("signal", "seqno"): (U64, [*NO_U64, None]),
    ("signal", "error"): ([0, 1, 4095], [*NO_U64, None, 4096, U64_MAX]),
    ("cancel", "error"): ([1, 4095], [*NO_U64, None, 0, 4096]),
}

SPECS: Final = [(op, spec, False) for op, spec in wire.REQUESTS.items()] + [(op, spec, True) for op, spec in wire.TIMELINE_OPS.items()]
NAMES: Final = [spec.name for _, spec, _ in SPECS]


def decode(op: int, arguments: list[Any], timeline: bool, n_descriptors: int = 0) -> list[Any]:
    """Encode and decode one message; returns its arguments."""
    if timeline:
        return wire.decode_timeline(wire.encode([7, 1, op, *arguments]))[3:]
    message, spec = wire.decode_request(wire.encode([1, op, *arguments]), n_descriptors)
    assert spec is wire.REQUESTS[op]
    return message[2:]


def right(spec: wire.Spec) -> list[Any]:
    """Arguments that are right, and take as few descriptors as the message can."""
    return [SHAPES[spec.name, field.name][0][0] for field in spec.fields]


def fixed(spec: wire.Spec) -> int:
    return spec.descriptors or 0


def test_the_table_below_has_every_field() -> None:
    assert SHAPES.keys() == {(spec.name, field.name) for _, spec, _ in SPECS for field in spec.fields}


FIELDS: Final = [
    pytest.param(op, spec, timeline, i, id=f"{spec.name}-{field.name}")
    for op, spec, timeline in SPECS
    for i, field in enumerate(spec.fields)
]


@pytest.mark.parametrize(("op", "spec", "timeline", "i"), FIELDS)
def test_what_is_right_comes_through_unchanged(op: int, spec: wire.Spec, timeline: bool, i: int) -> None:
    arguments = right(spec)
    for value in SHAPES[spec.name, spec.fields[i].name][0]:
        arguments[i] = value
        decoded = decode(op, arguments, timeline, fixed(spec))
        assert decoded == arguments
        assert [type(x) for x in decoded] == [type(x) for x in arguments]


@pytest.mark.parametrize(("op", "spec", "timeline", "i"), FIELDS)
def test_what_is_wrong_is_malformed_and_the_field_is_named(op: int, spec: wire.Spec, timeline: bool, i: int) -> None:
    arguments = right(spec)
    for value in SHAPES[spec.name, spec.fields[i].name][1] + NEVER:
        arguments[i] = value
        with pytest.raises(wire.Malformed) as malformed:
            decode(op, arguments, timeline, fixed(spec))
        if not isinstance(value, (bytes, dict)) or not value:  # others do not even pass the decoder's limits
            assert str(malformed.value) == f"{spec.name}: {spec.fields[i].name} must be {spec.fields[i].what}", value


@pytest.mark.parametrize(("op", "spec", "timeline"), SPECS, ids=NAMES)
def test_one_element_too_few_or_too_many_is_malformed(op: int, spec: wire.Spec, timeline: bool) -> None:
    arguments = right(spec)
    for wrong in (arguments[:-1], [*arguments, None], [*arguments, 1], [*arguments, *arguments, 0], []):
        if len(wrong) != len(arguments):
            with pytest.raises(wire.Malformed, match=f"{spec.name} has {len(wrong)} arguments, not {len(arguments)}"):
                decode(op, wrong, timeline, fixed(spec))


@pytest.mark.parametrize(("op", "spec"), list(wire.REQUESTS.items()), ids=[spec.name for spec in wire.REQUESTS.values()])
@pytest.mark.parametrize("n", [0, 1, 2, 253])
def test_the_number_of_descriptors_is_exact(op: int, spec: wire.Spec, n: int) -> None:
    if n == fixed(spec):
        decode(op, right(spec), False, n)
    else:
        with pytest.raises(wire.Malformed, match=f"{spec.name} came with {n} descriptors, not {fixed(spec)}"):
            decode(op, right(spec), False, n)


@pytest.mark.parametrize("op", [wire.IMPORT, wire.INFO, wire.SET_DEADLINE, wire.WAIT_START])
def test_nil_stands_for_one_descriptor(op: int) -> None:
    spec = wire.REQUESTS[op]
    arguments = [None if field.name == "ref" else SHAPES[spec.name, field.name][0][0] for field in spec.fields]
    assert decode(op, arguments, False, 1) == arguments
    for n in (0, 2):
        with pytest.raises(wire.Malformed, match="descriptors"):
            decode(op, arguments, False, n)


@pytest.mark.parametrize("refs", [[None], [None, 1], [1, None, 2, None], [None] * 253])
def test_a_merge_takes_one_descriptor_per_nil(refs: list[int | None]) -> None:
    n = refs.count(None)
    assert decode(wire.MERGE, [refs, "", False], False, n)[0] == refs
    for wrong in (n - 1, n + 1):
        with pytest.raises(wire.Malformed, match=f"merge came with {wrong} descriptors, not {n}"):
            decode(wire.MERGE, [refs, "", False], False, wrong)


# -- the head of a message


@pytest.mark.parametrize("serial", [0, *NO_U64, None])
def test_a_request_has_a_serial(serial: Any) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode_request(wire.encode([serial, wire.STATUS]), 0)


@pytest.mark.parametrize("op", [*NO_INTEGER, None])
def test_an_op_is_an_integer(op: Any) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode_request(wire.encode([1, op]), 0)
    with pytest.raises(wire.Malformed):
        wire.decode_timeline(wire.encode([1, 1, op, 1]))


def test_every_op_is_known_or_left_to_be_refused() -> None:
    """Of a request; a timeline's socket has nobody to refuse to."""
    for op in (*range(256), -1, -(2**63), 2**32, U64_MAX):
        if op in wire.REQUESTS:
            with pytest.raises(wire.Malformed):
                wire.decode_request(wire.encode([1, op, *[[None]] * 9]), 0)
        else:
            assert wire.decode_request(wire.encode([1, op, "anything", [1]]), 5) == ([1, op, "anything", [1]], None)
        if op not in wire.TIMELINE_OPS:
            with pytest.raises(wire.Malformed, match=f"unknown timeline op {op}"):
                wire.decode_timeline(wire.encode([1, 1, op]))


@pytest.mark.parametrize("message", [[], [1], [1, 2], ["x", 1, 1, 1], [1, "x", 1, 1], [-1, 1, 1, 1], [1, True, 1, 1], [None, 1, 1, 1]])
def test_a_timeline_message_has_holder_counter_and_op(message: list[Any]) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode_timeline(wire.encode(message))


@pytest.mark.parametrize("holder", U64)
def test_holder_and_counter_are_any_u64(holder: int) -> None:
    assert wire.decode_timeline(wire.encode([holder, U64_MAX - holder, wire.ADVANCE, 1])) == [holder, U64_MAX - holder, wire.ADVANCE, 1]


# -- answers


@pytest.mark.parametrize(
    "message", [[1, 0], [U64_MAX, 0, [1], "x"], [1, 5, "text", []], [1, 4095, "", ["q", 1, 2]], [0, 0, []], [0, "anything"]]
)
def test_answers_and_events(message: list[Any]) -> None:
    assert wire.decode_answer(wire.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [[], [1], [-1, 0], ["1", 0], [True, 0], [1.0, 0], [None, 0], [1, -5, "t", []], [1, 4096, "t", []], [1, True, "t", []], [1, "x"],
     [1, None], [1, 5], [1, 5, "t"], [1, 5, "t", [], 0], [1, 5, 5, []], [1, 5, "t", "d"], [1, 5, None, []], [1, 5, "t", None]],
)  # fmt: skip
def test_what_is_no_answer(message: list[Any]) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode_answer(wire.encode(message))


# -- limits of the protocol


def test_the_largest_messages_fit_a_packet() -> None:
    limits = Limits()
    for arguments in (
        [1, wire.EXPORT, U64_MAX, [U64_MAX] * 253, "x" * 31, True],
        [U64_MAX, wire.MERGE, [U64_MAX] * 1024, "x" * 31, True],
        [U64_MAX, wire.RELEASE, [U64_MAX] * 512, [U64_MAX] * 512],
        [U64_MAX, wire.SYNC_FILE, "x" * 532, U64_MAX],
    ):
        packet = wire.encode(arguments)
        assert len(packet) <= limits.packet_bytes == wire.PACKET_BYTES
        wire.decode_request(packet, 0)
