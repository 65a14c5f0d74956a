"""Threads and forks: no answer is ever swapped, and a child has what was meant for it and no more.

Whatever forks runs in a program of its own: the test process has threads.
"""

from __future__ import annotations

import pathlib
import threading

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, StartBroker
from tests.process.wire_client import descriptors_of

N_THREADS = 16
N_REQUESTS = 60


def test_threads_share_a_connection(module_broker: BrokerProcess) -> None:
    """16 threads and many requests of every kind on one Broker: each gets its own answers."""
    with fb.connect(module_broker.path) as connection:
        failures: list[str] = []
        started = threading.Barrier(N_THREADS)

        def work(i: int) -> None:
            started.wait(LIMIT)
            with connection.create_timeline(f"thread{i}") as timeline:
                for n in range(1, N_REQUESTS):
                    seqno = 1000 * i + n
                    with timeline.export(seqno, name=f"{i}-{n}") as fence, connection.sync_file(f"thread{i}@{seqno}") as named:
                        info = connection.info(fence)
                        if (info.name, info.context, info.seqno) != (f"{i}-{n}", timeline.context, seqno):
                            failures.append(f"asked for {i}-{n}, got {info}")
                        with connection.merge([fence, named], name=f"m{i}-{n}") as merged:
                            if connection.info(merged).seqno != seqno:
                                failures.append(f"merged {i}-{n}")
                        timeline.advance(seqno)
                        named.wait(LIMIT)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * LIMIT)
        assert not any(thread.is_alive() for thread in threads)
        assert not failures
        assert connection._status()["sync_files"] == 0


def test_threads_signal_one_timeline(module_broker: BrokerProcess) -> None:
    """advance, inc and close from many threads: the value is the largest, the increments all count."""
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline:
        n = 8
        with timeline.export(n * 50) as fence, timeline.export(n * 50 + 1) as beyond:

            def work() -> None:
                for _ in range(50):
                    timeline.inc()

            threads = [threading.Thread(target=work) for _ in range(n)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
            fence.wait(LIMIT)
            assert timeline.value == n * 50
            assert beyond.status() == 0
            threads = [threading.Thread(target=timeline.advance, args=(1000 + i,)) for i in range(n)]
            with timeline.export(1000 + n - 1) as last, timeline.export(1000 + n) as never:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(LIMIT)
                last.wait(LIMIT)
                assert never.status() == 0


def test_releases_from_many_threads_are_all_told(module_broker: BrokerProcess) -> None:
    """What is closed in one thread while another asks is given back, every one of it."""
    with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline:

        def work() -> None:
            for _ in range(30):
                for fence in timeline.export_many(range(1, 20)):
                    fence.close()

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * LIMIT)
        connection._status()
        assert connection._status()["sync_files"] == 0


def test_a_child_connects_anew(spawn: Spawn, broker: BrokerProcess) -> None:
    """A Broker used after fork in the child reconnects; parent and children ask at the same time and get their own answers."""
    child = spawn(
        """
        import os, sys, fencebroker as fb
        def ask(broker, who):
            with broker.create_timeline(f"of {who}") as timeline:
                for n in range(1, 200):
                    with timeline.export(n, name=f"{who} {n}") as fence:
                        info = broker.info(fence)
                        assert (info.name, info.seqno, info.fences[0].obj_name) == (f"{who} {n}", n, f"of {who}"), info
                        assert info.creator.pid == os.getpid(), (info, os.getpid())
        with fb.connect() as broker:
            mine = broker._connection.peer_fd()
            children = []
            for number in range(4):
                if not (pid := os.fork()):
                    try:
                        ask(broker, f"child {number}")
                        broker.close()
                    except BaseException:
                        import traceback
                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                children.append(pid)
            ask(broker, "parent")
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            while broker._status()["sessions"] > 1:
                pass
            print(codes)
        """,
        env=broker.env,
    )
    assert child.finish(3 * LIMIT) == "[0, 0, 0, 0]\n"


def test_a_fork_among_threads(spawn: Spawn, broker: BrokerProcess) -> None:
    """Forking while other threads are in the middle of requests: locks are new in the child, answers stay with who asked."""
    child = spawn(
        """
        import os, threading, warnings, fencebroker as fb
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: this is what it warns of
        done = threading.Event()
        wrong = []
        def ask(timeline, broker):
            n = 0
            while not done.is_set():
                n += 1
                with timeline.export(n) as fence:
                    if broker.info(fence).seqno != n:
                        wrong.append(n)
        with fb.connect() as broker:
            timelines = [broker.create_timeline() for _ in range(4)]
            threads = [threading.Thread(target=ask, args=(timeline, broker)) for timeline in timelines]
            for thread in threads: thread.start()
            codes = set()
            for _ in range(25):
                if not (pid := os.fork()):
                    code = 1
                    try:
                        with broker, broker.create_timeline() as own, own.export(7) as fence:
                            code = 0 if broker.info(fence).seqno == 7 else 2
                    finally:
                        os._exit(code)
                codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            done.set()
            for thread in threads: thread.join(10)
            for timeline in timelines: timeline.close()
            print(codes, wrong)
        """,
        env=broker.env,
    )
    assert child.finish(3 * LIMIT) == "{0} []\n"


