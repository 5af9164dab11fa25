"""The tasks, as thin as can be. What they need is made once per process, after the fork."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from celery import Celery, Task
from pydantic import ValidationError

from worker.datasets.names import fetch_dataset
from worker.jobs.records import RecordStore
from worker.observe.metrics import REGISTRY, EngineCollector, observe_reply
from worker.queue.broker import wake
from worker.queue.messages import (
    JOB_TASK,
    OLDER_JOB_TASKS,
    DensityMapRequest,
    DensityReply,
    DensityRequest,
    ReplyChannel,
    SampleReply,
    SampleRequest,
    SamplerReply,
    SamplerRequest,
    input_key,
)
from worker.sampler.sampler import Sampler
from worker.sampler.switchboard import Switchboard
from worker.settings import Settings
from worker.trainer.supervise import Supervisor

if TYPE_CHECKING:
    from model.data.datasets import Dataset

log = structlog.get_logger(__name__)

_making = threading.Lock()
"""functools.cache alone would make a second engine for a request that comes while the first one is being made."""
Q = TypeVar("Q", bound=SamplerRequest)


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


def _load_dataset(name: str) -> Dataset:
    from model import data  # torch

    settings = _settings()
    return data.load(fetch_dataset(name, settings, _store().artifacts), settings.read_limits)


def register_tasks(app: Celery) -> None:
    """Add the tasks to an application."""
    for name in (JOB_TASK, *OLDER_JOB_TASKS):
        app.task(name=name, bind=True, max_retries=0)(run_next)
    # Nobody waits any more for a request that was lost with its sampler: no second delivery.
    for request, answer in ((SampleRequest, sample), (DensityRequest, density), (DensityMapRequest, density_map)):
        app.task(name=request.task, acks_late=False, max_retries=0)(answer)


def run_next(task: Task[Any, Any], job_id: str) -> None:
    """Run the job that is next; `job_id`, whose message this is, need not be it."""
    app: Celery = task.app
    worker = str(task.request.hostname or socket.gethostname())
    log.info("woken", by=job_id)
    Supervisor(_store(), _settings(), worker=worker, wake_fn=functools.partial(wake, app)).run()


def sample(message: dict[str, Any]) -> None:
    """Answer a sample request, unless nobody waits for it any more."""

    def draw(request: SampleRequest) -> SampleReply:
        channel, redis = ReplyChannel(request.request_id), _store().redis
        return _sampler().draw(request, (lambda reply: channel.push(redis, reply)) if request.stream else None)

    _answer(message, SampleRequest, draw)


def density(message: dict[str, Any]) -> None:
    """Score the data of a request, fetched from where the service put them."""

    def score(request: DensityRequest) -> DensityReply:
        return _sampler().score(request, _store().redis.get(input_key(request.request_id)))  # type: ignore[arg-type]

    _answer(message, DensityRequest, score)


def density_map(message: dict[str, Any]) -> None:
    """Draw a density."""
    _answer(message, DensityMapRequest, lambda request: _sampler().draw_map(request))


def _answer(message: dict[str, Any], kind: type[Q], answer_fn: Callable[[Q], SamplerReply]) -> None:
    try:
        request = kind.model_validate(message)
    except ValidationError as error:
        log.error("request_refused", kind=kind.__name__, error=str(error))
        return
    reply = answer_fn(request)
    observe_reply(reply)
    log.info(
        "request_answered",
        kind=kind.__name__,
        request_id=request.request_id,
        model_id=request.model_id,
        outcome=reply.error or "ok",
        **reply.timings.model_dump(),
    )
    if reply.error != "cancelled":  # then nobody waits
        ReplyChannel(request.request_id).push(_store().redis, reply)


def start_sampler(name: str) -> Switchboard:
    """Import torch and start the engine before the first request asks for it."""
    import model.checkpoints.checkpoint
    import model.densities.density  # noqa: F401

    REGISTRY.register(EngineCollector(_sampler().load))
    switchboard = Switchboard(_store().redis, _sampler(), name)
    switchboard.start()
    return switchboard


def stop_sampler() -> None:
    """End the engine, if it was started."""
    if _made_sampler.cache_info().currsize:
        _made_sampler().stop()
