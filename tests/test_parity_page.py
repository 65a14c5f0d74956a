"""docs/parity.md is true: every row of the core names tests that exist, ran, passed, and called what the row speaks of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from tests.parity.page import CORE, SYNCOBJ, Record, Row, findings, parse
from tests.parity.recorder import FILE, FUNCTIONS, resolve

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = parse((ROOT / "docs" / "parity.md").read_text("utf-8"))


def run(tests: Iterable[str], functions: Iterable[str], file: Path) -> Record:
    """Run tests in a pytest of their own and record them.  It may fail: the record says where."""
    environment = {**os.environ, FILE: str(file), FUNCTIONS: json.dumps(sorted(set(functions)))}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.parity.recorder",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-q",
        "--tb=short",
    ]
    ran = subprocess.run(
        [*command, *sorted(set(tests))], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert file.exists(), ran.stdout + ran.stderr
    if ran.returncode:
        sys.stderr.write(ran.stdout)  # pytest shows it if something is found
    record = json.loads(file.read_text())
    return Record(record["outcomes"], {test: set(names) for test, names in record["calls"].items()})


@pytest.mark.timeout(120)
def test_every_row_is_shown(tmp_path: Path) -> None:
    files = {test.partition("::")[0] for row in ROWS for test in row.tests}
    missing = [file for file in files if not (ROOT / file).is_file()]
    assert not missing
    record = run(files, [function for row in ROWS for function in row.functions], tmp_path / "record")
    found = findings(ROWS, record)
    assert not found, "docs/parity.md is not true:\n" + "\n".join(found)


@pytest.mark.parametrize("function", sorted({function for row in ROWS for function in row.functions}))
def test_the_page_speaks_of_public_functions(function: str) -> None:
    owner, attribute = resolve(function)
    assert callable(getattr(owner, attribute))


# The checker can fail

TRUE: Final = [
    *(Row(id, "●", "title", "kernel", "here", ("f",), ("t",)) for id in sorted(CORE)),
    *(Row(id, "○", "title", "kernel", "not yet", (), ()) for id in sorted(SYNCOBJ)),
]
RECORD: Final = Record({"t": ["passed", "passed"], "u": ["passed"]}, {"t": {"f", "g"}, "u": {"h"}})
FIRST: Final = TRUE[0]


def with_first(**changes: object) -> list[Row]:
    return [FIRST._replace(**changes), *TRUE[1:]]  # type: ignore[arg-type]


def test_a_true_page_has_no_findings() -> None:
    assert findings(TRUE, RECORD) == []
    assert findings(with_first(tests=("t", "u"), functions=("g", "h")), RECORD) == []


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        (TRUE[1:], "A1 is missing, or not marked ●"),
        (TRUE[:-1], "F6 is missing, or not marked ○"),
        ([*TRUE, FIRST], "A1 is there twice"),
        (with_first(mark="○"), "A1 is missing, or not marked ●"),
        (with_first(kernel=""), "A1: does not say what the kernel does and what we do"),
        (with_first(here=""), "A1: does not say what the kernel does and what we do"),
        (with_first(tests=()), "A1: names no test"),
        (with_first(functions=()), "A1: names no public function"),
        (with_first(tests=("t", "gone")), "A1: gone does not exist"),
        (with_first(functions=("f", "h")), "A1: none of its tests called h"),
        ([*TRUE[:-1], TRUE[-1]._replace(here="we have it")], "F6: names no test and does not say 'not yet'"),
        ([*TRUE[:-1], TRUE[-1]._replace(tests=("gone",), functions=("f",))], "F6: gone does not exist"),
    ],
)
def test_each_kind_of_untruth_is_found(rows: list[Row], finding: str) -> None:
    assert finding in findings(rows, RECORD)


@pytest.mark.parametrize("outcomes", [["failed"], ["skipped"], ["passed", "skipped"], ["passed", "failed"]])
def test_a_test_that_did_not_pass_shows_nothing(outcomes: list[str]) -> None:
    assert any(text.startswith("A1: t did not pass") for text in findings(TRUE, Record({"t": outcomes}, RECORD.calls)))


INNER: Final = """
import threading
import pytest
import fencebroker as fb
from fencebroker.libsync import nearest, sync_wait

def wait():
    with pytest.raises(OSError):
        sync_wait(-1, 0)

@pytest.fixture
def fixture():
    wait()

def test_calls(): wait()
def test_calls_in_a_thread():
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
def test_calls_by_a_fixture_only(fixture): pass
def test_calls_nothing(): nearest(1, 1)
def test_calls_a_method(): pytest.raises(fb.NotASyncFile, fb.SyncFile.from_fd, 0)
def test_fails(): assert not wait and False
def test_is_skipped(): pytest.skip("here")
@pytest.mark.parametrize("n", [1, 2])
def test_has_cases(n): assert n == 1
@pytest.fixture
def broken():
    raise ValueError
def test_cannot_begin(broken): pass
"""


def test_the_recorder_sees_what_happened(tmp_path: Path) -> None:
    module = tmp_path / "test_inner.py"
    module.write_text(INNER)
    record = run([str(module)], ["libsync.sync_wait", "SyncFile.from_fd"], tmp_path / "record")
    outcomes = {test.partition("::")[2]: outcome for test, outcome in record.outcomes.items()}
    calls = {test.partition("::")[2]: called for test, called in record.calls.items()}
    assert outcomes == {
        "test_calls": ["passed"],
        "test_calls_in_a_thread": ["passed"],
        "test_calls_by_a_fixture_only": ["passed"],
        "test_calls_nothing": ["passed"],
        "test_calls_a_method": ["passed"],
        "test_fails": ["failed"],
        "test_is_skipped": ["skipped"],
        "test_has_cases": ["passed", "failed"],
        "test_cannot_begin": ["failed"],
    }
    assert {test for test, called in calls.items() if "libsync.sync_wait" in called} == {"test_calls", "test_calls_in_a_thread"}
    assert {test for test, called in calls.items() if "SyncFile.from_fd" in called} == {"test_calls_a_method"}


@pytest.mark.parametrize("name", ["libsync._create", "libsync.nothing", "Broker.nothing", "requests.merge"])
def test_what_is_not_public_cannot_be_named(name: str) -> None:
    with pytest.raises(AttributeError):
        resolve(name)
