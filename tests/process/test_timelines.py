"""The rules of a Timeline: what advance, fail and export mean, how it ends, and what may be said to it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors

U64_MAX = 2**64 - 1


def statuses(connection: fb.Broker, fences: Iterable[fb.SyncFile]) -> list[int]:
    """What they say after the broker has read what was sent before."""
    connection._status()
    return [fence.status() for fence in fences]


def close(fences: Iterable[fb.SyncFile]) -> None:
    for fence in fences:
        fence.close()


# Signalling


def test_advance_signals_up_to_the_value(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Every point at or below the value; the value is known to who signals."""
    fences = timeline.export_many([1, 2, 3, 5, 2**32, 2**63, U64_MAX])
    assert (timeline.value, statuses(connection, fences)) == (0, [0] * 7)
    for value, n in ((2, 2), (4, 3), (2**32, 5), (2**63, 6), (U64_MAX, 7)):
        timeline.advance(value)
        assert statuses(connection, fences) == [1] * n + [0] * (7 - n)
        assert timeline.value == value
    close(fences)


def test_advance_below_the_value_does_nothing(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """It is a maximum, and no error."""
    with timeline.export(6) as fence:
        timeline.advance(5)
        timeline.advance(3)
        timeline.advance(0)
        assert timeline.value == 5
        assert statuses(connection, [fence]) == [0]
        timeline.advance(5)
        assert statuses(connection, [fence]) == [0]


def test_inc(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """inc(n) adds n, by default 1; 0 is allowed; it stops at 2**64-1."""
    fences = timeline.export_many([1, 2, U64_MAX])
    timeline.inc(0)
    assert statuses(connection, fences) == [0, 0, 0]
    timeline.inc()
    assert statuses(connection, fences) == [1, 0, 0]
    timeline.inc(U64_MAX)
    assert statuses(connection, fences) == [1, 1, 1]
    timeline.inc(5)
    assert timeline.value == U64_MAX
    with pytest.raises(OSError, match="no next point"):
        timeline.export()
    close(fences)


def test_fail(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Everything below n is OK, n fails, the value is n; what is above stays; a later export of n has the error."""
    fences = timeline.export_many([1, 4, 5, 6])
    timeline.fail(5, errno.EIO)
    assert statuses(connection, fences) == [1, 1, -errno.EIO, 0]
    assert timeline.value == 5
    again = timeline.export_many([5, 4, 6])
    assert statuses(connection, again) == [-errno.EIO, 1, 0]
    for seqno in (5, 4, 0):
        with pytest.raises(ValueError, match=f"seqno must be above the timeline's value 5 to fail, not {seqno}"):
            timeline.fail(seqno, errno.EIO)
    timeline.fail(6, errno.ENODATA)
    assert statuses(connection, [fences[3], again[2]]) == [-errno.ENODATA] * 2
    close(fences + again)


def test_the_first_signal_counts(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Status and timestamp never change again."""
    with timeline.export(1) as fence:
        timeline.advance(1)
        first = connection.info(fence)
        timeline.advance(9)
        timeline.fail(10, errno.EIO)
        assert connection.info(fence) == first
        assert (first.status, first.timestamp_ns > first.created_ns) == (1, True)


def test_export_at_or_below_the_value_is_born_signalled(timeline: fb.Timeline) -> None:
    """Readable when it arrives; None means the next one."""
    timeline.advance(5)
    for seqno in (0, 1, 5):
        with timeline.export(seqno) as fence:
            fence.wait(0)
    with timeline.export() as following, timeline.export() as next_one:
        assert (following.label, next_one.label) == (f"{timeline.context}@6", f"{timeline.context}@7")
        timeline.advance(6)
        following.wait(LIMIT)
        assert next_one.status() == 0


def test_one_point_is_one_fence(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Exporting a point twice gives two sync_files of the same fence."""
    with timeline.export(3, name="first") as first, timeline.export(3, name="second") as second:
        infos = connection.info(first), connection.info(second)
        assert [info.name for info in infos] == ["first", "second"]
        assert len({(info.context, info.seqno, info.fences) for info in infos}) == 1
        timeline.advance(3)
        assert connection.info(first).timestamp_ns == connection.info(second).timestamp_ns > 0


def test_several_holders_of_one_timeline(connection: fb.Broker) -> None:
    """Two handles of one timeline: a late smaller value lowers nothing; the timeline ends with the last of them."""
    with connection.create_timeline("shared0") as first:
        fences = first.export_many([1, 2, 3])
        with connection.open_timeline("shared0") as second:
            assert second.context == first.context
            second.advance(2)
            first.advance(1)
            assert statuses(connection, fences) == [1, 1, 0]
            first.close()
            assert statuses(connection, fences) == [1, 1, 0]
            third = second.export(4)
        assert statuses(connection, [*fences, third]) == [1, 1, -errno.ENOENT, -errno.ENOENT]
        close([*fences, third])


def test_an_opened_handle_knows_the_value(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """It starts where the timeline is: failing below it is refused here, not in silence there."""
    with connection.create_timeline("shared1") as first:
        first.advance(7)
        with connection.open_timeline("shared1") as second:
            assert second.value == 7
            with pytest.raises(ValueError, match="above the timeline's value 7"):
                second.fail(7, errno.EIO)
            second.inc()
            assert second.value == 8


def test_concurrent_inc_and_fail_never_swallow_an_advance(spawn: Spawn, broker: BrokerProcess) -> None:
    """While the broker is slow an advance waits for room; an inc or a fail that is sent first does not make it forgotten."""
    child = spawn(
        """
        import errno, os, signal, socket, threading
        import fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(1000) as fence:
            signaller = timeline._signaller
            os.killpg(os.getpgid(broker._connection.pid), signal.SIGSTOP)  # keeper and all
            sent = 0
            try:
                while True:
                    signaller.inc(1, socket.MSG_DONTWAIT)
                    sent += 1
            except BlockingIOError:
                pass
            assert not signaller.advance_nowait(1000)  # no room: wanted, and not sent
            os.killpg(os.getpgid(broker._connection.pid), signal.SIGCONT)
            broker._status()
            timeline.inc(1)
            assert timeline.value == sent + 1, (timeline.value, sent)
            timeline.fail(sent + 2, errno.EIO)
            assert timeline.value == sent + 2
            timeline.advance(1000)
            fence.wait(10)
            print("signalled", timeline.value)
        """,
        env=broker.env,
    )
    assert child.finish() == "signalled 1000\n"


def test_a_slow_broker_makes_advance_wait_not_fail(spawn: Spawn, broker: BrokerProcess) -> None:
    """A full socket: advance keeps only the newest value and waits for room; nothing is lost when the broker goes on."""
    child = spawn(
        """
        import os, signal, threading
        import fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(5000) as fence:
            os.killpg(os.getpgid(broker._connection.pid), signal.SIGSTOP)  # keeper and all
            def produce():
                for value in range(1, 5001):
                    timeline.advance(value)
            thread = threading.Thread(target=produce)
            thread.start()
            while timeline.value < 200:
                pass  # until some hundred are in the socket
            assert fence.status() == 0
            os.killpg(os.getpgid(broker._connection.pid), signal.SIGCONT)
            thread.join(10)
            fence.wait(10)
            print("signalled", timeline.value)
        """,
        env=broker.env,
    )
    assert child.finish() == "signalled 5000\n"


# The end


def test_leaving_normally(connection: fb.Broker) -> None:
    """``with`` closes: what is active fails with -ENOENT, what has signalled stays."""
    with connection.create_timeline() as timeline:
        fences = timeline.export_many([1, 2])
        timeline.advance(1)
    assert timeline.closed
    assert statuses(connection, fences) == [1, -errno.ENOENT]
    close(fences)


def test_leaving_by_an_exception(connection: fb.Broker) -> None:
    """An exception cancels: -ECANCELED; the exception goes on."""
    with pytest.raises(ZeroDivisionError), connection.create_timeline() as timeline:  # noqa: PT012
        fences = timeline.export_many([1, 2])
        timeline.advance(1)
        raise ZeroDivisionError
    assert statuses(connection, fences) == [1, -errno.ECANCELED]
    close(fences)


def test_an_exception_cancels_also_what_others_hold_on_to(connection: fb.Broker) -> None:
    """Work was under way and will not be done, whoever still has a copy; the timeline itself lives on in their hands."""
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError), connection.create_timeline("shared2") as timeline:  # noqa: PT012
            other = stack.enter_context(connection.open_timeline("shared2"))
            fence = stack.enter_context(timeline.export(1))
            raise ZeroDivisionError
        assert statuses(connection, [fence]) == [-errno.ECANCELED]
        later = stack.enter_context(other.export(2))
        other.advance(2)
        later.wait(LIMIT)


def test_a_closed_timeline_says_so(connection: fb.Broker) -> None:
    """ValueError for every verb; a second close does nothing."""
    timeline = connection.create_timeline()
    timeline.close()
    timeline.close()
    calls: list[Callable[[], object]] = [
        timeline.export,
        lambda: timeline.export_many([1]),
        lambda: timeline.advance(1),
        timeline.inc,
        lambda: timeline.fail(1, errno.EIO),
        timeline.share,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="this timeline is closed"):
            call()
    assert repr(timeline).endswith("closed>")


def test_a_forgotten_timeline_warns_and_ends(connection: fb.Broker) -> None:
    """Like any descriptor that nobody closes."""
    timeline = connection.create_timeline()
    fence = timeline.export(1)
    fence._origin = None  # it remembers who signals it
    with pytest.warns(ResourceWarning, match="never closed"):
        del timeline
    assert statuses(connection, [fence]) == [-errno.ENOENT]
    fence.close()


# Exporting many


@pytest.mark.parametrize("n", [0, 1, 252, 253, 254, 600])
def test_export_many_in_any_number(connection: fb.Broker, timeline: fb.Timeline, n: int) -> None:
    """Up to 253 travel in one message, more go in several; each is the point asked for, in order."""
    fences = timeline.export_many(range(1, n + 1))
    assert len(fences) == n
    assert len({fence.fileno() for fence in fences}) == n
    timeline.advance(n // 2)
    assert statuses(connection, fences) == [1] * (n // 2) + [0] * (n - n // 2)
    close(fences)


def test_export_many_takes_any_order_and_repetition(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """The result is in the order of the question."""
    fences = timeline.export_many(iter([5, 1, 5, 0]))
    timeline.advance(1)
    assert statuses(connection, fences) == [0, 1, 0, 1]
    close(fences)


def test_export_many_is_all_or_none_for_bad_numbers(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """One bad number among many: nothing is exported, nothing is open."""
    before = descriptors(), connection._status()["sync_files"]
    for bad, error in ((-1, ValueError), (2**64, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"seqnos\[300\] must be"):
            timeline.export_many([*range(300), bad])  # type: ignore[list-item]
    assert (descriptors(), connection._status()["sync_files"]) == before


@pytest.mark.parametrize("limit", [128, 500])
def test_export_many_is_all_or_none_at_the_limit(start_limited: Callable[..., BrokerProcess], limit: int) -> None:
    """What does not fit, in the first message or in a later one, leaves nothing behind: no descriptor here, no sync_file there."""
    broker = start_limited(limit)
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        room = _fill(timeline)
        assert (room > 253) == (limit == 500)
        before = descriptors(), connection._status()["sync_files"]
        for wanted in (room + 1, 2 * room):
            with pytest.raises(fb.QuotaExceeded) as caught:
                timeline.export_many(range(1, wanted + 1))
            assert caught.value.errno in (errno.EDQUOT, errno.EMFILE)
            assert f"{caught.value.used} of {caught.value.limit} are in use" in str(caught.value)
            del caught
            assert (descriptors(), connection._status()["sync_files"]) == before
        close(timeline.export_many(range(1, room + 1)))


def _fill(timeline: fb.Timeline) -> int:
    """How many sync_files there is room for; all of them are closed again."""
    made: list[fb.SyncFile] = []
    with contextlib.suppress(fb.QuotaExceeded):
        while True:
            made.append(timeline.export())
    close(made)
    return len(made)


# Private


def test_a_private_export_is_a_sync_file_like_others(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """``private=True``: only the broker writes it; for its holder nothing else differs."""
    with timeline.export(1, private=True) as private, timeline.export(1) as plain:
        timeline.advance(1)
        private.wait(LIMIT)
        plain.wait(LIMIT)
        assert connection.info(private).fences == connection.info(plain).fences


# Types and ranges: checked here, before anything is sent

BAD_NUMBERS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (2**64, ValueError),
    (10**30, ValueError),
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    (b"1", TypeError),
    ([1], TypeError),
]


@pytest.mark.parametrize(("number", "error"), BAD_NUMBERS)
def test_seqnos_are_integers_of_64_bits(timeline: fb.Timeline, number: Any, error: type[Exception]) -> None:
    """Negative, too large, bool, float, text: the argument is named."""
    for call in (timeline.advance, timeline.export, lambda n: timeline.fail(n, errno.EIO)):
        with pytest.raises(error, match="seqno must be"):
            call(number)
    with pytest.raises(error, match="n must be"):
        timeline.inc(number)
    with timeline.export(1) as fence, pytest.raises(error, match="deadline_ns must be"):
        fence.set_deadline(number)


@pytest.mark.parametrize(
    ("number", "error"),
    [*BAD_NUMBERS, (0, ValueError), (-errno.EIO, ValueError), (4096, ValueError), (None, TypeError), ("EIO", TypeError)],
)
def test_errors_are_positive_errnos(timeline: fb.Timeline, number: Any, error: type[Exception]) -> None:
    """1..4095, as the kernel's MAX_ERRNO has it; a negative one is a mistake worth telling."""
    with pytest.raises(error, match="error must be a positive errno"):
        timeline.fail(1, number)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("x" * 32, ValueError, "name is 32 bytes long; at most 31 are allowed"),
        ("ü" * 16, ValueError, "name is 32 bytes long"),
        ("a\0b", ValueError, "name must not contain a NUL"),
        ("\ud800", ValueError, "name must be valid Unicode"),
        (b"frame", TypeError, "name must be a str, not bytes"),
        (7, TypeError, "name must be a str, not int"),
        (None, TypeError, "name must be a str, not NoneType"),
    ],
)
def test_sync_file_names_are_checked(connection: fb.Broker, timeline: fb.Timeline, name: Any, error: type[Exception], said: str) -> None:
    """At most 31 bytes of text, as in struct sync_merge_data."""
    with timeline.export(1) as fence:
        with pytest.raises(error, match=said):
            timeline.export(1, name=name)
        with pytest.raises(error, match=said):
            connection.merge([fence], name=name)


def test_a_sync_files_name_is_any_text(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """31 bytes, spaces, control characters: it is a label; empty means named by the broker, as the kernel does."""
    for name in ("x" * 31, "frame 1\n\x1b[31m", "é" * 15):
        with timeline.export(1, name=name) as fence:
            assert connection.info(fence).name == name
    with timeline.export(1) as fence:
        assert connection.info(fence).name.endswith(f"{timeline.context}-1")


def test_flags_are_bools(timeline: fb.Timeline) -> None:
    """1 is not True here."""
    with pytest.raises(TypeError, match="private must be a bool, not int"):
        timeline.export(1, private=1)  # type: ignore[arg-type]


def test_what_a_wrong_argument_costs(connection: fb.Broker, timeline: fb.Timeline) -> None:
    """Nothing: no descriptor, no request, no fence."""
    before = descriptors(), connection._connection._serial
    for number, error in BAD_NUMBERS:
        with pytest.raises(error):
            timeline.export(number)
        with pytest.raises(error):
            timeline.advance(number)
    assert (descriptors(), connection._connection._serial) == before
