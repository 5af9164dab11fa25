"""Pictures for people: samples as a grid of images or a scatter plot of points, and densities of the plane as maps."""

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
_MAP_CELLS = 240
_MAP_MARGIN = 0.15
"""Of the data's extent, on every side."""
_MAP_DEPTH_NATS = 12.0
"""What lies further below the highest density is drawn in the lowest colour."""


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


def map_grid(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(columns (C,), rows (R,), their crossings (R·C, 2)) over the points' frame and a margin around it."""
    low, high = points.min(0), points.max(0)
    margin = _MAP_MARGIN * (high - low)
    columns, rows = (
        np.linspace(low[i] - margin[i], high[i] + margin[i], _MAP_CELLS, dtype=np.float32) for i in range(2)
    )
    crossings = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    return columns, rows, crossings


def density_map(
    columns: NDArray[np.float32],
    rows: NDArray[np.float32],
    log_density: NDArray[np.float64],
    points: NDArray[np.float32],
    title: str,
) -> bytes:
    """The density on a grid of `map_grid` (log_density (R·C,), nats), and the data beside it, as PNG."""
    from matplotlib.figure import Figure

    values = log_density.reshape(len(rows), len(columns))
    top = float(values.max())
    cell = float((columns[1] - columns[0]) * (rows[1] - rows[0]))
    figure = Figure(figsize=(11, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    image = left.pcolormesh(columns, rows, values, vmin=top - _MAP_DEPTH_NATS, vmax=top, shading="nearest")
    figure.colorbar(image, ax=left, label="log density, nats", extend="min")
    left.set_title(f"the model's density; its integral over this frame is {np.exp(values).sum() * cell:.3f}", size=9)
    right.scatter(points[:, 0], points[:, 1], s=3, alpha=0.4, linewidths=0)
    right.set_title(f"{len(points)} of the training data", size=9)
    for axes in (left, right):
        axes.set_aspect("equal", adjustable="box")
    figure.suptitle(title, size=10)
    packed = io.BytesIO()
    figure.savefig(packed, format="png")
    return packed.getvalue()


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG", optimize=True)
    return packed.getvalue()
