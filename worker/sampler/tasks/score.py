"""log densities of the array beside a request."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from model.densities import density
from model.densities.calibration import Calibration
from model.energies.energy_model import EnergyModel
from model.errors import ShapeError
from worker.queue.messages import FloatArray
from worker.queue.tasks import DensityReply, DensityRequest
from worker.sampler.metrics import scored_events
from worker.sampler.open_request import OpenRequest


def answer(opened: OpenRequest[DensityRequest]) -> DensityReply:
    """Score every event of the array, in nats, with the checkpoint's log Z."""
    calibration, x, request = opened.calibration(), opened.array(), opened.request
    fields = opened.compute(lambda model: _scores(request, model, calibration, x))
    scored_events.inc(len(x))
    return opened.reply(DensityReply, seed=request.seed, calibration=calibration.to_dict(), **fields)


def _scores(
    request: DensityRequest, model: EnergyModel, calibration: Calibration, x: FloatArray
) -> Generator[None, None, dict[str, Any]]:
    """Compute the reply's arrays and what an event cost. Raises ShapeError."""
    if x.shape[1:] != tuple(model.event_shape):
        raise ShapeError(f"the data have shape {x.shape}; expected (N, {', '.join(map(str, model.event_shape))})")
    x_data = torch.from_numpy(x)
    energy = density.data_energy(model, x_data)
    values = {"energy": energy, "log_density": density.normalized(model, energy, calibration.log_z.estimate)}
    if calibration.bin_width is not None:
        dim = torch.Size(model.event_shape).numel()
        values["bits_per_dim"] = density.bits_per_dim(values["log_density"], dim, calibration.bin_width)
    if request.num_paths:
        paths = yield from density.walk_paths(model, x_data, seed=request.seed, num_paths=request.num_paths)
        values |= {"path_log_density": paths.log_density, "path_spread": paths.spread}
    arrays = {name: value.double().cpu().numpy() for name, value in values.items()}
    return {"gradient_evaluations": request.num_paths * (model.num_levels - 1), **arrays}
