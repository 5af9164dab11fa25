"""The tasks, as thin as can be. What they need is made once per process, after the fork."""

from __future__ import annotations

import functools
import socket
import threading
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery
from celery import Task as CeleryTask
from pydantic import ValidationError

from worker.datasets.names import fetch_dataset, unread_column
from worker.jobs.records import RecordStore
from worker.observe.metrics import REGISTRY
from worker.queue.broker import wake
from worker.queue.messages import JOB_TASK, OLDER_JOB_TASKS, ReplyChannel
from worker.queue.tasks import TASKS
from worker.sampler.metrics import EngineCollector, observe_reply
from worker.sampler.sampler import Sampler, answer_of
from worker.sampler.switchboard import Switchboard
from worker.settings import Settings
from worker.trainer.supervise import Supervisor

if TYPE_CHECKING:
    from model.config import TrainConfig
    from model.data.datasets import Dataset

log = structlog.get_logger(__name__)

_making = threading.Lock()
"""functools.cache alone would make a second engine for a request that comes while the first one is being made."""
_TASKS = {task.name: task for task in TASKS}


@functools.cache
def _settings() -> Settings:
    return Settings()


@functools.cache
def _store() -> RecordStore:
    return RecordStore.connect(_settings())


@functools.cache
def _made_sampler() -> Sampler:
    settings = _settings()
    return Sampler(
        _store().artifacts,
        _store().redis,
        settings.spool_dir / "models",
        cached_models=settings.cached_models,
        load_dataset_fn=_load_dataset,
        max_bytes=settings.cached_model_bytes,
        max_rows=settings.sampler_rows,
        queue_s=settings.sampler_queue_s,
    )


def _sampler() -> Sampler:
    with _making:
        return _made_sampler()


def _load_dataset(config: TrainConfig) -> Dataset:
    from model import data  # torch

    settings, name, column = _settings(), config.dataset, config.label_column
    location = fetch_dataset(name, settings, _store().artifacts, label_column=column)
    return data.load(location, settings.read_limits, label_column=unread_column(name, column))


def register_tasks(app: Celery) -> None:
    """Add the tasks to an application."""
    for name in (JOB_TASK, *OLDER_JOB_TASKS):
        app.task(name=name, bind=True, max_retries=0)(run_next)
    # Nobody waits any more for a request that was lost with its sampler: no second delivery.
    for name in _TASKS:
        app.task(name=name, bind=True, acks_late=False, max_retries=0)(answer)


def run_next(task: CeleryTask[Any, Any], job_id: str) -> None:
    """Run the job that is next; `job_id`, whose message this is, need not be it."""
    app: Celery = task.app
    worker = str(task.request.hostname or socket.gethostname())
    log.info("woken", by=job_id)
    Supervisor(_store(), _settings(), worker=worker, wake_fn=functools.partial(wake, app)).run()


def answer(celery_task: CeleryTask[Any, Any], message: dict[str, Any]) -> None:
    """Answer a request of any interactive task, unless nobody waits for it any more."""
    task = _TASKS[celery_task.name]
    kind = task.request.__name__
    try:
        request = task.request.model_validate(message)
    except ValidationError as error:
        log.error("request_refused", kind=kind, error=str(error))
        return
    reply = _sampler().answer(task, request)
    observe_reply(reply)
    log.info(
        "request_answered",
        kind=kind,
        request_id=request.request_id,
        model_id=request.model_id,
        outcome=reply.error or "ok",
        **reply.timings.model_dump(),
    )
    if reply.error != "cancelled":  # then nobody waits
        ReplyChannel(request.request_id).push(_store().redis, reply)


def start_sampler(name: str) -> Switchboard:
    """Import torch and start the engine before the first request asks for it."""
    import model.checkpoints.checkpoint  # noqa: F401

    for task in TASKS:
        answer_of(task)
    REGISTRY.register(EngineCollector(_sampler().load))
    switchboard = Switchboard(_store().redis, _sampler(), name)
    switchboard.start()
    return switchboard


def stop_sampler() -> None:
    """End the engine, if it was started."""
    if _made_sampler.cache_info().currsize:
        _made_sampler().stop()
