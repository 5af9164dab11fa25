"""Linear operators A of measurements b = A x + s ε, with their adjoints Aᵀ and pseudo-inverses A⁺.

An operator acts on events (B, *event) in the data's units and gives measurements (B, *measurement). Those with
orthogonal rows have A⁺ = Aᵀ/σ² in closed form; the others go by the singular value decomposition of their matrix.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from model.energies.energy_model import EnergyModel
from model.errors import ConfigError, ShapeError
from model.inverse.config import OperatorConfig
from model.noise import make_generator

MAX_ENTRIES = 1 << 24
"""The most entries of an operator's matrix: 128 MiB in float64, which is 4096 numbers measured of 4096."""
_RANK_TOLERANCE = 1e-9


class Operator(ABC):
    """A linear map from events to measurements."""

    def __init__(self, event_shape: Sequence[int], measurement_shape: Sequence[int]) -> None:
        self.event_shape = tuple(event_shape)
        self.measurement_shape = tuple(measurement_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x (B, *measurement) of events (B, *event)."""

    @abstractmethod
    def adjoint(self, measured: Tensor) -> Tensor:
        """Return Aᵀ b (B, *event) of measurements (B, *measurement)."""

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        """Return A⁺ b (B, *event), the smallest x that comes nearest to the measurements (B, *measurement)."""
        left, values, right = (one.to(measured.device) for one in self._decomposition)
        flat = measured.flatten(1).double() @ left / values @ right
        return flat.to(measured).reshape(-1, *self.event_shape)

    def singular_values(self) -> Tensor:
        """Return the singular values (rank,) that are not 0, in float64."""
        return self._decomposition[1]

    @cached_property
    def matrix(self) -> Tensor:
        """A as a matrix (M, D) in float64. Raises ShapeError if it would be too large."""
        dim, rows = math.prod(self.event_shape), math.prod(self.measurement_shape)
        if dim * max(dim, rows) > MAX_ENTRIES:
            raise ShapeError(
                f"the operator takes {dim} numbers to {rows}; expected a matrix of at most {MAX_ENTRIES} entries. "
                "Use smaller events"
            )
        columns = self.forward(torch.eye(dim, dtype=torch.float64).reshape(dim, *self.event_shape))
        return columns.reshape(dim, rows).T.contiguous()

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = torch.linalg.svd(self.matrix, full_matrices=False)
        kept = values > _RANK_TOLERANCE * values.max()
        return left[:, kept], values[kept], right[kept]


class Denoise(Operator):
    """A = I: all that is measured is the event with noise."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, event_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, measured: Tensor) -> Tensor:
        return measured

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        return measured

    def singular_values(self) -> Tensor:
        return torch.ones(math.prod(self.event_shape), dtype=torch.float64)


class Mask(Operator):
    """A keeps the numbers at which `kept` is true: of the event's shape, or of that of an image's channel."""

    def __init__(self, event_shape: Sequence[int], kept: Tensor) -> None:
        shape = tuple(event_shape)
        if kept.dtype != torch.bool or tuple(kept.shape) not in (shape, shape[1:]):
            raise ShapeError(
                f"the mask has shape {tuple(kept.shape)} and type {kept.dtype}; expected booleans of shape "
                f"{shape[1:] or shape}"
            )
        self._index = kept.expand(shape).flatten().nonzero()[:, 0]
        if len(self._index) == 0:
            raise ConfigError("the mask hides everything; leave something to restore the event from")
        super().__init__(shape, (len(self._index),))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._index.to(x.device)]

    def adjoint(self, measured: Tensor) -> Tensor:
        flat = measured.new_zeros(len(measured), math.prod(self.event_shape))
        flat[:, self._index.to(measured.device)] = measured
        return flat.reshape(-1, *self.event_shape)

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        return self.adjoint(measured)

    def singular_values(self) -> Tensor:
        return torch.ones(len(self._index), dtype=torch.float64)


