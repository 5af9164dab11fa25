"""Restoring items from linear measurements b = A u + s ε, with a trained energy as the prior.

Methods: `smc` is sequential Monte Carlo along the levels, twisted by the Gaussian guide (`model.inverse.guide`); its
weights give the evidence p(b). `posterior` runs the same Metropolis-corrected chains without weighing them, which is
right if they forget where they came from, and needs no agreement between the levels. `ascent` is Kadkhodaie &
Simoncelli 2021 (`model.inverse.ascent`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.densities.annealing import (
    AnnealingPath,
    Pieces,
    StopFn,
    Walk,
    annealing,
    settling,
    systematic,
    tuning,
    whole,
)
from model.densities.weights import effective_sample_size, log_mean, log_mean_std_error
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError, DataError, ShapeError
from model.inverse.ascent import ascent
from model.inverse.config import Method
from model.inverse.guide import Guide
from model.inverse.operators import Operator, as_operator
from model.inverse.verdict import Arrival, arrival
from model.noise import NoiseSource, SharedNoise, make_generator

MIN_NOISE_STD = 1e-3
"""The least noise, in the data's units, that measurements are taken to have; none at all stands for it."""
_MOST_NOISE_STD = 1e3
_SPREAD_PER_BRIDGE = 0.25  # nats between two temperatures
_MOST_BRIDGES = 32
_NUM_LEAPFROG = 3
_PILOT_CHAINS = 32


@dataclass(frozen=True)
class Restoration:
    """Items restored from one measurement. Tensors are on the CPU, in the data's units."""

    x: Tensor
    """(N, *event) answers of equal weight"""
    mean: Tensor
    """(*event) mean over all chains"""
    std: Tensor
    """(*event) standard deviation over all chains"""
    misfit: float
    """mean of |A x − b|²/(M s²) over the answers: near 1 where they explain the measurement to its noise"""
    verdict: Arrival
    acceptance_rate: float | None = None
    disagreement: float | None = None
    """of the answers of two halves of the chains (`disagreement`)"""
    effective_sample_size: float | None = None
    """number of equally weighted chains that those of `smc` are worth at the end, of all that walked"""
    log_evidence: float | None = None
    """log p(b) by `smc`, nats; without `log_z`, it lacks − log Z_0, which is the same for all measurements"""
    log_evidence_std_error: float | None = None
    """its standard error, or None if the weights do not tell it"""
    num_evaluations: int = 0
    """number of gradient evaluations that each chain took"""


def restoring(
    model: EnergyModel,
    operator: Operator | Any,
    measured: Tensor,
    *,
    noise_std: float,
    method: Method = "smc",
    num_samples: int = 16,
    num_chains: int = 64,
    seed: int = 0,
    log_z: float = 0.0,
    stop_fn: StopFn = lambda: False,
) -> Pieces[Restoration]:
    """Restore `num_samples` items from `measured` (*measurement), the operator's measurement with noise of `noise_std`.

    The operator is one of `model.inverse.operators`, or an object like deepinv's LinearPhysics. `log_z` is log Z_0 of
    the model (`model.densities.calibration`), which the evidence needs; it is 0 for a normalized model. Raises
    ConfigError, ShapeError or DataError for what cannot be restored, and WalkStopped once `stop_fn()` is true.
    """
    operator = as_operator(operator, model.event_shape)
    _check(operator, measured, noise_std, num_samples, num_chains)
    noise_std = max(noise_std, MIN_NOISE_STD)
    noise = SharedNoise(make_generator(seed, device=model.step_size.device))
    with model.frozen():
        if method == "ascent":
            climbed = yield from ascent(model, operator, measured, num_samples=num_samples, noise=noise)
            found = Restoration(
                *_summary(climbed.x, num_samples),
                misfit=_misfit(operator, climbed.x, measured, noise_std),
                verdict="not_told",
                num_evaluations=climbed.num_evaluations,
            )
        else:
            guide = Guide.of(model, operator, measured, noise_std)
            chains = _Chains(guide, max(num_chains, num_samples), noise, stop_fn)
            found = yield from chains.restored(method, num_samples, log_z)
            found = replace(found, misfit=_misfit(operator, found.x, measured, noise_std))
    return found


restore = whole(restoring)


