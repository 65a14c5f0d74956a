"""The journal that a broker finds when it takes over: either what was written, or a clear refusal.

An input is the words of the page that recovery believes, one word that says whether the checksums are put right again, and the bytes of the
half that counts.  The corpus is what real brokers have left.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any, Final, Self

import msgpack

from fencebrokerd.core.broker import Broker
from fencebrokerd.keeper import BASE, HALF, JOURNAL_BYTES, LENGTH, PAGE_BYTES, PUBLISHED, Page
from fencebrokerd.shell.journal import Journal, JournalError
from fencebrokerd.shell.recovery import Inheritance, inherit, reconcile
from tests.fuzz.mutation import CORPUS, value

__all__ = ["NAME", "Target", "fresh", "image"]

NAME: Final = "journal"
_WORDS: Final = (HALF, LENGTH, LENGTH + 1, PUBLISHED, BASE)
_FRONT: Final = struct.Struct(f"<{len(_WORDS) + 1}Q")
_HEAD: Final = struct.Struct("<II")
_HALF_BYTES: Final = JOURNAL_BYTES // 2
#: The uid of the broker; whose it is does not matter here.
OWN_UID: Final = 999
#: Seconds of the processor that one recovery may take, and KiB that all of them may use more than there were: what is declared only is believed by nobody.
LONGEST: Final = 5.0
LARGEST: Final = 256 * 1024


def image(words: memoryview, content: bytes) -> bytes:
    """An input, of a page and of the half that counts."""
    return _FRONT.pack(*(words[word] for word in _WORDS), 0) + content


def _records(content: bytes) -> Iterator[bytes]:
    """The payloads of a half, as far as their lengths fit."""
    at = 0
    while at + _HEAD.size <= len(content):
        n, _ = _HEAD.unpack_from(content, at)
        payload = content[at + _HEAD.size : at + _HEAD.size + n]
        if len(payload) < n:
            return
        yield payload
        at += _HEAD.size + n


def _joined(payloads: list[bytes]) -> bytes:
    return b"".join(_HEAD.pack(len(payload), zlib.crc32(payload)) + payload for payload in payloads)


def _input(content: bytes, half: int, length: int) -> bytes:
    return _FRONT.pack(half, length if half == 0 else 7, length if half == 1 else 7, 0, 0, 1) + content


_REAL: Final = [path.read_bytes() for path in sorted((CORPUS / NAME).iterdir()) if path.name.startswith("real-")]
_LEFT: Final = [list(_records(data[_FRONT.size :])) for data in _REAL]


def _bent(dice: random.Random, what: Any) -> Any:
    """A value with another one somewhere in it."""
    if isinstance(what, tuple | list) and what and dice.random() < 0.9:
        at = dice.randrange(len(what))
        match dice.randrange(8):
            case 0:
                return [*what[:at], *what[at + 1 :]]
            case 1:
                return [*what, dice.choice(what)]
        return [*what[:at], _bent(dice, what[at]), *what[at + 1 :]]
    if isinstance(what, int) and dice.random() < 0.5:
        return what + dice.choice((-1, 1, 7, 2**31))
    return value(dice)


def fresh(dice: random.Random) -> bytes:
    """A real one with records left out, doubled, in another order, or that say something else, and with the checksums of honest ones."""
    payloads = list(dice.choice(_LEFT))
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(payloads))
        match dice.randrange(7):
            case 0 if len(payloads) > 1:
                del payloads[at]
            case 1:
                payloads.insert(dice.randrange(len(payloads) + 1), payloads[at])
            case 2:
                payloads[at] = dice.choice(dice.choice(_LEFT))
            case 3:
                payloads[at] = bytes((0xDD,)) + dice.choice((2**16, 2**27, 2**32 - 1)).to_bytes(4, "big") + payloads[at]
            case _:
                try:
                    payloads[at] = msgpack.packb(_bent(dice, msgpack.unpackb(payloads[at], use_list=False)))
                except (ValueError, OverflowError):
                    payloads[at] = msgpack.packb(None)
    content = _joined(payloads)
    if dice.random() < 0.1:
        return _input(content, dice.choice((0, 1, 2, 2**63)), dice.choice((0, len(content) + 1, _HALF_BYTES, _HALF_BYTES + 1, 2**64 - 1)))
    return _input(content, dice.randrange(2), len(content))


class Target:
    """One keeper's page, left behind by one broker after the other."""

    def __enter__(self) -> Self:
        self._page = Page()
        self._known = {payload for payloads in _LEFT for payload in payloads}
        self._largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return self

    def __exit__(self, *exc: object) -> None:
        page = self._page
        page.words.release()
        page.owners.release()
        page.map.close()
        os.close(page.fd)
        os.close(page.timer)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._largest
        assert exc[0] is not None or grown < LARGEST, f"{grown} KiB were taken"

    def run(self, data: bytes) -> None:
        """Leave a journal and recover from it."""
        *words, sealed = _FRONT.unpack(data[: _FRONT.size].ljust(_FRONT.size, b"\0"))
        content = data[_FRONT.size :]
        if sealed:
            content = _joined(list(_records(content)))
        page = self._page
        for word, number in zip(_WORDS, words, strict=True):
            page.words[word] = number
        start = PAGE_BYTES + words[0] % 2 * _HALF_BYTES
        page.map[start : start + len(content)] = content
        began = time.process_time()
        try:
            found = self._recover(words[3])
        except JournalError as err:
            if data in _REAL or not str(err):
                raise
            found = None
        finally:
            page.map[start : start + len(content)] = bytes(len(content))
        assert time.process_time() - began < LONGEST
        if found is not None and not sealed:
            self._check(found, list(_records(content[: words[1 + words[0]]])))

    def _recover(self, told: int) -> Inheritance | None:
        journal = Journal(self._page)
        found = inherit(journal, OWN_UID, told, lambda: None)
        if found is not None:
            missing = len(list(found.descriptors()))
            reconcile(found, {0: "/dev/null", 7: "socket:[7]"}, (), False, ())
            assert len(list(found.descriptors())) <= missing
        return found

    def _check(self, found: Inheritance, payloads: list[bytes]) -> None:
        """No record counts that nobody wrote.  What is the beginning of a real journal gives a state whose books balance."""
        assert self._known.issuperset(payloads), "a damaged record was believed"
        if not any(payloads == left[: len(payloads)] for left in _LEFT):
            return
        faults = [fault for fault in found.faults if not fault.startswith("missing descriptor")]
        assert not faults, faults
        assert found.state is not None
        core = Broker(found.config.limits, OWN_UID, found.state)
        core.stop(2**62)
        core.end(2**62)
