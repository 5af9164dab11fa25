"""Deleting jobs, models and checkpoints, so that a process that is killed on the way leaves nothing half done.

What is deleted is a folder in storage: jobs/{id}/, models/{id}/ or models/{id}/checkpoints/{step}/. A deletion is

1. decided: one script refuses what is in use, or marks the folder in Redis and takes a job's record away. From then on
   nothing can be given, resumed or restored that needs the folder. A tombstone in storage says the same where a wiped
   Redis does not reach;
2. carried out: the object that makes it a job, a model or a checkpoint goes first, then everything else;
3. settled: a job or a model is swept once more when `deletion_grace_s` have passed, for what a slow process wrote
   meanwhile; then the tombstone and the mark go, and no trace is left.

Whoever decides carries out at once. The reaper does so again for every mark and tombstone that it finds, and settles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import ValidationError

from worker import redis_keys
from worker.jobs import lua
from worker.jobs.kinds import kind_of
from worker.jobs.places import forget_place
from worker.jobs.record import IllegalTransition, JobNotFound, JobRecord, JobStatus, RecordError
from worker.jobs.record_writer import copy_key
from worker.jobs.records import RecordStore
from worker.storage.artifacts import ArtifactDamaged, ArtifactMissing, checkpoint_prefix, job_prefix, model_prefix

log = structlog.get_logger(__name__)


class InUse(RecordError):
    """A model, or a checkpoint of it, is needed by jobs that wait or run."""

    def __init__(self, model_id: str, job_ids: Collection[str]) -> None:
        super().__init__(f"model {model_id} is in use by {', '.join(sorted(job_ids))}")
        self.model_id = model_id
        self.job_ids = sorted(job_ids)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints of a training are kept beside those that somebody may still need."""

    keep_last: int
    keep_every: int
    """of the older ones, those whose step is a multiple of so many intervals between checkpoints"""

    def expired(self, steps: Collection[int], calibrated: Collection[int], checkpoint_every: int) -> list[int]:
        """The steps of the checkpoints that may go, in order.

        The newest stays, and so do the calibrated ones, and the newest of the training's schedule: a training that
        diverges goes back to that one, not to one that an interruption left in between.
        """
        in_order = sorted(steps)
        kept = {*in_order[-self.keep_last :], *calibrated}
        kept |= {step for step in in_order if step % (checkpoint_every * self.keep_every) == 0}
        kept |= set([step for step in in_order if step % checkpoint_every == 0][-1:])
        return [step for step in in_order if step not in kept]


class Deletions:
    """Deletes; safe to share among threads. Every method raises RedisError and StorageUnavailable."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._redis = store.redis
        self._artifacts = store.artifacts
        self._take_away_script = self._redis.register_script(lua.TAKE_AWAY_JOB)
        self._mark_script = self._redis.register_script(lua.MARK_UNUSED)

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, with its events, samples and files.

        The model of a training stays, unless it has no checkpoint and thus never can have one. Raises JobNotFound,
        IllegalTransition, InvalidId.
        """
        status = self._take_away_script(args=[job_id, job_prefix(job_id), ""])
        if status is None:
            raise JobNotFound(job_id)
        if not JobStatus(status.decode()).is_terminal:
            raise IllegalTransition(job_id, JobStatus(status.decode()), "deleted before it has ended; cancel it first")
        self._carry_out(job_prefix(job_id))

    def delete_model(self, model_id: str) -> None:
        """Delete a model with its checkpoints and calibrations. Raises InUse, InvalidId."""
        self._decide(model_prefix(model_id), model_id)
        self._carry_out(model_prefix(model_id))

    def thin_out(self, model_id: str, retention: Retention, checkpoint_every: int) -> list[int]:
        """Delete the checkpoints of a training that are not to be kept and that no job needs; their steps."""
        if self._store.was_wiped():  # nobody knows which jobs need one; the next checkpoint comes
            return []
        steps = [checkpoint.step for checkpoint in self._artifacts.list_checkpoints(model_id)]
        calibrated = self._artifacts.list_calibrations(model_id)
        deleted = []
        for step in retention.expired(steps, calibrated, checkpoint_every):
            folder = checkpoint_prefix(model_id, step)
            with contextlib.suppress(InUse):
                self._decide(folder, model_id, step)
                self._carry_out(folder)
                self._settle(folder)
                deleted.append(step)
        return deleted

    def sweep(self) -> None:
        """Carry out what was decided, by whomever, and settle what was carried out long enough ago."""
        now_s = int(self._redis.time()[0])
        tombstones = self._artifacts.list_tombstones()
        if tombstones:  # a wiped Redis has forgotten them
            self._redis.zadd(redis_keys.DELETIONS, dict.fromkeys(tombstones, now_s), nx=True)
        marks: Any = self._redis.zrange(redis_keys.DELETIONS, 0, -1, withscores=True)
        for mark, decided_at in marks:
            folder = mark.decode()
            self._carry_out(folder)
            if _is_checkpoint(folder) or now_s - decided_at >= self._store.settings.deletion_grace_s:
                self._settle(folder)
                log.info("deletion_settled", folder=folder)

    def _decide(self, folder: str, model_id: str, step: int | None = None) -> None:
        if self._store.was_wiped():  # jobs that only storage knows may need it
            self._store.restore_from_s3()
        users = self._mark_script(args=[folder, model_id, "" if step is None else step])
        if users:
            raise InUse(model_id, [job_id.decode() for job_id in users])

    def _carry_out(self, folder: str) -> None:
        self._artifacts.put_tombstone(folder)
        if folder.startswith("jobs/"):
            job_id = folder.split("/")[1]
            # A Redis that lost its last second, or was restored from storage, may have the record again.
            self._take_away_script(args=[job_id, folder, "1"])
            forget_place(self._redis, job_id)
            self._part_from_model(job_id)
        self._artifacts.delete_folder(folder)

    def _part_from_model(self, job_id: str) -> None:
        """Have the model of a training forget it, or delete a model that has no checkpoint and never can have one.

        The job's copy in storage names the model.
        """
        try:
            record = JobRecord.model_validate(self._artifacts.get_json(copy_key(job_id)))
        except (ArtifactMissing, ArtifactDamaged, ValidationError):  # it went before, or never can be read
            return
        kind = kind_of(record.kind)
        if kind is None or not kind.makes_model or record.model_id is None:
            return
        if self._artifacts.list_checkpoints(record.model_id):
            with contextlib.suppress(ArtifactMissing, ArtifactDamaged):
                self._artifacts.change_model(record.model_id, {"job_id": None})
        elif any(True for _ in self._artifacts.list_keys(model_prefix(record.model_id))):
            with contextlib.suppress(InUse):
                self.delete_model(record.model_id)

    def _settle(self, folder: str) -> None:
        self._artifacts.delete_tombstone(folder)
        self._redis.zrem(redis_keys.DELETIONS, folder)


def _is_checkpoint(folder: str) -> bool:
    """Whether it is a checkpoint's folder; a training that went back may store the same step again."""
    return folder.count("/") > 2
