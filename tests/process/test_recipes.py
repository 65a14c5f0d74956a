"""``docs/recipes.md`` is run as it stands, each program with what the page says that it prints; and waiting under trio is tried harder."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import re
import sys
from typing import Final

import pytest
import trio
import trio.testing

import fencebroker as fb
from tests.helpers import LIMIT, BrokerProcess, Spawn, descriptors

PAGE: Final = (pathlib.Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
#: A program, and the block of text that follows it.
RECIPES: Final = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_its_recipes() -> None:
    """Every block of code has its output, and every loop its recipe."""
    assert len(RECIPES) == PAGE.count("```python") == 8
    for word in (
        "select.select",
        "selectors.DefaultSelector",
        "aio.wait",
        "add_reader",
        "wait_readable",
        "pass_fds",
        "set_deadline",
        "ProcessPoolExecutor",
    ):
        assert sum(word in program for program, _ in RECIPES) >= 1, word


@pytest.mark.parametrize(("program", "output"), RECIPES)
def test_a_recipe_prints_what_it_says(
    spawn: Spawn, module_broker: BrokerProcess, tmp_path: pathlib.Path, program: str, output: str
) -> None:
    (tmp_path / "recipe.py").write_text(program, "utf-8")
    printed = spawn([sys.executable, "recipe.py"], env=module_broker.env, cwd=tmp_path).finish(2 * LIMIT)
    assert printed == output


# trio, harder than a page can show


async def wait(fence: fb.SyncFile, timeout: float = float("inf")) -> None:  # noqa: ASYNC109 - as SyncFile.wait has it
    """The recipe, with its types."""
    with fence.dup() as own, trio.move_on_after(timeout):
        await trio.lowlevel.wait_readable(own.fileno())
        own.check()
        return
    raise TimeoutError(f"{fence.label} did not signal in time")


def test_the_recipe_here_is_the_recipe_there() -> None:
    """What is tried below is what the page shows."""
    body = PAGE[PAGE.index("    with fence.dup() as own, trio.move_on_after") :]
    body = body[: body.index("\n\n\n")]
    with open(__file__, encoding="utf-8") as own:
        assert body in own.read()


def test_tasks_of_trio(module_broker: BrokerProcess) -> None:
    """Several tasks on one SyncFile: one is cancelled, one closes it, one fails by its time limit, the others wake."""
    woken: list[str] = []

    async def consumer(name: str, fence: fb.SyncFile) -> None:
        await wait(fence, LIMIT)
        woken.append(name)

    async def main() -> None:
        with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline:
            fence = timeline.export(1)
            async with trio.open_nursery() as nursery:
                cancelled = trio.CancelScope()

                async def impatient() -> None:
                    with cancelled:
                        await wait(fence)
                    assert cancelled.cancelled_caught

                for name in ("one", "two", "three"):
                    nursery.start_soon(consumer, name, fence)
                nursery.start_soon(impatient)
                await trio.testing.wait_all_tasks_blocked()
                cancelled.cancel()
                with pytest.raises(TimeoutError):
                    await wait(fence, 0.01)
                fence.close()
                connection._status()
                await trio.testing.wait_all_tasks_blocked()
                assert woken == []
                timeline.advance(1)

    before = descriptors()
    trio.run(main)
    assert sorted(woken) == ["one", "three", "two"]
    assert descriptors() == before


def test_errors_under_trio(module_broker: BrokerProcess) -> None:
    """FenceError with its owner, at once for what has failed already."""

    async def main() -> None:
        with fb.connect(module_broker.path) as connection, connection.create_timeline("trio0") as timeline, timeline.export(1) as fence:
            timeline.fail(1, errno.EIO)
            for _ in range(2):
                with pytest.raises(fb.FenceError, match=r"trio0@1 failed with EIO .*producer") as caught:
                    await wait(fence, LIMIT)
                assert caught.value.error == errno.EIO

    trio.run(main)


def test_why_the_recipe_duplicates(module_broker: BrokerProcess) -> None:
    """Two tasks on one number: trio refuses the second one."""

    async def main() -> None:
        with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline, timeline.export(1) as fence:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, fence.fileno())
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await trio.lowlevel.wait_readable(fence.fileno())
                timeline.advance(1)

    trio.run(main)


def test_questions_in_a_thread_of_trio(module_broker: BrokerProcess) -> None:
    """What asks the broker can be taken off the loop; a Broker is thread-safe."""

    async def main() -> None:
        with fb.connect(module_broker.path) as connection, connection.create_timeline() as timeline:
            fences: list[fb.SyncFile] = []

            async def export(seqno: int) -> None:
                fences.append(await trio.to_thread.run_sync(timeline.export, seqno))

            async with trio.open_nursery() as nursery:
                for seqno in range(1, 30):
                    nursery.start_soon(export, seqno)
            timeline.advance(29)
            with contextlib.ExitStack() as stack:
                for fence in fences:
                    await wait(stack.enter_context(fence), LIMIT)

    trio.run(main)
