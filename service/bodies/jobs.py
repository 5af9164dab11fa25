"""Bodies of requests for jobs, and of answers about them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from model.config import CalibrationConfig, TrainConfig
from model.presets import ALIASES, PRESET_SUMMARIES
from service.bodies.datasets import DATASET_NAMES
from service.bodies.fields import (
    JOB_ID,
    MODEL_ID,
    SOME_CONFIG,
    ChainSteps,
    Device,
    DrawnSeed,
    ModelAt,
    Name,
    NoiseScale,
    PartialTrainConfig,
    RequestBody,
    SchemaOf,
    fields_of,
    overrides_of,
)
from worker.jobs.kinds import KindName, kind_of
from worker.jobs.record import JobRecord, JobStatus
from worker.observe.redaction import redact


class _TrainingStart(RequestBody):
    """What a training begins with, and its name."""

    preset: str | None = Field(
        None,
        description="Name of a configuration. "
        + "; ".join(f"`{name}`: {summary}" for name, summary in PRESET_SUMMARIES.items())
        + ". "
        + ", ".join(f"`{short}` is `{name}`" for short, name in ALIASES.items()),
        examples=list(PRESET_SUMMARIES),
        json_schema_extra={"enum": [*PRESET_SUMMARIES, *ALIASES, None]},
    )
    config: Annotated[dict[str, Any], SchemaOf(PartialTrainConfig)] | None = Field(
        None,
        description="Fields of the configuration, nested as in the answer's `config`; what is absent comes from the "
        "preset, or without one from the defaults",
        examples=[{"network": {"width": 32}}],
    )
    dataset: str | None = Field(None, max_length=500, description=DATASET_NAMES, examples=["digits"])
    name: Name = Field(None, examples=["my first model"])


_OVERRIDES: Any = overrides_of(
    TrainConfig,
    _TrainingStart,
    seed=Field(
        None,
        description="Decides weights, batches and noise; drawn at random when absent, and always in the answer",
        examples=[0],
    ),
    steps=Field(None, description="All training steps; the phases keep their shares", examples=[4400]),
    batch_size=Field(
        None,
        description="Pairs a step; `auto`: as much as the trainer's free memory holds, from 64 to 256",
        examples=[128, "auto"],
    ),
    checkpoint_every=Field(None, description="In steps", examples=[1000]),
    sample_every=Field(None, description="In steps", examples=[1000]),
    calibrate=Field(
        None,
        description="Estimate log Z of the last checkpoint at the end, for POST /log-density; the preset's when absent",
        examples=[True],
    ),
)


class TrainRequest(_OVERRIDES, _TrainingStart):  # type: ignore[misc]
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

    device: Device = "auto"
    num_gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one trainer that share every batch; the weights are those of one GPU, to rounding. With "
        "device `cpu`, processes",
    )
    keep_last: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Checkpoints that are kept at least, the newest, as are calibrated ones and those that a job "
        "needs; the service's own number when absent",
        examples=[10],
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Of the older checkpoints, every so manieth is kept, by its step; 1 keeps them all, and the "
        "service's own number holds when absent",
        examples=[10],
    )


class _Calibrated(RequestBody):
    """What a calibration is of, and its name."""

    model: ModelAt = Field(description="Id of a model, or `id@step`; the newest checkpoint without")
    name: Name = Field(None, examples=["log Z"])


_CALIBRATION: Any = fields_of(CalibrationConfig, _Calibrated, tolerance=[0.1], max_chains=[4096])


class CalibrateRequest(_CALIBRATION, _Calibrated):  # type: ignore[misc]
    """An estimate of log Z of a checkpoint from both sides, which POST /log-density needs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID}]})

    device: Device = "auto"


class BulkSampleRequest(RequestBody):
    """Many samples of a checkpoint into storage, as shards. Sample i of a seed is the one that POST /sample gives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID, "num_images": 50_000, "seed": 0}]})

    model: str = Field(
        max_length=64, description="Id of a model, or `id@step`; the newest checkpoint without", examples=[MODEL_ID]
    )
    name: Name = Field(None, examples=["for FID"])
    num_images: int = Field(ge=1, le=1_000_000, examples=[50_000])
    shard_images: int = Field(1000, ge=1, le=10_000, description="Samples of a .npy file")
    seed: DrawnSeed = None
    steps: ChainSteps = None
    noise_scale: NoiseScale = None
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

    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] = Field(
        description="The whole configuration; its seed is drawn anew when none is given", examples=[SOME_CONFIG]
    )


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

    id: str = Field(examples=[JOB_ID])
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
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig, CalibrationConfig)] | None = Field(
        description="The whole configuration", examples=[SOME_CONFIG]
    )
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
