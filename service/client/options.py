"""Options of the client's calls, made of the bodies of requests by `make options`: not to be edited.

Those that are left out are the service's to decide.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class TrainOptions(TypedDict, total=False):
    """Fields of POST /jobs/train."""

    config: dict[str, Any] | None
    """Fields of the configuration, nested as in the answer's `config`; what is absent comes from the preset, or without
    one from the defaults."""
    dataset: str | None
    """A built-in dataset (digits, eight_gaussians, two_moons, checkerboard, rings), the id of an uploaded one (POST
    /datasets), `s3://bucket/prefix`, `hf://owner/name:split/column`, or a path below the server's dataset folder."""
    name: str | None
    """For people."""
    seed: int | None
    """Decides weights, batches and noise; drawn at random when absent, and always in the answer."""
    steps: int | None
    """All training steps; the phases keep their shares."""
    batch_size: int | Literal["auto"] | None
    """Pairs a step; `auto`: as much as the trainer's free memory holds, from 64 to 256."""
    checkpoint_every: int | None
    """In steps."""
    sample_every: int | None
    """In steps."""
    calibrate: bool | None
    """Estimate log Z of the last checkpoint at the end, for POST /log-density; the preset's when absent."""
    device: Literal["auto", "cpu", "cuda"] | None
    """`auto` takes a GPU when the trainer has one."""
    num_gpus: int | None
    """GPUs of one trainer that share every batch; the weights are those of one GPU, to rounding. With device `cpu`,
    processes."""
    keep_last: int | None
    """Checkpoints that are kept at least, the newest, as are calibrated ones and those that a job needs; the service's
    own number when absent."""
    keep_every: int | None
    """Of the older checkpoints, every so manieth is kept, by its step; 1 keeps them all, and the service's own number
    holds when absent."""


class CalibrateOptions(TypedDict, total=False):
    """Fields of POST /jobs/calibrate."""

    name: str | None
    """For people."""
    seed: int | None
    """Of the chains; the same seed gives the same numbers."""
    num_chains: int | None
    """Chains walked side by side."""
    tolerance: float | None
    """Nats of error to be content with; 0.002 a dimension, at least 0.02, when absent."""
    max_bridges: int | None
    """Temperatures between neighbouring noise levels, at most; every round doubles them."""
    max_chains: int | None
    """Chains at which to give up: with all bridges, every round doubles them; four times `num_chains` when absent."""
    num_leapfrog: int | None
    """Gradient evaluations a move: 1 is MALA; about 5 (HMC) reach further in thousands of dimensions."""
    device: Literal["auto", "cpu", "cuda"] | None
    """`auto` takes a GPU when the trainer has one."""


class BulkOptions(TypedDict, total=False):
    """Fields of POST /jobs/sample."""

    name: str | None
    """For people."""
    shard_images: int | None
    """Samples of a .npy file."""
    seed: int | None
    """Drawn at random when absent; X-Seed, or the job's manifest, says which."""
    steps: int | None
    """K, chain steps per level; the model's own when absent."""
    noise_scale: float | None
    """Multiplies the chain's noise; the model's own when absent."""
    device: Literal["auto", "cpu", "cuda"] | None
    """`auto` takes a GPU when the trainer has one."""


class SampleOptions(TypedDict, total=False):
    """Fields of POST /sample."""

    seed: int | None
    """Drawn at random when absent; X-Seed, or the job's manifest, says which."""
    steps: int | None
    """K, chain steps per level; the model's own when absent."""
    noise_scale: float | None
    """Multiplies the chain's noise; the model's own when absent."""
    precision: Literal["float32", "bfloat16"] | None
    """Of the network's arithmetic; bfloat16 is faster on some hardware and not exact."""


class DensityOptions(TypedDict, total=False):
    """Fields of POST /log-density."""

    path: bool | None
    """Also the second, independent estimate along the diffusion path; slower."""
    num_paths: int | None
    """Paths it averages; items times paths are at most 512."""
    seed: int | None
    """Of the paths; drawn at random when absent, always in the answer."""
