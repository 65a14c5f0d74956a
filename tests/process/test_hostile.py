"""Clients that break the rules: they are cut, and nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import close_all, is_hung_up, recv_packet
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, descriptors, wait_readable
from tests.process.wire_client import WireClient, descriptors_of, lingering


@pytest.fixture(autouse=True)
def honest(request: pytest.FixtureRequest) -> Iterator[None]:
    """An honest client of the broker of each test: connected before, well afterwards."""
    if "broker" not in request.fixturenames:
        yield
        return
    broker: BrokerProcess = request.getfixturevalue("broker")
    with fb.connect(broker.path) as connection, connection.create_timeline("honest") as timeline, timeline.export(1000) as fence:
        yield
        if broker.process.process.poll() is not None:
            pytest.fail(f"the broker ended:\n{broker.log()}")
        for value in range(1, 50):
            with timeline.export(value) as other:
                timeline.advance(value)
                other.wait(LIMIT)
        assert fence.status() == 0
        timeline.advance(1000)
        fence.wait(LIMIT)


# Packets out of form, on a session

MALFORMED: dict[str, object] = {
    "not MessagePack": b"\xc1",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "half a packet": wire.encode([5, wire.STATUS])[:-1],
    "two packets in one": wire.encode([5, wire.STATUS]) * 2,
    "a map": b"\x81\x01\x02",
    "an array of none": [],
    "no op": [5],
    "serial 0": [0, wire.STATUS],
    "serial -1": [-1, wire.STATUS],
    "serial True": [True, wire.STATUS],
    "serial 1.0": [5.0, wire.STATUS],
    "op as text": [5, "status"],
    "op nil": [5, None],
    "one argument too many": [5, wire.STATUS, 1],
    "one too few": [5, wire.INFO, None],
    "a second hello": [5, wire.HELLO, wire.VERSION, "again"],
    "name of 256 bytes": [5, wire.CREATE_TIMELINE, "x" * 256, "d", 0o600, None],
    "name as bytes": [5, wire.CREATE_TIMELINE, b"x", "d", 0o600, None],
    "mode too large": [5, wire.CREATE_TIMELINE, "x", "d", 0o1000, None],
    "expiry 0": [5, wire.CREATE_TIMELINE, "x", "d", 0o600, 0],
    "float seqno": [5, wire.EXPORT, 1, [1.0], "", False],
    "no seqnos": [5, wire.EXPORT, 1, [], "", False],
    "254 seqnos": [5, wire.EXPORT, 1, list(range(254)), "", False],
    "flag as 1": [5, wire.EXPORT, 1, [1], "", 1],
    "no descriptor where one is needed": [5, wire.INFO, None, 0],
    "handle 0": [5, wire.INFO, 0, 0],
    "merge of nothing": [5, wire.MERGE, [], "", False],
    "1025 refs": [5, wire.MERGE, list(range(1, 1026)), "", False],
    "deep nesting": b"\x91" * 1000 + b"\xc0",
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge string": b"\xdb\xff\xff\xff\xff",
    "extension": b"\xd4\x01\x00",
    "time stamp": b"\xd6\xff\x00\x00\x00\x00",
    "bad UTF-8": b"\x92\x05\xa1\xff",
    "unknown kind": [5, wire.LIST, "secrets", 0],
    "empty": b"",
    "17 KiB": b"\x92\x05\x0f" + b"x" * 17_000,
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_packet_ends_its_session_and_no_other(broker: BrokerProcess, kind: str) -> None:
    """Exact validation: who sends it is disconnected; another session of the same process goes on."""
    with WireClient(broker.path) as evil, WireClient(broker.path) as twin:
        evil.say(MALFORMED[kind])  # type: ignore[arg-type]
        assert evil.is_cut()
        assert twin.ask(wire.STATUS)[1] == 0


def test_what_was_sent_before_a_malformed_packet_is_answered(broker: BrokerProcess) -> None:
    """In order: answers, then the end."""
    with WireClient(broker.path) as evil:
        for serial in (7, 8):
            evil.say([serial, wire.STATUS])
        evil.say(b"\xc1")
        assert [evil.hear()[0], evil.hear()[0]] == [7, 8]
        assert evil.is_cut()


def test_its_timelines_live_on(broker: BrokerProcess) -> None:
    """The session ends; descriptors are rights of their own."""
    with fb.connect(broker.path) as connection, connection.create_timeline("kept") as timeline, timeline.export(1) as fence:
        connection._connection._sock.send(b"\xc1")  # type: ignore[union-attr]
        with pytest.raises(fb.BrokerUnavailable):
            connection._status()
        timeline.advance(1)
        with fb.connect(broker.path) as again, again.sync_file("kept@1") as named:
            named.wait(LIMIT)
        assert fence.status() == 1


def test_thousands_of_malformed_packets(broker: BrokerProcess) -> None:
    """Random and mutated ones: each costs its session at most; the log has a few lines; descriptors return."""
    dice = random.Random(7)
    good = [wire.encode(message) for message in ([9, wire.STATUS], [9, wire.INFO, 3, 0], [9, wire.EXPORT, 1, [1, 2], "x", False])]
    there = descriptors_of(broker.pid)
    for _ in range(150):
        with WireClient(broker.path) as evil, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(20):
                packet = bytearray(dice.choice(good) if dice.random() < 0.7 else dice.randbytes(dice.randrange(1, 60)))
                for _ in range(dice.randrange(4)):
                    packet[dice.randrange(len(packet))] = dice.randrange(256)
                evil.say(bytes(packet))
    while descriptors_of(broker.pid) > there:
        pass
    assert len(broker.log().splitlines()) < 40


def test_an_unknown_op_is_refused_not_punished(broker: BrokerProcess) -> None:
    """A newer client can find out; descriptors that came along are closed."""
    reader, writer = os.pipe()
    with WireClient(broker.path) as client, open(reader, "rb", buffering=0):
        for op in (0, 99, -1, 2**63):
            answer = client.ask(op, "some", ["arguments"])
            assert (answer[1], answer[2]) == (errno.ENOSYS, f"this broker does not know request {op}")
        assert client.ask(77, fds=[writer, writer])[1] == errno.ENOSYS
        os.close(writer)
        wait_readable(reader)  # end-of-file: the broker's copies are closed
        assert client.ask(wire.STATUS)[1] == 0


def test_handles_are_good_in_their_session_only(broker: BrokerProcess) -> None:
    """Another session's handle, a closed one, an invented one: EBADF for each, and nothing changes."""
    with WireClient(broker.path) as one, WireClient(broker.path) as other:
        one.say([50, wire.SYNC_FILE, "somewhere@1", None])
        handle = one.hear()[2]
        assert one.ask(wire.INFO, handle, 0)[1] == 0
        for client, number in ((other, handle), (one, handle + 1000)):
            for request in (
                (wire.INFO, number, 0),
                (wire.SET_DEADLINE, number, 5),
                (wire.IMPORT, "", number),
                (wire.MERGE, [number], "", False),
            ):
                assert client.ask(*request)[1] == errno.EBADF, request
        other.say([51, wire.RELEASE, [handle, handle + 1000], [handle]])
        assert one.ask(wire.INFO, handle, 0)[1] == 0
        one.say([52, wire.RELEASE, [handle], []])
        assert one.ask(wire.INFO, handle, 0)[1] == errno.EBADF


