"""The presets, which are configurations by name, and changes to configurations. This module imports no torch.

The numbers of the paper's presets come from its release (github.com/ruiqigao/recovery_likelihood at 79aaadf); the text
beside each says what it is called there. The numbers of our own presets were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
from model.event_kinds.images import IMAGES
from model.event_kinds.vectors import VECTORS
from model.intake.limits import ClassCount, Summary
from model.planning import IMAGES_PRESET, Machine, plan


def _labelled(event_shape: tuple[int, ...], **counts: int) -> Summary:
    labels = tuple(ClassCount(name=name, count=count) for name, count in counts.items())
    return Summary(kind=IMAGES.name, count=sum(counts.values()), event_shape=event_shape, labels=labels)


_DIGIT_COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_EMOJI_COUNTS = {
    "Activities": 85,
    "Animals & Nature": 159,
    "Component": 5,
    "Flags": 270,
    "Food & Drink": 131,
    "Objects": 264,
    "People & Body": 2261,
    "Smileys & Emotion": 169,
    "Symbols": 224,
    "Travel & Places": 218,
}
_PLANAR = Summary(kind=VECTORS.name, count=100_000, event_shape=(2,))
EMOJI_FOLDER = "node_modules/emoji-datasource-twitter"
"""Where `npm install` puts the pictures of the dataset `emoji`."""
BUILT_IN_DATASETS: dict[str, Summary] = {
    "digits": _labelled((1, 8, 8), **{str(digit): count for digit, count in enumerate(_DIGIT_COUNTS)}),
    "mnist5k": _labelled((1, 28, 28), **{str(digit): 500 for digit in range(10)}),
    "photo-crops": Summary(kind=IMAGES.name, count=10_000, event_shape=(3, 16, 16)),
    "emoji": _labelled((3, 64, 64), **_EMOJI_COUNTS),
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
    sampling=SamplingConfig(start="multistep", num_steps=0, denoise=True),
    optimizer=OptimizerConfig(
        learning_rate=5e-5, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.998
    ),
    score_matching=ScoreMatchingConfig(
        steps=4500, batch_size=64, form="marginal", learning_rate=2e-3, recovery_weight=1.0
    ),
    dataset="digits",
    steps=4900,
    batch_size=128,
    shared_noise=False,
    affine_jitter=0.15,
    sample_every=1000,
    checkpoint_every=1000,
)

_DENSITY_2D = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=20, log_snr_max=11.0, log_snr_min=-4.0),
    network=NetworkConfig(
        kind="mlp",
        width=64,
        num_blocks=2,
        activation="silu",
        spectral_norm=False,
        level_width=64,
        fourier_features=64,
        max_frequency=8.0,
    ),
    energy="log_snr",
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=10, step_size=0.7**0.5),
    sampling=SamplingConfig(start="multistep", num_steps=4, denoise=True),
    optimizer=OptimizerConfig(
        learning_rate=2e-4, beta2=0.99, warmup_steps=100, cosine_decay=True, max_gradient_norm=1.0, ema_decay=0.995
    ),
    score_matching=ScoreMatchingConfig(
        steps=5500,
        batch_size=256,
        form="dual",
        learning_rate=4e-3,
        low_noise_tilt=3.0,
        noise_contrast=30.0,
        recovery_weight=1.0,
    ),
    dataset="eight_gaussians",
    steps=5650,
    batch_size=256,
    shared_noise=False,
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
    shared_noise=False,
    dequantize=True,
    affine_jitter=0.3,
    calibrate=True,
    sample_every=500,
    checkpoint_every=500,
)


@dataclass(frozen=True)
class _Paper:
    """The choices of DRL for one dataset: commands from the release's README, the network from its `model.py`."""

    dataset: str
    side: int
    multipliers: tuple[int, ...]
    """follow from the images' side"""
    num_blocks: int
    """`--num_res_blocks`, which is 2 unless given"""
    batch_size: int
    """`--n_batch_train`, which is 64 unless given (`--batch_size`, in most commands, is not a flag of the release)"""
    beta1: float
    """`--beta_1`, which is 0.9 unless given"""
    crops: bool = True
    """whether images are cropped and resized; CIFAR-10 is 32×32 as it is"""


_MULTIPLIERS = {32: (1, 2, 2, 2), 64: (1, 2, 2, 2, 4), 128: (1, 2, 2, 2, 4, 4)}
_CIFAR10, _CELEBA = "hf://uoft-cs/cifar10:train/img", "hf://flwrlabs/celeba:train/image"
_PAPERS: dict[str, _Paper] = {
    "cifar10": _Paper(_CIFAR10, 32, _MULTIPLIERS[32], 8, 256, 0.9, crops=False),
    "celeba64": _Paper(
        _CELEBA, 64, _MULTIPLIERS[64], 6, 128, 0.5
    ),  # the released code has CelebA at 32, the paper at 64
    "lsun_church64": _Paper("lsun_church", 64, _MULTIPLIERS[64], 2, 128, 0.9),
    "lsun_bedroom64": _Paper("lsun_bedroom", 64, _MULTIPLIERS[64], 2, 128, 0.9),
    "lsun_church128": _Paper("lsun_church", 128, _MULTIPLIERS[128], 2, 64, 0.5),
    "lsun_bedroom128": _Paper("lsun_bedroom", 128, _MULTIPLIERS[128], 5, 64, 0.5),
}

