"""docs/protocol.md against the code: what it says of every message is true, and its golden packets are what a running broker sends."""

from __future__ import annotations

import ast
import contextlib
import errno
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import fencebroker
from fencebroker import wire
from fencebroker.errors import REFUSALS
from fencebroker.fds import OwnedFd, close_all, recv_packet, send_packet, status_from_count
from fencebroker.latency import middle_of
from fencebroker.rows import TimelineRow
from fencebrokerd.core import trace
from tests.helpers import LIMIT, Spawn, StartBroker, not_run, package_folder, wait_readable

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "protocol.md").read_text("utf-8")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level, name = re.search(rf"^(#+) ({re.escape(title)})$", PAGE, re.MULTILINE).groups()  # type: ignore[union-attr]
    after = PAGE.split(f"\n{level} {name}\n", 1)[1]
    return re.split(rf"^#{{2,{len(level)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table in ``text``, without its head."""
    lines = text.split("\n|", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows[2:]]


class Packet(NamedTuple):
    who: str
    arrow: str
    title: str
    message: Any
    packet: bytes

    @property
    def n_descriptors(self) -> int:
        found = re.search(r"\+ (the|\d+) descriptor", self.title)
        return 0 if found is None else 1 if found[1] == "the" else int(found[1])


def golden() -> Iterator[Packet]:
    for found in re.finditer(r"^([ABCT]) ([→←]) (.*)\n    ([\[].*)\n((?:    [0-9a-f ]+\n)+)", section("Golden packets"), re.MULTILINE):
        yield Packet(found[1], found[2], found[3], json.loads(found[4]), bytes.fromhex(found[5]))


GOLDEN: Final = list(golden())
ASKED: Final = [packet for packet in GOLDEN if packet.arrow == "→" and packet.who != "T"]


def answer_to(asked: Packet) -> Packet | None:
    """The golden answer with the serial of a golden request; none for one-way requests."""
    same = (p for p in GOLDEN if p.who == asked.who and p.arrow == "←" and p.message[0] == asked.message[0])
    return next(same, None)


def test_the_blocks_from_the_code_are_current() -> None:
    checked = subprocess.run([sys.executable, "-m", "docs", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# Messages


@pytest.mark.parametrize("op", wire.REQUESTS)
def test_every_request_has_its_section(op: int) -> None:
    spec = wire.REQUESTS[op]
    # Hello has a chapter of its own.
    text = section("Hello and versions") if op == wire.HELLO else section(spec.name)
    assert f"→ [{', '.join(['serial', str(op), *(field.name for field in spec.fields)])}]" in text
    if spec.fields:
        assert table(text) == [[f"`{field.name}`", field.what] for field in spec.fields]
    assert ("\nNo answer.\n" in text) is not spec.answered
    assert ("\nAnswer: `[serial, 0" in text) is spec.answered


@pytest.mark.parametrize("op", wire.TIMELINE_OPS)
def test_every_message_of_a_timeline_has_its_section(op: int) -> None:
    spec = wire.TIMELINE_OPS[op]
    text = section(f"signal: {spec.name}")
    assert f"→ [{', '.join(['holder', 'counter', str(op), *(field.name for field in spec.fields)])}]" in text
    assert table(text) == [[f"`{field.name}`", field.what] for field in spec.fields]
    assert any(packet.who == "T" and packet.message[2] == op for packet in GOLDEN), f"no golden packet of {spec.name}"


@pytest.mark.parametrize("op", wire.REQUESTS)
def test_every_answer_has_the_elements_and_descriptors_of_the_golden_one(op: int) -> None:
    spec = wire.REQUESTS[op]
    asked = [packet for packet in ASKED if packet.message[1] == op]
    assert asked, f"no golden packet of {spec.name}"
    answers = [answer for packet in asked if (answer := answer_to(packet)) is not None and answer.message[1] == 0]
    assert bool(answers) is spec.answered
    text = section("Hello and versions") if op == wire.HELLO else section(spec.name)
    for answer in answers:
        said = re.search(r"^Answer: `\[serial, 0((?:, \w+)*)\]`(.*)", text, re.MULTILINE)
        assert said is not None
        assert len(answer.message) - 2 == said[1].count(","), f"{spec.name}: {answer.message}"
        assert ("descriptor" in said[2]) is (answer.n_descriptors > 0)


def test_every_golden_packet_is_what_it_says() -> None:
    assert len(GOLDEN) > 60
    for who, arrow, _, message, packet in GOLDEN:
        assert wire.encode(message) == packet
        if who == "T":
            assert wire.decode_timeline(packet) == message
        elif arrow == "←":
            assert wire.decode_answer(packet) == message


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.who}{asked.message[0]}-{asked.title.partition(' ')[0]}")
def test_every_golden_request_is_well_formed(asked: Packet) -> None:
    message, spec = wire.decode_request(asked.packet, asked.n_descriptors)
    assert message == asked.message
    assert asked.title.startswith("an op this version does not know" if spec is None else spec.name)


def test_the_version_is_the_one_of_the_code() -> None:
    assert f"The version on this page is **{wire.VERSION}**." in PAGE


# Rows


def row(text: str, message: Any) -> dict[str, Any]:
    """A golden row by the page's column names; each value has the type that the page says."""
    columns = table(text)
    assert len(columns) == len(message), f"the page has {len(columns)} columns, the broker sends {len(message)}: {message}"
    for (name, kind, _), value in zip(columns, message, strict=True):
        types = [
            {"str": str, "bool": bool, "nil": type(None), "process": list}.get(word, list if word.startswith("list") else int)
            for word in kind.split(" or ")
        ]
        assert type(value) in types, f"{name} is {value!r}, and the page says {kind}"
    return {name: value for (name, *_), value in zip(columns, message, strict=True)}


def one(title: str, **about: Any) -> Any:
    """The results of the golden answer to the last request of that title and those arguments."""
    for asked in reversed(ASKED):
        answer = answer_to(asked)
        if asked.title == title and set(about.values()) <= {str(x) for x in asked.message} and answer is not None:
            return answer.message[2:]
    raise AssertionError(f"no golden {title} {about}")


CAPTURE: Final = {"pid": 790, "uid": 1000, "comm": "capture"}


def test_the_rows_of_info() -> None:
    sync_file, following, fences = one("info")
    assert following is None
    assert row(section("The row of info"), sync_file) == {
        "name": "frame", "status": -errno.EIO, "num_fences": 1, "id": 2, "context": 1, "seqno": 2, "creator": [790, 1000, "capture"],
        "created_ns": 3600003000000, "timestamp_ns": 3600011000000, "deadline_ns": 3600016000000, "expires_ns": 3660003000000,
        "tampered": False, "detached": False,
    }  # fmt: skip
    assert row(section("The fences of info"), fences[0]) == {
        "obj_name": "camera0", "driver_name": "fencebroker", "status": -errno.EIO, "timestamp_ns": 3600011000000, "context": 1, "seqno": 2,
        "owner": [790, 1000, "capture"], "created_ns": 3600003000000, "deadline_ns": 3600016000000, "expires_ns": 3660003000000,
    }  # fmt: skip


def test_the_rows_of_lists() -> None:
    timeline = row(section("list timelines"), one("list", kind="timelines")[1][0])
    assert timeline.items() >= {
        **CAPTURE, "context": 1, "name": "camera0", "driver": "fencebroker", "value": 3, "highest": 10, "n_active": 0, "mode": 0o640,
        "created_ns": 3600002000000, "expiry_ns": 60_000_000_000, "n_descriptors": 2, "creator_alive": True,
        "advanced_ns": 3600012000000, "oldest_ns": None, "n_fences": 5, "n_signalled": 3, "n_failed": 2,
    }.items()  # fmt: skip
    assert {bucket: round(middle_of(bucket) / 10**6) for bucket in timeline["latencies"][::2]} == {35: 1, 39: 2, 47: 8}
    assert timeline["inodes"] == [4701, 4702]
    fences = [row(section("list fences"), fence) for fence in one("list", kind="fences")[1]]
    merged = next(fence for fence in fences if fence["kind"] == "all" and len(fence["members"]) == 2)
    assert merged.items() >= {"uid": 1000, "n_sync_files": 1, "status": 0, "seqno": 1, "owner": None, "timeline": None}.items()
    point = next(fence for fence in fences if fence["seqno"] == 10)
    assert point.items() >= {
        "kind": "point", "obj_name": "camera0", "status": -errno.ECANCELED, "context": 1, "timeline": "camera0", "timeline_uid": 1000,
    }.items()  # fmt: skip
    assert point["created_ns"] < point["timestamp_ns"] < point["expires_ns"]
    sync_file = row(section("list sync_files"), one("list", kind="sync_files")[1][-1])
    assert sync_file.items() >= {
        **CAPTURE, "id": 8, "status": -errno.ECANCELED, "context": 1, "seqno": 10, "tampered": False, "is_open": True,
        "fence": point["id"], "kind": "point", "timeline": "camera0", "timeline_uid": 1000, "eventfd_id": 9008,
    }.items()  # fmt: skip
    assert (sync_file["created_ns"], sync_file["timestamp_ns"]) == (point["created_ns"], point["timestamp_ns"])
    session = row(section("list sessions"), one("list", kind="sessions")[1][0])
    assert session == {**CAPTURE, "id": 1, "n_sync_files": 8, "n_timelines": 1, "created_ns": 3600001000000}


def test_the_lines_of_events() -> None:
    pushed = [packet.message for packet in GOLDEN if packet.title == "events"]
    lines = [row(section("Events"), line) for message in pushed for line in message[2]]
    assert all(message[:2] == [0, 0] for message in pushed)
    signalled = next(line for line in lines if line["name"] == "dma_fence_signaled")
    assert signalled.items() >= {**CAPTURE, "context": 1, "seqno": 12, "timeline": "camera0", "driver": "fencebroker", "status": 1}.items()
    names = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(trace)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+_(?!array)[a-z]+", node.value)
    }
    assert {cells[0].strip("`") for cells in table(section("Events").split("trace events")[1])} == names


# Errors and status


def test_the_errors_are_those_that_travel() -> None:
    shown = {cells[0]: (cells[1], cells[2]) for cells in table(section("Errors"))}
    assert shown == {f"`{errno.errorcode[error]}` {error}": text for error, text in REFUSALS.items()}
    used = set()
    for path in package_folder("fencebrokerd").rglob("*.py"):
        source = path.read_text("utf-8")
        used |= {getattr(errno, name) for name in re.findall(r"Refusal\(\s*errno\.(\w+)", source)}
        used |= {int(number) for number in re.findall(r"Refusal\(\s*(\d+)", source)}
        used |= {getattr(errno, name) for name in re.findall(r"_refuse\(\s*errno\.(\w+)", source)}
        # What the kernel refuses is passed on if it is one of these.
        for group in re.findall(r"error if error in \((.*?)\)", source):
            used |= {getattr(errno, name) for name in re.findall(r"errno\.(\w+)", group)}
    assert used <= REFUSALS.keys(), "a refusal that the page does not have"
    assert REFUSALS.keys() <= used, "an errno that nothing refuses with"


def test_the_words_of_the_status_decode() -> None:
    rows = table(section("The status a descriptor carries"))
    assert len(rows) >= 6
    for said, word, count, *_ in rows:
        status = status_from_count(int(count, 16))
        assert int(word) == int(count, 16)
        expected = {"not signalled": 0, "OK": 1}.get(said)
        assert status == (-getattr(errno, said.split("`")[1]) if expected is None else expected)


# The page against a running broker

#: Golden values that are another machine's: they need only be of the same type.
ELSEWHERE: Final = {790, 1000, "capture", 612, 990, 4701, 4702, 9005, 9007, 9008, 20000, "0.1.0"}


def same(shown: Any, real: Any) -> bool:
    """Whether a real answer is the golden one, but for pids, uids, commands, times and inodes."""
    if type(shown) is not type(real):
        return False
    if isinstance(shown, list):
        return len(shown) == len(real) and all(map(same, shown, real))
    if shown in ELSEWHERE or (isinstance(shown, int) and shown > 10**12):
        return True
    return bool(shown == real)


def counted(answer: Any) -> None:
    """In a timeline's row, replace how long its fences took by how many they were."""
    for row in answer[3] if isinstance(answer[3][0], list) else [answer[3]]:
        if len(row) == len(TimelineRow._fields):
            row[-1] = sum(row[-1][1::2])


def test_a_running_broker_answers_as_the_page_says(start_broker: StartBroker, cleanup: contextlib.ExitStack, folder: str) -> None:
    config = Path(folder, "broker.toml")
    config.write_text("[limits]\ntimelines_per_uid = 2\n")
    broker = start_broker("--config", str(config))
    comm = Path("/proc/self/comm").read_text().strip()
    if comm.startswith("python"):
        comm = "capture.py"  # what the hello says
    sockets: dict[str, socket.socket] = {}
    handles: dict[str, OwnedFd] = {}
    handles["a pipe"], _write_end = (cleanup.enter_context(OwnedFd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
    op = 0
    for packet in GOLDEN:
        if packet.who == "B":  # another user
            break
        if packet.who not in sockets:
            sockets[packet.who] = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sockets[packet.who].connect(broker.path)
        if packet.arrow == "→":
            op = packet.message[1]
            shown = [handles[name].fileno() for name in re.findall(r"\+ the descriptor of (.+)", packet.title)]
            send_packet(sockets[packet.who], packet.packet, shown)
            continue
        wait_readable(sockets[packet.who].fileno())
        answer, fds = recv_packet(sockets[packet.who])
        cleanup.callback(close_all, fds)
        real = wire.decode_answer(answer)
        expected = json.loads(json.dumps(packet.message).replace("pid 790 (capture)", f"pid {os.getpid()} ({comm})"))
        if packet.who == "C":
            expected[2] = expected[2].replace("0.1.0", fencebroker.__version__)
        if packet.who == "A" and op == wire.STATUS:  # the counts are a running broker's, and its own user gets two more
            expected[2] = [name for name, _ in expected[2]]
            real[2] = [name for name, _ in real[2] if name not in ("signalled", "descriptors")]
        if op in (wire.LIST, wire.LOOKUP):
            counted(expected)
            counted(real)
        assert same(expected, real), f"{packet.title}\nthe page:   {expected}\nthe broker: {real}"
        assert len(fds) == packet.n_descriptors, packet.title
        if packet.message[:2] == [2, 0]:
            handles["the timeline"] = fds[0]
            sockets["T"] = cleanup.enter_context(socket.socket(fileno=os.dup(fds[0].fileno())))
        else:
            handles |= {f"handle {packet.message[2] + i}": fd for i, fd in enumerate(fds)}
    assert {"A", "C", "T"} == sockets.keys()
    assert recv_packet(sockets["C"]) == (b"", []), "a refused hello is followed by end-of-file"


def test_a_client_in_c_written_from_the_page(start_broker: StartBroker, spawn: Spawn, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        not_run("no C compiler")
    program = tmp_path / "client"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-o", str(program)]
    subprocess.run([compiler, *flags, str(ROOT / "docs" / "client.c")], check=True, timeout=LIMIT * 3)
    child = spawn([str(program), start_broker().path])
    assert child.finish().splitlines() == ["point 1: 0", "point 1: 1", f"point 2: {-errno.EIO}"]
    lost = spawn([str(program), str(tmp_path / "nothing")])
    assert lost.wait() == 1
    assert "No such file" in lost.log()
