"""What a received descriptor is: ours by the kernel's word alone, never by a number that somebody else may have now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

import pytest

from fencebroker.fds import OwnedFd, new_fence_eventfd, recv_packet, send_packet, status_word, write_status
from fencebrokerd.core import effects as fx
from fencebrokerd.shell.identity import LAZY, RECENT, Identity, cookie_of
from tests.helpers import descriptors, eventfd_id, not_run
from tests.sockets.scarcity import descriptors_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["asked first", "by number only"])
def identity(request: pytest.FixtureRequest) -> Identity:
    """With F_DUPFD_QUERY, and as on a kernel before 6.10."""
    identity = Identity()
    if request.param == "by number only":
        identity._can_compare = False
    elif not identity._can_compare:
        not_run("this kernel has no F_DUPFD_QUERY")
    return identity


@pytest.fixture
def make() -> Iterator[Callable[[], int]]:
    """Make eventfds that are closed at the end."""
    owned: list[OwnedFd] = []

    def make() -> int:
        owned.append(OwnedFd(new_fence_eventfd()))
        return owned[-1].fileno()

    yield make
    for fd in owned:
        fd.close()


def test_a_copy_is_recognised_while_ours_is_open(identity: Identity, make: Callable[[], int]) -> None:
    ours = {handle: make() for handle in range(1, 20)}
    for handle, fd in ours.items():
        identity.add_eventfd(handle, fd)
    for handle, fd in ours.items():
        with OwnedFd(os.dup(fd)) as copy:
            assert identity.identify(copy.fileno()) == fx.KnownFence(handle, 0)


def test_one_that_went_through_a_socket(identity: Identity, make: Callable[[], int]) -> None:
    fd = make()
    identity.add_eventfd(7, fd)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        send_packet(left, b"x", [fd])
        _, (copy,) = recv_packet(right)
    with copy:
        assert identity.identify(copy.fileno()) == fx.KnownFence(7, 0)


@pytest.mark.parametrize("status", [1, -5, -4095])
def test_what_it_carries_is_said(identity: Identity, make: Callable[[], int], status: int) -> None:
    fd = make()
    identity.add_eventfd(7, fd)
    write_status(fd, status_word(status))
    for _ in range(3):
        assert identity.identify(fd) == fx.KnownFence(7, status)
        os.eventfd_read(fd)


def test_a_forged_count_is_no_status(identity: Identity, make: Callable[[], int]) -> None:
    fd = make()
    identity.add_eventfd(7, fd)
    os.eventfd_write(fd, 3)
    assert identity.identify(fd) == fx.KnownFence(7, None)


def test_a_reused_number_of_the_kernel_is_not_ours(identity: Identity) -> None:
    """eventfd-id is unique while the file is open anywhere, and given out again right after."""
    reused = False
    for handle in range(1, 200):
        ours = OwnedFd(new_fence_eventfd())
        identity.add_eventfd(handle, ours.fileno())
        number = eventfd_id(ours.fileno())
        if handle % 2:
            identity.identify(ours.fileno())  # so that the number was read, and kept
        identity.remove_eventfd(handle)
        ours.close()
        with OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)) as foreign:
            reused |= eventfd_id(foreign.fileno()) == number
            assert isinstance(identity.identify(foreign.fileno()), fx.Foreign)
    assert reused, "the kernel gives numbers out again; otherwise this shows nothing"


def test_the_same_descriptor_number_with_another_file_is_not_ours(identity: Identity) -> None:
    ours = OwnedFd(new_fence_eventfd())
    number = ours.fileno()
    identity.add_eventfd(1, number)
    with OwnedFd(os.dup(number)) as copy:
        assert identity.identify(copy.fileno()) == fx.KnownFence(1, 0)
        identity.remove_eventfd(1)
        ours.close()
        assert isinstance(identity.identify(copy.fileno()), fx.Foreign), "without our copy nothing can be said of it"


def test_few_numbers_are_unread_after_catching_up(make: Callable[[], int]) -> None:
    identity = Identity()
    identity._can_compare = False
    fds = [make() for _ in range(LAZY + 100)]
    for handle, fd in enumerate(fds, 1):
        identity.add_eventfd(handle, fd)
    identity.catch_up()
    assert len(identity._unread) == LAZY
    with OwnedFd(os.dup(fds[0])) as oldest, OwnedFd(os.dup(fds[-1])) as newest:
        assert identity.identify(oldest.fileno()) == fx.KnownFence(1, 0)
        assert len(identity._unread) == LAZY, "its number was known: nothing else was read"
        assert identity.identify(newest.fileno()) == fx.KnownFence(len(fds), 0)
        assert len(identity._unread) == LAZY - 1, "the newest is looked at first"


F_OFD_SETLK: Final = 37  # Python knows it by name only where the C library did


def test_locks_that_hide_the_id_cost_their_holder_alone(make: Callable[[], int]) -> None:
    """The kernel lists the locks of a file before the eventfd's own lines, and only so much is read."""
    identity = Identity()
    identity._can_compare = False
    locked, other = make(), make()
    for handle, fd in enumerate((locked, other), 1):
        identity.add_eventfd(handle, fd)
    for number in range(200):
        fcntl.fcntl(locked, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 2 * number, 1, 0))
    with OwnedFd(os.dup(locked)) as one, OwnedFd(os.dup(other)) as two:
        assert identity.identify(two.fileno()) == fx.KnownFence(2, 0)
        assert isinstance(identity.identify(one.fileno()), fx.Foreign)
        assert identity.identify(two.fileno()) == fx.KnownFence(2, 0)
    identity.remove_eventfd(1)
    identity.remove_eventfd(2)


