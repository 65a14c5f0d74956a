"""Points have names: a string that travels through any medium, before the point, before the timeline, across a producer's restart."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import time
from typing import Any

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors

PRODUCER = """
    import sys, fencebroker as fb
    with fb.connect() as broker, broker.create_timeline(sys.argv[1]) as timeline:
        print(timeline.context, flush=True)
        for line in sys.stdin:
            timeline.advance(int(line))
"""


def error_of(fence: fb.SyncFile) -> int:
    with pytest.raises(fb.FenceError) as caught:
        fence.wait(LIMIT)
    return caught.value.error


# By name


def test_a_name_is_enough(spawn: Spawn, broker: BrokerProcess) -> None:
    """``camera0@7`` in a line of text is a sync_file in another process."""
    producer = spawn(PRODUCER, "camera0", env=broker.env)
    producer.line()
    with fb.connect(broker.path) as connection, connection.sync_file("camera0@7") as fence:
        assert fence.label == "camera0@7"
        producer.send("6")
        with connection.sync_file("camera0@6") as before:
            before.wait(LIMIT)
        assert fence.status() == 0
        producer.send("7")
        fence.wait(LIMIT)
        producer.finish()


def test_before_the_point_was_exported(connection: fb.Broker) -> None:
    """Wait-before-signal: the consumer may come first."""
    with connection.create_timeline("early0") as timeline, connection.sync_file("early0@3") as waiting:
        with timeline.export(3) as exported:
            infos = [connection.info(fence) for fence in (waiting, exported)]
            assert len({(info.context, info.seqno) for info in infos}) == 1
        timeline.advance(3)
        waiting.wait(LIMIT)


def test_before_the_timeline_exists(connection: fb.Broker) -> None:
    """A placeholder binds when the timeline is created, and is the same fence as the exported point from then on."""
    with connection.sync_file("early1@2") as waiting, connection.sync_file("early1@0") as zero, connection.sync_file("early1@3") as third:
        assert connection.info(waiting).fences[0].owner is None
        with connection.create_timeline("early1") as timeline, timeline.export(2) as exported:
            zero.wait(LIMIT)
            infos = [connection.info(fence) for fence in (waiting, exported)]
            assert len({(info.context, info.seqno) for info in infos}) == 1
            assert infos[0].fences[0].owner is not None
            timeline.advance(2)
            waiting.wait(LIMIT)
            assert third.status() == 0
        assert error_of(third) == errno.ENOENT


def test_a_merge_of_placeholders_binds(connection: fb.Broker) -> None:
    """What was merged before its timelines existed signals when they have signalled."""
    with (
        connection.sync_file("early2@1") as first,
        connection.sync_file("early3@1") as second,
        connection.merge([first, second]) as both,
        connection.merge([first, second], when="any") as either,
        connection.create_timeline("early2") as timeline2,
        connection.create_timeline("early3") as timeline3,
    ):
        timeline3.advance(1)
        either.wait(LIMIT)
        assert both.status() == 0
        timeline2.advance(1)
        both.wait(LIMIT)


def test_a_placeholder_may_expire(connection: fb.Broker) -> None:
    """``expiry`` ends this sync_file, and only it, with ETIME; another one for the same point goes on."""
    with connection.sync_file("never0@1", expiry=0.05) as short, connection.sync_file("never0@1") as patient:
        assert error_of(short) == errno.ETIME
        assert patient.status() == 0
        with connection.create_timeline("never0") as timeline:
            timeline.advance(1)
            patient.wait(LIMIT)
        assert short.status() == -errno.ETIME


def test_the_expiry_of_a_point_by_name(connection: fb.Broker) -> None:
    """Also where the timeline exists; met in time it leaves nothing."""
    with (
        connection.create_timeline("never1") as timeline,
        connection.sync_file("never1@1", expiry=0.05) as late,
        connection.sync_file("never1@2", expiry=600) as met,
        timeline.export(1) as plain,
    ):
        assert error_of(late) == errno.ETIME
        assert plain.status() == 0
        timeline.advance(2)
        met.wait(LIMIT)
        plain.wait(LIMIT)


# Names in use, restarts


def test_a_name_in_use_names_its_holder(spawn: Spawn, broker: BrokerProcess) -> None:
    """EEXIST with the holder's pid, also when that is you."""
    producer = spawn(PRODUCER, "camera0", env=broker.env)
    producer.line()
    with fb.connect(broker.path) as connection:
        with pytest.raises(FileExistsError, match=rf"'camera0' is in use by pid {producer.pid} \(python") as caught:
            connection.create_timeline("camera0")
        assert caught.value.errno == errno.EEXIST
        before = descriptors()
        with connection.create_timeline("camera1"), pytest.raises(FileExistsError, match=f"in use by pid {os.getpid()} "):
            connection.create_timeline("camera1")
        assert descriptors() == before
        connection.create_timeline("camera1").close()


