"""Bodies of requests and answers. Unknown fields are refused, numbers are not taken from text."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from model.config import CalibrationConfig
from model.presets import ALIASES, PRESET_SUMMARIES
from service.bodies.datasets import DATASET_NAMES
from worker.ids import ULID_PATTERN
from worker.jobs.kinds import KindName, kind_of
from worker.jobs.record import JobRecord, JobStatus
from worker.observe.redaction import redact

_JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
MODEL_ID = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
_SOME_CONFIG = {"dataset": "digits", "steps": 4400, "schedule": {"kind": "log_snr", "num_levels": 14}}
_RANDOM_SEEDS = 2**32
"""random seeds stay small enough to be typed again"""

ModelAt = Annotated[
    str,
    Field(
        max_length=64,
        examples=[MODEL_ID, f"{MODEL_ID}@2000"],
        # In the document only: what does not fit it is a model that does not exist, 404.
        json_schema_extra={"pattern": ULID_PATTERN.removesuffix("$") + "(@[0-9]{1,9})?$"},
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="`auto` takes a GPU when the trainer has one", examples=["auto"])
]


class RequestBody(BaseModel):
    """Unknown fields are refused, numbers are not taken from text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TrainRequest(RequestBody):
    """A training job: a preset, a configuration, or a configuration laid over a preset, and changes to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"preset": "digits", "name": "my first model", "seed": 0},
                {"preset": "density-2d", "dataset": "two_moons", "steps": 2000, "device": "cpu"},
                {"preset": "digits", "config": {"optimizer": {"learning_rate": 5e-5}, "log_every": 50}},
            ]
        }
    )

    preset: str | None = Field(
        None,
        description="Name of a configuration. "
        + "; ".join(f"`{name}`: {summary}" for name, summary in PRESET_SUMMARIES.items())
        + ". "
        + ", ".join(f"`{short}` is `{name}`" for short, name in ALIASES.items()),
        examples=list(PRESET_SUMMARIES),
        json_schema_extra={"enum": [*PRESET_SUMMARIES, *ALIASES, None]},
    )
    config: dict[str, Any] | None = Field(
        None,
        description="Fields of the configuration, nested as in the answer's `config`; what is absent comes from the "
        "preset, or without one from the defaults",
        examples=[{"network": {"width": 32}}],
    )
    dataset: str | None = Field(None, max_length=500, description=DATASET_NAMES, examples=["digits"])
    name: str | None = Field(None, min_length=1, max_length=100, description="For people", examples=["my first model"])
    seed: Seed | None = Field(
        None,
        description="Decides weights, batches and noise; drawn at random when absent, and always in the answer",
        examples=[0],
    )
    steps: int | None = Field(
        None, ge=1, le=100_000_000, description="All training steps; the phases keep their shares", examples=[4400]
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] | None = Field(
        None, description="`auto`: as much as the trainer's free memory holds, from 64 to 256", examples=[128, "auto"]
    )
    checkpoint_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    sample_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    calibrate: bool | None = Field(
        None,
        description="Estimate log Z of the last checkpoint at the end, for POST /log-density; the preset's when absent",
        examples=[True],
    )
    device: Device = "auto"
    num_gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one trainer that share every batch; the weights are those of one GPU, to rounding. With "
        "device `cpu`, processes",
    )


class CalibrateRequest(RequestBody):
    """An estimate of log Z of a checkpoint from both sides, which POST /log-density needs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID}]})

    model: ModelAt = Field(description="Id of a model, or `id@step`; the newest checkpoint without")
    name: str | None = Field(None, min_length=1, max_length=100, description="For people", examples=["log Z"])
    seed: Seed = Field(CalibrationConfig.seed, description="Of the chains; the same seed gives the same numbers")
    num_chains: int = Field(CalibrationConfig.num_chains, ge=16, le=65_536)
    tolerance: float | None = Field(
        CalibrationConfig.tolerance,
        ge=1e-6,
        le=1e6,
        description="Nats of error to be content with; 0.002 a dimension, at least 0.02, when absent",
        examples=[0.1],
    )
    max_bridges: int = Field(
        CalibrationConfig.max_bridges,
        ge=1,
        le=4096,
        description="Temperatures between neighbouring noise levels, at most; every round doubles them",
    )
    max_chains: int | None = Field(
        CalibrationConfig.max_chains,
        ge=16,
        le=1_000_000,
        description="Chains at which to give up: with all bridges, every round doubles them; four times `num_chains` "
        "when absent",
        examples=[4096],
    )
    num_leapfrog: int = Field(
        CalibrationConfig.num_leapfrog,
        ge=1,
        le=64,
        description="Gradient evaluations a move: 1 is MALA; about 5 (HMC) reach further in thousands of dimensions",
    )
    device: Device = "auto"


