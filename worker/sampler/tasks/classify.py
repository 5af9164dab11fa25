"""The classes of the array beside a request."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from model.densities.classification import classified, share_less_likely
from model.energies.energy_model import EnergyModel
from model.errors import ShapeError
from worker.queue.messages import FloatArray
from worker.queue.tasks import ClassifyReply, ClassifyRequest
from worker.sampler.metrics import scored_events
from worker.sampler.open_request import OpenRequest


def answer(opened: OpenRequest[ClassifyRequest]) -> ClassifyReply:
    """Tell the class of every event of the array, and how typical it is of held-out data."""
    x, noise_std = opened.array(), opened.request.noise_std
    fields = opened.compute(lambda model: _classes(model, x, noise_std))
    scored_events.inc(len(x))
    return opened.reply(ClassifyReply, **fields)


def _classes(model: EnergyModel, x: FloatArray, noise_std: float) -> Generator[None, None, dict[str, Any]]:
    """Compute the reply's arrays, a piece a turn. Raises ShapeError, ConfigError."""
    if x.shape[1:] != tuple(model.event_shape):
        raise ShapeError(f"the data have shape {x.shape}; expected (N, {', '.join(map(str, model.event_shape))})")
    found = yield from classified(model, torch.from_numpy(x), noise_std=noise_std)
    energy = found.energy.double().cpu().numpy()
    return {
        "probabilities": found.log_probabilities.exp().cpu().numpy(),
        "energy": energy,
        # Held-out data were scored without noise, at level 0.
        "less_likely": share_less_likely(model, energy) if noise_std == 0 else None,
    }
