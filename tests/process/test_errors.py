"""What a user reads when something goes wrong: who failed, who should have signalled, which broker is gone and what helps."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import pickle
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest

import fencebroker as fb
from fencebroker import wire
from fencebroker.fds import recv_packet, send_packet
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, descriptors

PRODUCER = """
    import signal, sys, fencebroker as fb
    with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
        print("ready", flush=True)
        for line in sys.stdin:
            verb, *numbers = line.split()
            getattr(timeline, verb)(*map(int, numbers))
"""


def failure_of(fence: fb.SyncFile) -> fb.FenceError:
    with pytest.raises(fb.FenceError) as caught:
        fence.wait(LIMIT)
    return caught.value


# FenceError


def test_a_dead_producer_is_named(spawn: Spawn, broker: BrokerProcess, tmp_path: pathlib.Path) -> None:
    """error, fence and owner, where an open connection knows them; the text says who should have signalled."""
    script = tmp_path / "capture.py"
    script.write_text(textwrap.dedent(PRODUCER))
    producer = spawn([sys.executable, str(script)], env=broker.env)
    assert producer.line() == "ready"
    with fb.connect(broker.path) as connection, connection.sync_file("camera0@7") as fence:
        producer.kill()
        error = failure_of(fence)
        assert (error.error, error.fence) == (errno.ENOENT, "camera0@7")
        assert error.owner is not None
        assert (error.owner.pid, error.owner.uid) == (producer.pid, os.getuid())
        assert str(error) == (
            f"camera0@7 will not be signalled as OK: its producer (pid {producer.pid}, {error.owner.comm}) died or closed the timeline"
        )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.EIO, "camera0@7 failed with EIO (Input/output error) (producer: pid "),
        (errno.ECANCELED, "camera0@7 was cancelled (producer: pid "),
        (errno.ETIME, "camera0@7 expired before its producer signalled it (producer: pid "),
        (errno.ENOENT, "camera0@7 will not be signalled as OK: its producer (pid "),
        (4000, "camera0@7 failed with unknown error (Unknown error 4000) (producer: pid "),
    ],
)
def test_each_errno_has_its_words(connection: fb.Broker, error: int, said: str) -> None:
    """The name of the errno and of who set it."""
    with connection.create_timeline("camera0") as timeline, connection.sync_file("camera0@7") as fence:
        timeline.fail(7, error)
        assert str(failure_of(fence)).startswith(said)


def test_the_member_that_failed_is_named(connection: fb.Broker) -> None:
    """Of a merged fence the text names the culprit, not the merge."""
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(connection.create_timeline(name)) for name in ("left", "right"))
        fences = [stack.enter_context(timeline.export(3)) for timeline in (first, second)]
        merged = stack.enter_context(connection.merge(fences, name="both"))
        second.fail(3, errno.EIO)
        first.advance(3)
        error = failure_of(merged)
        assert (error.error, error.fence) == (errno.EIO, "right@3")


def test_without_a_connection_it_says_what_it_knows(spawn: Spawn, broker: BrokerProcess) -> None:
    """No connection is started for the sake of a text."""
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(1) as fence:
        timeline.fail(1, errno.EIO)
        failure_of(fence)
        child = spawn(
            """
            import sys, fencebroker as fb
            with fb.SyncFile.from_fd(int(sys.argv[1])) as fence:
                try:
                    fence.wait(5)
                except fb.FenceError as err:
                    print(err, err.fence, err.owner)
                with fb.connect():
                    try:
                        fence.check()
                    except fb.FenceError as err:
                        print(err.fence, err.owner.comm.startswith("py"))
            """,
            fence.fileno(),
            pass_fds=[fence.fileno()],
            env=broker.env,
        )
        first, second = child.finish().splitlines()
        assert first == "the fence failed with EIO (Input/output error) None None"
        assert second == "camera0@1 True"


def test_exceptions_survive_pickling(connection: fb.Broker) -> None:
    """A worker's exception arrives whole in the parent."""
    with connection.create_timeline("camera0") as timeline, timeline.export(1) as fence:
        timeline.fail(1, errno.EIO)
        error = failure_of(fence)
    with pytest.raises(fb.NotASyncFile) as not_one:
        connection.info(0)
    for thing in (error, not_one.value, fb.QuotaExceeded(errno.EDQUOT, "text", "quota", 5, 4), fb.BrokerUnavailable("gone")):
        copy = pickle.loads(pickle.dumps(thing))
        assert (type(copy), str(copy), vars(copy)) == (type(thing), str(thing), vars(thing))


