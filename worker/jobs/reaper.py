"""Puts right what died, was lost, or could not be delivered. Runs in a thread of every worker, one at a time acting.

A sweep: jobs back from S3 if Redis was wiped; running jobs without a lease back into the queue; copies in S3 brought up
to date; messages for queued jobs that have none; deletions that were decided carried out. Each step is idempotent and
guarded by the records.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection

import structlog
from redis import Redis
from redis.exceptions import RedisError

from worker.jobs.deletion import Deletions
from worker.jobs.record import JobNotFound, JobStatus
from worker.jobs.records import RecordStore
from worker.redis_keys import JOBS_UNSAVED, REAPER_LOCK
from worker.storage.artifacts import ArtifactError

log = structlog.get_logger(__name__)


class Reaper:
    """Sweeps every `reaper_every_s` while it holds the lock; another worker takes over when this one is gone."""

    def __init__(
        self,
        store: RecordStore,
        *,
        name: str,
        queues: Collection[str],
        wake_fn: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._deletions = Deletions(store)
        self._redis: Redis = store.redis
        self._settings = store.settings
        self._name = name
        self._queues = queues
        self._wake_fn = wake_fn
        self._short_since: dict[str, float] = {}
        self._unsaved_before: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present sweep, and let another take over at once."""
        self._stopped.set()
        self._thread.join(timeout=15)
        try:
            if self._redis.get(REAPER_LOCK) == self._name.encode():
                self._redis.delete(REAPER_LOCK)
        except RedisError as error:
            log.warning("reaper_lock_kept", error=type(error).__name__)

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.reaper_every_s):
            try:
                if self._holds_lock():
                    self.sweep()
            except (RedisError, ArtifactError) as error:
                log.warning("sweep_postponed", error=type(error).__name__)
            except Exception:  # the next sweep must come, whatever this one met
                log.exception("sweep_failed")

    def _holds_lock(self) -> bool:
        # Two sweeping at once, while a lock changes hands, would do no harm: the records guard every change.
        lifetime_ms = int(max(3 * self._settings.reaper_every_s, 2.0) * 1000)
        if self._redis.set(REAPER_LOCK, self._name, nx=True, px=lifetime_ms):
            return True
        if self._redis.get(REAPER_LOCK) != self._name.encode():
            return False
        return bool(self._redis.pexpire(REAPER_LOCK, lifetime_ms))

    def sweep(self) -> None:
        """One round. Raises RedisError, ArtifactError."""
        if self._store.was_wiped():
            self._store.restore_from_s3()
        if self._leases_are_meaningful():
            self._requeue_lost()
        for queue in self._queues:
            self._resend_messages(queue)
        self._save_copies()
        self._deletions.sweep()

    def _leases_are_meaningful(self) -> bool:
        """While Redis was down nobody could renew: after a restart every holder gets the time to do so."""
        return float(self._redis.info("server")["uptime_in_seconds"]) > self._settings.lease_s

    def _requeue_lost(self) -> None:
        for job_id in self._store.ids(JobStatus.running):
            if self._store.has_lease(job_id):
                continue
            reason = f"its worker was lost: no sign of life for {self._settings.lease_s:g} s"
            record = self._store.lose_unleased(job_id, reason)
            if record is not None:
                log.warning("job_reaped", job_id=job_id, status=record.status, attempt=record.attempt)
                if record.status is JobStatus.queued:
                    self._wake_fn(record.kind, job_id)

    def _resend_messages(self, queue: str) -> None:
        """Send as many as there are waiting jobs more than messages; whose they are does not matter to a trainer.

        A message on its way from the queue to a lease is nowhere to be seen, for a moment; hence the wait.
        """
        waiting, messaged = self._store.waiting_ids(queue), self._messaged_ids(queue)
        missing, now = len(waiting) - len(messaged), time.monotonic()
        if missing <= 0:
            self._short_since.pop(queue, None)
        elif now - self._short_since.setdefault(queue, now) >= self._settings.lease_s:
            self._short_since[queue] = now
            for job_id in [job_id for job_id in waiting if job_id not in messaged][:missing]:
                log.warning("message_sent_again", job_id=job_id)
                self._wake_fn(self._store.get(job_id).kind, job_id)

    def _messaged_ids(self, queue: str) -> list[str]:
        return [json.loads(message)["headers"]["id"] for message in self._redis.lrange(queue, 0, -1)]

    def _save_copies(self) -> None:
        """Those that are behind since the last sweep; a younger one is being written by whoever changed the record."""
        unsaved = set(self._store.unsaved_ids())
        for job_id in unsaved & self._unsaved_before:
            try:
                self._store.save_copy(job_id)
            except JobNotFound:
                self._redis.srem(JOBS_UNSAVED, job_id)
        self._unsaved_before = unsaved
