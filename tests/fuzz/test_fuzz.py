"""Each fuzzer for a moment, on what is kept and on something new; ``make fuzz`` goes on for long."""

from __future__ import annotations

import collections
import importlib
import itertools
import pkgutil
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.fuzz.targets as folder
from fencebrokerd.shell.journal import Journal
from tests.fuzz.live import fire
from tests.fuzz.mutation import CORPUS, corpus, inputs
from tests.helpers import BrokerProcess

NAMES: Final = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))


def load(name: str) -> Any:
    return importlib.import_module(f"{folder.__name__}.{name}")


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {load(name).NAME for name in NAMES} == {path.name for path in CORPUS.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_and_what_is_new(name: str) -> None:
    """The corpus, and a thousand inputs from dice that are the same in each run."""
    module = load(name)
    kept = corpus(module.NAME)
    with module.Target() as target:
        for data in itertools.islice(inputs(1, kept, module.fresh), len(kept) + 1000):
            target.run(data)


@pytest.mark.parametrize("name", NAMES)
def test_anything(name: str) -> None:
    """What hypothesis thinks of."""
    module = load(name)
    with module.Target() as target:

        @settings(max_examples=200)
        @given(st.one_of(st.binary(max_size=300), st.sampled_from(corpus(module.NAME))))
        def check(data: bytes) -> None:
            target.run(data)

        check()


def test_the_dice_are_the_same_each_time() -> None:
    module = load("session")
    first, second = (list(itertools.islice(inputs(5, corpus("session"), module.fresh), 500)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 400


def test_a_target_that_fails_is_noticed() -> None:
    """A fuzzer that cannot fail finds nothing: an account that leaks is found."""
    module = load("session")
    with module.Target() as target:
        target._world.state.account(1000).sync_files += 1
        data = list(itertools.islice(inputs(1, corpus("session"), module.fresh), 600))
        with pytest.raises(AssertionError):
            collections.deque(map(target.run, data), 0)
        target._begin()


def test_a_recovery_that_looks_at_no_checksum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def records(self: Journal) -> Iterator[tuple[int, bytes]]:
        at = self._start
        while at < self._end:
            n = int.from_bytes(self._map[at : at + 4], "little")
            yield at, self._map[at + 8 : at + 8 + n]
            at += 8 + n

    monkeypatch.setattr(Journal, "records", records)
    module = load("journal")
    data = itertools.islice(inputs(1, corpus("journal"), module.fresh), 1000)
    with module.Target() as target, pytest.raises(AssertionError, match="a damaged record was believed"):
        collections.deque(map(target.run, data), 0)


def test_a_running_broker(broker: BrokerProcess) -> None:
    """Through its sockets, with descriptors now and then."""
    figures = fire(broker, 10_000, 1, lambda n: None)
    assert figures.packets >= 10_000
    assert figures.with_descriptors > 1000
    assert figures.on_timelines > 500
    assert figures.cut > 300
    assert figures.answers > 2000  # a slow broker reads less of what comes after a packet that ends its session