def test_the_exceptions_kinds() -> None:
    """What existing handlers catch: a connection error, an OS error, a value error; a failed fence is none of them."""
    assert issubclass(fb.BrokerUnavailable, ConnectionError)
    assert issubclass(fb.QuotaExceeded, OSError)
    assert issubclass(fb.NotASyncFile, ValueError)
    assert not issubclass(fb.FenceError, OSError)


# BrokerUnavailable


@pytest.fixture
def lost(start_broker: StartBroker) -> Iterator[tuple[fb.Broker, fb.Timeline, fb.SyncFile, BrokerProcess]]:
    """A connection, a timeline and an active fence whose broker will be killed."""
    broker = start_broker()
    with (
        contextlib.suppress(fb.BrokerUnavailable),
        fb.connect(broker.path) as connection,
        connection.create_timeline("camera0") as timeline,
        timeline.export(1) as fence,
    ):
        yield connection, timeline, fence, broker


def test_no_broker(folder: str) -> None:
    """The path, why it was tried, and the kernel's word."""
    with pytest.raises(fb.BrokerUnavailable, match=rf"no broker answers at {folder}/none \(path names it\): No such file"):
        fb.connect(f"{folder}/none")
    with open(f"{folder}/file", "w", encoding="ascii"):
        pass
    with pytest.raises(fb.BrokerUnavailable, match="Connection refused"):
        fb.connect(f"{folder}/file")
    with pytest.raises(fb.BrokerUnavailable, match="Not a directory"):
        fb.connect(f"{folder}/file/x")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(f"{folder}/stream")
        other.listen()
        with pytest.raises(fb.BrokerUnavailable, match="Protocol wrong type for socket"):
            fb.connect(f"{folder}/stream")
    with pytest.raises((fb.BrokerUnavailable, OSError), match="too long"):
        fb.connect(f"{folder}/{'x' * 200}")
    for nonsense in (7, b"/x", True, 1.5):
        with pytest.raises(TypeError, match="path must be a path or None, not"):
            fb.connect(nonsense)  # type: ignore[arg-type]


def test_the_broker_goes_in_the_middle_of_a_call(lost: tuple[fb.Broker, fb.Timeline, fb.SyncFile, BrokerProcess]) -> None:
    """Whoever waits for an answer is told; so is everybody who asks afterwards."""
    connection, timeline, fence, broker = lost
    broker.kill()
    calls: list[Callable[[], object]] = [
        connection._status,
        connection.create_timeline,
        lambda: connection.info(fence),
        lambda: connection.merge([fence]),
        lambda: connection.sync_file("x@1"),
        timeline.export,
        lambda: timeline.export_many([1, 2]),
        lambda: timeline.advance(1),
        timeline.inc,
    ]
    before = descriptors()
    for call in calls:
        with pytest.raises(fb.BrokerUnavailable, match=r"went away"):
            call()
    assert len(descriptors()) <= len(before)


def test_the_broker_goes_while_an_answer_is_awaited(folder: str) -> None:
    """The end comes instead of the answer."""
    with _fake(folder, [[1, 0, wire.VERSION, "9", 1, 1], None]) as path, fb.connect(path) as connection:
        with pytest.raises(fb.BrokerUnavailable, match=f"the broker at {path} went away"):
            connection.create_timeline()
        with pytest.raises(fb.BrokerUnavailable, match=r"went away; fencebroker\.connect"):
            connection.create_timeline()


