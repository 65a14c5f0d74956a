"""One client's connection: who it is, what waits for it, and when it is told to go."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fencebroker.fds import NOWAIT, close_all, recv_packet
from fencebrokerd.shell.peer import Credentials, Flight, Peer, TooSlow, printable
from tests.helpers import descriptors, not_run, same_file
from tests.sockets.scarcity import descriptors_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers import Spawn


class Ends:
    """A peer and the client's end of its socket."""

    def __init__(
        self, limit_bytes: int = 10_000, limit_descriptors: int = 16, flight: Flight | None = None, limit_user: int = 1000
    ) -> None:
        self.ours, self.client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer = Peer(1, self.ours, 0, limit_bytes, limit_descriptors, Flight(1000) if flight is None else flight, limit_user)

    def close(self) -> None:
        self.peer.close_queue()
        self.ours.close()
        self.client.close()

    def fill(self) -> int:
        """Send until the socket takes no more; returns how many packets it took."""
        n = 0
        while not self.peer.send(b"x" * 100, [], now=5):
            n += 1
        return n

    def take(self) -> tuple[bytes, int]:
        """Read one packet as the client; returns it and how many descriptors came along."""
        packet, fds = recv_packet(self.client, NOWAIT)
        close_all(fds)
        return packet, len(fds)


@pytest.fixture
def make() -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(**limits: Any) -> Ends:
        made.append(Ends(**limits))
        return made[-1]

    yield make
    for ends in made:
        ends.close()


@pytest.fixture
def fence() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_what_fits_is_sent_at_once(make: Callable[..., Ends], fence: int) -> None:
    ends = make()
    assert not ends.peer.send(b"one", [], now=5)
    assert not ends.peer.send(b"two", [fence, fence], now=5)
    assert not ends.peer.queue
    assert ends.take() == (b"one", 0)
    _, fds = recv_packet(ends.client)
    assert all(same_file(fd.fileno(), fence) for fd in fds)
    close_all(fds)


def test_what_does_not_fit_waits_in_order(make: Callable[..., Ends]) -> None:
    ends = make()
    n = ends.fill()
    assert (len(ends.peer.queue), ends.peer.queued_bytes, ends.peer.stalled_at) == (1, 100, 5)
    assert not ends.peer.send(b"last", [], now=6), "the queue was in use already"
    assert not ends.peer.flush(now=7)
    assert ends.peer.stalled_at == 5, "nothing was taken"
    for _ in range(n):
        assert ends.take() == (b"x" * 100, 0)
    assert ends.peer.flush(now=8)
    assert (ends.peer.queued_bytes, ends.peer.stalled_at) == (0, 0)
    assert [ends.take()[0] for _ in range(2)] == [b"x" * 100, b"last"]


