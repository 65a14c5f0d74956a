"""Several asyncio tasks wait for the same fences: one gives up, the others go on, and an error reaches all.

    python examples/asyncio_tasks.py

Nothing here blocks the event loop: to wait for a fence is to wait for a descriptor.
"""

import asyncio
import errno
import sys

import fencebroker as fb
from fencebroker import aio


async def impatient(frame: fb.SyncFile) -> None:
    try:
        await aio.wait(frame, timeout=0.05)
    except TimeoutError:
        print("impatient: gave up after 0.05 s")


async def viewer(name: str, frames: list[fb.SyncFile]) -> None:
    for number, frame in enumerate(frames, start=1):
        try:
            await aio.wait(frame, timeout=5.0)
        except fb.FenceError as error:
            print(f"{name}: frame {number} failed with {errno.errorcode[error.error]}")
        else:
            print(f"{name}: frame {number} is there")


async def main() -> None:
    async with await aio.connect() as broker, await broker.create_timeline("camera0") as camera:
        frames = await camera.export_many([1, 2])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(viewer("first", frames))
            tasks.create_task(viewer("second", frames))
            await impatient(frames[0])  # its end does not disturb the other two, who wait on the same object
            await camera.advance(1)
            await camera.fail(2, errno.EIO)
        for frame in frames:
            frame.close()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (fb.BrokerUnavailable, OSError) as error:
        sys.exit(f"asyncio_tasks: {error}")
