"""Sync_files between unrelated programs: over their own sockets, by inheritance, through a third process; and what they carry."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest

import fencebroker as fb
from tests.helpers import (
    LIMIT,
    BrokerProcess,
    Child,
    Spawn,
    StartBroker,
    assert_closed_on_exec,
    eventfd_id,
    same_file,
    wait_readable,
)

#: Waits with nothing but the standard library, and tells OK from an error by poll and fdinfo.
PLAIN_CONSUMER = """
    import array, os, select, socket, sys
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        payload, control, flags, _ = sock.recvmsg(100, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    fd = array.array("i", control[0][2])[0]
    print(payload.decode(), os.readlink(f"/proc/self/fd/{fd}"), flush=True)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        count = next(line for line in lines if line.startswith("eventfd-count"))
    top = int(count.split()[1], 16) >> 48
    print("OK" if top == 0xFFFF else f"error {top & 0x7FFF}", flush=True)
    assert not any(name.startswith("fencebroker") for name in sys.modules)
"""

PRODUCER = """
    import socket, sys
    import fencebroker as fb
    sock = socket.socket(fileno=int(sys.argv[1]))
    with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
        with timeline.export(1, name="frame-1") as frame, sock:
            fb.send_sync_file(sock, b"buffer 7", frame)
        print("sent", flush=True)
        for line in sys.stdin:
            verb, *numbers = line.split()
            getattr(timeline, verb)(*map(int, numbers))
            print("done", flush=True)
"""


def pair() -> tuple[socket.socket, socket.socket]:
    """Without a timeout: O_NONBLOCK would be the receiving process's too."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def start_both(spawn: Spawn, broker: BrokerProcess) -> tuple[Child, Child]:
    """A producer and a consumer with nothing in common but a socket."""
    ours, theirs = pair()
    with ours, theirs:
        producer = spawn(PRODUCER, ours.fileno(), pass_fds=[ours.fileno()], env=broker.env)
        consumer = spawn(PLAIN_CONSUMER, theirs.fileno(), pass_fds=[theirs.fileno()])
    assert producer.line() == "sent"
    assert consumer.line() == "buffer 7 anon_inode:[eventfd]"
    return producer, consumer


def test_a_consumer_needs_nothing_but_poll(spawn: Spawn, broker: BrokerProcess) -> None:
    """Two unrelated programs with only a socket between them; the consumer has no library, only an eventfd that becomes readable."""
    producer, consumer = start_both(spawn, broker)
    producer.send("advance 1")
    assert consumer.line() == "OK"
    consumer.finish()
    producer.finish()


def test_an_error_reaches_a_consumer_without_a_library(spawn: Spawn, broker: BrokerProcess) -> None:
    """The errno is in the descriptor itself."""
    producer, consumer = start_both(spawn, broker)
    producer.send(f"fail 1 {errno.EIO}")
    assert consumer.line() == f"error {errno.EIO}"
    producer.finish()


def test_a_dead_producer_is_an_error(spawn: Spawn, broker: BrokerProcess) -> None:
    """SIGKILL to the producer: what it owed ends with -ENOENT."""
    producer, consumer = start_both(spawn, broker)
    producer.kill()
    assert consumer.line() == f"error {errno.ENOENT}"


def test_a_broker_that_stops_is_an_error(spawn: Spawn, broker: BrokerProcess) -> None:
    """SIGTERM to the broker: -ECANCELED."""
    _, consumer = start_both(spawn, broker)
    broker.stop()
    assert consumer.line() == f"error {errno.ECANCELED}"


def test_workers_do_not_keep_a_dead_producers_timeline(spawn: Spawn, broker: BrokerProcess) -> None:
    """A producer with 8 forked workers is killed with SIGKILL: consumers wake with -ENOENT while the workers live."""
    ours, theirs = pair()
    with ours, theirs:
        producer = spawn(
            """
            import os, signal, socket, sys
            import fencebroker as fb
            sock = socket.socket(fileno=int(sys.argv[1]))
            broker = fb.connect()
            timeline = broker.create_timeline("camera0")
            frame = timeline.export(1)
            for _ in range(8):
                if not (pid := os.fork()):
                    signal.pause()
                    os._exit(1)
                print(pid, flush=True)
            fb.send_sync_file(sock, b"frame", frame)
            signal.pause()
            """,
            ours.fileno(),
            pass_fds=[ours.fileno()],
            env=broker.env,
        )
        workers = [int(producer.line()) for _ in range(8)]
        with fb.recv_sync_file(theirs)[1] as frame, fb.connect(broker.path) as connection:
            assert frame.status() == 0
            producer.process.kill()
            with pytest.raises(fb.FenceError) as caught:
                frame.wait(LIMIT)
            assert caught.value.error == errno.ENOENT
            alive = [pid for pid in workers if os.path.exists(f"/proc/{pid}/exe") and os.readlink(f"/proc/{pid}/exe")]
            assert alive == workers
            assert caught.value.owner is not None
            assert caught.value.owner.pid == producer.pid
            assert connection._status()["timelines"] == 0


def test_a_descriptor_is_passed_on(spawn: Spawn, broker: BrokerProcess) -> None:
    """A third process gets it from the second one, which is gone when it signals."""
    ours, theirs = pair()
    onward, third = pair()
    with ours, theirs, onward, third:
        relay = spawn(
            """
            import socket, sys
            import fencebroker as fb
            source, target = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
            payload, fence = fb.recv_sync_file(source)
            with fence, source, target:
                fb.send_sync_file(target, payload + b", relayed", fence)
            """,
            theirs.fileno(),
            onward.fileno(),
            pass_fds=[theirs.fileno(), onward.fileno()],
            env={"FENCEBROKER_SOCKET": None},
        )
        with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
            fb.send_sync_file(ours, b"frame", fence)
            relay.finish()
            payload, received = fb.recv_sync_file(third)
            with received:
                assert payload == b"frame, relayed"
                assert same_file(received.fileno(), fence.fileno())
                assert received.status() == 0
                timeline.advance(1)
                received.wait(LIMIT)


def test_a_descriptor_is_inherited_on_purpose(spawn: Spawn, broker: BrokerProcess) -> None:
    """``subprocess`` with ``pass_fds``; the receiver takes it with ``from_fd``."""
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(1) as fence:
        child = spawn(
            """
            import sys, fencebroker as fb
            with fb.SyncFile.from_fd(int(sys.argv[1])) as fence:
                print(fence.status(), flush=True)
                fence.wait(10)
                print(fence.status())
            """,
            fence.fileno(),
            pass_fds=[fence.fileno()],
            env={"FENCEBROKER_SOCKET": None},
        )
        assert child.line() == "0"
        timeline.advance(1)
        assert child.finish() == "1\n"


def test_a_shared_timeline_is_inherited_on_purpose(spawn: Spawn, broker: BrokerProcess) -> None:
    """``share()`` hands out the right to signal: the timeline lives until the last copy is closed."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        fences = timeline.export_many([1, 2])
        with timeline.share() as shared:
            child = spawn(
                """
                import socket, sys
                from fencebroker import wire
                with socket.socket(fileno=int(sys.argv[1])) as sock:
                    print("holds", flush=True)
                    sys.stdin.readline()
                    sock.send(wire.encode([1, 1, wire.ADVANCE, 1]))
                """,
                shared.fileno(),
                pass_fds=[shared.fileno()],
            )
        assert child.line() == "holds"
        timeline.close()
        connection._status()
        assert [fence.status() for fence in fences] == [0, 0]
        child.send("go")
        child.finish()
        fences[0].wait(LIMIT)
        with pytest.raises(fb.FenceError) as caught:
            fences[1].wait(LIMIT)
        assert caught.value.error == errno.ENOENT
        for fence in fences:
            fence.close()


@pytest.mark.parametrize("error", [1, errno.EIO, errno.ETIME, errno.ECANCELED, 133, 4095])
def test_errors_travel_and_stay_true(start_broker: StartBroker, error: int) -> None:
    """Any errno of 1..4095 reaches every holder, and stays when timeline, connection and broker are gone."""
    broker = start_broker()
    ours, theirs = pair()
    with ours, theirs:
        with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(3) as fence:
            fb.send_sync_file(ours, b"x", fence)
            timeline.fail(3, error)
            connection._status()
            assert fence.status() == -error
        _, received = fb.recv_sync_file(theirs)
    with received:
        assert broker.stop()[0] == 0
        assert received.status() == -error
        for _ in range(3):
            os.eventfd_read(received.fileno())
        with pytest.raises(fb.FenceError) as caught:
            received.wait(0)
        assert (caught.value.error, caught.value.fence, caught.value.owner) == (error, None, None)
        with pytest.raises(fb.FenceError):
            received.check()


def test_success_stays_true(start_broker: StartBroker) -> None:
    """OK is readable for every holder, for ever; a holder that reads does not take it from the others."""
    broker = start_broker()
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        fence = timeline.export(1)
        timeline.advance(1)
        connection._status()
    with fence, fence.dup() as other:
        broker.kill()
        for _ in range(1000):
            os.eventfd_read(fence.fileno())
        assert other.status() == fence.status() == 1
        assert wait_readable(other.fileno()) & select.POLLIN
        other.wait(0)


def test_descriptors_are_closed_on_exec(module_broker: BrokerProcess) -> None:
    """No program that is started gets a descriptor of the library by accident."""
    ours, theirs = pair()
    with (
        fb.connect(module_broker.path) as connection,
        connection.create_timeline("cloexec") as timeline,
        connection.open_timeline("cloexec") as opened,
        timeline.share() as shared,
        timeline.export(1) as fence,
        ours,
        theirs,
    ):
        fb.send_sync_file(ours, b"x", fence)
        with (
            fb.recv_sync_file(theirs)[1] as received,
            connection.import_sync_file(fence) as imported,
            connection.merge([fence]) as merged,
            connection.sync_file("cloexec@9") as named,
            fence.dup() as dup,
        ):
            number = dup.dup().detach()
            try:
                assert_closed_on_exec(
                    *(f.fileno() for f in (fence, received, imported, merged, named, dup)),
                    *(s.fileno() for s in (shared, opened._signaller, timeline._signaller)),
                    number,
                    connection._connection.peer_fd() or -1,
                )
            finally:
                os.close(number)


def test_the_broker_gives_no_descriptor_to_anybody_by_accident(broker: BrokerProcess) -> None:
    """Everything the broker has open is close-on-exec, but the standard streams."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1):
        connection._status()
        for number in os.listdir(f"/proc/{broker.pid}/fd"):
            with open(f"/proc/{broker.pid}/fdinfo/{number}", encoding="ascii") as lines:
                flags = int(next(line.split()[1] for line in lines if line.startswith("flags:")), 8)
            assert int(number) <= 2 or flags & os.O_CLOEXEC, number


# The two functions that pass


def test_stream_sockets_pass_too(module_broker: BrokerProcess) -> None:
    """Framing is the user's there; payload and descriptor come together."""
    ours, theirs = socket.socketpair()
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence, ours, theirs:
        fb.send_sync_file(ours, b"one", fence)
        fb.send_sync_file(ours, b"two", fence.fileno())
        for expected in (b"one", b"two"):
            payload, received = fb.recv_sync_file(theirs)
            with received:
                assert payload == expected
                assert eventfd_id(received.fileno()) == eventfd_id(fence.fileno())


def test_the_fence_is_borrowed(module_broker: BrokerProcess) -> None:
    """The sender closes its own whenever it likes: what is in flight stays."""
    ours, theirs = pair()
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline, ours, theirs:
        with timeline.export(1) as fence:
            fb.send_sync_file(ours, b"x", fence)
        connection._status()
        timeline.advance(1)
        with fb.recv_sync_file(theirs)[1] as received:
            received.wait(LIMIT)


def test_credentials_on_the_socket_do_not_displace_the_descriptor(module_broker: BrokerProcess) -> None:
    """SO_PASSCRED puts another record in front of it."""
    ours, theirs = pair()
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence, ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        fb.send_sync_file(ours, b"x", fence)
        payload, received = fb.recv_sync_file(theirs)
        with received:
            assert payload == b"x"


def test_messages_that_are_no_sync_file(module_broker: BrokerProcess) -> None:
    """No descriptor, several, another kind, the end, too much: each has its error, and nothing stays open."""
    ours, theirs = pair()
    from fencebroker.fds import Truncated, send_packet

    reader, writer = os.pipe()
    plain = os.eventfd(0)
    with ours, theirs:
        try:
            ours.send(b"bare")
            with pytest.raises(fb.NotASyncFile, match="came with 0 descriptors"):
                fb.recv_sync_file(theirs)
            send_packet(ours, b"two", [reader, writer])
            with pytest.raises(fb.NotASyncFile, match="came with 2 descriptors"):
                fb.recv_sync_file(theirs)
            send_packet(ours, b"pipe", [reader])
            with pytest.raises(fb.NotASyncFile, match="not an eventfd"):
                fb.recv_sync_file(theirs)
            send_packet(ours, b"counter", [plain])
            with pytest.raises(fb.NotASyncFile, match="eventfd of another kind"):
                fb.recv_sync_file(theirs)
            ours.send(b"x" * 20_000)
            with pytest.raises(Truncated, match="longer than 16384 bytes"):
                fb.recv_sync_file(theirs)
            ours.close()
            with pytest.raises(EOFError, match="the other end closed"):
                fb.recv_sync_file(theirs)
        finally:
            for number in (reader, writer, plain):
                os.close(number)


@pytest.mark.parametrize(
    ("payload", "error", "said"),
    [
        (b"", ValueError, "payload must not be empty"),
        (b"x" * 16385, ValueError, "payload must be at most 16384 bytes, not 16385"),
        ("text", TypeError, "payload must be bytes, not str"),
        (None, TypeError, "payload must be bytes, not NoneType"),
    ],
)
def test_payloads_are_checked(payload: bytes, error: type[Exception], said: str) -> None:
    """An empty message would read like end-of-file."""
    ours, theirs = pair()
    with ours, theirs, pytest.raises(error, match=said):
        fb.send_sync_file(ours, payload, 0)


def test_the_largest_payload_arrives(timeline: fb.Timeline) -> None:
    """16 KiB."""
    ours, theirs = pair()
    with timeline.export(1) as fence, ours, theirs:
        fb.send_sync_file(ours, b"x" * 16384, fence)
        received, copy = fb.recv_sync_file(theirs)
        copy.close()
        assert received == b"x" * 16384


def test_no_room_for_a_received_descriptor(spawn: Spawn, broker: BrokerProcess) -> None:
    """At the receiver's descriptor limit the message is an error that says so; the next one, with room, arrives."""
    ours, theirs = pair()
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence, ours, theirs:
        child = spawn(
            """
            import os, resource, socket, sys
            import fencebroker as fb
            sock = socket.socket(fileno=int(sys.argv[1]))
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            while (last := os.dup(0)) < sock.fileno():
                pass  # until there is no free number below
            resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
            try:
                fb.recv_sync_file(sock)
            except OSError as err:
                print(err, flush=True)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            payload, fence = fb.recv_sync_file(sock)
            with fence, sock:
                print(payload.decode(), fence.status())
            """,
            theirs.fileno(),
            pass_fds=[theirs.fileno()],
        )
        fb.send_sync_file(ours, b"one", fence)
        assert "at its descriptor limit" in child.line()
        fb.send_sync_file(ours, b"two", fence)
        assert child.finish() == "two 0\n"
