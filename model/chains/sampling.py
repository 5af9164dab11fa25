"""Drawing from a trained model: from conditionals by Markov chains, and by the progressive descent from x_T to x_0.

Source: DRL algorithm 2. x_T ~ N(0, I); for t = T−1 … 0 a chain on p(y | x_{t+1}) gives y, and x_t = y/α_{t+1}.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.chains.kernels import KERNELS, Adjusted
from model.chains.starts import STARTS, Answer, begin, expected_data
from model.composition import ANY_LABEL, Composition
from model.conditions import NO_LABEL, At, composed_rows
from model.config import ChainStart, KernelKind, Precision, SamplingConfig, sampling_kernel
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import ChainNoise, NoiseSource, ScaledNoise
from model.schedule import expand

COMPOSED_STEPS = 4
"""The steps of each level's chain for a product of labels, where the model's own samples take none. Ten draw no better
on the digits (docs/labels.md)."""


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
    kernel: KernelKind | None = None,
    is_top: bool = False,
    watch_fn: Callable[[int, Tensor], None] = _unwatched,
) -> Draw:
    """Draw y ~ p(y | x_{t+1}) by `num_steps` of `kernel`, by default the model's own, from `start`.

    Without steps, y is what the start gives. `memory` is that of the draw at the level above, if there was one. The
    rows may be at different levels; `is_top` says that all of them are at the top one, where a start may cost nothing.
    `noise_scale` multiplies the noise that the steps of an unadjusted kernel inject. `watch_fn(step, position)` is
    called after every step. The caller freezes the model.
    """
    mover, way = KERNELS[kernel or model.config.chain.kernel], STARTS[start]
    asks, acceptance = way.asks(num_steps, is_top), torch.zeros(len(x_next), device=x_next.device)
    y, memory = begin(way, model, x_next, at, noise, memory) if asks else Answer(x_next)
    if num_steps == 0:
        return Draw(y, acceptance + 1, int(asks), memory)
    target, step_size = model.conditional(x_next, at), model.step_size[at.level]
    injected = noise if noise_scale == 1 or isinstance(mover, Adjusted) else ScaledNoise(noise, noise_scale)
    state = mover.init(y, target)
    for step in range(num_steps):
        state, info = mover.step(state, target, step_size, injected)
        acceptance += info.acceptance_probability
        watch_fn(step, state.position)
    return Draw(state.position, acceptance / num_steps, asks + mover.num_evaluations(num_steps), memory)


@dataclass(frozen=True)
class Samples:
    """The samples that `sample` returns, on the CPU."""

    x: Tensor
    """(B, *event) float32, in the data's units"""
    levels: dict[int, Tensor]
    """x_t for each level asked for (T: the starting noise), scaled as the network sees it"""
    gradient_evaluations: int
    """number of gradient evaluations that each sample took"""
    kernel: KernelKind
    """by which the chains moved"""


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
    labels: Sequence[int | Composition] | None = None,
    guidance: float | Sequence[float] = 0.0,
    adjusted: bool | None = None,
) -> Samples:
    """Draw samples `first` … `first + num_samples − 1` of the stream `seed`; each depends on its own index alone.

    `start`, `num_steps` and `noise_scale` default to the model's `config.sampling`; adjusted kernels have no noise
    scale.
    `progress_fn(t)` is called when level t is reached. `precision` is the precision of the network's layers, by default
    the model's own, which is float32 for a model that was loaded. `labels` gives a class of a conditional model to each
    sample, or a composition of several, with NO_LABEL for those that may be of any, as all are without `labels`;
    `guidance`, one number or one for each sample, is the weight w for single classes (`model.energies.labels`).
    `adjusted` says whether a Metropolis test decides on each step, by default as in `config.sampling`, and always if
    any sample is of a product of labels. Raises ConfigError for values out of range.
    """
    compositions = compositions_of(num_samples, labels, guidance)
    settings = chosen_settings(
        model,
        start=start,
        num_steps=num_steps,
        noise_scale=noise_scale,
        levels=levels,
        compositions=compositions,
        adjusted=adjusted,
    )
    noise = ChainNoise(seed, range(first, first + num_samples))
    x_top = noise.normal(torch.empty(num_samples, *model.event_shape, device=model.step_size.device))
    at = At.same(model.num_levels - 1, x_top)
    if labels is not None:
        weights, composed = composed_rows(compositions, len(model.class_names), x_top)
        at = replace(at, guidance=weights, composed=composed)
    return descend(model, x_top, noise, settings, at=at, levels=levels, progress_fn=progress_fn, precision=precision)


