"""Drawing from a trained model: conditionals by Markov chain, and the progressive descent from x_T to x_0.

Source: DRL algorithm 2. x_T ~ N(0, I); for t = T−1 … 0 a chain on p(y | x_{t+1}) gives y, and x_t = y/α_{t+1}.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.chains.kernels import hmc_step, init, langevin_step, mala_step
from model.chains.starts import normal_approximation
from model.config import ChainStart, Precision, SamplingConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import ChainNoise, NoiseSource
from model.schedule import expand

NUM_LEAPFROG = 5
"""Leapfrog steps of one HMC transition."""


@dataclass(frozen=True)
class Draw:
    """Ends of a batch of chains on the conditionals."""

    y: Tensor
    """(B, *event)"""
    acceptance: Tensor
    """(B,) mean acceptance probability; 1 for unadjusted kernels"""
    gradient_evaluations: int
    """per chain"""


def _unwatched(_step: int, _position: Tensor) -> None:
    pass


def draw_conditional(
    model: EnergyModel,
    x_next: Tensor,
    level: Tensor,
    noise: NoiseSource,
    *,
    num_steps: int,
    start: ChainStart,
    noise_scale: float = 1.0,
    watch_fn: Callable[[int, Tensor], None] = _unwatched,
) -> Draw:
    """y ~ p(y | x_{t+1}) by `num_steps` of the model's kernel from `start`; `level` (B,) may be mixed.

    Without steps it is the start: from x_{t+1}, a draw of the normal approximation. The caller freezes the model.
    `watch_fn(step, position)` sees every step.
    """
    chain, ones = model.config.chain, torch.ones(len(x_next), device=x_next.device)
    position, evaluations = x_next, 0
    if start == "predictor":
        position, evaluations = _predict(model, x_next, level, noise), 1
    if num_steps == 0:
        return Draw(position, ones, 1) if evaluations else _approximate(model, x_next, level, noise)
    target, step_size = model.conditional(x_next, level), model.step_size[level]
    if chain.kernel == "langevin":
        for step in range(num_steps):
            position = langevin_step(position, target, step_size, noise, noise_scale=noise_scale)
            watch_fn(step, position)
        return Draw(position, ones, evaluations + num_steps)
    state, acceptance = init(position, target), torch.zeros_like(ones)
    for step in range(num_steps):
        if chain.kernel == "mala":
            state, info = mala_step(state, target, step_size, noise)
        else:
            state, info = hmc_step(state, target, step_size, noise, num_leapfrog=NUM_LEAPFROG)
        acceptance += info.acceptance_probability
        watch_fn(step, state.position)
    per_step = 1 if chain.kernel == "mala" else NUM_LEAPFROG
    return Draw(state.position, acceptance / num_steps, evaluations + 1 + num_steps * per_step)


def _approximate(model: EnergyModel, x_next: Tensor, level: Tensor, noise: NoiseSource) -> Draw:
    _, score = energy_and_score(lambda y: model.energy(y, level), x_next)
    y = normal_approximation(score, x_next, model.schedule.sigma[level + 1], noise.normal(x_next))
    return Draw(y, torch.ones(len(y), device=y.device), 1)


@dataclass(frozen=True)
class Samples:
    """What `sample` returns, in the data's units, on the CPU."""

    x: Tensor
    """(B, *event) float32"""
    levels: dict[int, Tensor]
    """x_t for each level asked for (T: the starting noise), scaled as the network sees it"""
    gradient_evaluations: int
    """per sample"""


def sample(
    model: EnergyModel,
    num_samples: int,
    *,
    seed: int,
    num_steps: int | None = None,
    noise_scale: float | None = None,
    levels: Collection[int] = (),
    first: int = 0,
    progress_fn: Callable[[int], None] | None = None,
    precision: Precision | None = None,
) -> Samples:
    """Samples `first` … `first + num_samples − 1` of the stream `seed`; each depends on its own index alone.

    `num_steps` and `noise_scale` default to the model's `config.sampling`; adjusted kernels have no noise scale.
    `progress_fn(t)` is called when level t is reached. `precision` is that of the network's layers, by default the
    model's own: float32 for a model that was loaded. Raises ConfigError for values out of range.
    """
    settings = chosen_settings(model, num_steps=num_steps, noise_scale=noise_scale, levels=levels)
    device = model.step_size.device
    noise = ChainNoise(seed, range(first, first + num_samples))
    x_top = noise.normal(torch.empty(num_samples, *model.event_shape, device=device))
    return descend(model, x_top, noise, settings, levels=levels, progress_fn=progress_fn, precision=precision)


