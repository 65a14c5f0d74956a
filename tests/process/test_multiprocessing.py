"""Sync_files and timelines through multiprocessing: Queue, Pipe, Process arguments and pools, under fork, spawn and forkserver.

Each scenario is a program of its own, as a user would write it.
"""

from __future__ import annotations

import copy
import pathlib
import pickle
import sys
import textwrap
from collections.abc import Callable

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn

Program = Callable[[str, str], str]
METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture
def program(spawn: Spawn, broker: BrokerProcess, tmp_path: pathlib.Path) -> Program:
    """Run a program from a file, for a spawned child imports it by name; returns what it printed."""

    def run(body: str, method: str) -> str:
        head = """
            import errno, multiprocessing, os, pickle, sys, threading, warnings
            import fencebroker as fb
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        """
        file = tmp_path / "program.py"
        main = "\n\nif __name__ == '__main__':\n    main(multiprocessing.get_context(sys.argv[1]))\n"
        file.write_text(textwrap.dedent(head) + textwrap.dedent(body) + main)
        child = spawn([sys.executable, str(file), method], env=broker.env)
        return child.finish(3 * LIMIT)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_sync_file_as_process_argument(program: Program, method: str) -> None:
    """The child gets a descriptor of its own, waits, and learns the error; the parent's close at once harms nothing."""
    said = program(
        """
        def child(good, bad):
            with good, bad:
                good.wait(10)
                try:
                    bad.wait(10)
                except fb.FenceError as err:
                    print(good.label, bad.label, errno.errorcode[err.error], os.get_inheritable(good.fileno()), flush=True)

        def main(context):
            with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
                good, bad = timeline.export_many([1, 2])
                process = context.Process(target=child, args=(good, bad))
                process.start()
                good.close()
                bad.close()
                del good, bad
                broker._status()
                timeline.fail(2, errno.EIO)
                process.join(10)
                print(process.exitcode)
        """,
        method,
    )
    assert said == "camera0@1 camera0@2 EIO False\n0\n"


@pytest.mark.parametrize("method", METHODS)
def test_put_and_close_at_once(program: Program, method: str) -> None:
    """``queue.put(frame)`` then ``frame.close()``: the queue's thread still has to send it, and does."""
    said = program(
        """
        def child(frames, done):
            for n in range(1, 41):
                with frames.get(timeout=10) as frame:
                    assert frame.label == f"camera0@{n}", frame
                    frame.wait(10)
            done.put("all there")
            assert frames.get(timeout=10) is None

        def main(context):
            with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
                frames, done = context.Queue(), context.Queue()
                process = context.Process(target=child, args=(frames, done))
                process.start()
                for n in range(1, 41):
                    frame = timeline.export(n)
                    frames.put(frame)
                    frame.close()
                    del frame
                timeline.advance(40)
                print(done.get(timeout=10))
                frames.put(None)
                process.join(10)
                for queue in (frames, done):
                    queue.close()
                    queue.join_thread()
                print(process.exitcode, broker._status()["active_fences"])
        """,
        method,
    )
    assert said == "all there\n0 0\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_pipe_both_ways(program: Program, method: str) -> None:
    """A child exports and sends; the parent waits for what the child signals, and for its death."""
    said = program(
        """
        def child(pipe):
            with fb.connect() as broker, broker.create_timeline("from child") as timeline, pipe:
                with timeline.export(1) as first, timeline.export(2) as second:
                    pipe.send([first, {"second": second}])
                assert pipe.recv() == "go"
                timeline.advance(1)
                assert pipe.recv() == "die"
                os._exit(3)

        def main(context):
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(theirs,))
            process.start()
            theirs.close()
            with ours:
                first, rest = ours.recv()
                with first, rest["second"] as second:
                    print(first.status(), second.status())
                    ours.send("go")
                    first.wait(10)
                    print(first.status(), second.status())
                    ours.send("die")
                    try:
                        second.wait(10)
                    except fb.FenceError as err:
                        print(errno.errorcode[err.error])
            process.join(10)
        """,
        method,
    )
    assert said == "0 0\n1 0\nENOENT\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_timeline_is_handed_over(program: Program, method: str) -> None:
    """Through a Pipe or Queue a Timeline is another holder's: it mints and signals there, and lives until the last one closes."""
    said = program(
        """
        def child(pipe, queue):
            with pipe, pipe.recv() as timeline, queue.get(timeout=10) as same:
                assert timeline.context == same.context and timeline.name == "camera0" and timeline.value == 2
                with timeline.export(5) as fence:
                    pipe.send(fence)
                    assert pipe.recv() == "parent closed"
                    timeline.advance(5)
                    fence.wait(10)
                with same.export(9) as last:
                    pipe.send(last)
                pipe.recv()

        def main(context):
            ours, theirs = context.Pipe()
            queue = context.Queue()
            process = context.Process(target=child, args=(theirs, queue))
            process.start()
            theirs.close()
            with fb.connect() as broker, ours:
                timeline = broker.create_timeline("camera0")
                timeline.advance(2)
                ours.send(timeline)
                queue.put(timeline)
                with ours.recv() as fence:
                    timeline.close()
                    broker._status()
                    print(fence.status())
                    ours.send("parent closed")
                    fence.wait(10)
                with ours.recv() as last:
                    ours.send("end")
                    try:
                        last.wait(10)
                    except fb.FenceError as err:
                        print(errno.errorcode[err.error])
            process.join(10)
            queue.close()
            queue.join_thread()
            print(process.exitcode)
        """,
        method,
    )
    assert said == "0\nENOENT\n0\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_timeline_as_process_argument(program: Program, method: str) -> None:
    """Where arguments are pickled, that is on purpose."""
    said = program(
        """
        def child(timeline):
            with timeline:
                timeline.advance(1)
                with timeline.export() as fence:
                    print(fence.label, flush=True)

        def main(context):
            with fb.connect() as broker, broker.create_timeline("camera0") as timeline, timeline.export(1) as fence:
                process = context.Process(target=child, args=(timeline,))
                process.start()
                fence.wait(10)
                process.join(10)
                print(process.exitcode)
        """,
        method,
    )
    assert said == "camera0@2\n0\n"


