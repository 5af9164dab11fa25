"""The affine change of coordinates of all data read today: the identity for values in [−1, 1], or a standardization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import NoiseSource


@dataclass(frozen=True)
class AffineSpace:
    """The change of coordinates x = (data − mean)/std, which implements `model.spaces.space.Space`."""

    event_shape: tuple[int, ...]
    mean: Tensor
    """Mean in the data's units, of a shape that broadcasts to `event_shape`."""
    std: Tensor
    """Standard deviation in the data's units, of the same shape as `mean`."""
    bin_width: Tensor
    """() spacing of the values of discrete data, which are in [−1, 1] and have mean 0 and std 1; 0 otherwise"""

    @classmethod
    def plain(cls, event_shape: tuple[int, ...]) -> AffineSpace:
        """Return the space of continuous data that are their own coordinates."""
        return cls.discrete(event_shape, 0.0)

    @classmethod
    def discrete(cls, event_shape: tuple[int, ...], bin_width: float) -> AffineSpace:
        """Return the space of data in [−1, 1] that are their own coordinates and whose values lie `bin_width` apart."""
        # The width is in 64 bits, for the bits per dimension that are told to people.
        return cls(event_shape, torch.zeros(()), torch.ones(()), torch.tensor(bin_width, dtype=torch.float64))

    @classmethod
    def standardized(cls, event_shape: tuple[int, ...], mean: Tensor, std: Tensor) -> AffineSpace:
        """Return the space of continuous data whose mean and standard deviation are brought to 0 and 1."""
        return cls(event_shape, mean, std, torch.zeros(()))

    def encode(self, data: Tensor) -> Tensor:
        """Return the coordinates x of `data` (N, *event), in the dtype and on the device of this space."""
        return (data.to(self.mean) - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        """Return the data at the coordinates `x` (N, *event); discrete data are clipped to [−1, 1]."""
        data = x * self.std + self.mean
        return data.clamp(-1, 1) if self.bin_width > 0 else data

    def log_volume(self) -> float:
        """Return log |det dx/d data| = −Σ log std, in nats, summed over the coordinates of an event."""
        return -float(self.std.expand(self.event_shape).double().log().sum())

    def dequantized(self, data: Tensor, noise: NoiseSource) -> Tensor:
        """Add uniform noise of one bin to `data`, which gives discrete values a density (Uria et al. 2013)."""
        uniform = noise.uniform(data.new_empty(data.numel())).reshape(data.shape)
        return data + self.bin_width * (uniform - 0.5)
