"""Densities in the plane with known formulas, which serve as ground truth for training, sampling and log Z.

Each is scaled to about unit variance per axis and gives exact samples and exact log densities in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.energies.energy import MixtureEnergy


class PlanarDensity(Protocol):
    """A normalized density on the plane."""

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p (N,), in nats, at x (N, 2); it is −inf outside the support."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, 2), in float64."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians."""

    energy: MixtureEnergy

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p (N,), in nats, at x (N, 2)."""
        return -self.energy(x)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, 2)."""
        return self.energy.sample(count, generator)


@dataclass(frozen=True)
class Checkerboard:
    """The uniform density on the black squares of a 4×4 board of side `side`, centred at the origin."""

    side: float = 3.4

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p (N,), in nats, at x (N, 2): −log(side²/2) on black squares, −inf elsewhere."""
        cell = torch.floor((x / self.side + 0.5) * 4)
        black = ((cell >= 0) & (cell < 4)).all(1) & (cell.sum(1) % 2 == 0)
        return torch.where(black, -math.log(self.side**2 / 2), -torch.inf).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, 2)."""
        row = torch.randint(4, (count,), generator=generator)
        column = 2 * torch.randint(2, (count,), generator=generator) + row % 2
        corner = torch.stack([row, column], dim=1)
        inside = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return ((corner + inside) / 4 - 0.5) * self.side


@dataclass(frozen=True)
class Rings:
    """Concentric rings, all equally likely: the angle is uniform and the radius is |N(r_k, std²)|."""

    radii: tuple[float, ...] = (0.6, 1.3, 2.0)
    std: float = 0.1

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p (N,), in nats, at x (N, 2): the folded normal of the radius r over the circumference 2πr."""
        radius = x.norm(dim=1, keepdim=True)
        centers = torch.tensor(self.radii, dtype=x.dtype)
        exponents = torch.cat([-((radius - centers) ** 2), -((radius + centers) ** 2)], dim=1) / (2 * self.std**2)
        normalizer = math.log(len(self.radii) * self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(exponents, dim=1) - normalizer - torch.log(2 * math.pi * radius[:, 0])

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, 2)."""
        ring = torch.randint(len(self.radii), (count,), generator=generator)
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        radius = (torch.tensor(self.radii, dtype=torch.float64)[ring] + self.std * noise).abs()
        angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _mixture(means: Tensor, std: float) -> Mixture:
    count = len(means)
    return Mixture(MixtureEnergy(means, torch.full((count,), std).double(), torch.full((count,), 1 / count).double()))


def _eight_gaussians() -> Mixture:
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return _mixture(1.4 * torch.stack([angle.cos(), angle.sin()], dim=1), 0.14)


def _two_moons() -> Mixture:
    """Make two interleaved half circles of 40 Gaussians each."""
    angle = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return _mixture(1.3 * torch.cat([upper, -upper]), 0.13)


PLANAR_DENSITIES: dict[str, Callable[[], PlanarDensity]] = {
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "checkerboard": Checkerboard,
    "rings": Rings,
}
