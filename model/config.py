"""Configurations of a training run, which are frozen, checked when made, and written as plain JSON.

A field is described here and nowhere else, by its type, its range, its default and the text below it, which says what
it means. The OpenAPI document, requests, the command's options and the page's form are made from these descriptions.
The module imports neither torch nor pydantic, so that whoever reads a configuration loads neither. Numbers marked DRL
come from Gao et al., "Learning Energy-Based Models by Diffusion Recovery Likelihood" (ICLR 2021) or its release.
Defaults are DRL's, except where `make ablation` measured better ones; the paper's exact recipes are in `model.presets`.
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
"""The dataset of imported weights of which it is not known what they were trained on."""

ScheduleKind = Literal["published", "linear_betas", "log_snr"]
NetworkKind = Literal["resnet", "unet", "mlp"]
Activation = Literal["leaky_relu", "silu"]
EnergyForm = Literal["step_size", "gaussian", "log_snr"]
ChainStart = Literal["neighbour", "predictor", "multistep"]
KernelKind = Literal["langevin", "mala", "hmc"]
ScoreMatchingForm = Literal["recovery", "marginal", "dual"]
Precision = Literal["float32", "bfloat16"]
AUTO_BATCH_SIZES = (64, 256)
"""The least and the largest number that `batch_size` 'auto' becomes, which are those of DRL's experiments."""
_ADJUSTED_ACCEPTANCE = 0.7
"""What `target_acceptance` 'auto' is for adjusted kernels: somewhat above the optima for many dimensions, 0.57 of MALA
(Roberts and Rosenthal 1998) and 0.65 of HMC (Beskos et al. 2013)."""

