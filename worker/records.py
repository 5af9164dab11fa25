"""The store of job records: the only writer of a job's status.

Redis holds the truth and is changed by compare-and-set (lua.py); a copy goes to S3 at every transition, from which all
is rebuilt when Redis is lost. A copy that S3 did not take is remembered and delivered later by the reaper. Imports
neither torch nor Celery. Every method raises redis.exceptions.RedisError while Redis is away.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from worker import lua
from worker.artifacts import ArtifactDamaged, ArtifactError, ArtifactMissing, Artifacts, job_prefix
from worker.connect import redis_client
from worker.events import EventLog, events_from_reply, events_key
from worker.ids import checked_id, new_id
from worker.jobs import (
    TRANSITIONS,
    IllegalTransition,
    JobEvent,
    JobKind,
    JobNotFound,
    JobPage,
    JobRecord,
    JobStatus,
    Lease,
    Progress,
    RecordError,
    StaleLease,
    now,
)
from worker.messages import QUEUES
from worker.settings import Settings

__all__ = [
    "IllegalTransition",
    "JobEvent",
    "JobKind",
    "JobNotFound",
    "JobPage",
    "JobRecord",
    "JobStatus",
    "Lease",
    "Progress",
    "RecordError",
    "RecordStore",
    "StaleLease",
    "follow_events",
]

EVENT_TTL_S = 24 * 3600
"""A finished job's events stay in Redis for so long; after that they are read from S3."""
RESTORED_KEY = "jobs:restored"
"""Exists unless Redis was wiped since the last restore."""

log = structlog.get_logger(__name__)


