"""Events and progress on their way to Redis. The training only ever puts them into a queue in memory.

A Redis that is away delays them; when the queue is full the newest are dropped and counted. Nothing here stops a
training.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from model.events import HealthEvent
from worker.jobs.event import CheckpointStoredEvent, EventData, data_of, type_of
from worker.jobs.record import Lease, Progress, StaleLease
from worker.jobs.records import RecordStore

log = structlog.get_logger(__name__)

CAPACITY = 2000
_RETRY_S = 0.5


class Telemetry:
    """Delivers what happens in one attempt of a job, in order, from a thread of its own."""

    def __init__(self, store: RecordStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue(CAPACITY)
        self._closing = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        """Begin to deliver, in a thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Deliver what is waiting, for at most `timeout_s`."""
        self._give_up_at = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s + 6)
        if self.dropped or not self._queue.empty():
            log.warning("telemetry_dropped", events=self.dropped + self._queue.qsize())

    def event(self, event: EventData) -> None:
        """Append an event to the job's stream."""
        type_, data = type_of(event), data_of(event)
        self._put(lambda: self._store.append_event(self._lease.job_id, type_, data, self._lease.token))

    def progress(self, progress: Progress, last_loss: float | None = None) -> None:
        """Update the progress in the job's record."""
        self._put(lambda: self._store.report_progress(self._lease, progress, last_loss=last_loss))

    def health(self, verdict: HealthEvent) -> None:
        """Note in the record how healthy the training is, and append the event that tells of it."""
        self._put(lambda: self._store.report_health(self._lease, verdict))
        self.event(verdict)

    def checkpoint(self, event: CheckpointStoredEvent) -> None:
        """Note in the record that a checkpoint is committed, and append the event that tells of it."""
        self._put(lambda: self._store.report_checkpoint(self._lease, event.step))
        self.event(event)

    def _put(self, delivery: Callable[[], object]) -> None:
        try:
            self._queue.put_nowait(delivery)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while True:
            try:
                delivery = self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            self._deliver(delivery)

    def _deliver(self, delivery: Callable[[], object]) -> None:
        while time.monotonic() < self._give_up_at:
            try:
                delivery()
                return
            except RedisError as error:
                log.warning("telemetry_delayed", error=type(error).__name__)
                time.sleep(_RETRY_S)
            except StaleLease:
                break
            except Exception:  # what is told of a training must never end it
                log.exception("telemetry_refused")
                break
        self.dropped += 1
