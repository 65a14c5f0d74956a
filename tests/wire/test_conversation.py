"""The table of a conversation, alone and with both roles at the ends of one link."""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from fencebroker.protocol import TRANSITIONS, Conversation, Move, State, Violation

PATHS: Final[dict[State, list[Move]]] = {
    State.GREETING: [],
    State.ASKED: [Move.HELLO],
    State.OPEN: [Move.HELLO, Move.ACCEPT],
    State.CLOSED: [Move.END],
}

#: What must be, written out again: a table that is compared with itself proves nothing.
ALLOWED: Final[dict[tuple[State, Move], State]] = {
    (State.GREETING, Move.HELLO): State.ASKED,
    (State.GREETING, Move.END): State.CLOSED,
    (State.ASKED, Move.ACCEPT): State.OPEN,
    (State.ASKED, Move.REFUSE): State.CLOSED,
    (State.ASKED, Move.END): State.CLOSED,
    (State.OPEN, Move.REQUEST): State.OPEN,
    (State.OPEN, Move.ANSWER): State.OPEN,
    (State.OPEN, Move.EVENT): State.OPEN,
    (State.OPEN, Move.END): State.CLOSED,
    (State.CLOSED, Move.END): State.CLOSED,
}


def at(state: State) -> Conversation:
    conversation = Conversation()
    for move in PATHS[state]:
        conversation.move(move)
    assert conversation.state is state
    return conversation


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("move", list(Move))
def test_every_move_in_every_state(state: State, move: Move) -> None:
    conversation = at(state)
    if (state, move) in ALLOWED:
        conversation.move(move)
        assert conversation.state is ALLOWED[state, move]
    else:
        with pytest.raises(Violation, match=f"a {move.value} is not allowed while the conversation is {state.value}"):
            conversation.move(move)
        assert conversation.state is state, "a violation moves nothing"
    assert conversation.is_open == (conversation.state is State.OPEN)


def test_the_table_has_nothing_else() -> None:
    assert {(state, move): to for state, moves in TRANSITIONS.items() for move, to in moves.items()} == ALLOWED


class Linked:
    """Both ends of one link: whatever one says, both move."""

    def __init__(self) -> None:
        self.client = Conversation()
        self.broker = Conversation()

    def say(self, move: Move) -> bool:
        """Say something; both ends must judge it alike."""
        verdicts = []
        for end in (self.client, self.broker):
            try:
                end.move(move)
            except Violation:
                verdicts.append(False)
            else:
                verdicts.append(True)
        assert verdicts[0] == verdicts[1]
        assert self.client.state is self.broker.state
        return verdicts[0]


def test_both_ends_judge_alike_whatever_is_said() -> None:
    for moves in itertools.product(Move, repeat=4):
        linked = Linked()
        for move in moves:
            before = linked.client.state
            assert linked.say(move) == ((before, move) in ALLOWED), moves


def test_a_whole_conversation() -> None:
    linked = Linked()
    for move in (Move.HELLO, Move.ACCEPT, Move.REQUEST, Move.ANSWER, Move.EVENT, Move.REQUEST, Move.REQUEST, Move.ANSWER, Move.END):
        assert linked.say(move)
    assert linked.client.state is State.CLOSED


def test_a_second_hello_and_a_request_before_the_first_are_violations() -> None:
    linked = Linked()
    assert not linked.say(Move.REQUEST)
    assert linked.say(Move.HELLO)
    assert not linked.say(Move.HELLO)
    assert not linked.say(Move.REQUEST)
    assert linked.say(Move.ACCEPT)
    assert not linked.say(Move.HELLO)
