"""Prometheus series of a worker, served on its own port. Fleet-wide numbers are the service's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from worker.jobs import JobRecord, JobStatus
from worker.messages import DensityReply, SampleReply, SamplerReply
from worker.records import RecordStore
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.engine import EngineLoad

log = structlog.get_logger(__name__)

REGISTRY = CollectorRegistry()

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_REQUESTS = Counter("recovery_sampler_requests", "Requests answered", ["kind", "outcome"], registry=REGISTRY)
_SCORED = Counter("recovery_scored_events", "Events whose log density was told", registry=REGISTRY)
_IMAGES = Counter("recovery_sample_images", "Samples drawn", registry=REGISTRY)
_TIMES = Histogram(
    "recovery_sampler_seconds", "Where a request's time went", ["kind", "part"], buckets=_SECONDS, registry=REGISTRY
)


def observe_reply(reply: SamplerReply) -> None:
    """Count one answered request."""
    kind = type(reply).__name__.removesuffix("Reply").lower()
    _REQUESTS.labels(kind=kind, outcome=reply.error or "ok").inc()
    if isinstance(reply, SampleReply) and reply.x is not None:
        _IMAGES.inc(len(reply.x))
    if isinstance(reply, DensityReply) and reply.log_density is not None:
        _SCORED.inc(len(reply.log_density))
    for part in ("queue", "load", "compute"):
        _TIMES.labels(kind=kind, part=part).observe(getattr(reply.timings, f"{part}_s"))


class EngineCollector(Collector):
    """The sampling engine of this worker. rows/evaluations is how full its batches are."""

    def __init__(self, load_fn: Callable[[], EngineLoad]) -> None:
        self._load_fn = load_fn

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client."""
        load = self._load_fn()
        yield CounterMetricFamily("recovery_engine_evaluations", "Batches evaluated", value=load.num_evaluations)
        yield CounterMetricFamily("recovery_engine_rows", "Chains evaluated in them", value=load.num_row_evaluations)
        yield GaugeMetricFamily("recovery_engine_chains", "Chains that run", value=load.num_chains)
        yield GaugeMetricFamily("recovery_engine_waiting", "Chains that wait for a row", value=load.num_waiting)
        yield GaugeMetricFamily("recovery_engine_backlog_seconds", "Time to do all of it", value=load.backlog_s)
        yield GaugeMetricFamily("recovery_engine_models", "Models loaded", value=len(load.models))


class TrainingCollector(Collector):
    """The jobs this worker runs, read from their records at scrape time: the training is in another process.

    Series carry the job's id and end with it.
    """

    def __init__(self, store: RecordStore, worker: str) -> None:
        self._store = store
        self._worker = worker

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by prometheus-client."""
        records = self._running()
        series: list[tuple[str, str, Callable[[JobRecord], float | None]]] = [
            ("step", "Training steps done", lambda record: record.progress.step),
            ("total_steps", "Training steps in all", lambda record: record.progress.total_steps),
            ("steps_per_second", "Training speed", lambda record: record.progress.steps_per_second),
            ("loss", "Latest training loss", lambda record: record.last_loss),
            ("attempt", "Attempt that runs", lambda record: record.attempt),
        ]
        for name, text, value_fn in series:
            family = GaugeMetricFamily(f"recovery_job_{name}", text, labels=["job_id"])
            for record in records:
                value = value_fn(record)
                if value is not None:
                    family.add_metric([record.id], value)
            yield family

    def _running(self) -> list[JobRecord]:
        try:
            page = self._store.list(status=JobStatus.running, limit=200)
        except RedisError as error:
            log.warning("scrape_without_jobs", error=type(error).__name__)
            return []
        return [record for record in page.records if record.worker == self._worker]


def serve_metrics(settings: Settings, store: RecordStore, worker: str) -> None:
    """Serve this worker's series if a port is set."""
    if settings.worker_metrics_port is None:
        return
    REGISTRY.register(TrainingCollector(store, worker))
    start_http_server(settings.worker_metrics_port, settings.worker_metrics_host, REGISTRY)
