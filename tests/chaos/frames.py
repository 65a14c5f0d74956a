"""What a producer tells a consumer about a fence, beside the fence."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from fencebroker.model import OK

if TYPE_CHECKING:
    from tests.chaos.ledger import Ledger

__all__ = ["END", "Frame", "Wrong"]

#: The producer has no more.
END = b"end"


class Wrong(AssertionError):
    """A fence did what it must not."""


class Frame(NamedTuple):
    """A point, and how it will end."""

    slot: int  #: of its timeline in the ledger
    seqno: int
    due: int  #: the status it will have
    after: int = 0  #: for an expiry: not before this moment (ns)
    point: str | None = None  #: its name, when it comes without a descriptor

    def pack(self) -> bytes:
        return json.dumps(self).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(*json.loads(payload))

    def is_released(self, ledger: Ledger) -> bool:
        """Its producer has let it go, or its time has passed."""
        return time.monotonic_ns() >= self.after if self.after else ledger[self.slot] >= self.seqno

    def check(self, status: int, ledger: Ledger, how: str) -> None:
        """See whether a status that was read is right."""
        if status == 0:
            return
        # The status was read before the ledger is.
        if not self.is_released(ledger):
            raise Wrong(f"early: {how} {self} has status {status}, and its producer is at {ledger[self.slot]}")
        if status != self.due:
            raise Wrong(f"wrong status: {how} {self} has status {status}")


def due_of_all(frames: list[Frame]) -> set[int]:
    """What may become of a merge of all: the first error that comes, or OK."""
    return {frame.due for frame in frames if frame.due != OK} or {OK}
