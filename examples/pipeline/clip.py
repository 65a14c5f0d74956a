"""The clip the pipeline works on: a Y4M file, compressed with xz, that any player understands.

    python -m examples.pipeline.clip            # draw the scene again and write clip.y4m.xz
    xz -dc examples/pipeline/clip.y4m.xz | mpv -

Frames are kept as a camera delivers them, in YCbCr with half the colour resolution (4:2:0, full
range), so that the capture stage has real work to do.  All conversions are in whole numbers: every
machine computes the same pixels, and a checksum made on one holds on all.
"""

from __future__ import annotations

import lzma
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.pipeline import scene
from examples.pipeline.scene import Pixels

SHIPPED = Path(__file__).with_name("clip.y4m.xz")

_MAGIC = b"YUV4MPEG2"


class ClipError(ValueError):
    """The file is not a clip this example can read."""


@dataclass(frozen=True)
class Frame:
    """One picture: brightness at full size, the two colour planes at half of it."""

    luma: Pixels
    blue: Pixels
    red: Pixels

    def rows(self, first: int, last: int) -> Pixels:
        """Convert the rows ``first`` to ``last`` (both even) to RGB."""
        luma = self.luma[first:last].astype(np.int32) << 16
        half = slice(first // 2, last // 2)
        blue = _doubled(self.blue[half].astype(np.int32) - 128)
        red = _doubled(self.red[half].astype(np.int32) - 128)
        rgb = np.empty((*luma.shape, 3), dtype=np.int32)
        # The coefficients of ITU-R BT.601, times 2**16.
        rgb[..., 0] = luma + 91881 * red
        rgb[..., 1] = luma - 22554 * blue - 46802 * red
        rgb[..., 2] = luma + 116130 * blue
        rgb += 1 << 15
        rgb >>= 16
        return np.clip(rgb, 0, 255, out=rgb).astype(np.uint8)

    def pixels(self) -> Pixels:
        return self.rows(0, len(self.luma))

    @classmethod
    def from_pixels(cls, pixels: Pixels) -> Frame:
        rgb = pixels.astype(np.int32)
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        luma = 19595 * red + 38470 * green + 7471 * blue
        to_blue = -11056 * red - 21712 * green + 32768 * blue
        to_red = 32768 * red - 27440 * green - 5328 * blue
        return cls(
            _narrowed(luma, 1, 0),
            _narrowed(_gathered(to_blue), 4, 128),
            _narrowed(_gathered(to_red), 4, 128),
        )


@dataclass(frozen=True)
class Clip:
    """A short film: frames of one size, meant to be shown ``rate`` to the second."""

    width: int
    height: int
    rate: int
    frames: tuple[Frame, ...]


def load(path: Path) -> Clip:
    """Read a clip; raise :class:`ClipError` (or OSError) that says what is wrong with the file."""
    try:
        data = lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise ClipError(f"{path} is not a clip: it should be a Y4M file compressed with xz ({error})") from error
    header, _, body = data.partition(b"\n")
    fields = header.split(b" ")
    tags = {field[:1]: field[1:].decode("ascii", "replace") for field in fields[1:] if field}
    if fields[0] != _MAGIC or tags.get(b"C") != "420jpeg":
        raise ClipError(f"{path} is not a clip: it should be Y4M with colour space C420jpeg")
    try:
        width, height = int(tags[b"W"]), int(tags[b"H"])
        rate = round(int(tags[b"F"].split(":")[0]) / int(tags[b"F"].split(":")[1]))
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ClipError(f"{path} is not a clip: its header should give W, H and F, and is {header!r}") from error
    if width < 2 or height < 2 or width % 2 or height % 2 or rate < 1:
        raise ClipError(f"{path}: width and height should be even and the rate at least 1, and are {header!r}")
    return Clip(width, height, rate, _frames(path, body, width, height))


def _frames(path: Path, body: bytes, width: int, height: int) -> tuple[Frame, ...]:
    mark = b"FRAME\n"
    full, half = width * height, width * height // 4
    step = len(mark) + full + 2 * half
    if not body or len(body) % step:
        raise ClipError(f"{path} is cut short: {len(body)} bytes of frames are not a multiple of {step}")
    frames = []
    for start in range(0, len(body), step):
        if body[start : start + len(mark)] != mark:
            raise ClipError(f"{path}: there should be a FRAME line at byte {start} after the header")
        planes = np.frombuffer(body, dtype=np.uint8, count=step - len(mark), offset=start + len(mark))
        frames.append(
            Frame(
                planes[:full].reshape(height, width),
                planes[full : full + half].reshape(height // 2, width // 2),
                planes[full + half :].reshape(height // 2, width // 2),
            )
        )
    return tuple(frames)


def save(clip: Clip, path: Path) -> None:
    """Write ``clip`` to ``path``."""
    header = f"YUV4MPEG2 W{clip.width} H{clip.height} F{clip.rate}:1 Ip A1:1 C420jpeg\n"
    parts = [header.encode("ascii")]
    for frame in clip.frames:
        parts += [b"FRAME\n", frame.luma.tobytes(), frame.blue.tobytes(), frame.red.tobytes()]
    path.write_bytes(lzma.compress(b"".join(parts), preset=9))


def draw() -> Clip:
    """Draw the whole clip anew."""
    frames = tuple(Frame.from_pixels(scene.draw(index)) for index in range(scene.FRAMES))
    return Clip(scene.WIDTH, scene.HEIGHT, scene.RATE, frames)


def _doubled(plane: np.typing.NDArray[np.int32]) -> np.typing.NDArray[np.int32]:
    return plane.repeat(2, axis=0).repeat(2, axis=1)


def _gathered(plane: np.typing.NDArray[np.int32]) -> np.typing.NDArray[np.int32]:
    return plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]


def _narrowed(plane: np.typing.NDArray[np.int32], samples: int, offset: int) -> Pixels:
    """Turn a sum of ``samples`` values, times 2**16, into bytes."""
    unit = samples << 16
    return np.clip((plane + unit // 2) // unit + offset, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    save(draw(), target)
    print(f"{target}: {target.stat().st_size:,} bytes")