def test_only_a_few_are_asked_first(make: Callable[[], int]) -> None:
    identity = Identity()
    for handle in range(1, 50):
        identity.add_eventfd(handle, make())
    assert len(identity._recent) == RECENT
    for handle in range(1, 50):
        identity.remove_eventfd(handle)
    assert not any((identity._recent, identity.fds, identity._unread, identity._handles))


def test_ids_of_what_is_gone_are_forgotten(make: Callable[[], int]) -> None:
    """Some at a time, and none of them is ever found."""
    identity = Identity()
    for handle in range(1, 400):
        fd = make()
        identity.add_eventfd(handle, fd)
        assert identity.eventfd_id(handle) > 0
        assert identity.identify(fd) == fx.KnownFence(handle, 0)
        identity.remove_eventfd(handle)
        assert isinstance(identity.identify(fd), fx.Foreign)
        assert len(identity._handles) <= 66


def test_a_timelines_descriptor_by_any_copy_and_by_its_end_only(identity: Identity) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for number, (ours, theirs) in enumerate(pairs, 1):
            stack.enter_context(ours)
            stack.enter_context(theirs)
            identity.add_socket(number, cookie_of(theirs))
        for number, (ours, theirs) in enumerate(pairs, 1):
            with OwnedFd(os.dup(theirs.fileno())) as copy:
                assert identity.identify(copy.fileno()) == fx.KnownTimeline(number)
            assert isinstance(identity.identify(ours.fileno()), fx.Foreign), "the broker's end is not shown by anybody"
        identity.remove_socket(2)
        assert isinstance(identity.identify(pairs[1][1].fileno()), fx.Foreign)
        assert identity.identify(pairs[2][1].fileno()) == fx.KnownTimeline(3)


def test_a_socket_is_left_as_it_was(identity: Identity) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        right.send(b"unread")
        identity.identify(left.fileno())
        assert left.recv(100) == b"unread"


# -- what is foreign


def pipe(stack: contextlib.ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, writer)
    return reader


def path_of_an_eventfd(stack: contextlib.ExitStack) -> int:
    fd = new_fence_eventfd()
    stack.callback(os.close, fd)
    return os.open(f"/proc/self/fd/{fd}", os.O_PATH)


