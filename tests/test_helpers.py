"""The harness, tested: a leak fails, a hang is cut, clean-up happens in order, and what did not run says so.

Tests that must fail run in a pytest of their own, in a folder that holds a copy of the real harness and its settings.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import sys
import textwrap
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.helpers import (
    BrokerProcess,
    assert_closed_on_exec,
    assert_not_fd,
    complaints,
    descriptors,
    eventfd_count,
    eventfd_id,
    is_readable,
    same_file,
    wait_gone,
    wait_readable,
)

if TYPE_CHECKING:
    import contextlib

    from tests.helpers import Spawn, StartBroker

TESTS = pathlib.Path(__file__).resolve().parent


class Inner(Protocol):
    """Runs a test module under the real harness and returns (exit code, output)."""

    def __call__(self, code: str, *options: str) -> tuple[int, str]: ...


@pytest.fixture
def inner(tmp_path: pathlib.Path, spawn: Spawn) -> Inner:
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("__init__.py", "conftest.py", "helpers.py"):
        shutil.copy(TESTS / name, tests)
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)

    def run(code: str, *options: str) -> tuple[int, str]:
        (tests / "test_inner.py").write_text(textwrap.dedent(code), encoding="utf-8")
        # -P: the copy of the harness finds what is installed, as pytest's own command does.
        child = spawn([sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *options], cwd=tmp_path)
        output = child.rest(30)
        return child.wait(), output

    return run


def outcome(output: str) -> dict[str, int]:
    """Read pytest's last line: what happened to how many tests."""
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", output.splitlines()[-1])}


# A leak fails


def test_a_clean_test_passes(inner: Inner) -> None:
    code, output = inner("""
        import os

        def test_clean():
            os.close(os.eventfd(0))
    """)
    assert outcome(output) == {"passed": 1}, output
    assert code == 0


@pytest.mark.parametrize("keep", ["", "cycle = [fd]; cycle.append(cycle)"])
def test_a_leaked_descriptor_fails_and_is_named(inner: Inner, keep: str) -> None:
    code, output = inner(f"""
        import os

        def test_leak():
            fd = os.eventfd(0)
            print("it is", fd)
            {keep}
            assert fd > 2

        def test_next_one_is_not_blamed():
            pass
    """)
    assert outcome(output) == {"passed": 2, "error": 1}, output
    assert code == 1
    number = re.search(r"descriptor (\d+) was left open: anon_inode:\[eventfd\]", output)
    assert number is not None, output


def test_a_descriptor_that_waits_for_the_garbage_collector_fails(inner: Inner) -> None:
    _, output = inner("""
        import os

        class Owner:
            def __init__(self):
                self.fd = os.eventfd(0)
                self.myself = self

            def __del__(self):
                os.close(self.fd)

        def test_cycle():
            Owner()
    """)
    assert outcome(output)["error"] == 1, output
    assert "was left open: anon_inode:[eventfd]" in output


def test_closing_a_foreign_descriptor_fails(inner: Inner) -> None:
    _, output = inner("""
        import os

        FD = os.eventfd(0)

        def test_closes_it():
            os.close(FD)
    """)
    assert outcome(output)["error"] == 1, output
    assert re.search(r"descriptor \d+ was closed, and it was not the test's: anon_inode:\[eventfd\]", output), output


def test_a_number_that_changed_its_meaning_fails(inner: Inner) -> None:
    _, output = inner("""
        import os

        FD = os.open("/dev/null", os.O_RDONLY)

        def test_replaces_it():
            os.dup2(0, FD)
            other = os.open("/dev/zero", os.O_RDONLY)
            os.dup2(other, FD)
            os.close(other)
    """)
    assert outcome(output)["error"] == 1, output
    assert re.search(r"descriptor \d+ was /dev/null and is now /dev/zero", output), output


