"""One request under way in a sampler: what its task may use, and where its time goes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from redis import Redis

from worker.queue.messages import FloatArray, R, ReplyChannel, Timings, input_key, not_calibrated
from worker.queue.tasks import DrawOrder, Q
from worker.sampler.checkpoints import Checkpoints, ModelKey, RequestRefused
from worker.storage.artifacts import ArtifactMissing, Artifacts

if TYPE_CHECKING:
    from model.chains.sampling import Samples
    from model.config import TrainConfig
    from model.data.datasets import Dataset
    from model.densities.calibration import Calibration
    from worker.engine.engine import Engine
    from worker.engine.tickets import AnyTicket, WorkFn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What all requests of a sampler share."""

    artifacts: Artifacts
    redis: Redis
    checkpoints: Checkpoints
    engine: Engine
    load_dataset_fn: Callable[[TrainConfig], Dataset]


class OpenRequest(Generic[Q]):
    """A request, and what its task may ask of the sampler; used by the thread that answers it."""

    def __init__(self, resources: Resources, request: Q) -> None:
        self.request = request
        self._resources = resources
        self._tickets: list[AnyTicket] = []
        self._arrived_s = max(0.0, time.time() - request.sent_at)
        self._began_at = time.perf_counter()

    @cached_property
    def key(self) -> ModelKey:
        """The checkpoint that answers. Raises RequestRefused, StorageUnavailable."""
        return self._resources.checkpoints.key(self.request)

    @property
    def dataset_fn(self) -> Callable[[TrainConfig], Dataset]:
        """Loads the dataset of a configuration."""
        return self._resources.load_dataset_fn

    def calibration(self) -> Calibration:
        """Read the checkpoint's calibration anew: another may have taken its place. Raises RequestRefused."""
        from model.densities.calibration import Calibration

        try:
            return Calibration.from_dict(self._resources.artifacts.get_calibration(self.key.model_id, self.key.step))
        except ArtifactMissing:
            raise RequestRefused("not_calibrated", not_calibrated(self.key.model_id, self.key.step)) from None

    def array(self) -> FloatArray:
        """Fetch the array that travels beside the request. Raises RequestRefused when it has expired."""
        packed: Any = self._resources.redis.get(input_key(self.request.request_id))
        if packed is None:
            raise RequestRefused("deadline_passed", "the samplers are too busy: the request's data had expired")
        array: FloatArray = np.load(io.BytesIO(packed), allow_pickle=False)
        return array

    def draw(self, order: DrawOrder, level_fn: Callable[[int, FloatArray], None]) -> Samples:
        """Draw samples; `level_fn(level, x_t)` hears of every level of the order as it is reached."""
        ticket = self._resources.engine.draw(self.key, order, deadline=self.request.deadline)
        with self._following(ticket):
            for reached in ticket.levels_reached():
                level_fn(reached.level, reached.x)
            return ticket.future.result()

    def compute(self, work_fn: WorkFn[T]) -> T:
        """Run work on the model in the engine, in pieces between the chains' evaluations; return what it returns."""
        ticket = self._resources.engine.work(self.key, work_fn, deadline=self.request.deadline)
        with self._following(ticket):
            return ticket.future.result()

    def reply(self, kind: type[R], **fields: Any) -> R:
        """Return the reply with these fields."""
        key = self.key
        return kind(request_id=self.request.request_id, ok=True, model_id=key.model_id, step=key.step, **fields)

    def send(self, reply: R) -> None:
        """Send a reply; the one that the task returns is sent by whoever called it."""
        ReplyChannel(self.request.request_id).push(self._resources.redis, reply)

    def cancel(self) -> None:
        """Free what the request holds, at the engine's next step; another thread asks for it."""
        for ticket in self._tickets[-1:]:
            self._resources.engine.cancel(ticket)

    def timings(self) -> Timings:
        """Return the seconds in queues, in computing, and in loading and everything else so far."""
        queued_s = sum(ticket.queue_s for ticket in self._tickets)
        compute_s = sum(ticket.compute_s for ticket in self._tickets)
        load_s = max(0.0, time.perf_counter() - self._began_at - queued_s - compute_s)
        return Timings(queue_s=self._arrived_s + queued_s, load_s=load_s, compute_s=compute_s)

    @contextmanager
    def _following(self, ticket: AnyTicket) -> Iterator[None]:
        self._tickets.append(ticket)
        try:
            yield
        except BaseException:
            self._resources.engine.cancel(ticket)  # without effect on one that has ended
            raise
