"""asyncio: the same verbs, any number of tasks, and connections that are lost, closed, cancelled or forked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

import fencebroker as fb
from fencebroker import aio
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker, descriptors


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; what the loop's exception handler hears is a failure."""
    heard: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
        async with asyncio.timeout(3 * LIMIT):
            await main()

    asyncio.run(watched(), debug=False)
    assert not heard, heard


# The verbs


def test_the_same_verbs(module_broker: BrokerProcess) -> None:
    """connect, create, export, merge, by name, info, import, wait."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline("aio0") as timeline:
            with await timeline.export(1, name="one") as one, await timeline.export() as two, await broker.sync_file("aio0@1") as named:
                assert (await broker.info(one)).name == "one"
                assert two.label == "aio0@2"
                with await broker.merge([one, two], name="both") as both, await broker.import_sync_file(one) as private:
                    await timeline.advance(1)
                    for fence in (one, named, private):
                        await aio.wait(fence, LIMIT)
                    assert both.status() == 0
                    await timeline.inc()
                    await aio.wait(both)
                    async with await broker.open_timeline("aio0") as second:
                        await second.fail(5, errno.EIO)
                        with await timeline.export(5) as failed:
                            with pytest.raises(fb.FenceError, match=r"aio0@5 failed with EIO .*pid") as caught:
                                await aio.wait(failed)
                            assert caught.value.error == errno.EIO
            fences = await timeline.export_many(range(10, 610))
            assert len(fences) == 600
            for fence in fences:
                fence.close()

    run(main)


def test_wrong_arguments_are_the_same_errors(module_broker: BrokerProcess) -> None:
    """Checked in one place for both faces of the library."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            wrong: list[tuple[Callable[[], Awaitable[object]], type[Exception], str]] = [
                (lambda: timeline.advance(-1), ValueError, "seqno must be between"),
                (lambda: timeline.export(True), TypeError, "seqno must be an int"),
                (lambda: timeline.fail(1, 0), ValueError, "error must be a positive errno"),
                (lambda: timeline.inc(1.0), TypeError, "n must be an int"),  # type: ignore[arg-type]
                (lambda: timeline.export(1, name="x" * 32), ValueError, "name is 32 bytes"),
                (lambda: timeline.export_many([1, -1]), ValueError, r"seqnos\[1\] must be"),
                (lambda: broker.create_timeline(""), ValueError, "name must not be empty"),
                (lambda: broker.create_timeline(mode=0o1000), ValueError, "mode must be permission bits"),
                (lambda: broker.sync_file("x"), ValueError, "point must look like"),
                (lambda: broker.sync_file("x@1", expiry=0), ValueError, "expiry must be more than 0"),
                (lambda: broker.merge([]), ValueError, "fences must not be empty"),
                (lambda: broker.merge([0], when="some"), ValueError, "when must be"),  # type: ignore[arg-type]
                (lambda: broker.info(0), fb.NotASyncFile, "must be a sync_file"),
                (lambda: broker.import_sync_file(-1), ValueError, "fd must be an open descriptor"),
                (lambda: broker.open_timeline("none"), FileNotFoundError, "no timeline"),
                (lambda: aio.wait(0), TypeError, "fence must be a SyncFile, not int"),  # type: ignore[arg-type]
            ]
            for call, error, said in wrong:
                with pytest.raises(error, match=said):
                    await call()
            with await timeline.export(1) as fence:
                for timeout in (-1, math.nan):
                    with pytest.raises(ValueError, match="timeout must be 0 or more"):
                        await aio.wait(fence, timeout)
                with pytest.raises(TypeError, match="timeout must be a number"):
                    await aio.wait(fence, True)

    run(main)


def test_leaving_fails_what_is_active(module_broker: BrokerProcess) -> None:
    """-ENOENT normally, -ECANCELED by an exception."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker:
            async with await broker.create_timeline() as timeline:
                normal = await timeline.export(1)
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is left
                async with await broker.create_timeline() as timeline:
                    cancelled = await timeline.export(1)
                    raise ZeroDivisionError
            for fence, error in ((normal, errno.ENOENT), (cancelled, errno.ECANCELED)):
                with fence, pytest.raises(fb.FenceError) as caught:
                    await aio.wait(fence, LIMIT)
                assert caught.value.error == error

    run(main)


def test_events(module_broker: BrokerProcess) -> None:
    """An async iterator over a connection of its own."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker:
            events = broker.events()
            # What others have left may still be ending.
            own = (event async for event in events if event.timeline == "aio-events")
            first = asyncio.ensure_future(anext(own))
            async with await broker.create_timeline("aio-events") as timeline:
                while not first.done():  # it subscribes when it is first asked
                    await timeline.inc()
                    await broker_status(module_broker)
            assert (await first).pid == os.getpid()
            assert isinstance(events, AsyncGenerator)
            await own.aclose()
            await events.aclose()

    run(main)


