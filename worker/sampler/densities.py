"""Log densities and maps of them as work for the engine: in pieces, between the chains' evaluations."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from model.config import TrainConfig
from model.data.datasets import Dataset
from model.densities import density
from model.densities.calibration import Calibration
from model.energies.energy_model import EnergyModel
from model.errors import ShapeError
from worker.queue.messages import DensityReply, DensityRequest, DoubleArray, FloatArray

_MAP_POINTS = 4000
"""Training events drawn beside a density."""
_MAP_CHUNK = 4096
"""Cells of a density map evaluated in one turn."""


def score_data(
    request: DensityRequest, model: EnergyModel, calibration: Calibration, x: FloatArray
) -> Generator[None, None, DensityReply]:
    """Raises ShapeError."""
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


def planar_config(model: EnergyModel) -> Generator[None, None, TrainConfig]:
    """The model's configuration. Raises ShapeError unless it is of vectors of two numbers."""
    if tuple(model.event_shape) != (2,):
        raise ShapeError(
            f"the model's events have shape {tuple(model.event_shape)}; a density can be drawn of vectors of two "
            "numbers only. POST /log-density scores others"
        )
    yield
    return model.config


def training_points(dataset: Dataset) -> FloatArray:
    """(N, 2) in the data's units."""
    points: FloatArray = dataset.space.decode(dataset.train[:_MAP_POINTS]).numpy()
    return points


def map_values(model: EnergyModel, grid: FloatArray, calibration: Calibration) -> Generator[None, None, DoubleArray]:
    """Log densities of the cells (N, 2) of a map, a piece a turn: (N,) nats."""
    values = []
    for chunk in torch.split(torch.from_numpy(grid), _MAP_CHUNK):
        values.append(density.log_density(model, chunk, calibration.log_z.estimate).cpu().numpy())
        yield
    return np.concatenate(values)


def map_title(calibration: Calibration) -> str:
    """log Z and its sides, for people."""
    log_z = calibration.log_z
    return f"log Z = {log_z.estimate:.3f} ± {log_z.std_error:.3f} nats (sides {log_z.lower:.3f} … {log_z.upper:.3f})"
