"""The units of data as they come: pixels and other values in [−1, 1] as they are, columns of numbers standardized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import NoiseSource


@dataclass(frozen=True)
class AffineSpace:
    """x = (data − mean)/std; implements `model.spaces.space.Space`."""

    event_shape: tuple[int, ...]
    mean: Tensor
    """In the data's units, of a shape that broadcasts to `event_shape`."""
    std: Tensor
    bin_width: Tensor
    """() spacing of the values of discrete data, which are in [−1, 1] and have mean 0 and std 1; 0 otherwise"""

    @classmethod
    def plain(cls, event_shape: tuple[int, ...]) -> AffineSpace:
        """Continuous data that are their own coordinates."""
        return cls.discrete(event_shape, 0.0)

    @classmethod
    def discrete(cls, event_shape: tuple[int, ...], bin_width: float) -> AffineSpace:
        """Data in [−1, 1] that are their own coordinates, with values `bin_width` apart."""
        # in 64 bits, for the bits per dimension that are told to people
        return cls(event_shape, torch.zeros(()), torch.ones(()), torch.tensor(bin_width, dtype=torch.float64))

    @classmethod
    def standardized(cls, event_shape: tuple[int, ...], mean: Tensor, std: Tensor) -> AffineSpace:
        """Continuous data of that mean and standard deviation."""
        return cls(event_shape, mean, std, torch.zeros(()))

    def encode(self, data: Tensor) -> Tensor:
        """The coordinates of `data` (N, *event), as a tensor of this space's dtype and device."""
        return (data.to(self.mean) - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        """The data at `x` (N, *event); discrete ones are clipped to [−1, 1]."""
        data = x * self.std + self.mean
        return data.clamp(-1, 1) if self.bin_width > 0 else data

    def log_volume(self) -> float:
        """log |det dx/d data| = −Σ log std over the coordinates of an event, nats."""
        return -float(self.std.expand(self.event_shape).double().log().sum())

    def dequantized(self, data: Tensor, noise: NoiseSource) -> Tensor:
        """`data` with uniform noise of one bin, which gives discrete values a density (Uria et al. 2013)."""
        uniform = noise.uniform(data.new_empty(data.numel())).reshape(data.shape)
        return data + self.bin_width * (uniform - 0.5)
