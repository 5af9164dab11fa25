"""A picture of the density of a model of the plane, beside its data."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from model.config import TrainConfig
from model.data.datasets import Dataset
from model.densities import density
from model.densities.calibration import Calibration
from model.energies.energy_model import EnergyModel
from model.errors import ShapeError
from worker.pictures import density_map, map_grid
from worker.queue.messages import DoubleArray, FloatArray
from worker.queue.tasks import DensityMapReply, DensityMapRequest
from worker.sampler.open_request import OpenRequest

_MAP_POINTS = 4000
"""So many training events are drawn beside a density."""
_MAP_CHUNK = 4096
"""So many cells of a map are evaluated in one turn."""


def answer(opened: OpenRequest[DensityMapRequest]) -> DensityMapReply:
    """Draw the log density over the frame of the training data, and the data on top."""
    calibration = opened.calibration()
    config = opened.compute(_planar_config)
    points = _training_points(opened.dataset_fn(config))
    columns, rows, grid = map_grid(points)
    values = opened.compute(lambda model: _map_values(model, grid, calibration))
    return opened.reply(DensityMapReply, png=density_map(columns, rows, values, points, _title(calibration)))


def _planar_config(model: EnergyModel) -> Generator[None, None, TrainConfig]:
    """Return the model's configuration. Raises ShapeError unless it is of vectors of two numbers."""
    if tuple(model.event_shape) != (2,):
        raise ShapeError(
            f"the model's events have shape {tuple(model.event_shape)}; a density can be drawn of vectors of two "
            "numbers only. POST /log-density scores others"
        )
    yield
    return model.config


def _training_points(dataset: Dataset) -> FloatArray:
    """Return the points that are drawn, (N, 2) in the data's units."""
    points: FloatArray = dataset.space.decode(dataset.train[:_MAP_POINTS]).numpy()
    return points


def _map_values(model: EnergyModel, grid: FloatArray, calibration: Calibration) -> Generator[None, None, DoubleArray]:
    """Compute the log densities (N,) of a map's cells (N, 2), in nats, a piece a turn."""
    values = []
    for chunk in torch.split(torch.from_numpy(grid), _MAP_CHUNK):
        values.append(density.log_density(model, chunk, calibration.log_z.estimate).cpu().numpy())
        yield
    return np.concatenate(values)


def _title(calibration: Calibration) -> str:
    """Say log Z and its two sides, for people."""
    log_z = calibration.log_z
    error = "error not known" if log_z.std_error is None else f"± {log_z.std_error:.3f} nats"
    return f"log Z = {log_z.estimate:.3f} {error} (sides {log_z.lower:.3f} and {log_z.upper:.3f})"
