"""Inputs that are nearly right: what is kept in the corpus, and messages of the protocol's own table, damaged a little.

Everything follows from the seed, so that a failure comes again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fencebroker import wire
from fencebroker.model import U64_MAX

__all__ = ["CORPUS", "corpus", "damaged", "message", "value"]

CORPUS: Final = Path(__file__).parent / "corpus"

#: Numbers at the edges of types and of ranges.
EDGES: Final = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    511,
    512,
    0o600,
    0o777,
    0o1000,
    4095,
    4096,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    U64_MAX,
    -1,
    -(2**63),
)
TEXTS: Final = ("", "a", "camera0", "camera0@1", "camera0@18446744073709551616", "0/camera0", "0/camera0@7", "@", "/", ":", "#", "#1", "1:1", "x" * 31,
                "x" * 32, "x" * 255, "x" * 532, "\0", "\x1b[2J", "\u202e", "\ud7ff", "ä" * 127, "timelines", "sessions")  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for a target; each has found something once, or is one of the kinds there are."""
    folder = CORPUS / name
    found = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert found, f"{folder} is empty"
    return found


def value(dice: random.Random, depth: int = 0) -> Any:
    """Any MessagePack value, mostly small."""
    kind = dice.randrange(10 if depth < 4 else 7)
    match kind:
        case 0 | 1:
            return dice.choice(EDGES)
        case 2:
            return dice.randrange(64)
        case 3:
            return dice.choice(TEXTS)
        case 4:
            return dice.choice((None, True, False, 1.0, float("nan"), -0.0))
        case 5:
            return dice.randbytes(dice.randrange(5))
        case 6:
            return dice.getrandbits(64)
        case 7:
            return {}
        case _:
            return [value(dice, depth + 1) for _ in range(dice.choice((0, 1, 2, 3, 17)))]


def _fitting(dice: random.Random, name: str) -> Any:
    """A value that a field of this name might take."""
    match name:
        case "seqnos":
            return None if dice.random() < 0.3 else [dice.randrange(20) for _ in range(dice.choice((1, 2, 3, 64, 253)))]
        case "refs":
            return [None if dice.random() < 0.3 else dice.randrange(1, 40) for _ in range(dice.choice((1, 2, 3, 8)))]
        case "ref":
            return None if dice.random() < 0.4 else dice.randrange(1, 40)
        case "unexposed" | "exposed" | "handles":
            return [dice.randrange(1, 40) for _ in range(dice.choice((0, 1, 3)))]
        case "private" | "any":
            return dice.random() < 0.5
        case "expiry_ns":
            return None if dice.random() < 0.5 else dice.choice((1, 10**6, 10**9, U64_MAX))
        case "kind":
            return dice.choice(wire.KINDS)
        case "name" | "point" | "driver" | "client":
            return dice.choice(TEXTS)
        case "mode":
            return dice.choice((0, 0o600, 0o666, 0o777))
        case "version":
            return wire.VERSION
        case _:
            return dice.choice((dice.randrange(16), dice.choice(EDGES)))


def message(dice: random.Random, table: dict[int, wire.Spec], head: Sequence[int], wrong: float = 0.25) -> list[Any]:
    """A message from the table whose fields mostly fit, with one of them replaced now and then (``wrong``)."""
    op, spec = dice.choice(list(table.items()))
    fields = [_fitting(dice, field.name) for field in spec.fields]
    if dice.random() < wrong:
        match dice.randrange(3):
            case 0:
                fields.append(value(dice))
            case 1 if fields:
                fields[dice.randrange(len(fields))] = value(dice)
            case _ if fields:
                fields.pop()
    return [*head, op, *fields]


def damaged(dice: random.Random, packet: bytes, others: Sequence[bytes]) -> bytes:
    """A packet with bytes turned, cut, doubled, or spliced with another."""
    data = bytearray(packet)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                del data[at:]
            case 3:
                data[at:at] = dice.randbytes(dice.randrange(1, 5))
            case 4:
                data[at:] = dice.choice(others)[at:]
            case _:
                data += data[: dice.randrange(len(data) + 1)]
    return bytes(data[:20_000])


def inputs(seed: int, kept: Sequence[bytes], fresh: Callable[[random.Random], bytes]) -> Iterator[bytes]:
    """Inputs without end: the corpus first, then fresh ones and damaged ones."""
    yield from kept
    dice = random.Random(seed)
    while True:
        chance = dice.random()
        if chance < 0.5:
            yield fresh(dice)
        elif chance < 0.9:
            yield damaged(dice, fresh(dice) if dice.random() < 0.5 else dice.choice(kept), kept)
        else:
            yield dice.randbytes(dice.randrange(64))