_T1K_STEP_SIZE = 1.0


def _t6(paper: _Paper) -> TrainConfig:
    """Return the T6 recipe, with every value stated whatever the defaults are.

    Sources are the release's `config.py` and `model.py`.
    """
    return TrainConfig(
        schedule=ScheduleConfig(kind="published", num_levels=6),
        network=NetworkConfig(
            kind="resnet",
            width=128,
            multipliers=paper.multipliers,
            num_blocks=paper.num_blocks,
            activation="leaky_relu",
            spectral_norm=True,
        ),
        energy="step_size",
        chain=ChainConfig(kernel="langevin", num_steps=30, step_size=2e-4**0.5, start="neighbour"),
        sampling=SamplingConfig(num_steps=30, noise_scale=0.99, start="neighbour"),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, beta1=paper.beta1, warmup_steps=1000, max_gradient_norm=None, ema_decay=0.999
        ),
        dataset=paper.dataset,
        steps=1_000_000,
        batch_size=paper.batch_size,
        shared_noise=False,
        energy_penalty=0.0,
        image_size=(paper.side, paper.side) if paper.crops else None,
        horizontal_flips=True,
        sample_every=5000,
        checkpoint_every=5000,
    )


def _t1k(config: TrainConfig) -> TrainConfig:
    """Return the T1k recipe: K = 0 and all 1000 betas (DRL section 3.5).

    Its code was never published, so that everything else is as in T6.
    """
    return replace(
        config,
        schedule=ScheduleConfig(kind="linear_betas", num_levels=1000),
        chain=replace(config.chain, num_steps=0, step_size=_T1K_STEP_SIZE),
        sampling=replace(config.sampling, num_steps=0, noise_scale=1.0),
    )


def _score_matching_only(config: TrainConfig) -> TrainConfig:
    """Return the recipe with score matching in all steps, which is the other objective of T1k."""
    assert config.batch_size != "auto"
    matching = ScoreMatchingConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        form="recovery",
        learning_rate=config.optimizer.learning_rate,
    )
    return replace(config, score_matching=matching)


_DIGITS_T6 = replace(
    _t6(_PAPERS["cifar10"]),
    network=replace(_t6(_PAPERS["cifar10"]).network, width=16, multipliers=(1, 2), num_blocks=1),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=50, max_gradient_norm=None, ema_decay=0.999),
    dataset="digits",
    steps=2000,
    batch_size=32,
    horizontal_flips=False,
    sample_every=500,
    checkpoint_every=500,
)


def _in_three_forms(name: str, t6: TrainConfig) -> dict[str, TrainConfig]:
    t1k = _t1k(t6)
    return {f"{name}-t6": t6, f"{name}-t1k": t1k, f"{name}-t1k-score": _score_matching_only(t1k)}


_IMAGES = plan(BUILT_IN_DATASETS["photo-crops"], Machine(device="cpu", num_threads=2), "photo-crops").config
"""What stands for the plan of preset `images` where the data are not known."""

PRESETS: dict[str, TrainConfig] = {
    IMAGES_PRESET: _IMAGES,
    "digits": _DIGITS,
    "density-2d": _DENSITY_2D,
    "density-digits": _DENSITY_DIGITS,
    **_in_three_forms("digits", _DIGITS_T6),
}
for _name, _paper in _PAPERS.items():
    PRESETS |= _in_three_forms(_name, _t6(_paper))

PAPER_PRESETS = frozenset(name for name in PRESETS if "-t6" in name or "-t1k" in name)
"""The presets that repeat the paper's experiments, or one of them in small."""

ALIASES: dict[str, str] = {name: f"{name}-t6" for name in _PAPERS}
"""The bare name of one of the paper's datasets stands for its T6 preset, the setting of the paper's samples."""

PRESET_SUMMARIES: dict[str, str] = {
    IMAGES_PRESET: "your own pictures: planned from the data, the machine and the time that you give it",
    "digits": "8×8 digits in under four minutes on two cores: a score-matching start, then recovery likelihood",
    "density-2d": "normalized densities of vectors of a few dimensions: dual score matching, then recovery likelihood",
    "density-digits": "normalized densities of 8×8 digits: a mixture of Gaussians corrected by dual score matching",
    "digits-t6": "the paper's T6 in small, on 8×8 digits",
    "digits-t1k": "the paper's T1k in small, on 8×8 digits: 1000 levels without a chain",
    "digits-t1k-score": "the same by score matching",
}
for _name, _paper in _PAPERS.items():
    _images = f"{_paper.side}×{_paper.side} images ({_paper.dataset}); needs a GPU"
    PRESET_SUMMARIES |= {
        f"{_name}-t6": f"the paper's T6, 6 levels and 30 Langevin steps, on {_images}",
        f"{_name}-t1k": f"the paper's T1k, 1000 levels without a chain, on {_images}",
        f"{_name}-t1k-score": f"the paper's T1k by score matching, on {_images}",
    }


def preset(name: str) -> TrainConfig:
    """Return the configuration called `name`, where `cifar10` is short for `cifar10-t6`.

    Raises ConfigError, naming the known presets, if there is none.
    """
    try:
        return PRESETS[ALIASES.get(name, name)]
    except KeyError:
        raise ConfigError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}") from None


def override(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return `config` with top-level fields replaced; a change of `steps` keeps the share of the score-matching start.

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