def test_a_producer_that_restarts(spawn: Spawn, broker: BrokerProcess) -> None:
    """The name gets a new context: what waited on the old one ends with -ENOENT, what is asked for in between binds to the new one."""
    first = spawn(PRODUCER, "camera0", env=broker.env)
    context = int(first.line())
    with fb.connect(broker.path) as connection, connection.sync_file("camera0@5") as old:
        first.kill()
        assert error_of(old) == errno.ENOENT
        with connection.sync_file("camera0@5") as between:
            assert between.status() == 0
            second = spawn(PRODUCER, "camera0", env=broker.env)
            assert int(second.line()) > context
            second.send("5")
            between.wait(LIMIT)
            assert connection.info(between).context != connection.info(old).context
            second.finish()


def test_contexts_are_never_reused(connection: fb.Broker) -> None:
    """A new timeline of an old name is another timeline."""
    contexts = set()
    for _ in range(20):
        with connection.create_timeline("again") as timeline:
            contexts.add(timeline.context)
            with timeline.export(1) as fence, timeline.export(2) as later, connection.merge([fence, later]) as merged:
                contexts.add(connection.info(merged).context)  # one survivor: no context of its own
    assert len(contexts) == 20


def test_the_name_is_free_at_once(connection: fb.Broker) -> None:
    """A process that closes a timeline and creates it again is not refused: it sees its own action."""
    for _ in range(200):
        connection.create_timeline("quick").close()


# What a name is


@pytest.mark.parametrize(
    "name", ["x", "x" * 255, "ü" * 127, "camera 0", "camera.0", "-", "..", "7", "日本", "a'b\"c\\", "%s", "camera0.rear"]
)
def test_names_that_work(connection: fb.Broker, name: str) -> None:
    """1 to 255 bytes of printable text without @ and /."""
    with connection.create_timeline(name) as timeline, connection.sync_file(f"{name}@1") as fence:
        assert timeline.name == name
        with connection.open_timeline(name) as other:
            assert other.context == timeline.context
        timeline.advance(1)
        fence.wait(LIMIT)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("", ValueError, "name must not be empty; leave it out"),
        ("x" * 256, ValueError, "name is 256 bytes long; at most 255 are allowed"),
        ("ü" * 128, ValueError, "name is 256 bytes long"),
        ("a@b", ValueError, "name must be printable and free of '@', '/', ':' and '#', not 'a@b'"),
        ("camera:0", ValueError, "free of '@', '/', ':' and '#', not 'camera:0'"),
        ("#1", ValueError, "free of '@', '/', ':' and '#', not '#1'"),
        ("a/b", ValueError, "free of '@', '/', ':' and '#'"),
        ("a\nb", ValueError, "name must be printable"),
        ("a\x1b[0mb", ValueError, "name must be printable"),
        ("a\0b", ValueError, "name must not contain a NUL"),
        ("a\u202eb", ValueError, "name must be printable"),
        ("\udcff", ValueError, "name must be valid Unicode"),
        (b"camera0", TypeError, "name must be a str, not bytes"),
        (7, TypeError, "name must be a str, not int"),
        (True, TypeError, "name must be a str, not bool"),
    ],
)
def test_names_that_do_not(connection: fb.Broker, name: Any, error: type[Exception], said: str) -> None:
    """The argument, what is wrong, what would be right; nothing is created."""
    before = descriptors(), connection._status()["timelines"]
    with pytest.raises(error, match=said):
        connection.create_timeline(name)
    with pytest.raises((ValueError, TypeError)):
        connection.open_timeline(name if name != "a/b" else "nobody at all/b")
    assert (descriptors(), connection._status()["timelines"]) == before