class BulkSampleRequest(RequestBody):
    """Many samples of a checkpoint into storage, as shards. Sample i of a seed is the one that POST /sample gives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID, "num_images": 50_000, "seed": 0}]})

    model: str = Field(
        max_length=64, description="Id of a model, or `id@step`; the newest checkpoint without", examples=[MODEL_ID]
    )
    name: str | None = Field(None, min_length=1, max_length=100, description="For people", examples=["for FID"])
    num_images: int = Field(ge=1, le=1_000_000, examples=[50_000])
    shard_images: int = Field(1000, ge=1, le=10_000, description="Samples of a .npy file")
    seed: Seed | None = Field(None, description="Drawn at random when absent; it is in the job's manifest")
    steps: int | None = Field(
        None, ge=0, le=1000, description="K, chain steps per level; the model's own when absent", examples=[10]
    )
    noise_scale: float | None = Field(
        None, ge=0, le=2, description="Multiplies the chain's noise; the model's own when absent", examples=[1.0]
    )
    device: Device = "auto"


class BulkShardBody(BaseModel):
    """One file of a bulk sampling."""

    name: str = Field(examples=["00000.npy"])
    num_images: int = Field(examples=[1000])


class BulkManifestBody(BaseModel):
    """What a bulk sampling made; images are uint8 pixels (N, C, H, W), vectors float32 (N, D)."""

    model: str = Field(description="`id@step`", examples=[f"{MODEL_ID}@4400"])
    seed: int = Field(examples=[0])
    num_images: int = Field(examples=[50_000])
    event_shape: list[int] = Field(examples=[[1, 8, 8]])
    num_steps: int | None = Field(description="K where the request named it", examples=[None])
    noise_scale: float | None = Field(examples=[None])
    gradient_evaluations: int = Field(description="Per sample", examples=[295])
    shards: list[BulkShardBody]


class ResumeRequest(RequestBody):
    """How a failed or cancelled job goes on."""

    steps: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="New number of all training steps; not below those done",
        examples=[8000],
    )


class TrainCheckBody(BaseModel):
    """What a training request would train."""

    config: dict[str, Any] = Field(description="The whole configuration; its seed is drawn anew when none is given")


class PresetBody(BaseModel):
    """A configuration by name."""

    name: str = Field(description="Give it as `preset` to POST /jobs/train", examples=["digits"])
    summary: str
    config: dict[str, Any] = Field(description="The whole configuration")


class PresetListBody(BaseModel):
    """All configurations that have a name."""

    presets: list[PresetBody]


class ProgressBody(BaseModel):
    """How far a job has come."""

    step: int = Field(examples=[2200])
    total_steps: int = Field(examples=[4400])
    percent: float = Field(examples=[50.0])
    steps_per_second: float | None = Field(examples=[31.5])
    eta_seconds: float | None = Field(examples=[70.0])
    queue_position: int | None = Field(
        description="1 for the job that is next; null when it does not wait", examples=[None]
    )


class JobBody(BaseModel):
    """A job."""

    id: str = Field(examples=[_JOB_ID])
    kind: KindName
    status: JobStatus = Field(examples=["running"])
    name: str | None = Field(examples=["my first model"])
    model_id: str | None = Field(
        description="The model it trains, usable from its first checkpoint on, or calibrates", examples=[MODEL_ID]
    )
    model_step: int | None = Field(description="Of a calibration: the checkpoint", examples=[None])
    seed: int | None = Field(examples=[0])
    dataset: str | None = Field(examples=["digits"])
    device: str | None = Field(examples=["auto"])
    num_gpus: int | None = Field(description="Of a training", examples=[1])
    config: dict[str, Any] | None = Field(description="The whole configuration", examples=[_SOME_CONFIG])
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None = Field(examples=[None])
    updated_at: datetime
    attempt: int = Field(description="Grows when a worker was lost and the job started again", examples=[1])
    cancel_requested: bool = Field(examples=[False])
    progress: ProgressBody
    last_loss: float | None = Field(examples=[0.0123])
    last_checkpoint: int | None = Field(description="Step of the newest committed checkpoint", examples=[2000])
    error: Annotated[str, AfterValidator(redact)] | None = Field(
        description="In words, why it failed or what ended its latest attempt", examples=[None]
    )

    @classmethod
    def of(cls, record: JobRecord, *, queue_position: int | None) -> JobBody:
        """The public view of a record."""
        kind = kind_of(record.kind)
        spec = record.spec if kind is None else kind.spec.completed(record.spec)
        config = spec.get("config")
        known = config if isinstance(config, dict) else {}
        return cls(
            **record.model_dump(include=_SHARED_FIELDS),
            progress=ProgressBody(**record.progress.model_dump(), queue_position=queue_position),
            model_step=spec.get("step"),
            seed=spec.get("seed", known.get("seed")),
            dataset=known.get("dataset"),
            device=spec.get("device"),
            num_gpus=spec.get("num_gpus"),
            config=config,
        )


_SHARED_FIELDS = set(JobBody.model_fields) & set(JobRecord.model_fields) - {"progress"}


class JobPageBody(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobBody]
    next_cursor: str | None = Field(
        description="Give it as `cursor` for the page after; null on the last", examples=[None]
    )


class LogZBody(BaseModel):
    """log of the normalizer from both sides, nats. The density's own error is `std_error`, the same for every item."""

    estimate: float = Field(description="Midway between the sides", examples=[-118.24])
    std_error: float = Field(
        description="Half the gap of the sides and their own standard errors, in quadrature", examples=[0.09]
    )
    lower: float = Field(description="Stochastic lower bound: annealed importance sampling", examples=[-118.31])
    upper: float = Field(description="Stochastic upper bound: the same walk backwards", examples=[-118.17])
    lower_std_error: float = Field(examples=[0.04])
    upper_std_error: float = Field(examples=[0.05])
    lower_effective_sample_size: float = Field(examples=[410.2])
    upper_effective_sample_size: float = Field(examples=[388.7])
    upper_start: Literal["exact", "chain"] = Field(
        description="Where the backward walk began: `exact` samples, or the ends of `chain`s, as good as those chains"
    )
    acceptance_rate: float = Field(examples=[0.74])
    num_chains: int = Field(examples=[512])
    num_bridges: int = Field(description="Temperatures between neighbouring noise levels", examples=[8])


