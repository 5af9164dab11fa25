"""The losses of training: recovery likelihood, score matching, and the terms that may be added to them.

Source: DRL (Gao et al. 2021) sections 3.2 to 3.5. Every loss returns one value for each row of the batch, (B,);
`model.training.objective` takes their mean. No gradient flows through sampled positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.conditions import NO_LABEL, At
from model.energies.conditional import squared_norm
from model.schedule import expand

ConditionedEnergyFn = Callable[[Tensor, At], Tensor]
"""A function from (y (B, *event), the rows' conditions) to energies (B,) in nats."""


def contrastive_loss(positive_energy: Tensor, negative_energy: Tensor, weight: Tensor) -> Tensor:
    """Return w_t (E_t(y⁺) − E_t(y⁻)), whose expected gradient is that of the negative log recovery likelihood."""
    return weight * (positive_energy - negative_energy)


def energy_penalty(positive_energy: Tensor, negative_energy: Tensor, weight: Tensor) -> Tensor:
    """Return (w_t E_t(y⁺))² + (w_t E_t(y⁻))² (Du & Mordatch 2019, with the weights of the contrastive loss).

    It fixes the constant that the contrastive loss leaves free in every E_t, and holds back energies that run away.
    """
    return (weight * positive_energy) ** 2 + (weight * negative_energy) ** 2


def recovery_score_matching_loss(
    energy_fn: ConditionedEnergyFn, y: Tensor, x_next: Tensor, at: At, sigma: Tensor
) -> Tensor:
    """Return |y⁺ − x_next + σ² ∇E_t(x_next)|²/(2σ²), the score-matching form of K = 0 (DRL section 3.5).

    `sigma` (B,) is σ.
    """
    s = expand(sigma, x_next)
    residual = (y - x_next) / s + s * _energy_gradient(energy_fn, x_next, at)
    return squared_norm(residual) / 2


def marginal_score_matching_loss(
    energy_fn: ConditionedEnergyFn,
    y: Tensor,
    noise: Tensor,
    at: At,
    noise_std: Tensor,
    *,
    weigh_fn: Callable[[Tensor, Tensor], Tensor] = lambda residual, _: residual,
) -> Tensor:
    """Return the mean over the coordinates of weigh_fn(std ∇E_t(y) − ε, level)² for y = mean + std ε (Vincent 2011).

    Its minimiser is the energy of y_t itself, for any invertible linear `weigh_fn` of the residual (B, *event).
    """
    residual = expand(noise_std, y) * _energy_gradient(energy_fn, y, at) - noise
    return weigh_fn(residual, at.level).square().flatten(1).mean(1)


def dual_score_matching_loss(energy_fn: ConditionedEnergyFn, x_data: Tensor, at: At, noise: Tensor) -> Tensor:
    """Return |σ̄ ∇E − ε|² + (∂E/∂λ + ∂ log p(x_λ | x_data)/∂λ)² at x_λ = ᾱ x_data + σ̄ ε, where λ is `at.level`.

    Both terms are least at E(x, λ) = −log p_λ(x) + constant: the first fixes every λ up to its own constant, the second
    ties neighbouring λ together, constants included (Guth et al. 2025, dual score matching).
    """
    alpha_bar, sigma_bar = (expand(torch.sigmoid(sign * at.level).sqrt(), x_data) for sign in (1, -1))
    x = (alpha_bar * x_data + sigma_bar * noise).requires_grad_()
    log_snr = at.level.detach().requires_grad_()
    gradient, rate = torch.autograd.grad(energy_fn(x, at.on(log_snr)).sum(), (x, log_snr), create_graph=True)
    conditional_rate = alpha_bar * sigma_bar / 2 * noise * x_data + alpha_bar**2 / 2 * (
        1 - noise**2
    )  # the rate of every coordinate
    return squared_norm(sigma_bar * gradient - noise) + (rate + conditional_rate.flatten(1).sum(1)) ** 2


def noise_contrastive_loss(data_log_ratio: Tensor, noise_log_ratio: Tensor) -> Tensor:
    """Return the logistic loss of telling data from noise, given log p_model/p_noise (B,) at data and at noise.

    Source: Gutmann & Hyvärinen 2010.
    """
    return F.softplus(-data_log_ratio) + F.softplus(noise_log_ratio)


def classification_loss(correction: Tensor, label: Tensor) -> Tensor:
    """Return −log p(label | x), given the corrections (B, K) of `model.energies.labels`; 0 for rows without a label."""
    return F.cross_entropy(correction, label, ignore_index=NO_LABEL, reduction="none")


def level_classification_loss(own_energy: Tensor, other_energy: Tensor) -> Tensor:
    """Return −log p(own level | x) for a choice between two levels, given the energies (B,) of the same x at both.

    It is least where both energies are −log p_t(x) up to one constant for all levels, so that it ties the levels
    together (DiffCLF, 2026); score matching leaves every level, and every mode of a level, a constant of its own.
    """
    return F.softplus(own_energy - other_energy)


def _energy_gradient(energy_fn: ConditionedEnergyFn, position: Tensor, at: At) -> Tensor:
    """Return ∇E_t at `position` (B, *event), differentiable in the parameters."""
    y = position.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy_fn(y, at).sum(), y, create_graph=True)
    return gradient
