"""Bodies of requests and answers. Unknown fields are refused, numbers are not taken from text."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.presets import BUILT_IN_DATASETS, PRESET_SUMMARIES
from service.settings import MAX_IMAGES, MAX_LEVELS, MAX_SCALE
from worker.jobs import JobKind, JobRecord, JobStatus

_JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
_MODEL_ID = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
_RANDOM_SEEDS = 2**32
"""random seeds stay small enough to be typed again"""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TrainRequest(_Request):
    """A training job: a preset, a configuration, or a configuration laid over a preset, and changes to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"preset": "digits", "name": "my first model", "seed": 0},
                {"preset": "planar", "dataset": "two_moons", "steps": 2000, "device": "cpu"},
                {"preset": "digits", "config": {"optimizer": {"learning_rate": 5e-5}, "log_every": 50}},
            ]
        }
    )

    preset: str | None = Field(
        None,
        description="Name of a configuration. "
        + "; ".join(f"`{name}`: {summary}" for name, summary in PRESET_SUMMARIES.items()),
        examples=list(PRESET_SUMMARIES),
    )
    config: dict[str, Any] | None = Field(
        None,
        description="Fields of the configuration, nested as in the answer's `config`; what is absent comes from the "
        "preset, or without one from the defaults",
        examples=[{"network": {"width": 32}}],
    )
    dataset: str | None = Field(
        None,
        max_length=200,
        description=f"A built-in dataset ({', '.join(BUILT_IN_DATASETS)}), or a path below the server's dataset folder",
        examples=["digits"],
    )
    name: str | None = Field(None, min_length=1, max_length=100, description="For people", examples=["my first model"])
    seed: Seed | None = Field(
        None,
        description="Decides weights, batches and noise; drawn at random when absent, and always in the answer",
        examples=[0],
    )
    steps: int | None = Field(
        None, ge=1, le=100_000_000, description="All training steps; the phases keep their shares", examples=[4400]
    )
    batch_size: int | None = Field(None, ge=1, le=65_536, examples=[128])
    checkpoint_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    sample_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` takes a GPU when the trainer has one", examples=["auto"]
    )


class ResumeRequest(_Request):
    """How a failed or cancelled job goes on."""

    steps: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="New number of all training steps; not below those done",
        examples=[8000],
    )


class ProgressBody(BaseModel):
    """How far a job has come."""

    step: int = Field(examples=[2200])
    total_steps: int = Field(examples=[4400])
    percent: float = Field(examples=[50.0])
    steps_per_second: float | None = Field(examples=[31.5])
    eta_seconds: float | None = Field(examples=[70.0])
    queue_position: int | None = Field(description="1 for the job that is next; null when it does not wait")


class JobBody(BaseModel):
    """A job."""

    id: str = Field(examples=[_JOB_ID])
    kind: JobKind
    status: JobStatus
    name: str | None = Field(examples=["my first model"])
    model_id: str | None = Field(
        description="The model it trains, usable from its first checkpoint on", examples=[_MODEL_ID]
    )
    seed: int | None = Field(examples=[0])
    dataset: str | None = Field(examples=["digits"])
    device: str | None = Field(examples=["auto"])
    config: dict[str, Any] | None = Field(description="The whole configuration")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    attempt: int = Field(description="Grows when a worker was lost and the job started again", examples=[1])
    cancel_requested: bool
    progress: ProgressBody
    last_loss: float | None = Field(examples=[0.0123])
    last_checkpoint: int | None = Field(description="Step of the newest committed checkpoint", examples=[2000])
    error: str | None = Field(description="In words, why it failed or what ended its latest attempt")

    @classmethod
    def of(cls, record: JobRecord, *, queue_position: int | None) -> JobBody:
        """The public view of a record."""
        config = record.spec.get("config")
        known = config if isinstance(config, dict) else {}
        return cls(
            **record.model_dump(include=_SHARED_FIELDS),
            progress=ProgressBody(**record.progress.model_dump(), queue_position=queue_position),
            seed=known.get("seed"),
            dataset=known.get("dataset"),
            device=record.spec.get("device"),
            config=config,
        )


_SHARED_FIELDS = set(JobBody.model_fields) & set(JobRecord.model_fields) - {"progress"}


class JobPageBody(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobBody]
    next_cursor: str | None = Field(description="Give it as `cursor` for the page after; null on the last")


class EventBody(BaseModel):
    """Something that happened in a job; also the `data` of the event stream."""

    id: str = Field(description="Orders events; resume after it with Last-Event-ID", examples=["1732392000000-0"])
    type: str = Field(description="status, step, sample, checkpoint, or a notice", examples=["step"])
    at: datetime
    data: dict[str, Any] = Field(examples=[{"step": 20, "loss": 0.4}])


class CheckpointBody(BaseModel):
    """A committed checkpoint."""

    step: int = Field(examples=[4400])
    size_bytes: int = Field(examples=[812_345])
    committed_at: datetime


class ModelBody(BaseModel):
    """A model: what it was trained on and how, and what there is of it."""

    id: str = Field(examples=[_MODEL_ID])
    name: str | None = Field(examples=["my first model"])
    dataset: str | None = Field(examples=["digits"])
    job_id: str | None = Field(description="The job that trained it", examples=[_JOB_ID])
    created_at: datetime | None
    config: dict[str, Any] | None
    checkpoints: list[CheckpointBody] = Field(description="In order of their step; /sample uses the last by default")


class ModelListBody(BaseModel):
    """All models, newest first."""

    models: list[ModelBody]


class SampleRequestBody(_Request):
    """Samples of a model. Sample i of a seed is the same whatever `num_images` is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": _MODEL_ID, "num_images": 64, "seed": 0, "scale": 4},
                {"model": f"{_MODEL_ID}@2000", "num_images": 4, "levels": [15, 10, 5], "scale": 8},
            ]
        }
    )

    model: str = Field(
        max_length=64,
        description="Id of a model, or `id@step` for one of its earlier checkpoints; GET /models lists them",
        examples=[_MODEL_ID, f"{_MODEL_ID}@2000"],
    )
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description=f"1…{MAX_IMAGES} samples", examples=[64])
    seed: Seed | None = Field(None, description="Drawn at random when absent; always in X-Seed", examples=[0])
    steps: int | None = Field(
        None, ge=0, le=1000, description="K, chain steps per level; the model's own when absent", examples=[10]
    )
    noise_scale: float | None = Field(
        None, ge=0, le=2, description="Multiplies the chain's noise; the model's own when absent", examples=[1.0]
    )
    levels: list[Annotated[int, Field(ge=0, lt=1000)]] = Field(
        default_factory=list,
        max_length=MAX_LEVELS,
        description="Noise levels whose intermediate samples are returned too, noisiest first in the answer",
        examples=[[15, 10, 5]],
    )
    scale: int = Field(1, ge=1, le=MAX_SCALE, description="Magnification of PNGs: pixels per pixel", examples=[4])


class SampleLevelBody(BaseModel):
    """Intermediate samples at one level."""

    level: int
    images: list[str] | None = Field(None, description="Base64 PNGs, of image models")
    values: list[Any] | None = Field(None, description="Numbers, of vector models")


class SampleBody(BaseModel):
    """Samples as JSON."""

    model: str = Field(description="`id@step`", examples=[f"{_MODEL_ID}@4400"])
    seed: int
    shape: list[int] = Field(description="Of all samples together: (N, C, H, W) or (N, D)", examples=[[64, 1, 8, 8]])
    gradient_evaluations: int = Field(description="Per sample", examples=[200])
    images: list[str] | None = Field(None, description="Base64 PNGs, of image models")
    values: list[Any] | None = Field(None, description="Numbers, of vector models")
    levels: list[SampleLevelBody] = Field(default_factory=list)


class CheckBody(BaseModel):
    """Whether one thing the service needs is there."""

    name: str = Field(examples=["redis"])
    ok: bool
    detail: str = Field(examples=["answers"])


class ReadinessBody(BaseModel):
    """Whether jobs and samples can be served now."""

    status: Literal["ready"]
    checks: list[CheckBody]


class HealthBody(BaseModel):
    """That the process is alive."""

    status: Literal["alive"] = "alive"


def random_seed() -> int:
    """A seed for a request that came without."""
    return secrets.randbelow(_RANDOM_SEEDS)
