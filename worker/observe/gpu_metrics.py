"""Series of the GPUs that this machine's driver shows, as NVML tells them at the scrape; none without a driver.

Asking NVML makes no CUDA context, so the main process of a trainer, which loads no torch, can ask. Workers of one
machine all show its GPUs: take the maximum by `uuid`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pynvml
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from worker.observe.series import Series

log = structlog.get_logger(__name__)

_GPU = ("gpu", "uuid", "name")
MEMORY_USED = Series("recovery_gpu_memory_used_bytes", "gauge", "Memory in use, by anybody", _GPU)
MEMORY_TOTAL = Series("recovery_gpu_memory_total_bytes", "gauge", "Memory of the GPU", _GPU)
UTILIZATION = Series("recovery_gpu_utilization_ratio", "gauge", "Share of time in which a kernel ran", _GPU)


class GpuCollector(Collector):
    """Collects the figures of all GPUs of this machine. Raises pynvml.NVMLError where there is no driver."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._gpus = [_identified(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client. What a GPU does not tell (utilization of a MIG slice) is left out."""
        used: dict[tuple[str, ...], float] = {}
        total: dict[tuple[str, ...], float] = {}
        busy: dict[tuple[str, ...], float] = {}
        for handle, labels in self._gpus:
            with contextlib.suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                used[labels], total[labels] = memory.used, memory.total
            with contextlib.suppress(pynvml.NVMLError):
                busy[labels] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        yield MEMORY_USED.collected(used)
        yield MEMORY_TOTAL.collected(total)
        yield UTILIZATION.collected(busy)


def register_gpus(registry: CollectorRegistry) -> None:
    """Add the GPUs, if there are any."""
    try:
        registry.register(GpuCollector())
    except pynvml.NVMLError as error:
        log.info("no_gpu_metrics", reason=str(error))


def _identified(index: int) -> tuple[Any, tuple[str, ...]]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return handle, (str(index), pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle))
