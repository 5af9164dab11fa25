"""The workers' Celery application and what each worker process runs beside its tasks.

    celery -A worker.app worker -Q train -c 1 -n trainer@%h
    celery -A worker.app worker -Q sample --pool threads -c 4 -n sampler@%h

Trainers use the prefork pool: its supervisor process can be killed without the main process. Samplers use threads,
which share one set of loaded models.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import structlog
from celery import signals
from redis.exceptions import RedisError

from worker import supervise
from worker.broker import make_app, wake
from worker.logs import configure_logging
from worker.messages import QUEUES, SAMPLE_QUEUE
from worker.metrics import serve_metrics
from worker.presence import Presence
from worker.reaper import Reaper
from worker.records import RecordStore
from worker.settings import Settings
from worker.spool import remove_finished
from worker.tasks import preload_sampler, register_tasks

log = structlog.get_logger(__name__)

settings = Settings()
app = make_app(settings)
register_tasks(app)


class Companions:
    """The threads of a worker's main process."""

    def __init__(self) -> None:
        self._running: list[Presence | Reaper] = []

    def start(self, name: str, kinds: list[str]) -> None:
        """Announce the worker, sweep, and serve metrics."""
        store = RecordStore.connect(settings)
        queues = {queue for queue, _ in QUEUES.values()}
        self._running = [
            Presence(store.redis, kinds, name, every_s=settings.heartbeat_s),
            Reaper(store, name=name, queues=queues, wake_fn=lambda kind, job_id: wake(app, kind, job_id)),
        ]
        for companion in self._running:
            companion.start()
        serve_metrics(settings, store, name)
        with contextlib.suppress(RedisError):
            remove_finished(store, settings.spool_dir)

    def stop(self) -> None:
        """Withdraw and stop."""
        while self._running:
            self._running.pop().stop()


companions = Companions()


@signals.setup_logging.connect
def _setup_logging(loglevel: int | str = "INFO", **_: Any) -> None:
    configure_logging(loglevel)


@signals.worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    name = str(sender.hostname)
    kinds = sorted(app.amqp.queues.consume_from)
    companions.start(name, kinds)
    if SAMPLE_QUEUE in kinds:
        threading.Thread(target=preload_sampler, name="preload", daemon=True).start()
    log.info("worker_ready", worker=name, queues=kinds)


@signals.worker_shutting_down.connect
def _on_shutting_down(**_: Any) -> None:
    # In a signal handler: a plain shared byte, no locks. The supervisor polls it.
    supervise.shutdown_flag.value = True


@signals.worker_shutdown.connect
def _on_shutdown(**_: Any) -> None:
    companions.stop()