def compositions_of(
    num_samples: int, labels: Sequence[int | Composition] | None, guidance: float | Sequence[float]
) -> list[Composition]:
    """Return what is asked of the label of each sample, as `sample` takes it. Raises ConfigError for wrong numbers."""
    weights = [float(guidance)] * num_samples if isinstance(guidance, int | float) else list(guidance)
    wanted = [NO_LABEL] * num_samples if labels is None else list(labels)
    for what, given in (("labels", wanted), ("guidance", weights)):
        if len(given) != num_samples:
            raise ConfigError(f"{what} has {len(given)} entries; expected one for each of {num_samples} samples")
    return [_composition(label, weight) for label, weight in zip(wanted, weights, strict=True)]


def _composition(label: int | Composition, guidance: float) -> Composition:
    if isinstance(label, Composition):
        return label
    return replace(ANY_LABEL, guidance=guidance) if label == NO_LABEL else Composition.of_label(label, guidance)


def chosen_settings(
    model: EnergyModel,
    *,
    start: ChainStart | None = None,
    num_steps: int | None,
    noise_scale: float | None,
    levels: Collection[int],
    compositions: Collection[Composition] = (),
    adjusted: bool | None = None,
) -> SamplingConfig:
    """Return the model's `config.sampling` with the values of a request in place of its own, where they are not None.

    Products of labels are drawn by adjusted chains, of at least one step, unless the request says otherwise. Raises
    ConfigError for values out of range, `levels` and the labels of `compositions` included.
    """
    for one in set(compositions):
        one.require_possible(len(model.class_names))
    settings = model.config.sampling
    is_product = any(one.is_product for one in compositions)
    if adjusted is not None or is_product:
        settings = replace(settings, adjusted=is_product if adjusted is None else adjusted)
    if num_steps is None and settings.num_steps == 0 and is_product:
        num_steps = COMPOSED_STEPS
    if start is not None:
        settings = replace(settings, start=start)
    if num_steps is not None:
        settings = replace(settings, num_steps=num_steps)
    kernel = sampling_kernel(model.config.chain, settings)
    if isinstance(KERNELS[kernel], Adjusted):
        if noise_scale is not None and noise_scale != 1:
            whose = "this model's kernel" if kernel == model.config.chain.kernel else "the kernel of this request"
            raise ConfigError(
                f"noise_scale is {noise_scale:g}, but {whose} '{kernel}' is adjusted and takes noise of scale 1 only; "
                "leave noise_scale out"
            )
    elif noise_scale is not None:
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
    top, kernel = model.num_levels, sampling_kernel(model.config.chain, settings)
    at = At.same(top - 1, x_top) if at is None else at
    x, memory, evaluations = model.from_noise(x_top) if settings.start == "multistep" else x_top, None, 0
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
                kernel=kernel,
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
    return Samples(model.space.decode(x).cpu(), kept, evaluations, kernel)


def denoising_point(model: EnergyModel, x: Tensor, at: At) -> tuple[Tensor, At]:
    """Return the y_0 and the conditions of level 0 at which `expected_data` needs the score of the marginal energy.

    `x` (B, *event) is x_0, and `at` holds its other conditions.
    """
    at = at.on(torch.zeros_like(at.level))
    return expand(model.schedule.scale[at.level], x) * x, at
