"""Job records as they stand in Redis: one, a page, the queue, the events. Writing is records.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from redis import Redis

from model.events import HealthEvent
from worker.ids import checked_id
from worker.jobs.event import JobEvent
from worker.jobs.event_stream import EventLog
from worker.jobs.kinds import JobKind, kind_of, kinds_in
from worker.jobs.record import JobNotFound, JobPage, JobRecord, JobStatus, Lease, Progress, StaleLease
from worker.redis_keys import JOB, JOBS_ALL, JOBS_BY_STATUS, JOBS_RESTORED, JOBS_UNSAVED, JOBS_WAITING, LEASE
from worker.settings import Settings
from worker.storage.artifacts import Artifacts

HEALTH = TypeAdapter(HealthEvent)
"""Reads and writes the verdict beside a record."""


class RecordReader:
    """Reads job records; safe to share among threads. Every method raises RedisError while Redis is away."""

    def __init__(self, redis: Redis, artifacts: Artifacts, settings: Settings | None = None) -> None:
        self.redis = redis
        self.artifacts = artifacts
        self.settings = settings or Settings()
        self.events = EventLog(redis, artifacts, limit=self.settings.event_limit)

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
        key = JOBS_BY_STATUS.of(status) if status else JOBS_ALL
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
        return _texts(self.redis.zrange(JOBS_BY_STATUS.of(status), 0, -1))

    def waiting_ids(self, queue: str) -> Sequence[str]:
        """Ids of the jobs that wait for the workers of a queue, of all its kinds, the next first."""
        pipeline = self.redis.pipeline(transaction=False)
        for kind in kinds_in(queue):
            pipeline.zrange(JOBS_WAITING.of(kind), 0, -1, withscores=True)
        waiting = sorted((since, job_id) for found in pipeline.execute() for job_id, since in found)
        return [job_id.decode() for _, job_id in waiting]

    def queue_position(self, record: JobRecord) -> int | None:
        """1 for the job that is next, None when it does not wait; kinds that share a queue wait for each other.

        A job of a kind that only another version knows has no place among ours: None.
        """
        kind = kind_of(record.kind)
        if kind is None:
            return None
        since: Any = self.redis.zscore(JOBS_WAITING.of(record.kind), record.id)
        if since is None:
            return None
        ahead = self.redis.zrank(JOBS_WAITING.of(record.kind), record.id)
        others = [name for name in kinds_in(kind.queue) if name != kind.name]
        return 1 + _number(ahead) + sum(_number(self.redis.zcount(JOBS_WAITING.of(k), "-inf", since)) for k in others)

    def waiting_since(self, queue: str) -> datetime | None:
        """Since when the job waits that has waited longest; None when none does.

        The queue is in the order in which jobs were given, and one that comes back is at its head: behind the first
        that never ran nobody has waited longer. Looks at 100 jobs at most.
        """
        records = (record for record in self._read(self.waiting_ids(queue)[:100]) if record is not None)
        return min((record.updated_at for record in records), default=None)

    def leased_by(self, worker: str) -> Sequence[JobRecord]:
        """The jobs that a worker runs; a job whose lease ran out is nobody's."""
        ids = self.ids(JobStatus.running)
        holders: Any = self.redis.mget([LEASE.of(job_id) for job_id in ids]) if ids else []
        held = [job_id for job_id, holder in zip(ids, holders, strict=True) if holder == worker.encode()]
        return [record for record in self._read(held) if record is not None and record.status is JobStatus.running]

    def counts(self) -> dict[JobStatus, int]:
        """Number of jobs in every state."""
        pipeline = self.redis.pipeline(transaction=False)
        for status in JobStatus:
            pipeline.zcard(JOBS_BY_STATUS.of(status))
        return dict(zip(JobStatus, pipeline.execute(), strict=True))

    def check(self, lease: Lease) -> bool:
        """As `renew` without renewing: whether cancel was asked for. Raises StaleLease."""
        status, fence, cancel = self.redis.hmget(JOB.of(lease.job_id), ["status", "fence", "cancel"])
        if not _is_held(status, fence, lease):
            raise StaleLease(lease.job_id, lease.token)
        return bool(cancel == b"1")

    def has_lease(self, job_id: str) -> bool:
        """Whether the job's holder gave a sign of life within `lease_s`."""
        return bool(self.redis.exists(LEASE.of(job_id)))

    def unsaved_ids(self) -> Sequence[str]:
        """Jobs whose copy in S3 is behind."""
        return _texts(self.redis.smembers(JOBS_UNSAVED))

    def was_wiped(self) -> bool:
        """Whether Redis has lost everything since the last `restore_from_s3`."""
        return not self.redis.exists(JOBS_RESTORED)

    def read_events(self, job_id: str, after: str = "0", *, block_ms: int = 0, limit: int = 500) -> Sequence[JobEvent]:
        """Events after an id; waits up to `block_ms` (at most 4000) for one. Reads S3 when Redis has forgotten them."""
        return self.events.read(job_id, after, block_ms=block_ms, limit=limit)

    def _held(self, lease: Lease) -> bool | None:
        """Whether the job runs under this lease; None when Redis does not know the job."""
        status, fence = self.redis.hmget(JOB.of(lease.job_id), ["status", "fence"])
        return None if status is None else _is_held(status, fence, lease)

    def _read(self, job_ids: Iterable[str]) -> Sequence[JobRecord | None]:
        pipeline = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(JOB.of(job_id), ["record", "progress", "last_loss", "last_checkpoint", "health"])
        return [_record_from_hash(*fields) for fields in pipeline.execute()]


def _is_held(status: Any, fence: Any, lease: Lease) -> bool:
    return bool(status == b"running" and fence == b"%d" % lease.token)


def _required(job_id: str, record: JobRecord | None) -> JobRecord:
    if record is None:
        raise JobNotFound(job_id)
    return record


def _record_from_hash(
    record: bytes | None,
    progress: bytes | None,
    last_loss: bytes | None,
    last_checkpoint: bytes | None,
    health: bytes | None,
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
    if health is not None:
        update["health"] = HEALTH.validate_json(health)
    return JobRecord.model_validate_json(record).model_copy(update=update)


def _number(value: Any) -> int:
    return int(value or 0)


def _texts(values: Any) -> list[str]:
    return [value.decode() for value in values]
