"""The benchmarks run, and say what they promise to say.  What they measure here is worth nothing, and nothing looks at it."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.figures import Comparison, Target, figures_of, percentile, ratio_of
from benchmarks.peers import COMPARISONS, JUDGED, PEERS
from benchmarks.plots import why_no_plots
from benchmarks.report import BEGIN, END, replace_between_markers
from tests.helpers import not_run

if TYPE_CHECKING:
    from tests.helpers import Spawn

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "benchmarks")


@pytest.mark.timeout(300)
def test_a_quick_run_measures_every_peer(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    figures, document = tmp_path / "figures.json", tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    tables = spawn([*COMMAND, "--quick", "--json", str(figures), "--docs", str(document)], cwd=ROOT).finish(270)

    values = json.loads(figures.read_text())
    assert values["format"] == 2
    missing = {peer.key: why for peer in PEERS if (why := peer.missing()) is not None}
    assert values["not_run"] == missing
    present = [peer.key for peer in PEERS if peer.key not in missing]
    assert values["settings"]["quick"] is True
    assert values["machine"]["python"]
    for key, placement in values["placements"].items():
        assert list(placement["peers"]) == present
        for peer in placement["peers"].values():
            assert peer["samples"] > 0
            assert 0 < peer["p50_us"] <= peer["p90_us"] <= peer["p99_us"] <= peer["max_us"]
            assert len(peer["per_round"]["values"]) == values["settings"]["rounds"]
            assert peer["title"] in tables
        compared = [(c.peer, c.base) for c in COMPARISONS if c.peer in present and (c.base is None or c.base in present)]
        assert [(c["peer"], c["base"]) for c in placement["comparisons"]] == compared
        for comparison in placement["comparisons"]:
            assert 0 < comparison["min"] <= comparison["median"] <= comparison["max"]
            assert (comparison["met"] is None) == (comparison["target"] is None)
        assert any(c["target"] is not None for c in placement["comparisons"]) == (key == JUDGED)
    assert list(values["sections"]) == ["fan_out", "frames", "clients", "active", "core", "start", "idle"]
    for section in values["sections"].values():
        assert section["title"] in tables
        assert section["data"]
    if why_no_plots() is None:
        pictures = sorted(path.name for path in tmp_path.glob("*.svg"))
        assert len(pictures) == (3 if JUDGED in values["placements"] else 2)
        for picture in pictures:
            assert f"]({picture})" in tables
    assert document.read_text() == f"before\n{BEGIN}\n\n{tables.rstrip()}\n\n{END}\nafter\n"
    if missing:
        not_run("some peers of the benchmarks; the others were measured: " + ", ".join(sorted(set(missing.values()))))


def test_a_document_without_markers_is_refused_before_anything_is_measured(spawn: Spawn, tmp_path: pathlib.Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("no markers\n")
    child = spawn([*COMMAND, "--docs", str(document)], cwd=ROOT)
    assert child.wait() == 2
    assert BEGIN in child.log()
    assert document.read_text() == "no markers\n"


@pytest.mark.parametrize("workload", ["batch", "merge"])
def test_a_profile_shows_both_ends(spawn: Spawn, workload: str) -> None:
    text = spawn([*COMMAND, "--profile", workload], cwd=ROOT).finish(50)
    broker, client = text.split("client: ")
    assert "/fencebrokerd/" in broker
    assert "/fencebrokerd/" not in client
    assert "/fencebroker/" in client


def test_the_core_alone_is_measured_at_every_size(spawn: Spawn) -> None:
    lines = spawn([*COMMAND, "--scale", "--quick"], cwd=ROOT).finish(50).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:] if line] == ["1,000", "10,000"]


def test_a_scan_sees_every_process(spawn: Spawn) -> None:
    lines = spawn([*COMMAND, "--scan", "--quick"], cwd=ROOT).finish(50).splitlines()
    found = re.match(r"(\d+) processes, (\d+) descriptors", lines[0])
    assert found is not None
    assert int(found[1]) > 20
    assert int(found[2]) >= 20 * 4
    assert len(lines) == 9


def test_a_recovery_is_measured(spawn: Spawn) -> None:
    text = spawn([*COMMAND, "--recovery", "--quick"], cwd=ROOT).finish(50)
    assert text.startswith("3 x SIGKILL with 500 active fences; 0 lost.")
    assert "a request across the broker's death" in text


def test_the_price_of_the_journal_is_measured(spawn: Spawn) -> None:
    lines = spawn([*COMMAND, "--journal", "--quick"], cwd=ROOT).finish(50).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:] if line] == [
        "export + advance + close, one at a time",
        "the same in batches of 64",
    ]


def test_percentiles_are_samples() -> None:
    assert [percentile(range(1, 101), fraction) for fraction in (0.5, 0.9, 0.99, 1.0)] == [51, 91, 100, 100]
    assert percentile([7], 0.99) == 7


def test_a_ratio_is_taken_inside_each_round() -> None:
    figures = {
        "slow": figures_of("wake", 1, [[2000], [40_000], [6000]]),
        "fast": figures_of("wake", 1, [[1000], [10_000], [2000]]),
    }
    ratio = ratio_of(figures, Comparison("slow", "fast", Target("<=", 2.9)))
    assert (ratio.spread.median, ratio.spread.min, ratio.spread.max) == (3.0, 2.0, 4.0)
    assert ratio.met is False


def test_a_rate_counts_the_members_of_a_batch() -> None:
    figures = {"batch": figures_of("operation", 64, [[1_000_000, 1_000_000]])}
    ratio = ratio_of(figures, Comparison("batch", None, Target(">=", 64_000)))
    assert ratio.spread.median == pytest.approx(64_000)
    assert ratio.met is True


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_document_needs_both_markers_in_order(text: str) -> None:
    with pytest.raises(ValueError, match="needs a line"):
        replace_between_markers(text, "tables")
