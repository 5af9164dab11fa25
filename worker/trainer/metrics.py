"""Series of the jobs that a trainer runs, from their records and events in Redis: the work is in another process.

They carry the job's id, and are there as long as this worker holds the job's lease: Prometheus sees them end with the
scrape after that. Nothing is kept that a worker started anew would not find again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from worker.jobs.event import JobEvent
from worker.jobs.event_stream import events_from_reply, events_key
from worker.jobs.record import JobRecord
from worker.jobs.records import RecordStore
from worker.observe.probe import Probe
from worker.observe.series import Series, Values

log = structlog.get_logger(__name__)

_EVENTS_AT_ONCE = 1000
_PAUSES = 8
"""The number of latest pauses that are looked at: enough for events that come together and one that comes alone."""

_JOB = ("job_id",)
_LEVEL = ("job_id", "level")

INFO = Series("recovery_job_info", "gauge", "1 for a job that runs", ("job_id", "kind", "model_id", "name", "worker"))
STEP = Series("recovery_job_step", "gauge", "Steps, rounds or images done", _JOB)
TOTAL_STEPS = Series("recovery_job_total_steps", "gauge", "Steps, rounds or images in all", _JOB)
RATE = Series("recovery_job_steps_per_second", "gauge", "Speed since the event before", _JOB)
LOSS = Series("recovery_job_loss", "gauge", "Mean training loss since the event before", _JOB)
ATTEMPT = Series("recovery_job_attempt", "gauge", "Which attempt it is", _JOB)
STARTED_AT = Series("recovery_job_started_timestamp_seconds", "gauge", "Start of the attempt", _JOB)
CHECKPOINT_EVERY = Series("recovery_job_checkpoint_every_steps", "gauge", "Steps between checkpoints", _JOB)

EVENT_AT = Series("recovery_job_last_event_timestamp_seconds", "gauge", "When it last said anything", _JOB)
PAUSE = Series("recovery_job_event_pause_seconds", "gauge", "Longest of the latest pauses between its events", _JOB)
PHASE = Series("recovery_job_phase", "gauge", "1 for the phase of a training", ("job_id", "phase"))
LEARNING_RATE = Series("recovery_job_learning_rate", "gauge", "Learning rate", _JOB)
GRADIENT_NORM = Series("recovery_job_gradient_norm", "gauge", "Norm of the loss's gradient before clipping", _JOB)
POSITIVE_ENERGY = Series("recovery_job_positive_energy_nats", "gauge", "Mean energy of the data", _LEVEL)
NEGATIVE_ENERGY = Series("recovery_job_negative_energy_nats", "gauge", "Mean energy of the chains' ends", _LEVEL)
DISPLACEMENT = Series("recovery_job_chain_displacement", "gauge", "How far chains move, data units", _LEVEL)
ACCEPTANCE = Series("recovery_job_acceptance_ratio", "gauge", "Accepted proposals of the chains", _LEVEL)
ROLLBACKS = Series("recovery_job_rollbacks_total", "counter", "Divergences that were gone back from", _JOB)
ROLLBACK_AT = Series("recovery_job_last_rollback_timestamp_seconds", "gauge", "When it last went back", _JOB)
CHECKPOINTS = Series("recovery_job_checkpoints_total", "counter", "Checkpoints committed", _JOB)
CHECKPOINT_AT = Series("recovery_job_last_checkpoint_timestamp_seconds", "gauge", "When the last was committed", _JOB)
CHECKPOINT_STEP = Series("recovery_job_last_checkpoint_step", "gauge", "Step of the last checkpoint", _JOB)
CHECKPOINT_WRITE = Series("recovery_job_checkpoint_write_seconds", "gauge", "The last one, onto the local disk", _JOB)
CHECKPOINT_UPLOAD = Series("recovery_job_checkpoint_upload_seconds", "gauge", "The last one, into storage", _JOB)
CHECKPOINT_SIZE = Series("recovery_job_checkpoint_size_bytes", "gauge", "Size of the last one", _JOB)

_BY_LEVEL = {
    "positive_energy": POSITIVE_ENERGY,
    "negative_energy": NEGATIVE_ENERGY,
    "displacement": DISPLACEMENT,
    "acceptance_rate": ACCEPTANCE,
}


@dataclass
class Course:
    """What a job's events have told so far."""

    cursor: str = "0"
    said_at: float | None = None
    pauses: deque[float] = field(default_factory=lambda: deque(maxlen=_PAUSES))
    step: Mapping[str, Any] = field(default_factory=dict)
    """the data of this attempt's latest `step` event"""
    num_rollbacks: int = 0
    rolled_back_at: float | None = None
    num_checkpoints: int = 0
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    committed_at: float | None = None

    def follow(self, events: Iterable[JobEvent]) -> None:
        """Take in the events that came after `cursor`, in order."""
        for event in events:
            self.cursor = event.id
            at = event.at.timestamp()
            if event.type == "status" and not event.data.get("cancel_requested"):  # a new attempt, perhaps elsewhere
                self.step = {}
                self.pauses.clear()
            elif self.said_at is not None:
                self.pauses.append(at - self.said_at)
            self.said_at = at
            match event.type:
                case "step":
                    self.step = event.data
                case "rollback":
                    self.num_rollbacks += 1
                    self.rolled_back_at = at
                case "checkpoint":
                    self.num_checkpoints += 1
                    self.checkpoint, self.committed_at = event.data, at