def test_a_sync_file_works_in_a_child(spawn: Spawn, broker: BrokerProcess) -> None:
    """It is inherited: the child waits on it, asks about it, closes it; the parent's is untouched."""
    child = spawn(
        """
        import errno, os, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
            fence = timeline.export(1)
            r, w = os.pipe()
            if not (pid := os.fork()):
                code = 1
                try:
                    assert timeline.closed
                    assert broker.info(fence).fences[0].obj_name == "camera0"
                    os.write(w, b"x")
                    try:
                        fence.wait(10)
                    except fb.FenceError as err:
                        assert err.error == errno.EIO and err.owner.pid == os.getppid(), err
                        code = 0
                    fence.close()
                    broker.close()
                finally:
                    os._exit(code)
            os.read(r, 1)
            timeline.fail(1, errno.EIO)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(code, fence.status() == -errno.EIO, broker.info(fence).status == -errno.EIO)
            fence.close()
            for fd in (r, w):
                os.close(fd)
        """,
        env=broker.env,
    )
    assert child.finish() == "0 True True\n"


def test_closing_in_the_parent_leaves_the_childs(spawn: Spawn, broker: BrokerProcess) -> None:
    """Two processes hold the descriptor since the fork: the first close of either is not the last."""
    child = spawn(
        """
        import os, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline:
            for who in ("parent", "child"):
                fence = timeline.export(timeline.value + 1)
                r, w = os.pipe()
                if not (pid := os.fork()):
                    os.close(w)
                    if who == "child":
                        fence.close()
                        broker._status()
                        os._exit(0)
                    os.read(r, 1)
                    try:
                        fence.wait(10)
                        os._exit(0)
                    except TimeoutError:
                        os._exit(9)
                if who == "child":
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    timeline.inc()
                    fence.wait(10)
                    fence.close()
                else:
                    fence.close()
                    broker._status()
                    timeline.inc()
                    broker._status()
                    os.close(w)
                    w = None
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                print(who, code)
                os.close(r)
                if w is not None:
                    os.close(w)
        """,
        env=broker.env,
    )
    assert child.finish(2 * LIMIT) == "parent 0\nchild 0\n"


def test_a_timeline_is_closed_in_a_child(spawn: Spawn, broker: BrokerProcess) -> None:
    """Unless it was handed out on purpose: no worker keeps a dead producer's timeline alive, and every verb says what to do."""
    child = spawn(
        """
        import os, sys, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline() as timeline:
            before = len(os.listdir("/proc/self/fd"))
            if not (pid := os.fork()):
                said = []
                for call in (timeline.inc, timeline.export, lambda: timeline.advance(1), timeline.share):
                    try:
                        call()
                    except ValueError as err:
                        said.append(str(err))
                timeline.close()
                print(len(os.listdir("/proc/self/fd")) - before, *said, sep="\\n", flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            timeline.advance(1)
            with timeline.export(1) as fence:
                fence.wait(10)
        """,
        env=broker.env,
    )
    lines = child.finish().splitlines()
    assert lines[0] == "-2"  # the timeline's socket and the connection's
    assert lines[1:4] == ["this timeline is closed (a forked child does not inherit it; see Timeline.share)"] * 3
    assert lines[4].startswith("this timeline is closed")


def test_a_refused_child_may_try_again(spawn: Spawn, broker: BrokerProcess) -> None:
    """In the child the first use connects; where that fails it says why, and the next use tries again."""
    child = spawn(
        """
        import os, signal, fencebroker as fb
        with fb.connect() as broker:
            pid = broker._connection.pid
            if not (child := os.fork()):
                path = os.environ["FENCEBROKER_SOCKET"]
                os.rename(path, path + ".away")
                said = []
                for _ in range(3):
                    try:
                        broker._status()
                    except fb.BrokerUnavailable as err:
                        said.append(str(err))
                os.rename(path + ".away", path)
                broker._status()
                broker.close()
                print(len(said), len(set(said)), said[0].startswith("no broker answers at"), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            broker._status()
        """,
        env=broker.env,
    )
    assert child.finish() == "3 1 True\n"


def test_a_quota_refuses_a_child_more_than_once(spawn: Spawn, start_broker: StartBroker, tmp_path: pathlib.Path) -> None:
    """A hello that is refused leaves the connection as it was: the next attempt says the same, or succeeds."""
    file = tmp_path / "fencebroker.toml"
    file.write_text("[limits]\nsessions_per_uid = 1\n")
    broker = start_broker("--config", str(file))
    child = spawn(
        """
        import os, fencebroker as fb
        broker = fb.connect()
        r, w = os.pipe()
        said, says = os.pipe()
        if not (child := os.fork()):
            for _ in range(2):
                try:
                    broker._status()
                except fb.QuotaExceeded as err:
                    print(err.quota, err.limit, err.used, flush=True)
            os.write(says, b"x")
            os.read(r, 1)
            print(broker._status()["sessions"], flush=True)
            broker.close()
            os._exit(0)
        os.read(said, 1)
        broker.close()
        os.write(w, b"x")
        os.waitpid(child, 0)
        for fd in (r, w, said, says):
            os.close(fd)
        """,
        env=broker.env,
    )
    assert child.finish() == "sessions per user 1 1\n" * 2 + "1\n"


def test_workers_cost_the_broker_nothing_when_they_are_gone(spawn: Spawn, broker: BrokerProcess) -> None:
    """Children that used the connection and died: sessions and timelines are given back; of their fences, signalled by death, copies are
    kept for who may still hold one.
    """
    with fb.connect(broker.path) as connection:
        connection._status()
        before = descriptors_of(broker.pid)
        child = spawn(
            """
            import os, fencebroker as fb
            with fb.connect() as broker:
                for _ in range(20):
                    if not (pid := os.fork()):
                        held = broker.create_timeline()
                        fence = held.export(1)
                        os.kill(os.getpid(), 9)
                    os.waitpid(pid, 0)
            """,
            env=broker.env,
        )
        child.finish()
        while connection._status()["sessions"] > 1:
            pass
        assert connection._status()["active_fences"] == 0
        while descriptors_of(broker.pid) > before + 20:
            pass  # the reaper closes what the loop has let go
