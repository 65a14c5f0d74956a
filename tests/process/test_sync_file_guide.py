"""``docs/sync-file-guide.md`` is run as it stands: its blocks are the programs, its text blocks what they print."""

from __future__ import annotations

import ast
import pathlib
import re
import sys

import pytest

from fencebroker import kernel
from tests.helpers import LIMIT, BrokerProcess, Spawn

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "sync-file-guide.md"


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (first line, rest) of each fenced block of a language, in order."""
    found = re.findall(rf"^```{language}\n(.*?)\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"the guide has no {language} blocks"
    return [(head, body) for head, body in found]


def programs() -> dict[str, str]:
    """Return the files of the guide: blocks that name the same file are its parts."""
    files: dict[str, str] = {}
    for head, body in blocks("python"):
        name = head.removeprefix("# ")
        assert re.fullmatch(r"# \w+\.py", head), f"a block must begin with the name of its file, not {head!r}"
        files[name] = files.get(name, "") + body + "\n"
    return files


def runs() -> list[tuple[str, str]]:
    """Return (program, what it prints) for each command that the guide shows."""
    return [(head.removeprefix("python "), body) for head, body in blocks("text")]


@pytest.fixture
def guide(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, source in programs().items():
        (tmp_path / name).write_text(source, "utf-8")
    return tmp_path


@pytest.mark.parametrize(("program", "output"), runs())
def test_the_guides_programs_print_what_it_says(
    spawn: Spawn, module_broker: BrokerProcess, guide: pathlib.Path, program: str, output: str
) -> None:
    child = spawn([sys.executable, program], env=module_broker.env, cwd=guide)
    assert child.finish(2 * LIMIT) == output


def test_every_file_of_the_guide_is_run() -> None:
    files = programs()
    shown = {program for program, _ in runs()}
    assert shown <= files.keys()
    for name in files.keys() - shown:
        assert any(name in source or f"from {name.removesuffix('.py')} import" in source for source in files.values()), name


def test_the_guide_uses_names_that_exist() -> None:
    """In the code, and in the prose between backquotes."""
    used = set()
    for source in programs().values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "k":
                used.add(node.attr)
    prose = re.sub(r"^```.*?^```$", "", GUIDE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    used |= set(
        re.findall(r"`((?:dma_fence|sync_file|fd)_\w+|fput|last_error|references|shutdown|get_unused_fd_flags|put_unused_fd)\b", prose)
    )
    assert used - set(kernel.__all__) == set()


@pytest.mark.parametrize(
    "name",
    [
        "sync_file_create",
        "get_unused_fd_flags",
        "fd_install",
        "put_unused_fd",
        "fput",
        "sync_file_get_fence",
        "dma_fence_put",
        "dma_fence_signal",
    ],
)
def test_the_guide_covers_what_the_kernels_guide_names(name: str) -> None:
    assert name in GUIDE.read_text("utf-8")
