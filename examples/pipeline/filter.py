"""The second stage: takes frames in, makes them glow, and hands them on in buffers of its own."""

from __future__ import annotations

import click

import fencebroker as fb
from examples.pipeline import effect, pool, stage
from examples.pipeline.pool import Buffer
from examples.pipeline.ports import InPort, OutPort
from examples.pipeline.report import Report
from examples.pipeline.scene import Pixels

_NAME = "filter"
_ROWS = 16


@click.command
@stage.listen_option
@stage.connect_option
@stage.without_fences_option
def main(listen_path: str, connect_path: str, without_fences: bool) -> None:
    """Take frames in at one Unix socket and hand them on to another."""
    waits = not without_fences
    with (
        stage.reporting_failure(_NAME),
        fb.connect() as broker,
        InPort(broker, "filter-release", stage.accept_producer(_NAME, listen_path), waits=waits) as source,
        OutPort(broker, _NAME, connect_path, source.hello, waits=waits) as out,
    ):
        for sequence in range(out.frames):
            out.announce(source.intake(sequence))
            _process(sequence, source, out)
            out.publish(sequence)
        out.drain()
        source.waiter.report(_NAME).send()
        out.waiter.report(_NAME).send()
        Report(_NAME, "done", sequence=out.frames).send()


def _process(sequence: int, source: InPort, out: OutPort) -> None:
    """Fill one buffer of ``out`` from one of ``source``."""
    original = source.acquire(sequence)
    whole = original.holds(sequence)
    picture = effect.neon(original.pixels)
    whole &= original.holds(sequence)
    source.release(sequence, original)
    if not whole:
        Report(_NAME, "torn", sequence=sequence).send()
    _write(picture, sequence, out.acquire(sequence))


def _write(picture: Pixels, sequence: int, buffer: Buffer) -> None:
    buffer.begin(sequence, pool.checksum_of(picture))
    for row in range(0, len(picture), _ROWS):
        buffer.pixels[row : row + _ROWS] = picture[row : row + _ROWS]


if __name__ == "__main__":
    main()
