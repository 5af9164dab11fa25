"""What the program has to know about a kind of event, where an event is one item of data.

This module imports neither torch nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.event_kinds.pixels import ByteArray, FloatArray


class EventKind:
    """A kind of event. Each kind has a module in this package and a place in `registry.KINDS`."""

    name: str
    """The plural by which manifests, the HTTP API and messages to people call such events."""
    axes: tuple[str, ...]
    """One letter for each axis. No two kinds have the same number of axes, so that a shape says what an event is."""
    networks: tuple[str, ...]
    """The values of `network.kind` that take such events; the first is the usual one."""
    preset: str
    """The preset with which to begin on such data."""
    standardized_over: tuple[int, ...]
    """The axes of (N, *event) over which a dataset's mean and standard deviation are taken, to bring those of each
    coordinate to 0 and 1; empty where values are in [−1, 1] as they come."""
    pictured_channels: tuple[int, ...] = ()
    """The lengths of the first axis with which one event is a picture that a file can hold."""

    @property
    def layout(self) -> str:
        """The axes as people write them, such as "(C, H, W)"."""
        return f"({', '.join(self.axes)}{',' if len(self.axes) == 1 else ''})"

    def recognises(self, event_shape: Sequence[int]) -> bool:
        """Whether events of this shape are of this kind."""
        return len(event_shape) == len(self.axes)

    def has_picture(self, event_shape: Sequence[int]) -> bool:
        """Whether one event of this shape is a picture that a file can hold, pixel by pixel."""
        return self.recognises(event_shape) and event_shape[0] in self.pictured_channels

    def sheet(self, samples: FloatArray) -> ByteArray | None:  # noqa: ARG002 (kinds with pixels draw it)
        """Return samples (N, *event) as one picture (H, W, C) of 1, 3 or 4 channels; None if they must be plotted."""
        return None

    def plot(self, axes: Any, samples: FloatArray) -> None:
        """Plot samples (N, *event) by their first two coordinates on `axes` of matplotlib."""
        points = samples.reshape(len(samples), -1)
        if points.shape[1] == 1:
            axes.hist(points[:, 0], bins=60)
        else:
            axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6, linewidths=0)
            axes.set_aspect("equal", adjustable="datalim")
