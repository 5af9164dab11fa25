"""Models from storage, as the engine asks for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model.config import Precision
from worker.queue.messages import ReplyError, SamplerRequest
from worker.storage.artifacts import ArtifactMissing, Artifacts

if TYPE_CHECKING:
    from model.energies.energy_model import EnergyModel


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
    """Finds and loads the checkpoints that requests are about."""

    def __init__(self, artifacts: Artifacts, directory: Path, device: str) -> None:
        self._artifacts = artifacts
        self._directory = directory
        self._device = device

    def key(self, request: SamplerRequest) -> ModelKey:
        """Return which checkpoint is meant, in which precision. Raises RequestRefused, StorageUnavailable."""
        step = self._artifacts.newest_step(request.model_id) if request.step is None else request.step
        if step is None:
            raise self._absent(request.model_id, None)
        return ModelKey(request.model_id, step, request.network_precision)

    def has(self, key: ModelKey) -> bool:
        """Return whether storage still holds the checkpoint. Raises StorageUnavailable."""
        return self._artifacts.has_checkpoint(key.model_id, key.step)

    def load(self, key: ModelKey) -> EnergyModel:
        """Fetch and load a model. Raises RequestRefused, CheckpointError, ArtifactDamaged, StorageUnavailable."""
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