@dataclass(frozen=True)
class _Chains:
    """The chains of the methods `smc` and `posterior`, which walk in two halves apart from each other."""

    guide: Guide
    num_chains: int
    noise: NoiseSource
    stop_fn: StopFn

    def restored(self, method: Method, num_samples: int, log_z: float) -> Pieces[Restoration]:
        """Walk, weigh and settle. The misfit is left open."""
        path = yield from tuning(
            replace(self.guide.path(), num_leapfrog=_NUM_LEAPFROG),
            min(_PILOT_CHAINS, self.num_chains),
            self.noise,
            num_steps=16,
            stop_fn=self.stop_fn,
        )
        num_bridges = bridges(path)
        walks = []
        for count in (self.num_chains - self.num_chains // 2, self.num_chains // 2):
            walk = yield from annealing(
                path,
                count,
                self.noise,
                num_bridges=num_bridges,
                stop_fn=self.stop_fn,
                resample_below=0.5 if method == "smc" else 0.0,
            )
            walks.append(walk if method == "smc" else _unweighted(walk))
        position = torch.cat([walk.position for walk in walks])
        weights = torch.cat([_end_log_weights(walk) for walk in walks])
        chosen = systematic(weights, self.noise)
        z = yield from settling(path, position[chosen], self.noise, stop_fn=self.stop_fn)
        x, of_first = self.guide.to_data(z), chosen < len(walks[0].position)
        log_weights = torch.cat([walk.log_weights for walk in walks])
        acceptance = sum(walk.acceptance_rate for walk in walks) / 2
        effective = effective_sample_size(weights) if method == "smc" else None
        apart = disagreement(x[of_first], x[~of_first])
        evaluations = sum(len(betas) for betas in path.temperatures(num_bridges)) * path.num_leapfrog
        return Restoration(
            *_summary(x, num_samples),
            misfit=math.nan,
            verdict=arrival(acceptance_rate=acceptance, effective_sample_size=effective, disagreement=apart),
            acceptance_rate=acceptance,
            disagreement=apart,
            effective_sample_size=effective,
            log_evidence=self.guide.log_evidence + log_mean(log_weights) - log_z if method == "smc" else None,
            log_evidence_std_error=log_mean_std_error(log_weights) if method == "smc" else None,
            num_evaluations=evaluations,
        )


def bridges(path: AnnealingPath) -> int:
    """Return the temperatures between neighbours at which the weights of a tuned path spread by 1/4 nat each."""
    mean = float(path.lengths.sum()) / len(path.lengths)
    return min(max(1, math.ceil(mean / _SPREAD_PER_BRIDGE)), _MOST_BRIDGES)


def _unweighted(walk: Walk) -> Walk:
    none = torch.zeros_like(walk.end_log_weights)
    return replace(walk, log_weights=none, end_log_weights=none)


def _end_log_weights(walk: Walk) -> Tensor:
    """Return the weights (N,) of a walk's positions, such that those of several walks have one common factor."""
    return walk.end_log_weights - torch.logsumexp(walk.end_log_weights, 0) + torch.logsumexp(walk.log_weights, 0)


def disagreement(one: Tensor, other: Tensor) -> float:
    """Return Fisher's ratio F of the answers of two halves (N, *event) and (M, *event), averaged over their numbers.

    It is the squared difference of their means over the one that independent answers of the spread within the halves
    would have: near 1 is chance. Without an answer of one half it is infinite.
    """
    if min(len(one), len(other)) == 0:
        return math.inf
    means = one.double().mean(0), other.double().mean(0)
    within = sum(((half - mean) ** 2).sum(0) for half, mean in zip((one, other), means, strict=True))
    variance = within / (len(one) + len(other) - 2)
    return float(((means[0] - means[1]) ** 2 / (variance * (1 / len(one) + 1 / len(other)))).mean())


def _summary(x: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (answers, mean, std) of the ends of chains (N, *event); the answers are spread evenly over them."""
    x = x.cpu()
    chosen = torch.arange(num_samples) * len(x) // num_samples
    return x[chosen], x.mean(0), x.std(0, correction=min(1, len(x) - 1))


def _misfit(operator: Operator, x: Tensor, measured: Tensor, noise_std: float) -> float:
    residual = operator.forward(x.cpu()).double() - measured.cpu().double()
    return float((residual**2).mean()) / noise_std**2


def _check(operator: Operator, measured: Tensor, noise_std: float, num_samples: int, num_chains: int) -> None:
    if tuple(measured.shape) != operator.measurement_shape:
        raise ShapeError(
            f"the measurement has shape {tuple(measured.shape)}; the operator gives {operator.measurement_shape}"
        )
    if not bool(torch.isfinite(measured).all()):
        raise DataError("the measurement has values that are not finite; expected finite numbers")
    if not 0 <= noise_std <= _MOST_NOISE_STD:
        raise ConfigError(f"noise_std is {noise_std:g}; expected a number from 0 to {_MOST_NOISE_STD:g}")
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}; expected one at least")
    if num_chains < 4:
        raise ConfigError(f"num_chains is {num_chains}; expected four at least, to compare two halves")