def test_an_unclosed_socket_fails_even_when_its_last_reference_is_gone(inner: Inner) -> None:
    _, output = inner("""
        import socket

        def test_drops_it():
            socket.socket()
    """)
    assert outcome(output).get("failed") == 1, output
    assert "unclosed <socket.socket" in output


@pytest.mark.parametrize("how", ["child", "orphan"])
def test_a_process_left_running_fails_and_is_ended(inner: Inner, how: str) -> None:
    _, output = inner(
        f"""
        import os, signal

        def test_leaves_one():
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                if {how == "orphan"} and os.fork():
                    os._exit(0)
                os.write(told, b"%d" % os.getpid())
                signal.pause()
            os.close(told)
            print("left", int(os.read(ready, 20)))
            os.close(ready)
            if {how == "orphan"}:
                os.waitpid(pid, 0)
            assert pid

        def test_next_one_is_not_blamed():
            pass
    """,
        "-rP",
    )
    assert outcome(output) == {"passed": 2, "error": 1}, output
    left = re.search(r"^left (\d+)$", output, re.MULTILINE)
    assert left is not None, output
    assert f"process {left[1]} was left running: " in output
    assert not pathlib.Path(f"/proc/{left[1]}").exists()


def test_a_failing_test_is_not_blamed_for_its_leak_as_well(inner: Inner) -> None:
    _, output = inner(
        """
        import socket

        def test_fails():
            pair = socket.socketpair()
            assert not pair

        def test_next_one():
            pass
    """,
        "-W",
        "default::pytest.PytestUnraisableExceptionWarning",
    )
    assert outcome(output) == {"failed": 1, "passed": 1}, output


# A hang is cut


def test_a_hang_is_cut_and_its_children_are_killed(inner: Inner) -> None:
    code, output = inner(
        """
        import os

        def test_hangs(spawn):
            child = spawn("import os, signal; print(os.getpid(), flush=True); signal.pause()")
            print("child", child.line())
            child.wait(60)

        def test_next_one():
            pass
    """,
        "-o",
        "timeout=2",
        "-rA",
    )
    assert outcome(output) == {"failed": 1, "passed": 1}, output
    assert code == 1
    assert "Timeout" in output
    child = re.search(r"^child (\d+)$", output, re.MULTILINE)
    assert child is not None, output
    assert not pathlib.Path(f"/proc/{child[1]}").exists()


def test_a_silent_child_fails_the_wait_and_shows_its_standard_error(spawn: Spawn) -> None:
    child = spawn("import sys, signal; print('stuck', file=sys.stderr, flush=True); print('up', flush=True); signal.pause()")
    assert child.line() == "up"
    with pytest.raises(pytest.fail.Exception, match=r"wrote no line within 0.05 s; its standard error:\nstuck"):
        child.line(timeout=0.05)
    with pytest.raises(pytest.fail.Exception, match=r"did not end within 0.05 s; its standard error:\nstuck"):
        child.wait(timeout=0.05)


# Clean-up


def test_cleanup_is_last_in_first_out_also_after_a_failure(inner: Inner) -> None:
    _, output = inner(
        """
        def test_order(cleanup):
            for word in ("first", "second", "third"):
                cleanup.callback(print, "undo", word)
            raise RuntimeError("in the middle")
    """,
        "-rA",
    )
    assert outcome(output) == {"failed": 1}, output
    assert re.findall(r"^undo (\w+)$", output, re.MULTILINE) == ["third", "second", "first"]


def test_a_spawned_program_ends_with_everything_it_started(spawn: Spawn) -> None:
    child = spawn("""
        import os, signal
        pid = os.fork()
        if pid:
            print(pid, flush=True)
        signal.pause()
    """)
    grandchild = int(child.line())
    child.close()
    for pid in (child.pid, grandchild):
        assert not pathlib.Path(f"/proc/{pid}").exists()


