"""Normalized densities of a trained model: log p of data by way of log Z, and by way of the diffusion path.

Source: DRL section 3.6; Grosse et al. 2015; Burda et al. 2016 for the importance weighting. Everything is computed in
the coordinates x of the levels, where e_t(x) = E_t(α_{t+1} x), so that neighbouring levels overlap and log Z_0 needs no
change of scale.

A model knows the data blurred by x_0's own noise. The density reported for data x_data is that of x_0/ᾱ_0: the data's
own plus Gaussian noise of std σ̄_0/ᾱ_0 in scaled units (`blur_std`). All logarithms are natural (nats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.conditions import At
from model.config import CalibrationConfig
from model.densities.annealing import AnnealingPath, Pieces, finished
from model.densities.log_z import LogZ, SampleFn, bound_log_z
from model.energies.bases import MixtureBase
from model.energies.conditional import squared_norm
from model.energies.energy import EnergyFn, energy_and_score
from model.energies.energy_model import EnergyModel
from model.noise import ChainNoise, NoiseSource, SharedNoise, make_generator

_CHUNK = 4096  # events that are evaluated at once
_TOP_SAMPLES = 4096
_FIRST_STEP = 0.7  # the step size of a chain before it is tuned


def level_energy(model: EnergyModel, t: int) -> EnergyFn:
    """Return the energy e_t(x) = E_t(α_{t+1} x), a function of x = x_t."""
    scale = float(model.schedule.scale[t])

    def energy(x: Tensor) -> Tensor:
        return model.energy(scale * x, At.same(t, x))

    return energy


def annealing_path(model: EnergyModel) -> AnnealingPath:
    """Return the path of energies from a closed form to level 0 of `model`, which the caller freezes.

    It is in coordinates z whose unit is set by the Gaussian base of the energies, so that the change from one level to
    the next, and the step size of a chain, only have to do with what is not Gaussian. If the base is a Gaussian, the
    path leads over the levels, noisiest first; if it is a mixture, the path is one step from the base of level 0 to the
    energy of level 0.
    """
    return _path_from_mixture(model, model.base) if isinstance(model.base, MixtureBase) else _path_from_normal(model)


def _path_from_normal(model: EnergyModel) -> AnnealingPath:
    """Return the path over the levels from N(0, I), which is the base of the top level if the model has a base."""
    dim = torch.Size(model.event_shape).numel()
    energies = [_in_base_units(model, level_energy(model, t), t) for t in range(model.num_levels - 1, -1, -1)]
    return AnnealingPath(
        [lambda z: squared_norm(z) / 2, *energies],
        dim * math.log(2 * math.pi) / 2,
        lambda count, noise: noise.normal(model.step_size.new_empty(count, *model.event_shape)),
        torch.full((len(energies) + 1,), _FIRST_STEP),
    )


def _path_from_mixture(model: EnergyModel, base: MixtureBase) -> AnnealingPath:
    log_snr = model.log_snr[:1]
    to_z = base.whitening(0).to_z

    def sample_start(count: int, noise: NoiseSource) -> Tensor:
        like = log_snr.new_empty(count, *model.event_shape)
        return to_z(base.widened(log_snr.expand(count), like, noise, 1.0)[0])

    def base_energy(x: Tensor) -> Tensor:
        return base.normalized(x, log_snr.expand(len(x)))[0]

    energies = [_in_base_units(model, energy, 0) for energy in (base_energy, level_energy(model, 0))]
    return AnnealingPath(energies, 0.0, sample_start, torch.full((2,), _FIRST_STEP))


def _in_base_units(model: EnergyModel, energy: EnergyFn, t: int) -> EnergyFn:
    """Return an energy of x_t as a function of z, with the same normalizer; without a base, z is x_t itself."""
    if model.base is None:
        return energy
    to_x, _, log_volume = model.base.whitening(t)
    return lambda z: energy(to_x(z)) - log_volume


def default_tolerance(dim: int) -> float:
    """Return the error, in nats, to which log Z should be known: 0.002 per dimension, and at least 0.02.

    0.002 nats per dimension are 0.003 bits, less than the second decimal in which bits per dimension are compared. For
    a handful of dimensions the noise of some hundred chains is the limit, and 0.02 nats are 2 % of the integral.
    """
    return max(0.02, 0.002 * dim)


def tolerance_of(model: EnergyModel, asked: float | None) -> float:
    """Return the tolerance that was asked for or, if None was, the usual one of the model's dimension."""
    return default_tolerance(torch.Size(model.event_shape).numel()) if asked is None else asked


