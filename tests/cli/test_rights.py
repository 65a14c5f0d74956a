"""``chmod`` and ``quota``: who may open a timeline, and how much a user may have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Fencectl, Scene
from tests.helpers import not_run

if TYPE_CHECKING:
    from tests.helpers import Spawn, StartBroker


def test_chmod_changes_the_mode(fencectl: Fencectl, scene: Scene) -> None:
    """It says what was and is when asked; a second time it is there already, and that is no error."""
    result = fencectl("chmod", "0644", "camera0")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert fencectl("info", "camera0", "--json").json()["timeline"]["mode"] == "0644"
    assert fencectl("chmod", "-v", "640", "camera0").out == "the mode of camera0 went from 0644 to 0640\n"
    assert fencectl("chmod", "-v", "0640", "camera0").out == "the mode of camera0 is 0640 already\n"


@pytest.mark.parametrize("mode", ["", "rw", "888", "-1", "1000", "0o640", "00000", "0\u066640"])
def test_what_is_no_mode_is_wrong_usage(fencectl: Fencectl, mode: str) -> None:
    result = fencectl("chmod", "--", mode, "camera0")
    assert result.code == 2
    assert "must be octal permission bits such as 0640" in result.one_error()


def test_chmod_of_what_is_not_there(fencectl: Fencectl, scene: Scene) -> None:
    result = fencectl("chmod", "0644", "camera9")
    assert result.code == 1
    assert result.one_error().startswith("there is no timeline 'camera9' here (or it is not yours to see)")


def test_quota_counts_what_there_is(fencectl: Fencectl, scene: Scene) -> None:
    found = {quota["name"]: quota for quota in fencectl("quota", "--json").json()["quotas"]}
    assert {quota["uid"] for quota in found.values()} == {os.getuid()}
    assert found["timelines per user"]["used"] == 1
    assert found["sync_files per user"]["used"] == 3
    assert found["members of merges per user"]["used"] == 2
    assert found["sessions per user"] == {"uid": os.getuid(), "name": "sessions per user", "used": 3, "limit": 256}


def test_root_sees_everybodys(start_broker: StartBroker, spawn: Spawn, folder: str) -> None:
    """A column says whose; a user sees its own."""
    if os.getuid() != 0:
        not_run("becoming another user needs root")
    os.chmod(folder, 0o755)
    broker = start_broker("--socket-mode", "0666", path=f"{folder}/broker")
    other = spawn(
        """
        import os, sys
        import fencebroker as fb
        os.setresuid(4201, 4201, 4201)
        with fb.connect() as broker, broker.create_timeline("camera0") as timeline:
            print([row[:3] for row in broker._quotas()], flush=True)
            sys.stdin.read()
        """,
        env=broker.env,
    )
    assert "(4201, 'timelines per user', 1)" in other.line()
    page = Fencectl(spawn, broker.env)("quota").lines()
    assert page[0].split() == ["USER", "QUOTA", "USED", "LIMIT"]
    assert [line.split()[0] for line in page[1:]] == ["root"] * 7 + ["4201"] * 7
