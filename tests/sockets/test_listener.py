"""The path a broker listens on: one broker per path, a live one is not disturbed, a stale one is replaced, nothing else is touched."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fencebrokerd.config import ConfigError
from fencebrokerd.shell.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import Spawn


@pytest.fixture
def path(folder: str) -> Path:
    return Path(folder) / "broker"


@pytest.fixture
def listening(path: Path) -> Iterator[Listener]:
    listener = Listener(path, 0o600)
    yield listener
    listener.unlink()
    listener.socket.close()


def connect(path: Path, kind: int = socket.SOCK_SEQPACKET) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(str(path))


def refused(path: Path) -> str:
    """Fail to listen; returns why."""
    with pytest.raises(ConfigError) as error:
        Listener(path, 0o600)
    return str(error.value)


def test_it_listens_and_leaves_nothing_but_the_empty_lock(path: Path) -> None:
    listener = Listener(path, 0o600)
    connect(path)
    listener.unlink()
    listener.socket.close()
    assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["broker.lock"]
    assert (path.parent / "broker.lock").stat().st_size == 0


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_the_mode_is_as_told_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listener = Listener(path, mode)
        assert os.umask(0o077) == 0o077, "the umask is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    listener.unlink()
    listener.socket.close()


def test_a_live_one_is_not_disturbed(listening: Listener, path: Path) -> None:
    assert refused(path) == f"{path}: in use by a live broker; stop it first, or listen elsewhere"
    connect(path)


def test_one_that_listens_without_our_lock_is_live_too(path: Path) -> None:
    """As a service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()
        assert "in use by a live broker" in refused(path)
        connect(path)


def test_one_whose_queue_is_full_is_live_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
            waiting.connect(str(path))
            assert "in use by a live broker" in refused(path)
    os.unlink(path)


def test_a_stale_one_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    old = path.stat().st_ino
    listener = Listener(path, 0o600)
    assert path.stat().st_ino != old or stat.S_ISSOCK(path.stat().st_mode)
    connect(path)
    listener.unlink()
    listener.socket.close()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link to nothing", "link to a file"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        target = path.parent / "target"
        if kind == "link to a file":
            target.write_text("precious")
        path.symlink_to(target)
    before = path.lstat()
    assert refused(path) == f"{path}: exists and is not a socket; remove it or listen elsewhere"
    assert path.lstat() == before


def test_a_server_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        assert refused(path).startswith(f"{path}: exists and cannot be probed: ")
        connect(path, socket.SOCK_STREAM)


def test_a_lock_that_is_a_link_is_not_followed(path: Path) -> None:
    target = path.parent / "target"
    (path.parent / "broker.lock").symlink_to(target)
    assert "broker.lock" in refused(path)
    assert not target.exists()


def test_a_folder_that_is_missing_or_none(folder: str) -> None:
    assert refused(Path(folder) / "absent" / "broker").endswith("No such file or directory")
    Path(folder, "file").write_text("")
    assert refused(Path(folder) / "file" / "broker").endswith("Not a directory")


def test_a_path_that_is_too_long_says_so(folder: str) -> None:
    long = Path(folder) / ("x" * 100)
    assert "None" not in refused(long)
    assert "too long" in refused(long)
    assert not long.exists()


def test_after_a_refusal_the_path_can_be_used(path: Path) -> None:
    path.write_text("")
    for _ in range(3):
        refused(path)
    path.unlink()
    listener = Listener(path, 0o600)
    listener.unlink()
    listener.socket.close()


def test_only_its_own_socket_is_removed(listening: Listener, path: Path) -> None:
    path.unlink()
    path.write_text("somebody else's")
    listening.unlink()
    assert path.read_text() == "somebody else's"
    path.unlink()


def test_two_that_start_at_once_are_one(spawn: Spawn, path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from fencebrokerd.config import ConfigError
        from fencebrokerd.shell.listener import Listener
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            listener = Listener(Path(sys.argv[1]), 0o600)
        except ConfigError as err:
            print("refused" if "in use by a live broker" in str(err) else err, flush=True)
        else:
            print("listens", flush=True)
            sys.stdin.readline()
            listener.unlink()
    """
    children = [spawn(code, str(path)) for _ in range(4)]
    for child in children:
        assert child.line() == "ready"
    for child in children:
        child.send("go")
    assert sorted(child.line() for child in children) == ["listens", "refused", "refused", "refused"]
    connect(path)
