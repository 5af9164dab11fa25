"""Stochastic coarse-to-fine ascent of the log density, within what a measurement leaves open.

Source: Kadkhodaie & Simoncelli, *Stochastic solutions for linear inverse problems using the prior implicit in a
denoiser*, NeurIPS 2021, algorithm 2. With f(y) = y − x̂(y) the residual of a denoiser, M the orthonormal directions that
are measured, and x_c = Mᵀx,

    d = (I − MMᵀ) f(y) + M (Mᵀy − x_c),   σ = |d|/√N,   h_t = h_0 t/(1 + h_0 (t − 1)),
    γ² = σ² ((1 − β h_t)² − (1 − h_t)²),  y ← y − h_t d + γ ε   until σ < σ_L;   the answer is y − f(y).

At noise σ our residual is −σ² ∇ log p_σ(y), which is (σ̄_t²/ᾱ_t) ∇e_t(ᾱ_t y) at the level t of σ̄_t/ᾱ_t = σ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.conditions import At
from model.densities.annealing import Pieces
from model.energies.conditional import squared_norm
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.inverse.operators import Operator, standardized
from model.noise import NoiseSource
from model.schedule import expand

ResidualFn = Callable[[Tensor, Tensor], Tensor]
"""Returns f(y) (B, *event) at y (B, *event) of noise σ (B,)."""


@dataclass(frozen=True)
class AscentConfig:
    """Settings of the ascent: those of its authors, brought from their pixels in [0, 1] to values in [−1, 1]."""

    sigma_start: float = 2.0
    """σ_0, the noise of the start"""
    sigma_end: float = 0.02
    """σ_L, the noise at which an ascent ends"""
    step: float = 0.01
    """h_0, the share of the residual that the first step takes"""
    noise_share: float = 0.01
    """β, the share of a step's decrease of noise that is kept; 1 injects none"""
    max_steps: int = 1000
    """an ascent that has not ended by then is ended"""


@dataclass(frozen=True)
class Climbed:
    """The answers of an ascent."""

    x: Tensor
    """(N, *event) in the data's units"""
    num_evaluations: int
    """of the denoiser, each"""


def climbing(
    residual_fn: ResidualFn,
    project_fn: Callable[[Tensor], Tensor],
    seen: Tensor,
    noise: NoiseSource,
    config: AscentConfig,
) -> Pieces[tuple[Tensor, int]]:
    """Climb from noise around `seen` = M x_c (B, *event), where `project_fn` is MMᵀ.

    Returns the answers (B, *event) and the number of evaluations; rows that have ended wait for the others.
    """
    y = seen + config.sigma_start * noise.normal(seen)
    sigma = seen.new_full((len(seen),), config.sigma_start)
    root = seen[0].numel() ** 0.5
    step = 0
    while step < config.max_steps and bool((sigma >= config.sigma_end).any()):
        step += 1
        going = sigma >= config.sigma_end
        f = residual_fn(y, sigma)
        d = f - project_fn(f) + project_fn(y) - seen
        sigma = torch.where(going, squared_norm(d).sqrt() / root, sigma)
        h = config.step * step / (1 + config.step * (step - 1))
        gamma = sigma * ((1 - config.noise_share * h) ** 2 - (1 - h) ** 2) ** 0.5
        moved = y - h * d + expand(gamma, y) * noise.normal(y)
        y = torch.where(expand(going, y).bool(), moved, y)
        yield
    return y - residual_fn(y, sigma), step + 1


def ascent(
    model: EnergyModel,
    operator: Operator,
    measured: Tensor,
    *,
    num_samples: int,
    noise: NoiseSource,
    config: AscentConfig | None = None,
) -> Pieces[Climbed]:
    """Climb from noise, `num_samples` times, to what fits `measured` (*measurement). The caller freezes the model.

    What an operator measures is A⁺A x: for one whose rows are not orthogonal this is the authors' method after its
    measurement was brought to orthonormal directions.
    """
    operator, measured = standardized(model, operator, measured)

    def project(x: Tensor) -> Tensor:
        return operator.pseudo_inverse(operator.forward(x))

    seen = operator.pseudo_inverse(measured[None].to(model.step_size))
    start = seen.expand(num_samples, *model.event_shape).contiguous()
    found, evaluations = yield from climbing(_residual(model), project, start, noise, config or AscentConfig())
    return Climbed(model.space.decode(found), evaluations)


def _residual(model: EnergyModel) -> ResidualFn:
    """Return the residual of the model's denoiser, at the level whose noise is nearest on a logarithmic scale."""
    schedule = model.schedule
    log_sigmas = (schedule.sigma_bar[:-1] / schedule.alpha_bar[:-1]).log()

    def residual(y: Tensor, sigma: Tensor) -> Tensor:
        level = (sigma.to(log_sigmas).log()[:, None] - log_sigmas).abs().argmin(1)
        alpha_bar, sigma_bar = (expand(values[level], y) for values in (schedule.alpha_bar, schedule.sigma_bar))
        scale = expand(schedule.scale[level], y)
        _, score = energy_and_score(model.marginal(At(level)), scale * alpha_bar * y)
        return -(sigma_bar**2) / alpha_bar * scale * score

    return residual
