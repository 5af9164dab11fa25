"""The protocol of a space: the coordinates x that energies are functions of, and the change from the data to them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from model.noise import NoiseSource


class Space(Protocol):
    """A change of coordinates from data to x. Tensors are (N, *event); log volumes are in nats."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        ...

    @property
    def bin_width(self) -> Tensor:
        """The spacing (), in the data's units, of the values that the data can take; 0 for continuous data."""
        ...

    def encode(self, data: Tensor) -> Tensor:
        """Return the coordinates x of `data`, in the precision and on the device of the space."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Return the data at the coordinates `x`, brought into the range of the data."""
        ...

    def log_volume(self) -> float:
        """Return log |det dx/d data|, which is added to a log density of x to make it a log density of the data."""
        ...

    def dequantized(self, data: Tensor, noise: NoiseSource) -> Tensor:
        """Return `data` with uniform noise of one bin added; continuous data are returned as they are."""
        ...
