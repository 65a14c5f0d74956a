"""README.md and docs/: their programs run, their links lead somewhere, and no figure stands without the command that gives it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import fencebroker as fb
from fencebroker import fds
from tests.helpers import LIMIT, BrokerProcess, Spawn, package_folder, wait_readable

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
IS_CHECKOUT: Final = (ROOT / "fencebroker").is_dir()
#: Where the tests run against an installed wheel, these are not there.
ONLY_IN_A_CHECKOUT: Final = {"LICENSE", "fencebroker", "daemon"}

#: A page marks a program that is run as it stands: an HTML comment with its name, and the block below it.
_RUNNABLE: Final = re.compile(r"^<!-- runnable: ([\w.]+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FENCED: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def programs(page: Path) -> dict[str, str]:
    return dict(_RUNNABLE.findall(page.read_text("utf-8")))


README: Final = programs(ROOT / "README.md")

# Programs


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save the README's programs as it says."""
    for name, code in README.items():
        (tmp_path / name).write_text(code, "utf-8")
    return tmp_path


def wait_for_file(folder: Path, name: str) -> None:
    """Wait until ``name`` appears in ``folder``: inotify says so."""
    libc = ctypes.CDLL(None, use_errno=True)
    with fds.OwnedFd(libc.inotify_init1(os.O_CLOEXEC)) as inotify:
        assert libc.inotify_add_watch(inotify.fileno(), os.fsencode(folder), 0x100) >= 0  # IN_CREATE
        while not (folder / name).exists():
            wait_readable(inotify.fileno())
            os.read(inotify.fileno(), 4096)


def test_the_readmes_producer_and_consumer(saved: Path, spawn: Spawn, broker: BrokerProcess) -> None:
    consumer = spawn([sys.executable, "consumer.py"], env=broker.env, cwd=saved)
    wait_for_file(saved, "pictures.sock")
    producer = spawn([sys.executable, "producer.py"], env=broker.env, cwd=saved)
    assert producer.finish() == ""
    assert consumer.finish() == "picture.txt is finished\n"
    assert (saved / "picture.txt").read_text() == r"\o/"


def test_the_readmes_programs_are_short() -> None:
    for name, most in (("producer.py", 8), ("consumer.py", 6), ("named.py", 3)):
        lines = [line for line in README[name].splitlines() if line and not line.startswith("import ")]
        assert len(lines) <= most, f"{name} has {len(lines)} lines"


def test_the_readmes_named_point(saved: Path, spawn: Spawn, broker: BrokerProcess) -> None:
    waiter = spawn([sys.executable, "named.py"], env=broker.env, cwd=saved)
    # It may ask before or after the timeline is there.
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline:
        timeline.advance(1)
        assert waiter.finish() == ""


def test_the_readmes_consumer_hears_that_its_producer_died(saved: Path, spawn: Spawn, broker: BrokerProcess) -> None:
    (saved / "dies.py").write_text(README["producer.py"].replace("timeline.advance(1)", "import os; os.kill(os.getpid(), 9)"))
    consumer = spawn([sys.executable, "consumer.py"], env=broker.env, cwd=saved)
    wait_for_file(saved, "pictures.sock")
    assert spawn([sys.executable, "dies.py"], env=broker.env, cwd=saved).wait() == -9
    assert consumer.wait() == 1
    assert consumer.log().splitlines()[-1].startswith("fencebroker.errors.FenceError: ")
    assert "its producer died" in consumer.log()


def others() -> Iterator[tuple[str, str, str]]:
    """Runnable programs of the other pages, which need no company; those of a page that has its own test are left to it."""
    for page in PAGES[1:]:
        for name, code in programs(page).items():
            yield page.name, name, code


@pytest.mark.parametrize(("page", "name", "code"), [pytest.param(*other, id="-".join(other[:2])) for other in others()])
def test_every_runnable_program_runs(page: str, name: str, code: str, spawn: Spawn, broker: BrokerProcess, tmp_path: Path) -> None:
    (tmp_path / name).write_text(code, "utf-8")
    spawn([sys.executable, name], env=broker.env, cwd=tmp_path).finish(2 * LIMIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page: Path) -> None:
    for code in re.findall(r"^```python.*?\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        compile(code, page.name, "exec")


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, without punctuation, spaces as hyphens, repeated ones numbered."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(next(anchor for anchor in (slug, *(f"{slug}-{n}" for n in range(1, 99))) if anchor not in found))
    return found


def links(page: Path) -> Iterator[str]:
    text = _FENCED.sub("", page.read_text("utf-8"))
    yield from re.findall(r"(?<!`)\]\(([^)\s]+)\)", text)
    yield from re.findall(r'<img src="([^"]+)"', text)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=lambda page: f"{page.parent.name}-{page.name}")
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            continue
        target = page if not path else page.parent / path
        if not IS_CHECKOUT and target.resolve().relative_to(ROOT).parts[0] in ONLY_IN_A_CHECKOUT:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead, f"{page.name} links to what is not there: {', '.join(dead)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_source_file_named_exists(page: Path) -> None:
    named = set(re.findall(r"\b(fencebroker|daemon/fencebrokerd)/([\w/]+\.py)\b", page.read_text("utf-8")))
    missing = [f"{package}/{path}" for package, path in named if not (package_folder(package.rpartition("/")[2]) / path).is_file()]
    assert not missing, f"{page.name} names {', '.join(missing)}"


# Figures

#: A measured figure: a rate or a time with its unit, outside of code.
_FIGURE: Final = re.compile(r"\b\d[\d.,]*\s?(?:us|µs|ns|frames/s|MiB/s|/s)\b")
_COMMAND: Final = re.compile(r"(?:^|`|\$ )(?:make|python -m|python|fencectl|fencebrokerd|cc|pytest) ?[\w.-]*", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_has_a_command_beside_it(page: Path) -> None:
    for part in re.split(r"^## ", page.read_text("utf-8"), flags=re.MULTILINE):
        found = _FIGURE.search(_FENCED.sub("", part))
        assert found is None or _COMMAND.search(part), f"{page.name}, under {part.splitlines()[0]!r}: {found[0]} and no command"


def test_the_picture_is_well_formed_and_knows_the_dark() -> None:
    picture = (ROOT / "docs" / "fence.svg").read_text("utf-8")
    assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in picture