def test_contexts_are_good_for_their_minters_only(broker: BrokerProcess) -> None:
    """Guessing a context gives no right to mint or to make the broker forget."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, WireClient(broker.path) as evil:
        assert evil.ask(wire.EXPORT, timeline.context, [1], "", False)[1] == errno.EBADF
        evil.say([60, wire.FORGET_TIMELINE, timeline.context])
        with timeline.export(1):
            pass


# Packets out of form, on a timeline's socket


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"",
        wire.encode([1, 1]),
        wire.encode([1, 1, 99, 1]),
        wire.encode([1, 1, wire.ADVANCE]),
        wire.encode([1, 1, wire.ADVANCE, -1]),
        wire.encode([1, 1, wire.ADVANCE, 1.0]),
        wire.encode([1, 1, wire.ADVANCE, 1, 1]),
        wire.encode([1, 1, wire.FAIL, 1, 0]),
        wire.encode([1, 1, wire.FAIL, 1, 4096]),
        b"x" * 17_000,
    ],
)
def test_a_malformed_packet_on_a_timeline_fails_that_timeline(broker: BrokerProcess, packet: bytes) -> None:
    """It may have several senders, so the timeline pays: EPROTO for its active fences, for nobody else's; and it is over."""
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline("bad") as bad,
        connection.create_timeline("good") as good,
        connection.open_timeline("bad") as other,
        bad.export(1) as first,
        good.export(1) as second,
    ):
        bad._signaller._sock.send(packet)
        with pytest.raises(fb.FenceError) as caught:
            first.wait(LIMIT)
        assert (caught.value.error, second.status()) == (errno.EPROTO, 0)
        connection._status()
        for call in (lambda: other.advance(2), lambda: bad.advance(2), lambda: bad.export(2)):
            with pytest.raises(fb.BrokerUnavailable, match="the broker ended this timeline"):
                call()
        connection.create_timeline("bad").close()
        good.advance(1)
        second.wait(LIMIT)