async def broker_status(broker: BrokerProcess) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with fb.connect(broker.path) as connection:
            return connection._status()

    return await asyncio.to_thread(ask)


# Tasks


def test_several_tasks_one_cancelled_one_closing(module_broker: BrokerProcess) -> None:
    """Any number of tasks wait on one SyncFile: cancelling one and closing the object in another leaves the others waiting."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            for waits in (aio.wait, lambda f: aio.wait(f, LIMIT)):
                fence = await timeline.export(timeline.value + 1)
                tasks = [asyncio.ensure_future(waits(fence)) for _ in range(5)]
                await asyncio.sleep(0)
                tasks[2].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await tasks[2]
                fence.close()
                await broker_status(module_broker)
                with await timeline.export() as other:
                    assert (await broker.info(other)).status == 0  # the broker has heard of the close
                assert not any(task.done() for task in tasks[:2] + tasks[3:])
                await timeline.inc()
                await asyncio.gather(*tasks[:2], *tasks[3:])

    run(main)


def test_a_user_of_add_reader_is_not_replaced(module_broker: BrokerProcess) -> None:
    """asyncio's add_reader replaces silently: a wait watches a duplicate, so a reader on the SyncFile itself stays."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            with await timeline.export(1) as fence:
                called = asyncio.Event()
                loop.add_reader(fence.fileno(), called.set)
                one, two = (asyncio.ensure_future(aio.wait(fence, LIMIT)) for _ in range(2))
                await asyncio.sleep(0)
                one.cancel()
                await timeline.advance(1)
                await two
                await asyncio.wait_for(called.wait(), LIMIT)
                assert loop.remove_reader(fence.fileno())

    run(main)


def test_many_requests_at_once(module_broker: BrokerProcess) -> None:
    """50 tasks ask over one connection: each gets its own answers; cancelling some of them in the middle swaps none and leaks none."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            before = descriptors()

            async def ask(i: int) -> None:
                for n in range(10):
                    seqno = 100 * i + n + 1
                    with await timeline.export(seqno, name=f"{i}-{n}") as fence:
                        info = await broker.info(fence)
                        assert (info.name, info.seqno) == (f"{i}-{n}", seqno)

            tasks = [asyncio.ensure_future(ask(i)) for i in range(50)]
            for i in range(0, 50, 3):
                await asyncio.sleep(0)
                tasks[i].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
            assert sum(result is None for result in results) >= 33
            # One more round: what answered a cancelled request is closed by then.
            (await timeline.export(9999)).close()
            assert descriptors() == before
        status = await broker_status(module_broker)
        assert status["active_fences"] == 0

    run(main)


def test_cancelled_at_every_moment(module_broker: BrokerProcess) -> None:
    """A request that is cancelled after any number of turns of the loop leaves the connection in order."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            before = descriptors()
            for turns in range(12):
                task = asyncio.ensure_future(timeline.export(1000 + turns))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await task).close()
                with await timeline.export(1) as fence:
                    assert (await broker.info(fence)).seqno == 1
            assert descriptors() == before

    run(main)


def test_timeouts(module_broker: BrokerProcess) -> None:
    """Seconds, 0 asks now, infinity is no limit; an asyncio.timeout around it works too."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            with await timeline.export(1) as fence:
                for timeout in (0, 0.02):
                    with pytest.raises(TimeoutError, match=f"{timeline.context}@1"):
                        await aio.wait(fence, timeout)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await aio.wait(fence)
                waiting = [asyncio.ensure_future(aio.wait(fence, timeout)) for timeout in (None, math.inf, 10**400, 1e300)]
                await asyncio.sleep(0)
                await timeline.advance(1)
                await asyncio.gather(*waiting)
                await aio.wait(fence, 0)

    run(main)


def test_the_loop_goes_on_while_it_waits(module_broker: BrokerProcess) -> None:
    """Nothing blocks: another task runs between."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            with await timeline.export(3) as fence:
                waiting = asyncio.ensure_future(aio.wait(fence, LIMIT))
                for value in range(1, 4):
                    await asyncio.sleep(0)
                    assert not waiting.done()
                    await timeline.advance(value)
                await waiting

    run(main)