def calibrate(
    model: EnergyModel,
    *,
    seed: int = CalibrationConfig.seed,
    num_chains: int = CalibrationConfig.num_chains,
    tolerance: float | None = CalibrationConfig.tolerance,
    max_bridges: int = CalibrationConfig.max_bridges,
    max_chains: int | None = CalibrationConfig.max_chains,
    num_leapfrog: int = CalibrationConfig.num_leapfrog,
    x_data: Tensor | None = None,
    stop_fn: Callable[[], bool] = lambda: False,
) -> Iterator[LogZ]:
    """Bound log Z_0 of `annealing_path` from both sides, round by round; the last round is the answer (`bound_log_z`).

    `x_data` (N, *event) are data that the model was not trained on, in the data's units and dequantized if they are
    discrete: chains that start from them tell modes that both sides miss.
    `tolerance` is by default `default_tolerance` of the model's dimension, and `max_chains` is four times `num_chains`.
    `stop_fn` is asked before every move of the chains; a round that it stops is not yielded. The model is frozen until
    the iterator ends.
    """
    noise = SharedNoise(make_generator(seed, device=model.step_size.device))
    with model.frozen():
        yield from bound_log_z(
            replace(annealing_path(model), num_leapfrog=num_leapfrog),
            noise,
            num_chains=num_chains,
            tolerance=tolerance_of(model, tolerance),
            max_bridges=max_bridges,
            max_chains=CalibrationConfig(num_chains=num_chains, max_chains=max_chains).most_chains,
            sample_data=None if x_data is None else data_start(model, x_data),
            stop_fn=stop_fn,
        )


def data_start(model: EnergyModel, x_data: Tensor) -> SampleFn:
    """Return the function that draws items of `x_data` at random, diffused to x_0, in the path's coordinates."""
    x0 = _as_x0(model, x_data.to(model.step_size.device))
    to_z = (lambda x: x) if model.base is None else model.base.whitening(0).to_z

    def draw(count: int, noise: NoiseSource) -> Tensor:
        chosen = (noise.uniform(x0.new_empty(count)) * len(x0)).long().clamp(max=len(x0) - 1)
        x = x0[chosen]
        return to_z(x + float(model.schedule.sigma_bar[0]) * noise.normal(x))

    return draw


def log_density(model: EnergyModel, x_data: Tensor, log_z: float) -> Tensor:
    """Return log p (N,), in nats, of `x_data` (N, *event) in the data's units, given log Z_0 of `annealing_path`."""
    return normalized(model, data_energy(model, x_data), log_z)


def data_energy(model: EnergyModel, x_data: Tensor) -> Tensor:
    """Return e_0 (N,), float64 in nats, of `x_data` (N, *event) in the data's units.

    With log Z_0 it gives the log density (`normalized`).
    """
    x = _as_x0(model, x_data)
    energy = level_energy(model, 0)
    with torch.no_grad():
        return torch.cat([energy(chunk).double() for chunk in torch.split(x, _CHUNK)])


def normalized(model: EnergyModel, energy: Tensor, log_z: float) -> Tensor:
    """Return log p = log |dx_0/dx_data| − e_0 − log Z_0, where `energy` is the e_0 of `data_energy`."""
    return _log_volume(model) - energy - log_z


def blur_std(model: EnergyModel) -> float:
    """Return the standard deviation σ̄_0/ᾱ_0 of the noise by which the density blurs the data.

    It is in scaled units: in image values for images, and in each coordinate's own standard deviation for vectors.
    """
    return float(model.schedule.sigma_bar[0] / model.schedule.alpha_bar[0])


def bits_per_dim(log_density: Tensor, dim: int, bin_width: float) -> Tensor:
    """Return the code length −log p/(D ln 2) − log2(bin_width) of data whose values lie `bin_width` apart.

    For 8-bit data in [−1, 1] the width is `model.event_kinds.pixels.BIN_WIDTH`. Source: Theis et al. 2016.
    """
    return -log_density / (dim * math.log(2)) - math.log2(bin_width)


def _as_x0(model: EnergyModel, x_data: Tensor) -> Tensor:
    return float(model.schedule.alpha_bar[0]) * model.space.encode(x_data)


def _log_volume(model: EnergyModel) -> float:
    """Return log |dx_0/dx_data|, in nats."""
    dim = torch.Size(model.event_shape).numel()
    return dim * math.log(float(model.schedule.alpha_bar[0])) + model.space.log_volume()


@dataclass(frozen=True)
class PathEstimate:
    """log p of data by importance-weighted paths through the levels, which is independent of `annealing_path`."""

    log_density: Tensor
    """(N,) nats; an estimate and not a bound: few paths bias it low by their spread, few inner samples bias it high"""
    spread: Tensor
    """(N,) standard deviation of the values of single paths, which shows how far the levels disagree with each other"""


