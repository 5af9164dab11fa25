"""Configurations of a training run: frozen, checked when made, and written as plain JSON.

Standard library only, so that the HTTP front-end can validate a request without importing torch. Numbers marked DRL
come from Gao et al., "Learning Energy-Based Models by Diffusion Recovery Likelihood" (ICLR 2021) or its release.
Defaults are DRL's but where `make ablation` measured better ones; its exact recipes are `model.presets`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from model.errors import ConfigError
from model.intake.limits import MAX_SIDE, MIN_SIDE

C = TypeVar("C")

UNKNOWN_DATASET = "unknown"
"""The dataset of weights that came from elsewhere without saying what they were trained on."""

ScheduleKind = Literal["published", "linear_betas", "log_snr"]
NetworkKind = Literal["resnet", "mlp"]
Activation = Literal["leaky_relu", "silu"]
EnergyForm = Literal["step_size", "gaussian", "log_snr"]
ChainStart = Literal["neighbour", "predictor"]
KernelKind = Literal["langevin", "mala", "hmc"]
ScoreMatchingForm = Literal["recovery", "marginal", "dual"]
Precision = Literal["float32", "bfloat16"]
AUTO_BATCH_SIZES = (64, 256)
"""Least and largest that `batch_size` 'auto' becomes: those of DRL's experiments."""


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}")


