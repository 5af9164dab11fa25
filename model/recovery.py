"""Recovery likelihood: the conditional energy of a sample given its noisier neighbour, and the training losses.

Source: DRL (Gao et al. 2021) sections 3.2 to 3.5. With y_t = α_{t+1} x_t,
p(y_t | x_{t+1}) ∝ exp(−E_t(y_t) − |x_{t+1} − y_t|²/(2σ_{t+1}²)); the tether is absent at the top level.
Losses are means over the batch of what their docstrings state; no gradient flows through sampled positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.energy import EnergyFn
from model.schedule import expand

LevelEnergyFn = Callable[[Tensor, Tensor], Tensor]
"""(y (B, *event), level (B,)) -> energies (B,) in nats."""


def squared_norm(x: Tensor) -> Tensor:
    """|x|² over the event of (B, *event): (B,)."""
    return (x**2).flatten(1).sum(1)


def recovery_energy(energy_fn: EnergyFn, x_next: Tensor, tether_precision: Tensor) -> EnergyFn:
    """E(y | x_next) = E(y) + precision |x_next − y|²/2, with `tether_precision` (B,) = 1/σ_{t+1}², 0 for no tether."""
    half_precision = tether_precision.to(x_next) / 2

    def conditional(y: Tensor) -> Tensor:
        return energy_fn(y) + half_precision * squared_norm(x_next - y)

    return conditional


def normal_approximation(score: Tensor, x_next: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """A draw from N(x_next − σ_{t+1}² ∇E_t(x_next), σ_{t+1}² I), the conditional's first-order form (DRL eq. 15).

    `score` is −∇E_t(x_next); `sigma` (B,) is σ_{t+1}.
    """
    s = expand(sigma, x_next)
    return x_next + s**2 * score + s * noise


def contrastive_loss(positive_energy: Tensor, negative_energy: Tensor, weight: Tensor) -> Tensor:
    """mean w_t (E_t(y⁺) − E_t(y⁻)), all (B,): its gradient is that of the negative log recovery likelihood."""
    return (weight * (positive_energy - negative_energy)).mean()


def recovery_score_matching_loss(
    energy_fn: LevelEnergyFn, y: Tensor, x_next: Tensor, level: Tensor, sigma: Tensor
) -> Tensor:
    """mean |y⁺ − x_next + σ² ∇E_t(x_next)|²/(2σ²): the score-matching form of K = 0 (DRL section 3.5)."""
    s = expand(sigma, x_next)
    residual = (y - x_next) / s + s * _energy_gradient(energy_fn, x_next, level)
    return squared_norm(residual).mean() / 2


def marginal_score_matching_loss(
    energy_fn: LevelEnergyFn,
    y: Tensor,
    noise: Tensor,
    level: Tensor,
    noise_std: Tensor,
    *,
    weigh_fn: Callable[[Tensor, Tensor], Tensor] = lambda residual, _: residual,
) -> Tensor:
    """mean of weigh_fn(std ∇E_t(y) − ε, level)² per coordinate for y = mean + std ε (Vincent 2011).

    Its minimiser is the energy of y_t itself, for any invertible linear `weigh_fn` of the residual (B, *event).
    """
    residual = expand(noise_std, y) * _energy_gradient(energy_fn, y, level) - noise
    return weigh_fn(residual, level).square().mean()


def _energy_gradient(energy_fn: LevelEnergyFn, position: Tensor, level: Tensor) -> Tensor:
    """∇E_t at `position`, differentiable in the parameters."""
    y = position.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy_fn(y, level).sum(), y, create_graph=True)
    return gradient