def test_a_timeline_is_not_inherited_by_fork(program: Program) -> None:
    """Under fork nothing is pickled: the argument is closed in the child, and says what to do instead."""
    said = program(
        """
        def child(timeline):
            try:
                timeline.advance(1)
            except ValueError as err:
                print(err, flush=True)

        def main(context):
            with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
                process = context.Process(target=child, args=(timeline,))
                process.start()
                process.join(10)
                print(process.exitcode)
        """,
        "fork",
    )
    assert said == "this timeline is closed (a forked child does not inherit it; see Timeline.share)\n0\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool(program: Program, method: str) -> None:
    """``concurrent.futures.ProcessPoolExecutor``: in-fences as arguments, an out-fence as result."""
    said = program(
        """
        from concurrent.futures import ProcessPoolExecutor

        def status_of(fence):
            with fence:
                fence.wait(10)
                return fence.status()

        def make(n):
            with fb.connect() as broker, broker.create_timeline() as timeline, timeline.export(n) as fence:
                timeline.advance(n)
                fence.wait(10)
                return fence  # closed here and sent afterwards: closing waits for the last reference

        def main(context):
            with ProcessPoolExecutor(2, mp_context=context) as pool, fb.connect() as broker:
                with broker.create_timeline() as timeline:
                    futures = []
                    for n in range(1, 9):
                        fence = timeline.export(n)
                        futures.append(pool.submit(status_of, fence))
                        fence.close()
                        del fence
                    timeline.advance(8)
                    print([future.result(10) for future in futures])
                with pool.submit(make, 7).result(10) as made:
                    print(made.status(), made.label.endswith("@7"))
        """,
        method,
    )
    assert said == "[1, 1, 1, 1, 1, 1, 1, 1]\n1 True\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_pool(program: Program, method: str) -> None:
    """``multiprocessing.Pool`` and its map."""
    said = program(
        """
        def status_of(fence):
            with fence:
                fence.wait(10)
                return fence.status()

        def main(context):
            with fb.connect() as broker, broker.create_timeline() as timeline, context.Pool(2) as pool:
                fences = timeline.export_many(range(1, 9))
                result = pool.map_async(status_of, fences)
                for fence in fences:
                    fence.close()
                timeline.advance(8)
                print(result.get(10))
                pool.close()
                pool.join()
        """,
        method,
    )
    assert said == "[1, 1, 1, 1, 1, 1, 1, 1]\n"


def test_what_was_put_and_never_taken_costs_nothing(program: Program) -> None:
    """Descriptors return to what they were when the queue has sent and everything is closed."""
    said = program(
        """
        def child(frames, taken, n):
            for i in range(1, n + 1):
                with frames.get(timeout=10) as frame:
                    frame.wait(10)
                taken.put(i)

        def main(context):
            with fb.connect() as broker, broker.create_timeline() as timeline:
                frames, taken = context.Queue(), context.SimpleQueue()
                process = context.Process(target=child, args=(frames, taken, 60))
                process.start()
                counts = []
                for n in range(1, 61):
                    with timeline.export(n) as frame:
                        frames.put(frame)
                    del frame
                    timeline.advance(n)
                    assert taken.get() == n
                    if n in (20, 60):
                        counts.append(len(os.listdir("/proc/self/fd")))
                process.join(10)
                frames.close()
                frames.join_thread()
                taken.close()
                print(process.exitcode, counts[1] - counts[0] <= 2)
        """,
        "spawn",
    )
    assert said == "0 True\n"


def test_plain_pickle_has_the_cure(module_broker: BrokerProcess) -> None:
    """Outside multiprocessing there is nothing that could carry a descriptor."""
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        for thing, cure in ((fence, "use fencebroker.send_sync_file"), (timeline, "send the descriptor of Timeline.share")):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match=cure):
                    pickle.dumps(thing, protocol)
            with pytest.raises(TypeError, match=cure):
                copy.copy(thing)
