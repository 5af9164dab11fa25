"""What a sampler counts of its requests, and what its engine does, on its worker's own port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from worker.observe.metrics import REGISTRY
from worker.observe.series import Series
from worker.queue.messages import SamplerReply

if TYPE_CHECKING:
    from worker.engine.engine import EngineLoad

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
images = IMAGES.counter(REGISTRY)
scored_events = SCORED.counter(REGISTRY)
"""For the tasks that draw, and that score."""
_parts = PARTS.histogram(REGISTRY)


def observe_reply(reply: SamplerReply) -> None:
    """Count one answered request of any task, and where its time went."""
    kind = type(reply).__name__.removesuffix("Reply").lower()
    _requests.labels(kind=kind, outcome=reply.error or "ok").inc()
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
