"""``fencebroker.kernel``: fences by themselves: references, one signal, errors, callbacks, order."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from fencebroker import kernel as k
from fencebroker.errors import BrokerUnavailable
from tests.helpers import LIMIT
from tests.process.kernel_support import Driver, driver

__all__ = ["driver"]


def callback(fence: k.dma_fence, called: list[object], what: object = None) -> k.dma_fence_cb:
    """Register a callback that notes that it was called."""
    cb = k.dma_fence_cb()
    assert k.dma_fence_add_callback(fence, cb, lambda *_: called.append(what)) == 0
    return cb


# -- references


def test_the_census_counts_what_is_outstanding(driver: Driver) -> None:
    assert k.references() == {}
    fence = driver.fence()
    assert k.references() == {"dma_fence": 1}
    assert k.dma_fence_get(fence) is fence
    assert k.references() == {"dma_fence": 2}
    k.dma_fence_put(fence)
    k.dma_fence_put(fence)
    assert k.references() == {}


def test_get_and_put_of_nothing(driver: Driver) -> None:
    assert k.dma_fence_get(None) is None
    k.dma_fence_put(None)


def test_a_fence_is_gone_after_its_last_reference(driver: Driver) -> None:
    fence = driver.fence()
    k.dma_fence_put(fence)
    for use in (k.dma_fence_get, k.dma_fence_put, k.dma_fence_signal, k.dma_fence_is_signaled, k.dma_fence_get_status, k.sync_file_create):
        with pytest.raises(ReferenceError, match="reference"):
            use(fence)
    assert repr(fence) == "<dma_fence without a reference>"


def test_a_fence_that_was_never_initialised_is_refused(driver: Driver) -> None:
    with pytest.raises(ReferenceError, match=r"dma_fence_init\(\) was not called"):
        k.dma_fence_signal(k.dma_fence())
    with pytest.raises(ReferenceError):
        k.dma_fence_put(k.dma_fence())


def test_a_fence_may_be_initialised_again_when_it_is_gone(driver: Driver) -> None:
    fence = driver.fence(1)
    with pytest.raises(ValueError, match="live"):
        k.dma_fence_init(fence, k.dma_fence_ops(), None, driver.context, 2)
    k.dma_fence_set_error(fence, -errno.EIO)
    k.dma_fence_signal(fence)
    k.dma_fence_put(fence)
    k.dma_fence_init(fence, k.dma_fence_ops(), None, driver.context, 2)
    assert (k.dma_fence_get_status(fence), fence.error, fence.timestamp, fence.seqno) == (0, 0, 0, 2)
    k.dma_fence_put(fence)


def test_the_last_put_calls_release(driver: Driver) -> None:
    released: list[k.dma_fence] = []
    fence = driver.fence(ops=k.dma_fence_ops(release=released.append))
    k.dma_fence_get(fence)
    k.dma_fence_put(fence)
    assert released == []
    k.dma_fence_put(fence)
    assert released == [fence]


def test_a_driver_embeds_a_fence_in_a_struct_of_its_own(driver: Driver) -> None:
    class Job(k.dma_fence):
        def __init__(self, name: str) -> None:
            self.name = name

    job = Job("blit")
    k.dma_fence_init(job, k.dma_fence_ops(get_timeline_name=lambda job: job.name), None, driver.context, 1)
    assert k.dma_fence_timeline_name(job) == "blit"
    k.dma_fence_put(job)


# -- the signal


def test_the_first_signal_counts(driver: Driver) -> None:
    fence = driver.fence()
    assert (k.dma_fence_is_signaled(fence), k.dma_fence_get_status(fence), fence.timestamp) == (False, 0, 0)
    before = time.monotonic_ns()
    assert k.dma_fence_signal(fence) == 0
    stamp = fence.timestamp
    assert before <= stamp <= time.monotonic_ns()
    assert (k.dma_fence_is_signaled(fence), k.dma_fence_get_status(fence)) == (True, 1)
    assert k.dma_fence_signal(fence) == -errno.EINVAL
    assert k.dma_fence_check_and_signal(fence) is True
    assert (fence.timestamp, k.dma_fence_get_status(fence)) == (stamp, 1)
    k.dma_fence_put(fence)


def test_check_and_signal_says_whether_it_had_signalled(driver: Driver) -> None:
    fence = driver.fence()
    assert k.dma_fence_check_and_signal(fence) is False
    assert k.dma_fence_check_and_signal(fence) is True
    k.dma_fence_put(fence)


def test_of_many_threads_one_signals(driver: Driver) -> None:
    for seqno in range(1, 21):
        fence = driver.fence(seqno)
        results: list[int] = []
        start = threading.Barrier(4)

        def signal(fence: k.dma_fence = fence, results: list[int] = results, start: threading.Barrier = start) -> None:
            start.wait(LIMIT)
            results.append(k.dma_fence_signal(fence))

        threads = [threading.Thread(target=signal) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert sorted(results) == [-errno.EINVAL] * 3 + [0]
        k.dma_fence_put(fence)


def test_points_signal_by_themselves_and_in_any_order(driver: Driver) -> None:
    fences = [driver.fence(seqno) for seqno in (1, 2, 3)]
    assert k.dma_fence_signal(fences[2]) == 0
    assert [k.dma_fence_get_status(fence) for fence in fences] == [0, 0, 1]
    assert k.dma_fence_signal(fences[0]) == 0
    assert [k.dma_fence_get_status(fence) for fence in fences] == [1, 0, 1]
    for fence in fences:
        k.dma_fence_put(fence)


@pytest.mark.parametrize("error", [-1, -errno.EIO, -4095])
def test_an_error_shows_only_after_the_signal(driver: Driver, error: int) -> None:
    fence = driver.fence()
    k.dma_fence_set_error(fence, error)
    assert k.dma_fence_get_status(fence) == 0
    assert k.dma_fence_signal(fence) == 0
    assert k.dma_fence_get_status(fence) == error
    k.dma_fence_put(fence)


@pytest.mark.parametrize("error", [0, 1, errno.EIO, -4096, -(2**40)])
def test_an_error_out_of_range_is_refused(driver: Driver, error: int) -> None:
    fence = driver.fence()
    with pytest.raises(ValueError, match="between -1 and -4095"):
        k.dma_fence_set_error(fence, error)
    k.dma_fence_signal(fence)
    assert k.dma_fence_get_status(fence) == 1
    k.dma_fence_put(fence)


def test_an_error_after_the_signal_is_ignored_with_a_warning(driver: Driver) -> None:
    fence = driver.fence()
    k.dma_fence_signal(fence)
    with pytest.warns(RuntimeWarning, match="after it signalled"):
        k.dma_fence_set_error(fence, -errno.EIO)
    assert k.dma_fence_get_status(fence) == 1
    k.dma_fence_put(fence)


def test_a_driver_may_be_asked_instead_of_telling(driver: Driver) -> None:
    done = False
    fence = driver.fence(ops=k.dma_fence_ops(signaled=lambda _: done))
    assert not k.dma_fence_is_signaled(fence)
    done = True
    called: list[object] = []
    callback(fence, called)
    assert k.dma_fence_get_status(fence) == 1
    assert called == [None]
    k.dma_fence_put(fence)


def test_enable_signaling_is_called_once_and_may_say_that_it_has_passed(driver: Driver) -> None:
    asked: list[int] = []

    def enable(fence: k.dma_fence) -> bool:
        asked.append(fence.seqno)
        return fence.seqno != 2

    ops = k.dma_fence_ops(enable_signaling=enable)
    called: list[object] = []
    waiting = driver.fence(1, ops)
    callback(waiting, called, 1)
    callback(waiting, called, 2)
    assert asked == [1]
    passed = driver.fence(2, ops)
    assert k.dma_fence_add_callback(passed, k.dma_fence_cb(), lambda *_: called.append("never")) == -errno.ENOENT
    assert k.dma_fence_get_status(passed) == 1
    assert (asked, called) == ([1, 2], [])
    exported = driver.fence(3, ops)
    sync_file = k.sync_file_create(exported)  # who polls a descriptor cannot be seen
    assert sync_file is not None
    assert asked == [1, 2, 3]
    k.dma_fence_enable_sw_signaling(exported)
    assert asked == [1, 2, 3]
    k.fput(sync_file.file)
    k.dma_fence_signal(waiting)
    assert called == [1, 2]
    for fence in (waiting, passed, exported):
        k.dma_fence_put(fence)


# -- callbacks


def test_callbacks_run_once_in_order_in_the_signalling_thread(driver: Driver) -> None:
    fence = driver.fence()
    called: list[tuple[int, int]] = []
    for number in range(5):
        cb = k.dma_fence_cb()
        assert k.dma_fence_add_callback(fence, cb, lambda *_, number=number: called.append((number, threading.get_ident()))) == 0
    k.dma_fence_signal(fence)
    k.dma_fence_signal(fence)
    assert called == [(number, threading.get_ident()) for number in range(5)]
    k.dma_fence_put(fence)


def test_a_callback_gets_the_fence_and_its_struct_and_sees_the_signal(driver: Driver) -> None:
    class Wait(k.dma_fence_cb):
        seen: object = None

    def note(fence: k.dma_fence, cb: Wait) -> None:
        cb.seen = fence, k.dma_fence_get_status(fence), fence.timestamp > 0

    fence, cb = driver.fence(), Wait()
    k.dma_fence_set_error(fence, -errno.ENODATA)
    assert k.dma_fence_add_callback(fence, cb, note) == 0
    k.dma_fence_signal(fence)
    assert cb.seen == (fence, -errno.ENODATA, True)
    k.dma_fence_put(fence)


def test_a_signalled_fence_takes_no_callback(driver: Driver) -> None:
    fence = driver.fence()
    k.dma_fence_signal(fence)
    called: list[object] = []
    cb = k.dma_fence_cb()
    assert k.dma_fence_add_callback(fence, cb, lambda *_: called.append(1)) == -errno.ENOENT
    assert called == []
    assert k.dma_fence_remove_callback(fence, cb) is False
    k.dma_fence_put(fence)


def test_no_fence_or_no_function(driver: Driver) -> None:
    fence = driver.fence()
    assert k.dma_fence_add_callback(None, k.dma_fence_cb(), print) == -errno.EINVAL
    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), None) == -errno.EINVAL
    k.dma_fence_put(fence)


def test_a_removed_callback_is_not_called(driver: Driver) -> None:
    fence = driver.fence()
    called: list[object] = []
    first, second = callback(fence, called, 1), callback(fence, called, 2)
    assert k.dma_fence_remove_callback(fence, first) is True
    assert k.dma_fence_remove_callback(fence, first) is False
    k.dma_fence_signal(fence)
    assert called == [2]
    assert k.dma_fence_remove_callback(fence, second) is False
    k.dma_fence_put(fence)


def test_one_struct_is_on_one_fence_and_may_be_used_again(driver: Driver) -> None:
    first, second = driver.fence(1), driver.fence(2)
    called: list[object] = []
    cb = callback(first, called, 1)
    with pytest.raises(ValueError, match="registered already"):
        k.dma_fence_add_callback(second, cb, print)
    k.dma_fence_signal(first)
    assert k.dma_fence_add_callback(second, cb, lambda *_: called.append(2)) == 0
    k.dma_fence_signal(second)
    assert called == [1, 2]
    for fence in (first, second):
        k.dma_fence_put(fence)


def test_a_callback_may_put_the_last_reference(driver: Driver) -> None:
    released: list[k.dma_fence] = []
    fence = driver.fence(ops=k.dma_fence_ops(release=released.append))
    called: list[object] = []
    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda fence, _: k.dma_fence_put(fence)) == 0
    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda fence, _: called.append(k.dma_fence_get_status(fence))) == 0
    assert k.dma_fence_signal(fence) == 0
    assert (called, released) == ([1], [fence])


def test_a_callback_may_signal_another_fence_and_register_there(driver: Driver) -> None:
    first, second, third = (driver.fence(seqno) for seqno in (1, 2, 3))
    called: list[object] = []

    def follow(fence: k.dma_fence, cb: k.dma_fence_cb) -> None:
        called.append("first")
        k.dma_fence_signal(second)
        assert k.dma_fence_add_callback(third, cb, lambda *_: called.append("third")) == 0
        assert k.dma_fence_remove_callback(first, cb) is False

    assert k.dma_fence_add_callback(first, k.dma_fence_cb(), follow) == 0
    callback(second, called, "second")
    k.dma_fence_signal(first)
    assert called == ["first", "second"]
    k.dma_fence_signal(third)
    assert called == ["first", "second", "third"]
    for fence in (first, second, third):
        k.dma_fence_put(fence)


def test_two_threads_whose_callbacks_signal_each_others_fence_do_not_block(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(2)
    meet = threading.Barrier(2)
    results: list[int] = []

    def cross(other: k.dma_fence) -> None:
        meet.wait(LIMIT)
        results.append(k.dma_fence_signal(other))

    for fence, other in ((one, two), (two, one)):
        assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda *_, other=other: cross(other)) == 0
    threads = [threading.Thread(target=k.dma_fence_signal, args=[fence], daemon=True) for fence in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert results == [-errno.EINVAL] * 2
    for fence in (one, two):
        k.dma_fence_put(fence)


def test_remove_waits_for_a_callback_that_runs(driver: Driver) -> None:
    fence = driver.fence()
    started, go, finished = threading.Event(), threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        started.set()
        assert go.wait(LIMIT)
        finished.set()

    cb = k.dma_fence_cb()
    assert k.dma_fence_add_callback(fence, cb, slow) == 0
    signaller = threading.Thread(target=k.dma_fence_signal, args=[fence])
    signaller.start()
    assert started.wait(LIMIT)
    seen: list[tuple[bool, bool]] = []
    remover = threading.Thread(target=lambda: seen.append((k.dma_fence_remove_callback(fence, cb), finished.is_set())))
    remover.start()
    go.set()
    for thread in (remover, signaller):
        thread.join(LIMIT)
    assert seen == [(False, True)]
    k.dma_fence_put(fence)


def test_a_callback_that_raises_does_not_stop_the_next(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    fence = driver.fence()
    called: list[object] = []

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of the consumer")

    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), broken) == 0
    callback(fence, called)
    assert k.dma_fence_signal(fence) == 0
    assert called == [None]
    assert "a bug of the consumer" in caplog.text
    k.dma_fence_put(fence)


def test_an_interrupt_in_a_callback_goes_on_when_the_others_were_called(driver: Driver) -> None:
    fence = driver.fence()
    called: list[object] = []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), interrupted) == 0
    callback(fence, called)
    with pytest.raises(KeyboardInterrupt):
        k.dma_fence_signal(fence)
    assert called == [None]
    k.dma_fence_put(fence)


def test_signal_or_callback_exactly_one_wins(driver: Driver) -> None:
    """Registered in time and called, or refused with ENOENT: never neither, never both."""
    for seqno in range(1, 101):
        fence, called = driver.fence(seqno), []  # type: ignore[var-annotated]
        start = threading.Barrier(2)
        signaller = threading.Thread(target=lambda fence=fence, start=start: (start.wait(LIMIT), k.dma_fence_signal(fence)))
        signaller.start()
        start.wait(LIMIT)
        result = k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda *_, called=called: called.append(1))
        signaller.join(LIMIT)
        assert (result, called) in ((0, [1]), (-errno.ENOENT, []))
        k.dma_fence_put(fence)


def test_released_with_callbacks_pending_is_a_deadlock_that_is_broken(driver: Driver) -> None:
    statuses: list[int] = []
    fence = driver.fence()
    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda fence, _: statuses.append(k.dma_fence_get_status(fence))) == 0
    with pytest.warns(RuntimeWarning, match=rf"{driver.context}:1 was released with callbacks pending"):
        k.dma_fence_put(fence)
    assert statuses == [-errno.EDEADLK]


def test_released_without_callbacks_nothing_happens(driver: Driver) -> None:
    fence = driver.fence()
    called: list[object] = []
    cb = callback(fence, called)
    k.dma_fence_remove_callback(fence, cb)
    k.dma_fence_put(fence)
    assert called == []


def test_callbacks_run_with_the_drivers_lock_held(driver: Driver) -> None:
    lock = threading.Lock()
    fence = k.dma_fence()
    k.dma_fence_init(fence, k.dma_fence_ops(), lock, driver.context, 1)
    held: list[bool] = []
    assert k.dma_fence_add_callback(fence, k.dma_fence_cb(), lambda *_: held.append(lock.locked())) == 0
    assert k.dma_fence_signal(fence) == 0
    assert (held, lock.locked()) == ([True], False)
    with lock:
        assert k.dma_fence_signal_locked(fence) == -errno.EINVAL
    k.dma_fence_put(fence)


# -- order


def test_later_within_a_context(driver: Driver) -> None:
    one, two = driver.fence(1), driver.fence(2**64 - 1)
    assert k.dma_fence_is_later(two, one)
    assert not k.dma_fence_is_later(one, two)
    assert not k.dma_fence_is_later(one, one)
    assert k.dma_fence_is_later_or_same(one, one)
    assert not k.dma_fence_is_later_or_same(one, two)
    assert k.dma_fence_later(one, two) is two
    assert k.dma_fence_later(two, one) is two
    k.dma_fence_signal(two)
    assert k.dma_fence_later(one, two) is None
    assert k.references() == {"dma_fence": 2}
    for fence in (one, two):
        k.dma_fence_put(fence)


def test_fences_of_two_contexts_have_no_order(driver: Driver) -> None:
    one, other = driver.fence(1), driver.fence(2, context=k.dma_fence_context_alloc(1))
    for compare, nothing in ((k.dma_fence_is_later, False), (k.dma_fence_is_later_or_same, False), (k.dma_fence_later, None)):
        with pytest.warns(RuntimeWarning, match="no order"):
            assert compare(one, other) is nothing
    for fence in (one, other):
        k.dma_fence_put(fence)


# -- contexts and the stub


def test_contexts_come_in_a_row_and_are_never_used_again(driver: Driver) -> None:
    first = k.dma_fence_context_alloc(4)
    fences = [driver.fence(1, context=first + n) for n in range(4)]
    assert [fence.context for fence in fences] == [first, first + 1, first + 2, first + 3]
    for fence in fences:
        k.dma_fence_put(fence)
    k.dma_fence_context_free(first, 4)
    assert k.dma_fence_context_alloc(1) >= first + 4


def test_contexts_come_in_a_row_although_others_take_some_too(driver: Driver) -> None:
    rows: list[int] = []
    threads = [threading.Thread(target=lambda: rows.append(k.dma_fence_context_alloc(3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    numbers = [number for first in rows for number in range(first, first + 3)]
    assert len(numbers) == len(set(numbers)) == 12
    for first in rows:
        k.dma_fence_context_free(first, 3)


def test_a_freed_context_fails_its_fences(driver: Driver) -> None:
    context = k.dma_fence_context_alloc(1)
    done, two, one = (driver.fence(seqno, context=context) for seqno in (3, 2, 1))
    called: list[object] = []
    callback(two, called, "two")
    callback(one, called, "one")
    k.dma_fence_signal(done)
    k.dma_fence_context_free(context)
    assert [k.dma_fence_get_status(fence) for fence in (one, two, done)] == [-errno.ENOENT, -errno.ENOENT, 1]
    assert called == ["one", "two"]
    for fence in (one, two, done):
        k.dma_fence_put(fence)
    with pytest.raises(ValueError, match="context must be one from"):
        k.dma_fence_context_free(context)
    with pytest.raises(ValueError, match="context must be one from"):
        driver.fence(1, context=context)


def test_two_active_fences_of_one_point_are_refused(driver: Driver) -> None:
    fence = driver.fence(5)
    with pytest.raises(ValueError, match="seqno 5"):
        driver.fence(5)
    k.dma_fence_put(fence)
    k.dma_fence_put(driver.fence(5))


def test_the_stub_is_one_and_has_signalled(driver: Driver) -> None:
    stub = k.dma_fence_get_stub()
    assert k.dma_fence_get_stub() is stub
    assert (stub.context, stub.seqno, k.dma_fence_get_status(stub)) == (0, 0, 1)
    assert 0 < stub.timestamp <= time.monotonic_ns()
    assert (k.dma_fence_driver_name(stub), k.dma_fence_timeline_name(stub)) == ("stub", "stub")
    assert k.dma_fence_add_callback(stub, k.dma_fence_cb(), print) == -errno.ENOENT
    assert k.dma_fence_signal(stub) == -errno.EINVAL
    assert k.references() == {"dma_fence": 2}
    k.dma_fence_put(stub)
    k.dma_fence_put(stub)
    assert k.dma_fence_get_status(stub) == 1
    with pytest.raises(ReferenceError):
        k.dma_fence_put(stub)


def test_a_deadline_reaches_the_driver(driver: Driver) -> None:
    wanted: list[int] = []
    fence = driver.fence(ops=k.dma_fence_ops(set_deadline=lambda _, deadline: wanted.append(deadline)))
    k.dma_fence_set_deadline(fence, 5)
    k.dma_fence_signal(fence)
    k.dma_fence_set_deadline(fence, 4)
    assert wanted == [5]
    k.dma_fence_put(fence)


# -- bad input


def test_wrong_arguments_name_themselves(driver: Driver) -> None:
    fence = driver.fence()
    calls: list[tuple[object, str]] = [
        (lambda: k.dma_fence_signal(7), "fence must be a dma_fence, not int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_get("x"), "fence must be a dma_fence, not str"),  # type: ignore[call-overload]
        (lambda: k.dma_fence_put(1.5), "fence must be a dma_fence, not float"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_init(1, k.dma_fence_ops(), None, 1, 1), "fence must be a dma_fence, not int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_init(k.dma_fence(), None, None, 1, 1), "ops must be a dma_fence_ops, not NoneType"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_init(k.dma_fence(), k.dma_fence_ops(), 3, 1, 1), "lock must be a lock"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_init(k.dma_fence(), k.dma_fence_ops(), None, True, 1), "context must be an int, not bool"),
        (lambda: k.dma_fence_init(k.dma_fence(), k.dma_fence_ops(), None, 1, 1.0), "seqno must be an int, not float"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_context_alloc(True), "num must be an int, not bool"),
        (lambda: k.dma_fence_context_free("1"), "context must be an int, not str"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_set_error(fence, "EIO"), "error must be a negative errno"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_set_error(fence, True), "error must be a negative errno"),
        (lambda: k.dma_fence_add_callback(fence, print, print), "cb must be a dma_fence_cb"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_add_callback(fence, k.dma_fence_cb(), 3), "func must be callable, not int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_set_deadline(fence, 1.5), "deadline must be an int"),  # type: ignore[arg-type]
        (lambda: k.dma_fence_is_later(fence, 3), "f2 must be a dma_fence, not int"),  # type: ignore[arg-type]
    ]
    for call, text in calls:
        with pytest.raises(TypeError, match=text):
            call()  # type: ignore[operator]
    ranges: list[tuple[object, str]] = [
        (lambda: k.dma_fence_context_alloc(0), "num must be at least 1, not 0"),
        (lambda: k.dma_fence_context_alloc(1, driver=""), "driver must not be empty"),
        (lambda: driver.fence(0), "seqno must be between 1 and"),
        (lambda: driver.fence(2**64), "seqno must be between 1 and"),
        (lambda: driver.fence(1, context=10**6), "context must be one from"),
        (lambda: k.dma_fence_set_deadline(fence, -1), "deadline must be between 0"),
    ]
    for call, text in ranges:
        with pytest.raises(ValueError, match=text):
            call()  # type: ignore[operator]
    k.dma_fence_put(fence)


def test_no_broker_is_said_where_c_could_not_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FENCEBROKER_SOCKET", f"{tmp_path}/nothing")
    with pytest.raises(BrokerUnavailable, match="no broker answers"):
        k.dma_fence_context_alloc(1)
