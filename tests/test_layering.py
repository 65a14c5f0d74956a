"""Who may import whom, and who may touch what: read from the source with ``ast``, so that a rule cannot be broken unseen.

The rules are functions from source to findings; each is shown a breach of itself first, then the tree.
"""

from __future__ import annotations

import ast
import json
import pathlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers import package_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the pure part may import from the standard library: values and algorithms, nothing that asks the world.
PURE: Final = frozenset(
    {
        "__future__", "abc", "bisect", "collections", "copy", "dataclasses", "enum", "errno", "functools", "heapq",
        "itertools", "math", "operator", "re", "string", "types", "typing",
    }
)  # fmt: skip

#: Builtins that reach outside, or that could import behind the back of this test.
IMPURE_BUILTINS: Final = frozenset({"open", "print", "input", "exec", "eval", "breakpoint", "__import__"})

#: Builtins whose result differs from run to run; state that depends on them cannot be replayed.
UNREPEATABLE: Final = frozenset({"id", "hash"})

#: What the pure modules of the library may import beside ``PURE``, and which of its names they may use.
LIBRARY_EXTRAS: Final[dict[str, dict[str, frozenset[str]]]] = {
    "model.py": {},
    "limits.py": {},
    "errors.py": {"os": frozenset({"strerror"})},  # the text of an errno
    "wire.py": {"msgpack": frozenset({"packb", "unpackb", "Packer", "exceptions"})},  # one packet, one message: never an Unpacker
    "protocol.py": {},
    "rows.py": {},
    "latency.py": {},
    "ring.py": {"struct": frozenset({"Struct"}), "zlib": frozenset({"crc32"})},  # bytes to words, and their checksum
}

#: What the core may import of ours: itself, and values.  The messages of the wire are values; its codec does no I/O.
CORE_MAY_IMPORT: Final = (
    "fencebroker.model",
    "fencebroker.limits",
    "fencebroker.errors",
    "fencebroker.latency",
    "fencebroker.ring",
    "fencebroker.wire",
    "fencebrokerd.core",
)

#: Names that few modules may use: descriptors travel, and eventfds are written, in one place.
RESERVED: Final = frozenset({"sendmsg", "recvmsg", "recvmsg_into", "SCM_RIGHTS", "eventfd_write", "eventfd_read"})

#: Which modules those are.
RESERVED_FOR: Final[dict[str, frozenset[str]]] = {
    "fencebroker/fds.py": RESERVED,
    "fencebrokerd/shell/eventfds.py": frozenset({"eventfd_write"}),  # a whole batch under one timer that ends a write which blocks
}

#: Names that nobody uses.  recv_fds and send_fds ignore their flags; an Unpacker keeps state between packets.
NOWHERE: Final = frozenset({"recv_fds", "send_fds", "Unpacker"})


