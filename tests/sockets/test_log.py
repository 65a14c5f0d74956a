"""The log: levels, journal priorities, each incident once, and no client's words raw on a terminal."""

from __future__ import annotations

import os
import sys

import pytest

from fencebrokerd.keeper import PRIORITIES
from fencebrokerd.shell.log import Log, escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with 'quotes' and a \"pair\"", "plain text, with 'quotes' and a \"pair\""),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x07\x08\x7f\x00", "\\x07\\x08\\x7f\\x00"),
        ("größer", "gr\\xf6\\xdfer"),
        ("\u202e right to left", "\\u202e right to left"),
        ("\udcff", "\\udcff"),
        ("\\n", "\\\\n"),
        ("<3>forged priority", "<3>forged priority"),
    ],
)
def test_words_of_a_client_are_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_escaped_words_are_short_ascii_and_one_line() -> None:
    for text in ("x" * 10**6, "\U0001f4f7" * 10**5, "\n" * 10**5, "".join(map(chr, range(1_000)))):
        shown = escape(text)
        assert len(shown) <= 2_000
        assert shown.isascii()
        assert shown.isprintable()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("level", list(PRIORITIES))
def test_what_is_less_important_is_left_out(capsys: pytest.CaptureFixture[str], level: str) -> None:
    log = Log(level)
    for name in PRIORITIES:
        log.write(name, f"a line of {name}")
    written = lines(capsys)
    expected = list(PRIORITIES)[: list(PRIORITIES).index(level) + 1]
    assert [line.rpartition(" ")[2] for line in written] == expected
    for line, name in zip(written, expected, strict=True):
        assert line.endswith(f" fencebrokerd[{os.getpid()}] {name}: a line of {name}")


def test_an_incident_is_said_once_per_user_and_cause(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("notice")
    for n in range(1_000):
        log.once(1000, "malformed", f"the {n}th packet was malformed")
        log.once(1001, "malformed", f"the {n}th packet was malformed")
        log.once(1000, "slow", f"it left {n} bytes unread")
    written = lines(capsys)
    assert len(written) == 3
    assert written[0].endswith("warning: the 0th packet was malformed (uid 1000; said once)")


def test_it_remembers_a_bounded_number_of_incidents(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("error")
    for uid in range(12_000):
        log.once(uid, "malformed", "x")
    assert len(log._said) == 10_000
    assert not lines(capsys)


def test_a_closed_pipe_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    log = Log("notice")
    log.write("notice", "nobody reads this")
    log.write("error", "nor this")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_its_level_can_change(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("error")
    log.write("info", "unseen")
    log.set_level("info")
    log.write("info", "seen")
    assert [line.rpartition(" ")[2] for line in lines(capsys)] == ["seen"]


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense", ":", "8:99999999"])
def test_another_journal_stream_is_not_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: str) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    Log("notice").write("notice", "text")
    assert not lines(capsys)[0].startswith("<")
