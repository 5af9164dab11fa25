"""Markov-chain kernels as pure functions over batches of independent chains.

Every kernel is `step(state, target, step_size, noise) -> (state, info)`; `target` is an `EnergyFn`, `step_size` (B,) is
the standard deviation s of the injected noise, in the units of the position. `State` is what the next step needs,
`Info` what a person needs. A proposal of non-finite energy is a rejection, decided here.

Langevin (Roberts & Tweedie 1996): y' = y − (s²/2) ∇E(y) + s ε. MALA accepts y' with the Metropolis-Hastings ratio.
HMC (Duane et al. 1987): leapfrog with unit mass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.energies.conditional import squared_norm
from model.energies.energy import EnergyFn, energy_and_score
from model.noise import NoiseSource
from model.schedule import expand


class State(NamedTuple):
    """A batch of chains; energy and score belong to the position."""

    position: Tensor
    energy: Tensor
    score: Tensor


class Info(NamedTuple):
    """What one step did."""

    acceptance_probability: Tensor
    """(B,) in [0, 1]"""
    accepted: Tensor
    """(B,) bool"""


def init(position: Tensor, target: EnergyFn) -> State:
    """The state at `position` (B, *event): one gradient evaluation."""
    return State(position, *energy_and_score(target, position))


def langevin_move(
    position: Tensor, score: Tensor, step_size: Tensor, noise: Tensor, *, noise_scale: float | Tensor = 1.0
) -> Tensor:
    """y + (s²/2) score + s · noise_scale · ε; a tensor of noise scales has the shape of ε, or (B, 1, …)."""
    s = expand(step_size, position)
    return position + 0.5 * s**2 * score + s * noise_scale * noise


def langevin_step(
    position: Tensor, target: EnergyFn, step_size: Tensor, noise: NoiseSource, *, noise_scale: float = 1.0
) -> Tensor:
    """One unadjusted step from a bare position: exactly one gradient evaluation, none left over at the chain's end."""
    _, score = energy_and_score(target, position)
    return langevin_move(position, score, step_size, noise.normal(position), noise_scale=noise_scale)


def mala_step(state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource) -> tuple[State, Info]:
    """One Metropolis-adjusted Langevin step: leaves exp(−target) invariant. One gradient evaluation."""
    epsilon = noise.normal(state.position)
    proposal = init(langevin_move(state.position, state.score, step_size, epsilon), target)
    return mala_choice(state, proposal, step_size, epsilon, noise.uniform(state.energy))


def mala_choice(
    state: State, proposal: State, step_size: Tensor, epsilon: Tensor, uniform: Tensor
) -> tuple[State, Info]:
    """The next state, given the proposal that `langevin_move` made of `state` with the noise `epsilon`."""
    s = expand(step_size, state.position)
    # q(y | y') / q(y' | y) with both exponents written through standardised noises, to keep small steps accurate
    backward = (state.position - proposal.position) / s - 0.5 * s * proposal.score
    log_ratio = state.energy - proposal.energy + (squared_norm(epsilon) - squared_norm(backward)) / 2
    return metropolis_choice(state, proposal, log_ratio, uniform)


def hmc_step(
    state: State, target: EnergyFn, step_size: Tensor, noise: NoiseSource, *, num_leapfrog: int
) -> tuple[State, Info]:
    """One Hamiltonian Monte Carlo step of `num_leapfrog` leapfrogs: as many gradient evaluations."""
    s = expand(step_size, state.position)
    start_momentum = noise.normal(state.position)
    proposal, momentum = state, start_momentum
    for _ in range(num_leapfrog):
        half = momentum + 0.5 * s * proposal.score
        proposal = init(proposal.position + s * half, target)
        momentum = half + 0.5 * s * proposal.score
    log_ratio = state.energy - proposal.energy + (squared_norm(start_momentum) - squared_norm(momentum)) / 2
    return metropolis_choice(state, proposal, log_ratio, noise.uniform(log_ratio))


def metropolis_choice(state: State, proposal: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """The proposal where `uniform` (B,) < exp(log_ratio), else the state; a ratio that is not a number rejects."""
    probability = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
    accepted = uniform < probability
    chosen = State(*(_where(accepted, new, old) for new, old in zip(proposal, state, strict=True)))
    return chosen, Info(probability, accepted)


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def adapt_step_size(step_size: Tensor, acceptance: Tensor, *, target: float, rate: float = 0.05) -> Tensor:
    """Robbins-Monro on the logarithm: log s ← log s + rate (acceptance − target) (Andrieu & Thoms 2008)."""
    return step_size * torch.exp(rate * (acceptance.to(step_size) - target))