def path_log_density(
    model: EnergyModel, x_data: Tensor, *, seed: int, num_paths: int = 8, num_inner: int = 64
) -> PathEstimate:
    """Estimate log p of `x_data` (N, *event), in the data's units, by importance-weighted paths through the levels.

    log p(x_0) ≥ E[log p(x_{T−1}) + Σ_t (−E_t(y_t) − log E_{y~N(x_{t+1},σ²I)} e^{−E_t(y)} + D log α_{t+1})], where the
    forward process draws x_1 … x_{T−1}. The importance-weighted mean is taken over `num_paths` such paths. The value of
    item i follows from (`seed`, i) and the item, whatever else is in the batch.
    """
    return finished(walk_paths(model, x_data, seed=seed, num_paths=num_paths, num_inner=num_inner))


def walk_paths(
    model: EnergyModel, x_data: Tensor, *, seed: int, num_paths: int, num_inner: int = 64
) -> Pieces[PathEstimate]:
    """Compute `path_log_density` in pieces of one or two evaluations, for callers who share the device."""
    x0 = _as_x0(model, x_data)
    noise = ChainNoise(seed, range(len(x0)))
    log_z_top = _top_log_z(model, SharedNoise(make_generator(seed, device=x0.device)))
    top_energy = level_energy(model, model.num_levels - 1)
    values = []
    for _ in range(num_paths):
        x, total = x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        for t in range(model.num_levels - 1):
            alpha, sigma = float(model.schedule.alpha[t + 1]), float(model.schedule.sigma[t + 1])
            x_next = alpha * x + sigma * noise.normal(x)
            total += yield from _log_conditional(model, x, x_next, t, noise, num_inner)
            x = x_next
        with torch.no_grad():
            values.append(total - top_energy(x).double() - log_z_top)
    stacked = torch.stack(values) + _log_volume(model)
    estimate = torch.logsumexp(stacked, 0) - math.log(num_paths)
    return PathEstimate(estimate, stacked.std(0) if num_paths > 1 else torch.full_like(estimate, math.nan))


def _log_conditional(
    model: EnergyModel, x: Tensor, x_next: Tensor, t: int, noise: NoiseSource, num_inner: int
) -> Pieces[Tensor]:
    """Estimate the log of p(x_t | x_{t+1})/q(x_{t+1} | x_t) for every item (N,), in nats.

    It is −E_t(y) − log E_{y'~N(x_{t+1}, σ²I)} e^{−E_t(y')} + D log α_{t+1}. The expectation is taken by importance
    sampling from the Gaussian that the next level's score predicts.
    """
    schedule = model.schedule
    alpha, sigma = float(schedule.alpha[t + 1]), float(schedule.sigma[t + 1])
    _, score = energy_and_score(level_energy(model, t + 1), x_next)
    mean = x_next + sigma**2 * score
    std = 1.05 * sigma * _posterior_factor(model, t)

    def log_weight(epsilon: Tensor) -> Tensor:
        y = mean + std * epsilon
        log_prior = -squared_norm((y - x_next) / sigma) / 2 - epsilon[0].numel() * math.log(sigma)
        log_proposal = -squared_norm(epsilon) / 2 - epsilon[0].numel() * math.log(std)
        return (log_prior - log_proposal).double() - level_energy(model, t)(y / alpha).double()

    log_normalizer = yield from _log_mean(lambda: log_weight(noise.normal(x)), num_inner)
    with torch.no_grad():
        energy = level_energy(model, t)(x).double()
    return -energy - log_normalizer + x[0].numel() * math.log(alpha)


def _posterior_factor(model: EnergyModel, t: int) -> float:
    """Return the standard deviation of y_t given x_{t+1}, in units of σ_{t+1}, along the data's widest direction."""
    schedule = model.schedule
    variance = 1.0 if model.base is None else float(model.base.variance.max())
    marginal = float(schedule.alpha_bar[t]) ** 2 * variance + float(schedule.sigma_bar[t]) ** 2
    prior = float(schedule.alpha[t + 1]) ** 2 * marginal
    return math.sqrt(prior / (prior + float(schedule.sigma[t + 1]) ** 2))


def _top_log_z(model: EnergyModel, noise: NoiseSource) -> float:
    """Estimate log Z of the top marginal, in nats, by importance sampling from the Gaussian that it nearly is."""
    path = _path_from_normal(model)
    with torch.no_grad():
        sample = path.sample_start(_TOP_SAMPLES, noise)
        log_weights = path.energies[0](sample).double() - path.energies[1](sample).double()
    return path.log_z_start + float(torch.logsumexp(log_weights, 0)) - math.log(_TOP_SAMPLES)


def _log_mean(log_weight_fn: Callable[[], Tensor], count: int) -> Pieces[Tensor]:
    values = []
    for _ in range(count):
        with torch.no_grad():
            values.append(log_weight_fn())
        yield
    return torch.logsumexp(torch.stack(values), 0) - math.log(count)
