"""What a job is: its record, its states and the transitions between them. Pure values; the store is records.py.

queued ─▶ running ─▶ succeeded
  │ ▲        │ └───▶ failed ◀──────── queued (its attempts are used up, or nothing can run it)
  │ │        └─────▶ cancelled ◀───── queued
  │ └── running (interrupted, or its worker was lost), failed and cancelled (resume)
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model.events import HealthEvent
from worker.ids import ULID_PATTERN
from worker.jobs.kinds import KindName


class JobStatus(StrEnum):
    """Where a job stands."""

    queued = "queued"
    """Waiting for a worker."""
    running = "running"
    """A worker holds its lease, or did until a moment ago."""
    succeeded = "succeeded"
    failed = "failed"
    """Ended with `error` saying why."""
    cancelled = "cancelled"
    """Ended because somebody asked; its checkpoints remain usable."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens unless somebody asks."""
        return self not in (JobStatus.queued, JobStatus.running)


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.queued: frozenset({JobStatus.running, JobStatus.cancelled, JobStatus.failed}),
    JobStatus.running: frozenset({JobStatus.queued, JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled}),
    JobStatus.succeeded: frozenset(),
    JobStatus.failed: frozenset({JobStatus.queued}),
    JobStatus.cancelled: frozenset({JobStatus.queued}),
}


class RecordError(Exception):
    """Root of the errors of job records."""


class JobNotFound(RecordError):
    """There is no such job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}")
        self.job_id = job_id


class IllegalTransition(RecordError):
    """The job is in a state from which the call makes no sense."""

    def __init__(self, job_id: str, status: JobStatus, wanted: str) -> None:
        super().__init__(f"job {job_id} is {status}; it cannot be {wanted}")
        self.job_id = job_id
        self.status = status


class NeedsDeleted(RecordError):
    """The job cannot begin: it is being deleted, or the model or checkpoint that it works on is."""

    def __init__(self, job_id: str, folder: str) -> None:
        super().__init__(f"job {job_id} cannot begin, because {folder.rstrip('/')} is being deleted")
        self.job_id = job_id


class StaleLease(RecordError):
    """The caller no longer holds the job: its lease ran out and the job went on without it."""

    def __init__(self, job_id: str, token: int) -> None:
        super().__init__(f"lease {token} of job {job_id} is no longer valid; another worker may have the job")
        self.job_id = job_id


class Progress(BaseModel):
    """How far a running job has come."""

    model_config = ConfigDict(frozen=True)

    step: int = 0
    total_steps: int = 0
    percent: float = 0.0
    steps_per_second: float | None = None
    eta_seconds: float | None = None


class JobRecord(BaseModel):
    """The truth about one job."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(pattern=ULID_PATTERN)
    kind: KindName
    status: JobStatus = JobStatus.queued
    name: str | None = None
    spec: dict[str, Any]
    """What it is asked to do, as it was stored: plain JSON, which the kind's model in `worker.jobs.kinds` reads."""
    model_id: str | None = Field(default=None, pattern=ULID_PATTERN)
    """The model a training makes (given with the job), or the one a job works on."""
    created_at: datetime
    queued_at: datetime
    """Its place in the queue: when it was given, or resumed. A job that lost its worker keeps it, and goes on first."""
    started_at: datetime | None = None
    """Start of the present attempt."""
    finished_at: datetime | None = None
    updated_at: datetime
    attempt: int = 1
    """Grows when a worker was lost, not when it was shut down in order."""
    fence: int = 0
    """Token of the latest lease: writes with an older one are refused."""
    version: int = 0
    """Number of transitions so far, for compare-and-set."""
    worker: str | None = None
    """Who holds, or last held, the lease."""
    cancel_requested: bool = False
    progress: Progress = Progress()
    last_loss: float | None = None
    last_checkpoint: int | None = None
    """Step of the newest committed checkpoint."""
    health: HealthEvent | None = None
    """The latest verdict on a training."""
    error: str | None = None
    """In words: why it failed, or what ended its latest attempt."""


class JobPage(BaseModel):
    """Some jobs, newest first, and where the next page starts."""

    model_config = ConfigDict(frozen=True)

    records: list[JobRecord]
    next_cursor: str | None = None


class Lease(BaseModel):
    """The right to run one job, as long as it is renewed."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    token: int
    worker: str


def now() -> datetime:
    """The present, UTC."""
    return datetime.now(UTC)


def require_held(record: JobRecord, lease: Lease) -> None:
    """Raises StaleLease unless the lease is the record's latest and the job runs."""
    if record.status is not JobStatus.running or record.fence != lease.token:
        raise StaleLease(record.id, lease.token)


def ended(record: JobRecord, status: JobStatus, error: str | None) -> JobRecord:
    """The record in a terminal state."""
    return record.model_copy(update={"status": status, "error": error, "finished_at": now()})


def requeued(record: JobRecord, reason: str) -> JobRecord:
    """The record back in the queue, at its old place."""
    update = {"status": JobStatus.queued, "started_at": None, "cancel_requested": False, "error": reason}
    return record.model_copy(update=update)


def resumed(record: JobRecord, spec: dict[str, Any]) -> JobRecord:
    """The record of a job that had ended, queued anew behind all others."""
    update = {"queued_at": now(), "attempt": 1, "error": None, "finished_at": None, "spec": spec}
    return requeued(record, "").model_copy(update=update)


def after_loss(record: JobRecord, reason: str, attempt_limit: int) -> JobRecord:
    """The record after an attempt that went wrong through no fault of the job: queued again, or ended."""
    if record.cancel_requested:
        return ended(record, JobStatus.cancelled, reason)
    if record.attempt >= attempt_limit:
        return ended(record, JobStatus.failed, f"{reason}; gave up after {record.attempt} attempts")
    again = requeued(record, f"{reason} (attempt {record.attempt} of {attempt_limit})")
    return again.model_copy(update={"attempt": record.attempt + 1})
