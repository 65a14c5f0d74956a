"""The last stage: takes frames in and writes them to a GIF that any viewer opens."""

from __future__ import annotations

import time
from pathlib import Path

import click
from PIL import Image

import fencebroker as fb
from examples.pipeline import stage
from examples.pipeline.ports import InPort
from examples.pipeline.report import Report
from examples.pipeline.scene import Pixels

_NAME = "encode"


class GifFilm:
    """Frames reduced to 256 colours each, as GIF wants them."""

    def __init__(self) -> None:
        self._frames: list[Image.Image] = []

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, pixels: Pixels) -> None:
        self._frames.append(Image.fromarray(pixels).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))

    def save(self, path: Path, rate: int) -> None:
        first, *others = self._frames
        first.save(path, "GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)


@click.command
@stage.listen_option
@stage.without_fences_option
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The GIF to write.")
def main(listen_path: str, without_fences: bool, output: Path) -> None:
    """Take frames in at a Unix socket and write them to a file."""
    film = GifFilm()
    with (
        stage.reporting_failure(_NAME),
        fb.connect() as broker,
        InPort(broker, "encode-release", stage.accept_producer(_NAME, listen_path), waits=not without_fences) as source,
    ):
        try:
            for sequence in range(source.hello.frames):
                _encode(sequence, source, film)
        finally:
            if film:  # a film that ends early is a film all the same
                film.save(output, source.hello.rate)
        source.waiter.report(_NAME).send()
        Report(_NAME, "done", str(output), len(film)).send()


def _encode(sequence: int, source: InPort, film: GifFilm) -> None:
    """Add one frame to the film."""
    buffer = source.acquire(sequence)
    whole = buffer.holds(sequence)
    film.add(buffer.pixels)
    whole &= buffer.holds(sequence)
    source.release(sequence, buffer)
    if not whole:
        Report(_NAME, "torn", sequence=sequence).send()
    Report(_NAME, "frame", sequence=sequence, at_ns=time.monotonic_ns()).send()


if __name__ == "__main__":
    main()
