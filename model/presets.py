"""Configurations by name, and changes to them. Standard library only.

Numbers of the paper's presets: Gao et al. 2021, appendix B and release.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from model.config import (
    ChainConfig,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
)
from model.errors import ConfigError
from model.intake.limits import Summary

_PLANAR = Summary(kind="vectors", count=100_000, event_shape=(2,))
BUILT_IN_DATASETS: dict[str, Summary] = {
    "digits": Summary(kind="images", count=1797, event_shape=(1, 8, 8)),
    "eight_gaussians": _PLANAR,
    "two_moons": _PLANAR,
    "checkerboard": _PLANAR,
    "rings": _PLANAR,
}

_DIGITS = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=14, log_snr_max=5.5, log_snr_min=-4.0),
    network=NetworkConfig(
        kind="resnet",
        width=16,
        multipliers=(1, 2),
        num_blocks=1,
        activation="silu",
        spectral_norm=False,
        coordinates=True,
        head_width=128,
    ),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=6, step_size=0.7**0.5),
    sampling=SamplingConfig(num_steps=20, denoise=True),
    optimizer=OptimizerConfig(
        learning_rate=5e-5, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.998
    ),
    score_matching=ScoreMatchingConfig(
        steps=4500, batch_size=64, form="marginal", learning_rate=2e-3, recovery_weight=1.0
    ),
    dataset="digits",
    steps=4900,
    batch_size=128,
    affine_jitter=0.15,
    sample_every=1000,
    checkpoint_every=1000,
)

_DENSITY_2D = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=20, log_snr_max=10.0, log_snr_min=-4.0),
    network=NetworkConfig(
        kind="mlp",
        width=64,
        num_blocks=1,
        activation="silu",
        spectral_norm=False,
        level_width=64,
        fourier_features=64,
        max_frequency=150.0,
    ),
    energy="log_snr",
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=10, step_size=0.7**0.5, target_acceptance=0.7),
    sampling=SamplingConfig(num_steps=20, denoise=True),
    optimizer=OptimizerConfig(
        learning_rate=2e-4, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.995
    ),
    score_matching=ScoreMatchingConfig(
        steps=5500,
        batch_size=256,
        form="dual",
        learning_rate=4e-3,
        low_noise_tilt=1.0,
        noise_contrast=1.0,
        recovery_weight=1.0,
    ),
    dataset="eight_gaussians",
    steps=5650,
    batch_size=256,
    calibrate=True,
    sample_every=1000,
    checkpoint_every=1000,
    num_preview_samples=256,
)

_DENSITY_DIGITS = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=14, log_snr_max=8.0, log_snr_min=-4.0),
    network=replace(_DIGITS.network, level_width=64),
    energy="log_snr",
    base_components=10,
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=6, step_size=0.7**0.5),
    sampling=SamplingConfig(num_steps=20, denoise=True),
    optimizer=OptimizerConfig(
        learning_rate=5e-5, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.998
    ),
    score_matching=ScoreMatchingConfig(
        steps=1000,
        batch_size=128,
        form="dual",
        learning_rate=2e-3,
        low_noise_tilt=1.0,
        noise_contrast=60.0,
        recovery_weight=1.0,
    ),
    dataset="digits",
    steps=1100,
    batch_size=128,
    dequantize=True,
    affine_jitter=0.3,
    calibrate=True,
    sample_every=500,
    checkpoint_every=500,
)

_CIFAR10_T6 = TrainConfig(
    optimizer=OptimizerConfig(), dataset="cifar10", horizontal_flips=True, steps=1_000_000, checkpoint_every=5000
)

PRESETS: dict[str, TrainConfig] = {
    "digits": _DIGITS,
    "density-2d": _DENSITY_2D,
    "density-digits": _DENSITY_DIGITS,
    "cifar10-t6": _CIFAR10_T6,
}

PRESET_SUMMARIES: dict[str, str] = {
    "digits": "8×8 digits in under four minutes on two cores: a score-matching start, then recovery likelihood",
    "density-2d": "normalized densities of vectors of a few dimensions: dual score matching, then recovery likelihood",
    "density-digits": "normalized densities of 8×8 digits: a mixture of Gaussians corrected by dual score matching",
    "cifar10-t6": "the paper's T6 on 32×32 images: 6 levels, 30 Langevin steps, 8 residual blocks; needs a GPU",
}


def preset(name: str) -> TrainConfig:
    """The configuration of that name. Raises ConfigError naming the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}") from None


def override(config: TrainConfig, **changes: Any) -> TrainConfig:
    """`config` with top-level fields replaced; a change of `steps` keeps the share of the score-matching start.

    Raises ConfigError for an unknown field or a value out of range.
    """
    known = {field.name for field in fields(TrainConfig)}
    unknown = set(changes) - known
    if unknown:
        raise ConfigError(f"unknown field {min(unknown)}; expected one of {', '.join(sorted(known))}")
    steps = changes.get("steps")
    if isinstance(steps, int) and "score_matching" not in changes:
        matching = config.score_matching
        changes["score_matching"] = replace(matching, steps=max(0, matching.steps * steps // config.steps))
    return replace(config, **changes)