FOREIGN: Final[dict[str, tuple[Callable[[contextlib.ExitStack], int], str | None]]] = {
    "pipe": (pipe, "a pipe"),
    "file": (lambda stack: os.open(__file__, os.O_RDONLY), "a file"),
    "O_PATH of an eventfd": (path_of_an_eventfd, "an eventfd that cannot be looked at"),
    "folder": (lambda stack: os.open("/", os.O_RDONLY | os.O_DIRECTORY), "a file"),
    "null": (lambda stack: os.open("/dev/null", os.O_RDWR), "a file"),
    "memfd": (lambda stack: os.memfd_create("anon_inode:[eventfd]"), "a file"),
    "tcp": (lambda stack: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), "a socket that is no timeline of this broker"),
    "udp": (lambda stack: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).detach(), "a socket that is no timeline of this broker"),
    "netlink": (lambda stack: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(), "a socket that is no timeline of this broker"),
    "unix": (lambda stack: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(), "a socket that is no timeline of this broker"),
    "epoll": (lambda stack: os.dup(stack.enter_context(select.epoll()).fileno()), "an anon_inode:[eventpoll]"),
    "pidfd": (lambda stack: os.pidfd_open(os.getpid()), None),
    "proc": (lambda stack: os.open("/proc/self/mem", os.O_RDONLY), "a file"),
    "O_PATH of a file": (lambda stack: os.open("/etc", os.O_PATH), "a file"),
    "plain eventfd": (lambda stack: os.eventfd(0, os.EFD_CLOEXEC), "an eventfd of another broker or of none"),
    "eventfd with a count": (lambda stack: os.eventfd(5, os.EFD_CLOEXEC | os.EFD_SEMAPHORE), "an eventfd of another broker or of none"),
    "an active fence": (lambda stack: new_fence_eventfd(), "an eventfd of another broker or of none"),
}


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_what_is_foreign_and_what_it_is(identity: Identity, make: Callable[[], int], kind: str) -> None:
    identity.add_eventfd(1, make())
    factory, what = FOREIGN[kind]
    with contextlib.ExitStack() as stack, OwnedFd(factory(stack)) as fd:
        before = descriptors()
        reference = identity.identify(fd.fileno())
        assert isinstance(reference, fx.Foreign)
        assert what is None or reference.what == what
        assert descriptors() == before


def test_a_socket_opened_by_its_path_alone(identity: Identity, folder: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/s")
        with OwnedFd(os.open(f"{folder}/s", os.O_PATH)) as fd:
            assert isinstance(identity.identify(fd.fileno()), fx.Foreign)


@pytest.mark.parametrize("status", [1, -1, -5, -4095])
def test_a_forgotten_fence_is_known_by_its_own_count(identity: Identity, make: Callable[[], int], status: int) -> None:
    fd = make()
    write_status(fd, status_word(status))
    assert identity.identify(fd) == fx.DetachedFence(status)


def test_a_plain_eventfd_with_the_count_of_a_status_is_no_fence(identity: Identity) -> None:
    """A read of it takes everything: it is no sync_file."""
    with OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) as fd:
        os.eventfd_write(fd.fileno(), status_word(1))
        assert isinstance(identity.identify(fd.fileno()), fx.Foreign)


def test_at_the_descriptor_limit_it_answers_all_the_same(identity: Identity, make: Callable[[], int]) -> None:
    fds = [make() for _ in range(2 * RECENT)]
    for handle, fd in enumerate(fds, 1):
        identity.add_eventfd(handle, fd)
    null = os.open("/dev/null", os.O_RDONLY)
    with OwnedFd(os.dup(fds[0])) as copy, OwnedFd(null) as foreign, descriptors_left(0):
        reference = identity.identify(copy.fileno())
        assert reference == fx.KnownFence(1, 0) or (isinstance(reference, fx.Foreign) and "descriptor limit" in reference.what)
        assert isinstance(identity.identify(foreign.fileno()), fx.Foreign)
