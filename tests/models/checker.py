"""Explores every state that a model can reach, breadth first, and shows the shortest way to the first one that is wrong.

A model is a description of programs that run at the same time, cut into the steps that nothing can divide: a store, a system call, a death.
From each state every step that any of them may take is tried.  So what is found holds for every order there is, and not for those that a
machine happened to run; and it holds for the model, which is worth as much as its likeness to the program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Model", "Report", "TooManyStates", "explore"]

S = TypeVar("S", bound=Hashable)


class TooManyStates(Exception):
    """The search did not come to its end, so it shows nothing."""


class Model(NamedTuple, Generic[S]):
    """What is explored.  States are compared and hashed, so they are values: named tuples of numbers, tuples and frozensets."""

    initial: Iterable[S]
    #: The steps that are possible in a state: what each is called, and the state after it.  Where a choice is free, each outcome is a step.
    steps: Callable[[S], Iterable[tuple[str, S]]]
    #: What is wrong with a state; None for nothing.
    wrong: Callable[[S], str | None] = lambda _: None
    #: What is wrong with a state in which nothing more can happen: who still waits there waits for ever.
    wrong_at_rest: Callable[[S], str | None] = lambda _: None
    #: Steps that may be taken and that nobody can count on, such as a death: where only these are left, a state is at rest.
    faults: Callable[[S], Iterable[tuple[str, S]]] = lambda _: ()


class Report(NamedTuple):
    """What a search found.  ``wrong`` is None when every state is right; otherwise ``trace`` is the shortest way to one that is not."""

    states: int  #: how many different ones were reached
    steps: int  #: how many steps lead from one to another
    depth: int  #: how many steps the farthest is away
    at_rest: int  #: in how many nothing more can happen
    labels: frozenset[str]  #: the steps that were taken at least once; a step that never was has shown nothing
    wrong: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        if self.wrong is None:
            return f"{self.states} states, {self.steps} steps, {self.depth} deep, {self.at_rest} at rest: nothing wrong"
        return "\n".join((self.wrong, *(f"{n:4} {step}" for n, step in enumerate(self.trace, 1))))


def explore(model: Model[S], limit: int = 2_000_000) -> Report:
    """Visit every reachable state.  Stops at the first that is wrong; raises TooManyStates beyond ``limit``."""
    # Where each state was first reached from: breadth first, so that the way back is the shortest.
    origin: dict[S, tuple[S, str] | None] = dict.fromkeys(model.initial)
    labels: set[str] = set()
    frontier = list(origin)
    n_steps = depth = n_at_rest = 0

    def report(state: S | None, wrong: str | None) -> Report:
        trace = []
        while state is not None and (before := origin[state]) is not None:
            state, label = before
            trace.append(label)
        return Report(len(origin), n_steps, depth, n_at_rest, frozenset(labels), wrong, tuple(reversed(trace)))

    for state in frontier:
        if wrong := model.wrong(state):
            return report(state, wrong)
    while frontier:
        following = []
        for state in frontier:
            steps = list(model.steps(state))
            moves = [*steps, *model.faults(state)]
            for label, after in moves:
                labels.add(label)
                if after in origin:
                    continue
                origin[after] = state, label
                following.append(after)
                if wrong := model.wrong(after):
                    return report(after, wrong)
            n_steps += len(moves)
            if not steps:
                n_at_rest += 1
                if wrong := model.wrong_at_rest(state):
                    return report(state, wrong)
            if len(origin) > limit:
                raise TooManyStates(f"more than {limit} states after {depth + 1} steps, and {len(following)} still to be looked at")
        frontier = following
        depth += bool(following)
    return report(None, None)
