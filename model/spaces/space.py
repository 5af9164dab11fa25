"""What a space is: the coordinates x that energies are functions of, and the way between them and the data."""

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
        """() the spacing of the values that the data can take, in their own units; 0 for continuous data."""
        ...

    def encode(self, data: Tensor) -> Tensor:
        """The coordinates x of `data`, in the precision and on the device of the space."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """The data at the coordinates `x`, brought into the range of the data."""
        ...

    def log_volume(self) -> float:
        """log |det dx/d data|: what is added to a log density of x to make it one of the data."""
        ...

    def dequantized(self, data: Tensor, noise: NoiseSource) -> Tensor:
        """`data` with uniform noise of one bin; as they are where the data are continuous."""
        ...
