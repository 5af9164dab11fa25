"""Answers requests of every task: opens them, has their task work on them, and says in the reply what went wrong.

Many threads do so at once, and share the engine's batches. What a task does is its module in worker/sampler/tasks/.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from redis import Redis

from model.errors import CalibrationError, CheckpointError, ModelError
from worker.queue.messages import R, SamplerRequest, Timings
from worker.queue.tasks import Q, Task
from worker.sampler.checkpoints import Checkpoints, RequestRefused
from worker.sampler.open_request import OpenRequest, Resources
from worker.storage.artifacts import ArtifactDamaged, Artifacts, StorageUnavailable

if TYPE_CHECKING:
    from model.config import TrainConfig
    from model.data.datasets import Dataset
    from worker.engine.engine import EngineLoad

log = structlog.get_logger(__name__)

AnswerFn = Callable[[OpenRequest[Q]], R]


class Sampler:
    """Turns requests into replies; safe to call from many threads."""

    def __init__(
        self,
        artifacts: Artifacts,
        redis: Redis,
        directory: Path,
        *,
        cached_models: int,
        device: str | None = None,
        load_dataset_fn: Callable[[TrainConfig], Dataset],
        max_bytes: float = float("inf"),
        max_rows: int | None = None,
        queue_s: float = float("inf"),
    ) -> None:
        from worker.engine.engine import Engine

        checkpoints = Checkpoints(artifacts, directory, device or _best_device())
        self._engine: Engine = Engine(
            checkpoints.load,
            max_models=cached_models,
            max_bytes=max_bytes,
            max_rows=max_rows,
            queue_s=queue_s,
        )
        self._engine.start()
        self._resources = Resources(
            artifacts=artifacts,
            redis=redis,
            checkpoints=checkpoints,
            engine=self._engine,
            load_dataset_fn=load_dataset_fn,
        )
        self._open: dict[str, OpenRequest[Any]] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End the engine; whoever waits is told."""
        self._engine.stop()

    def load(self) -> EngineLoad:
        """Return how busy the engine is."""
        return self._engine.load()

    def drop_deleted(self) -> None:
        """Forget the models whose checkpoints were deleted, except those that requests are still under way on.

        Raises StorageUnavailable.
        """
        for key in self._engine.load().models:
            if not self._resources.checkpoints.has(key) and self._engine.drop(key):
                log.info("deleted_model_dropped", model_id=key.model_id, step=key.step)

    def open_requests(self) -> list[str]:
        """Return the ids of the requests under way."""
        with self._lock:
            return list(self._open)

    def cancel(self, request_id: str) -> None:
        """Free what the request holds in the engine, if it is still under way."""
        with self._lock:
            found = self._open.get(request_id)
        if found is not None:
            found.cancel()

    def answer(self, task: Task[Q, R], request: Q) -> R:
        """Return the task's reply to a request, or one that says in words why there is none."""
        opened = OpenRequest(self._resources, request)
        with self._lock:
            self._open[request.request_id] = opened
        try:
            if request.remaining_s <= 0:
                late = "the samplers are too busy: the request waited beyond its deadline"
                raise RequestRefused("deadline_passed", late)
            answer_fn: AnswerFn[Q, R] = answer_of(task)
            return answer_fn(opened).model_copy(update={"timings": opened.timings()})
        except Exception as error:
            return _failure(task.reply, request, error, opened.timings())
        finally:
            with self._lock:
                del self._open[request.request_id]


def answer_of(task: Task[Q, R]) -> AnswerFn[Q, R]:
    """Import the module of a task, with torch, and return what makes a reply of a request."""
    found: AnswerFn[Q, R] = import_module(task.module).answer
    return found


def _failure(kind: type[R], request: SamplerRequest, error: Exception, timings: Timings) -> R:
    """Every error in words; one that nobody foresaw is logged and gives nothing away."""
    from worker.engine.tickets import Cancelled, DeadlinePassed, EngineBusy, EngineStopped

    match error:
        case RequestRefused():
            return kind.failed(request, error.error, error.detail, timings)
        case EngineBusy():
            return kind.failed(request, "busy", str(error), timings, retry_after_s=error.retry_after_s)
        case DeadlinePassed():
            return kind.failed(request, "deadline_passed", str(error), timings)
        case Cancelled():
            return kind.failed(request, "cancelled", str(error), timings)
        case EngineStopped():
            return kind.failed(request, "stopped", str(error), timings)
        case StorageUnavailable():
            return kind.failed(request, "storage_unavailable", str(error), timings)
        case CheckpointError() | CalibrationError() | ArtifactDamaged():
            return kind.failed(request, "internal", f"the checkpoint cannot be used: {error}", timings)
        case ModelError() | ValueError():
            return kind.failed(request, "bad_request", str(error), timings)
        case _:
            log.error("request_failed", request_id=request.request_id, exc_info=error)
            return kind.failed(request, "internal", "the sampler failed; its log says why", timings)


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
