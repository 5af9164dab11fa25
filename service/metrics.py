"""Prometheus series of the API process, and of the fleet as Redis shows it at the moment of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

log = structlog.get_logger()

# POST /sample takes from milliseconds to minutes.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Numbers about all jobs and workers."""

    jobs: Mapping[str, int]
    """by status"""
    queue_lengths: Mapping[str, int]
    """messages waiting, by queue"""
    workers: Mapping[str, int]
    """alive, by kind"""


class RequestMetrics:
    """Counts and times requests by route template and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "recovery_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "recovery_http_request_seconds",
            "Time from request to the end of its answer",
            ["method", "route"],
            buckets=_BUCKETS_S,
            registry=registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class FleetCollector(Collector):
    """Asks `fleet_fn` at every scrape; a Redis that is away shows as recovery_redis_up 0, not as a failed scrape."""

    def __init__(self, fleet_fn: Callable[[], Fleet]) -> None:
        self._fleet_fn = fleet_fn

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The series of this moment."""
        try:
            fleet = self._fleet_fn()
        except RedisError as error:
            log.warning("redis-unavailable", detail=type(error).__name__)
            yield GaugeMetricFamily("recovery_redis_up", "Whether Redis answers", value=0)
            return
        yield GaugeMetricFamily("recovery_redis_up", "Whether Redis answers", value=1)
        yield _gauge("recovery_jobs", "Jobs by status", "status", fleet.jobs)
        yield _gauge("recovery_queue_length", "Messages waiting for a worker", "queue", fleet.queue_lengths)
        yield _gauge("recovery_workers", "Workers alive", "kind", fleet.workers)


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
