"""The conversation on a session's socket, for both roles.  Pure, and blind to the role: neither side may be lenient with itself.

The rules are one table.  A missing entry is a violation: whoever sees the peer commit one ends the conversation; whoever is about to
commit one has a bug.

    state      client may send                 broker may send
    GREETING   hello                           -
    ASKED      -                               answer (accepted -> OPEN, refused -> CLOSED)
    OPEN       request (not hello), notice     answer, event
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Conversation", "Move", "State", "Violation"]


class State(Enum):
    """Where a conversation stands."""

    GREETING = "greeting"  #: nothing was said yet
    ASKED = "asked"  #: a hello is on its way or being considered
    OPEN = "open"  #: requests, answers, events
    CLOSED = "closed"  #: nothing more may be said


class Move(Enum):
    """What one packet means for the conversation."""

    HELLO = "hello"
    ACCEPT = "accept"  #: the answer to the hello, errno 0
    REFUSE = "refuse"  #: the answer to the hello, an errno
    REQUEST = "request"  #: answered or not
    ANSWER = "answer"
    EVENT = "event"
    END = "end"


class Violation(Exception):
    """A move that the table does not have."""


TRANSITIONS: Final[dict[State, dict[Move, State]]] = {
    State.GREETING: {Move.HELLO: State.ASKED, Move.END: State.CLOSED},
    State.ASKED: {Move.ACCEPT: State.OPEN, Move.REFUSE: State.CLOSED, Move.END: State.CLOSED},
    State.OPEN: {Move.REQUEST: State.OPEN, Move.ANSWER: State.OPEN, Move.EVENT: State.OPEN, Move.END: State.CLOSED},
    State.CLOSED: {Move.END: State.CLOSED},
}


class Conversation:
    """One session's conversation, as either end sees it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.GREETING

    @property
    def is_open(self) -> bool:
        return self.state is State.OPEN

    def move(self, move: Move) -> None:
        """Take one step; raises Violation and stays where it is when the table has no such step."""
        following = TRANSITIONS[self.state].get(move)
        if following is None:
            raise Violation(f"a {move.value} is not allowed while the conversation is {self.state.value}")
        self.state = following