def test_the_broker_goes_while_a_fence_is_awaited(lost: tuple[fb.Broker, fb.Timeline, fb.SyncFile, BrokerProcess]) -> None:
    """A wait with an open connection notices: wait, wait_any and wait_all, in any number of threads."""
    _, _, fence, broker = lost
    raised: list[Exception] = []
    waits: list[Callable[[], object]] = [
        lambda: fence.wait(LIMIT),
        fence.wait,
        lambda: fb.wait_any([fence], LIMIT),
        lambda: fb.wait_all([fence], LIMIT),
    ]
    n_open = len(descriptors())

    def run(wait: Callable[[], object]) -> None:
        try:
            wait()
        except Exception as err:  # noqa: BLE001 - looked at below
            raised.append(err)

    threads = [threading.Thread(target=run, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    while len(descriptors()) < n_open + len(waits):
        pass  # until each has its duplicate
    broker.kill()
    for thread in threads:
        thread.join(LIMIT)
    assert [type(err) for err in raised] == [fb.BrokerUnavailable] * len(waits)
    assert all("went away; camera0@1 may never signal" in str(err) for err in raised)


def test_a_wait_that_begins_too_late(lost: tuple[fb.Broker, fb.Timeline, fb.SyncFile, BrokerProcess]) -> None:
    """Also when a call has noticed first and the connection is closed."""
    connection, _, fence, broker = lost
    broker.kill()
    with pytest.raises(fb.BrokerUnavailable):
        connection._status()
    for wait in (lambda: fence.wait(LIMIT), lambda: fb.wait_any([fence], LIMIT), lambda: fb.wait_all([fence], LIMIT)):
        with pytest.raises(fb.BrokerUnavailable, match="may never signal"):
            wait()
    assert fence.status() == 0


def test_what_signalled_before_the_broker_went_counts(start_broker: StartBroker) -> None:
    """The status in the descriptor comes first."""
    broker = start_broker()
    with (
        contextlib.suppress(fb.BrokerUnavailable),
        fb.connect(broker.path) as connection,
        connection.create_timeline() as timeline,
        timeline.export(1) as good,
        timeline.export(2) as bad,
    ):
        timeline.fail(2, errno.EIO)
        connection._status()
        broker.kill()
        good.wait(LIMIT)
        assert failure_of(bad).error == errno.EIO
        assert fb.wait_any([good, bad]) == [good, bad]


def test_closing_the_connection_is_no_loss(lost: tuple[fb.Broker, fb.Timeline, fb.SyncFile, BrokerProcess]) -> None:
    """Who closes on purpose goes on waiting: the fence is still the broker's to signal."""
    connection, timeline, fence, _ = lost
    woken: list[int] = []
    n_open = len(descriptors())

    def wait() -> None:
        fence.wait(LIMIT)
        woken.append(1)

    thread = threading.Thread(target=wait)
    thread.start()
    while len(descriptors()) <= n_open:
        pass
    connection.close()
    with pytest.raises(TimeoutError):
        fence.wait(0.05)
    with pytest.raises(TimeoutError):
        fb.wait_any([fence], 0.05)
    timeline.advance(1)
    thread.join(LIMIT)
    assert woken == [1]


def test_a_closed_connection_says_so(module_broker: BrokerProcess) -> None:
    """And how to get another; close twice is once."""
    connection = fb.connect(module_broker.path)
    connection.close()
    connection.close()
    assert connection.closed
    for call in (connection._status, connection.create_timeline, lambda: connection.info(0), lambda: next(connection._listing("fences"))):
        with pytest.raises(fb.BrokerUnavailable, match=r"was closed; fencebroker.connect\(\) makes another"):
            call()
    assert repr(connection) == f"<Broker {module_broker.path} closed>"


# Another version, another protocol


@contextlib.contextmanager
def _fake(folder: str, answers: list[object]) -> Iterator[str]:
    """Something else that listens: it sends these answers to whatever comes; None ends the session."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path = f"{folder}/fake"
        listener.bind(path)
        listener.listen()
        listener.settimeout(LIMIT)

        def serve() -> None:
            guest, _ = listener.accept()
            with guest:
                guest.settimeout(LIMIT)
                for answer in answers:
                    if not recv_packet(guest)[0] or answer is None:
                        return
                    send_packet(guest, answer if isinstance(answer, bytes) else wire.encode(answer))  # type: ignore[arg-type]
                recv_packet(guest)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join(LIMIT)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            [1, errno.EPROTONOSUPPORT, "this broker speaks version 9; restart the older of the two", []],
            "speaks version 9; restart the older",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak this protocol: not an? "),
        (b"\xc1", "does not speak this protocol"),
        ([1], "does not speak this protocol"),
        ([1, 0], "does not speak this protocol: its hello has 2 elements, not 6"),
        ({}, "does not speak this protocol"),
        ([1, "0"], "does not speak this protocol"),
        (None, "went away"),
    ],
)
def test_what_is_no_broker_of_ours(folder: str, answer: object, said: str) -> None:
    """A version that does not fit is refused with the reason; nonsense is named as such; nothing stays open."""
    before = descriptors()
    with _fake(folder, [answer]) as path, pytest.raises(fb.BrokerUnavailable, match=said):
        fb.connect(path)
    assert descriptors() == before


def test_nonsense_later_on(folder: str) -> None:
    """An answer out of form ends the connection, clearly."""
    hello = [1, 0, wire.VERSION, "9", 1, 1]
    with _fake(folder, [hello, b"\xc1"]) as path, fb.connect(path) as connection:
        with pytest.raises(fb.BrokerUnavailable, match="does not speak this protocol"):
            connection.create_timeline()
        with pytest.raises(fb.BrokerUnavailable, match="went away"):
            connection.create_timeline()


# Events


def test_events_tell_what_happens(broker: BrokerProcess) -> None:
    """From the call on, in order, in the kernel's trace names, with who did it; over a connection of its own."""
    with fb.connect(broker.path) as connection:
        events = connection.events()
        with connection.create_timeline("camera0") as timeline, timeline.export(1) as fence:
            timeline.fail(1, errno.EIO)
            failure_of(fence)
        seen: list[fb.Event] = []
        for event in events:
            seen.append(event)
            if event.name == "dma_fence_signaled":
                break
        assert isinstance(events, Iterator)
        signalled = seen[-1]
        assert (signalled.timeline, signalled.seqno, signalled.status) == ("camera0", 1, -errno.EIO)
        assert (signalled.pid, signalled.uid, signalled.lost) == (os.getpid(), os.getuid(), 0)
        assert next(event.name for event in seen if event.context == signalled.context) != "dma_fence_signaled"
        assert [event.time_ns for event in seen] == sorted(event.time_ns for event in seen)
        events.close()  # type: ignore[attr-defined]
        while connection._status()["sessions"] > 1:
            pass


def test_events_end_with_the_broker(broker: BrokerProcess) -> None:
    """BrokerUnavailable, after everything that was said before."""
    with fb.connect(broker.path) as connection:
        events = connection.events()
        connection.create_timeline("camera0").close()
        broker.stop()
        with pytest.raises(fb.BrokerUnavailable, match="went away"):
            for _ in events:
                pass


def test_events_that_do_not_fit_are_counted(broker: BrokerProcess) -> None:
    """A listener that does not read loses events, never silently, and disturbs nobody."""
    with fb.connect(broker.path) as connection:
        events = connection.events()
        with connection.create_timeline("camera0") as timeline:
            for value in range(20):  # 20,000 events, some times what there is room for; who takes nothing for 10 s is disconnected
                for fence in timeline.export_many(range(250 * value, 250 * value + 250)):
                    fence.close()
        seen = threading.Event()

        def go_on() -> None:
            while not seen.is_set():
                connection.sync_file("end@1").close()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            lost = next(event.lost for event in events if event.lost)
        finally:
            seen.set()
            thread.join(LIMIT)
        assert lost > 1000
        events.close()  # type: ignore[attr-defined]
        connection._status()