def modules(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return every module under ``folder``; an empty folder fails, for it would satisfy any rule."""
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} holds no module"
    return found


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def mentioned(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every name, attribute, imported name, and string that is a name (as for ``getattr``)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.lineno, node.value


def within(name: str, *packages: str) -> bool:
    """Say whether the dotted ``name`` is one of ``packages`` or inside one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


# The rules


def breaches_of_purity(source: str, *ours: str, extras: dict[str, frozenset[str]] | None = None) -> list[str]:
    """The pure part imports ``PURE``, the modules ``ours`` and the named ``extras``; it does no I/O and asks no clock."""
    extras = extras or {}
    found = []
    for line, name in imported(source):
        top, _, rest = name.partition(".")
        if top in PURE or within(name, *ours) or (top in extras and (not rest or rest in extras[top])):
            continue
        found.append(f"line {line}: imports {name}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in IMPURE_BUILTINS:
            found.append(f"line {node.lineno}: uses {node.id}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNREPEATABLE:
            found.append(f"line {node.lineno}: calls {node.func.id}()")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in extras:
            module = node.value.id
            if node.attr not in extras[module]:
                found.append(f"line {node.lineno}: uses {module}.{node.attr}")
    return found


def breaches_of_the_daemons_privacy(source: str) -> list[str]:
    """The library never imports the daemon."""
    return [f"line {line}: imports {name}" for line, name in imported(source) if within(name, "fencebrokerd")]


def breaches_of_the_bans(source: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Reserved names are used where they are ``allowed``; some functions are used by nobody, and no eventfd is made that blocks."""
    banned = NOWHERE | (RESERVED - allowed)
    found = [f"line {line}: mentions {name}" for line, name in mentioned(source) if name in banned]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "time.time":
            found.append(f"line {node.lineno}: calls time.time(); the only clock here is CLOCK_MONOTONIC")
        if called.rpartition(".")[2] == "eventfd" and len(node.args) + len(node.keywords) < 2:
            found.append(f"line {node.lineno}: calls eventfd() without flags; the default blocks")
    return found


# Each rule finds a breach of itself


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from time import monotonic",
        "def f():\n    import socket",
        "import fencebroker.client",
        "from fencebroker import client",
        "from fencebroker import fds",
        "import fencebrokerd.shell.loop",
        "from fencebrokerd import shell",
        "from . import model",
        "import logging",
        "import random",
        "import threading",
        "import msgpack",
        "x = open('/dev/null')",
        "x = __import__('time')",
        "print(1)",
        "key = id(object())",
    ],
)
def test_impurity_is_found(source: str) -> None:
    assert breaches_of_purity(source, *CORE_MAY_IMPORT)


@pytest.mark.parametrize(
    "source",
    [
        "import errno, heapq",
        "from collections.abc import Iterable",
        "from fencebroker.model import OK",
        "from fencebroker import model",
        "from fencebrokerd.core import effects as fx",
        "from fencebrokerd.core.fence import Fence",
    ],
)
def test_purity_is_accepted(source: str) -> None:
    assert breaches_of_purity(source, *CORE_MAY_IMPORT) == []


def test_an_extra_is_limited_to_its_names() -> None:
    extras = {"os": frozenset({"strerror"})}
    assert breaches_of_purity("import os\nx = os.strerror(2)", extras=extras) == []
    assert breaches_of_purity("from os import strerror", extras=extras) == []
    assert breaches_of_purity("import os\nx = os.getpid()", extras=extras) == ["line 2: uses os.getpid"]
    assert breaches_of_purity("from os import getpid", extras=extras) == ["line 1: imports os.getpid"]


@pytest.mark.parametrize(
    "source", ["import fencebrokerd", "from fencebrokerd.core import state", "def f():\n    from fencebrokerd import cli"]
)
def test_an_import_of_the_daemon_is_found(source: str) -> None:
    assert breaches_of_the_daemons_privacy(source)
    assert breaches_of_the_daemons_privacy("argv = ['python', '-m', 'fencebrokerd']") == []


@pytest.mark.parametrize(
    ("source", "in_fds_too"),
    [
        ("sock.sendmsg([b''])", False),
        ("x = sock.recvmsg", False),
        ("getattr(sock, 'recvmsg')(1)", False),
        ("from socket import SCM_RIGHTS", False),
        ("os.eventfd_write(fd, 1)", False),
        ("fd = os.eventfd(0)", True),
        ("socket.recv_fds(sock, 1, 1)", True),
        ("from socket import send_fds", True),
        ("import msgpack\nu = msgpack.Unpacker()", True),
        ("import time\nt = time.time()", True),
    ],
)
def test_a_banned_call_is_found(source: str, in_fds_too: bool) -> None:
    assert breaches_of_the_bans(source)
    assert bool(breaches_of_the_bans(source, RESERVED)) is in_fds_too


def test_an_empty_folder_satisfies_nothing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match="holds no module"):
        modules(tmp_path)


# The tree keeps them


def breaches(folder: pathlib.Path, found: dict[pathlib.Path, list[str]]) -> list[str]:
    return [f"{path.relative_to(folder.parent)}, {text}" for path, texts in found.items() for text in texts]


def test_the_core_is_pure() -> None:
    core = package_folder("fencebrokerd") / "core"
    found = {path: breaches_of_purity(path.read_text("utf-8"), *CORE_MAY_IMPORT) for path in modules(core)}
    assert breaches(core, found) == []


@pytest.mark.parametrize("name", sorted(LIBRARY_EXTRAS))
def test_the_shared_part_of_the_library_is_pure(name: str) -> None:
    path = package_folder("fencebroker") / name
    ours = [f"fencebroker.{other.removesuffix('.py')}" for other in LIBRARY_EXTRAS]
    assert breaches_of_purity(path.read_text("utf-8"), *ours, extras=LIBRARY_EXTRAS[name]) == []


def test_the_library_never_imports_the_daemon() -> None:
    folder = package_folder("fencebroker")
    found = {path: breaches_of_the_daemons_privacy(path.read_text("utf-8")) for path in modules(folder)}
    assert breaches(folder, found) == []


@pytest.mark.parametrize("name", ["fencebroker", "fencebrokerd"])
def test_descriptors_travel_in_one_place(name: str) -> None:
    folder = package_folder(name)
    found = {}
    for path in modules(folder):
        allowed = RESERVED_FOR.get(f"{name}/{path.relative_to(folder)}", frozenset())
        found[path] = breaches_of_the_bans(path.read_text("utf-8"), allowed)
    assert breaches(folder, found) == []


def test_the_exceptions_are_still_needed() -> None:
    for name, allowed in RESERVED_FOR.items():
        package, _, module = name.partition("/")
        used = {mention for _, mention in mentioned((package_folder(package) / module).read_text("utf-8"))}
        assert used & allowed, f"{name} uses none of {sorted(allowed)}; take it out of RESERVED_FOR"


#: What of other people's code runs in the daemon; each of them can be attacked through it.
IN_THE_DAEMON: Final = frozenset({"click", "msgpack"})


def test_the_daemon_runs_little_code_of_others() -> None:
    folder = package_folder("fencebrokerd")
    used = {name.partition(".")[0] for path in modules(folder) for _, name in imported(path.read_text("utf-8"))}
    assert used - sys.stdlib_module_names - {"fencebroker", "fencebrokerd"} == IN_THE_DAEMON


def test_each_dependency_has_a_reason_and_a_lower_bound() -> None:
    path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    section = path.read_text("utf-8").split("\ndependencies = [", 1)[1].split("]", 1)[0]
    lines = [line.strip() for line in section.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert re.fullmatch(r'"[a-z-]+>=[\d.]+",\s+# \S.*', line), line


def test_daemon_is_a_folder_and_not_a_package() -> None:
    # PyPI's python-daemon installs a package of that name; were ours one too, the two would share a folder.
    root = package_folder("fencebrokerd").parent
    if root.name == "daemon":  # a checkout
        assert not (root / "__init__.py").exists()
        assert [path.name for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"] == ["fencebrokerd"]
    else:  # installed
        assert not (root / "daemon" / "fencebrokerd").exists()


@pytest.mark.parametrize("name", ["fencebroker", "fencebrokerd"])
def test_both_packages_say_that_they_are_typed(name: str) -> None:
    assert (package_folder(name) / "py.typed").is_file()


def test_importing_the_library_loads_the_standard_library_and_msgpack_only() -> None:
    code = "import sys, json; before = set(sys.modules); import fencebroker; print(json.dumps(sorted(set(sys.modules) - before)))"
    child = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=10, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(child.stdout)}
    assert {"fencebroker", "msgpack"} <= loaded
    # The compiled part of msgpack brings the runtime of the compiler that made it; multiprocessing gives __main__ a second name.
    foreign = loaded - sys.stdlib_module_names - {"fencebroker", "msgpack", "cython_runtime", "__mp_main__"}
    assert {name for name in foreign if not name.startswith("_cython_")} == set()