def test_a_full_socket_is_awaited(broker: BrokerProcess) -> None:
    """While the broker is slow, advance awaits room and sends the newest value; other tasks run; nothing is lost."""

    async def main() -> None:
        async with await aio.connect(broker.path) as connection, await connection.create_timeline() as timeline:
            with await timeline.export(2000) as fence:
                broker.freeze()

                async def produce() -> None:
                    for value in range(1, 2001):
                        await timeline.advance(value)

                producing = asyncio.ensure_future(produce())
                for _ in range(20):
                    await asyncio.sleep(0)  # other tasks run meanwhile
                assert timeline.value >= 200
                assert not producing.done()
                broker.thaw()
                await producing
                await aio.wait(fence, LIMIT)

    run(main)


def test_a_request_is_cancelled_before_it_was_sent(broker: BrokerProcess) -> None:
    """The connection's socket is full: a request awaits room, is cancelled, and leaves nothing behind."""

    async def main() -> None:
        async with await aio.connect(broker.path) as connection, await connection.create_timeline() as timeline:
            broker.freeze()
            for _ in range(400):
                connection._connection.tell(5, 12345)  # one-way: forget a timeline that is not there
            asking = asyncio.ensure_future(timeline.export(1))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not asking.done()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            broker.thaw()
            with await timeline.export(2) as fence:
                assert (await connection.info(fence)).seqno == 2

    run(main)


# Losing the broker


def test_the_broker_goes(start_broker: StartBroker) -> None:
    """Requests and waits under way are told, those that come later too; and nobody hears of exceptions that nobody asked for."""

    async def main() -> None:
        broker = start_broker()
        async with await aio.connect(broker.path) as connection:
            timeline = await connection.create_timeline("aio")
            with await timeline.export(1) as fence:
                waiting = [asyncio.ensure_future(aio.wait(fence)) for _ in range(3)]
                await asyncio.sleep(0)
                broker.kill()
                for task in waiting:
                    with pytest.raises(fb.BrokerUnavailable, match="went away"):
                        await task
                with pytest.raises(fb.BrokerUnavailable, match="aio@1 may never signal"):
                    await aio.wait(fence, LIMIT)
                for call in (connection.create_timeline, timeline.export, lambda: timeline.advance(1), lambda: connection.info(fence)):
                    with pytest.raises(fb.BrokerUnavailable):
                        await call()
            timeline.close()
            assert connection.closed

    run(main)


def test_the_broker_goes_unnoticed_until_a_request(start_broker: StartBroker) -> None:
    """Sending fails before the loop has seen the end."""

    async def main() -> None:
        broker = start_broker()
        async with await aio.connect(broker.path) as connection:
            broker.kill()
            for _ in range(3):
                with pytest.raises(fb.BrokerUnavailable):
                    await connection.create_timeline()

    run(main)


def test_the_connection_is_closed_on_purpose(module_broker: BrokerProcess) -> None:
    """Requests fail, waits go on."""

    async def main() -> None:
        connection = await aio.connect(module_broker.path)
        timeline = await connection.create_timeline()
        fence = await timeline.export(1)
        waiting = asyncio.ensure_future(aio.wait(fence))
        await asyncio.sleep(0)
        connection.close()
        connection.close()
        with pytest.raises(fb.BrokerUnavailable, match="was closed"):
            await connection.info(fence)
        assert not waiting.done()
        await timeline.advance(1)
        await waiting
        timeline.close()
        fence.close()

    run(main)


def test_no_broker(folder: str) -> None:
    """The same errors as without asyncio, and nothing stays open when connecting is cancelled."""

    async def main() -> None:
        with pytest.raises(fb.BrokerUnavailable, match="no broker answers at"):
            await aio.connect(f"{folder}/none")
        with pytest.raises(TypeError, match="path must be a path or None"):
            await aio.connect(7)  # type: ignore[arg-type]

    run(main)


def test_connecting_is_cancelled(module_broker: BrokerProcess) -> None:
    """The thread that connects goes on, and what it opens is closed."""

    async def main() -> None:
        for turns in (0, 1, 2, 5):
            task = asyncio.ensure_future(aio.connect(module_broker.path))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await task).close()
        (await aio.connect(module_broker.path)).close()
        while (await broker_status(module_broker))["sessions"] > 1:
            pass

    run(main)


