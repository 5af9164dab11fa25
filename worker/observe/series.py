"""A Prometheus series, declared once: from the declaration it is counted, collected, and checked against its document.

Nothing else in the project names a series; deploy/METRICS.md describes every one of them, and a test compares.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from worker.jobs.tally import Distribution
from worker.observe.version import version

Values = Mapping[tuple[str, ...], float]
"""Label values, in the order of `Series.labels`, -> what is measured."""


@dataclass(frozen=True)
class Series:
    """Name as it is scraped, with its unit; kind; what is said of it; labels; upper bounds if it is a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """A counter that this process increments."""
        return Counter(self.name, self.text, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """A gauge that this process sets."""
        return Gauge(self.name, self.text, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """A histogram that this process observes."""
        return Histogram(self.name, self.text, self.labels, buckets=self.bounds, registry=registry)

    def collected(self, values: Values) -> Metric:
        """The series as a collector yields it, with values that were read elsewhere at the moment of the scrape."""
        if self.kind == "counter":
            return _filled(CounterMetricFamily(self.name, self.text, labels=self.labels), values)
        return _filled(GaugeMetricFamily(self.name, self.text, labels=self.labels), values)

    def single(self, value: float) -> Metric:
        """A collected series of one value without labels."""
        return self.collected({(): value})

    def distributed(self, values: Mapping[tuple[str, ...], Distribution]) -> Metric:
        """A collected series of histograms."""
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for labels, found in values.items():
            names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
            cumulative = itertools.accumulate(found.counts)
            family.add_metric(labels, list(zip(names, cumulative, strict=True)), found.total)
        return family


BUILD = Series("recovery_build_info", "gauge", "1 for what runs here", ("component", "version", "python"))


def register_process(registry: CollectorRegistry, component: str) -> None:
    """Register the series that every process of the project exports about itself.

    When each counter began, which prometheus-client would tell in a series of its own, is left out: nobody asks for it.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    BUILD.gauge(registry).labels(component, version(), platform.python_version()).set(1)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def declared(modules: Iterable[object]) -> list[Series]:
    """Every series that these modules declare."""
    return [value for module in modules for value in vars(module).values() if isinstance(value, Series)]