class JobCollector(Collector):
    """Reads Redis at every scrape, for a limited time: while Redis is away there are no series of jobs."""

    def __init__(self, store: RecordStore, worker: str) -> None:
        self._store = store
        self._worker = worker
        self._courses: dict[str, Course] = {}
        self._running = Probe(self._followed)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering a collector must not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the series of this moment; prometheus-client calls it."""
        try:
            running = self._running.ask()
        except (RedisError, TimeoutError) as error:
            log.warning("scrape_without_jobs", error=type(error).__name__)
            return
        for series, values in (*_told_by_records(running), *_told_by_events(running)):
            yield series.collected(values)

    def _followed(self) -> list[tuple[JobRecord, Course]]:
        """The jobs of this worker, with their events read up to now; others are forgotten. Raises RedisError."""
        records = self._store.leased_by(self._worker)
        self._courses = {record.id: self._courses.get(record.id, Course()) for record in records}
        for job_id, course in self._courses.items():
            while found := self._events(job_id, course.cursor):
                course.follow(found)
        return [(record, self._courses[record.id]) for record in records]

    def _events(self, job_id: str, after: str) -> list[JobEvent]:
        """Read events from Redis alone, since storage may hang."""
        return events_from_reply(self._store.redis.xread({events_key(job_id): after}, count=_EVENTS_AT_ONCE))


def _told_by_records(running: list[tuple[JobRecord, Course]]) -> Iterator[tuple[Series, Values]]:
    records = [record for record, _ in running]
    yield (
        INFO,
        {(job.id, job.kind, job.model_id or "", job.name or "", job.worker or ""): 1 for job in records},
    )
    scalars: dict[Series, Callable[[JobRecord], float | None]] = {
        STEP: lambda job: job.progress.step,
        TOTAL_STEPS: lambda job: job.progress.total_steps,
        RATE: lambda job: job.progress.steps_per_second,
        LOSS: lambda job: job.last_loss,
        ATTEMPT: lambda job: job.attempt,
        STARTED_AT: lambda job: job.started_at.timestamp() if job.started_at else None,
        CHECKPOINT_EVERY: lambda job: job.spec.get("config", {}).get("checkpoint_every"),
    }
    for series, value_fn in scalars.items():
        yield series, _present({(job.id,): value_fn(job) for job in records})


def _told_by_events(running: list[tuple[JobRecord, Course]]) -> Iterator[tuple[Series, Values]]:
    scalars: dict[Series, Callable[[Course], float | None]] = {
        EVENT_AT: lambda course: course.said_at,
        PAUSE: lambda course: max(course.pauses, default=None),
        LEARNING_RATE: lambda course: course.step.get("learning_rate"),
        GRADIENT_NORM: lambda course: course.step.get("gradient_norm"),
        ROLLBACKS: lambda course: course.num_rollbacks,
        ROLLBACK_AT: lambda course: course.rolled_back_at,
        CHECKPOINTS: lambda course: course.num_checkpoints,
        CHECKPOINT_AT: lambda course: course.committed_at,
        CHECKPOINT_STEP: lambda course: course.checkpoint.get("step"),
        CHECKPOINT_WRITE: lambda course: course.checkpoint.get("write_s"),
        CHECKPOINT_UPLOAD: lambda course: course.checkpoint.get("upload_s"),
        CHECKPOINT_SIZE: lambda course: course.checkpoint.get("size_bytes"),
    }
    for series, value_fn in scalars.items():
        yield series, _present({(job.id,): value_fn(course) for job, course in running})
    yield PHASE, {(job.id, course.step["phase"]): 1 for job, course in running if course.step}
    for name, series in _BY_LEVEL.items():
        yield (
            series,
            _present(
                {
                    (job.id, str(level)): value
                    for job, course in running
                    for level, value in enumerate(course.step.get(name, []))
                }
            ),
        )


def _present(values: Mapping[tuple[str, ...], float | None]) -> Values:
    """Leave out what has not been told yet, or could not be written as a number: it has no series."""
    return {labels: value for labels, value in values.items() if value is not None}
