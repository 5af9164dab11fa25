"""The workers' Celery application and what each worker process runs beside its tasks.

    celery -A worker.app worker -Q train -c 1 -n trainer@%h [--max-jobs N] [--max-idle S]
    celery -A worker.app worker -Q sample --pool threads -c 256 -n sampler@%h

Trainers use the prefork pool: its supervisor process can be killed without the main process. Samplers use threads,
which share one engine and wait for it: as many as requests that may be under way.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import structlog
from celery import signals
from redis.exceptions import RedisError

from worker.jobs.kinds import QUEUES
from worker.jobs.reaper import Reaper
from worker.jobs.records import RecordStore
from worker.observe.logs import configure_logging
from worker.observe.metrics import MetricsServer
from worker.observe.presence import Presence
from worker.queue.broker import make_app, wake
from worker.queue.loads import own_queue
from worker.redis_keys import SAMPLE_QUEUE, TRAIN_QUEUE
from worker.sampler.switchboard import Switchboard
from worker.settings import Settings
from worker.tasks import register_tasks, start_sampler, stop_sampler
from worker.trainer import supervise
from worker.trainer.job_limit import OPTIONS, JobLimitStep, job_limit
from worker.trainer.metrics import JobCollector
from worker.trainer.spool import remove_finished

log = structlog.get_logger(__name__)

settings = Settings()
app = make_app(settings)
register_tasks(app)
app.user_options["worker"].update(OPTIONS)
app.steps["worker"].add(JobLimitStep)


class Companions:
    """The threads of a worker's main process."""

    def __init__(self) -> None:
        self._running: list[Presence | Reaper | Switchboard | MetricsServer] = []
        self._preparation: threading.Thread | None = None

    def start(self, name: str, kinds: list[str]) -> None:
        """Announce the worker, sweep, and serve metrics."""
        store = RecordStore.connect(settings)
        trains = TRAIN_QUEUE in kinds
        presence = Presence(
            store.redis, kinds, name, every_s=settings.heartbeat_s, heartbeat_file=settings.heartbeat_file
        )
        reaper = Reaper(store, name=name, queues=QUEUES, wake_fn=lambda kind, job_id: wake(app, kind, job_id))
        presence.start()
        reaper.start()
        metrics.start("trainer" if trains else "sampler", *([JobCollector(store, name)] if trains else []))
        self._running = [presence, reaper, metrics]
        with contextlib.suppress(RedisError):
            remove_finished(store, settings.spool_dir)

    def prepare_sampling(self, name: str) -> None:
        """Load what sampling needs, which takes seconds, while the worker already takes requests."""
        self._preparation = threading.Thread(target=lambda: self._running.append(start_sampler(name)), name="preload")
        self._preparation.start()

    def stop(self) -> None:
        """Withdraw this worker's sign of life and stop."""
        if self._preparation is not None:
            self._preparation.join()
        while self._running:
            self._running.pop().stop()
        stop_sampler()


metrics = MetricsServer(settings)
companions = Companions()


@signals.setup_logging.connect
def _setup_logging(loglevel: int | str = "INFO", **_: Any) -> None:
    configure_logging(loglevel)


@signals.celeryd_after_setup.connect
def _on_setup(sender: str, **_: Any) -> None:
    if SAMPLE_QUEUE in app.amqp.queues.consume_from:
        app.amqp.queues.select_add(own_queue(sender))  # type: ignore[arg-type] # a name will do, whatever the stubs say


@signals.worker_process_init.connect
def _on_fork(**_: Any) -> None:
    metrics.forget()


@signals.worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    name = str(sender.hostname)
    kinds = sorted(queue for queue in app.amqp.queues.consume_from if queue != own_queue(name))
    companions.start(name, kinds)
    if SAMPLE_QUEUE in kinds:
        companions.prepare_sampling(name)
    job_limit.start()
    log.info("worker_ready", worker=name, queues=kinds)


@signals.task_received.connect
def _on_received(sender: Any, **_: Any) -> None:
    job_limit.count(sender)


@signals.worker_shutting_down.connect
def _on_shutting_down(**_: Any) -> None:
    # In a signal handler: a plain shared byte, no locks. The supervisor polls it.
    supervise.shutdown_flag.value = True


@signals.worker_shutdown.connect
def _on_shutdown(**_: Any) -> None:
    job_limit.stop()
    companions.stop()
