"""The bodies of the requests that make or change jobs, and of the answers about jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from model.config import CalibrationConfig, TrainConfig
from model.events import HealthEvent
from model.frontier import TuneConfig
from model.planning import DEFAULT_MINUTES
from model.presets import ALIASES, PRESET_SUMMARIES
from service.bodies.datasets import DATASET_NAMES
from service.bodies.fields import (
    JOB_ID,
    MODEL_ID,
    SOME_CONFIG,
    Adjusted,
    AskedQuality,
    ChainSteps,
    CompositionBody,
    Device,
    DrawnSeed,
    Guidance,
    Labels,
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
    """The fields of a training request that say what the training starts from, and its name."""

    preset: str | None = Field(
        None,
        description="Name of the configuration to start from. "
        + "; ".join(f"`{name}`: {summary}" for name, summary in PRESET_SUMMARIES.items())
        + ". "
        + ", ".join(f"`{short}` is `{name}`" for short, name in ALIASES.items()),
        examples=list(PRESET_SUMMARIES),
        json_schema_extra={"enum": [*PRESET_SUMMARIES, *ALIASES, None]},
    )
    config: Annotated[dict[str, Any], SchemaOf(PartialTrainConfig)] | None = Field(
        None,
        description="Fields of the configuration, nested as in the answer's `config`; absent fields have the preset's "
        "values, or the defaults when there is no preset",
        examples=[{"network": {"width": 32}}],
    )
    dataset: str | None = Field(None, max_length=500, description=DATASET_NAMES, examples=["digits"])
    name: Name = Field(None, examples=["my first model"])


_OVERRIDES: Any = overrides_of(
    TrainConfig,
    _TrainingStart,
    seed=Field(
        None,
        description="Seed of the weights, batches and noise; drawn at random when absent, and always in the answer",
        examples=[0],
    ),
    conditional=Field(
        None,
        description="Whether to train on the data and their labels together, for samples of a class and for POST "
        "/classify; the dataset must have labels",
        examples=[True],
    ),
    label_column=Field(
        None,
        description="The column of a .csv, or the array of a .npz, that holds the class of each item, of a dataset in "
        "the server's folder or a bucket; uploads name theirs",
        examples=["kind"],
    ),
    steps=Field(None, description="All training steps; the phases keep their shares", examples=[4400]),
    batch_size=Field(
        None,
        description="Pairs per training step; `auto` takes as many as the trainer's free memory holds, from 64 to 256",
        examples=[128, "auto"],
    ),
    checkpoint_every=Field(None, description="Training steps between two checkpoints", examples=[1000]),
    sample_every=Field(None, description="Training steps between two sample grids", examples=[1000]),
    calibrate=Field(
        None,
        description="Whether to estimate log Z of the last checkpoint at the end, which POST /log-density needs; the "
        "preset decides when absent",
        examples=[True],
    ),
    tune=Field(
        None,
        description="Whether to measure at the end, in at most a tenth of the time, what samples cost and how good "
        "they are; the preset decides when absent",
        examples=[True],
    ),
)


class TrainRequest(_OVERRIDES, _TrainingStart):  # type: ignore[misc]
    """A request to train a model from a preset, a configuration, or a configuration laid over a preset.

    The other fields change single values of that configuration.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"preset": "digits", "name": "my first model", "seed": 0},
                {"preset": "images", "dataset": "mnist5k", "minutes": 15},
                {"preset": "density-2d", "dataset": "two_moons", "steps": 2000, "device": "cpu"},
                {"preset": "digits", "config": {"optimizer": {"learning_rate": 5e-5}, "log_every": 50}},
            ]
        }
    )

    minutes: float | None = Field(
        None,
        ge=0.1,
        le=10_080,
        description="Time that the training may take, with preset `images` only, which is planned to end within it; "
        f"{DEFAULT_MINUTES:g} when absent",
        examples=[15],
    )
    device: Device = "auto"
    num_gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of GPUs of one trainer that share every batch; the weights are those of one GPU, to "
        "rounding. With device `cpu` it is the number of processes",
    )
    num_nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of trainers, on machines of their own, that work on it together, each with `num_gpus`",
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
        description="Of the older checkpoints, one in this many is kept, by its step; 1 keeps them all, and the "
        "service's own number holds when absent",
        examples=[10],
    )


class _Calibrated(RequestBody):
    """The fields of a calibration request that say which checkpoint it is about, and its name."""

    model: ModelAt = Field(description="Id of a model, or `id@step`; without a step its newest checkpoint")
    name: Name = Field(None, examples=["log Z"])


_CALIBRATION: Any = fields_of(CalibrationConfig, _Calibrated, tolerance=[0.1], max_chains=[4096])


class CalibrateRequest(_CALIBRATION, _Calibrated):  # type: ignore[misc]
    """A request to estimate log Z of a checkpoint from both sides, which POST /log-density needs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID}]})

    device: Device = "auto"


class _Tuned(RequestBody):
    """The fields of a tuning request that say which checkpoint it is about, and its name."""

    model: ModelAt = Field(description="Id of a model, or `id@step`; without a step its newest checkpoint")
    name: Name = Field(None, examples=["frontier"])


_TUNING: Any = fields_of(TuneConfig, _Tuned, max_seconds=[60.0])


class TuneRequest(_TUNING, _Tuned):  # type: ignore[misc]
    """A request to measure what samples of a checkpoint cost, and to choose `draft`, `standard` and `best` by it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID}]})

    device: Device = "auto"


