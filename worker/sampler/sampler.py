"""Answers requests for samples and densities: fetches checkpoints, hands the work to the engine and waits.

Many threads do so at once, and share the engine's batches. Whatever goes wrong is said in the reply.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import structlog

from model.errors import CalibrationError, CheckpointError, ModelError
from worker.queue.messages import (
    DensityMapReply,
    DensityMapRequest,
    DensityReply,
    DensityRequest,
    FloatArray,
    Precision,
    R,
    ReplyError,
    SampleReply,
    SampleRequest,
    SamplerRequest,
    Timings,
    not_calibrated,
)
from worker.storage.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts, StorageUnavailable

if TYPE_CHECKING:
    from model.data.datasets import Dataset
    from model.densities.calibration import Calibration
    from model.energies.energy_model import EnergyModel
    from worker.engine.engine import Engine, EngineLoad
    from worker.engine.tickets import AnyTicket, WorkFn

log = structlog.get_logger(__name__)

T = TypeVar("T")


class RequestRefused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, error: ReplyError, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class ModelKey(NamedTuple):
    """What the engine knows a model by."""

    model_id: str
    step: int
    precision: Precision = "float32"


class Checkpoints:
    """Models from storage."""

    def __init__(self, artifacts: Artifacts, directory: Path, device: str) -> None:
        self._artifacts = artifacts
        self._directory = directory
        self._device = device

    def key(self, request: SamplerRequest) -> ModelKey:
        """Which checkpoint is meant, in which precision. Raises RequestRefused."""
        step = self._artifacts.newest_step(request.model_id) if request.step is None else request.step
        if step is None:
            raise self._absent(request.model_id, None)
        precision = request.precision if isinstance(request, SampleRequest) else "float32"
        return ModelKey(request.model_id, step, precision)

    def load(self, key: ModelKey) -> EnergyModel:
        """Raises RequestRefused, CheckpointError, ArtifactDamaged, StorageUnavailable."""
        from model.checkpoints.checkpoint import SAMPLING_FILES, load_model

        directory = self._directory / f"{key.model_id}-{key.step}-{os.getpid()}"  # samplers may share the folder
        try:
            self._artifacts.fetch_checkpoint(key.model_id, key.step, directory, names=SAMPLING_FILES)
            model = load_model(directory, self._device)
        except ArtifactMissing:
            raise self._absent(key.model_id, key.step) from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        model.network.precision = key.precision
        return model

    def _absent(self, model_id: str, step: int | None) -> RequestRefused:
        try:
            self._artifacts.get_model(model_id)
        except ArtifactMissing:
            return RequestRefused("unknown_model", f"there is no model {model_id}")
        if step is None:
            return RequestRefused("no_checkpoint", f"model {model_id} has no checkpoint yet; try again later")
        steps = ", ".join(str(checkpoint.step) for checkpoint in self._artifacts.list_checkpoints(model_id)[-10:])
        return RequestRefused("no_checkpoint", f"model {model_id} has no checkpoint {step}; it has {steps or 'none'}")


class Progress:
    """What one request has waited for and used so far."""

    def __init__(self, request: SamplerRequest) -> None:
        self.queue_s = max(0.0, time.time() - request.sent_at)
        self.load_s = 0.0
        self.ticket: AnyTicket | None = None

    def timings(self) -> Timings:
        """Seconds in queues, in loading, and from the first evaluation to the last."""
        if self.ticket is None:
            return Timings(queue_s=self.queue_s, load_s=self.load_s)
        queue_s = self.queue_s + self.ticket.queue_s
        return Timings(queue_s=queue_s, load_s=self.load_s, compute_s=self.ticket.compute_s)


class Sampler:
    """Turns requests into replies; safe to call from many threads."""

    def __init__(
        self,
        artifacts: Artifacts,
        directory: Path,
        *,
        cached_models: int,
        device: str | None = None,
        load_dataset_fn: Callable[[str], Dataset],
        max_bytes: float = float("inf"),
        max_rows: int | None = None,
        queue_s: float = float("inf"),
    ) -> None:
        from worker.engine.engine import Engine

        self._artifacts = artifacts
        self._checkpoints = Checkpoints(artifacts, directory, device or _best_device())
        self._load_dataset_fn = load_dataset_fn
        self._engine: Engine = Engine(
            self._checkpoints.load,
            max_models=cached_models,
            max_bytes=max_bytes,
            max_rows=max_rows,
            queue_s=queue_s,
        )
        self._engine.start()
        self._open: dict[str, AnyTicket] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End the engine; whoever waits is told."""
        self._engine.stop()

    def load(self) -> EngineLoad:
        """How busy it is."""
        return self._engine.load()

    def drop_deleted(self) -> None:
        """Forget the models whose checkpoints were deleted, except those that requests are still under way on.

        Raises StorageUnavailable.
        """
        for key in self._engine.load().models:
            if not self._artifacts.has_checkpoint(key.model_id, key.step) and self._engine.drop(key):
                log.info("deleted_model_dropped", model_id=key.model_id, step=key.step)

    def open_requests(self) -> list[str]:
        """Ids of the requests that the engine works on."""
        with self._lock:
            return list(self._open)

    def cancel(self, request_id: str) -> None:
        """Free what the request holds, at the engine's next step."""
        with self._lock:
            ticket = self._open.get(request_id)
        if ticket is not None:
            self._engine.cancel(ticket)

    def draw(self, request: SampleRequest, level_fn: Callable[[SampleReply], None] | None = None) -> SampleReply:
        """Samples; `level_fn` hears of every level of `request.levels` as it is reached."""
        from worker.engine.tickets import DrawOrder

        def compute(key: ModelKey, progress: Progress) -> SampleReply:
            order = DrawOrder(
                num_images=request.num_images,
                seed=request.seed,
                num_steps=request.num_steps,
                noise_scale=request.noise_scale,
                levels=request.levels,
            )
            ticket = self._engine.draw(key, order, deadline=request.deadline)
            with self._following(request, progress, ticket):
                for reached in ticket.levels_reached():
                    if level_fn is not None:
                        level_fn(_level_reply(request, key, reached.level, reached.x))
                samples = ticket.future.result()
            return SampleReply(
                request_id=request.request_id,
                ok=True,
                model_id=key.model_id,
                step=key.step,
                seed=request.seed,
                precision=key.precision,
                gradient_evaluations=samples.gradient_evaluations,
                x=samples.x.numpy(),
                levels={level: x.numpy() for level, x in samples.levels.items()},
            )

        return self._answer(SampleReply, request, compute)

    def score(self, request: DensityRequest, packed: bytes | None) -> DensityReply:
        """log densities of the array `packed` (.npy), which is None when it has expired."""

        def compute(key: ModelKey, progress: Progress) -> DensityReply:
            from worker.sampler.densities import score_data

            calibration, x = self._calibration(key), _unpacked(packed)
            return self._worked(request, key, progress, lambda model: score_data(request, model, calibration, x))

        return self._answer(DensityReply, request, compute)

    def draw_map(self, request: DensityMapRequest) -> DensityMapReply:
        """A picture of the density."""

        def compute(key: ModelKey, progress: Progress) -> DensityMapReply:
            from worker.pictures import density_map, map_grid
            from worker.sampler import densities

            calibration = self._calibration(key)
            config = self._worked(request, key, progress, densities.planar_config)
            points = densities.training_points(self._load_dataset_fn(config.dataset))
            columns, rows, grid = map_grid(points)
            values = self._worked(request, key, progress, lambda model: densities.map_values(model, grid, calibration))
            png = density_map(columns, rows, values, points, densities.map_title(calibration))
            return DensityMapReply(
                request_id=request.request_id, ok=True, model_id=key.model_id, step=key.step, png=png
            )

        return self._answer(DensityMapReply, request, compute)

    def _worked(self, request: SamplerRequest, key: ModelKey, progress: Progress, work_fn: WorkFn[T]) -> T:
        ticket = self._engine.work(key, work_fn, deadline=request.deadline)
        with self._following(request, progress, ticket):
            return ticket.future.result()

    @contextmanager
    def _following(self, request: SamplerRequest, progress: Progress, ticket: AnyTicket) -> Iterator[None]:
        """While the engine has it, it can be cancelled by its id."""
        progress.ticket = ticket
        with self._lock:
            self._open[request.request_id] = ticket
        try:
            yield
        except BaseException:
            self._engine.cancel(ticket)  # without effect on one that has ended
            raise
        finally:
            with self._lock:
                del self._open[request.request_id]

    def _answer(self, kind: type[R], request: SamplerRequest, compute_fn: Callable[[ModelKey, Progress], R]) -> R:
        progress = Progress(request)
        try:
            _require_time(request)
            began_at = time.perf_counter()
            key = self._checkpoints.key(request)
            reply = compute_fn(key, progress)
            waited_s = time.perf_counter() - began_at
            timings = progress.timings()
            load_s = max(0.0, waited_s - (timings.queue_s - progress.queue_s) - timings.compute_s)
            return reply.model_copy(update={"timings": timings.model_copy(update={"load_s": load_s})})
        except Exception as error:
            return _failure(kind, request, error, progress.timings())

    def _calibration(self, key: ModelKey) -> Calibration:
        """Read anew for every request: another calibration may have taken its place. Raises RequestRefused."""
        from model.densities.calibration import Calibration

        try:
            return Calibration.from_dict(self._artifacts.get_calibration(key.model_id, key.step))
        except ArtifactMissing:
            raise RequestRefused("not_calibrated", not_calibrated(key.model_id, key.step)) from None


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


def _level_reply(request: SampleRequest, key: ModelKey, level: int, x: FloatArray) -> SampleReply:
    return SampleReply(
        request_id=request.request_id,
        ok=True,
        model_id=key.model_id,
        step=key.step,
        seed=request.seed,
        level_reached=level,
        levels={level: x},
    )


def _unpacked(packed: bytes | None) -> FloatArray:
    """Raises RequestRefused when the array has expired."""
    if packed is None:
        raise RequestRefused("deadline_passed", "the samplers are too busy: the request's data had expired")
    array: FloatArray = np.load(io.BytesIO(packed), allow_pickle=False)
    return array


def _require_time(request: SamplerRequest) -> None:
    if request.remaining_s <= 0:
        raise RequestRefused("deadline_passed", "the samplers are too busy: the request waited beyond its deadline")


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