def _require_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def _require_image_size(size: tuple[int, ...]) -> None:
    if len(size) != 2:
        raise ConfigError(f"image_size has {len(size)} numbers; expected two, height and width")
    for side in size:
        _require_range("image_size", side, MIN_SIDE, MAX_SIDE)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise levels t = 0 (cleanest) … T−1, and x_T, pure noise."""

    kind: ScheduleKind = "published"
    num_levels: int = 6
    """T."""
    log_snr_max: float = 7.0
    """`log_snr` only: log(ᾱ²/σ̄²) of x_0, in nats."""
    log_snr_min: float = -7.0
    """`log_snr` only: log(ᾱ²/σ̄²) of x_{T−1}, in nats."""

    def __post_init__(self) -> None:
        _require_choice("schedule.kind", self.kind, typing.get_args(ScheduleKind))
        _require_range("schedule.num_levels", self.num_levels, 2, 1000)
        if self.kind == "published" and self.num_levels > 501:
            raise ConfigError(
                f"schedule.num_levels is {self.num_levels}; the published rule strides the 1000 betas by "
                "1000 // (2 (T−1)), which is 0 from T = 502 on. Use at most 501, or kind 'linear_betas'"
            )
        if self.kind == "linear_betas" and self.num_levels != 1000:
            raise ConfigError(f"schedule.num_levels is {self.num_levels}; kind 'linear_betas' has exactly 1000 levels")
        _require_range("schedule.log_snr_max", self.log_snr_max, -20, 20)
        _require_range("schedule.log_snr_min", self.log_snr_min, -20, 20)
        if self.log_snr_min >= self.log_snr_max:
            raise ConfigError(
                f"schedule.log_snr_min is {self.log_snr_min:g}; expected less than log_snr_max {self.log_snr_max:g}"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network net(y, t) whose scaled negative is the energy."""

    kind: NetworkKind = "resnet"
    width: int = 128
    """Channels at full resolution (DRL: ch), or units of an MLP's hidden layer."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """`resnet` only: width multiplier of each resolution; neighbours differ by 2×2 average pooling."""
    num_blocks: int = 8
    """Residual blocks per resolution (DRL: N), or residual blocks of the MLP."""
    activation: Activation = "leaky_relu"
    spectral_norm: bool = True
    """of every layer (DRL); without it layers start with the gains of `model.networks.blocks`"""
    coordinates: bool = False
    """`resnet` only: two more input channels hold the row and the column, for objects always centred alike."""
    level_width: int = 0
    """Units of the level embedding; 0 takes four times `width` (DRL)."""
    fourier_features: int = 0
    """`mlp` only: random frequencies whose sines and cosines join the input, damped where the noise hides them."""
    max_frequency: float = 100.0
    """`mlp` only: the largest of these, in radians a unit of the network's input; they are log-uniform from 1."""
    head_width: int = 0
    """`resnet` only: 0 sums over space before the head (DRL); otherwise a dense layer of this width reads it."""

    def __post_init__(self) -> None:
        _require_choice("network.kind", self.kind, typing.get_args(NetworkKind))
        _require_range("network.width", self.width, 4, 4096)
        if not 1 <= len(self.multipliers) <= 8:
            raise ConfigError(f"network.multipliers has {len(self.multipliers)} entries; expected 1 to 8")
        for multiplier in self.multipliers:
            _require_range("network.multipliers", multiplier, 1, 16)
        _require_range("network.num_blocks", self.num_blocks, 1, 64)
        _require_choice("network.activation", self.activation, typing.get_args(Activation))
        _require_range("network.head_width", self.head_width, 0, 4096)
        _require_range("network.level_width", self.level_width, 0, 4096)
        _require_range("network.fourier_features", self.fourier_features, 0, 4096)
        _require_range("network.max_frequency", self.max_frequency, 1, 1e5)


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """The Markov chain that draws y⁻ from p(y | x_{t+1}), in training and, by default, in sampling."""

    kernel: KernelKind = "langevin"
    num_steps: int = 30
    """K; 0 draws from the normal approximation of the conditional (DRL T1k)."""
    step_size: float = 2e-4**0.5
    """b: s_t² = c_t² b² σ_{t+1}² with energy `step_size` (DRL: b² = 2e-4); in conditional widths with `gaussian`."""
    start: ChainStart = "neighbour"
    """`neighbour`: y = x_{t+1} (DRL). `predictor`: one draw from the Gaussian that the score at x_{t+1} predicts."""
    target_acceptance: float | None = None
    """`mala`, `hmc`: adapt every level's step to this acceptance rate; None keeps `step_size`."""

    def __post_init__(self) -> None:
        _require_choice("chain.kernel", self.kernel, typing.get_args(KernelKind))
        _require_choice("chain.start", self.start, typing.get_args(ChainStart))
        _require_range("chain.num_steps", self.num_steps, 0, 10_000)
        _require_range("chain.step_size", self.step_size, 1e-6, 10.0)
        if self.target_acceptance is not None:
            if self.kernel == "langevin":
                raise ConfigError("chain.target_acceptance is set but kernel 'langevin' accepts every step; use 'mala'")
            _require_range("chain.target_acceptance", self.target_acceptance, 0.1, 0.99)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How samples are drawn unless a request says otherwise; kernel and step sizes are the chain's."""

    num_steps: int = 30
    """Steps at every level."""
    noise_scale: float = 1.0
    """Multiplies the injected noise; DRL publishes with 0.99."""
    start: ChainStart = "neighbour"
    """where each level's chain starts, as in `ChainConfig`"""
    denoise: bool = False
    """Return the expected data given x_0 (Tweedie 1956) in place of x_0, which keeps noise of std σ̄_0."""

    def __post_init__(self) -> None:
        _require_range("sampling.num_steps", self.num_steps, 0, 10_000)
        _require_range("sampling.noise_scale", self.noise_scale, 0.0, 2.0)
        _require_choice("sampling.start", self.start, typing.get_args(ChainStart))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with linear warm-up, optional cosine decay to zero and an exponential moving average of the weights."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 1000
    cosine_decay: bool = False
    """Decay to zero over the phase's steps; otherwise constant after the warm-up (DRL)."""
    max_gradient_norm: float | None = 1.0
    """Gradients of a larger norm, over all parameters together, are scaled down to it; None never does (DRL)."""
    ema_decay: float = 0.999
    """0 samples from the weights as they are."""

    def __post_init__(self) -> None:
        _require_range("optimizer.learning_rate", self.learning_rate, 1e-8, 1.0)
        _require_range("optimizer.beta1", self.beta1, 0.0, 0.999)
        _require_range("optimizer.beta2", self.beta2, 0.0, 0.99999)
        _require_range("optimizer.warmup_steps", self.warmup_steps, 0, 10_000_000)
        if self.max_gradient_norm is not None:
            _require_range("optimizer.max_gradient_norm", self.max_gradient_norm, 1e-6, 1e9)
        _require_range("optimizer.ema_decay", self.ema_decay, 0.0, 0.999999)


