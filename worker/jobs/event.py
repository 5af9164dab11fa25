"""What jobs say of themselves: one vocabulary for those who write events, keep them, draw them and document them.

The data of every event are a frozen dataclass; `EVENTS` names them as they stand in a stream. A stored event is read
as a `JobEvent`, whose data are plain JSON: types and fields of another version of the program pass through unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from model.densities.verdict import Verdict
from model.events import BatchEvent, HealthEvent, RollbackEvent, StepEvent


@dataclass(frozen=True, kw_only=True)
class StatusEvent:
    """The job changed its state; the store of records writes this one itself."""

    status: str
    """as GET /jobs/{id} shows it"""
    attempt: int
    error: str | None
    """why it failed, or what ended its latest attempt, in words"""
    cancel_requested: bool = False


@dataclass(frozen=True, kw_only=True)
class StartedEvent:
    """An attempt at the job began to work."""

    step: int
    """of the checkpoint it works on, or goes on from; 0 at the start of a training"""
    attempt: int
    device: str | None = None
    num_gpus: int | None = None
    """of a training"""
    num_shards_done: int | None = None
    """of a bulk sampling: files that earlier attempts stored"""


@dataclass(frozen=True, kw_only=True)
class PlanEvent:
    """The trainer has planned the training by the data, the machine and the time; the job's `config` is the plan."""

    minutes: float
    """that the training may take"""
    steps: int
    reasons: list[str]
    """what was chosen and why, and what to expect, a sentence each"""


@dataclass(frozen=True, kw_only=True)
class GridEvent:
    """A grid of samples was drawn while the model trains, and is stored."""

    step: int
    key: str
    """where it lies in storage"""


@dataclass(frozen=True, kw_only=True)
class CheckpointStoredEvent:
    """A checkpoint is in storage, and what it took to get it there."""

    step: int
    write_s: float
    """onto the local disk"""
    upload_s: float
    """into storage, the try that succeeded"""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointsDeletedEvent:
    """Older checkpoints are gone from storage, because the training was to keep fewer."""

    steps: list[int]
    keep_last: int
    keep_every: int


@dataclass(frozen=True, kw_only=True)
class CalibrationEvent:
    """A round of a calibration ended: log Z from both sides, nats."""

    step: int
    """of the checkpoint"""
    round: int
    max_rounds: int
    num_bridges: int
    """temperatures between neighbouring noise levels"""
    num_chains: int
    lower: float
    upper: float
    upper_start: Literal["exact", "chain"]
    """where the backward walk began"""
    estimate: float
    std_error: float | None
    """null where the chains' weights do not tell it"""
    verdict: Verdict
    """what the round tells of log Z"""
    acceptance_rate: float
    elapsed_s: float
    """since the first round began"""


@dataclass(frozen=True, kw_only=True)
class CalibratedEvent:
    """The calibration of a checkpoint is in storage: the model answers with densities now."""

    step: int
    model_id: str
    calibration: dict[str, Any]
    """as GET /models/{id} shows it"""


@dataclass(frozen=True, kw_only=True)
class TuningEvent:
    """One setting of the sampler was measured: what a sample costs, and how near samples come to held-out data."""

    step: int
    """of the checkpoint"""
    index: int
    """of the setting, from 1 on"""
    num_settings: int
    point: dict[str, Any]
    """as in the frontier of the checkpoint"""
    elapsed_s: float
    """since the first setting began"""


@dataclass(frozen=True, kw_only=True)
class TunedEvent:
    """The frontier of a checkpoint is in storage: samples are drawn by the settings chosen from it."""

    step: int
    model_id: str
    frontier: dict[str, Any]
    """as GET /models/{id} shows it"""


@dataclass(frozen=True, kw_only=True)
class SamplingEvent:
    """How far a bulk sampling has come, about once a second."""

    num_images: int
    """drawn so far, by all attempts"""
    total_images: int
    images_per_second: float
    """of this attempt"""


@dataclass(frozen=True, kw_only=True)
class ShardEvent:
    """A file of a bulk sampling is in storage."""

    index: int
    num_images: int
    """samples in the file"""


@dataclass(frozen=True, kw_only=True)
class NoticeEvent:
    """Something that a person should know, in words; the job goes on."""

    text: str


EventData: TypeAlias = (
    StatusEvent
    | StartedEvent
    | PlanEvent
    | BatchEvent
    | StepEvent
    | GridEvent
    | CheckpointStoredEvent
    | CheckpointsDeletedEvent
    | RollbackEvent
    | HealthEvent
    | CalibrationEvent
    | CalibratedEvent
    | TuningEvent
    | TunedEvent
    | SamplingEvent
    | ShardEvent
    | NoticeEvent
)

EVENTS: dict[str, type[EventData]] = {
    "status": StatusEvent,
    "started": StartedEvent,
    "plan": PlanEvent,
    "batch": BatchEvent,
    "step": StepEvent,
    "sample": GridEvent,
    "checkpoint": CheckpointStoredEvent,
    "deleted": CheckpointsDeletedEvent,
    "rollback": RollbackEvent,
    "health": HealthEvent,
    "calibration": CalibrationEvent,
    "calibrated": CalibratedEvent,
    "tuning": TuningEvent,
    "tuned": TunedEvent,
    "sampling": SamplingEvent,
    "shard": ShardEvent,
    "notice": NoticeEvent,
}
"""The type that an event has in a stream, and what its data are."""
_TYPES = {data: type_ for type_, data in EVENTS.items()}


class JobEvent(BaseModel):
    """An event as it is stored; `id` orders the events of a job and resumes a stream."""

    model_config = ConfigDict(frozen=True)

    id: str
    type: str
    """a name of `EVENTS`, or one that another version of the program knows"""
    at: datetime
    data: dict[str, Any]


def type_of(event: EventData) -> str:
    """The type that an event has in a stream."""
    return _TYPES[type(event)]


def data_of(event: EventData) -> dict[str, Any]:
    """The data of an event as plain values; an optional field that was not given is left out."""
    values = {field.name: (getattr(event, field.name), field.default) for field in fields(event)}
    return {name: value for name, (value, default) in values.items() if value != default}