def test_a_grandchild_is_ended_when_its_parent_is_gone_already(spawn: Spawn) -> None:
    child = spawn("""
        import os, signal
        pid = os.fork()
        if pid == 0:
            signal.pause()
        print(pid, flush=True)
        os._exit(0)
    """)
    grandchild = int(child.line())
    child.wait()
    child.close()
    assert not pathlib.Path(f"/proc/{grandchild}").exists()


def test_a_spawned_program_talks_and_finishes(spawn: Spawn) -> None:
    child = spawn("import sys; print(input(), *sys.argv[1:]); print('done')", "argument", 7)
    child.send("hello")
    assert child.line() == "hello argument 7"
    assert child.finish() == "done\n"


def test_finish_reports_a_bad_end(spawn: Spawn) -> None:
    with pytest.raises(AssertionError, match=r"ended with 3; its standard error:\nwhy\n"):
        spawn("import sys; print('why', file=sys.stderr); sys.exit(3)").finish()


def test_finish_reports_a_leak_in_the_child(spawn: Spawn) -> None:
    with pytest.raises(AssertionError, match="unclosed"):
        spawn("import socket; socket.socket()").finish()


def test_wait_returns_the_signal(spawn: Spawn) -> None:
    child = spawn("import signal; print(flush=True); signal.pause()")
    child.line()
    child.signal(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM


def test_wait_gone_buries_an_orphan(spawn: Spawn) -> None:
    child = spawn("""
        import os
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.read(0, 1)
            os._exit(0)
        print(pid, flush=True)
        os._exit(0)
    """)
    orphan = int(child.line())
    child.wait()
    child.send("go")
    wait_gone(orphan)
    assert not pathlib.Path(f"/proc/{orphan}").exists()
    wait_gone(orphan)


# Brokers


def test_a_broker_is_ready_when_the_test_begins_and_ends_in_order(broker: BrokerProcess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(broker.path)
    assert broker.env == {"FENCEBROKER_SOCKET": broker.path}
    assert broker.stop()[0] == 0
    assert not pathlib.Path(f"/proc/{broker.pid}").exists()


def test_each_broker_is_its_own(start_broker: StartBroker) -> None:
    first, second = start_broker(), start_broker()
    assert first.path != second.path
    assert first.pid != second.pid


def test_a_broker_that_the_test_kills_is_not_blamed(broker: BrokerProcess) -> None:
    broker.kill()


def test_a_broker_that_does_not_start_shows_its_log(start_broker: StartBroker) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)ended with 2 before it was ready:.*--no-such-option"):
        start_broker("--no-such-option")


STAND_IN = """
    import signal, sys
    def stop(*_):
        print(sys.argv[1], file=sys.stderr, flush=True)
        sys.exit(int(sys.argv[2]))
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize(
    ("last_words", "code", "blame"),
    [
        ("stopped", 0, None),
        ("stopped", 3, "the broker ended with 3:\nstopped"),
        ("Traceback (most recent call last):", 0, "the broker complained:\nTraceback"),
        ("ResourceWarning: unclosed", 0, "the broker complained:\nResourceWarning"),
    ],
)
def test_a_broker_that_ends_badly_is_blamed(spawn: Spawn, last_words: str, code: int, blame: str | None) -> None:
    child = spawn(STAND_IN, last_words, code)
    assert child.line() == "ready"
    broker = BrokerProcess(child, "/nowhere")
    if blame is None:
        broker.check()
    else:
        with pytest.raises(AssertionError, match=blame):
            broker.check()


def test_a_broker_that_dies_by_itself_is_blamed(spawn: Spawn) -> None:
    child = spawn("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    child.wait()
    with pytest.raises(AssertionError, match="the broker ended with -9"):
        BrokerProcess(child, "/nowhere").check()


# What did not run


NOT_RUN_HERE = """
    import pytest
    from tests.helpers import not_run

    def test_one():
        not_run("no second user (run as root)")

    def test_two():
        not_run("no second user (run as root)")

    @pytest.mark.skip(reason="a bare skip is not silent either")
    def test_three():
        pass

    def test_four():
        pass
"""


@pytest.mark.parametrize("options", [("-p", "no:xdist"), ("-n", "2")])
def test_what_cannot_run_says_so_at_the_end(inner: Inner, options: tuple[str, ...]) -> None:
    code, output = inner(NOT_RUN_HERE, *options)
    assert code == 0, output
    lines = output.splitlines()
    assert "1 passed" in lines[-1]
    assert "3 skipped" in lines[-1]
    assert lines[-3:-1] == ["NOT RUN: a bare skip is not silent either", "NOT RUN: no second user (run as root) (2 tests)"]


# Questions about descriptors


def test_closed_on_exec_is_proved_by_an_exec(cleanup: contextlib.ExitStack) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    cleanup.callback(os.close, fd)
    assert_closed_on_exec(fd)
    os.set_inheritable(fd, True)
    with pytest.raises(AssertionError, match=rf"got descriptor {fd} \(anon_inode:\[eventfd\]\)"):
        assert_closed_on_exec(fd)


def test_closed_on_exec_refuses_a_closed_descriptor() -> None:
    fd = os.eventfd(0)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        assert_closed_on_exec(fd)


def test_same_file_tells_eventfds_apart(cleanup: contextlib.ExitStack) -> None:
    first, second = os.eventfd(0), os.eventfd(0)
    copy = os.dup(first)
    for fd in (first, second, copy):
        cleanup.callback(os.close, fd)
    assert same_file(first, copy)
    assert not same_file(first, second)
    assert eventfd_id(first) == eventfd_id(copy) != eventfd_id(second)


def test_same_file_tells_sockets_apart(cleanup: contextlib.ExitStack) -> None:
    left, right = socket.socketpair()
    copy = left.dup()
    for end in (left, right, copy):
        cleanup.callback(end.close)
    assert same_file(left.fileno(), copy.fileno())
    assert not same_file(left.fileno(), right.fileno())


def test_eventfd_count_does_not_consume(cleanup: contextlib.ExitStack) -> None:
    fd = os.eventfd(0)
    cleanup.callback(os.close, fd)
    os.eventfd_write(fd, 2**64 - 2)
    assert eventfd_count(fd) == eventfd_count(fd) == 2**64 - 2


def test_eventfd_id_of_something_else_is_an_error(cleanup: contextlib.ExitStack) -> None:
    end, other = os.pipe()
    cleanup.callback(os.close, end)
    cleanup.callback(os.close, other)
    with pytest.raises(ValueError, match="is no eventfd"):
        eventfd_id(end)


def test_readable_or_not(cleanup: contextlib.ExitStack) -> None:
    fd = os.eventfd(0)
    cleanup.callback(os.close, fd)
    assert not is_readable(fd)
    with pytest.raises(pytest.fail.Exception, match=r"did not become readable within 0\.01 s"):
        wait_readable(fd, 0.01)
    os.eventfd_write(fd, 1)
    assert is_readable(fd)
    wait_readable(fd)


def test_assert_not_fd() -> None:
    fd = os.eventfd(0)
    with pytest.raises(AssertionError, match=r"\(anon_inode:\[eventfd\]\) is open and should be closed"):
        assert_not_fd(fd)
    os.close(fd)
    assert_not_fd(fd)


def test_descriptors_names_what_is_open(cleanup: contextlib.ExitStack) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    cleanup.callback(os.close, fd)
    assert descriptors()[fd] == "/dev/null"
    assert not any(target.endswith("/fd") for target in descriptors().values())


def test_complaints_are_found_in_a_log() -> None:
    assert complaints("fine\nTraceback (most recent call last):\n") == ["Traceback (most recent call last):"]
    assert complaints("Exception ignored in: <socket>\nResourceWarning: unclosed") != []
    assert complaints("<6>serving /run/x\n<6>stopped\n") == []
