"""Prometheus series of the API process, and of the whole fleet as Redis shows it at the moment of a scrape.

One process serves one replica (`recovery serve`), so nothing has to be merged between processes: every replica is
scraped by itself, its requests are added up, and what all replicas read from the same Redis is taken once (max).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import Scope

from service.http.fleet import Fleet
from worker.jobs.tally import BOUNDS_S
from worker.observe.probe import PATIENCE_S, Probe
from worker.observe.series import Series
from worker.storage.artifacts import ArtifactError

log = structlog.get_logger()

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Series("recovery_http_requests_total", "counter", "Requests answered", ("method", "route", "status"))
DURATION = Series(
    "recovery_http_request_duration_seconds",
    "histogram",
    "From a request to the end of its answer",
    ("method", "route"),
    # POST /sample takes from milliseconds to minutes, and event streams as long as their job.
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
IN_PROGRESS = Series("recovery_http_requests_in_progress", "gauge", "Requests that have no whole answer yet")
ENCODING = Series(
    "recovery_encode_duration_seconds",
    "histogram",
    "From the sampler's reply to PNG, zip, npy or JSON",
    ("route",),
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
)
REDIS_UP = Series("recovery_redis_up", "gauge", "Whether Redis answers this process")
S3_UP = Series("recovery_s3_up", "gauge", "Whether storage answers this process")
QUEUE_LENGTH = Series("recovery_queue_length", "gauge", "Messages that no worker has taken", ("queue",))
QUEUE_AGE = Series(
    "recovery_queue_oldest_age_seconds",
    "gauge",
    "Wait of the job or request that waits longest",
    ("queue",),
)
WORKERS = Series("recovery_workers", "gauge", "Workers that give signs of life", ("kind",))
JOBS = Series("recovery_jobs", "gauge", "Jobs by kind and status", ("kind", "status"))
STARTED = Series("recovery_job_attempts_started_total", "counter", "Attempts that began", ("kind",))
ATTEMPT_DURATION = Series(
    "recovery_job_attempt_duration_seconds",
    "histogram",
    "From the start of an attempt to its end, by how it ended",
    ("kind", "outcome"),
    BOUNDS_S,
)
JOB_DURATION = Series(
    "recovery_job_duration_seconds",
    "histogram",
    "From when a job was given, or resumed, to its end",
    ("kind", "status"),
    BOUNDS_S,
)


class RequestMetrics:
    """The series of this process's requests, counted and timed by route template and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = REQUESTS.counter(registry)
        self._duration = DURATION.histogram(registry)
        self._encoding = ENCODING.histogram(registry)
        self.in_progress = IN_PROGRESS.gauge(registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record one answered request. A method that a client invented does not become a label."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._duration.labels(known, route).observe(seconds)

    def observe_encoding(self, route: str, seconds: float) -> None:
        """Record how long it took to encode one answer."""
        self._encoding.labels(route).observe(seconds)


class FleetCollector(Collector):
    """The series of the fleet, read anew at every scrape.

    It waits for a store only a limited time: a store that is away shows as 0, not as a failed scrape.
    """

    def __init__(self, fleet_fn: Callable[[], Fleet], ping_storage_fn: Callable[[], None]) -> None:
        self._fleet = Probe(fleet_fn)
        self._storage = Probe(ping_storage_fn)

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, because registering must not ask a store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the series of this moment."""
        storage, redis = self._storage.begin(), self._fleet.begin()
        both: list[Future[Any]] = [storage, redis]
        wait(both, PATIENCE_S)
        yield S3_UP.single(_has_answered(storage))
        try:
            fleet = redis.result(timeout=0)
        except (RedisError, TimeoutError) as error:
            log.warning("redis-unavailable", detail=type(error).__name__)
            yield REDIS_UP.single(0)
            return
        yield REDIS_UP.single(1)
        yield QUEUE_LENGTH.collected(fleet.queue_lengths)
        yield QUEUE_AGE.collected(fleet.queue_ages_s)
        yield WORKERS.collected(fleet.workers)
        yield JOBS.collected(fleet.tally.jobs)
        yield STARTED.collected(fleet.tally.started)
        yield ATTEMPT_DURATION.distributed(fleet.tally.attempts)
        yield JOB_DURATION.distributed(fleet.tally.ended)


def _has_answered(ping: Future[None]) -> bool:
    try:
        ping.result(timeout=0)
    except (ArtifactError, TimeoutError) as error:
        log.warning("storage-unavailable", detail=type(error).__name__)
        return False
    return True


def route_template(scope: Scope) -> str:
    """Return the route as a template, `/jobs/{job_id}` without the id, because a label may only take few values."""
    route = scope.get("route")
    return str(getattr(route, "path", None) or "unmatched")
