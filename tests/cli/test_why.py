"""``why``: from whoever waits down to whoever must act."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

import fencebroker as fb
from tests.cli.conftest import FENCECTL, Fencectl, Result, Scene, Terminal, asleep, end_of
from tests.helpers import LIMIT, not_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers import BrokerProcess, Child, Spawn


def plain(result: Result) -> list[str]:
    """The lines, without ages."""
    assert (result.code, result.err) == (0, "")
    return [re.sub(r"\b\d+(\.\d+)? (ms|s|min)\b", "T", line) for line in result.lines()]


def stopped(child: Child) -> Child:
    """Stop a program, and wait until it is."""
    child.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    return child


@pytest.fixture
def stage_of_ten(stage: Callable[..., Child]) -> list[Child]:
    """Ten processes, each waiting for the one before it."""
    children = [stage("stage0")]
    for n in range(1, 10):
        children.append(stage(f"stage{n}", f"stage{n - 1}@1"))  # noqa: PERF401 - each waits for the one before
    return children


def test_a_stopped_producer_among_ten_is_found(fencectl: Fencectl, stage_of_ten: list[Child]) -> None:
    first, *_, last = stage_of_ten
    stopped(first)
    lines = plain(fencectl("why", last.pid))
    pids = [child.pid for child in stage_of_ten]
    assert lines == [
        f"{pids[9]} stage9 waits in poll on stage8@1 (T)",
        *(f"<- {pids[n]} stage{n} waits in poll on stage{n - 1}@1 (T)" for n in range(8, 1, -1)),
        f"<- {pids[1]} stage1 waits in poll on stage0@1 (T) <- {pids[0]} stage0 (stopped, SIGSTOP)",
        "",
        f"must act  {pids[0]} stage0 (stopped, SIGSTOP): to signal stage0@1; stage0 is at 0, since T",
        f"          kill -CONT {pids[0]} lets it go on",
    ]
    value = fencectl("why", "stage8@1", "--json").json()
    assert value["must_act"] == [f"process:{pids[0]}"]
    assert value["deadlocks"] == []
    assert {process["pid"]: process["state"] for process in value["processes"]}[pids[0]] == "stopped, SIGSTOP"
    # A consumer that was stopped and continued sleeps in the same poll by another name.
    stopped(stage_of_ten[1]).signal(signal.SIGCONT)
    asleep(stage_of_ten[1])
    assert plain(fencectl("why", pids[1])) == [lines[8].removeprefix("<- "), *lines[9:]]


def test_a_deadlock_of_two_is_named(fencectl: Fencectl, stage: Callable[..., Child]) -> None:
    one, two = stage("one", "two@1"), stage("two", "one@1")
    assert plain(fencectl("why", one.pid)) == [
        f"{one.pid} one waits in poll on two@1 (T)",
        f"<- {two.pid} two waits in poll on one@1 (T)",
        f"<- {one.pid} one (see above)",
        "",
        f"deadlock  {one.pid} one waits for two@1 <- {two.pid} two waits for one@1 <- {one.pid} one",
    ]
    (found,) = fencectl("why", "one@1", "--json").json()["deadlocks"]
    assert found["certain"] is True
    assert set(found["circle"]) == {f"process:{one.pid}", f"process:{two.pid}", "fence:1:1", "fence:3:1"}
    dot = fencectl("why", "one@1", "--dot").out
    assert re.search(rf'"process:{one.pid}" \[label="{one.pid} one\\nasleep", shape=box, color=red\];', dot)
    assert f'"fence:1:1" -> "process:{one.pid}";' in dot


def test_whoever_waits_for_a_deadlock_sees_it(fencectl: Fencectl, stage: Callable[..., Child]) -> None:
    one, two, third = stage("one", "two@1"), stage("two", "one@1"), stage("third", "two@1")
    lines = plain(fencectl("why", third.pid))
    assert lines[0] == f"{third.pid} third waits in poll on two@1 (T)"
    assert lines[-1] == f"deadlock  {two.pid} two waits for one@1 <- {one.pid} one waits for two@1 <- {two.pid} two"


def test_a_circle_with_a_way_out_is_only_maybe_a_deadlock(fencectl: Fencectl, spawn: Spawn, stage: Callable[..., Child]) -> None:
    either = spawn(
        """
        import fencebroker as fb
        open("/proc/self/comm", "w").write("either")
        with fb.connect() as broker, broker.create_timeline("either"):
            fences = [broker.sync_file("other@1"), broker.sync_file("lens@1")]
            print("ready", flush=True)
            fb.wait_any(fences)
        """,
        env=fencectl.env,
    )
    assert either.line() == "ready"
    other, lens = stage("other", "either@1"), stage("lens")
    lines = plain(fencectl("why", asleep(either).pid))
    assert lines[:5] == [
        f"{either.pid} either waits in poll on",
        "├─ other@1 (T)",
        f"│  <- {other.pid} other waits in poll on either@1 (T)",
        f"│  <- {either.pid} either (see above)",
        f"└─ lens@1 (T) <- {lens.pid} lens (asleep)",
    ]
    assert lines[6].startswith(f"maybe a deadlock  {either.pid} either waits for other@1 <- {other.pid} other")
    assert lines[6].endswith(f"; {either.pid} either also waits for something outside")
    assert lines[7].startswith(f"must act          {lens.pid} lens (asleep): to signal lens@1")


def test_a_merge_branches(fencectl: Fencectl, scene: Scene) -> None:
    lines = plain(fencectl("why", "#5"))
    assert lines == [
        "inputs (3:1 all, T)",
        f"├─ camera0@7 (T) <- {scene.capture.pid} capture (asleep)",
        "└─ lens@1 (T) <- nobody: there is no timeline lens",
        "",
        f"must act  {scene.capture.pid} capture (asleep): to signal camera0@7; camera0 is at 6, since T",
        "          whoever is to create the timeline lens",
    ]
    scene.do("timeline.advance(7)")
    assert plain(fencectl("why", "camera0@7")) == ["camera0@7 has signalled: ok, T ago"]
    assert plain(fencectl("why", "camera0")) == ["camera0 has no active point"]
    assert plain(fencectl("why", scene.encode.pid)) == [f"{scene.encode.pid} encode (asleep, waits for no fence)"]


@pytest.mark.parametrize(
    ("how", "wait"),
    [
        ("poll", "p = select.poll(); p.register(fd, select.POLLIN); p.poll()"),
        ("select", "select.select([fd], [], [])"),
        ("epoll", "e = select.epoll(); e.register(fd, select.EPOLLIN); e.poll()"),
        ("read", "os.set_blocking(fd, True); os.read(fd, 8)"),
        ("poll", "fence.wait()"),
    ],
)
def test_every_way_to_wait_is_seen(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn, how: str, wait: str) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0"):
        child = spawn(
            f"""
            import os, select
            import fencebroker as fb
            open("/proc/self/comm", "w").write("waiter")
            with fb.connect() as broker, broker.sync_file("camera0@7") as fence:
                fd = fence.fileno()
                print("ready", flush=True)
                {wait}
            """,
            env=fencectl.env,
        )
        assert child.line() == "ready"
        asleep(child, "poll", "wait_intr")
        line = plain(fencectl("why", child.pid))[0]
        assert line.startswith(f"{child.pid} waiter waits in {how} on camera0@7 (T) <- {os.getpid()} ")


def test_a_thread_that_waits_is_seen(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn) -> None:
    child = spawn(
        """
        import threading
        import fencebroker as fb
        open("/proc/self/comm", "w").write("waiter")
        with fb.connect() as broker, broker.sync_file("lens@7") as fence:
            threads = [threading.Thread(target=fence.wait, daemon=True) for _ in range(2)]
            for thread in threads:
                thread.start()
            print("ready", flush=True)
            threads[0].join()
        """,
        env=fencectl.env,
    )
    assert child.line() == "ready"
    asleep(child, "futex")
    line = plain(fencectl("why", child.pid))[0]
    assert line == f"{child.pid} waiter waits in poll on lens@7 (T) <- nobody: there is no timeline lens"


def test_graphviz_draws_it(fencectl: Fencectl, scene: Scene) -> None:
    dot = fencectl("why", "#5", "--dot")
    assert dot.lines()[0] == "digraph why {"
    assert dot.lines()[-1] == "}"
    program = shutil.which("dot")
    if program is None:
        not_run("graphviz is not installed")
    done = subprocess.run([program, "-Tsvg"], input=dot.out, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "camera0@7" in done.stdout


# --watch


def test_watch_writes_what_changes_and_ends_with_the_fence(fencectl: Fencectl, scene: Scene) -> None:
    watch = fencectl.spawn("why", "camera0@7", "--watch")
    assert watch.line().startswith("camera0@7 (")
    assert [watch.line(), watch.line()[:8]] == ["", "must act"]
    stopped(scene.capture)
    assert watch.line() == ""
    assert watch.line().endswith(f" <- {scene.capture.pid} capture (stopped, SIGSTOP)")
    assert [watch.line(), watch.line()[:8]] == ["", "must act"]
    scene.capture.signal(signal.SIGCONT)
    scene.do("timeline.advance(7)")
    rest = end_of(watch)
    assert rest.code == 0
    assert re.fullmatch(r"camera0@7 has signalled: ok, .* ago", rest.lines()[-1])


def test_watch_of_a_process_goes_on_and_ends_with_ctrl_c(fencectl: Fencectl, stage: Callable[..., Child]) -> None:
    camera, viewer = stage("camera"), stage("viewer", "camera@1")
    watch = fencectl.spawn("why", viewer.pid, "--watch", "--json")
    assert json.loads(watch.line())["processes"][0]["how"] == "poll"
    camera.kill()  # the fence fails, and the viewer with it
    while json.loads(line := watch.line())["fences"]:
        pass
    assert json.loads(line)["must_act"] == []
    watch.signal(signal.SIGINT)
    assert end_of(watch).code in (130, 1)  # 1: the viewer had ended


def test_watch_says_when_the_broker_goes(fencectl: Fencectl, scene: Scene, broker: BrokerProcess) -> None:
    watch = fencectl.spawn("why", "camera0@7", "--watch")
    assert watch.line().startswith("camera0@7 (")
    broker.stop()
    result = end_of(watch)
    assert result.code in (0, 4)  # 0: it saw the fence end, with ECANCELED, before the broker
    assert "went away" in result.err or "ECANCELED" in result.out


def test_watch_redraws_a_terminal(fencectl: Fencectl, scene: Scene, terminal: Terminal) -> None:
    scene.do("timeline.advance(7)")
    shown = terminal("why", "camera0@7", "--watch")
    assert "camera0@7 has signalled: ok, " in shown


# Bad input


@pytest.mark.parametrize("verb", ["why", "holders"])
def test_what_cannot_be_found(fencectl: Fencectl, scene: Scene, verb: str) -> None:
    for target, complaint in (
        ("camra0", "there is no 'camra0' here (or it is not yours to see); did you mean camera0?"),
        ("camra0@7", "nobody waits for camra0@7, and there is no timeline of that name (or it is not yours to see); did you mean camera0?"),
        ("99999999", "there is no process 99999999, and no sync_file of that number that you may see"),
        ("#99999999", "there is no '#99999999' here (or it is not yours to see)"),
        ("/proc/99999999", "there is no process 99999999"),
        ("camera0@99", "camera0@99 was not exported yet, and nobody waits for it: the timeline is at 6"),
    ):
        result = fencectl(verb, target)
        assert (result.code, result.one_error()) == (1, complaint)
    for target in ("", "a:b", "a@x", "#x"):
        assert fencectl(verb, target).code == 2
    assert fencectl("why", "camera0", "--dot", "--json").code == 2


def test_a_process_of_another_user_says_which_right_is_missing(fencectl: Fencectl, broker: BrokerProcess, spawn: Spawn) -> None:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        not_run("needs root, and setpriv, to be somebody else")
    os.chmod(broker.path, 0o666)
    os.chmod(os.path.dirname(broker.path), 0o755)
    comm = pathlib.Path(f"/proc/{broker.pid}/comm").read_text().strip()
    for verb in ("why", "holders"):
        result = end_of(
            spawn(["setpriv", "--reuid=65533", "--clear-groups", FENCECTL, verb, f"/proc/{broker.pid}"], env=broker.env, cwd="/")
        )
        if not result.err.startswith("fencectl: "):
            not_run("another user cannot run this interpreter here")
        assert (result.code, result.one_error()) == (
            1,
            f"pid {broker.pid} ({comm}) is a process of root: what it holds and waits for may be seen by its user, by root, and with CAP_SYS_PTRACE",
        )


def test_a_name_cannot_move_the_cursor(fencectl: Fencectl, broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline("camera0") as timeline, timeline.export(1, name="\x1b[31mred"):
        for arguments in (["1"], ["1", "--dot"], ["1", "--json"]):
            out = fencectl("why", *arguments).out
            assert "\x1b" not in out
            assert ("red" in out) is (len(arguments) == 1)
        json.loads(fencectl("why", "1", "--json").out)
