"""Pictures of samples for people: a grid of images, or a scatter plot of points."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GAP = 1
"""Pixels between images of a grid, before magnification."""
_GRID_PX = 512
"""Small images are magnified by a whole factor until the grid is about this wide."""


def picture_of(samples: NDArray[np.float32]) -> bytes:
    """(N, *event) as PNG: images (N, 1 or 3, H, W) in [−1, 1] as a grid, anything else by its first coordinates."""
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return _grid(samples)
    return _scatter(samples.reshape(len(samples), -1))


def _grid(images: NDArray[np.float32]) -> bytes:
    pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    count, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 128, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    scale = max(1, _GRID_PX // picture.width)
    return _png(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST))


def _scatter(points: NDArray[np.float32]) -> bytes:
    from matplotlib.figure import Figure  # half a second to import; without pyplot it is safe in any thread

    figure = Figure(figsize=(5, 5), dpi=100)
    axes = figure.add_subplot()
    if points.shape[1] == 1:
        axes.hist(points[:, 0], bins=60)
    else:
        axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
    packed = io.BytesIO()
    figure.savefig(packed, format="png")
    return packed.getvalue()


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG", optimize=True)
    return packed.getvalue()
