"""What a worker's main process counts and serves on its own port. Fleet-wide numbers are the service's.

Trainers add the jobs that they run (worker/trainer/metrics.py), samplers their requests and their engine
(worker/sampler/metrics.py), both the GPUs (gpu_metrics.py).
"""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from worker.observe.gpu_metrics import register_gpus
from worker.observe.series import register_process
from worker.settings import Settings

log = structlog.get_logger(__name__)

REGISTRY = CollectorRegistry()
_RETRY_S = 5.0


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
