"""Pictures for people: samples as their kind of event is drawn, and densities of the plane as maps."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from model.event_kinds.kind import EventKind
from model.event_kinds.pixels import encode_png
from model.event_kinds.registry import kind_of

_GRID_PX = 512
"""Small images are magnified by a whole factor until the grid is about this wide."""
_MAP_CELLS = 240
_MAP_MARGIN = 0.15
"""The margin of a map on every side, as a share of the data's extent."""
_MAP_DEPTH_NATS = 12.0
"""What lies further below the highest density is drawn in the lowest colour."""


def picture_of(samples: NDArray[np.float32]) -> bytes:
    """Draw samples (N, *event) into a PNG as their kind of event is drawn: images as a grid, vectors as points."""
    kind = kind_of(samples.shape[1:])
    sheet = kind.sheet(samples)
    if sheet is None:
        return _plotted(kind, samples)
    return encode_png(sheet, scale=max(1, _GRID_PX // sheet.shape[1]), optimize=True)


def _plotted(kind: EventKind, samples: NDArray[np.float32]) -> bytes:
    from matplotlib.figure import Figure  # half a second to import; without pyplot it is safe in any thread

    figure = Figure(figsize=(5, 5), dpi=100)
    kind.plot(figure.add_subplot(), samples)
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
