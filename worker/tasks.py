"""The tasks, as thin as can be. What they need is made once per process, after the fork."""

from __future__ import annotations

import functools
import socket
from typing import Any

import structlog
from celery import Celery, Task
from pydantic import ValidationError

from worker.broker import wake
from worker.jobs import JobKind
from worker.messages import SAMPLE_TASK, TRAIN_TASK, ReplyChannel, request_from_message
from worker.metrics import observe_reply
from worker.records import RecordStore
from worker.sampler import Sampler
from worker.settings import Settings
from worker.supervise import Supervisor

log = structlog.get_logger(__name__)


@functools.cache
def _settings() -> Settings:
    return Settings()


@functools.cache
def _store() -> RecordStore:
    return RecordStore.connect(_settings())


@functools.cache
def _sampler() -> Sampler:
    settings = _settings()
    return Sampler(_store().artifacts, settings.spool_dir / "models", cached_models=settings.cached_models)


def register_tasks(app: Celery) -> None:
    """Add the tasks to an application."""
    app.task(name=TRAIN_TASK, bind=True, max_retries=0)(train)
    # Nobody waits any more for a request that was lost with its sampler: no second delivery.
    app.task(name=SAMPLE_TASK, acks_late=False, max_retries=0)(sample)


def train(task: Task[Any, Any], job_id: str) -> None:
    """Run the job, if it waits."""
    app: Celery = task.app
    worker = str(task.request.hostname or socket.gethostname())
    Supervisor(_store(), _settings(), worker=worker, wake_fn=lambda id_: wake(app, JobKind.train, id_)).run(job_id)


def sample(message: dict[str, Any]) -> None:
    """Answer a sample request, unless nobody waits for it any more."""
    try:
        request = request_from_message(message)
    except ValidationError as error:
        log.error("sample_request_refused", error=str(error))
        return
    reply = _sampler().answer(request)
    observe_reply(reply)
    log.info(
        "sample_request_answered",
        request_id=request.request_id,
        model_id=request.model_id,
        outcome=reply.error or "ok",
        **reply.timings.model_dump(),
    )
    ReplyChannel(request.request_id).push(_store().redis, reply)


def preload_sampler() -> None:
    """Import torch and the model code before the first request asks for it."""
    import model.checkpoint
    import model.sampling  # noqa: F401

    _sampler()