class QuantileBody(BaseModel):
    """A share `level` of the training data has a log density below `log_density`."""

    level: float = Field(examples=[0.5])
    log_density: float = Field(examples=[17.4])


class CalibrationBody(BaseModel):
    """log Z of a checkpoint, and how its data score with it; nats, in the data's units."""

    log_z: LogZBody
    event_shape: list[int] = Field(description="Of one item: (C, H, W) or (D)", examples=[[1, 8, 8]])
    seed: int = Field(examples=[0])
    tolerance: float = Field(description="Nats between the sides that were asked for", examples=[0.13])
    converged: bool = Field(description="Whether `log_z.std_error` is within the tolerance")
    num_held_out: int = Field(
        description="Held-out items that were scored; 0 when the model's data are not known", examples=[897]
    )
    held_out_log_density: float | None = Field(
        description="Their mean log density, discrete data dequantized", examples=[17.67]
    )
    held_out_bits_per_dim: float | None = Field(
        description="null for continuous data, and when none were scored", examples=[2.6]
    )
    bin_width: float | None = Field(
        description="Spacing of the values of discrete data; null for continuous ones", examples=[0.125]
    )
    blur_std: float = Field(
        description="The density is that of the data plus Gaussian noise of this std, scaled units", examples=[0.02]
    )
    train_quantiles: list[QuantileBody] = Field(description="Of the training data's log densities")
    created_at: datetime


class CheckpointBody(BaseModel):
    """A committed checkpoint."""

    step: int = Field(examples=[4400])
    size_bytes: int = Field(examples=[812_345])
    committed_at: datetime
    calibration: CalibrationBody | None = Field(description="null until POST /jobs/calibrate, or a training, made one")


class ModelBody(BaseModel):
    """A model: what it was trained on and how, and what there is of it."""

    id: str = Field(examples=[MODEL_ID])
    name: str | None = Field(examples=["my first model"])
    dataset: str | None = Field(examples=["digits"])
    job_id: str | None = Field(description="The job that trained it; null when it was imported", examples=[_JOB_ID])
    origin: str | None = Field(
        description="Where an imported model comes from, in words; null when it was trained here", examples=[None]
    )
    created_at: datetime | None
    config: dict[str, Any] | None = Field(examples=[_SOME_CONFIG])
    checkpoints: list[CheckpointBody] = Field(description="In order of their step; /sample uses the last by default")


class ModelListBody(BaseModel):
    """All models, newest first."""

    models: list[ModelBody]


class CheckBody(BaseModel):
    """Whether one thing the service needs is there."""

    name: str = Field(examples=["redis"])
    ok: bool
    detail: str = Field(examples=["answers"])


class ReadinessBody(BaseModel):
    """Whether jobs and samples can be served now."""

    status: Literal["ready"]
    checks: list[CheckBody]


class WorkerBody(BaseModel):
    """A worker that gives signs of life, and what it says of itself."""

    kind: str = Field(description="The queue it serves", examples=["train"])
    name: str = Field(examples=["trainer@gpu-1"])
    version: str | None = Field(description="Of the program; should be the service's own", examples=["0.1.0"])
    gpus: list[str] = Field(description="NVIDIA devices of its machine", examples=[["NVIDIA H100 80GB HBM3"]])
    clock_ahead_s: float | None = Field(description="Of Redis's clock, which decides about leases", examples=[0.01])


class WorkerListBody(BaseModel):
    """All live workers, by kind and name."""

    workers: list[WorkerBody]


class HealthBody(BaseModel):
    """That the process is alive."""

    status: Literal["alive"] = "alive"


def random_seed() -> int:
    """A seed for a request that came without."""
    return secrets.randbelow(_RANDOM_SEEDS)
