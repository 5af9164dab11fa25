"""Which kinds of jobs there are: each is a `Kind`, and `KINDS` lists them all. Imports neither torch nor Celery.

Whoever handles jobs of every kind (store, queue, supervisor, metrics, documents) asks this list. What a kind does is
its module under worker/kinds/; how it is asked for is its route in service/routes/jobs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic.json_schema import SkipJsonSchema

from model.composition import Composition
from model.config import CalibrationConfig, ChainStart, TrainConfig, from_dict, to_dict
from model.errors import ConfigError
from model.events import BatchEvent, HealthEvent, RollbackEvent, StepEvent
from model.frontier import TuneConfig
from worker.jobs.event import (
    CalibratedEvent,
    CalibrationEvent,
    CheckpointsDeletedEvent,
    CheckpointStoredEvent,
    EventData,
    GridEvent,
    PlanEvent,
    SamplingEvent,
    ShardEvent,
    TunedEvent,
    TuningEvent,
)
from worker.redis_keys import TRAIN_QUEUE
from worker.storage.shards import Manifest


class JobKind(StrEnum):
    """What a job does."""

    train = "train"
    sample = "sample"
    calibrate = "calibrate"
    tune = "tune"


KindName: TypeAlias = Annotated[JobKind | SkipJsonSchema[str], Field(union_mode="left_to_right")]
"""The kind of a stored job: a later version may have stored one that this version does not know."""


class Spec(BaseModel):
    """What a job is asked to do, as its record keeps it. Fields that this version does not know are ignored."""

    model_config = ConfigDict(frozen=True)

    device: str = "auto"
    """"cpu", "cuda", or "auto", which takes a GPU where there is one"""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The spec that stands in a record, as this or an earlier version stored it. Raises ConfigError."""
        try:
            return cls.model_validate(stored)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ConfigError(f"the job's spec is no {cls.__name__}: {wrong}; start the job again") from None

    @classmethod
    def completed(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """A stored spec with the defaults of what it does not say; unchecked, for those who only show it."""
        defaults = {name: field.default for name, field in cls.model_fields.items() if not field.is_required()}
        return {**defaults, **stored}


def _reader(config: type[Any]) -> Callable[[Any], Any]:
    """Reads a configuration of that class from what `to_dict` made of it."""
    return lambda stored: stored if isinstance(stored, config) else from_dict(config, stored)


class PlanRequest(BaseModel):
    """A wish for a training that the trainer plans when it starts, by the data, the machine and the time."""

    model_config = ConfigDict(frozen=True)

    minutes: float
    """that the training may take"""
    changes: dict[str, Any] = {}
    """what the request asked for itself, as a part of a configuration: it stays as it is"""


class TrainSpec(Spec):
    """A training."""

    config: Annotated[TrainConfig, PlainValidator(_reader(TrainConfig)), PlainSerializer(to_dict)]
    plan: PlanRequest | None = None
    """None once it is decided: the decision is in `config` then, so that every later attempt goes on by it"""
    num_gpus: int = 1
    """GPUs of one trainer that share every batch; processes with device "cpu\""""
    num_nodes: int = 1
    """trainers that work on it together, each with `num_gpus`"""
    keep_last: int | None = None
    """checkpoints that are kept at least, the newest; None is the workers' own setting, and so below"""
    keep_every: int | None = None
    """of the older ones, those whose step is a multiple of so many intervals between checkpoints"""


class CalibrateSpec(Spec):
    """An estimate of log Z of a checkpoint."""

    config: Annotated[CalibrationConfig, PlainValidator(_reader(CalibrationConfig)), PlainSerializer(to_dict)]
    step: int
    """of the checkpoint"""


class TuneSpec(Spec):
    """A measurement of what samples of a checkpoint cost, and of how good they are."""

    config: Annotated[TuneConfig, PlainValidator(_reader(TuneConfig)), PlainSerializer(to_dict)]
    step: int
    """of the checkpoint"""


class SampleSpec(Spec):
    """Many samples of a checkpoint, into storage as shards."""

    step: int
    """of the checkpoint"""
    num_images: int
    shard_images: int
    """samples of a file; the last file may hold fewer"""
    seed: int
    num_steps: int | None
    """K, chain steps per level; None is the model's own"""
    start: ChainStart | None = None
    """where the chain of each level starts; None is the model's own"""
    noise_scale: float | None
    """multiplies the chain's noise; None is the model's own"""
    labels: tuple[Composition, ...] = ()
    """what is asked of the samples' labels, which take them in turn; empty for samples of any class"""
    adjusted: bool | None = None
    """whether a Metropolis test decides on each step, as in `worker.queue.tasks.DrawOrder`"""

    @property
    def num_shards(self) -> int:
        """The number of files."""
        return -(-self.num_images // self.shard_images)

    def count(self, index: int) -> int:
        """The number of samples in the file of that index."""
        return min(self.shard_images, self.num_images - index * self.shard_images)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All that is particular to one kind of job, except its work and its route."""

    name: JobKind
    spec: type[Spec]
    module: str
    """of its work: the class `Run` in it is an Attempt; only the job's own process imports it"""
    events: tuple[type[EventData], ...] = ()
    """that it tells of its work, beside `status`, `started` and `notice`, which every kind may"""
    result: type[BaseModel] | None = None
    """what it leaves in storage under its own id; None where its result belongs to a model"""
    makes_model: bool = False
    """whether a job is given the id of a new model"""
    queue: str = TRAIN_QUEUE


KINDS = (
    Kind(
        name=JobKind.train,
        spec=TrainSpec,
        module="worker.kinds.train",
        events=(
            BatchEvent,
            StepEvent,
            GridEvent,
            CheckpointStoredEvent,
            CheckpointsDeletedEvent,
            RollbackEvent,
            HealthEvent,
            PlanEvent,
            CalibrationEvent,
            CalibratedEvent,
            TuningEvent,
            TunedEvent,
        ),
        makes_model=True,
    ),
    Kind(
        name=JobKind.calibrate,
        spec=CalibrateSpec,
        module="worker.kinds.calibrate",
        events=(CalibrationEvent, CalibratedEvent),
    ),
    Kind(
        name=JobKind.tune,
        spec=TuneSpec,
        module="worker.kinds.tune",
        events=(TuningEvent, TunedEvent),
    ),
    Kind(
        name=JobKind.sample,
        spec=SampleSpec,
        module="worker.kinds.bulk",
        events=(SamplingEvent, ShardEvent),
        result=Manifest,
    ),
)
QUEUES = frozenset(kind.queue for kind in KINDS)
"""Every queue that jobs wait in."""
_BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def kind_of(name: str) -> Kind | None:
    """The kind of that name; None for one that only another version of the program knows."""
    return _BY_NAME.get(name)


def kinds_in(queue: str) -> list[JobKind]:
    """The names of the kinds whose jobs wait in a queue."""
    return [kind.name for kind in KINDS if kind.queue == queue]
