"""A trainer that ends by itself: after so many jobs (`--max-jobs`), or when none came (`--max-idle`).

For a cluster that starts one pod a job and pays for its GPU until the pod ends. The worker stops taking messages when
it has its share, runs what it has to the end, and exits 0. A message that finds no job waiting counts too: whoever
started this worker for it has nothing else for it to do.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import click
import structlog
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer

log = structlog.get_logger(__name__)

_POLL_S = 0.5
_SETTLED_S = 1.0
"""A message is counted a moment before Celery knows its task; so long without a task means that it has ended."""

OPTIONS = (
    click.Option(("--max-jobs",), type=click.IntRange(min=1), help="Exit after so many messages and their jobs."),
    click.Option(("--max-idle",), type=click.FloatRange(min=0), help="Exit after so many seconds without a job."),
)
"""The options that this file adds to `celery worker`."""


class JobLimit:
    """Counts a worker's messages and stops the worker at a limit. Without limits it does nothing."""

    def __init__(self) -> None:
        self.max_jobs: int | None = None
        self.max_idle_s: float | None = None
        self._num_received = 0
        self._busy_at = time.monotonic()
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to watch the worker, which is ready."""
        self._busy_at = time.monotonic()
        if self.max_jobs is not None or self.max_idle_s is not None:
            threading.Thread(target=self._run, name="job-limit", daemon=True).start()

    def stop(self) -> None:
        """Stop watching: the worker ends, for whatever reason."""
        self._closed.set()

    def count(self, consumer: Consumer) -> None:
        """Count one more message; called in the thread that received it."""
        self._num_received += 1
        self._busy_at = time.monotonic()
        if self._has_its_share():
            # For good: a consumer made after a lost connection reads the same, now empty, selection.
            for queue in list(consumer.app.amqp.queues.consume_from):
                consumer.cancel_task_queue(queue)

    def _has_its_share(self) -> bool:
        return self.max_jobs is not None and self._num_received >= self.max_jobs

    def _run(self) -> None:
        while not self._closed.wait(_POLL_S):
            if state.requests:
                self._busy_at = time.monotonic()
            elif self._is_over(time.monotonic() - self._busy_at):
                log.info("job_limit_reached", messages=self._num_received)
                state.should_stop = 0  # type: ignore[assignment] # the exit status, of a warm shutdown
                return

    def _is_over(self, idle_s: float) -> bool:
        if self._has_its_share():
            return idle_s > _SETTLED_S
        return self.max_idle_s is not None and idle_s > self.max_idle_s


class JobLimitStep(bootsteps.Step):
    """Takes the two options from the command line of the worker."""

    def __init__(self, parent: Any, max_jobs: int | None = None, max_idle: float | None = None, **_: Any) -> None:
        job_limit.max_jobs, job_limit.max_idle_s = max_jobs, max_idle
        super().__init__(parent)


job_limit = JobLimit()
