"""Options of the client's calls. `make options` writes them from the bodies of requests: do not edit.

The service uses its defaults for options that are left out.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class TrainOptions(TypedDict, total=False):
    """Fields of POST /jobs/train."""

    config: dict[str, Any] | None
    """Fields of the configuration, nested as in the answer's `config`; absent fields have the preset's values, or the
    defaults when there is no preset."""
    dataset: str | None
    """A built-in dataset (digits, mnist5k, photo-crops, emoji, eight_gaussians, two_moons, checkerboard, rings), the id
    of an uploaded one (POST /datasets), `s3://bucket/prefix`, `hf://owner/name:split/column/labels`, or a path below
    the server's dataset folder."""
    name: str | None
    """A name for people."""
    seed: int | None
    """Seed of the weights, batches and noise; drawn at random when absent, and always in the answer."""
    conditional: bool | None
    """Whether to train on the data and their labels together, for samples of a class and for POST /classify; the
    dataset must have labels."""
    label_column: str | None
    """The column of a .csv, or the array of a .npz, that holds the class of each item, of a dataset in the server's
    folder or a bucket; uploads name theirs."""
    steps: int | None
    """All training steps; the phases keep their shares."""
    batch_size: int | Literal["auto"] | None
    """Pairs per training step; `auto` takes as many as the trainer's free memory holds, from 64 to 256."""
    checkpoint_every: int | None
    """Training steps between two checkpoints."""
    sample_every: int | None
    """Training steps between two sample grids."""
    calibrate: bool | None
    """Whether to estimate log Z of the last checkpoint at the end, which POST /log-density needs; the preset decides
    when absent."""
    tune: bool | None
    """Whether to measure at the end, in at most a tenth of the time, what samples cost and how good they are; the
    preset decides when absent."""
    minutes: float | None
    """Time that the training may take, with preset `images` only, which is planned to end within it; 15 when absent."""
    device: Literal["auto", "cpu", "cuda"] | None
    """Where to compute; `auto` takes a GPU when the trainer has one."""
    num_gpus: int | None
    """Number of GPUs of one trainer that share every batch; the weights are those of one GPU, to rounding. With device
    `cpu` it is the number of processes."""
    num_nodes: int | None
    """Number of trainers, on machines of their own, that work on it together, each with `num_gpus`."""
    keep_last: int | None
    """Checkpoints that are kept at least, the newest, as are calibrated ones and those that a job needs; the service's
    own number when absent."""
    keep_every: int | None
    """Of the older checkpoints, one in this many is kept, by its step; 1 keeps them all, and the service's own number
    holds when absent."""


class CalibrateOptions(TypedDict, total=False):
    """Fields of POST /jobs/calibrate."""

    name: str | None
    """A name for people."""
    seed: int | None
    """The seed of the chains; the same seed gives the same numbers."""
    num_chains: int | None
    """The number of chains that are walked side by side."""
    tolerance: float | None
    """The error of log Z, in nats, at which calibration ends; when absent, 0.002 per dimension but at least 0.02."""
    max_bridges: int | None
    """The largest number of temperatures between neighbouring noise levels; every round doubles them up to it."""
    max_chains: int | None
    """The largest number of chains in total: once all temperatures are used, every round doubles the chains up to it;
    four times `num_chains` when absent."""
    num_leapfrog: int | None
    """The number of gradient evaluations per move: 1 is MALA, several (HMC) reach further."""
    device: Literal["auto", "cpu", "cuda"] | None
    """Where to compute; `auto` takes a GPU when the trainer has one."""


class TuneOptions(TypedDict, total=False):
    """Fields of POST /jobs/tune."""

    name: str | None
    """A name for people."""
    seed: int | None
    """The seed of the samples; the same seed gives the same samples."""
    num_samples: int | None
    """The number of samples that are drawn with each setting."""
    max_steps: int | None
    """The largest number of chain steps per level that is tried, beside the model's own, among 0, 1, 2, 4, …."""
    max_seconds: float | None
    """The time after which no other setting is measured; when absent, all are."""
    device: Literal["auto", "cpu", "cuda"] | None
    """Where to compute; `auto` takes a GPU when the trainer has one."""