def chosen_settings(
    model: EnergyModel, *, num_steps: int | None, noise_scale: float | None, levels: Collection[int]
) -> SamplingConfig:
    """The model's `config.sampling` with what a request says instead. Raises ConfigError for values out of range."""
    settings = model.config.sampling
    if num_steps is not None:
        settings = replace(settings, num_steps=num_steps)
    if noise_scale is not None:
        if model.config.chain.kernel != "langevin" and noise_scale != 1:
            raise ConfigError(
                f"noise_scale is {noise_scale:g}, but this model's kernel '{model.config.chain.kernel}' is adjusted "
                "and takes noise of scale 1 only; leave noise_scale out"
            )
        settings = replace(settings, noise_scale=noise_scale)
    outside = [t for t in levels if not 0 <= t <= model.num_levels]
    if outside:
        raise ConfigError(f"levels has {outside[0]}; expected levels from 0 to {model.num_levels}")
    return settings


def descend(
    model: EnergyModel,
    x_top: Tensor,
    noise: NoiseSource,
    settings: SamplingConfig,
    *,
    levels: Collection[int] = (),
    progress_fn: Callable[[int], None] | None = None,
    precision: Precision | None = None,
) -> Samples:
    """The progressive descent from `x_top` = x_T (B, *event), with the noise given (DRL algorithm 2)."""
    top = model.num_levels
    x, evaluations = x_top, 0
    kept = {top: x_top.cpu()} if top in levels else {}
    with model.frozen(precision):
        for t in range(top - 1, -1, -1):
            level = torch.full((len(x),), t, device=x.device)
            draw = _draw(model, x, level, noise, settings, is_top=t == top - 1)
            evaluations += draw.gradient_evaluations
            x = draw.y / expand(model.schedule.scale[level], x)
            if t in levels:
                kept[t] = x.cpu()
            if progress_fn is not None:
                progress_fn(t)
        if settings.denoise:
            x, evaluations = _denoise(model, x), evaluations + 1
    return Samples(model.space.decode(x).cpu(), kept, evaluations)


def _draw(
    model: EnergyModel, x_next: Tensor, level: Tensor, noise: NoiseSource, settings: SamplingConfig, *, is_top: bool
) -> Draw:
    """`draw_conditional` without the evaluation that predicts nothing: at the top level the start is x_T itself."""
    start, predicts = settings.start, settings.start == "predictor"
    if is_top and predicts:
        if settings.num_steps == 0:
            return Draw(x_next, torch.ones(len(x_next), device=x_next.device), 0)
        start = "neighbour"
    return draw_conditional(
        model,
        x_next,
        level,
        noise,
        num_steps=settings.num_steps,
        start=start,
        noise_scale=settings.noise_scale,
    )


def _marginal_score(model: EnergyModel, x: Tensor, level: Tensor) -> Tensor:
    """∇ log p(x_t) at x = x_t: the score of y_t = α_{t+1} x_t times α_{t+1}."""
    scale = expand(model.schedule.scale[level], x)
    _, score = energy_and_score(lambda y: model.energy(y, level), scale * x)
    return scale * score


def _predict(model: EnergyModel, x_next: Tensor, level: Tensor, noise: NoiseSource) -> Tensor:
    """A draw of `predicted_start`; x_T itself at the top level."""
    top = model.num_levels - 1
    score = _marginal_score(model, x_next, (level + 1).clamp(max=top))
    drawn = predicted_start(model, x_next, score, level, noise.normal(x_next))
    return torch.where(expand(level, x_next) == top, x_next, drawn)


def predicted_start(model: EnergyModel, x_next: Tensor, score: Tensor, level: Tensor, epsilon: Tensor) -> Tensor:
    """y from a Gaussian of the posterior mean x_{t+1} + σ_{t+1}² ∇ log p(x_{t+1}) (Tweedie) and the variance
    (σ_{t+1} σ̄_t/σ̄_{t+1})² it would have were x_data known (Ho et al. 2020, eq. 7); `score` is ∇ log p(x_{t+1})."""
    schedule = model.schedule
    sigma = schedule.sigma[level + 1]
    std = sigma * schedule.sigma_bar[level] / schedule.sigma_bar[level + 1]
    mean = x_next + expand(sigma**2, x_next) * score
    return mean + expand(std, x_next) * epsilon


def _denoise(model: EnergyModel, x: Tensor) -> Tensor:
    level = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return expected_data(model, x, _marginal_score(model, x, level))


def expected_data(model: EnergyModel, x: Tensor, score: Tensor) -> Tensor:
    """E[x_data | x_0] = (x_0 + σ̄_0² ∇ log p(x_0))/ᾱ_0 (Tweedie); `score` is ∇ log p(x_0)."""
    mean = x + model.schedule.sigma_bar[0].item() ** 2 * score
    return mean / model.schedule.alpha_bar[0].item()