class Downsample(Operator):
    """A takes the mean of every block of `factor` × `factor` pixels of each channel, so that A Aᵀ = I/factor²."""

    def __init__(self, event_shape: Sequence[int], factor: int) -> None:
        channels, height, width = _image_shape(event_shape, "downsample")
        if factor < 2 or height % factor or width % factor:
            raise ConfigError(f"factor is {factor}; expected a divisor, from 2, of the sides {height} and {width}")
        super().__init__(event_shape, (channels, height // factor, width // factor))
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, self._factor)

    def adjoint(self, measured: Tensor) -> Tensor:
        return self.pseudo_inverse(measured) / self._factor**2

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        return measured.repeat_interleave(self._factor, -1).repeat_interleave(self._factor, -2)

    def singular_values(self) -> Tensor:
        return torch.full((math.prod(self.measurement_shape),), 1 / self._factor, dtype=torch.float64)


class Blur(Operator):
    """A convolves each channel with a kernel (h, w) of sum 1, whose centre stays; images go on periodically."""

    def __init__(self, event_shape: Sequence[int], kernel: Tensor) -> None:
        _, height, width = _image_shape(event_shape, "blur")
        sides = tuple(kernel.shape)
        if len(sides) != 2 or not (1 <= sides[0] <= height and 1 <= sides[1] <= width):
            raise ShapeError(f"the blur's kernel has shape {sides}; expected two sides of 1 to {height} and {width}")
        total = float(kernel.double().sum())
        if not bool(torch.isfinite(kernel).all()) or abs(total) < _RANK_TOLERANCE:
            raise ConfigError("the blur's kernel is not finite or sums to 0; expected numbers that sum to 1")
        super().__init__(event_shape, event_shape)
        padded = torch.zeros(height, width, dtype=torch.float64)
        padded[: sides[0], : sides[1]] = kernel.double() / total
        padded = padded.roll((-(sides[0] // 2), -(sides[1] // 2)), (0, 1))
        self._response = torch.fft.fft2(padded)

    @classmethod
    def gaussian(cls, event_shape: Sequence[int], std: float) -> Blur:
        """Return the blur by a Gaussian of `std` pixels, cut off at three of them and at the image's sides."""
        _, height, width = _image_shape(event_shape, "blur")
        reach = [min(math.ceil(3 * std), (side - 1) // 2) for side in (height, width)]
        columns = [torch.exp(-(torch.arange(-one, one + 1).double() ** 2) / (2 * std**2)) for one in reach]
        return cls(event_shape, torch.outer(*columns))

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._response)

    def adjoint(self, measured: Tensor) -> Tensor:
        return self._filtered(measured, self._response.conj())

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        kept = self._kept
        inverse = torch.where(kept, 1 / torch.where(kept, self._response, 1), 0)
        return self._filtered(measured, inverse)

    def singular_values(self) -> Tensor:
        values: Tensor = self._response.abs()[self._kept]
        return values.repeat(self.event_shape[0])

    @property
    def _kept(self) -> Tensor:
        size: Tensor = self._response.abs()
        return size > _RANK_TOLERANCE * size.max()

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(x.double()) * response.to(x.device))
        return filtered.real.to(x)


class Matrix(Operator):
    """A is the matrix `rows` (M, D)."""

    def __init__(self, event_shape: Sequence[int], rows: Tensor) -> None:
        dim = math.prod(event_shape)
        if rows.dim() != 2 or rows.shape[1] != dim or len(rows) == 0:
            raise ShapeError(f"the matrix has shape {tuple(rows.shape)}; expected (M, {dim}), a row per measurement")
        if rows.numel() > MAX_ENTRIES:
            raise ShapeError(f"the matrix has {rows.numel()} entries; expected at most {MAX_ENTRIES}")
        if not bool(torch.isfinite(rows).all()):
            raise ConfigError("the matrix has values that are not finite; expected finite numbers")
        if not bool(rows.any()):
            raise ConfigError("the matrix is all zeros, so that nothing is measured; expected a rank of 1 at least")
        super().__init__(event_shape, (len(rows),))
        self._rows = rows.double()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._rows.T.to(x)

    def adjoint(self, measured: Tensor) -> Tensor:
        return (measured @ self._rows.to(measured)).reshape(-1, *self.event_shape)


class Orthonormal(Matrix):
    """A is a matrix of orthonormal rows, so that A⁺ = Aᵀ."""

    @classmethod
    def random(cls, event_shape: Sequence[int], share: float, seed: int) -> Orthonormal:
        """Return random projections: a `share` of as many as an event has numbers, drawn from `seed`."""
        dim = _dense_dim(event_shape, "compress")
        normal = torch.randn(dim, _part(dim, share), generator=make_generator(seed), dtype=torch.float64)
        return cls(event_shape, torch.linalg.qr(normal)[0].T)

    @classmethod
    def spectrum(cls, event_shape: Sequence[int], share: float) -> Orthonormal:
        """Return the cosine transform's lowest frequencies: a `share` of them in each channel."""
        channels, height, width = _image_shape(event_shape, "spectrum")
        _dense_dim(event_shape, "spectrum")
        rows = torch.kron(_cosines(height), _cosines(width))
        frequency = ((torch.arange(height) / height) ** 2)[:, None] + (torch.arange(width) / width) ** 2
        lowest = frequency.flatten().argsort(stable=True)[: _part(height * width, share)]
        return cls(event_shape, torch.kron(torch.eye(channels, dtype=torch.float64), rows[lowest]))

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        return self.adjoint(measured)

    def singular_values(self) -> Tensor:
        return torch.ones(self.measurement_shape, dtype=torch.float64)


class Composed(Operator):
    """A is one operator after another, the first first."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        for one, after in itertools.pairwise(operators):
            if one.measurement_shape != after.event_shape:
                raise ShapeError(
                    f"a step of the operator gives {one.measurement_shape} and the next expects {after.event_shape}; "
                    "expected steps that fit together"
                )
        super().__init__(operators[0].event_shape, operators[-1].measurement_shape)
        self._operators = tuple(operators)

    def forward(self, x: Tensor) -> Tensor:
        for operator in self._operators:
            x = operator.forward(x)
        return x

    def adjoint(self, measured: Tensor) -> Tensor:
        for operator in reversed(self._operators):
            measured = operator.adjoint(measured)
        return measured


class Physics(Operator):
    """An operator of the library deepinv: an object with `A`, `A_adjoint` and `A_dagger` (its `LinearPhysics`)."""

    def __init__(self, event_shape: Sequence[int], physics: Any) -> None:
        measured = physics.A(torch.zeros(1, *event_shape))
        super().__init__(event_shape, measured.shape[1:])
        self._physics = physics

    def forward(self, x: Tensor) -> Tensor:
        return self._in_float32(self._physics.A, x)

    def adjoint(self, measured: Tensor) -> Tensor:
        return self._in_float32(self._physics.A_adjoint, measured)

    def pseudo_inverse(self, measured: Tensor) -> Tensor:
        return self._in_float32(self._physics.A_dagger, measured)

    @staticmethod
    def _in_float32(map_fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the map of `x` in its own dtype; deepinv's computes in float32 alone."""
        return map_fn(x.float()).to(x)


def make_operator(steps: Sequence[OperatorConfig], event_shape: Sequence[int]) -> Operator:
    """Return the operator of a damage's steps, on events of `event_shape`. Raises ConfigError or ShapeError."""
    if not steps:
        raise ConfigError("the operator has no steps; expected one at least, such as denoise")
    operators: list[Operator] = []
    for step in steps:
        operators.append(_made(step, operators[-1].measurement_shape if operators else tuple(event_shape)))
    return operators[0] if len(operators) == 1 else Composed(operators)


def as_operator(operator: Operator | Any, event_shape: Sequence[int]) -> Operator:
    """Return `operator` itself, or that of an object like deepinv's LinearPhysics. Raises ShapeError."""
    if not isinstance(operator, Operator):
        if not all(callable(getattr(operator, name, None)) for name in ("A", "A_adjoint", "A_dagger")):
            raise ConfigError(
                f"the operator is a {type(operator).__name__}; expected one of model.inverse.operators, or an object "
                "with A, A_adjoint and A_dagger"
            )
        operator = Physics(event_shape, operator)
    if operator.event_shape != tuple(event_shape):
        raise ShapeError(
            f"the operator takes events of shape {operator.event_shape}; the model's are {tuple(event_shape)}"
        )
    return operator


def standardized(model: EnergyModel, operator: Operator, measured: Tensor) -> tuple[Operator, Tensor]:
    """Return the operator, and what it measured, for items in the coordinates u = (data − mean)/std of the model."""
    if not bool(model.data_mean.any()) and bool((model.data_std == 1).all()):
        return operator, measured
    mean, std = (one.cpu().double().expand(model.event_shape).flatten() for one in (model.data_mean, model.data_std))
    offset = (operator.matrix @ mean).reshape(operator.measurement_shape).to(measured)
    return Matrix(model.event_shape, operator.matrix * std), (measured - offset).flatten()


def box_mask(event_shape: Sequence[int], top: int, left: int, height: int, width: int) -> Mask:
    """Return the mask that hides a box of `height` × `width` pixels in every channel."""
    _, rows, columns = _image_shape(event_shape, "box")
    if height < 1 or width < 1 or top < 0 or left < 0 or top + height > rows or left + width > columns:
        raise ConfigError(
            f"the box {top},{left},{height},{width} does not lie in the image of {rows} × {columns} pixels; expected "
            "top, left, height, width of one that does"
        )
    kept = torch.ones(rows, columns, dtype=torch.bool)
    kept[top : top + height, left : left + width] = False
    return Mask(event_shape, kept)


def random_mask(event_shape: Sequence[int], share: float, seed: int) -> Mask:
    """Return the mask that keeps a `share` of the pixels, in all their channels, or of a vector's numbers."""
    places = tuple(event_shape[1:]) or tuple(event_shape)
    count = math.prod(places)
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=make_generator(seed))[: _part(count, share)]] = True
    return Mask(event_shape, kept.reshape(places))


def _made(step: OperatorConfig, event_shape: tuple[int, ...]) -> Operator:
    match step.kind:
        case "box":
            return box_mask(event_shape, step.top, step.left, step.height, step.width)
        case "random":
            return random_mask(event_shape, step.share, step.seed)
        case "downsample":
            return Downsample(event_shape, step.factor)
        case "blur":
            return Blur.gaussian(event_shape, step.std)
        case "compress":
            return Orthonormal.random(event_shape, step.share, step.seed)
        case "spectrum":
            return Orthonormal.spectrum(event_shape, step.share)
        case "denoise":
            return Denoise(event_shape)


def _image_shape(event_shape: Sequence[int], kind: str) -> tuple[int, int, int]:
    if len(event_shape) != 3:
        raise ShapeError(f"{kind} is for images (C, H, W), and these events have shape {tuple(event_shape)}")
    channels, height, width = event_shape
    return channels, height, width


def _dense_dim(event_shape: Sequence[int], kind: str) -> int:
    dim = math.prod(event_shape)
    if dim * dim > MAX_ENTRIES:
        raise ShapeError(f"{kind} is for events of at most {math.isqrt(MAX_ENTRIES)} numbers, and these have {dim}")
    return dim


def _part(count: int, share: float) -> int:
    return max(1, round(share * count))


def _cosines(length: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II) of signals of `length` numbers, its frequencies as rows."""
    place = torch.arange(length, dtype=torch.float64)
    rows = torch.cos(math.pi / length * torch.outer(place, place + 0.5)) * math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows
