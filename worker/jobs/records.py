"""The store of job records: the only writer of a job's status.

Redis holds the truth and is changed by compare-and-set (lua.py); a copy goes to S3 at every transition, from which all
is rebuilt when Redis is lost. A copy that S3 did not take is remembered and delivered later by the reaper. Imports
neither torch nor Celery. Every method raises redis.exceptions.RedisError while Redis is away.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from redis import Redis

from model.events import HealthEvent
from worker.connect import redis_client
from worker.ids import new_id
from worker.jobs import lua
from worker.jobs.kinds import kind_of
from worker.jobs.record import (
    IllegalTransition,
    JobNotFound,
    JobRecord,
    JobStatus,
    Lease,
    NeedsDeleted,
    Progress,
    StaleLease,
    after_loss,
    ended,
    now,
    requeued,
    require_held,
    resumed,
)
from worker.jobs.record_reader import HEALTH
from worker.jobs.record_writer import Conflict, LeaseAlive, RecordWriter, copy_key
from worker.redis_keys import JOB, JOBS_RESTORED
from worker.settings import Settings
from worker.storage.artifacts import ArtifactDamaged, ArtifactError, ArtifactMissing, Artifacts, job_prefix

log = structlog.get_logger(__name__)


class RecordStore(RecordWriter):
    """Creates, reads and changes job records; safe to share among threads."""

    def __init__(self, redis: Redis, artifacts: Artifacts, settings: Settings | None = None) -> None:
        super().__init__(redis, artifacts, settings)
        self._renew_script = redis.register_script(lua.RENEW)
        self._report_script = redis.register_script(lua.REPORT)

    @classmethod
    def connect(cls, settings: Settings) -> RecordStore:
        """The store these settings name; nothing is sent yet."""
        return cls(redis_client(settings), Artifacts.connect(settings), settings)

    # Making and changing

    def create(
        self,
        kind: str,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        model_id: str | None = None,
        job_id: str | None = None,
    ) -> JobRecord:
        """A new queued job, in S3 before Redis. A job that makes a model is given the id of that model.

        The spec is stored as it is: whoever asks for a job checks it, by the model of its kind.

        `job_id` is one of `new_id`, never used before. Raises StorageUnavailable, NeedsDeleted; then there is no job.
        """
        created_at, known = now(), kind_of(kind)
        record = JobRecord(
            id=job_id or new_id(),
            kind=kind,
            spec=dict(spec),
            name=name,
            model_id=new_id() if model_id is None and known is not None and known.makes_model else model_id,
            created_at=created_at,
            queued_at=created_at,
            updated_at=created_at,
            version=1,
        )
        self._put_copy(record)
        try:
            self._write(record, expected=None)
        except Exception:
            # The caller is told that there is no job; a later restore must not find one.
            with contextlib.suppress(ArtifactError):
                self.artifacts.delete(copy_key(record.id))
            raise
        self._mark_saved(record)
        return record

    def request_cancel(self, job_id: str) -> JobRecord:
        """Ask for the end: a queued job is cancelled at once, a running one soon, a terminal one stays as it is."""

        def change(record: JobRecord) -> JobRecord | None:
            if record.status is JobStatus.queued:
                return ended(record, JobStatus.cancelled, "cancelled before it started")
            if record.status.is_terminal or record.cancel_requested:
                return None
            return record.model_copy(update={"cancel_requested": True})

        return self._transition(job_id, change)

    def resume(self, job_id: str, *, spec: Mapping[str, Any] | None = None) -> JobRecord:
        """Queue a failed or cancelled job again, to go on from its last checkpoint, with a new spec if given.

        Raises IllegalTransition, NeedsDeleted.
        """

        def change(record: JobRecord) -> JobRecord:
            if record.status not in (JobStatus.failed, JobStatus.cancelled):
                raise IllegalTransition(record.id, record.status, "resumed; only failed and cancelled jobs can")
            return resumed(record, dict(spec or record.spec))

        self.events.bring_back(job_id)
        return self._transition(job_id, change)

    def acquire_lease(self, job_id: str, worker: str) -> Lease | None:
        """Take a queued job: it is running from here on, and only the returned lease may change it.

        None when it is not queued: taken by another worker, cancelled or finished. The copy in S3 is left to the
        reaper: a store that hangs must not cost the new lease.
        """
        # Redis's clock makes tokens grow even when the counter was lost with a wiped Redis.
        seconds, micros = self.redis.time()
        clock_ms = int(seconds) * 1000 + int(micros) // 1000

        def change(record: JobRecord) -> JobRecord | None:
            if record.status is not JobStatus.queued:
                return None
            return record.model_copy(
                update={
                    "status": JobStatus.running,
                    "fence": max(record.fence + 1, clock_ms),
                    "worker": worker,
                    "started_at": now(),
                }
            )

        record = self._change(job_id, change, take_lease=True, save=False)
        return None if record is None else Lease(job_id=job_id, token=record.fence, worker=worker)

    def renew(self, lease: Lease) -> bool:
        """Keep the lease for another `lease_s`; returns whether cancel was asked for. Raises StaleLease."""
        cancel = self._renew_script(args=[lease.job_id, lease.token, lease.worker, self._lease_ms])
        if cancel is None:
            raise StaleLease(lease.job_id, lease.token)
        return bool(cancel == b"1")

    def report_progress(self, lease: Lease, progress: Progress, *, last_loss: float | None = None) -> None:
        """Note how far a job has come; in Redis only. Raises StaleLease."""
        fields = {"progress": progress.model_dump_json()}
        if last_loss is not None:
            fields["last_loss"] = repr(last_loss)
        self._report(lease, fields)

    def report_checkpoint(self, lease: Lease, step: int) -> None:
        """Note the newest committed checkpoint. Raises StaleLease."""
        self._report(lease, {"last_checkpoint": str(step)})

    def report_health(self, lease: Lease, verdict: HealthEvent) -> None:
        """Note the latest verdict on a training. Raises StaleLease."""
        self._report(lease, {"health": HEALTH.dump_json(verdict).decode()})

    def decide(self, lease: Lease, spec: Mapping[str, Any]) -> JobRecord:
        """Replace what a running job is asked to do by what was decided of it. Raises StaleLease."""

        def change(record: JobRecord) -> JobRecord:
            require_held(record, lease)
            return record.model_copy(update={"spec": dict(spec)})

        return self._transition(lease.job_id, change)

    def append_event(self, job_id: str, type_: str, data: Mapping[str, Any], token: int) -> str:
        """Add to the job's stream; returns the event's id. Raises StaleLease."""
        return self.events.append(job_id, type_, data, token)

    def succeed(self, lease: Lease) -> JobRecord:
        """Raises StaleLease."""
        return self._end(lease, JobStatus.succeeded, None)

    def fail(self, lease: Lease, error: str) -> JobRecord:
        """End the job with the reason, in words. Raises StaleLease."""
        return self._end(lease, JobStatus.failed, error)

    def cancel(self, lease: Lease, detail: str | None = None) -> JobRecord:
        """End the job because somebody asked. Raises StaleLease."""
        return self._end(lease, JobStatus.cancelled, detail)

    def requeue(self, lease: Lease, reason: str) -> JobRecord:
        """Give the job back in order, say at a shutdown: this attempt does not count, and the job keeps its place.

        One that was to be cancelled is. Raises StaleLease.
        """

        def change(record: JobRecord) -> JobRecord:
            require_held(record, lease)
            if record.cancel_requested:
                return ended(record, JobStatus.cancelled, reason)
            return requeued(record, reason)

        return self._transition(lease.job_id, change, cut="interrupted")

    def lose_attempt(self, lease: Lease, reason: str) -> JobRecord:
        """End an attempt that went wrong through no fault of the job: queued again, or failed at the limit.

        Raises StaleLease.
        """

        def change(record: JobRecord) -> JobRecord:
            require_held(record, lease)
            return after_loss(record, reason, self.settings.attempt_limit)

        return self._transition(lease.job_id, change, cut="lost")

    def lose_unleased(self, job_id: str, reason: str) -> JobRecord | None:
        """The same for a running job whose lease ran out; None when it has one after all, or does not run."""

        def change(record: JobRecord) -> JobRecord | None:
            return (
                after_loss(record, reason, self.settings.attempt_limit) if record.status is JobStatus.running else None
            )

        with contextlib.suppress(LeaseAlive):
            return self._change(job_id, change, only_unleased=True, cut="lease_lost")
        return None

    def fail_queued(self, job_id: str, error: str) -> JobRecord:
        """End a job that no worker can run. Raises IllegalTransition."""

        def change(record: JobRecord) -> JobRecord:
            if record.status is not JobStatus.queued:
                raise IllegalTransition(record.id, record.status, "failed unless it is queued")
            return ended(record, JobStatus.failed, error)

        return self._transition(job_id, change)

    # Copies in S3

    def restore_from_s3(self) -> int:
        """Put every job that only S3 knows back into Redis; returns how many.

        A running one gets a fresh lease, so that its holder, if alive, has time to renew it. Raises StorageUnavailable.
        """
        with ThreadPoolExecutor(8) as pool:
            restored = sum(pool.map(self._restore, self.artifacts.list_jobs()))
        self.redis.set(JOBS_RESTORED, int(time.time()))
        if restored:
            log.warning("jobs_restored_from_storage", jobs=restored)
        return restored

    def may_hold(self, lease: Lease) -> bool:
        """Whether a lease that was just refused is good after all: Redis lost the job, or has it back by now.

        False when the job was given to another worker, has ended or was deleted. Raises StorageUnavailable.
        """
        held = self._held(lease)
        return self.artifacts.exists(copy_key(lease.job_id)) if held is None else held

    def find(self, job_id: str) -> JobRecord:
        """As `get`, also between a wipe of Redis and the reaper's next sweep: the job is then brought back at once.

        Raises JobNotFound, InvalidId, StorageUnavailable.
        """
        try:
            return self.get(job_id)
        except JobNotFound:
            self._restore(job_id)
            return self.get(job_id)

    def _restore(self, job_id: str) -> bool:
        if self.redis.exists(JOB.of(job_id)):
            return False
        try:
            record = JobRecord.model_validate(self.artifacts.get_json(copy_key(job_id)))
        except ArtifactMissing:
            return False
        except (ArtifactDamaged, ValueError) as error:
            log.error("job_copy_unreadable", job_id=job_id, error=type(error).__name__)
            return False
        if self.artifacts.has_tombstone(job_prefix(job_id)):
            return False
        if not record.status.is_terminal:
            self.events.bring_back(job_id)  # before anybody can append: ids must grow
        with contextlib.suppress(Conflict, NeedsDeleted):  # another process restores it too, or deletes it
            self._write(record, expected=None, take_lease=record.status is JobStatus.running, announce=False)
            self._mark_saved(record)
            return True
        return False

    def _end(self, lease: Lease, status: JobStatus, error: str | None) -> JobRecord:
        def change(record: JobRecord) -> JobRecord:
            require_held(record, lease)
            return ended(record, status, error)

        return self._transition(lease.job_id, change)

    def _report(self, lease: Lease, fields: Mapping[str, str]) -> None:
        flat = [text for pair in fields.items() for text in pair]
        if not self._report_script(args=[lease.job_id, lease.token, *flat]):
            raise StaleLease(lease.job_id, lease.token)
