"""Plans a training of people's own pictures from the data, the machine and the time. This module imports no torch.

`plan` chooses everything but the number of steps, and `fit` sets that to what is done in the time, given what a step
was measured to cost on the machine. Every choice is told in a sentence. The numbers were measured on the built-in
datasets `mnist5k` and `photo-crops` (docs/decisions/0111).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.config import (
    FULL_COVARIANCE_MAX_DIM,
    ChainConfig,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from model.errors import ConfigError
from model.event_kinds.images import IMAGES
from model.events import Phase
from model.fields import merged
from model.intake.limits import Summary

IMAGES_PRESET = "images"
"""The preset whose configuration is planned."""
DEFAULT_MINUTES = 15.0
"""The time of a training that names none."""
RECOVERY_SHARE = 0.15
"""The share of the time that recovery likelihood takes, at the end of a training that is long enough for it."""
_MATCHING_FIRST_STEPS = 4_500
"""A training with time for fewer steps of score matching is score matching alone: with 2,300 on `mnist5k`, the steps of
recovery likelihood that 15 % of the time allowed did less than as much more score matching."""
_FEW_STEPS = 1_500
"""Of score matching; samples are poor after fewer."""
_TIMED_SHARE, _LONGEST_TIMING_S = 0.03, 60.0
_RESERVED_SHARE = 0.03
"""The share of the time that is kept for previews, checkpoints and the end."""
_MIN_PREVIEWS, _MAX_PREVIEWS = 2, 10
"""Limits of the number of previews, each with a checkpoint: as many as the reserved share has time for."""
_EVALUATIONS_A_STEP = 3
"""What an item of score matching costs: a gradient of the energy, and about two more for the way back through it."""
_AVERAGED_SHARE = 0.03
"""The memory of the average of the weights, as a share of the steps of score matching."""
_SMALLEST_SIDE = 7
"""Pictures are halved as long as their longer side stays so long."""
_LOG_SNR_MAX, _LOG_SNR_MIN, _LOG_SNR_STEP = 5.5, -4.0, 0.75
"""The log-SNR of the cleanest and of the noisiest level, and the largest step between levels, in nats."""
_LEFT_AT_THE_TOP = 0.3
"""Without a covariance, the largest variance of the data's part in x_{T−1}, where the noise's is 1."""
_FEW_PICTURES = 20_000
"""So few pictures are moved a little each time they are seen, if they are grey."""


_PHASE_NAMES: Mapping[Phase, str] = {"score_matching": "score matching", "recovery": "recovery likelihood"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a training runs on."""

    device: str
    """cpu, cuda or cuda:N"""
    num_threads: int
    """CPU threads that it may use"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration, and a sentence for each of the choices that made it."""

    config: TrainConfig
    reasons: tuple[str, ...]