def test_progress_moves_the_moment_it_stalled(make: Callable[..., Ends]) -> None:
    ends = make(limit_bytes=10**6)
    n = ends.fill()
    for _ in range(n):
        ends.peer.send(b"y", [], now=5)
    for _ in range(n // 2):
        ends.take()
    assert not ends.peer.flush(now=9)
    assert ends.peer.stalled_at == 9


def test_too_many_bytes_is_the_end_of_patience(make: Callable[..., Ends]) -> None:
    ends = make(limit_bytes=250)
    ends.fill()
    ends.peer.send(b"x" * 150, [], now=5)
    assert ends.peer.queued_bytes == 250
    with pytest.raises(TooSlow, match="it left 250 bytes unread"):
        ends.peer.send(b"x", [], now=5)
    assert ends.peer.queued_bytes == 250


def test_queued_descriptors_are_copies_and_are_closed_when_sent(make: Callable[..., Ends], fence: int) -> None:
    ends = make()
    n = ends.fill()
    before = descriptors()
    ends.peer.send(b"gift", [fence, fence], now=5)
    assert len(descriptors()) == len(before) + 2
    for _ in range(n):
        ends.take()
    assert ends.peer.flush(5)
    assert [ends.take() for _ in range(2)] == [(b"x" * 100, 0), (b"gift", 2)]
    assert descriptors() == before


def test_a_queue_that_is_given_up_closes_its_copies(make: Callable[..., Ends], fence: int) -> None:
    ends = make()
    ends.fill()
    before = descriptors()
    for _ in range(4):
        ends.peer.send(b"gift", [fence] * 3, now=5)
    ends.peer.close_queue()
    assert descriptors() == before


@pytest.mark.parametrize("per_packet", [1, 2, 8, 16])
def test_exactly_the_limit_of_descriptors_may_be_unread(make: Callable[..., Ends], fence: int, per_packet: int) -> None:
    ends = make(limit_descriptors=16)
    for _ in range(16 // per_packet):
        ends.peer.send(b"x", [fence] * per_packet, now=5)
    assert ends.peer.unread == 16
    with pytest.raises(TooSlow, match="it left answers with 16 descriptors unread"):
        ends.peer.send(b"x", [fence], now=5)
    ends.take()
    ends.peer.send(b"x", [fence] * per_packet, now=5)
    with pytest.raises(TooSlow):
        ends.peer.send(b"x", [fence], now=5)
    assert not ends.peer.send(b"no descriptors", [], now=5)


def test_one_answer_with_more_than_the_limit_passes_alone(make: Callable[..., Ends], fence: int) -> None:
    """The limit bounds what is left unread, not what one answer carries."""
    ends = make(limit_descriptors=16)
    ends.peer.send(b"x", [fence] * 100, now=5)
    with pytest.raises(TooSlow):
        ends.peer.send(b"x", [fence], now=5)
    ends.take()
    ends.peer.send(b"x", [fence] * 100, now=5)


def test_what_was_read_is_counted_off_packet_by_packet(make: Callable[..., Ends], fence: int) -> None:
    ends = make(limit_descriptors=16)
    for _ in range(3):
        ends.peer.send(b"x", [fence] * 4, now=5)
    for _ in range(2_000):
        ends.peer.send(b"x", [fence] * 4, now=5)
        assert ends.take() == (b"x", 4)
    assert len(ends.peer.sent) <= 1_100
    assert ends.peer.unread >= 12


def test_packets_without_descriptors_do_not_pile_up_in_the_books(make: Callable[..., Ends]) -> None:
    ends = make()
    for _ in range(5_000):
        ends.peer.send(b"x", [], now=5)
        ends.take()
    assert len(ends.peer.sent) <= 1_100


@pytest.mark.parametrize("size", [200, 1_000, 5_000, 16_000])
def test_large_packets_unread_never_make_it_count_too_few(make: Callable[..., Ends], fence: int, size: int) -> None:
    ends = make(limit_descriptors=16)
    ends.peer.send(b"x" * size, [fence] * 8, now=5)
    ends.peer.send(b"x" * size, [], now=5)
    ends.peer.send(b"x", [fence] * 8, now=5)
    with pytest.raises(TooSlow):
        ends.peer.send(b"x", [fence], now=5)
    assert ends.peer.unread == 16


@pytest.mark.parametrize("size", [64, 200, 1_000, 5_000, 12_500, 16_384])
def test_large_packets_unread_are_not_taken_for_descriptors(make: Callable[..., Ends], fence: int, size: int) -> None:
    ends = make(limit_descriptors=16)
    for _ in range(4):
        ends.peer.send(b"x", [fence] * 4, now=5)
        ends.take()
    for _ in range(4):
        ends.peer.send(b"x" * size, [], now=5)
        ends.peer.send(b"x", [fence] * 4, now=5)
    assert ends.peer.unread == 16
    with pytest.raises(TooSlow):
        ends.peer.send(b"x", [fence], now=5)


def test_queued_descriptors_count_too(make: Callable[..., Ends], fence: int) -> None:
    ends = make(limit_descriptors=16)
    ends.fill()
    ends.peer.send(b"x", [fence] * 16, now=5)
    with pytest.raises(TooSlow):
        ends.peer.send(b"x", [fence], now=5)


def test_no_descriptor_left_for_a_copy_leaves_nothing(make: Callable[..., Ends], fence: int) -> None:
    ends = make()
    ends.fill()
    before, queued = descriptors(), ends.peer.queued_bytes
    with descriptors_left(3), pytest.raises(OSError, match="Too many open files") as refused:
        ends.peer.send(b"gift", [fence] * 10, now=5)
    assert refused.value.errno == errno.EMFILE
    assert descriptors() == before
    assert ends.peer.queued_bytes == queued


def test_a_peer_that_is_gone(make: Callable[..., Ends], fence: int) -> None:
    ends = make()
    ends.client.close()
    for fds in ([], [fence]):
        with pytest.raises(BrokenPipeError):
            ends.peer.send(b"x", fds, now=5)
    poll = select.poll()
    poll.register(ends.ours, select.POLLIN)
    assert poll.poll(0)[0][1] & select.POLLHUP


# -- who it is


def test_credentials_are_the_kernels(make: Callable[..., Ends]) -> None:
    who = make().peer.credentials
    assert (who.pid, who.uid, who.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert who.groups == frozenset(os.getgroups())
    with open("/proc/self/comm", encoding="ascii") as stream:
        assert who.comm == stream.read().rstrip("\n")


@pytest.mark.parametrize("groups", [(), (7,), tuple(range(100, 356))])
def test_groups_of_another_process(spawn: Spawn, folder: str, groups: tuple[int, ...]) -> None:
    if os.getuid() != 0:
        not_run("only root can choose groups")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/s")
        os.chmod(folder, 0o711)
        os.chmod(f"{folder}/s", 0o777)
        listener.listen()
        child = spawn(
            f"""
            import os, socket, sys
            os.setgroups({groups!r}); os.setresgid(50, 50, 50); os.setresuid(1234, 1234, 1234)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect({folder + "/s"!r})
            sys.stdin.read()
            """
        )
        connection, _ = listener.accept()
        with connection:
            who = Credentials(connection)
        assert (who.pid, who.uid, who.gid, who.groups) == (child.pid, 1234, 50, frozenset(groups))


def test_more_groups_than_fit_count_for_none(spawn: Spawn, folder: str) -> None:
    if os.getuid() != 0:
        not_run("only root can choose groups")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        spawn(
            f"""
            import os, socket, sys
            os.setgroups(range(1000))
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect({folder + "/s"!r})
            sys.stdin.read()
            """
        )
        connection, _ = listener.accept()
        with connection:
            assert Credentials(connection).groups == frozenset()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("capture.py", "capture.py"), ("a\x1b[31mb", "a?[31mb"), ("a\nb\rc\0", "a?b?c?"), ("Kamera größer", "Kamera größer")],
)
def test_a_name_cannot_move_a_cursor(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_command_that_names_itself_oddly(spawn: Spawn, folder: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        spawn(
            f"""
            import socket, sys
            open("/proc/self/comm", "wb").write(b"\\x1b[31m\\xff\\n evil")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect({folder + "/s"!r})
            sys.stdin.read()
            """
        )
        connection, _ = listener.accept()
        with connection:
            comm = Credentials(connection).comm
    assert comm.isprintable()
    assert "\x1b" not in comm


# Descriptors on their way, by user


def test_a_users_sessions_count_together(make: Callable[..., Ends], fence: int) -> None:
    """What one session left unread is missing for another; what is taken comes back."""
    flight = Flight(1000)
    one, other = make(flight=flight, limit_user=10), make(flight=flight, limit_user=10)
    one.peer.send(b"x", [fence] * 8, now=5)
    other.peer.send(b"x", [fence] * 2, now=5)
    with pytest.raises(TooSlow, match="its user left too many descriptors unread"):
        other.peer.send(b"x", [fence], now=5)
    assert other.take() == (b"x", 2)
    other.peer.send(b"x", [fence] * 2, now=5)
    assert one.take() == (b"x", 8)
    with pytest.raises(TooSlow):  # only a session that is written to is looked at again
        other.peer.send(b"x", [fence], now=5)
    one.peer.send(b"x", [fence] * 8, now=5)


def test_a_session_that_ends_with_something_unread_is_kept(make: Callable[..., Ends], fence: int) -> None:
    """The client is told the end and can still read; when it has, or closes its end, its user owes nothing, and an edge of epoll says so."""
    for closes in (False, True):
        flight = Flight(1000)
        ends = make(flight=flight, limit_user=10)
        number = ends.ours.fileno()
        ends.peer.send(b"x", [fence] * 8, now=5)
        assert not ends.peer.leave()
        assert len(flight) == 1
        assert flight.keeps(number)
        assert not flight.has_room(os.getuid(), 3, 10)
        with select.epoll() as epoll:
            epoll.register(number, select.EPOLLOUT | select.EPOLLET)
            epoll.poll(0)
            assert not epoll.poll(0)
            assert not flight.is_settled(number)
            with pytest.raises(BrokenPipeError):
                ends.client.send(b"more")
            if closes:
                ends.client.close()
            else:
                assert ends.take() == (b"x", 8)
                assert ends.client.recv(10) == b""
            assert epoll.poll(5)[0][0] == number
        assert flight.is_settled(number)
        assert flight.let_go(number) is ends.ours
        assert flight.has_room(os.getuid(), 10, 10)


def test_a_session_that_read_everything_just_ends(make: Callable[..., Ends], fence: int) -> None:
    flight = Flight(1000)
    ends = make(flight=flight)
    ends.peer.send(b"x", [fence] * 8, now=5)
    ends.take()
    assert ends.peer.leave()
    assert len(flight) == 0
    gone = make(flight=flight)
    gone.peer.send(b"x", [fence] * 8, now=5)
    gone.client.close()
    gone.peer.leave()
    for sock in flight.close():
        assert sock is gone.ours
    assert flight.has_room(os.getuid(), 1000, 1000)


def test_users_share_what_may_be_in_flight() -> None:
    """By the rule of the accounts: who comes later has its share of what is left."""
    flight = Flight(1000)
    assert flight.has_room(1, 1000, 2000)
    flight.count(1, 600)
    assert flight.has_room(2, 133, 2000)
    assert not flight.has_room(2, 134, 2000)
    flight.count(1, -600)
    assert flight.has_room(2, 1000, 2000)


def test_a_number_that_is_anothers_by_now(monkeypatch: pytest.MonkeyPatch, spawn: Spawn, folder: str) -> None:
    """A process that connected and died may have left its number to another: that one's name is not taken for the client's."""
    path = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        child = spawn(
            """
            import socket, sys
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(sys.argv[1])
            print("connected", flush=True)
            sys.stdin.read()
            sock.close()
            """,
            path,
        )
        child.line()
        with listener.accept()[0] as sock:
            assert Credentials(sock).comm.startswith("python")
            child.finish()
            monkeypatch.setattr("fencebrokerd.shell.peer._comm", lambda pid: "somebody else")
            assert Credentials(sock).comm == "?"
            assert Credentials(sock).pid == child.pid
