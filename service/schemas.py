"""Bodies of requests and answers. Unknown fields are refused, numbers are not taken from text."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.config import CalibrationConfig
from model.presets import PRESET_SUMMARIES
from service.dataset_schemas import DATASET_NAMES
from service.settings import MAX_IMAGES, MAX_ITEM_PATHS, MAX_ITEMS, MAX_LEVELS, MAX_SCALE
from worker.jobs import JobKind, JobRecord, JobStatus

_JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
_MODEL_ID = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
_RANDOM_SEEDS = 2**32
"""random seeds stay small enough to be typed again"""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="`auto` takes a GPU when the trainer has one", examples=["auto"])
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TrainRequest(_Request):
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
        + "; ".join(f"`{name}`: {summary}" for name, summary in PRESET_SUMMARIES.items()),
        examples=list(PRESET_SUMMARIES),
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
    batch_size: int | None = Field(None, ge=1, le=65_536, examples=[128])
    checkpoint_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    sample_every: int | None = Field(None, ge=1, le=100_000_000, description="In steps", examples=[1000])
    calibrate: bool | None = Field(
        None,
        description="Estimate log Z of the last checkpoint at the end, for POST /log-density; the preset's when absent",
        examples=[True],
    )
    device: Device = "auto"


class CalibrateRequest(_Request):
    """An estimate of log Z of a checkpoint from both sides, which POST /log-density needs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": _MODEL_ID}]})

    model: str = Field(
        max_length=64, description="Id of a model, or `id@step`; the newest checkpoint without", examples=[_MODEL_ID]
    )
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
        description="Temperatures between neighbouring noise levels at which to give up; every round doubles them",
    )
    device: Device = "auto"


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
        description="The model it trains, usable from its first checkpoint on, or calibrates", examples=[_MODEL_ID]
    )
    model_step: int | None = Field(description="Of a calibration: the checkpoint", examples=[4900])
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
            model_step=record.spec.get("step"),
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
    type: str = Field(
        description="status, started, step, sample, checkpoint, calibration, calibrated, or a notice", examples=["step"]
    )
    at: datetime
    data: dict[str, Any] = Field(examples=[{"step": 20, "loss": 0.4}])


class LogZBody(BaseModel):
    """log of the normalizer from both sides, nats. The density's own error is `std_error`, the same for every item."""

    estimate: float = Field(description="Midway between the sides", examples=[-118.24])
    std_error: float = Field(
        description="Half the gap of the sides and their own standard errors, in quadrature", examples=[0.09]
    )
    lower: float = Field(description="Stochastic lower bound: annealed importance sampling", examples=[-118.31])
    upper: float = Field(description="Stochastic upper bound: the same walk backwards", examples=[-118.17])
    lower_std_error: float
    upper_std_error: float
    lower_effective_sample_size: float
    upper_effective_sample_size: float
    upper_start: Literal["exact", "chain"] = Field(
        description="Where the backward walk began: `exact` samples, or the ends of `chain`s, as good as those chains"
    )
    acceptance_rate: float
    num_chains: int
    num_bridges: int = Field(description="Temperatures between neighbouring noise levels")


class QuantileBody(BaseModel):
    """A share `level` of the training data has a log density below `log_density`."""

    level: float
    log_density: float


class CalibrationBody(BaseModel):
    """log Z of a checkpoint, and how its data score with it; nats, in the data's units."""

    log_z: LogZBody
    event_shape: list[int] = Field(description="Of one item: (C, H, W) or (D)", examples=[[1, 8, 8]])
    seed: int
    tolerance: float = Field(description="Nats between the sides that were asked for")
    num_held_out: int = Field(description="Held-out items that were scored")
    held_out_log_density: float = Field(description="Their mean log density, discrete data dequantized")
    held_out_bits_per_dim: float | None = Field(description="null for continuous data")
    bin_width: float | None = Field(description="Spacing of the values of discrete data; null for continuous ones")
    blur_std: float = Field(description="The density is that of the data plus Gaussian noise of this std, scaled units")
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


class LogDensityOptions(BaseModel):
    """What a request for densities says beside its items; as fields of a form, or in JSON."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=64, description="Id of a model, or `id@step`", examples=[_MODEL_ID])
    path: bool = Field(False, description="Also the second, independent estimate along the diffusion path; slower")
    num_paths: int = Field(
        4, ge=1, le=64, description=f"Paths it averages; items times paths are at most {MAX_ITEM_PATHS}", examples=[4]
    )
    seed: Seed | None = Field(None, description="Of the paths; drawn at random when absent, always in the answer")


class LogDensityRequestBody(LogDensityOptions):
    """Items to score."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"model": _MODEL_ID, "x": [[0.5, -1.2], [0.1, 2.0]]}]}
    )

    x: list[Any] = Field(
        description=f"Up to {MAX_ITEMS} items as nested lists of shape (N, D), in the data's units, or (N, C, H, W), "
        "images in [−1, 1]",
        examples=[[[0.5, -1.2], [0.1, 2.0]]],
    )


class ItemDensityBody(BaseModel):
    """One item, in the order of the request."""

    log_density: float | None = Field(
        description="Nats, null where the energy overflows, of the item as given: nothing is dequantized",
        examples=[61.03],
    )
    bits_per_dim: float | None = Field(None, description="null for continuous data", examples=[2.6])
    energy: float | None = Field(description="Of the cleanest noise level, nats", examples=[57.2])
    path_log_density: float | None = Field(
        None, description="With `path`: importance-weighted over the paths; an estimate, not a bound"
    )
    path_spread: float | None = Field(
        None, description="With `path`: standard deviation of single paths, how far the noise levels disagree"
    )


class LogDensityBody(BaseModel):
    """Densities as JSON."""

    model: str = Field(description="`id@step`", examples=[f"{_MODEL_ID}@4900"])
    level: Literal[0] = Field(description="The noise level whose energy this is: the cleanest")
    blur_std: float = Field(description="The density is that of the data plus Gaussian noise of this std, scaled units")
    log_z: LogZBody
    std_error: float = Field(description="Of every log_density, nats, one and the same shift: that of log_z")
    seed: int | None = Field(None, description="With `path`: the one that was used")
    num_paths: int | None = Field(None, description="With `path`")
    items: list[ItemDensityBody]


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