def test_descriptors_on_a_timelines_socket(broker: BrokerProcess) -> None:
    """Nobody has any business there: EPROTO, and they are closed."""
    from fencebroker.fds import send_packet

    reader, writer = os.pipe()
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        send_packet(timeline._signaller._sock, wire.encode([1, 1, wire.ADVANCE, 1]), [writer])
        os.close(writer)
        with open(reader, "rb", buffering=0), pytest.raises(fb.FenceError) as caught:
            fence.wait(LIMIT)
        assert caught.value.error == errno.EPROTO


def test_a_shutdown_is_an_end(broker: BrokerProcess) -> None:
    """A co-holder may shut the socket down, just as it may fail the timeline."""
    with fb.connect(broker.path) as connection:
        for how, error in ((socket.SHUT_RDWR, errno.ENOENT), (socket.SHUT_WR, errno.EPROTO)):
            with connection.create_timeline() as timeline, timeline.export(1) as fence:
                timeline._signaller._sock.shutdown(how)
                with pytest.raises(fb.FenceError) as caught:
                    fence.wait(LIMIT)
                assert caught.value.error == error


# Silence, slowness, floods


def test_a_hello_that_never_comes(start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """limits.hello_seconds: whoever says nothing is disconnected then, and not before; who said hello stays."""
    file = tmp_path / "fencebroker.toml"
    file.write_text("[limits]\nhello_seconds = 0.3\n")
    broker = start_broker("--config", str(file))
    with WireClient(broker.path) as polite:
        began = time.monotonic()
        with WireClient(broker.path, greet=False) as silent:
            assert silent.is_cut()
        assert 0.3 <= time.monotonic() - began < LIMIT
        assert polite.ask(wire.STATUS)[1] == 0
    assert "it sent no hello within 0.3 s" in broker.log()


@pytest.mark.parametrize(
    "message",
    [[1, wire.STATUS], [1, wire.CREATE_TIMELINE, None, "d", 0o600, None], [1, 99], [1, wire.HELLO], [1, wire.HELLO, 1, 1], b"\xc1", b""],
)
def test_the_first_message_is_a_hello(broker: BrokerProcess, message: Any) -> None:
    """Anything else ends the session."""
    with WireClient(broker.path, greet=False) as client:
        client.say(message)
        assert client.is_cut()


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_another_version_is_refused_with_the_reason(broker: BrokerProcess, version: int) -> None:
    """Both versions, and what to restart."""
    with WireClient(broker.path, greet=False) as client:
        client.say([1, wire.HELLO, version, "old"])
        answer = client.hear()
        assert answer[:2] == [1, errno.EPROTONOSUPPORT]
        assert f"speaks version {wire.VERSION} of the protocol, the client version {version}; restart the older" in answer[2]
        assert client.is_cut()


def test_idle_connections_do_not_keep_others_out(start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """500 of them before an honest one: it gets in, and not because their time is over."""
    file = tmp_path / "fencebroker.toml"
    file.write_text("[limits]\nhello_seconds = 3600\n")
    broker = start_broker("--config", str(file))
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(WireClient(broker.path, greet=False))
        fb.connect(broker.path).close()


def test_connections_that_come_and_go(broker: BrokerProcess) -> None:
    """Without a hello, with half of one, with requests that nobody will hear the answer of."""
    there = descriptors_of(broker.pid)
    for i in range(600):
        client = WireClient(broker.path, greet=i % 3 == 0)
        if i % 3 == 1:
            client.say([1, wire.HELLO, wire.VERSION, "gone"])
        elif i % 3 == 0:
            client.say([2, wire.CREATE_TIMELINE, f"gone{i}", "d", 0o600, None])
            client.say([3, wire.SYNC_FILE, f"gone{i}@1", None])
        client.close()
    with WireClient(broker.path) as client:
        while dict(client.ask(wire.STATUS)[2])["sessions"] > 2:
            pass
        assert dict(client.ask(wire.STATUS)[2])["timelines"] == 1
    # The placeholder-less fences of the gone clients have failed; their descriptors are kept for who might hold a copy.
    while descriptors_of(broker.pid) > there + 200:
        pass


def ask_without_end(client: WireClient, enough: Callable[[], bool]) -> None:
    """Ask whenever there is room, and read nothing, until it is cut or ``enough``."""
    client.sock.setblocking(False)
    poll = select.poll()
    poll.register(client.sock, select.POLLOUT)
    serial = 1
    while not enough():
        happened = poll.poll(LIMIT * 1000)
        assert happened
        if happened[0][1] & select.POLLHUP:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            serial += 1
            client.say([serial, wire.STATUS])


def test_a_slow_reader_costs_the_broker_little(broker: BrokerProcess) -> None:
    """Requests without end and no reading: what piles up piles up in its own socket; others are served."""
    process = psutil.Process(broker.pid)
    before = process.memory_info().rss
    with WireClient(broker.path) as evil:
        ask_without_end(evil, lambda: evil_output(evil.sock) > 50_000)
        # It is not read while its answers wait: requests pile up in its own socket.
        fb.connect(broker.path).close()
        assert process.memory_info().rss - before < 8 << 20


def test_a_reader_that_never_reads_is_cut_in_time(start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """limits.stalled_seconds without progress: disconnected."""
    file = tmp_path / "fencebroker.toml"
    file.write_text("[limits]\nstalled_seconds = 0.3\n")
    broker = start_broker("--config", str(file))
    with WireClient(broker.path) as evil:
        ask_without_end(evil, lambda: False)
    assert "it took nothing for 0.3 s" in broker.log()


def test_unread_descriptors_are_bounded(broker: BrokerProcess) -> None:
    """Descriptors on their way count against the broker: at most 256 wait for a client, then it is cut; others still get theirs."""
    with WireClient(broker.path) as evil:
        evil.say([2, wire.CREATE_TIMELINE, None, "d", 0o600, None])
        packet, fds = evil.take()
        context = wire.decode_answer(packet)[2]
        serial = 3
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while serial < 1000:
                evil.say([serial, wire.EXPORT, context, [serial], "", False])
                serial += 1
                # One request at a time is on its way; whether it was handled shows in what the kernel still has.
                while evil_output(evil.sock) > 0 and not is_hung_up(evil.sock.fileno()):
                    pass
        poll = select.poll()
        poll.register(evil.sock, 0)
        assert poll.poll(LIMIT * 1000)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while True:
                packet, more = recv_packet(evil.sock)
                if not packet:
                    break
                received += len(more)
                close_all(more)
        close_all(fds)
        assert 200 <= received <= 256


def evil_output(sock: socket.socket) -> int:
    """Bytes that the other end has not taken yet."""
    import termios

    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]  # type: ignore[no-any-return]


def test_a_flood_of_signals_does_not_starve_questions(broker: BrokerProcess, spawn: Spawn) -> None:
    """A producer that never stops advancing, and one that never stops asking: others are answered in time."""
    flood = spawn(
        """
        import sys, threading, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline:
            stop = threading.Event()
            def advance():
                value = 0
                while not stop.is_set():
                    value += 1
                    timeline.advance(value)
            thread = threading.Thread(target=advance)
            thread.start()
            print("flooding", flush=True)
            sys.stdin.read()
            stop.set()
            thread.join()
        """,
        env=broker.env,
    )
    assert flood.line() == "flooding"
    with fb.connect(broker.path) as connection:
        slowest = 0.0
        for _ in range(100):
            began = time.monotonic()
            connection._status()
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2
    flood.finish()


# Descriptors as weapons


def test_a_counter_that_blocks_is_poisoned(start_broker: StartBroker, spawn: Spawn) -> None:
    """A holder clears the shared O_NONBLOCK and fills the counter: the broker's write is interrupted, the uid's sessions end, and the
    broker goes on.
    """
    broker = start_broker()
    evil = spawn(
        """
        import fcntl, os, sys, fencebroker as fb
        broker = fb.connect()
        timeline = broker.create_timeline()
        # Those that only the broker writes to: others would block their own producer.
        fences = [timeline.export(seqno, private=True) for seqno in range(1, 11)]
        for fence in fences[:3]:
            fd = fence.fileno()
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            os.eventfd_write(fd, 2**64 - 3)  # one more would say OK, and leave nothing to write
            os.set_blocking(fd, True)
        timeline.advance(10)
        print("loaded", flush=True)
        sys.stdin.read()
        os._exit(0)
        """,
        env=broker.env,
    )
    assert evil.line() == "loaded"
    while "was made to block the broker" not in broker.log():
        with contextlib.suppress(fb.BrokerUnavailable), fb.connect(broker.path) as connection:
            connection._status()
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
        assert connection._status()["recoveries"] == 0  # it came out of the write by itself
    evil.kill()
    assert broker.log().count("a sync_file of this user was made to block the broker") == 2  # one says so, one ends the session


@pytest.mark.parametrize("how", ["import", "unknown op", "malformed", "on a timeline", "unread"])
def test_a_close_that_takes_for_ever_is_not_the_loops(broker: BrokerProcess, how: str) -> None:
    """Closing what a client sent can take as long as it likes; it is done elsewhere, and others are not late."""
    from fencebroker.fds import send_packet

    with contextlib.ExitStack() as stack:
        evil = stack.enter_context(WireClient(broker.path))
        number = lingering(stack, 3600)
        connection = stack.enter_context(fb.connect(broker.path))
        timeline = stack.enter_context(connection.create_timeline())
        broker.freeze()
        if how == "import":
            evil.say([2, wire.IMPORT, "", None], [number])
        elif how == "unknown op":
            evil.say([2, 99], [number])
        elif how == "malformed":
            evil.say([2, wire.STATUS], [number])
        elif how == "on a timeline":
            send_packet(timeline._signaller._sock, wire.encode([1, 1, wire.ADVANCE, 1]), [number])
        else:
            evil.say(b"\xc1")
            evil.say([2, wire.IMPORT, "", None], [number])  # stays in the queue of a session that ends
        os.close(number)  # the broker is stopped: its copy is the last
        broker.thaw()
        for _ in range(20):
            with fb.connect(broker.path) as client:
                assert client._status()["recoveries"] == 0  # nor is it replaced because it hangs


def test_a_connection_in_itself(broker: BrokerProcess) -> None:
    """A client sends its own session's socket, and a timeline's end, to the broker: recognised or foreign, never kept."""
    there = descriptors_of(broker.pid)
    for _ in range(50):
        with WireClient(broker.path) as client:
            answer = client.ask(wire.IMPORT, "", None, fds=[client.sock.fileno()])
            assert answer[1] == errno.EINVAL
            client.say([90, wire.CREATE_TIMELINE, None, "d", 0o600, None])
            packet, fds = client.take()
            assert client.ask(wire.SHOW_TIMELINE, fds=[fds[0].fileno()])[1:3] == [0, wire.decode_answer(packet)[2]]
            assert client.ask(wire.SHOW_TIMELINE, fds=[client.sock.fileno()])[1] == errno.EINVAL
            close_all(fds)
    with WireClient(broker.path) as client:
        while dict(client.ask(wire.STATUS)[2])["sessions"] > 2:
            pass
        assert dict(client.ask(wire.STATUS)[2])["timelines"] == 1
    while descriptors_of(broker.pid) > there:
        pass


def test_as_many_descriptors_as_a_message_carries(broker: BrokerProcess) -> None:
    """253 foreign ones at once: refused, closed, and the session goes on."""
    with contextlib.ExitStack() as stack, WireClient(broker.path) as client:
        reader = os.dup(0)
        stack.callback(os.close, reader)
        there = descriptors_of(broker.pid)
        for _ in range(20):
            answer = client.ask(wire.MERGE, [None] * 253, "", False, fds=[reader] * 253)
            assert answer[1] == errno.ENOENT
        while descriptors_of(broker.pid) > there:
            pass


def test_descriptors_that_do_not_fit(start_limited: Callable[..., BrokerProcess]) -> None:
    """At the broker's limit a message loses its descriptors: its sender is told and cut, the rest is served, nothing leaks."""
    broker = start_limited(160)
    with fb.connect(broker.path) as honest_client, WireClient(broker.path) as evil:
        honest_client._status()
        there = descriptors_of(broker.pid)
        number = os.dup(0)
        evil.say([2, wire.MERGE, [None] * 250, "", False], [number] * 250)
        os.close(number)
        answer = evil.hear()
        assert (answer[1], answer[3][0]) == (errno.EMFILE, "descriptors of the broker (received)")
        assert evil.is_cut()
        while descriptors_of(broker.pid) > there:
            pass
        with honest_client.create_timeline() as timeline, timeline.export(1) as fence:
            timeline.advance(1)
            fence.wait(LIMIT)


def test_a_table_that_is_full_of_what_is_still_to_be_closed(start_limited: Callable[..., BrokerProcess]) -> None:
    """A close that does not end holds up those behind it, a quarter of the table and the packet in hand, and requests take the rest: what
    comes then is refused or answered, signals arrive, nobody is lost.
    """
    limit = 900
    broker = start_limited(limit)
    with contextlib.ExitStack() as stack, fb.connect(broker.path) as connection, connection.create_timeline("kept") as timeline:
        fences = [stack.enter_context(fence) for fence in timeline.export_many(range(1, 251))]
        shower = stack.enter_context(fb.connect(broker.path))
        evil = [stack.enter_context(WireClient(broker.path)) for _ in range(3)]
        there = descriptors_of(broker.pid)
        with stopped_reaper(connection):
            for client, n in zip(evil, (180, 253, 253), strict=True):
                answer = client.ask(wire.MERGE, [None] * n, "", False, fds=[0] * n)
                if answer[1] == errno.ENOENT:
                    continue
                assert (answer[1], client) == (errno.EDQUOT, evil[2])
                assert client.is_cut()
            assert descriptors_of(broker.pid) > there + 400
            refused = 0
            while refused < 20:  # the last numbers
                try:
                    stack.enter_context(timeline.export(1000))
                except fb.QuotaExceeded:
                    refused += 1
            calls: list[Callable[[], object]] = [
                lambda: connection.info(fences[3]),
                lambda: connection.merge([fences[4], fences[5]]).close(),
                lambda: timeline.export_many(range(300, 400)),
                connection.create_timeline,
                lambda: shower.info(fences[0].fileno()),
            ]
            for call in calls:
                with contextlib.suppress(fb.QuotaExceeded, fb.NotASyncFile, fb.BrokerUnavailable):
                    call()
            with contextlib.suppress(fb.QuotaExceeded, fb.BrokerUnavailable):
                fb.connect(broker.path).close()
            timeline.advance(2)
            fences[1].wait(LIMIT)
            assert descriptors_of(broker.pid) > limit - 100
        while descriptors_of(broker.pid) > limit - 300:
            pass  # until all is closed
        timeline.advance(1000)
        fb.wait_all(fences, LIMIT)


@contextlib.contextmanager
def stopped_reaper(connection: fb.Broker) -> Iterator[None]:
    """Nothing foreign is closed meanwhile."""
    status = connection._status()
    (reaper,) = [child for child in psutil.Process(status["keeper_pid"]).children() if child.pid != status["pid"]]
    reaper.suspend()
    try:
        yield
    finally:
        reaper.resume()


def test_nothing_is_left_here(broker: BrokerProcess) -> None:
    """The tests' own descriptors, for what they open they close."""
    before = descriptors()
    with WireClient(broker.path) as client:
        client.ask(wire.STATUS)
    assert descriptors() == before
