"""The first stage: a camera.  It develops the clip's frames into shared memory, again and again."""

from __future__ import annotations

from pathlib import Path

import click

import fencebroker as fb
from examples.pipeline import clip, pool, stage
from examples.pipeline.link import Hello
from examples.pipeline.pool import Buffer, Layout
from examples.pipeline.ports import OutPort
from examples.pipeline.report import Report

_NAME = "capture"
#: A sensor is read out from top to bottom, a few rows at a time.
_ROWS = 16


@click.command
@stage.connect_option
@stage.without_fences_option
@click.option("--clip", "clip_path", default=clip.SHIPPED, type=click.Path(path_type=Path), help="The clip to play.")
@click.option("--frames", type=int, default=60, help="How many frames to deliver.")
@click.option("--buffers", type=int, default=4, help="How many frames are in flight at most.")
def main(connect_path: str, without_fences: bool, clip_path: Path, frames: int, buffers: int) -> None:
    """Deliver frames of a clip to the consumer that listens at PATH."""
    with stage.reporting_failure(_NAME):
        film = clip.load(clip_path)
        # The checksum of a frame must be known before its pixels are written, so each is developed once in private.
        checksums = [pool.checksum_of(frame.pixels()) for frame in film.frames]
        hello = Hello("", Layout(buffers, film.width, film.height), frames, film.rate)
        with fb.connect() as broker, OutPort(broker, _NAME, connect_path, hello, waits=not without_fences) as out:
            for sequence in range(frames):
                out.announce(sequence + buffers)
                index = sequence % len(film.frames)
                _expose(film.frames[index], checksums[index], sequence, out.acquire(sequence))
                out.publish(sequence)
            out.drain()
            out.waiter.report(_NAME).send()
            Report(_NAME, "done", sequence=frames).send()


def _expose(frame: clip.Frame, checksum: int, sequence: int, buffer: Buffer) -> None:
    buffer.begin(sequence, checksum)
    for row in range(0, len(frame.luma), _ROWS):
        buffer.pixels[row : row + _ROWS] = frame.rows(row, row + _ROWS)


if __name__ == "__main__":
    main()