class BulkOptions(TypedDict, total=False):
    """Fields of POST /jobs/sample."""

    name: str | None
    """A name for people."""
    shard_images: int | None
    """Number of samples in each .npy file."""
    seed: int | None
    """Seed of the samples, drawn at random when absent; the header X-Seed or the job's manifest says which it was."""
    quality: Literal["draft", "standard", "best"] | None
    """How good samples are to be for what they cost, by the measured settings of the checkpoint: `draft` is the
    cheapest, `best` the nearest to the data, and `standard`, the default, as near to them within the noise for fewer
    evaluations. A checkpoint that was not tuned has its model's own settings; the answer says which were used. Not
    together with `steps`."""
    steps: int | None
    """K, the chain steps per noise level, from the model's own start; `quality` decides when absent."""
    noise_scale: float | None
    """Factor on the chain's noise; the model's own when absent."""
    labels: list[Any] | None
    """What the samples of a conditional model are to be of; they take these in turn, so that one serves all. Each is
    the name or index of a class, `any_of` or `all_of` several, or null for any class. When absent, every class in turn;
    GET /models/{id} lists the classes."""
    guidance: float | None
    """The weight w ≥ 0 with which labels are exaggerated: density ∝ p(x) p(label | x)^(1 + w); 0, a class as it is,
    when absent. Only for conditional models."""
    adjusted: bool | None
    """Whether a Metropolis test accepts or rejects each step of the chains; when absent, as the model's own chains do,
    and true if labels are multiplied (`all_of`), which unadjusted chains do not draw from."""
    device: Literal["auto", "cpu", "cuda"] | None
    """Where to compute; `auto` takes a GPU when the trainer has one."""


class SampleOptions(TypedDict, total=False):
    """Fields of POST /sample."""

    seed: int | None
    """Seed of the samples, drawn at random when absent; the header X-Seed or the job's manifest says which it was."""
    quality: Literal["draft", "standard", "best"] | None
    """How good samples are to be for what they cost, by the measured settings of the checkpoint: `draft` is the
    cheapest, `best` the nearest to the data, and `standard`, the default, as near to them within the noise for fewer
    evaluations. A checkpoint that was not tuned has its model's own settings; the answer says which were used. Not
    together with `steps`."""
    steps: int | None
    """K, the chain steps per noise level, from the model's own start; `quality` decides when absent."""
    noise_scale: float | None
    """Factor on the chain's noise; the model's own when absent."""
    labels: list[Any] | None
    """What the samples of a conditional model are to be of; they take these in turn, so that one serves all. Each is
    the name or index of a class, `any_of` or `all_of` several, or null for any class. When absent, every class in turn;
    GET /models/{id} lists the classes."""
    guidance: float | None
    """The weight w ≥ 0 with which labels are exaggerated: density ∝ p(x) p(label | x)^(1 + w); 0, a class as it is,
    when absent. Only for conditional models."""
    adjusted: bool | None
    """Whether a Metropolis test accepts or rejects each step of the chains; when absent, as the model's own chains do,
    and true if labels are multiplied (`all_of`), which unadjusted chains do not draw from."""
    precision: Literal["float32", "bfloat16"] | None
    """Precision of the network's arithmetic; bfloat16 is faster on some hardware, not exact."""


class DensityOptions(TypedDict, total=False):
    """Fields of POST /log-density."""

    path: bool | None
    """Whether to make the second, independent estimate along the diffusion path too, which takes longer."""
    num_paths: int | None
    """Number of paths that `path` averages; items times paths are at most 512."""
    seed: int | None
    """Seed of the paths; drawn at random when absent, and always in the answer."""


class ClassifyOptions(TypedDict, total=False):
    """Fields of POST /classify."""

    noise_std: float | None
    """Standard deviation of the Gaussian noise that the items are known to hold, in scaled units (image values, or each
    coordinate's own standard deviation); the noise level that comes nearest is asked."""