@pytest.mark.parametrize(
    ("point", "error", "said"),
    [
        ("camera0", ValueError, "point must look like 'camera0@7', not 'camera0'"),
        ("camera0@", ValueError, "point must end in '@' and a seqno"),
        ("camera0@x", ValueError, "point must end in '@' and a seqno"),
        ("camera0@-1", ValueError, "point must end in '@' and a seqno"),
        ("camera0@1.5", ValueError, "point must end in '@' and a seqno"),
        ("camera0@ 1", ValueError, "point must end in '@' and a seqno"),
        ("camera0@\uff11", ValueError, "point must end in '@' and a seqno"),
        ("camera0@" + "9" * 20, ValueError, r"the seqno in point must be between 0 and 2\*\*64-1"),
        ("camera0@" + "9" * 400, ValueError, "point must end in '@' and a seqno"),
        ("@1", ValueError, "the timeline in point must not be empty"),
        ("/camera0@1", ValueError, "point has an empty user"),
        ("a/b/camera0@1", ValueError, "the user in point must be printable and free of '@', '/', ':' and '#'"),
        ("a@b@1", ValueError, "the timeline in point must be printable"),
        ("x" * 256 + "@1", ValueError, "the timeline in point is 256 bytes long"),
        ("no such user/camera0@1", ValueError, "there is no user 'no such user' on this machine"),
        ("4294967295/camera0@1", ValueError, "the user must be a name, or a uid below"),
        ("99999999999/camera0@1", ValueError, "the user must be a name, or a uid below"),
        (7, TypeError, "point must be a str such as 'camera0@7', not int"),
        (b"camera0@1", TypeError, "point must be a str"),
        (None, TypeError, "point must be a str"),
    ],
)
def test_points_out_of_form(connection: fb.Broker, point: Any, error: type[Exception], said: str) -> None:
    """What is wrong with the string, and what a right one looks like."""
    before = descriptors(), connection._status()["sync_files"]
    with pytest.raises(error, match=said):
        connection.sync_file(point)
    assert (descriptors(), connection._status()["sync_files"]) == before


def test_a_point_may_name_its_user(connection: fb.Broker) -> None:
    """``user/name`` by name or number; one's own too."""
    me = pwd.getpwuid(os.getuid()).pw_name
    with connection.create_timeline("mine") as timeline:
        timeline.advance(1)
        for user in (me, str(os.getuid())):
            with connection.sync_file(f"{user}/mine@1") as fence, connection.open_timeline(f"{user}/mine") as other:
                fence.wait(LIMIT)
                assert other.context == timeline.context


@pytest.mark.parametrize(
    ("mode", "error", "said"),
    [
        (-1, ValueError, "mode must be permission bits between 0 and 0o777"),
        (0o1000, ValueError, "mode must be permission bits between 0 and 0o777, not 0o1000"),
        (True, TypeError, "mode must be an int such as 0o600, not bool"),
        ("0600", TypeError, "mode must be an int such as 0o600, not str"),
        (None, TypeError, "mode must be an int"),
    ],
)
def test_modes_are_checked(connection: fb.Broker, mode: Any, error: type[Exception], said: str) -> None:
    """Permission bits, as a file has them."""
    with pytest.raises(error, match=said):
        connection.create_timeline("m", mode=mode)


@pytest.mark.parametrize("expiry", [0, -1, 1e9, float("inf"), float("nan"), 10**400])
def test_expiries_out_of_range(connection: fb.Broker, expiry: float) -> None:
    """More than 0 and less than 1e9 seconds."""
    with pytest.raises(ValueError, match="expiry must be more than 0 and less than 1e9 seconds"):
        connection.create_timeline(expiry=expiry)
    with pytest.raises(ValueError, match="expiry must be more than 0 and less than 1e9 seconds"):
        connection.sync_file("x@1", expiry=expiry)


