"""Packets and the descriptors that travel with them, over real socketpairs."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from fencebroker.fds import NOWAIT, PEEK, Truncated, close_all, drop_packet, recv_packet, send_packet
from fencebroker.wire import PACKET_BYTES
from tests.helpers import assert_closed_on_exec, descriptors, same_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import Spawn

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.fixture
def gift() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_bytes_and_descriptors_arrive_together(pair: Pair, gift: int) -> None:
    left, right = pair
    send_packet(left, b"first")
    send_packet(left, b"second", [gift])
    send_packet(left, b"third")
    assert recv_packet(right) == (b"first", [])
    packet, (fd,) = recv_packet(right)
    assert packet == b"second"
    assert fd.fileno() != gift
    assert same_file(fd.fileno(), gift)
    fd.close()
    assert recv_packet(right) == (b"third", [])


def test_what_arrives_is_closed_on_exec(pair: Pair, gift: int) -> None:
    os.set_inheritable(gift, True)
    send_packet(pair[0], b"x", [gift])
    _, fds = recv_packet(pair[1])
    assert_closed_on_exec(*[fd.fileno() for fd in fds])
    close_all(fds)


def test_the_senders_copy_stays_the_senders(pair: Pair, gift: int) -> None:
    send_packet(pair[0], b"x", [gift])
    os.fstat(gift)
    _, fds = recv_packet(pair[1])
    close_all(fds)
    os.fstat(gift)


def test_as_many_as_the_kernel_allows_and_not_one_more(pair: Pair, gift: int) -> None:
    left, right = pair
    send_packet(left, b"x", [gift] * 253)
    _, fds = recv_packet(right)
    assert len(fds) == 253
    close_all(fds)
    with pytest.raises(OSError, match="Invalid argument"):
        send_packet(left, b"x", [gift] * 254)
    with pytest.raises(BlockingIOError):
        recv_packet(right, NOWAIT)


def test_a_closed_descriptor_is_not_sent(pair: Pair) -> None:
    with pytest.raises(OSError, match="Bad file") as refused:
        send_packet(pair[0], b"x", [2**20])
    assert refused.value.errno == errno.EBADF


def test_an_empty_packet_is_refused_because_it_reads_like_the_end(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(ValueError, match="packet must not be empty"):
        send_packet(left, b"")
    with pytest.raises(BlockingIOError):
        recv_packet(right, NOWAIT)
    left.send(b"")
    assert recv_packet(right) == (b"", [])
    left.close()
    assert recv_packet(right) == (b"", [])


@pytest.mark.parametrize("size", [1, 2, 4_095, 4_096, PACKET_BYTES - 1, PACKET_BYTES])
def test_packets_up_to_the_limit(pair: Pair, size: int) -> None:
    send_packet(pair[0], b"x" * size)
    assert recv_packet(pair[1]) == (b"x" * size, [])


@pytest.mark.parametrize("size", [PACKET_BYTES + 1, PACKET_BYTES + 2, 65_536, 200_000])
def test_a_larger_one_is_truncated_and_leaks_nothing(pair: Pair, gift: int, size: int) -> None:
    before = descriptors()
    send_packet(pair[0], b"x" * size, [gift, gift])
    send_packet(pair[0], b"next")
    with pytest.raises(Truncated, match=f"longer than {PACKET_BYTES} bytes") as truncated:
        recv_packet(pair[1])
    assert len(truncated.value.fds) == 2
    assert not truncated.value.descriptors_lost
    close_all(truncated.value.fds)
    assert descriptors() == before
    assert recv_packet(pair[1]) == (b"next", [])


def test_descriptors_beside_an_empty_packet_are_owned(pair: Pair, gift: int) -> None:
    pair[0].sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [gift]))])
    packet, fds = recv_packet(pair[1])
    assert (packet, len(fds)) == (b"", 1)
    close_all(fds)


def test_two_control_messages_are_one_list(pair: Pair, gift: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [gift] * n)) for n in (1, 2)]
    pair[0].sendmsg([b"x"], rights)
    _, fds = recv_packet(pair[1])
    assert len(fds) == 3
    close_all(fds)


def test_credentials_beside_descriptors_are_passed_over(pair: Pair, gift: int) -> None:
    """A record that was not asked for comes first and takes room; the descriptors that fit are owned, a loss is seen."""
    left, right = pair
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    send_packet(left, b"x", [gift] * 3)
    _, fds = recv_packet(right)
    assert len(fds) == 3
    close_all(fds)
    before = descriptors()
    send_packet(left, b"x", [gift] * 253)
    with pytest.raises(Truncated) as truncated:
        recv_packet(right)
    assert truncated.value.descriptors_lost
    close_all(truncated.value.fds)
    assert descriptors() == before


def fill(sock: socket.socket) -> None:
    for _ in range(100_000):
        send_packet(sock, b"x", (), NOWAIT)


def test_nowait_does_not_wait(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(BlockingIOError):
        recv_packet(right, NOWAIT)
    while select.select([], [left], [], 0)[1]:
        send_packet(left, b"x", (), NOWAIT)
    with pytest.raises(BlockingIOError):
        fill(left)
    assert recv_packet(right) == (b"x", [])


def test_the_end_and_a_broken_pipe(pair: Pair, gift: int) -> None:
    left, right = pair
    send_packet(left, b"last words", [gift])
    left.close()
    packet, fds = recv_packet(right)
    assert packet == b"last words"
    close_all(fds)
    assert recv_packet(right) == (b"", [])
    poll = select.poll()
    poll.register(right, select.POLLIN)
    assert poll.poll(0)[0][1] & select.POLLHUP
    for fds_out in ((), (gift,)):
        with pytest.raises(BrokenPipeError):
            send_packet(right, b"x", fds_out)  # and no SIGPIPE


def test_a_peer_that_died_with_something_unread_is_a_reset_before_its_words(pair: Pair) -> None:
    left, right = pair
    send_packet(left, b"its words")
    send_packet(right, b"unread")
    left.close()
    with pytest.raises(ConnectionResetError):
        recv_packet(right)
    assert recv_packet(right) == (b"its words", [])
    assert recv_packet(right) == (b"", [])


def test_what_was_looked_at_goes_though_its_sender_died_with_something_unread(pair: Pair) -> None:
    left, right = pair
    for words in (b"its words", b"more"):
        send_packet(left, words)
    assert recv_packet(right, NOWAIT | PEEK) == (b"its words", [])
    send_packet(right, b"unread")
    left.close()
    drop_packet(right)
    assert recv_packet(right) == (b"more", [])


AT_THE_LIMIT = """
    import os, resource, socket, sys
    from fencebroker.fds import Truncated, close_all, recv_packet, send_packet

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gift = os.eventfd(0)
    n_free, n_sent = int(sys.argv[1]), int(sys.argv[2])
    for _ in range(3):
        send_packet(left, b"payload", [gift] * n_sent)
    open_before = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (gift + 1 + n_free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for _ in range(3):
        try:
            packet, fds = recv_packet(right)
            print("all", len(fds), packet)
        except Truncated as err:
            fds = err.fds
            print("lost", len(fds), err.packet, err.descriptors_lost)
        close_all(fds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    assert len(os.listdir("/proc/self/fd")) - 1 == open_before, os.listdir("/proc/self/fd")
    print("end")
"""


@pytest.mark.parametrize(("n_free", "n_sent"), [(0, 1), (0, 253), (1, 3), (2, 3), (100, 253), (3, 3)])
def test_at_the_descriptor_limit_a_loss_is_seen_and_nothing_leaks(spawn: Spawn, n_free: int, n_sent: int) -> None:
    child = spawn(AT_THE_LIMIT, n_free, n_sent)
    for _ in range(3):
        expected = f"all {n_sent} b'payload'" if n_free >= n_sent else f"lost {n_free} b'payload' True"
        assert child.line() == expected
    assert child.line() == "end"
    assert child.wait() == 0, child.log()


def test_a_queue_that_is_dropped_drops_its_descriptors(gift: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with left, right:
        for _ in range(10):
            send_packet(left, b"x", [writer])
        os.close(writer)
        assert not select.select([reader], [], [], 0)[0], "the writing end lives in the queue"
    assert select.select([reader], [], [], 5)[0]
    os.close(reader)
