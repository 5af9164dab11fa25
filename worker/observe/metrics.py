"""What a worker's main process counts and serves on its own port. Fleet-wide numbers are the service's.

Trainers add the jobs that they run (job_metrics.py), samplers their engine; both the GPUs (gpu_metrics.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from worker.observe.gpu_metrics import register_gpus
from worker.observe.series import Series, register_process
from worker.queue.messages import DensityReply, SampleReply, SamplerReply
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.engine.engine import EngineLoad

log = structlog.get_logger(__name__)

REGISTRY = CollectorRegistry()
_RETRY_S = 5.0

REQUESTS = Series("recovery_sampler_requests_total", "counter", "Requests answered", ("kind", "outcome"))
IMAGES = Series("recovery_sampler_images_total", "counter", "Samples drawn")
SCORED = Series("recovery_sampler_scored_events_total", "counter", "Events whose log density was told")
PARTS = Series(
    "recovery_sampler_request_part_seconds",
    "histogram",
    "Where a request's time went: queue, load, compute",
    ("kind", "part"),
    (0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)

CHAINS = Series("recovery_engine_chains", "gauge", "Chains that run, and that wait for a row", ("state",))
BACKLOG = Series("recovery_engine_backlog_seconds", "gauge", "Time to do all that was accepted")
EVALUATIONS = Series("recovery_engine_evaluations_total", "counter", "Batches evaluated")
ROWS = Series("recovery_engine_gradient_evaluations_total", "counter", "Energy gradients of chains, the rows in them")
CAPACITY = Series("recovery_engine_row_capacity_total", "counter", "Rows that these batches could have had")
BUSY = Series("recovery_engine_busy_seconds_total", "counter", "Time spent on evaluations and other work")
MODELS = Series("recovery_engine_models", "gauge", "Models in memory")
MODEL_SIZE = Series(
    "recovery_engine_model_bytes", "gauge", "Of the models in memory: their weights and what is kept of them"
)
HITS = Series("recovery_engine_model_hits_total", "counter", "Requests whose model was in memory")
LOADS = Series("recovery_engine_model_loads_total", "counter", "Models loaded from storage")
LOADING = Series("recovery_engine_model_load_seconds_total", "counter", "Time spent loading them")
EVICTIONS = Series("recovery_engine_model_evictions_total", "counter", "Models dropped to make room")

_requests = REQUESTS.counter(REGISTRY)
_images = IMAGES.counter(REGISTRY)
_scored = SCORED.counter(REGISTRY)
_parts = PARTS.histogram(REGISTRY)


def observe_reply(reply: SamplerReply) -> None:
    """Count one answered request."""
    kind = type(reply).__name__.removesuffix("Reply").lower()
    _requests.labels(kind=kind, outcome=reply.error or "ok").inc()
    if isinstance(reply, SampleReply) and reply.x is not None:
        _images.inc(len(reply.x))
    if isinstance(reply, DensityReply) and reply.log_density is not None:
        _scored.inc(len(reply.log_density))
    for part in ("queue", "load", "compute"):
        _parts.labels(kind=kind, part=part).observe(getattr(reply.timings, f"{part}_s"))


class EngineCollector(Collector):
    """The sampling engine of this worker. Gradient evaluations over row capacity is how full its batches are."""

    def __init__(self, load_fn: Callable[[], EngineLoad]) -> None:
        self._load_fn = load_fn

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client."""
        load = self._load_fn()
        yield CHAINS.collected({("running",): load.num_chains, ("waiting",): load.num_waiting})
        single = {
            BACKLOG: load.backlog_s,
            EVALUATIONS: load.num_evaluations,
            ROWS: load.num_row_evaluations,
            CAPACITY: load.num_row_capacity,
            BUSY: load.busy_s,
            MODELS: len(load.models),
            MODEL_SIZE: load.model_bytes,
            HITS: load.num_model_hits,
            LOADS: load.num_model_loads,
            LOADING: load.model_load_s,
            EVICTIONS: load.num_model_evictions,
        }
        for series, value in single.items():
            yield series.single(value)


class MetricsServer:
    """Serves this worker's series on the port that is set, if one is."""

    def __init__(self, settings: Settings, registry: CollectorRegistry = REGISTRY) -> None:
        self._address = settings.worker_metrics_port, settings.worker_metrics_host
        self._registry = registry
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._server: WSGIServer | None = None

    def start(self, component: str, *collectors: Collector) -> None:
        """Serve, as soon as the port is free: one that died may not have let go of it yet."""
        register_process(self._registry, component)
        register_gpus(self._registry)
        for collector in collectors:
            self._registry.register(collector)
        self._thread.start()

    def stop(self) -> None:
        """Let go of the port; nothing is served any more."""
        self._stopped.set()
        self._thread.join(timeout=10)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def forget(self) -> None:
        """In a process forked from the one that serves: do not keep its port when it dies."""
        if self._server is not None:
            self._server.server_close()

    def _serve(self) -> None:
        port, host = self._address
        while port is not None and not self._stopped.is_set():
            try:
                self._server, _ = start_http_server(port, host, self._registry)
            except OSError as error:
                log.warning("metrics_port_unavailable", port=port, error=str(error))
                self._stopped.wait(_RETRY_S)
            else:
                log.info("metrics_served", host=host, port=port)
                return