_LogSnr = Annotated[float, Interval(ge=-20, le=20)]
_Width = Annotated[int, Interval(ge=0, le=4096)]
_ChainSteps = Annotated[int, Interval(ge=0, le=10_000)]
_BatchSize = Annotated[int, Interval(ge=1, le=65_536)]
_Steps = Annotated[int, Interval(ge=1, le=100_000_000)]
_Side = Annotated[int, Interval(ge=MIN_SIDE, le=MAX_SIDE)]
_LearningRate = Annotated[float, Interval(ge=1e-8, le=1.0)]
_Acceptance = Annotated[float, Interval(ge=0.1, le=0.99)]
_Weight = Annotated[float, Interval(ge=0.0, le=1e6)]
FULL_COVARIANCE_MAX_DIM = 1024
"""The largest dimension of data of which a base has the covariance; beyond, eigenvectors would outgrow the network."""
Seed = Annotated[int, Interval(ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """The noise levels t = 0 (the cleanest) … T−1, above which x_T is pure noise."""

    path: ClassVar[str] = "schedule."

    kind: ScheduleKind = "published"
    """How the noise grows from level to level: by DRL's rule for its T6 (`published`), by every one of its 1000 betas
    (`linear_betas`), or evenly in log-SNR (`log_snr`)."""
    num_levels: Annotated[int, Interval(ge=2, le=1000)] = 6
    """T, the number of noise levels."""
    log_snr_max: _LogSnr = 7.0
    """The log-SNR log(ᾱ²/σ̄²) of x_0, in nats; `log_snr` only."""
    log_snr_min: _LogSnr = -7.0
    """The log-SNR log(ᾱ²/σ̄²) of x_{T−1}, in nats; `log_snr` only."""

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
    """The network net(y, t), whose output, scaled and negated, is the energy or its correction."""

    path: ClassVar[str] = "network."

    kind: NetworkKind = "resnet"
    """The kind of network: `resnet`, and `unet`, which draws too, take images; `mlp` takes vectors."""
    width: Annotated[int, Interval(ge=4, le=4096)] = 128
    """The number of channels at full resolution (DRL: ch), or of units in a hidden layer of the MLP."""
    multipliers: Annotated[tuple[Annotated[int, Interval(ge=1, le=16)], ...], Len(1, 8)] = (1, 2, 2, 2)
    """The factor of `width` at each resolution, the full one first; 2×2 pooling leads to the next. Not for `mlp`."""
    num_blocks: Annotated[int, Interval(ge=1, le=64)] = 8
    """The number of residual blocks at each resolution (DRL: N), or of the MLP."""
    activation: Activation = "leaky_relu"
    """The nonlinearity between layers."""
    spectral_norm: bool = True
    """Normalize every layer by its largest singular value (DRL). Without this, layers start with the gains of
    `model.networks.blocks`."""
    coordinates: bool = False
    """Add two input channels that hold the row and the column of each pixel, for centred objects. Not for `mlp`."""
    level_width: _Width = 0
    """The number of units of the level embedding; 0 stands for four times `width` (DRL)."""
    fourier_features: _Width = 0
    """The number of random frequencies whose sines and cosines are added to the input, damped where the noise hides
    them. `mlp` only."""
    max_frequency: Annotated[float, Interval(ge=1, le=1e5)] = 100.0
    """The largest of the random frequencies, which are log-uniform from 1, in radians per unit of the network's input.
    `mlp` only."""
    head_width: _Width = 0
    """The width of a dense layer that reads the features of all positions; 0 sums them over space instead (DRL).
    Not for `mlp`."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Config):
    """The Markov chain that draws y⁻ from p(y | x_{t+1}), in training and, by default, in sampling."""

    path: ClassVar[str] = "chain."

    kernel: KernelKind = "langevin"
    """How a step is made: by unadjusted Langevin (DRL), or with a Metropolis test by MALA or HMC."""
    num_steps: _ChainSteps = 30
    """K, the number of steps of a chain; 0 draws from the normal approximation of the conditional (DRL T1k)."""
    step_size: Annotated[float, Interval(ge=1e-6, le=10.0)] = 2e-4**0.5
    """The step size b: with energy `step_size`, s_t² = c_t² b² σ_{t+1}² (DRL: b² = 2e-4); with the other energies, s_t
    is b widths of the conditional."""
    start: ChainStart = "neighbour"
    """Where a chain starts: at x_{t+1} (`neighbour`, DRL), or at a draw from the Gaussian that its score predicts
    (`predictor`). In sampling, `multistep` extrapolates this from the two last levels; in training, it is the same."""
    target_acceptance: _Acceptance | Literal["auto"] | None = "auto"
    """The acceptance rate to which training adapts the step size of every level; unset keeps `step_size`. `mala` and
    `hmc` only, for which `auto` is 0.7."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel == "langevin" and self.target_acceptance not in (None, "auto"):
            raise ConfigError(
                "chain.target_acceptance is set but kernel 'langevin' accepts every step; use 'mala'",
                field="chain.target_acceptance",
            )

    @property
    def is_adjusted(self) -> bool:
        """Whether the chain has steps, each of which a Metropolis test accepts or rejects."""
        return self.kernel != "langevin" and self.num_steps > 0

    @property
    def adapts_to(self) -> float | None:
        """The acceptance rate to which step sizes are adapted, with `auto` decided; None if they stay as they are."""
        if not self.is_adjusted:
            return None
        return _ADJUSTED_ACCEPTANCE if self.target_acceptance == "auto" else self.target_acceptance


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How samples are drawn unless a request says otherwise, with the kernel and the step sizes of the chain."""

    path: ClassVar[str] = "sampling."

    num_steps: _ChainSteps = 30
    """The number of chain steps at every level."""
    noise_scale: Annotated[float, Interval(ge=0.0, le=2.0)] = 1.0
    """The factor by which the noise injected by an unadjusted kernel is multiplied; DRL publishes with 0.99."""
    start: ChainStart = "neighbour"
    """Where the chain of each level starts, as in `chain.start`."""
    adjusted: bool | None = None
    """Whether a Metropolis test decides on each step (MALA, else Langevin); unset does as `chain.kernel` does."""
    denoise: bool = False
    """Return the expected data given x_0 (Tweedie 1956) in place of x_0, in which noise of std σ̄_0 remains."""


def sampling_kernel(chain: ChainConfig, sampling: SamplingConfig) -> KernelKind:
    """Return the kernel by which samples are drawn."""
    is_own = sampling.adjusted in (None, chain.kernel != "langevin")
    return chain.kernel if is_own else "mala" if sampling.adjusted else "langevin"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Adam with a linear warm-up, optional cosine decay to zero and an exponential moving average of the weights."""

    path: ClassVar[str] = "optimizer."

    learning_rate: _LearningRate = 1e-4
    """Adam's learning rate after the warm-up, in the steps of recovery likelihood."""
    beta1: Annotated[float, Interval(ge=0.0, le=0.999)] = 0.9
    """The decay per step of Adam's mean of the gradients."""
    beta2: Annotated[float, Interval(ge=0.0, le=0.99999)] = 0.999
    """The decay per step of Adam's mean of the squared gradients."""
    warmup_steps: Annotated[int, Interval(ge=0, le=10_000_000)] = 1000
    """The number of steps over which the learning rate grows linearly from zero."""
    cosine_decay: bool = False
    """Let the learning rate decay to zero over a phase; otherwise it is constant after the warm-up (DRL)."""
    max_gradient_norm: Annotated[float, Interval(ge=1e-6, le=1e9)] | None = 1.0
    """The norm, over all parameters together, to which larger gradients are scaled down; unset never scales (DRL)."""
    ema_decay: Annotated[float, Interval(ge=0.0, le=0.999999)] = 0.999
    """The decay per step of the moving average of the weights; 0 samples from the weights as they are."""


@dataclass(frozen=True, kw_only=True)
class ScoreMatchingConfig(Config):
    """A cheap start of training by score matching on the energy's gradient, before the chain takes over."""

    path: ClassVar[str] = "score_matching."

    steps: Annotated[int, Interval(ge=0, le=100_000_000)] = 0
    """The number of leading training steps that use score matching; all steps give the score-matching form of T1k."""
    batch_size: _BatchSize = 256
    """The number of events in a step of score matching."""
    form: ScoreMatchingForm = "recovery"
    """What is matched: DRL's normal approximation of the conditional (`recovery`), y_t itself by denoising score
    matching (`marginal`), or the same for x_λ at a continuous log-SNR λ and ∂E/∂λ too, which ties the levels together
    and fixes log Z near 0 (`dual`, energy `log_snr` only)."""
    evenness: Annotated[float, Interval(ge=0.0, le=1.0)] = 1.0
    """How evenly errors count along the principal directions of the data: all alike (1), or as pixels do (0), by which
    what a picture shows at large counts more than its grain. `marginal` only."""
    noise_contrast: _Weight = 0.0
    """The weight of a logistic loss between x_λ and draws of the widened Gaussian base, which raises the energy where
    no data fall, since score matching says nothing there. `dual` only."""
    level_classification_weight: _Weight = 0.0
    """The weight of a logistic loss that tells the level of x_t from a neighbouring one by their energies, which ties
    the levels together as `dual` does. `marginal` only."""
    low_noise_tilt: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.0
    """The tilt of the density ∝ (λ − min)^tilt with which log-SNRs λ are drawn. `dual` only."""
    learning_rate: _LearningRate = 1e-3
    """Adam's learning rate after the warm-up, in the steps of score matching."""
    recovery_weight: _Weight = 0.0
    """The weight of the score-matching loss, added to the contrastive loss in the steps after the start; it is taken on
    about as many events of the batch as `batch_size` here says."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Everything that decides, given the data, with which weights a training run ends."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    energy: EnergyForm = "step_size"
    """The form of the energy: −net/s_t² (`step_size`, DRL), a diffused Gaussian fit of the data that the network
    corrects (`gaussian`), or the same with the Gaussian normalized, as a function of a continuous log-SNR
    (`log_snr`)."""
    base_components: Annotated[int, Interval(ge=1, le=256)] = 1
    """The number of Gaussians in the base of the energy; several form a mixture, which is fit to the data before
    training. `log_snr` only."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    score_matching: ScoreMatchingConfig = field(default_factory=ScoreMatchingConfig)
    dataset: str = "digits"
    """The data to train on: a built-in name, the id of an uploaded dataset, or an address that the trainer can read."""
    label_column: str | None = None
    """The column that holds the items' classes, if `dataset` is a .csv or .npz in the server's folder or a bucket."""
    steps: _Steps = 100_000
    """The number of all training steps, which includes the score-matching start."""
    conditional: bool = False
    """Train one model of the data and their labels together, which draws samples of a class and classifies. The dataset
    must have labels."""
    classification_weight: _Weight = 0.1
    """The weight of −log p(label | x_t), added to the loss of either phase. `conditional` only."""
    batch_size: _BatchSize | Literal["auto"] = 256
    """The number of pairs in a step. `auto` stands for what the memory found at the start holds at once, a power of two
    from 64 to 256, DRL's range, and decides `microbatch_size` too; it is decided once and kept with the checkpoints."""
    microbatch_size: _BatchSize | None = None
    """The number of rows of a batch, in either phase, that are in memory at once; their gradients add up to that of the
    whole batch, to rounding. Unset takes all rows at once."""
    precision: Precision = "float32"
    """The precision of the network's layers in training; positions, energies, losses, weights and moments are float32
    either way."""
    seed: Seed = 0
    """The seed that decides weights, batches and noise."""
    shared_noise: bool = True
    """Use one ε for both x_t and x_{t+1} of a contrastive pair, which keeps both marginals (Zhu et al. 2024); DRL draws
    two."""
    energy_penalty: _Weight = 0.0
    """The weight of the squared energies that are added to the contrastive loss, both on the network's output scale
    (Du & Mordatch 2019); 0 in DRL. Energy `step_size` only."""
    max_deviation: Annotated[float, Interval(ge=1.0, le=1e30)] | None = 1e4
    """The most robust standard deviations that a value of a vector may lie from its column's median; other data are
    refused, since columns are divided by their spread, which one far value would decide. Unset takes any value."""
    image_size: tuple[_Side, _Side] | None = None
    """The (height, width) to which images are brought when they are read: they are cropped around the centre to these
    proportions, then resized (`model.intake.framing`). Unset takes images as they are, which must be of one size."""
    horizontal_flips: bool = False
    """Mirror half of the training images."""
    dequantize: bool = False
    """Add uniform noise of one bin to discrete data, so that they have a density (Theis et al. 2016)."""
    affine_jitter: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.0
    """The largest random shift of training images, in pixels; turns and stretches grow with it
    (`model.data.augmentation`)."""
    log_every: _Steps = 20
    """The number of steps between two points of the training's curves."""
    sample_every: _Steps = 1000
    """The number of steps between two previews, which are samples drawn during training."""
    checkpoint_every: _Steps = 1000
    """The number of steps between two checkpoints."""
    num_preview_samples: Annotated[int, Interval(ge=1, le=256)] = 64
    """The number of samples in a preview."""
    calibrate: bool = False
    """Estimate log Z of the last checkpoint at the end of training, so that it answers with densities."""
    tune: bool = True
    """Measure at the end, in at most a tenth of the time, what samples cost, and choose `draft` to `best` by it."""

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
        """`batch_size` as a number. Raises ConfigError if it is 'auto' and has not been decided yet."""
        if isinstance(self.batch_size, str):
            raise ConfigError("batch_size is 'auto'; it becomes a number when training starts")
        return self.batch_size

    @property
    def largest_batch_size(self) -> int:
        """The largest batch size that either phase can have."""
        recovery = AUTO_BATCH_SIZES[1] if isinstance(self.batch_size, str) else self.batch_size
        return max(recovery, self.score_matching.batch_size if self.score_matching.steps else 0)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(Config):
    """How log Z of a checkpoint is estimated from both sides (`model.densities.density.calibrate`)."""

    seed: Seed = 0
    """The seed of the chains; the same seed gives the same numbers."""
    num_chains: Annotated[int, Interval(ge=16, le=65_536)] = 512
    """The number of chains that are walked side by side."""
    tolerance: Annotated[float, Interval(ge=1e-6, le=1e6)] | None = None
    """The error of log Z, in nats, at which calibration ends; when absent, 0.002 per dimension but at least 0.02."""
    max_bridges: Annotated[int, Interval(ge=1, le=4096)] = 32
    """The largest number of temperatures between neighbouring noise levels; every round doubles them up to it."""
    max_chains: Annotated[int, Interval(ge=16, le=1_000_000)] | None = None
    """The largest number of chains in total: once all temperatures are used, every round doubles the chains up to it;
    four times `num_chains` when absent."""
    num_leapfrog: Annotated[int, Interval(ge=1, le=64)] = 5
    """The number of gradient evaluations per move: 1 is MALA, several (HMC) reach further."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_chains is not None and self.max_chains < self.num_chains:
            raise ConfigError(
                f"max_chains is {self.max_chains}; expected a number from {self.num_chains:g} to 1e+06",
                field="max_chains",
            )

    @property
    def most_chains(self) -> int:
        """`max_chains`, or the number that it stands for when absent."""
        return 4 * self.num_chains if self.max_chains is None else self.max_chains

    @property
    def max_rounds(self) -> int:
        """The number of rounds until first `max_bridges` and then `most_chains` are reached."""
        return self._bridging_rounds + math.ceil(math.log2(self.most_chains / self.num_chains))

    def work(self, rounds: int) -> int:
        """Return the cost of the first `rounds` rounds, in walks of `num_chains` chains over one bridge per level.

        A round with more bridges begins anew; a round with more chains walks as many chains again as there are.
        """
        bridging = min(rounds, self._bridging_rounds)
        return (1 << bridging) - 1 + (1 << bridging - 1) * ((1 << rounds - bridging) - 1)

    @property
    def _bridging_rounds(self) -> int:
        return 1 + math.ceil(math.log2(self.max_bridges))
