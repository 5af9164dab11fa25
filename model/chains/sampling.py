"""Drawing from a trained model: from conditionals by Markov chains, and by the progressive descent from x_T to x_0.

Source: DRL algorithm 2. x_T ~ N(0, I); for t = T−1 … 0 a chain on p(y | x_{t+1}) gives y, and x_t = y/α_{t+1}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.chains.kernels import KERNELS, Adjusted
from model.chains.starts import STARTS, Answer, begin, expected_data
from model.conditions import NO_LABEL, At
from model.config import ChainStart, Precision, SamplingConfig
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import ChainNoise, NoiseSource, ScaledNoise
from model.schedule import expand

MAX_GUIDANCE = 100.0
"""The largest weight of guidance that is taken."""


@dataclass(frozen=True)
class Draw:
    """The ends of a batch of chains on the conditionals."""

    y: Tensor
    """(B, *event) positions at which the chains ended"""
    acceptance: Tensor
    """(B,) mean acceptance probability; 1 for unadjusted kernels"""
    gradient_evaluations: int
    """number of gradient evaluations that each chain took"""
    memory: Tensor | None
    """(B, *event) that of the start's answer, for the draw at the level below"""


def _unwatched(_step: int, _position: Tensor) -> None:
    pass


def draw_conditional(
    model: EnergyModel,
    x_next: Tensor,
    at: At,
    noise: NoiseSource,
    *,
    num_steps: int,
    start: ChainStart,
    memory: Tensor | None = None,
    noise_scale: float = 1.0,
    is_top: bool = False,
    watch_fn: Callable[[int, Tensor], None] = _unwatched,
) -> Draw:
    """Draw y ~ p(y | x_{t+1}) by `num_steps` of the model's kernel from `start`.

    Without steps, y is what the start gives. `memory` is that of the draw at the level above, if there was one. The
    rows may be at different levels; `is_top` says that all of them are at the top one, where a start may cost nothing.
    `noise_scale` multiplies the noise that the steps of an unadjusted kernel inject. `watch_fn(step, position)` is
    called after every step. The caller freezes the model.
    """
    kernel, way = KERNELS[model.config.chain.kernel], STARTS[start]
    asks, acceptance = way.asks(num_steps, is_top), torch.zeros(len(x_next), device=x_next.device)
    y, memory = begin(way, model, x_next, at, noise, memory) if asks else Answer(x_next)
    if num_steps == 0:
        return Draw(y, acceptance + 1, int(asks), memory)
    target, step_size = model.conditional(x_next, at), model.step_size[at.level]
    injected = noise if noise_scale == 1 or isinstance(kernel, Adjusted) else ScaledNoise(noise, noise_scale)
    state = kernel.init(y, target)
    for step in range(num_steps):
        state, info = kernel.step(state, target, step_size, injected)
        acceptance += info.acceptance_probability
        watch_fn(step, state.position)
    return Draw(state.position, acceptance / num_steps, asks + kernel.num_evaluations(num_steps), memory)


@dataclass(frozen=True)
class Samples:
    """The samples that `sample` returns, on the CPU."""

    x: Tensor
    """(B, *event) float32, in the data's units"""
    levels: dict[int, Tensor]
    """x_t for each level asked for (T: the starting noise), scaled as the network sees it"""
    gradient_evaluations: int
    """number of gradient evaluations that each sample took"""


def sample(
    model: EnergyModel,
    num_samples: int,
    *,
    seed: int,
    start: ChainStart | None = None,
    num_steps: int | None = None,
    noise_scale: float | None = None,
    levels: Collection[int] = (),
    first: int = 0,
    progress_fn: Callable[[int], None] | None = None,
    precision: Precision | None = None,
    labels: Sequence[int] | None = None,
    guidance: float | Sequence[float] = 0.0,
) -> Samples:
    """Draw samples `first` … `first + num_samples − 1` of the stream `seed`; each depends on its own index alone.

    `start`, `num_steps` and `noise_scale` default to the model's `config.sampling`; adjusted kernels have no noise
    scale.
    `progress_fn(t)` is called when level t is reached. `precision` is the precision of the network's layers, by default
    the model's own, which is float32 for a model that was loaded. `labels` gives a class of a conditional model to each
    sample, with NO_LABEL for those that may be of any, as all are without `labels`; `guidance`, one number or one for
    each sample, is the weight w of `model.energies.labels`. Raises ConfigError for values out of range.
    """
    settings = chosen_settings(model, start=start, num_steps=num_steps, noise_scale=noise_scale, levels=levels)
    noise = ChainNoise(seed, range(first, first + num_samples))
    x_top = noise.normal(torch.empty(num_samples, *model.event_shape, device=model.step_size.device))
    at = chosen_conditions(model, x_top, labels, guidance)
    return descend(model, x_top, noise, settings, at=at, levels=levels, progress_fn=progress_fn, precision=precision)