def test_the_loop_ends_while_somebody_connects(module_broker: BrokerProcess) -> None:
    """Nobody is there any more to take the connection, and it is closed all the same: census and ResourceWarning say otherwise."""

    async def until_the_end() -> None:
        """The loop cancels what is left when it ends; the connection is made after that."""
        try:
            await asyncio.Event().wait()
        finally:
            module_broker.thaw()

    async def main() -> None:
        module_broker.freeze()
        tasks.extend(asyncio.ensure_future(job) for job in (until_the_end(), aio.connect(module_broker.path)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[object]] = []
    run(main)
    assert all(task.cancelled() for task in tasks)


# Mixtures


def test_fences_of_the_blocking_library(module_broker: BrokerProcess) -> None:
    """aio.wait takes any SyncFile; a SyncFile of aio can be waited for in a thread."""

    async def main() -> None:
        with fb.connect(module_broker.path) as blocking, blocking.create_timeline() as timeline, timeline.export(1) as fence:
            waiting = asyncio.ensure_future(aio.wait(fence, LIMIT))
            await asyncio.sleep(0)
            timeline.advance(1)
            await waiting
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as other:
            with await other.export(1) as mine:
                waiting = asyncio.ensure_future(asyncio.to_thread(mine.wait, LIMIT))
                await other.advance(1)
                await waiting
                with fb.connect(module_broker.path) as blocking, await other.export(2) as active:
                    assert blocking.info(active).seqno == 2
                    with blocking.merge([active, mine]) as merged:
                        await other.advance(2)
                        await aio.wait(merged, LIMIT)

    run(main)


def test_closing_in_threads(broker: BrokerProcess) -> None:
    """SyncFiles are closed in any thread while the loop asks: serials stay apart, everything is given back."""

    async def main() -> None:
        async with await aio.connect(broker.path) as connection, await connection.create_timeline() as timeline:
            for _ in range(20):
                fences = await timeline.export_many(range(1, 200))

                def close(part: list[fb.SyncFile]) -> None:
                    for fence in part:
                        fence.close()

                threads = [threading.Thread(target=close, args=(fences[i::4],)) for i in range(4)]
                for thread in threads:
                    thread.start()
                for n in range(20):
                    with await timeline.export(1000 + n) as fence:
                        assert (await connection.info(fence)).seqno == 1000 + n
                for thread in threads:
                    await asyncio.to_thread(thread.join)
                del fences
            (await timeline.export(1)).close()
            # Another session asks, and nothing orders it after what this one tells: it asks until it has been told.
            left = -1
            for _ in range(1000):
                left = (await broker_status(broker))["sync_files"]
                if not left:
                    break
            assert left == 0

    run(main)


def test_tampered(module_broker: BrokerProcess) -> None:
    """The truth is asked for, through the same connection."""

    async def main() -> None:
        async with await aio.connect(module_broker.path) as broker, await broker.create_timeline() as timeline:
            with await timeline.export(1) as fence:
                os.eventfd_write(fence.fileno(), 3)
                with pytest.raises(TimeoutError):
                    await aio.wait(fence, 0.05)
                waiting = asyncio.ensure_future(aio.wait(fence, LIMIT))
                await asyncio.sleep(0)
                await timeline.advance(1)
                await waiting

    run(main)


def test_at_the_descriptor_limit(spawn: Spawn, broker: BrokerProcess) -> None:
    """EMFILE for the request that does not fit; the connection and its other requests go on; the broker keeps nothing."""
    child = spawn(
        """
        import asyncio, errno, os, resource
        from fencebroker import aio
        async def main():
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            async with await aio.connect() as broker, await broker.create_timeline("a") as timeline:
                (await timeline.export(1)).close()
                while (last := os.dup(0)) < len(os.listdir("/proc/self/fd")) - 2:
                    pass
                resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
                for call in (lambda: timeline.export(2), lambda: timeline.export_many(range(9)), lambda: broker.create_timeline()):
                    try:
                        await call()
                        print("no error")
                    except OSError as err:
                        print(errno.errorcode[err.errno])
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                with await timeline.export(1) as fence:
                    await timeline.advance(1)
                    await aio.wait(fence, 10)
        asyncio.run(main())
        """,
        env=broker.env,
    )
    assert child.finish() == "EMFILE\n" * 3
    with fb.connect(broker.path) as connection:
        assert connection._status()["sync_files"] == 0


def test_a_fork_under_a_running_loop(spawn: Spawn, broker: BrokerProcess) -> None:
    """The connection is the parent's: the child's copies are closed, what it releases releases nothing of the parent's."""
    child = spawn(
        """
        import asyncio, os, warnings
        import fencebroker as fb
        from fencebroker import aio
        warnings.simplefilter("ignore", DeprecationWarning)
        async def main():
            async with await aio.connect() as broker, await broker.create_timeline() as timeline:
                fences = await timeline.export_many(range(1, 200))
                if not (pid := os.fork()):
                    code = 1
                    try:
                        assert timeline.closed and broker.closed
                        for fence in fences:
                            fence.close()
                        code = 0
                    finally:
                        os._exit(code)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                for fence in fences:
                    assert (await broker.info(fence)).status == 0
                await timeline.advance(200)
                for fence in fences:
                    await aio.wait(fence, 10)
                    fence.close()
        asyncio.run(main())
        """,
        env=broker.env,
    )
    assert child.finish() == "0\n"
