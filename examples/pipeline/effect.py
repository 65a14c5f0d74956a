"""What the filter stage does to a picture: neon.  Pure; whole numbers only, so every machine agrees."""

from __future__ import annotations

import numpy as np

from examples.pipeline.scene import Pixels


def neon(pixels: Pixels) -> Pixels:
    """Darken the picture and let its edges (Sobel) glow in the colours beside them."""
    colour = pixels.astype(np.int32)
    edges = _sobel(colour)
    halo = _blurred(edges)
    light = np.maximum(edges * 3 // 4, halo)[..., None]
    glowing: Pixels = np.clip(colour // 4 + (colour + 40) * light // 200, 0, 255).astype(np.uint8)
    return glowing


def _sobel(colour: np.typing.NDArray[np.int32]) -> np.typing.NDArray[np.int32]:
    """Return the strength of the edges, 0 to 255; the outermost pixels have none."""
    grey = (77 * colour[..., 0] + 150 * colour[..., 1] + 29 * colour[..., 2]) >> 8
    edges = np.zeros_like(grey)
    down = grey[:-2] + 2 * grey[1:-1] + grey[2:]
    across = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    edges[1:-1, 1:-1] = np.abs(down[:, 2:] - down[:, :-2]) + np.abs(across[2:] - across[:-2])
    return np.minimum(edges, 255)


def _blurred(plane: np.typing.NDArray[np.int32]) -> np.typing.NDArray[np.int32]:
    """Return the mean of 5 x 5 pixels, and half as much again; beyond the border all is black."""
    padded = np.pad(plane, 2)
    rows = sum((padded[shift : shift + plane.shape[0]] for shift in range(1, 5)), start=padded[: plane.shape[0]])
    total = sum((rows[:, shift : shift + plane.shape[1]] for shift in range(1, 5)), start=rows[:, : plane.shape[1]])
    return total * 3 // 50