def plan(found: Summary, machine: Machine, dataset: str) -> Plan:
    """Choose how to train on the pictures `found`, called `dataset`; `fit` adds the number of steps.

    Raises ConfigError for data that are no pictures.
    """
    if found.kind != IMAGES.name:
        raise ConfigError(
            f"preset '{IMAGES_PRESET}' plans for images, but {dataset} holds {found.kind}; use 'density-2d'",
            field="preset",
        )
    channels, height, width = found.event_shape
    on_gpu, is_grey, conditional = machine.device.startswith("cuda"), channels == 1, bool(found.labels)
    sides = [max(height, width)]
    while (half := -(-sides[-1] // 2)) >= _SMALLEST_SIDE and len(sides) < 5:
        sides.append(half)
    network = NetworkConfig(
        kind="unet",
        width=64 if on_gpu else 16,
        multipliers=(1, 2, 4, 4, 4)[: len(sides)],
        num_blocks=2 if on_gpu else 1,
        activation="silu",
        spectral_norm=False,
        coordinates=True,
        head_width=128,
    )
    batch_size = 128 if on_gpu else 32
    moved = is_grey and found.count < _FEW_PICTURES
    config = TrainConfig(
        schedule=_schedule(channels * height * width),
        network=network,
        energy="gaussian",
        chain=ChainConfig(kernel="mala", start="predictor", num_steps=6, step_size=0.7**0.5),
        sampling=SamplingConfig(num_steps=0, start="multistep", denoise=True),
        optimizer=OptimizerConfig(
            learning_rate=5e-5, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.998
        ),
        score_matching=ScoreMatchingConfig(
            steps=9_000, batch_size=batch_size, form="marginal", learning_rate=2e-3, evenness=0.0, recovery_weight=1.0
        ),
        dataset=dataset,
        steps=10_000,
        conditional=conditional,
        batch_size=batch_size,
        shared_noise=False,
        horizontal_flips=not is_grey and not conditional,
        affine_jitter=0.5 if moved else 0.0,
    )
    return Plan(config=config, reasons=tuple(_reasons(found, machine, config, sides)))


def _schedule(dim: int) -> ScheduleConfig:
    """Return levels up to the noise from which sampling of pictures of `dim` values can start.

    It starts at noise of the covariance that the base knows (`EnergyModel.from_noise`). Where it knows one variance
    only, what is left of the data there must be small beside the noise: values in [−1, 1] that all change together have
    a variance of up to `dim` along one direction, ᾱ² `dim` of which is left.
    """
    log_snr_min = _LOG_SNR_MIN
    if dim > FULL_COVARIANCE_MAX_DIM:
        log_snr_min = min(log_snr_min, -round(math.log(dim / _LEFT_AT_THE_TOP), 1))
    num_levels = 1 + math.ceil((_LOG_SNR_MAX - log_snr_min) / _LOG_SNR_STEP)
    return ScheduleConfig(kind="log_snr", num_levels=num_levels, log_snr_max=_LOG_SNR_MAX, log_snr_min=log_snr_min)


def timing_s(minutes: float) -> float:
    """Return the seconds in which the steps of a training of so many minutes are timed."""
    return min(_TIMED_SHARE * 60 * minutes, _LONGEST_TIMING_S)


def fit(
    config: TrainConfig, step_s: Mapping[Phase, float], seconds: float, recovery_share: float | None = None
) -> TrainConfig:
    """Return `config` with as many steps of each phase as end within `seconds`, and what goes by their number.

    `step_s` is what a step of each phase takes, in seconds. `recovery_share` of the time is for recovery likelihood; by
    default RECOVERY_SHARE, or nothing in short trainings.
    """
    usable_s = seconds * (1 - _RESERVED_SHARE)
    if recovery_share is None:
        is_long = usable_s * (1 - RECOVERY_SHARE) >= _MATCHING_FIRST_STEPS * step_s["score_matching"]
        recovery_share = RECOVERY_SHARE if is_long else 0.0
    matching = max(1, int(usable_s * (1 - recovery_share) / step_s["score_matching"]))
    recovery = int(usable_s * recovery_share / step_s["recovery"])
    steps = matching + recovery
    preview_steps = (
        config.num_preview_samples
        * config.schedule.num_levels
        / (_EVALUATIONS_A_STEP * config.score_matching.batch_size)
    )
    num_previews = min(_MAX_PREVIEWS, max(_MIN_PREVIEWS, int(_RESERVED_SHARE * matching / preview_steps)))
    every = max(1, steps // num_previews)
    return replace(
        config,
        steps=steps,
        score_matching=replace(config.score_matching, steps=matching),
        optimizer=replace(
            config.optimizer,
            warmup_steps=min(100, 1 + recovery // 10),
            ema_decay=min(0.9999, max(0.9, 1 - 1 / (_AVERAGED_SHARE * matching + 1))),
        ),
        log_every=max(1, min(20, every // 10)),
        sample_every=every,
        checkpoint_every=every,
    )


def expectations(config: TrainConfig, step_s: Mapping[Phase, float], minutes: float) -> tuple[str, ...]:
    """Return what a plan will do with its time, and how good its samples become, in sentences."""
    matching, recovery = config.score_matching.steps, config.steps - config.score_matching.steps
    of_each = " and ".join(f"{1000 * step_s[phase]:.0f} ms of {name}" for phase, name in _PHASE_NAMES.items())
    seconds = matching * step_s["score_matching"] + recovery * step_s["recovery"]
    return (
        f"A step takes {of_each} on this machine: {matching:,} and {recovery:,} steps take {seconds / 60:.2g} of the "
        f"{minutes:g} min. What is left goes to getting ready, previews, checkpoints and tuning.",
        _expected_quality(config),
    )


def overlaid(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return `config` with what a request asks for laid over it, as nested JSON values.

    With another number of steps the phases keep their shares. Raises ConfigError.
    """
    shares = to_dict(config)
    if isinstance(steps := changes.get("steps"), int):
        shares["score_matching"]["steps"] = config.score_matching.steps * steps // config.steps
    return from_dict(TrainConfig, merged(shares, changes))


def _reasons(found: Summary, machine: Machine, config: TrainConfig, sides: list[int]) -> list[str]:
    channels, height, width = found.event_shape
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    what = f"{found.count:,} {colour} pictures of {height}×{width} pixels"
    on_gpu = machine.device.startswith("cuda")
    place = "a GPU" if on_gpu else f"{machine.num_threads} CPU thread{'s' * (machine.num_threads > 1)}"
    told = [
        f"{what}, of {len(found.labels)} classes: one model of pictures and classes, which draws a class on request."
        if config.conditional
        else f"{what}, without classes.",
        f"A U-Net of width {config.network.width} at {len(sides)} resolution{'s' * (len(sides) > 1)} "
        f"({', '.join(map(str, sides))} pixels), "
        f"because it runs on {place}"
        + ("." if on_gpu else ", where a step must stay cheap; a GPU would get four times the width."),
        f"Batches of {config.score_matching.batch_size} at {config.schedule.num_levels} noise levels, and samples "
        "of one evaluation at each.",
        f"Score matching takes {1 - RECOVERY_SHARE:.0%} of the time and recovery likelihood the rest, or all of it "
        f"where there is time for fewer than {_MATCHING_FIRST_STEPS:,} steps.",
    ]
    if config.affine_jitter:
        told.append("The pictures are few, so that each is shifted and turned a little whenever it is seen.")
    if config.horizontal_flips:
        told.append("Half of them are mirrored; set horizontal_flips to false where left and right differ.")
    return told


def _expected_quality(config: TrainConfig) -> str:
    """Return how good the samples of a training of as many steps were, where one was measured."""
    if config.score_matching.steps < _FEW_STEPS:
        return (
            "That is short: after 700 steps, digits of 28×28 pixels were often broken (1-NN accuracy 0.75, where 0.5 "
            "is perfect). More minutes help more than anything else."
        )
    return (
        "After 2,600 steps, most digits of 28×28 pixels could be read (1-NN accuracy 0.63, where 0.5 is perfect and a "
        "mixture of Gaussians has 0.94); larger or more varied pictures take more."
    )
