"""Answers requests for samples and densities: fetches the checkpoint, keeps loaded models, runs one at a time.

The continuous-batching engine takes the place of `Sampler._sample` later; requests and replies stay as they are.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from model.errors import CalibrationError, CheckpointError, ModelError, ShapeError
from worker.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts, StorageUnavailable
from worker.messages import (
    DensityMapReply,
    DensityMapRequest,
    DensityReply,
    DensityRequest,
    FloatArray,
    R,
    ReplyError,
    SampleReply,
    SampleRequest,
    SamplerRequest,
    Timings,
    not_calibrated,
)

if TYPE_CHECKING:
    from model.calibration import Calibration
    from model.data import Dataset
    from model.energy_model import EnergyModel

log = structlog.get_logger(__name__)

_MAP_POINTS = 4000
"""Training events drawn beside a density."""


class RequestRefused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, error: ReplyError, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class ModelCache:
    """The models used last, in memory, by (model, step)."""

    def __init__(self, artifacts: Artifacts, directory: Path, capacity: int, device: str) -> None:
        self._artifacts = artifacts
        self._directory = directory
        self._capacity = capacity
        self._device = device
        self._models: OrderedDict[tuple[str, int], EnergyModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, model_id: str, step: int | None) -> tuple[EnergyModel, int]:
        """The model and the step it is of; None is the newest. Raises RequestRefused."""
        with self._lock:  # one load at a time: the second request for a model finds it loaded
            step = self._newest(model_id) if step is None else step
            key = (model_id, step)
            if key not in self._models:
                self._models[key] = self._load(model_id, step)
            self._models.move_to_end(key)
            while len(self._models) > self._capacity:
                self._models.popitem(last=False)
            return self._models[key], step

    def _newest(self, model_id: str) -> int:
        step = self._artifacts.newest_step(model_id)
        if step is None:
            raise self._absent(model_id, None)
        return step

    def _load(self, model_id: str, step: int) -> EnergyModel:
        from model.checkpoint import SAMPLING_FILES, load_model

        directory = self._directory / f"{model_id}-{step}"
        try:
            self._artifacts.fetch_checkpoint(model_id, step, directory, names=SAMPLING_FILES)
            return load_model(directory, self._device)
        except ArtifactMissing:
            raise self._absent(model_id, step) from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _absent(self, model_id: str, step: int | None) -> RequestRefused:
        try:
            self._artifacts.get_model(model_id)
        except ArtifactMissing:
            return RequestRefused("unknown_model", f"there is no model {model_id}")
        if step is None:
            return RequestRefused("no_checkpoint", f"model {model_id} has no checkpoint yet; try again later")
        steps = ", ".join(str(checkpoint.step) for checkpoint in self._artifacts.list_checkpoints(model_id)[-10:])
        return RequestRefused("no_checkpoint", f"model {model_id} has no checkpoint {step}; it has {steps or 'none'}")


class Sampler:
    """Turns requests into replies; safe to call from many threads. Whatever goes wrong is said in the reply."""

    def __init__(
        self,
        artifacts: Artifacts,
        directory: Path,
        *,
        cached_models: int,
        device: str | None = None,
        load_dataset_fn: Callable[[str], Dataset],
    ) -> None:
        self._artifacts = artifacts
        self._cache = ModelCache(artifacts, directory, cached_models, device or _best_device())
        self._load_dataset_fn = load_dataset_fn
        self._computing = threading.Lock()

    def draw(self, request: SampleRequest) -> SampleReply:
        """Samples."""
        return self._answer(SampleReply, request, lambda model, step: _sample(request, model, step))

    def score(self, request: DensityRequest, packed: bytes | None) -> DensityReply:
        """log densities of the array `packed` (.npy), which is None when it has expired."""

        def compute(model: EnergyModel, step: int) -> DensityReply:
            return _score(request, model, self._calibration(request.model_id, step), _unpacked(packed))

        return self._answer(DensityReply, request, compute)

    def draw_map(self, request: DensityMapRequest) -> DensityMapReply:
        """A picture of the density."""

        def compute(model: EnergyModel, step: int) -> DensityMapReply:
            return _draw_map(request, model, self._calibration(request.model_id, step), self._load_dataset_fn)

        return self._answer(DensityMapReply, request, compute)

    def _answer(self, kind: type[R], request: SamplerRequest, compute_fn: Callable[[EnergyModel, int], R]) -> R:
        received_at = time.time()
        timings = Timings(queue_s=max(0.0, received_at - request.sent_at))
        try:
            return self._computed(request, compute_fn, timings)
        except RequestRefused as refusal:
            return kind.failed(request, refusal.error, refusal.detail, timings)
        except StorageUnavailable as error:
            return kind.failed(request, "storage_unavailable", str(error), timings)
        except (CheckpointError, CalibrationError, ArtifactDamaged) as error:
            return kind.failed(request, "internal", f"the checkpoint cannot be used: {error}", timings)
        except (ModelError, ValueError) as error:
            return kind.failed(request, "bad_request", str(error), timings)
        except Exception:
            log.exception("request_failed", request_id=request.request_id)
            return kind.failed(request, "internal", "the sampler failed; its log says why", timings)

    def _computed(self, request: SamplerRequest, compute_fn: Callable[[EnergyModel, int], R], timings: Timings) -> R:
        _require_time(request)
        started_at = time.perf_counter()
        model, step = self._cache.get(request.model_id, request.step)
        loaded_at = time.perf_counter()
        with self._computing:  # two at once would only share the same cores
            _require_time(request)
            begun_at = time.perf_counter()
            reply = compute_fn(model, step)
        return reply.model_copy(
            update={
                "timings": Timings(
                    queue_s=timings.queue_s + begun_at - loaded_at,
                    load_s=loaded_at - started_at,
                    compute_s=time.perf_counter() - begun_at,
                )
            }
        )

    def _calibration(self, model_id: str, step: int) -> Calibration:
        """Read anew for every request: another calibration may have taken its place. Raises RequestRefused."""
        from model.calibration import Calibration

        try:
            return Calibration.from_dict(self._artifacts.get_calibration(model_id, step))
        except ArtifactMissing:
            raise RequestRefused("not_calibrated", not_calibrated(model_id, step)) from None


def _sample(request: SampleRequest, model: EnergyModel, step: int) -> SampleReply:
    from model.sampling import sample

    _use_threads(model, request.num_images)
    samples = sample(
        model,
        request.num_images,
        seed=request.seed,
        num_steps=request.num_steps,
        noise_scale=request.noise_scale,
        levels=request.levels,
    )
    return SampleReply(
        request_id=request.request_id,
        ok=True,
        model_id=request.model_id,
        step=step,
        seed=request.seed,
        gradient_evaluations=samples.gradient_evaluations,
        x=samples.x.cpu().numpy(),
        levels={level: x.cpu().numpy() for level, x in samples.levels.items()},
    )


def _unpacked(packed: bytes | None) -> FloatArray:
    """Raises RequestRefused when the array has expired."""
    if packed is None:
        raise RequestRefused("deadline_passed", "the samplers are too busy: the request's data had expired")
    array: FloatArray = np.load(io.BytesIO(packed), allow_pickle=False)
    return array


def _score(request: DensityRequest, model: EnergyModel, calibration: Calibration, x: FloatArray) -> DensityReply:
    """Raises ShapeError."""
    import torch

    from model import density

    if x.shape[1:] != tuple(model.event_shape):
        raise ShapeError(f"the data have shape {x.shape}; expected (N, {', '.join(map(str, model.event_shape))})")
    _use_threads(model, len(x))
    x_data = torch.from_numpy(x)
    energy = density.data_energy(model, x_data)
    values = {"energy": energy, "log_density": density.normalized(model, energy, calibration.log_z.estimate)}
    if calibration.bin_width is not None:
        dim = torch.Size(model.event_shape).numel()
        values["bits_per_dim"] = density.bits_per_dim(values["log_density"], dim, calibration.bin_width)
    if request.num_paths:
        with model.frozen():
            paths = density.path_log_density(model, x_data, seed=request.seed, num_paths=request.num_paths)
        values |= {"path_log_density": paths.log_density, "path_spread": paths.spread}
    arrays: dict[str, Any] = {name: value.double().cpu().numpy() for name, value in values.items()}
    return DensityReply(
        request_id=request.request_id,
        ok=True,
        model_id=request.model_id,
        step=calibration.step,
        seed=request.seed,
        gradient_evaluations=request.num_paths * (model.num_levels - 1),
        calibration=calibration.to_dict(),
        **arrays,
    )


def _draw_map(
    request: DensityMapRequest,
    model: EnergyModel,
    calibration: Calibration,
    load_dataset_fn: Callable[[str], Dataset],
) -> DensityMapReply:
    """Raises ShapeError, DataError."""
    import torch

    from model import density
    from worker.pictures import density_map, map_grid

    if tuple(model.event_shape) != (2,):
        raise ShapeError(
            f"the model's events have shape {tuple(model.event_shape)}; a density can be drawn of vectors of two "
            "numbers only. POST /log-density scores others"
        )
    dataset = load_dataset_fn(model.config.dataset)
    points = (dataset.train[:_MAP_POINTS] * dataset.std + dataset.mean).numpy()
    columns, rows, grid = map_grid(points)
    _use_threads(model, len(grid))
    values = density.log_density(model, torch.from_numpy(grid), calibration.log_z.estimate)
    png = density_map(columns, rows, values.cpu().numpy(), points, _map_title(calibration))
    return DensityMapReply(
        request_id=request.request_id, ok=True, model_id=request.model_id, step=calibration.step, png=png
    )


def _map_title(calibration: Calibration) -> str:
    log_z = calibration.log_z
    return f"log Z = {log_z.estimate:.3f} ± {log_z.std_error:.3f} nats (sides {log_z.lower:.3f} … {log_z.upper:.3f})"


def _use_threads(model: EnergyModel, batch_size: int) -> None:
    """In this pool thread, as many as the batch can keep busy."""
    import torch

    from model.networks import useful_threads

    useful = useful_threads(model.config.network, tuple(model.event_shape), batch_size)
    torch.set_num_threads(min(len(os.sched_getaffinity(0)), useful))


def _require_time(request: SamplerRequest) -> None:
    if request.remaining_s <= 0:
        raise RequestRefused("deadline_passed", "the samplers are too busy: the request waited beyond its deadline")


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
