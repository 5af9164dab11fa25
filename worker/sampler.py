"""Answers sample requests: fetches the checkpoint, keeps loaded models, runs one request at a time.

The continuous-batching engine takes the place of `Sampler._compute` later; requests and replies stay as they are.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from model.errors import CheckpointError, ModelError
from worker.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts, StorageUnavailable
from worker.messages import ReplyError, SampleReply, SampleRequest, Timings, failed_reply

if TYPE_CHECKING:
    from model.energy_model import EnergyModel

log = structlog.get_logger(__name__)

_FILES = ("config.json", "ema.safetensors")
"""What sampling needs of a checkpoint."""


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
        from model.checkpoint import load_model

        directory = self._directory / f"{model_id}-{step}"
        try:
            self._artifacts.fetch_checkpoint(model_id, step, directory, names=_FILES)
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
    """Turns requests into replies; safe to call from many threads."""

    def __init__(self, artifacts: Artifacts, directory: Path, *, cached_models: int, device: str | None = None) -> None:
        self._cache = ModelCache(artifacts, directory, cached_models, device or _best_device())
        self._computing = threading.Lock()

    def answer(self, request: SampleRequest) -> SampleReply:
        """The reply, always: whatever goes wrong is said in it."""
        received_at = time.time()
        timings = Timings(queue_s=max(0.0, received_at - request.sent_at))
        try:
            return self._answer(request, timings)
        except RequestRefused as refusal:
            return failed_reply(request, refusal.error, refusal.detail, timings)
        except StorageUnavailable as error:
            return failed_reply(request, "storage_unavailable", str(error), timings)
        except (CheckpointError, ArtifactDamaged) as error:
            return failed_reply(request, "internal", f"the checkpoint cannot be used: {error}", timings)
        except (ModelError, ValueError) as error:
            return failed_reply(request, "bad_request", str(error), timings)
        except Exception:
            log.exception("sampling_failed", request_id=request.request_id)
            return failed_reply(request, "internal", "sampling failed; the sampler's log says why", timings)

    def _answer(self, request: SampleRequest, timings: Timings) -> SampleReply:
        _require_time(request)
        started_at = time.perf_counter()
        model, step = self._cache.get(request.model_id, request.step)
        loaded_at = time.perf_counter()
        with self._computing:  # two at once would only share the same cores
            _require_time(request)
            begun_at = time.perf_counter()
            reply = self._compute(request, model, step)
        return reply.model_copy(
            update={
                "timings": Timings(
                    queue_s=timings.queue_s + begun_at - loaded_at,
                    load_s=loaded_at - started_at,
                    compute_s=time.perf_counter() - begun_at,
                )
            }
        )

    def _compute(self, request: SampleRequest, model: EnergyModel, step: int) -> SampleReply:
        import torch

        from model.networks import useful_threads
        from model.sampling import sample

        useful = useful_threads(model.config.network, model.event_shape, request.num_images)
        torch.set_num_threads(min(len(os.sched_getaffinity(0)), useful))  # of this pool thread
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


def _require_time(request: SampleRequest) -> None:
    if request.remaining_s <= 0:
        raise RequestRefused("deadline_passed", "the samplers are too busy: the request waited beyond its deadline")


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