@pytest.mark.parametrize("expiry", [True, "1", b"1", [1]])
def test_expiries_of_another_type(connection: fb.Broker, expiry: Any) -> None:
    """Seconds, or None."""
    with pytest.raises(TypeError, match="expiry must be a number of seconds or None"):
        connection.create_timeline(expiry=expiry)


def test_a_timeline_that_is_not_there_cannot_be_opened(connection: fb.Broker) -> None:
    """The error names it."""
    with pytest.raises(FileNotFoundError, match="there is no timeline 'nowhere' here"):
        connection.open_timeline("nowhere")


# Expiry and deadlines


def test_expiry_is_a_promise(connection: fb.Broker) -> None:
    """So long after a point was first asked for it fails with ETIME, not earlier; signalled in time it is OK."""
    with connection.create_timeline("promise", expiry=0.1) as timeline:
        began = time.monotonic_ns()
        with timeline.export(1) as met, timeline.export(2) as late:
            expires = connection.info(late).expires_ns
            assert expires is not None
            assert expires >= began + 100_000_000
            timeline.advance(1)
            with pytest.raises(fb.FenceError, match=r"promise@2 expired before its producer signalled it \(producer: pid \d+") as caught:
                late.wait(LIMIT)
            assert caught.value.error == errno.ETIME
            met.wait(0)
            info = connection.info(late)
            assert expires <= info.timestamp_ns <= time.monotonic_ns()
            timeline.advance(2)
            assert connection.info(late) == info


def test_an_expiry_reaches_whoever_merged_it(connection: fb.Broker) -> None:
    """A merged fence fails with the first error of its members."""
    with connection.create_timeline(expiry=0.05) as short, connection.create_timeline() as long, contextlib.ExitStack() as stack:
        expiring, patient = (stack.enter_context(timeline.export(1)) for timeline in (short, long))
        both = stack.enter_context(connection.merge([expiring, patient]))
        either = stack.enter_context(connection.merge([expiring, patient], when="any"))
        assert error_of(either) == errno.ETIME
        assert both.status() == 0
        long.advance(1)
        assert error_of(both) == errno.ETIME


def test_a_deadline_is_a_hint(connection: fb.Broker) -> None:
    """The soonest one stands, on every member; the producer reads it; nothing ends when it passes."""
    with connection.create_timeline() as first, connection.create_timeline() as second, contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(timeline.export(1)) for timeline in (first, second))
        both = stack.enter_context(connection.merge([one, two]))
        assert connection.info(one).deadline_ns is None
        now = time.monotonic_ns()
        one.set_deadline(now + 5)
        both.set_deadline(now + 9)
        both.set_deadline(now + 20)
        assert [connection.info(fence).deadline_ns for fence in (one, two, both)] == [now + 5, now + 9, now + 9]
        two.set_deadline(0)
        assert connection.info(two).deadline_ns == 0
        assert connection.info(both).fences[1].deadline_ns == 0
        assert both.status() == 0
        first.advance(1)
        second.advance(1)
        both.wait(LIMIT)
        one.set_deadline(3)
        assert connection.info(one).deadline_ns == now + 5


def test_a_deadline_needs_a_connection(spawn: Spawn, broker: BrokerProcess) -> None:
    """It goes through the broker; without one the error says what to do."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        child = spawn(
            """
            import sys, fencebroker as fb
            with fb.SyncFile.from_fd(int(sys.argv[1])) as fence:
                try:
                    fence.set_deadline(5)
                except fb.BrokerUnavailable as err:
                    print(err)
                with fb.connect():
                    fence.set_deadline(7)
            """,
            fence.fileno(),
            pass_fds=[fence.fileno()],
            env=broker.env,
        )
        assert "use fencebroker.connect()" in child.finish()
        assert connection.info(fence).deadline_ns == 7


# A name is kept by what was asked with it


def test_names_after_the_fact(connection: fb.Broker) -> None:
    """Unlike the kernel's, names stay readable after the fence has signalled."""
    with connection.create_timeline("kept") as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        timeline.close()
        info = connection.info(fence)
        assert (info.fences[0].obj_name, info.status, info.name) == ("kept", 1, f"fencebroker-kept{timeline.context}-1")
