"""docs/threats.md names tests: each of them exists, and no row is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "threats.md").read_text("utf-8")
ROWS: Final = [line.split("|")[1:5] for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| attack ")]
NAMED: Final = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PAGE)))


def missing(name: str, root: Path = ROOT) -> str | None:
    """What is wrong with the name of a test; None if it is there."""
    file, _, function = name.partition("::")
    if not (root / file).is_file():
        return f"{file} does not exist"
    if not function:
        return None
    functions = {
        node.name
        for node in ast.walk(ast.parse((root / file).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return None if function.startswith("test_") and function in functions else f"{file} has no test {function}"


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 40
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    assert missing(name) is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:40])
def test_a_row_has_a_promise_and_a_test(row: list[str]) -> None:
    """An attack, a promise, and a test or a benchmark."""
    attack, promise, shown, _ = (cell.strip() for cell in row)
    assert attack
    assert promise
    assert re.search(r"`(tests/|python -m benchmarks|make fuzz)", shown), attack


def test_what_is_missing_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("def test_a(): pass\ndef helper(): pass\n")
    assert missing("test_x.py::test_a", tmp_path) is None
    assert missing("test_x.py", tmp_path) is None
    assert missing("test_x.py::test_b", tmp_path) == "test_x.py has no test test_b"
    assert missing("test_x.py::helper", tmp_path) is not None
    assert missing("test_y.py::test_a", tmp_path) == "test_y.py does not exist"
