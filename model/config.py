"""Configurations of a training run: frozen, checked when made, and written as plain JSON.

A field is written here and nowhere else: its type, its range, its default and, below it, what it means. The OpenAPI
document, requests, the command's options and the page's form are made of them. No torch and no pydantic, so that
whoever reads a configuration loads neither. Numbers marked DRL come from Gao et al., "Learning Energy-Based Models by
Diffusion Recovery Likelihood" (ICLR 2021) or its release. Defaults are DRL's but where `make ablation` measured better
ones; its exact recipes are `model.presets`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval, Len

from model.errors import ConfigError
from model.fields import Config
from model.fields import from_dict as from_dict
from model.fields import to_dict as to_dict
from model.intake.limits import MAX_SIDE, MIN_SIDE

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

_LogSnr = Annotated[float, Interval(ge=-20, le=20)]
_Width = Annotated[int, Interval(ge=0, le=4096)]
_ChainSteps = Annotated[int, Interval(ge=0, le=10_000)]
_BatchSize = Annotated[int, Interval(ge=1, le=65_536)]
_Steps = Annotated[int, Interval(ge=1, le=100_000_000)]
_Side = Annotated[int, Interval(ge=MIN_SIDE, le=MAX_SIDE)]
_LearningRate = Annotated[float, Interval(ge=1e-8, le=1.0)]
_Weight = Annotated[float, Interval(ge=0.0, le=1e6)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Noise levels t = 0 (cleanest) … T−1, and x_T, pure noise."""

    path: ClassVar[str] = "schedule."

    kind: ScheduleKind = "published"
    """How the noise grows: DRL's rule for its T6 (`published`), every one of its 1000 betas (`linear_betas`), or evenly
    in log-SNR (`log_snr`)."""
    num_levels: Annotated[int, Interval(ge=2, le=1000)] = 6
    """T, the number of noise levels."""
    log_snr_max: _LogSnr = 7.0
    """`log_snr` only: log(ᾱ²/σ̄²) of x_0, in nats."""
    log_snr_min: _LogSnr = -7.0
    """`log_snr` only: log(ᾱ²/σ̄²) of x_{T−1}, in nats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "published" and self.num_levels > 501:
            raise ConfigError(
                f"schedule.num_levels is {self.num_levels}; the published rule strides the 1000 betas by "
                "1000 // (2 (T−1)), which is 0 from T = 502 on. Use at most 501, or kind 'linear_betas'",
                field="schedule.num_levels",
            )
        if self.kind == "linear_betas" and self.num_levels != 1000:
            raise ConfigError(
                f"schedule.num_levels is {self.num_levels}; kind 'linear_betas' has exactly 1000 levels",
                field="schedule.num_levels",
            )
        if self.log_snr_min >= self.log_snr_max:
            raise ConfigError(
                f"schedule.log_snr_min is {self.log_snr_min:g}; expected less than log_snr_max {self.log_snr_max:g}",
                field="schedule.log_snr_min",
            )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """The network net(y, t) whose scaled negative is the energy."""

    path: ClassVar[str] = "network."

    kind: NetworkKind = "resnet"
    """`resnet` takes images, `mlp` takes vectors."""
    width: Annotated[int, Interval(ge=4, le=4096)] = 128
    """Channels at full resolution (DRL: ch), or units of an MLP's hidden layer."""
    multipliers: Annotated[tuple[Annotated[int, Interval(ge=1, le=16)], ...], Len(1, 8)] = (1, 2, 2, 2)
    """`resnet` only: width multiplier of each resolution; neighbours differ by 2×2 average pooling."""
    num_blocks: Annotated[int, Interval(ge=1, le=64)] = 8
    """Residual blocks per resolution (DRL: N), or residual blocks of the MLP."""
    activation: Activation = "leaky_relu"
    """The nonlinearity between layers."""
    spectral_norm: bool = True
    """Normalize every layer by its largest singular value (DRL); without it layers start with the gains of
    `model.networks.blocks`."""
    coordinates: bool = False
    """`resnet` only: two more input channels hold the row and the column, for objects always centred alike."""
    level_width: _Width = 0
    """Units of the level embedding; 0 takes four times `width` (DRL)."""
    fourier_features: _Width = 0
    """`mlp` only: random frequencies whose sines and cosines join the input, damped where the noise hides them."""
    max_frequency: Annotated[float, Interval(ge=1, le=1e5)] = 100.0
    """`mlp` only: the largest of these, in radians a unit of the network's input; they are log-uniform from 1."""
    head_width: _Width = 0
    """`resnet` only: 0 sums over space before the head (DRL); otherwise a dense layer of this width reads it."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Config):
    """The Markov chain that draws y⁻ from p(y | x_{t+1}), in training and, by default, in sampling."""

    path: ClassVar[str] = "chain."

    kernel: KernelKind = "langevin"
    """How a step is made: unadjusted Langevin (DRL), or with a Metropolis test, MALA or HMC."""
    num_steps: _ChainSteps = 30
    """K; 0 draws from the normal approximation of the conditional (DRL T1k)."""
    step_size: Annotated[float, Interval(ge=1e-6, le=10.0)] = 2e-4**0.5
    """b: s_t² = c_t² b² σ_{t+1}² with energy `step_size` (DRL: b² = 2e-4); in conditional widths with `gaussian`."""
    start: ChainStart = "neighbour"
    """`neighbour`: y = x_{t+1} (DRL). `predictor`: one draw from the Gaussian that the score at x_{t+1} predicts."""
    target_acceptance: Annotated[float, Interval(ge=0.1, le=0.99)] | None = None
    """`mala`, `hmc`: adapt every level's step to this acceptance rate; unset keeps `step_size`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_acceptance is not None and self.kernel == "langevin":
            raise ConfigError(
                "chain.target_acceptance is set but kernel 'langevin' accepts every step; use 'mala'",
                field="chain.target_acceptance",
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How samples are drawn unless a request says otherwise; kernel and step sizes are the chain's."""

    path: ClassVar[str] = "sampling."

    num_steps: _ChainSteps = 30
    """Chain steps at every level."""
    noise_scale: Annotated[float, Interval(ge=0.0, le=2.0)] = 1.0
    """Multiplies the injected noise; DRL publishes with 0.99."""
    start: ChainStart = "neighbour"
    """Where each level's chain starts, as in `ChainConfig`."""
    denoise: bool = False
    """Return the expected data given x_0 (Tweedie 1956) in place of x_0, which keeps noise of std σ̄_0."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Adam with linear warm-up, optional cosine decay to zero and an exponential moving average of the weights."""

    path: ClassVar[str] = "optimizer."

    learning_rate: _LearningRate = 1e-4
    """Adam's step after the warm-up, in the steps of recovery likelihood."""
    beta1: Annotated[float, Interval(ge=0.0, le=0.999)] = 0.9
    """Decay of Adam's mean of the gradients, per step."""
    beta2: Annotated[float, Interval(ge=0.0, le=0.99999)] = 0.999
    """Decay of Adam's mean of the squared gradients, per step."""
    warmup_steps: Annotated[int, Interval(ge=0, le=10_000_000)] = 1000
    """Steps over which the learning rate grows linearly from zero."""
    cosine_decay: bool = False
    """Decay to zero over the phase's steps; otherwise constant after the warm-up (DRL)."""
    max_gradient_norm: Annotated[float, Interval(ge=1e-6, le=1e9)] | None = 1.0
    """Gradients of a larger norm, over all parameters together, are scaled down to it; unset never does (DRL)."""
    ema_decay: Annotated[float, Interval(ge=0.0, le=0.999999)] = 0.999
    """Decay of the weights' moving average, per step; 0 samples from the weights as they are."""


@dataclass(frozen=True, kw_only=True)
class ScoreMatchingConfig(Config):
    """A cheap start by score matching on the energy's gradient, before the chain takes over."""

    path: ClassVar[str] = "score_matching."

    steps: Annotated[int, Interval(ge=0, le=100_000_000)] = 0
    """Leading training steps that use this objective; all of them gives the score-matching form of T1k."""
    batch_size: _BatchSize = 256
    """Events a step, of these steps."""
    form: ScoreMatchingForm = "recovery"
    """`recovery`: DRL's normal approximation of the conditional. `marginal`: denoising score matching of y_t itself.
    `dual`: the same in x_λ at a continuous log-SNR λ, and ∂E/∂λ matched too, which ties the levels together and fixes
    log Z near 0 (energy `log_snr` only)."""
    noise_contrast: _Weight = 0.0
    """`dual` only: weight of the logistic loss between x_λ and draws of the Gaussian base, widened, which raises the
    energy where no data fall: score matching says nothing there."""
    low_noise_tilt: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.0
    """`dual` only: log-SNRs are drawn with density ∝ (λ − min)^tilt."""
    learning_rate: _LearningRate = 1e-3
    """Adam's step after the warm-up, in these steps."""
    recovery_weight: _Weight = 0.0
    """Weight of this loss beside the contrastive one in the steps after the start, on as many events of the batch."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Everything that decides the weights a training run ends with, given the data."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    energy: EnergyForm = "step_size"
    """`step_size`: E = −net/s_t² (DRL). `gaussian`: the diffused Gaussian fit of the data, corrected by the network.
    `log_snr`: the same with the Gaussian normalized, as a function of a continuous log-SNR."""
    base_components: Annotated[int, Interval(ge=1, le=256)] = 1
    """`log_snr` only: Gaussians in the base; several are a mixture, fit to the data before training."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    score_matching: ScoreMatchingConfig = field(default_factory=ScoreMatchingConfig)
    dataset: str = "digits"
    """The data: a built-in name, the id of an uploaded dataset, or an address that the trainer can read."""
    steps: _Steps = 100_000
    """All training steps, the score-matching start included."""
    batch_size: _BatchSize | Literal["auto"] = 256
    """Pairs a step. `auto`: what the memory found at the start holds at once, a power of two from 64 to 256, DRL's
    range; `microbatch_size` goes with it. It is decided once and kept with the checkpoints."""
    microbatch_size: _BatchSize | None = None
    """Rows of a batch, in either phase, that are in memory at once; their gradients add up to that of the whole batch,
    to rounding. Unset takes all."""
    precision: Precision = "float32"
    """Precision of the network's layers in training; positions, energies, losses, weights and moments are float32
    either way."""
    seed: Seed = 0
    """Decides weights, batches and noise."""
    shared_noise: bool = True
    """One ε for x_t and x_{t+1} of a contrastive pair, which keeps both marginals (Zhu et al. 2024); DRL draws two."""
    energy_penalty: _Weight = 0.0
    """Weight of the squared energies beside the contrastive loss, both on the network's output scale (Du & Mordatch
    2019); energy `step_size` only. 0 in DRL."""
    image_size: tuple[_Side, _Side] | None = None
    """(height, width) that images are brought to when they are read: cropped around the centre to these proportions,
    then resized (`model.intake.framing`). Unset takes them as they are, and then they have to be of one size."""
    horizontal_flips: bool = False
    """Mirror half of the training images."""
    dequantize: bool = False
    """Add uniform noise of one bin to discrete data, so that they have a density (Theis et al. 2016)."""
    affine_jitter: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.0
    """Largest random shift of training images, in pixels; turns and stretches go with it (model.data.augmentation)."""
    log_every: _Steps = 20
    """Steps between two points of the training's curves."""
    sample_every: _Steps = 1000
    """Steps between two drawings of samples."""
    checkpoint_every: _Steps = 1000
    """Steps between two checkpoints."""
    num_preview_samples: Annotated[int, Interval(ge=1, le=256)] = 64
    """Samples of such a drawing."""
    calibrate: bool = False
    """Estimate log Z of the last checkpoint at the end of training, so that it answers with densities."""

    def __post_init__(self) -> None:
        if self.image_size is not None and len(self.image_size) != 2:
            raise ConfigError(
                f"image_size has {len(self.image_size)} numbers; expected two, height and width", field="image_size"
            )
        super().__post_init__()
        if self.score_matching.form == "dual" and self.energy != "log_snr":
            raise ConfigError(f"score_matching.form 'dual' needs energy 'log_snr', not {self.energy!r}", field="energy")
        if self.base_components > 1 and self.energy != "log_snr":
            raise ConfigError(
                f"base_components is {self.base_components}; several need energy 'log_snr'", field="base_components"
            )
        if self.score_matching.steps > self.steps:
            raise ConfigError(
                f"score_matching.steps is {self.score_matching.steps}; expected at most steps, {self.steps}",
                field="score_matching.steps",
            )
        if self.energy_penalty > 0 and self.energy != "step_size":
            raise ConfigError(
                f"energy_penalty is {self.energy_penalty:g}, but energy {self.energy!r} has the Gaussian of its base, "
                "which is not to be pulled to 0; use energy 'step_size', or 0",
                field="energy_penalty",
            )

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
class CalibrationConfig(Config):
    """How log Z of a checkpoint is estimated from both sides (`model.densities.density.calibrate`)."""

    seed: Seed = 0
    """Of the chains; the same seed gives the same numbers."""
    num_chains: Annotated[int, Interval(ge=16, le=65_536)] = 512
    """Chains walked side by side."""
    tolerance: Annotated[float, Interval(ge=1e-6, le=1e6)] | None = None
    """Nats of error to be content with; 0.002 a dimension, at least 0.02, when absent."""
    max_bridges: Annotated[int, Interval(ge=1, le=4096)] = 32
    """Temperatures between neighbouring noise levels, at most; every round doubles them."""
    max_chains: Annotated[int, Interval(ge=16, le=1_000_000)] | None = None
    """Chains at which to give up: with all bridges, every round doubles them; four times `num_chains` when absent."""
    num_leapfrog: Annotated[int, Interval(ge=1, le=64)] = 1
    """Gradient evaluations a move: 1 is MALA; about 5 (HMC) reach further in thousands of dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_chains is not None and self.max_chains < self.num_chains:
            raise ConfigError(
                f"max_chains is {self.max_chains}; expected a number from {self.num_chains:g} to 1e+06",
                field="max_chains",
            )

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
