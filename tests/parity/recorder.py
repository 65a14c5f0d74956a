"""A pytest plugin: which tests passed, and which public functions each of them called itself.

Loaded by ``tests/test_parity_page.py`` into a run of its own (``-p tests.parity.recorder``).  The functions to watch and the file to write
are in the environment.  Each function is replaced where the public finds it, before a test module can import it, so what the library calls
by itself does not count.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["FILE", "FUNCTIONS", "resolve"]

FILE: Final = "PARITY_RECORD_FILE"
FUNCTIONS: Final = "PARITY_RECORD_FUNCTIONS"

_outcomes: dict[str, list[str]] = {}
_calls: dict[str, set[str]] = {}
#: Where calls are noted now; outside of a test's own body they are nobody's.
_current: set[str] = set()


def resolve(name: str) -> tuple[Any, str]:
    """Return the owner and the attribute of ``libsync.sync_wait`` or ``Broker.merge``; AttributeError if it is not public."""
    first, *rest = name.split(".")
    owner: Any = importlib.import_module("fencebroker")
    if first in ("libsync", "kernel", "debugfs", "aio"):
        owner = importlib.import_module(f"fencebroker.{first}")
        first, *rest = rest
    if first not in owner.__all__:
        raise AttributeError(f"{name} is not public: {first} is not in {owner.__name__}.__all__")
    for attribute in rest:
        owner, first = getattr(owner, first), attribute
    getattr(owner, first)
    return owner, first


def _watch(name: str) -> None:
    owner, attribute = resolve(name)
    raw = vars(owner)[attribute]
    if isinstance(raw, (classmethod, staticmethod)):
        setattr(owner, attribute, type(raw)(_noting(name, raw.__func__)))
    elif isinstance(raw, type):  # a class, by being instantiated
        raw.__init__ = _noting(name, raw.__init__)  # type: ignore[misc]
    else:
        setattr(owner, attribute, _noting(name, raw))


def _noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        _current.add(name)
        return function(*args, **kwargs)

    return noting


def pytest_configure() -> None:
    """Watch before anything is collected."""
    for name in json.loads(os.environ[FUNCTIONS]):
        _watch(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Note what the test's own body calls."""
    global _current  # noqa: PLW0603 - threads of the test see it too
    _current = _calls.setdefault(_base(item.nodeid), set())
    try:
        yield
    finally:
        _current = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how it ended: by its own call, or by a failure before or after."""
    if report.when == "call" or not report.passed:
        _outcomes.setdefault(_base(report.nodeid), []).append(report.outcome)


def _base(nodeid: str) -> str:
    """The test without its parameters."""
    return nodeid.partition("[")[0]


def pytest_sessionfinish() -> None:
    """Write the record."""
    record = {"outcomes": _outcomes, "calls": {test: sorted(names) for test, names in _calls.items()}}
    Path(os.environ[FILE]).write_text(json.dumps(record))
