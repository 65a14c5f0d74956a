"""Keeps the journal for the loop: which packet is in hand, what became of descriptors, and when it has to be on record.

Without a journal (``--no-keeper``) every method still may be called, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from fencebroker import wire
from fencebroker.fds import PEEK
from fencebrokerd.core import effects as fx
from fencebrokerd.keeper import HAND, PUBLISHED
from fencebrokerd.shell import failpoints
from fencebrokerd.shell import record as r
from fencebrokerd.shell.journal import Journal

if TYPE_CHECKING:
    from fencebrokerd.core.events import Event

__all__ = ["Ledger", "Owed"]

#: A session's packet that stays in its socket until its answer is sent.
Owed = tuple[r.Packet, r.Answer | None]

_SESSION: Final = 1
_TIMELINE: Final = 2


class Ledger:
    """Owns what is to be written with the next record.

    ``peek``: the flag with which packets are received; while there is a journal they stay in their socket until their effect is in it.
    """

    def __init__(self, words: memoryview, journal: Journal | None, snapshot: Callable[[], bytes]) -> None:
        """``snapshot``: the record that stands for all that holds now, whatever is in hand."""
        self._words = words
        self._journal = journal
        self._snapshot = snapshot
        #: The newest packet of any timeline's socket, until it is known whether the last broker took it from there.
        self.inherited: r.Packet | None = None
        self.peek = 0 if journal is None else PEEK
        self._notes: list[r.Entry] = []
        self._hand: r.Packet | None = None
        self._is_answered = False
        self._answer: r.Answer | None = None
        self._is_recorded = False
        #: An answer is encoded once, for the journal and for its session.
        self._encoded: tuple[fx.Send | None, bytes] = (None, b"")

    # -- the packet in hand

    def look_at(self, session: int) -> None:
        """A session's packet is looked at, and not read yet: should that end two brokers in a row, it is known whose it was."""
        words = self._words
        words[HAND + 1], words[HAND + 2], words[HAND] = session, 0, _SESSION

    def take(self, packet: r.Packet, *, is_answered: bool = False) -> None:
        """Take a packet in hand.  One that is answered is on record only together with its answer."""
        words = self._words
        words[HAND + 1], words[HAND + 2] = packet.id, packet.b if packet.is_timeline else packet.a
        words[HAND] = _TIMELINE if packet.is_timeline else _SESSION
        self._hand = packet
        self._is_answered = is_answered
        self._answer = None
        self._is_recorded = False

    def put_down(self) -> Owed | None:
        """The packet is done with; returns what its session is owed for as long as it stays unanswered."""
        hand, self._hand = self._hand, None
        self._words[HAND] = 0
        return None if hand is None or not self._is_recorded or self._journal is None else (hand, self._answer)

    # -- records

    def note(self, entry: r.Entry) -> None:
        """Something became of a descriptor; it is written with the next record."""
        if self._journal is not None:
            self._notes.append(entry)

    def record(self, events: list[Event], effects: Sequence[fx.Effect] = ()) -> None:
        """Write what has changed, and the answer among the effects; after this it has happened."""
        journal = self._journal
        if journal is None:
            return
        hand = self._hand
        changes: Sequence[object] = events
        notes: Sequence[r.Entry] = ()
        if self._notes:
            notes, self._notes = self._notes, []
            changes = [*events, *notes]
        if not changes and (hand is None or self._is_recorded or not hand.is_timeline):
            return  # a question: it may be answered twice
        answer = None
        if hand is not None and not hand.is_timeline:
            answer = self._find_answer(hand, effects)
        if failpoints.IS_ARMED:
            failpoints.hit("append.before")
        packet = None
        if hand is not None and (answer is not None or not (self._is_answered or self._is_recorded)):
            packet = hand
            self._answer, self._is_recorded = answer, True
        try:
            journal.append(r.encode(packet, changes, answer))
        except OSError:
            self._rewrite_with(notes)
        if failpoints.IS_ARMED:
            failpoints.hit("append.after")

    def _rewrite_with(self, notes: Sequence[r.Entry]) -> None:
        """There is no memory for a record more: everything is written anew, with its events in it, and behind that what no state has.  OSError
        when there is none for that either.
        """
        assert self._journal is not None
        if self._hand is not None and self._is_recorded:
            following = r.encode(self._hand, notes, self._answer)
        else:
            following = r.encode(self.inherited, notes, None)
        self._journal.rewrite(self._snapshot(), following)
        self.tell()

    def _find_answer(self, hand: r.Packet, effects: Sequence[fx.Effect]) -> r.Answer | None:
        for effect in reversed(effects):
            if type(effect) is fx.Send and effect.session == hand.id and effect.message[0] == hand.a:
                return r.Answer(self.encode(effect), tuple(effect.handles), effect.socket, effect.ring)
        return None

    def encode(self, send: fx.Send) -> bytes:
        """Return the packet of a message."""
        known, packet = self._encoded
        if known is not send:
            packet = wire.encode(send.message)
            self._encoded = send, packet
        return packet

    @property
    def is_long(self) -> bool:
        """Whether the journal should be written anew."""
        return self._journal is not None and self._journal.is_long

    @property
    def is_worth_it(self) -> bool:
        """Whether it would get shorter by that."""
        return self._journal is not None and self._journal.is_worth_it

    @property
    def has_room(self) -> bool:
        """Whether a request may make something new; otherwise ``shortage`` says why not."""
        return self._journal is None or self._journal.has_room

    @property
    def shortage(self) -> str:
        """Why there is no room; empty when there is."""
        return "" if self._journal is None else self._journal.shortage

    def rewrite(self) -> None:
        """Write the journal anew; only while no packet is in hand.  OSError when there is no memory for it: then all is as before."""
        if self._journal is not None:
            self._journal.rewrite(self._snapshot())
            self._notes = []
            self.tell()

    def tell(self) -> None:
        """Note that those who follow the events were told of all that is on record."""
        if self._journal is not None:
            self._words[PUBLISHED] = len(self._journal)

    def __len__(self) -> int:
        return 0 if self._journal is None else len(self._journal)
