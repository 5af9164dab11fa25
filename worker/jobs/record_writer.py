"""How one job record is changed: by compare-and-set in Redis (lua.py), with a copy in S3 after every transition.

Which transitions there are is records.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping

import structlog
from redis import Redis

from worker.jobs import lua
from worker.jobs.event import StatusEvent, data_of
from worker.jobs.record import TRANSITIONS, IllegalTransition, JobNotFound, JobRecord, NeedsDeleted, now
from worker.jobs.record_reader import RecordReader
from worker.jobs.tally import Cut, additions
from worker.settings import Settings
from worker.storage.artifacts import ArtifactError, Artifacts, job_prefix

EVENT_TTL_S = 24 * 3600
"""A finished job's events stay in Redis for so long; after that they are read from S3."""

log = structlog.get_logger(__name__)


class Conflict(Exception):
    """Somebody else changed the record first."""


class LeaseAlive(Exception):
    """The write was for a job without a lease, and it has one."""


class RecordWriter(RecordReader):
    """Reads and writes job records; safe to share among threads."""

    def __init__(self, redis: Redis, artifacts: Artifacts, settings: Settings | None = None) -> None:
        super().__init__(redis, artifacts, settings)
        self._write_script = redis.register_script(lua.WRITE)
        self._mark_saved_script = redis.register_script(lua.MARK_SAVED)

    def save_copy(self, job_id: str) -> None:
        """Bring the copy in S3 up to date, and a finished job's events too. Raises StorageUnavailable."""
        while True:
            record = self.get(job_id)
            self._put_copy(record)
            if record.status.is_terminal:
                self.events.archive(job_id)
            if self._mark_saved(record):
                return

    def _put_copy(self, record: JobRecord) -> None:
        self.artifacts.put_bytes(copy_key(record.id), record.model_dump_json(indent=1).encode(), "application/json")

    def _mark_saved(self, record: JobRecord) -> bool:
        return bool(self._mark_saved_script(args=[record.id, record.version]))

    def _transition(
        self, job_id: str, change_fn: Callable[[JobRecord], JobRecord | None], *, cut: Cut | None = None
    ) -> JobRecord:
        return self._change(job_id, change_fn, cut=cut) or self.get(job_id)

    def _change(
        self,
        job_id: str,
        change_fn: Callable[[JobRecord], JobRecord | None],
        *,
        take_lease: bool = False,
        only_unleased: bool = False,
        save: bool = True,
        cut: Cut | None = None,
    ) -> JobRecord | None:
        """The record after `change_fn`, tried again while others write; None when it wants nothing written.

        `cut` is counted as the end of the attempt, if that is what the change is.
        """
        while True:
            before = self.get(job_id)
            changed = change_fn(before)
            if changed is None:
                return None
            if changed.status is not before.status and changed.status not in TRANSITIONS[before.status]:
                raise IllegalTransition(job_id, before.status, str(changed.status))
            after = changed.model_copy(update={"version": before.version + 1, "updated_at": now()})
            with contextlib.suppress(Conflict):
                tally = additions(before, after, cut)
                self._write(
                    after, expected=before.version, take_lease=take_lease, only_unleased=only_unleased, tally=tally
                )
                break
        log.info("job_changed", job_id=job_id, status=after.status, attempt=after.attempt, reason=after.error)
        if save:
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
        tally: Mapping[str, float] | None = None,
    ) -> None:
        event = StatusEvent(
            status=record.status,
            attempt=record.attempt,
            error=record.error,
            cancel_requested=record.cancel_requested,
        )
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
                json.dumps(data_of(event)) if announce else "",
                self.settings.event_limit,
                EVENT_TTL_S,
                *(text for field, value in (tally or {}).items() for text in (field, value)),
            ]
        )
        match answer[0]:
            case b"missing":
                raise JobNotFound(record.id)
            case b"conflict":
                raise Conflict
            case b"leased":
                raise LeaseAlive
            case b"deleted":
                raise NeedsDeleted(record.id, answer[1].decode())

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)


def copy_key(job_id: str) -> str:
    """Where the copy of a record lies in S3."""
    return f"{job_prefix(job_id)}job.json"