class RecordStore:
    """Creates, reads and changes job records; safe to share among threads."""

    def __init__(self, redis: Redis, artifacts: Artifacts, settings: Settings | None = None) -> None:
        self.redis = redis
        self.artifacts = artifacts
        self.settings = settings or Settings()
        self.events = EventLog(redis, artifacts, limit=self.settings.event_limit)
        self._write_script = redis.register_script(lua.WRITE)
        self._renew_script = redis.register_script(lua.RENEW)
        self._report_script = redis.register_script(lua.REPORT)
        self._mark_saved_script = redis.register_script(lua.MARK_SAVED)

    @classmethod
    def connect(cls, settings: Settings) -> RecordStore:
        """The store these settings name; nothing is sent yet."""
        return cls(redis_client(settings), Artifacts.connect(settings), settings)

    # Reading

    def get(self, job_id: str) -> JobRecord:
        """One record with its latest progress. Raises JobNotFound, InvalidId."""
        return _required(job_id, self._read([checked_id(job_id)])[0])

    def list(
        self,
        *,
        status: JobStatus | None = None,
        kind: JobKind | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Records, newest first, from `cursor` (an id; exclusive) on."""
        key = f"jobs:status:{status}" if status else "jobs:all"
        before = f"({checked_id(cursor)}" if cursor else "+"
        records: list[JobRecord] = []
        while len(records) <= limit:
            ids = _texts(self.redis.zrevrangebylex(key, before, "-", start=0, num=limit + 1))
            if not ids:
                break
            before = f"({ids[-1]}"
            found = (record for record in self._read(ids) if record is not None)
            records.extend(record for record in found if kind in (None, record.kind))
        return JobPage(records=records[:limit], next_cursor=records[limit - 1].id if len(records) > limit else None)

    def ids(self, status: JobStatus) -> Sequence[str]:
        """Ids of all jobs in a state, oldest first."""
        return _texts(self.redis.zrange(f"jobs:status:{status}", 0, -1))

    def queued_ids(self, kind: JobKind) -> Sequence[str]:
        """Ids of waiting jobs of a kind, longest waiting first."""
        return _texts(self.redis.zrange(f"jobs:queue:{kind}", 0, -1))

    def queue_position(self, record: JobRecord) -> int | None:
        """1 for the job that is next, None when it does not wait; kinds that share a queue wait for each other."""
        since: Any = self.redis.zscore(f"jobs:queue:{record.kind}", record.id)
        if since is None:
            return None
        ahead = self.redis.zrank(f"jobs:queue:{record.kind}", record.id)
        others = [kind for kind in QUEUES if kind is not record.kind and QUEUES[kind][0] == QUEUES[record.kind][0]]
        return 1 + _number(ahead) + sum(_number(self.redis.zcount(f"jobs:queue:{k}", "-inf", since)) for k in others)

    def counts(self) -> dict[JobStatus, int]:
        """Number of jobs in every state."""
        pipeline = self.redis.pipeline(transaction=False)
        for status in JobStatus:
            pipeline.zcard(f"jobs:status:{status}")
        return dict(zip(JobStatus, pipeline.execute(), strict=True))

    def _read(self, job_ids: Iterable[str]) -> Sequence[JobRecord | None]:
        pipeline = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(f"job:{job_id}", ["record", "progress", "last_loss", "last_checkpoint"])
        return [_record_from_hash(*fields) for fields in pipeline.execute()]

    # Making and changing

    def create(
        self, kind: JobKind, spec: Mapping[str, Any], *, name: str | None = None, model_id: str | None = None
    ) -> JobRecord:
        """A new queued job, in S3 before Redis. A `train` job is given the id of the model it will make.

        Raises StorageUnavailable; then there is no job.
        """
        created_at = now()
        record = JobRecord(
            id=new_id(),
            kind=kind,
            spec=dict(spec),
            name=name,
            model_id=new_id() if kind is JobKind.train and model_id is None else model_id,
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
                self.artifacts.delete(_copy_key(record.id))
            raise
        self._mark_saved(record)
        return record

    def request_cancel(self, job_id: str) -> JobRecord:
        """Ask for the end: a queued job is cancelled at once, a running one soon, a terminal one stays as it is."""

        def change(record: JobRecord) -> JobRecord | None:
            if record.status is JobStatus.queued:
                return _ended(record, JobStatus.cancelled, "cancelled before it started")
            if record.status.is_terminal or record.cancel_requested:
                return None
            return record.model_copy(update={"cancel_requested": True})

        return self._transition(job_id, change)

    def resume(self, job_id: str, *, spec: Mapping[str, Any] | None = None) -> JobRecord:
        """Queue a failed or cancelled job again, to go on from its last checkpoint, with a new spec if given.

        Raises IllegalTransition.
        """

        def change(record: JobRecord) -> JobRecord:
            if record.status not in (JobStatus.failed, JobStatus.cancelled):
                raise IllegalTransition(record.id, record.status, "resumed; only failed and cancelled jobs can")
            fresh = {"attempt": 1, "error": None, "finished_at": None, "spec": dict(spec or record.spec)}
            return _queued(record).model_copy(update=fresh)

        self.events.bring_back(job_id)
        return self._transition(job_id, change)

    def acquire_lease(self, job_id: str, worker: str) -> Lease | None:
        """Take a queued job: it is running from here on, and only the returned lease may change it.

        None when it is not queued: taken by another worker, cancelled or finished; the caller drops its message.
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

        record = self._change(job_id, change, take_lease=True)
        return None if record is None else Lease(job_id=job_id, token=record.fence, worker=worker)

    def renew(self, lease: Lease) -> bool:
        """Keep the lease for another `lease_s`; returns whether cancel was asked for. Raises StaleLease."""
        cancel = self._renew_script(args=[lease.job_id, lease.token, lease.worker, self._lease_ms])
        if cancel is None:
            raise StaleLease(lease.job_id, lease.token)
        return bool(cancel == b"1")

    def check(self, lease: Lease) -> bool:
        """As `renew` without renewing: whether cancel was asked for. Raises StaleLease."""
        status, fence, cancel = self.redis.hmget(f"job:{lease.job_id}", ["status", "fence", "cancel"])
        if status != b"running" or fence != b"%d" % lease.token:
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

    def append_event(self, job_id: str, type_: str, data: Mapping[str, Any], token: int) -> str:
        """Add to the job's stream; returns the event's id. Raises StaleLease."""
        return self.events.append(job_id, type_, data, token)

    def read_events(self, job_id: str, after: str = "0", *, block_ms: int = 0, limit: int = 500) -> Sequence[JobEvent]:
        """Events after an id; waits up to `block_ms` (at most 4000) for one. Reads S3 when Redis has forgotten them."""
        return self.events.read(job_id, after, block_ms=block_ms, limit=limit)

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
        """Give the job back in order, say at a shutdown: this attempt does not count. Raises StaleLease."""

        def change(record: JobRecord) -> JobRecord:
            _require_held(record, lease)
            return _queued(record).model_copy(update={"error": reason})

        return self._transition(lease.job_id, change)

    def lose_attempt(self, lease: Lease, reason: str) -> JobRecord:
        """End an attempt that went wrong through no fault of the job: queued again, or failed at the limit.

        Raises StaleLease.
        """

        def change(record: JobRecord) -> JobRecord:
            _require_held(record, lease)
            return self._after_loss(record, reason)

        return self._transition(lease.job_id, change)

    def lose_unleased(self, job_id: str, reason: str) -> JobRecord | None:
        """The same for a running job whose lease ran out; None when it has one after all, or does not run."""

        def change(record: JobRecord) -> JobRecord | None:
            return self._after_loss(record, reason) if record.status is JobStatus.running else None

        with contextlib.suppress(_LeaseAlive):
            return self._change(job_id, change, only_unleased=True)
        return None

    def fail_queued(self, job_id: str, error: str) -> JobRecord:
        """End a job that no worker can run. Raises IllegalTransition."""

        def change(record: JobRecord) -> JobRecord:
            if record.status is not JobStatus.queued:
                raise IllegalTransition(record.id, record.status, "failed unless it is queued")
            return _ended(record, JobStatus.failed, error)

        return self._transition(job_id, change)

    def has_lease(self, job_id: str) -> bool:
        """Whether the job's holder gave a sign of life within `lease_s`."""
        return bool(self.redis.exists(f"lease:{job_id}"))

    # Copies in S3

    def save_copy(self, job_id: str) -> None:
        """Bring the copy in S3 up to date, and a finished job's events too. Raises StorageUnavailable."""
        while True:
            record = self.get(job_id)
            self._put_copy(record)
            if record.status.is_terminal:
                self.events.archive(job_id)
            if self._mark_saved(record):
                return

    def unsaved_ids(self) -> Sequence[str]:
        """Jobs whose copy in S3 is behind."""
        return _texts(self.redis.smembers("jobs:unsaved"))

    def restore_from_s3(self) -> int:
        """Put every job that only S3 knows back into Redis; returns how many.

        A running one gets a fresh lease, so that its holder, if alive, has time to renew it. Raises StorageUnavailable.
        """
        with ThreadPoolExecutor(8) as pool:
            restored = sum(pool.map(self._restore, self.artifacts.list_jobs()))
        self.redis.set(RESTORED_KEY, int(time.time()))
        if restored:
            log.warning("jobs_restored_from_storage", jobs=restored)
        return restored

    def was_wiped(self) -> bool:
        """Whether Redis has lost everything since the last `restore_from_s3`."""
        return not self.redis.exists(RESTORED_KEY)

    def _restore(self, job_id: str) -> bool:
        if self.redis.exists(f"job:{job_id}"):
            return False
        try:
            record = JobRecord.model_validate(self.artifacts.get_json(_copy_key(job_id)))
        except ArtifactMissing:
            return False
        except (ArtifactDamaged, ValueError) as error:
            log.error("job_copy_unreadable", job_id=job_id, error=type(error).__name__)
            return False
        with contextlib.suppress(_Conflict):  # another process restores it too
            self._write(record, expected=None, take_lease=record.status is JobStatus.running, announce=False)
            self._mark_saved(record)
            return True
        return False

    def _put_copy(self, record: JobRecord) -> None:
        self.artifacts.put_bytes(_copy_key(record.id), record.model_dump_json(indent=1).encode(), "application/json")

    def _mark_saved(self, record: JobRecord) -> bool:
        return bool(self._mark_saved_script(args=[record.id, record.version]))

    # Compare-and-set

    def _transition(self, job_id: str, change: Callable[[JobRecord], JobRecord | None]) -> JobRecord:
        return self._change(job_id, change) or self.get(job_id)

    def _change(
        self,
        job_id: str,
        change: Callable[[JobRecord], JobRecord | None],
        *,
        take_lease: bool = False,
        only_unleased: bool = False,
    ) -> JobRecord | None:
        """The record after `change`, tried again while others write; None when `change` wants nothing written."""
        while True:
            before = self.get(job_id)
            changed = change(before)
            if changed is None:
                return None
            if changed.status is not before.status and changed.status not in TRANSITIONS[before.status]:
                raise IllegalTransition(job_id, before.status, str(changed.status))
            after = changed.model_copy(update={"version": before.version + 1, "updated_at": now()})
            with contextlib.suppress(_Conflict):
                self._write(after, expected=before.version, take_lease=take_lease, only_unleased=only_unleased)
                break
        log.info("job_changed", job_id=job_id, status=after.status, attempt=after.attempt, reason=after.error)
        try:
            self.save_copy(job_id)
        except ArtifactError as error:
            log.warning("job_copy_postponed", job_id=job_id, error=str(error))
        return after

    def _write(
        self,
        record: JobRecord,
        *,
        expected: int | None,
        take_lease: bool = False,
        only_unleased: bool = False,
        announce: bool = True,
    ) -> None:
        event = {"status": record.status, "attempt": record.attempt, "error": record.error}
        if record.cancel_requested:
            event["cancel_requested"] = True
        answer = self._write_script(
            args=[
                record.id,
                "" if expected is None else expected,
                record.kind,
                record.status,
                record.version,
                record.fence,
                int(record.cancel_requested),
                record.model_dump_json(),
                int(record.queued_at.timestamp() * 1000),
                self._lease_ms if take_lease else 0,
                record.worker or "",
                int(only_unleased),
                record.updated_at.isoformat(),
                json.dumps(event) if announce else "",
                self.settings.event_limit,
                EVENT_TTL_S,
            ]
        )
        match answer[0]:
            case b"missing":
                raise JobNotFound(record.id)
            case b"conflict":
                raise _Conflict
            case b"leased":
                raise _LeaseAlive

    def _end(self, lease: Lease, status: JobStatus, error: str | None) -> JobRecord:
        def change(record: JobRecord) -> JobRecord:
            _require_held(record, lease)
            return _ended(record, status, error)

        return self._transition(lease.job_id, change)

    def _after_loss(self, record: JobRecord, reason: str) -> JobRecord:
        if record.cancel_requested:
            return _ended(record, JobStatus.cancelled, reason)
        limit = self.settings.attempt_limit
        if record.attempt >= limit:
            return _ended(record, JobStatus.failed, f"{reason}; gave up after {record.attempt} attempts")
        update = {"attempt": record.attempt + 1, "error": f"{reason} (attempt {record.attempt} of {limit})"}
        return _queued(record).model_copy(update=update)

    def _report(self, lease: Lease, fields: Mapping[str, str]) -> None:
        flat = [text for pair in fields.items() for text in pair]
        if not self._report_script(args=[lease.job_id, lease.token, *flat]):
            raise StaleLease(lease.job_id, lease.token)

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)


