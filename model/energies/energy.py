"""Energies E of densities p ∝ exp(−E): their type, their score by automatic differentiation, and some of known log Z.

The paper writes f_θ for the negative energy; this project speaks of energies in nats everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EnergyFn = Callable[[Tensor], Tensor]
"""A function from positions (B, *event) to energies (B,) in nats."""


def energy_and_score(energy_fn: EnergyFn, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return (E(y), −∇E(y)) at `position` (B, *event), both detached. This takes one gradient evaluation."""
    with torch.enable_grad():
        y = position.detach().requires_grad_()
        energy = energy_fn(y)
        (gradient,) = torch.autograd.grad(energy.sum(), y)
    return energy.detach(), -gradient


@dataclass(frozen=True)
class GaussianEnergy:
    """The energy of an isotropic Gaussian over vectors, E(y) = |y − mean|²/(2 std²); log Z = D log(std √(2π))."""

    mean: Tensor
    """(D,)"""
    std: float

    def __call__(self, y: Tensor) -> Tensor:
        return ((y - self.mean.to(y)) ** 2).sum(-1) / (2 * self.std**2)

    @property
    def log_z(self) -> float:
        """log ∫ exp(−E), in nats."""
        return len(self.mean) * math.log(self.std * math.sqrt(2 * math.pi))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, D)."""
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise


@dataclass(frozen=True)
class MixtureEnergy:
    """The energy of a mixture of isotropic Gaussians over vectors, E(y) = −log p(y); log Z = 0."""

    means: Tensor
    """(components, D)"""
    stds: Tensor
    """(components,)"""
    weights: Tensor
    """(components,) summing to 1"""

    def __call__(self, y: Tensor) -> Tensor:
        means, stds, weights = self.means.to(y), self.stds.to(y), self.weights.to(y)
        squared = ((y[:, None, :] - means) ** 2).sum(-1) / (2 * stds**2)
        log_normalizer = means.shape[1] * torch.log(stds * math.sqrt(2 * math.pi))
        return -torch.logsumexp(torch.log(weights) - log_normalizer - squared, dim=1)

    def diffused(self, scale: float, std: float) -> MixtureEnergy:
        """Return the energy of scale · y + std · ε, which is again a mixture, without approximation."""
        return MixtureEnergy(self.means * scale, (self.stds**2 * scale**2 + std**2).sqrt(), self.weights)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` exact samples (count, D)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise
