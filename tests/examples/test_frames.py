"""The parts of the pipeline that need no second process: the clip, the effect, and the frames in shared memory."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.pipeline import clip, effect, scene
from examples.pipeline.pool import FramePool, Layout, checksum_of
from tests.helpers import Spawn

_ROOT = Path(__file__).parents[2]
_LAYOUT = Layout(buffers=2, width=8, height=4)


@pytest.fixture
def pool() -> Iterator[FramePool]:
    made = FramePool.create(_LAYOUT)
    try:
        yield made
    finally:
        made.close()
        if os.path.exists(f"/dev/shm/{made.name}"):
            made.forget_name()


def test_the_shipped_clip_is_what_the_script_draws() -> None:
    film = clip.load(clip.SHIPPED)
    assert (film.width, film.height, film.rate, len(film.frames)) == (scene.WIDTH, scene.HEIGHT, scene.RATE, scene.FRAMES)
    assert clip.SHIPPED.stat().st_size < 300 * 1024
    for index in (0, 31):
        again = clip.Frame.from_pixels(scene.draw(index))
        # Sines may differ in the last bit between processors, and with them a pixel on an edge.
        assert np.mean(again.luma != film.frames[index].luma) < 0.001
        assert np.mean(again.blue != film.frames[index].blue) < 0.001
        assert np.mean(again.red != film.frames[index].red) < 0.001


def test_colours_survive_the_way_to_ycbcr_and_back() -> None:
    pixels = np.empty((2, 8, 3), dtype=np.uint8)
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (12, 200, 90)]
    for index, colour in enumerate(colours):
        pixels[:, 2 * index : 2 * index + 2] = colour
    back = clip.Frame.from_pixels(pixels).pixels()
    assert np.abs(back.astype(int) - pixels).max() <= 2


def test_a_frame_in_bands_is_the_same_as_in_one_piece() -> None:
    frame = clip.load(clip.SHIPPED).frames[5]
    bands = np.concatenate([frame.rows(row, row + 16) for row in range(0, scene.HEIGHT, 16)])
    assert np.array_equal(bands, frame.pixels())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"GIF89a", "compressed with xz"),
        (lzma.compress(b"RIFF...."), "Y4M"),
        (lzma.compress(b"YUV4MPEG2 W8 H4 F25:1 C444\n"), "C420jpeg"),
        (lzma.compress(b"YUV4MPEG2 W8 F25:1 C420jpeg\n"), "W, H and F"),
        (lzma.compress(b"YUV4MPEG2 W8 H4 F25:0 C420jpeg\n"), "W, H and F"),
        (lzma.compress(b"YUV4MPEG2 W7 H4 F25:1 C420jpeg\nFRAME\n"), "even"),
        (lzma.compress(b"YUV4MPEG2 W8 H4 F25:1 C420jpeg\nFRAME\n123"), "cut short"),
        (lzma.compress(b"YUV4MPEG2 W8 H4 F25:1 C420jpeg\n"), "cut short"),
        (lzma.compress(b"YUV4MPEG2 W8 H4 F25:1 C420jpeg\nfRAME\n" + bytes(48)), "FRAME line"),
    ],
)
def test_a_file_that_is_no_clip_is_refused_with_the_reason(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "clip.y4m.xz"
    path.write_bytes(content)
    with pytest.raises(clip.ClipError, match=complaint) as error:
        clip.load(path)
    assert str(path) in str(error.value)


def test_the_effect_darkens_what_is_flat_and_lights_up_edges() -> None:
    pixels = np.full((20, 20, 3), 90, dtype=np.uint8)
    pixels[:, 10:] = 200
    glowing = effect.neon(pixels)
    assert glowing[10, 3].max() < 90
    assert glowing[10, 16].max() < 100
    assert glowing[10, 9:11].min() > 120


def _fill(pool: FramePool, sequence: int) -> None:
    pixels = np.full((4, 8, 3), sequence % 251, dtype=np.uint8)
    pool[0].begin(sequence, checksum_of(pixels))
    pool[0].pixels[:] = pixels


def test_a_whole_frame_is_told_from_a_torn_and_from_another(pool: FramePool) -> None:
    assert not pool[0].holds(0), "never filled"
    _fill(pool, 7)
    assert pool[0].holds(7)
    assert not pool[0].holds(6), "another frame, whole"
    assert not pool[1].holds(7), "another buffer"
    pool[0].pixels[2, 3, 1] ^= 1
    assert not pool[0].holds(7), "one bit of one pixel differs"


def test_an_attached_pool_shows_the_same_frames_and_leaves_the_name_alone(pool: FramePool, spawn: Spawn) -> None:
    _fill(pool, 7)
    reader = spawn(
        """
        import sys
        from examples.pipeline.pool import FramePool, Layout
        pool = FramePool.attach(sys.argv[1], Layout(2, 8, 4))
        print(pool[0].holds(7), flush=True)
        sys.stdin.readline()
        print(pool[0].holds(8))
        pool.close()
        """,
        pool.name,
        cwd=_ROOT,
    )
    assert reader.line() == "True"
    _fill(pool, 8)
    reader.send("")
    assert reader.finish() == "True\n"
    assert reader.log() == "", "the resource tracker has nothing to complain about"
    assert os.path.exists(f"/dev/shm/{pool.name}")


def test_a_pool_without_a_name_leaves_nothing_behind(pool: FramePool) -> None:
    pool.forget_name()
    assert not os.path.exists(f"/dev/shm/{pool.name}")
    _fill(pool, 3)
    assert pool[0].holds(3)


def test_a_block_that_is_too_small_is_refused(pool: FramePool) -> None:
    with pytest.raises(ValueError, match="should have"):
        FramePool.attach(pool.name, Layout(buffers=1000, width=8, height=4))
