"""Sockets passed by a service manager are checked before anybody is served on them, and readiness is said without waiting for anybody."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import pytest

from fencebroker.fds import OwnedFd
from fencebrokerd.config import ConfigError
from fencebrokerd.keeper import Page
from fencebrokerd.shell.notify import check_listener, notify, passed_sockets, say_ready
from tests.helpers import assert_closed_on_exec, assert_not_fd, wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def seqpacket(folder: str, *, listening: bool = True) -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(f"{folder}/s")
    if listening:
        sock.listen()
    os.set_inheritable(sock.fileno(), True)  # as a service manager passes it
    return sock.detach()


def test_a_listening_one_is_taken_and_closed_on_exec(folder: str) -> None:
    fd = seqpacket(folder)
    with check_listener(fd) as sock:
        assert sock.fileno() == fd
        assert_closed_on_exec(fd)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(f"{folder}/s")
            sock.accept()[0].close()


WRONG: Final[dict[str, tuple[Callable[[str], int], str]]] = {
    "not listening": (lambda folder: seqpacket(folder, listening=False), "must be a listening socket, not a connection (Accept=no)"),
    "stream": (lambda folder: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(), "not AF_UNIX SOCK_STREAM"),
    "datagram": (lambda folder: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(), "not AF_UNIX SOCK_DGRAM"),
    "tcp": (lambda folder: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), "not AF_INET SOCK_STREAM"),
    "netlink": (lambda folder: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(), "must be a SOCK_SEQPACKET Unix socket"),
    "a file": (lambda folder: os.open("/dev/null", os.O_RDWR), "is not a socket"),
    "an eventfd": (lambda folder: os.eventfd(0), "is not a socket"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_what_cannot_be_served_on_is_refused_by_what_it_is(folder: str, kind: str) -> None:
    make, said = WRONG[kind]
    with OwnedFd(make(folder)) as fd:
        with pytest.raises(ConfigError) as refused:
            check_listener(fd.fileno())
        assert str(refused.value).startswith(f"LISTEN_FDS: descriptor {fd.fileno()} ")
        assert said in str(refused.value)
        os.fstat(fd.fileno())  # it is still its owner's


def test_a_number_that_is_not_open() -> None:
    with pytest.raises(ConfigError, match="LISTEN_FDS: descriptor 1048576 is not a socket: Bad file descriptor"):
        check_listener(2**20)


@pytest.mark.parametrize(
    ("pid", "count"), [(None, "1"), ("1", "1"), ("", "1"), ("parent", "1"), ("self", None), ("self", ""), ("self", "0")]
)
def test_what_is_meant_for_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str | None) -> None:
    if pid is not None:
        monkeypatch.setenv("LISTEN_PID", {"self": str(os.getpid()), "parent": str(os.getppid())}.get(pid, pid))
    if count is not None:
        monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "broker")
    assert passed_sockets(os.getpid()) == []
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys(), "nobody after us takes them for theirs"


@pytest.mark.parametrize("count", ["-1", "one", "1.0", " 1", "65", "999999999999999999999"])
def test_a_count_that_is_none(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(ConfigError, match=r"LISTEN_FDS: must be a count of descriptors, not "):
        passed_sockets(os.getpid())


# -- readiness


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.words.release()
    page.owners.release()
    page.map.close()
    os.close(page.timer)
    os.close(page.fd)


def test_ready_is_one_newline_and_the_end(page: Page) -> None:
    reader, writer = os.pipe()
    with OwnedFd(reader):
        say_ready(writer, page)
        assert_not_fd(writer)
        wait_readable(reader)
        assert os.read(reader, 10) == b"\n"
        assert os.read(reader, 10) == b""
        say_ready(writer, page)  # the next broker finds that it was said
        assert_not_fd(writer)


def test_nobody_needs_to_listen(monkeypatch: pytest.MonkeyPatch, folder: str, page: Page) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    say_ready(writer, page)
    for address in ("", f"{folder}/absent", "@fencebroker-absent", "x" * 200, "@" + "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_hears_it_and_a_busy_one_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, folder: str, page: Page, abstract: bool
) -> None:
    address = f"\0{folder}" if abstract else f"{folder}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        for _ in range(1_000):  # its queue is full after a few
            notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        with contextlib.suppress(BlockingIOError):
            while True:
                manager.recv(100, socket.MSG_DONTWAIT)
        say_ready(None, page)
        assert manager.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()
