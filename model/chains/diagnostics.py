"""Diagnostics of Markov chains: split R-hat, effective sample size, and long runs on a model's conditionals.

Source: Gelman et al., Bayesian Data Analysis (2013), sections 11.4 and 11.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.chains.sampling import draw_conditional
from model.conditions import At
from model.energies.energy_model import EnergyModel
from model.noise import SharedNoise, make_generator

_NUM_RECORDS = 100  # times that the energy of a chain is recorded
_CHAINS_EACH = 4  # chains that run on one conditional


def split_r_hat(values: Tensor) -> Tensor:
    """Return the split R-hat (*rest,) of `values` (steps, chains, *rest). It is near 1 if the chains' halves agree."""
    within, between = _variances(values)
    length = len(values) // 2
    return ((length - 1) / length + between / within).sqrt()


def effective_sample_size(values: Tensor) -> Tensor:
    """Return how many independent draws all steps of all chains of `values` (steps, chains, *rest) are worth: (*rest,).

    Autocorrelations are summed in pairs until a pair is negative (Geyer 1992).
    """
    within, between = _variances(values)
    length = len(values) // 2
    total_variance = (length - 1) / length * within + between
    halves = _halves(values)
    lags = torch.arange(1, length)
    variograms = torch.stack([(halves[lag:] - halves[:-lag]).square().mean((0, 1)) for lag in lags.tolist()])
    correlations = 1 - variograms / (2 * total_variance)
    pairs = correlations[: len(correlations) // 2 * 2].reshape(-1, 2, *correlations.shape[1:]).sum(1)
    kept = (pairs > 0).cumprod(0)
    count = halves.shape[0] * halves.shape[1]
    return (count / (1 + 2 * (kept * pairs).sum(0))).clamp(max=count)


def _halves(values: Tensor) -> Tensor:
    """Cut `values` (steps, chains, *rest) into halves (steps // 2, 2 chains, *rest), in float64."""
    length = len(values) // 2
    return torch.cat([values[:length], values[-length:]], dim=1).double()


def _variances(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the mean variance within the halves of chains, the variance of the halves' means)."""
    halves = _halves(values)
    return halves.var(0).mean(0), halves.mean(0).var(0)


@dataclass(frozen=True)
class LongRun:
    """The result of long chains on the conditionals p(y_t | x_{t+1}) of one level."""

    level: int
    acceptance_rate: float
    energy_drift: float
    """mean conditional energy over the last half of the chains − that of the data's own y_t, nats: 0 where both agree,
    far below 0 where chains find energies that the data do not have"""
    drift_std_error: float
    split_r_hat: float
    """split R-hat of the conditional energy over the last half of the chains, the median over conditionals"""
    effective_sample_size: float
    """independent draws that the `num_kept` energies of a conditional are worth, the median over conditionals"""
    num_kept: int
    """energies recorded on a conditional over the last half of its chains"""


def run_long(model: EnergyModel, x_data: Tensor, *, num_steps: int, seed: int) -> list[LongRun]:
    """Run four chains of `num_steps` on a conditional of each of `x_data` (N, *event), at every level.

    `x_data` is scaled as the network sees it. A model whose energies are right holds the chains where the data are.
    """
    noise = SharedNoise(make_generator(seed, device=x_data.device))
    with model.frozen():
        return [_run_level(model, x_data, t, num_steps, noise) for t in range(model.num_levels)]


def _run_level(model: EnergyModel, x_data: Tensor, t: int, num_steps: int, noise: SharedNoise) -> LongRun:
    level = At.same(t, x_data).level
    x, x_next = model.schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    x_next = torch.cat([x_next] * _CHAINS_EACH)
    at = At.same(t, x_next)
    target = model.conditional(x_next, at)
    energies: list[Tensor] = []
    every = max(1, num_steps // _NUM_RECORDS)

    def record(step: int, position: Tensor) -> None:
        if step % every == 0:
            with torch.no_grad():
                energies.append(target(position).double())

    chain = model.config.chain
    draw = draw_conditional(model, x_next, at, noise, num_steps=num_steps, start=chain.start, watch_fn=record)
    with torch.no_grad():
        own = target(torch.cat([float(model.schedule.scale[t]) * x] * _CHAINS_EACH)).double()[: len(x_data)]
    kept = torch.stack(energies[len(energies) // 2 :]).reshape(-1, _CHAINS_EACH, len(x_data))
    drift = kept.mean((0, 1)) - own
    return LongRun(
        level=t,
        acceptance_rate=float(draw.acceptance.mean()),
        energy_drift=float(drift.mean()),
        drift_std_error=float(drift.std()) / len(drift) ** 0.5,
        split_r_hat=float(split_r_hat(kept).median()),
        effective_sample_size=float(effective_sample_size(kept).median()),
        num_kept=kept.shape[0] * _CHAINS_EACH,
    )
