"""Images (C, H, W) with values in [−1, 1]."""

from __future__ import annotations

from model.event_kinds.kind import EventKind
from model.event_kinds.pixels import ByteArray, FloatArray, sheet

CHANNELS = (1, 3, 4)
"""The numbers of channels that a file can hold as one picture: grey, RGB, and RGB with alpha."""


class Images(EventKind):
    """Events that are pictures, or anything else with channels on a grid of pixels."""

    name = "images"
    axes = ("C", "H", "W")
    networks = ("resnet", "unet", "mlp")
    preset = "images"
    standardized_over = ()
    pictured_channels = CHANNELS

    def sheet(self, samples: FloatArray) -> ByteArray:
        """Return the samples (N, C, H, W) as a grid, which is one picture.

        Channels that no file holds together, such as 2 or 5, stand side by side in grey.
        """
        count, channels, height, width = samples.shape
        if channels not in CHANNELS:
            samples = samples.swapaxes(1, 2).reshape(count, 1, height, channels * width)
        return sheet(samples)


IMAGES = Images()