class _Conflict(Exception):
    """Somebody else changed the record first."""


class _LeaseAlive(Exception):
    """The write was for a job without a lease, and it has one."""


async def follow_events(
    redis: AsyncRedis, job_id: str, after: str, *, block_ms: int = 4000, limit: int = 500
) -> list[JobEvent]:
    """Events after an id, waiting up to `block_ms` (at most 4000) for the first; for the service's streams."""
    found: Any = await redis.xread({events_key(job_id): after}, count=limit, block=min(block_ms, 4000))
    return events_from_reply(found)


def _required(job_id: str, record: JobRecord | None) -> JobRecord:
    if record is None:
        raise JobNotFound(job_id)
    return record


def _record_from_hash(
    record: bytes | None, progress: bytes | None, last_loss: bytes | None, last_checkpoint: bytes | None
) -> JobRecord | None:
    if record is None:
        return None
    update: dict[str, Any] = {}
    if progress is not None:
        update["progress"] = Progress.model_validate_json(progress)
    if last_loss is not None:
        update["last_loss"] = float(last_loss)
    if last_checkpoint is not None:
        update["last_checkpoint"] = int(last_checkpoint)
    return JobRecord.model_validate_json(record).model_copy(update=update)


def _require_held(record: JobRecord, lease: Lease) -> None:
    if record.status is not JobStatus.running or record.fence != lease.token:
        raise StaleLease(record.id, lease.token)


def _ended(record: JobRecord, status: JobStatus, error: str | None) -> JobRecord:
    return record.model_copy(update={"status": status, "error": error, "finished_at": now()})


def _queued(record: JobRecord) -> JobRecord:
    update = {"status": JobStatus.queued, "queued_at": now(), "started_at": None, "cancel_requested": False}
    return record.model_copy(update=update)


def _copy_key(job_id: str) -> str:
    return f"{job_prefix(job_id)}job.json"


def _number(value: Any) -> int:
    return int(value or 0)


def _texts(values: Any) -> list[str]:
    return [value.decode() for value in values]