@dataclass(frozen=True, kw_only=True)
class ScoreMatchingConfig:
    """A cheap start by score matching on the energy's gradient, before the chain takes over."""

    steps: int = 0
    """Leading training steps that use this objective; all of them gives the score-matching form of T1k."""
    batch_size: int = 256
    form: ScoreMatchingForm = "recovery"
    """`recovery`: DRL's normal approximation of the conditional. `marginal`: denoising score matching of y_t itself.
    `dual`: the same in x_λ at a continuous log-SNR λ, and ∂E/∂λ matched too, which ties the levels together and fixes
    log Z near 0 (energy `log_snr` only)."""
    noise_contrast: float = 0.0
    """`dual` only: weight of the logistic loss between x_λ and draws of the Gaussian base, widened, which raises the
    energy where no data fall: score matching says nothing there."""
    low_noise_tilt: float = 0.0
    """`dual` only: log-SNRs are drawn with density ∝ (λ − min)^tilt."""
    learning_rate: float = 1e-3
    recovery_weight: float = 0.0
    """Weight of this loss beside the contrastive one in the steps after the start, on as many events of the batch."""

    def __post_init__(self) -> None:
        _require_range("score_matching.recovery_weight", self.recovery_weight, 0.0, 1e6)
        _require_range("score_matching.noise_contrast", self.noise_contrast, 0.0, 1e6)
        _require_range("score_matching.low_noise_tilt", self.low_noise_tilt, 0.0, 10.0)
        _require_range("score_matching.steps", self.steps, 0, 100_000_000)
        _require_range("score_matching.batch_size", self.batch_size, 1, 65_536)
        _require_choice("score_matching.form", self.form, typing.get_args(ScoreMatchingForm))
        _require_range("score_matching.learning_rate", self.learning_rate, 1e-8, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the weights a training run ends with, given the data."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    energy: EnergyForm = "step_size"
    """`step_size`: E = −net/s_t² (DRL). `gaussian`: the diffused Gaussian fit of the data, corrected by the network.
    `log_snr`: the same with the Gaussian normalized, as a function of a continuous log-SNR."""
    base_components: int = 1
    """`log_snr` only: Gaussians in the base; several are a mixture, fit to the data before training."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    score_matching: ScoreMatchingConfig = field(default_factory=ScoreMatchingConfig)
    dataset: str = "digits"
    steps: int = 100_000
    """All training steps, the score-matching start included."""
    batch_size: int | Literal["auto"] = 256
    """Pairs a step. `auto`: what the memory found at the start holds at once, a power of two from 64 to 256, DRL's
    range; `microbatch_size` goes with it. It is decided once and kept with the checkpoints."""
    microbatch_size: int | None = None
    """Rows of a batch, in either phase, that are in memory at once; their gradients add up to that of the whole batch,
    to rounding. None takes all."""
    precision: Precision = "float32"
    """of the network's layers in training; positions, energies, losses, weights and moments are float32 either way"""
    seed: int = 0
    shared_noise: bool = True
    """One ε for x_t and x_{t+1} of a contrastive pair, which keeps both marginals (Zhu et al. 2024); DRL draws two."""
    energy_penalty: float = 0.0
    """Weight of the squared energies beside the contrastive loss, both on the network's output scale (Du & Mordatch
    2019); energy `step_size` only. 0 in DRL."""
    image_size: tuple[int, int] | None = None
    """(height, width) that images are brought to when they are read: cropped around the centre to these proportions,
    then resized (`model.intake.framing`). None takes them as they are, and then they have to be of one size."""
    horizontal_flips: bool = False
    dequantize: bool = False
    """Add uniform noise of one bin to discrete data, so that they have a density (Theis et al. 2016)."""
    affine_jitter: float = 0.0
    """Largest random shift of training images, in pixels; turns and stretches go with it (model.data.augmentation)."""
    log_every: int = 20
    sample_every: int = 1000
    checkpoint_every: int = 1000
    num_preview_samples: int = 64
    calibrate: bool = False
    """Estimate log Z of the last checkpoint at the end of training, so that it answers with densities."""

    def __post_init__(self) -> None:
        _require_choice("energy", self.energy, typing.get_args(EnergyForm))
        if self.score_matching.form == "dual" and self.energy != "log_snr":
            raise ConfigError(f"score_matching.form 'dual' needs energy 'log_snr', not {self.energy!r}")
        _require_range("base_components", self.base_components, 1, 256)
        if self.base_components > 1 and self.energy != "log_snr":
            raise ConfigError(f"base_components is {self.base_components}; several need energy 'log_snr'")
        _require_range("steps", self.steps, 1, 100_000_000)
        if self.score_matching.steps > self.steps:
            raise ConfigError(
                f"score_matching.steps is {self.score_matching.steps}; expected at most steps, {self.steps}"
            )
        if isinstance(self.batch_size, str):
            if self.batch_size != "auto":
                raise ConfigError(f"batch_size is {self.batch_size!r}; expected an integer from 1 to 65536, or 'auto'")
        else:
            _require_range("batch_size", self.batch_size, 1, 65_536)
        if self.microbatch_size is not None:
            _require_range("microbatch_size", self.microbatch_size, 1, 65_536)
        _require_choice("precision", self.precision, typing.get_args(Precision))
        _require_range("seed", self.seed, 0, 2**63 - 1)
        _require_range("energy_penalty", self.energy_penalty, 0.0, 1e6)
        if self.energy_penalty > 0 and self.energy != "step_size":
            raise ConfigError(
                f"energy_penalty is {self.energy_penalty:g}, but energy {self.energy!r} has the Gaussian of its base, "
                "which is not to be pulled to 0; use energy 'step_size', or 0"
            )
        if self.image_size is not None:
            _require_image_size(self.image_size)
        _require_range("affine_jitter", self.affine_jitter, 0.0, 10.0)
        for name in ("log_every", "sample_every", "checkpoint_every"):
            _require_range(name, getattr(self, name), 1, 100_000_000)
        _require_range("num_preview_samples", self.num_preview_samples, 1, 256)

    @property
    def pairs_per_step(self) -> int:
        """`batch_size` as a number. Raises ConfigError while it is to be decided."""
        if isinstance(self.batch_size, str):
            raise ConfigError("batch_size is 'auto'; it becomes a number when training starts")
        return self.batch_size

    @property
    def largest_batch_size(self) -> int:
        """Of both phases, at most."""
        recovery = AUTO_BATCH_SIZES[1] if isinstance(self.batch_size, str) else self.batch_size
        return max(recovery, self.score_matching.batch_size if self.score_matching.steps else 0)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How log Z of a checkpoint is estimated from both sides (`model.densities.density.calibrate`)."""

    seed: int = 0
    num_chains: int = 512
    tolerance: float | None = None
    """Nats between the two sides at which to be content; None takes that of the dimension."""
    max_bridges: int = 32
    """Temperatures between neighbouring levels: every round doubles them, starting from 1, up to this many."""
    max_chains: int | None = None
    """Chains at which to give up: once the bridges are at their most and the sides agree, every round doubles the
    chains. None takes four times `num_chains`."""
    num_leapfrog: int = 1
    """Gradient evaluations a move: 1 is MALA; about 5 (HMC) reach further in thousands of dimensions."""

    def __post_init__(self) -> None:
        _require_range("seed", self.seed, 0, 2**63 - 1)
        _require_range("num_chains", self.num_chains, 16, 65_536)
        if self.tolerance is not None:
            _require_range("tolerance", self.tolerance, 1e-6, 1e6)
        _require_range("max_bridges", self.max_bridges, 1, 4096)
        if self.max_chains is not None:
            _require_range("max_chains", self.max_chains, self.num_chains, 1_000_000)
        _require_range("num_leapfrog", self.num_leapfrog, 1, 64)

    @property
    def most_chains(self) -> int:
        """`max_chains`, or what it is by default."""
        return 4 * self.num_chains if self.max_chains is None else self.max_chains

    @property
    def max_rounds(self) -> int:
        """Rounds until `max_bridges` and then `most_chains` are reached."""
        return self._bridging_rounds + math.ceil(math.log2(self.most_chains / self.num_chains))

    def work(self, rounds: int) -> int:
        """What the first `rounds` rounds cost, in walks of `num_chains` chains over one bridge a level.

        A round of more bridges begins anew; a round of more chains walks as many again as there are.
        """
        bridging = min(rounds, self._bridging_rounds)
        return (1 << bridging) - 1 + (1 << bridging - 1) * ((1 << rounds - bridging) - 1)

    @property
    def _bridging_rounds(self) -> int:
        return 1 + math.ceil(math.log2(self.max_bridges))


def to_dict(config: object) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def from_dict(cls: type[C], values: Mapping[str, Any], *, path: str = "") -> C:
    """The configuration whose `to_dict` was `values`; absent fields take their defaults.

    Raises ConfigError for an unknown field, naming it and the known ones, and for any value of a wrong type or range.
    """
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(f"unknown field {path}{min(unknown)}; expected one of {', '.join(hints)}")
    return cls(**{name: _read(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _read(hint: Any, value: Any, path: str) -> Any:
    """`value` of JSON as the type `hint`; ConfigError when it is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, path=f"{path}.")  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(arguments[0], item, path) for item in value)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        if isinstance(value, str) and any(typing.get_origin(one) is Literal for one in arguments):
            return value
        return _read(arguments[0], value, path)
    if origin is Literal and isinstance(value, str):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not dataclasses.is_dataclass(hint) and type(value) is hint:
        return value
    expected = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(hint)
    raise ConfigError(
        f"{path} is {value!r}; expected {expected or ('a list' if origin is tuple else 'an object or a name')}"
    )
