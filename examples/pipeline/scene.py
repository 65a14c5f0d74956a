"""The picture the clip shows: a small train on a viaduct at dusk, drawn with numpy.

Everything that moves is periodic, so the clip loops without a seam.  Shapes are drawn three times
too large and averaged down, which is all the anti-aliasing there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

WIDTH, HEIGHT, FRAMES, RATE = 256, 144, 60, 25

_SCALE = 3
_RAIL = 96.0  # the height of the rails; everything is measured in pixels of the finished picture
_SUN = (196.0, 50.0, 21.0)

_SKY: tuple[Colour, ...] = (
    (38, 30, 74),
    (58, 40, 96),
    (86, 50, 114),
    (122, 60, 122),
    (164, 74, 118),
    (206, 96, 106),
    (236, 128, 96),
    (250, 166, 102),
    (254, 200, 128),
)

#: Distance layers, far to near: colour, base height, waves (height, cycles per WIDTH, phase), WIDTHs per loop.
_HILLS: tuple[tuple[Colour, float, tuple[tuple[float, int, float], ...], int], ...] = (
    ((112, 70, 128), 80.0, ((11.0, 1, 0.4), (5.0, 3, 1.1), (2.0, 7, 0.3)), 0),
    ((78, 56, 112), 91.0, ((8.0, 2, 2.0), (4.0, 5, 0.7), (1.5, 11, 2.1)), 1),
    ((48, 42, 88), 110.0, ((6.0, 3, 0.9), (3.0, 4, 2.6), (1.0, 13, 0.2)), 2),
)

_STONE: Colour = (34, 28, 58)
_STONE_LIGHT: Colour = (58, 46, 84)
_IRON: Colour = (22, 20, 36)
_RED: Colour = (196, 62, 70)
_CREAM: Colour = (246, 222, 178)
_STEAM: Colour = (224, 186, 190)
_LAMP: Colour = (255, 232, 150)


def draw(index: int) -> Pixels:
    """Return frame ``index`` as RGB pixels, shape (HEIGHT, WIDTH, 3)."""
    canvas = _Canvas()
    turn = (index % FRAMES) / FRAMES
    _draw_sky(canvas)
    for colour, base, waves, laps in _HILLS:
        phase = 2 * np.pi * (canvas.x / WIDTH + laps * turn)
        crest = base + sum(height * np.sin(cycles * phase + shift) for height, cycles, shift in waves)
        canvas.paint(canvas.y > crest, colour)
    _draw_viaduct(canvas, turn)
    _draw_train(canvas, turn)
    return canvas.finished()


class _Canvas:
    """An oversized picture with the coordinates of its pixels."""

    def __init__(self) -> None:
        shape = (HEIGHT * _SCALE, WIDTH * _SCALE)
        self._rgb = np.zeros((*shape, 3), dtype=np.uint8)
        rows, columns = np.indices(shape)
        self.x: Plane = (columns + 0.5) / _SCALE
        self.y: Plane = (rows + 0.5) / _SCALE

    def paint(self, where: Mask, colour: Colour) -> None:
        self._rgb[where] = colour

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.paint((self.x - x) ** 2 + (self.y - y) ** 2 < radius**2, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        inside = (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)
        self.paint(inside, colour)

    def finished(self) -> Pixels:
        blocks = self._rgb.reshape(HEIGHT, _SCALE, WIDTH, _SCALE, 3)
        return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)


def _draw_sky(canvas: _Canvas) -> None:
    for number, colour in enumerate(_SKY):
        canvas.paint(canvas.y >= number * 11.5, colour)
    x, y, radius = _SUN
    canvas.disc(x, y, radius + 6, (252, 184, 116))
    canvas.disc(x, y, radius, (255, 236, 176))


def _draw_viaduct(canvas: _Canvas, turn: float) -> None:
    arch = WIDTH / 4  # six of them pass by in a loop: a whole number, so no seam
    along = (canvas.x + 6 * arch * turn) % arch - arch / 2
    wall = canvas.y > _RAIL + 3
    opening = (canvas.y > _RAIL + 34) & (np.abs(along) < 24)
    opening |= (along**2 + (canvas.y - _RAIL - 34) ** 2) < 24**2
    ring = (along**2 + (canvas.y - _RAIL - 34) ** 2) < 27**2
    canvas.paint(wall & ~opening, _STONE)
    canvas.paint(wall & ring & ~opening & (canvas.y <= _RAIL + 34), _STONE_LIGHT)
    canvas.box(0, _RAIL, WIDTH, _RAIL + 4, _STONE_LIGHT)
    canvas.box(0, _RAIL, WIDTH, _RAIL + 1, _IRON)


def _draw_train(canvas: _Canvas, turn: float) -> None:
    bob = 0.6 * np.sin(2 * np.pi * 6 * turn)
    for number in range(5):  # steam: five puffs on their way from the chimney back over the carriages
        age = (number / 5 + 3 * turn) % 1.0
        canvas.disc(176 - 120 * age, 62 - 22 * age**0.6, 3 + 10 * age, _STEAM)
    for left in (18, 66):
        canvas.box(left, 74 + bob, left + 44, 93 + bob, _RED)
        canvas.box(left, 72 + bob, left + 44, 75 + bob, _CREAM)
        for window in range(4):
            canvas.box(left + 4 + 10 * window, 78 + bob, left + 11 + 10 * window, 85 + bob, _LAMP)
        for wheel in (9, 35):
            _draw_wheel(canvas, left + wheel, 92.0, 4.0, turn)
    canvas.box(110, 89 + bob, 190, 93 + bob, _IRON)
    canvas.box(60, 88, 116, 90, _IRON)
    canvas.box(116, 66 + bob, 138, 90 + bob, _RED)  # cab
    canvas.box(113, 63 + bob, 141, 67 + bob, _IRON)
    canvas.box(121, 70 + bob, 133, 79 + bob, _LAMP)
    canvas.box(138, 73 + bob, 186, 90 + bob, _IRON)  # boiler
    canvas.box(150, 73 + bob, 153, 90 + bob, _RED)
    canvas.box(168, 73 + bob, 171, 90 + bob, _RED)
    canvas.box(174, 62 + bob, 181, 74 + bob, _IRON)  # chimney
    canvas.box(172, 60 + bob, 183, 64 + bob, _IRON)
    canvas.disc(160, 73 + bob, 5, _CREAM)
    canvas.disc(188, 79 + bob, 3, _LAMP)
    for wheel in (122, 142, 162):
        _draw_wheel(canvas, wheel, 90.0, 6.5, turn)
    _draw_wheel(canvas, 181, 92.0, 4.0, turn)


def _draw_wheel(canvas: _Canvas, x: float, y: float, radius: float, turn: float) -> None:
    canvas.disc(x, y, radius, _IRON)
    canvas.disc(x, y, radius - 1.5, _STONE_LIGHT)
    angle = np.arctan2(canvas.y - y, canvas.x - x) - 2 * np.pi * 6 * turn
    inside = (canvas.x - x) ** 2 + (canvas.y - y) ** 2 < (radius - 1) ** 2
    canvas.paint(inside & (np.cos(4 * angle) > 0.6), _IRON)
    canvas.disc(x, y, 1.3, _CREAM)