def chosen_conditions(
    model: EnergyModel, x_top: Tensor, labels: Sequence[int] | None, guidance: float | Sequence[float]
) -> At:
    """Return the conditions, at the top level, of samples that begin at `x_top` (B, *event).

    Raises ConfigError; `sample` says what is expected.
    """
    weights = [float(guidance)] * len(x_top) if isinstance(guidance, int | float) else list(guidance)
    for what, given in (("labels", labels), ("guidance", weights)):
        if given is not None and len(given) != len(x_top):
            raise ConfigError(f"{what} has {len(given)} entries; expected one for each of {len(x_top)} samples")
    for label, weight in zip([NO_LABEL] * len(x_top) if labels is None else labels, weights, strict=True):
        require_label(model, label, weight)
    at = At.same(model.num_levels - 1, x_top)
    if labels is None:
        return at
    return replace(at, label=torch.tensor(labels, device=x_top.device), guidance=torch.tensor(weights).to(x_top))


def require_label(model: EnergyModel, label: int, guidance: float) -> None:
    """Raise ConfigError if the model cannot draw a sample of this label (or NO_LABEL) with this guidance."""
    num_classes = len(model.class_names)
    if label != NO_LABEL and num_classes == 0:
        raise ConfigError(f"label is {label}, but this model was not trained with conditional; leave labels out")
    if label != NO_LABEL and not 0 <= label < num_classes:
        raise ConfigError(f"label is {label}; expected a number from 0 to {num_classes - 1}")
    if guidance != 0 and label == NO_LABEL:
        reason = "no label is asked for" if num_classes else "this model was not trained with conditional"
        raise ConfigError(f"guidance is {guidance:g}, but {reason}; leave guidance out")
    if not (math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise ConfigError(f"guidance is {guidance:g}; expected a number from 0 to {MAX_GUIDANCE:g}")


def chosen_settings(
    model: EnergyModel,
    *,
    start: ChainStart | None,
    num_steps: int | None,
    noise_scale: float | None,
    levels: Collection[int],
) -> SamplingConfig:
    """Return the model's `config.sampling` with the values of a request in place of its own, where they are not None.

    Raises ConfigError for values out of range, `levels` included.
    """
    settings = model.config.sampling
    if start is not None:
        settings = replace(settings, start=start)
    if num_steps is not None:
        settings = replace(settings, num_steps=num_steps)
    if noise_scale is not None:
        if isinstance(KERNELS[model.config.chain.kernel], Adjusted) and noise_scale != 1:
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
    at: At | None = None,
    levels: Collection[int] = (),
    progress_fn: Callable[[int], None] | None = None,
    precision: Precision | None = None,
) -> Samples:
    """Run the progressive descent from `x_top` = x_T (B, *event) with the given noise (DRL algorithm 2).

    `at` holds the rows' conditions beside the level, at any level.
    """
    top = model.num_levels
    at = At.same(top - 1, x_top) if at is None else at
    x, memory, evaluations = x_top, None, 0
    kept = {top: x_top.cpu()} if top in levels else {}
    with model.frozen(precision):
        for t in range(top - 1, -1, -1):
            at = at.on(torch.full_like(at.level, t))
            draw = draw_conditional(
                model,
                x,
                at,
                noise,
                num_steps=settings.num_steps,
                start=settings.start,
                memory=memory,
                noise_scale=settings.noise_scale,
                is_top=t == top - 1,
            )
            evaluations, memory = evaluations + draw.gradient_evaluations, draw.memory
            x = draw.y / expand(model.schedule.scale[at.level], x)
            if t in levels:
                kept[t] = x.cpu()
            if progress_fn is not None:
                progress_fn(t)
        if settings.denoise:
            point, at = denoising_point(model, x, at)
            _, score = energy_and_score(model.marginal(at), point)
            x, evaluations = expected_data(model, x, score, at.level), evaluations + 1
    return Samples(model.space.decode(x).cpu(), kept, evaluations)


def denoising_point(model: EnergyModel, x: Tensor, at: At) -> tuple[Tensor, At]:
    """Return the y_0 and the conditions of level 0 at which `expected_data` needs the score of the marginal energy.

    `x` (B, *event) is x_0, and `at` holds its other conditions.
    """
    at = at.on(torch.zeros_like(at.level))
    return expand(model.schedule.scale[at.level], x) * x, at
