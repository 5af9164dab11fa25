"""What a job's subprocess looks at after every step of its work: may it go on?"""

from __future__ import annotations

import threading
import time
from enum import StrEnum

import structlog
from redis.exceptions import RedisError

from worker.jobs.record import JobNotFound, Lease, StaleLease
from worker.jobs.records import RecordStore
from worker.storage.artifacts import StorageUnavailable

log = structlog.get_logger(__name__)

POLL_S = 0.5
_PAUSE_POLL_S = 0.1


class StopReason(StrEnum):
    """Why a job ends before its work is done."""

    cancelled = "cancelled"
    """Somebody asked for the end of the job."""
    interrupted = "interrupted"
    """SIGTERM came: the worker shuts down, or died."""
    stale = "stale"
    """The job was given to another worker."""


class Watch:
    """Follows the record in a thread; asking it costs the training nothing.

    While Redis is away for longer than a lease lasts, nobody can know whether the job was given to another worker. The
    training then pauses, and goes on as soon as the record says that it is still its own: nothing is run twice, and no
    step is lost.
    """

    def __init__(self, store: RecordStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        # The lease was last renewed up to `renew_every_s` before a check that found it ours.
        self._patience_s = store.settings.lease_s - store.settings.renew_every_s
        self._proven_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.reason: StopReason | None = None

    def start(self) -> None:
        """Begin to follow the record."""
        self._thread.start()

    def close(self) -> None:
        """Stop following the job."""
        self._closed.set()

    def interrupt(self) -> None:
        """Ask the work to save what it has and end; safe to call in a signal handler."""
        self.reason = self.reason or StopReason.interrupted

    def confirm(self) -> None:
        """Ask now, before something is published, whether the job is ours.

        Raises StaleLease when it is not; RedisError, StorageUnavailable, or JobNotFound while a wiped Redis is
        refilled, when nobody knows.
        """
        try:
            self._store.check(self._lease)
        except StaleLease:
            if self._store.may_hold(self._lease):
                raise JobNotFound(self._lease.job_id) from None
            self.reason = StopReason.stale
            raise

    def should_stop(self) -> bool:
        """Whether to end after this step. Returns only when the job is known to be ours, or is to end."""
        while self.reason is None and time.monotonic() - self._proven_at > self._patience_s:
            time.sleep(_PAUSE_POLL_S)
        return self.reason is not None

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        started_at = time.monotonic()
        try:
            cancelled = self._store.check(self._lease)
        except StaleLease:
            self._look_again()
        except RedisError as error:
            log.warning("record_unreachable", error=type(error).__name__)
        else:
            self._proven_at = started_at
            if cancelled:
                self.reason = self.reason or StopReason.cancelled

    def _look_again(self) -> None:
        """A record that was lost with Redis comes back from S3; any other is somebody else's, or was deleted."""
        try:
            if not self._store.may_hold(self._lease):
                self.reason = StopReason.stale
                return
        except (RedisError, StorageUnavailable) as error:
            log.warning("record_unreachable", error=type(error).__name__)
            return
        log.warning("record_missing")
