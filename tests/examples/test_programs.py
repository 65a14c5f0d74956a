"""The small examples, each run as a person would run it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Child, Spawn, complaints, not_run

_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(spawn: Spawn, broker: BrokerProcess, name: str, *arguments: object) -> Child:
    return spawn([sys.executable, str(_EXAMPLES / name), *map(str, arguments)], env=broker.env)


# Two terminals


def test_producer_and_consumer_in_two_terminals(spawn: Spawn, broker: BrokerProcess, folder: str) -> None:
    producer = _run(spawn, broker, "producer.py", f"{folder}/pictures.sock")
    assert producer.line() == "waiting for a consumer"
    consumer = _run(spawn, broker, "consumer.py", f"{folder}/pictures.sock")
    seen = consumer.finish(2 * LIMIT).splitlines()
    assert "waiting for picture-1, fence active" in seen
    brightness = [line for line in seen if "mean brightness" in line]
    assert [line.split(":")[0] for line in brightness] == [f"picture-{number}" for number in range(1, 6)]
    assert all("P5 120 120 255, 14400 pixels" in line for line in brightness)
    assert producer.finish().splitlines() == [f"picture-{number} is ready" for number in range(1, 6)]
    assert os.listdir(folder) == [os.path.basename(broker.path)] or os.listdir(folder) == []


def test_the_consumer_learns_that_the_producer_died(spawn: Spawn, broker: BrokerProcess, folder: str) -> None:
    producer = _run(spawn, broker, "producer.py", f"{folder}/pictures.sock")
    producer.line()
    consumer = _run(spawn, broker, "consumer.py", f"{folder}/pictures.sock")
    assert consumer.line() == "waiting for picture-1, fence active"
    producer.kill()
    consumer.rest()
    assert consumer.wait() == 1
    assert re.search(r"picture-\d will not come: .*died", consumer.log()), consumer.log()
    assert not complaints(consumer.log())


@pytest.mark.parametrize("name", ["producer.py", "consumer.py"])
def test_a_wrong_path_is_one_line(spawn: Spawn, broker: BrokerProcess, name: str) -> None:
    for arguments, complaint in (([], "usage"), (["/nowhere/x.sock"], "No such file")):
        child = _run(spawn, broker, name, *arguments)
        assert child.rest() == ""
        assert child.wait() == 1
        assert complaint in child.log()
        assert not complaints(child.log())


# Named points


def test_named_points_travel_as_text(spawn: Spawn, broker: BrokerProcess) -> None:
    producer = _run(spawn, broker, "named_producer.py")
    consumer = _run(spawn, broker, "named_consumer.py")
    for number in range(1, 6):
        point = producer.line()
        assert point == f"camera0@{number}"
        consumer.send(point)
        assert consumer.line() == f"{point} is there"
    assert producer.finish() == ""
    assert "all frames were seen" in producer.log()
    assert consumer.finish() == ""


def test_the_named_examples_through_a_pipe_as_their_text_says(broker: BrokerProcess) -> None:
    command = '"$0" named_producer.py | "$0" named_consumer.py'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=_EXAMPLES,
        env={**os.environ, **broker.env},
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=True,
    )
    assert done.stdout.splitlines() == [f"camera0@{number} is there" for number in range(1, 6)]


def test_a_line_that_is_no_point_is_refused(spawn: Spawn, broker: BrokerProcess) -> None:
    consumer = _run(spawn, broker, "named_consumer.py")
    consumer.send("camera0 seven")
    consumer.rest()
    assert consumer.wait() == 1
    assert "camera0 seven: " in consumer.log()
    assert not complaints(consumer.log())


# Others in Python


def test_a_shared_array_is_never_torn(spawn: Spawn, broker: BrokerProcess) -> None:
    output = _run(spawn, broker, "shared_array.py").finish(2 * LIMIT)
    assert output == "40 rounds over 2 buffers of 250,000 numbers, torn 0\n"


def test_asyncio_tasks_wait_side_by_side(spawn: Spawn, broker: BrokerProcess) -> None:
    output = _run(spawn, broker, "asyncio_tasks.py").finish().splitlines()
    assert output[0] == "impatient: gave up after 0.05 s"
    for task in ("first", "second"):
        own = [line for line in output if line.startswith(task)]
        assert own == [f"{task}: frame 1 is there", f"{task}: frame 2 failed with EIO"]
    assert len(output) == 5


# Another language


@pytest.fixture(scope="module")
def wait_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        not_run("no C compiler (cc) to build examples/wait.c with")
    program = str(tmp_path_factory.mktemp("wait") / "wait")
    source = str(_EXAMPLES / "wait.c")
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-O2", "-o", program, source], check=True, timeout=2 * LIMIT)
    return program


def _wait_in_c(spawn: Spawn, program: str, fence: fb.SyncFile, *arguments: str) -> Child:
    return spawn([program, str(fence.fileno()), *arguments], pass_fds=[fence.fileno()])


def test_a_c_program_waits_and_tells_success_from_error(spawn: Spawn, broker: BrokerProcess, wait_program: str) -> None:
    with (
        fb.connect(broker.path) as connection,
        connection.create_timeline("camera0") as timeline,
        timeline.export(1) as good,
        timeline.export(2) as bad,
    ):
        waiting = [_wait_in_c(spawn, wait_program, fence) for fence in (good, good, bad)]
        timeline.advance(1)
        for child in waiting[:2]:
            assert child.finish() == "signalled: OK\n"
        timeline.fail(2, errno.EIO)
        assert waiting[2].rest() == f"signalled with error {errno.EIO}: Input/output error\n"
        assert waiting[2].wait() == 1


def test_a_c_program_is_told_when_the_producer_dies(spawn: Spawn, broker: BrokerProcess, wait_program: str) -> None:
    producer = spawn(
        """
        import sys, fencebroker as fb
        with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
            print("ready", flush=True)
            sys.stdin.read()
        """,
        env=broker.env,
    )
    assert producer.line() == "ready"
    with fb.connect(broker.path) as connection, connection.sync_file("camera0@1") as fence:
        waiting = _wait_in_c(spawn, wait_program, fence)
        producer.kill()
        assert waiting.rest() == f"signalled with error {errno.ENOENT}: No such file or directory\n"
        assert waiting.wait() == 1


def test_a_c_program_still_tells_success_after_somebody_read(spawn: Spawn, broker: BrokerProcess, wait_program: str) -> None:
    """A read takes 1 from the counter; the status stays."""
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        timeline.advance(1)
        fence.wait(LIMIT)
        os.eventfd_read(fence.fileno())
        assert _wait_in_c(spawn, wait_program, fence).finish() == "signalled: OK\n"


def test_a_c_program_gives_up_and_refuses_nonsense(spawn: Spawn, broker: BrokerProcess, wait_program: str) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
        late = _wait_in_c(spawn, wait_program, fence, "20")
        assert (late.rest(), late.wait()) == ("", 3)
        assert "not signalled within 20 ms" in late.log()
    own = os.eventfd(5)
    try:
        child = spawn([wait_program, str(own)], pass_fds=[own])
        assert (child.rest(), child.wait()) == ("", 4)
    finally:
        os.close(own)
    for arguments, code in (([], 2), (["x"], 2), (["-1"], 2), (["99"], 4), (["0", "1", "2"], 2)):
        child = spawn([wait_program, *arguments])
        assert (child.rest(), child.wait()) == ("", code)


# The shell


def _run_script(broker: BrokerProcess, name: str) -> list[str]:
    done = subprocess.run(
        ["sh", str(_EXAMPLES / name)],
        env={**os.environ, **broker.env, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=4 * LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with fb.connect(broker.path) as connection:
        for timeline in list(connection._listing("timelines")):  # it ends when its holder has seen the end of the script
            with connection.sync_file(f"{timeline[1]}@1000") as fence, pytest.raises(fb.FenceError):
                fence.wait(LIMIT)
    return done.stdout.splitlines()


def test_shell_jobs_run_in_order(broker: BrokerProcess) -> None:
    assert _run_script(broker, "steps.sh") == ["fetched", "sorted", "published: fence merge seqno "]


def test_a_pipeline_of_shell_scripts(broker: BrokerProcess) -> None:
    expected = [f"picture {n}: {999 * n + 1} lines, from {n} to {n * 1000}" for n in range(1, 7)]
    assert _run_script(broker, "shell_pipeline.sh") == expected


# The one not to copy


def _a_good_client_works(broker: BrokerProcess) -> None:
    with fb.connect(broker.path) as connection, connection.create_timeline() as timeline:
        for number in range(1, 101):
            with timeline.export(number) as fence:
                timeline.advance(number)
                fence.wait(LIMIT)


@pytest.mark.parametrize("mode", ["flood", "hang"])
def test_a_bad_client_does_not_disturb_a_good_one(spawn: Spawn, broker: BrokerProcess, mode: str) -> None:
    evil = _run(spawn, broker, "evil_client.py", mode)
    assert evil.line().startswith(f"{mode}: ")
    _a_good_client_works(broker)
    evil.finish()
    _a_good_client_works(broker)


def test_no_lie_is_believed(spawn: Spawn, broker: BrokerProcess) -> None:
    told = _run(spawn, broker, "evil_client.py", "lie").finish().splitlines()
    assert len(told) == 12
    for line in told:
        assert line.endswith(": disconnected") or ": refused: " in line, line
    _a_good_client_works(broker)


def test_the_evil_client_says_what_it_is_for(spawn: Spawn) -> None:
    source = (_EXAMPLES / "evil_client.py").read_text()
    assert source.startswith('"""Do not copy this example!')
    child = spawn([sys.executable, str(_EXAMPLES / "evil_client.py")])
    assert (child.rest(), child.wait()) == ("", 1)
    assert "flood|lie|hang" in child.log()