class BulkSampleRequest(RequestBody):
    """A request to write many samples of a checkpoint to storage, as shards.

    Sample i of a seed is the one that POST /sample answers.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": MODEL_ID, "num_images": 50_000, "seed": 0}]})

    model: str = Field(
        max_length=64,
        description="Id of a model, or `id@step`; without a step its newest checkpoint",
        examples=[MODEL_ID],
    )
    name: Name = Field(None, examples=["for FID"])
    num_images: int = Field(ge=1, le=1_000_000, examples=[50_000])
    shard_images: int = Field(1000, ge=1, le=10_000, description="Number of samples in each .npy file")
    seed: DrawnSeed = None
    quality: AskedQuality = None
    steps: ChainSteps = None
    noise_scale: NoiseScale = None
    labels: Labels = None
    guidance: Guidance = None
    adjusted: Adjusted = None
    device: Device = "auto"


class BulkShardBody(BaseModel):
    """One .npy file that a bulk sampling wrote."""

    name: str = Field(examples=["00000.npy"])
    num_images: int = Field(examples=[1000])


class BulkManifestBody(BaseModel):
    """The manifest of a bulk sampling; its files hold images as uint8 (N, C, H, W), vectors as float32 (N, D)."""

    model: str = Field(description="The checkpoint that was sampled, as `id@step`", examples=[f"{MODEL_ID}@4400"])
    seed: int = Field(examples=[0])
    num_images: int = Field(examples=[50_000])
    event_shape: list[int] = Field(examples=[[1, 8, 8]])
    num_steps: int | None = Field(description="K as asked; null for the model's own", examples=[0])
    start: str | None = Field(
        None, description="Where the chains started, by the quality; null for the model's own", examples=["multistep"]
    )
    noise_scale: float | None = Field(examples=[None])
    labels: list[str | CompositionBody | None] = Field(
        [], description="What was asked of the samples' labels, which took these in turn", examples=[["3", "5"]]
    )
    guidance: float | None = Field(None, description="Of the labels; null without any", examples=[0.5])
    gradient_evaluations: int = Field(description="Gradient evaluations per sample", examples=[14])
    shards: list[BulkShardBody]


class ResumeRequest(RequestBody):
    """A request to continue a failed or cancelled job."""

    steps: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="New total number of training steps; not below the number already done",
        examples=[8000],
    )


class TrainCheckBody(BaseModel):
    """The configuration that a training request would train with."""

    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] = Field(
        description="The whole configuration; when the request names no seed, each call draws another",
        examples=[SOME_CONFIG],
    )
    plan: list[str] = Field(
        default=[],
        description="Of a training that the trainer plans: what is chosen from the data and why, a sentence each",
        examples=[["4,500 grey pictures of 28×28 pixels, without classes."]],
    )


class ProgressBody(BaseModel):
    """The progress of a job."""

    step: int = Field(examples=[2200])
    total_steps: int = Field(examples=[4400])
    percent: float = Field(examples=[50.0])
    steps_per_second: float | None = Field(examples=[31.5])
    eta_seconds: float | None = Field(examples=[70.0])
    queue_position: int | None = Field(
        description="Place in the queue, 1 for the next job; null when the job does not wait", examples=[None]
    )


_SOME_HEALTH = {
    "step": 4900,
    "level": "amber",
    "reason": "chains accepted 0.21 to 0.33 (levels 0–2) of their moves over 100 steps; expected 0.4 to 0.95",
    "remedy": "set chain.target_acceptance to 'auto', which adapts the step of each level",
}


class JobBody(BaseModel):
    """A job and its state."""

    id: str = Field(examples=[JOB_ID])
    kind: KindName
    status: JobStatus = Field(examples=["running"])
    name: str | None = Field(examples=["my first model"])
    model_id: str | None = Field(
        description="The model that the job trains, calibrates or samples; a model in training can be used from its "
        "first checkpoint on",
        examples=[MODEL_ID],
    )
    model_step: int | None = Field(description="Step of the checkpoint that the job is about", examples=[None])
    seed: int | None = Field(examples=[0])
    dataset: str | None = Field(examples=["digits"])
    device: str | None = Field(examples=["auto"])
    num_gpus: int | None = Field(description="Number of GPUs of each trainer of a training", examples=[1])
    num_nodes: int | None = Field(description="Number of trainers of a training", examples=[1])
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig, CalibrationConfig, TuneConfig)] | None = Field(
        description="The whole configuration of the job", examples=[SOME_CONFIG]
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None = Field(examples=[None])
    updated_at: datetime
    attempt: int = Field(
        description="Number of the attempt; it grows when a worker was lost and the job started again", examples=[1]
    )
    cancel_requested: bool = Field(examples=[False])
    progress: ProgressBody
    last_loss: float | None = Field(examples=[0.0123])
    last_checkpoint: int | None = Field(description="Step of the newest committed checkpoint", examples=[2000])
    health: HealthEvent | None = Field(
        description="The latest verdict on a training: how healthy it is, why, and what to do; null before the first "
        "one, and where no chains are adjusted",
        examples=[_SOME_HEALTH],
    )
    error: Annotated[str, AfterValidator(redact)] | None = Field(
        description="One sentence on why the job failed, or what ended its latest attempt", examples=[None]
    )

    @classmethod
    def of(cls, record: JobRecord, *, queue_position: int | None) -> JobBody:
        """Describe a job by the public part of its record."""
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
            num_nodes=spec.get("num_nodes"),
            config=config,
        )


_SHARED_FIELDS = set(JobBody.model_fields) & set(JobRecord.model_fields) - {"progress"}


class JobPageBody(BaseModel):
    """One page of the list of jobs, newest first."""

    jobs: list[JobBody]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last page", examples=[None])
