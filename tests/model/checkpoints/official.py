"""The authors' release as data: the checkpoint of a tiny network, and what the TensorFlow code computed with it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.checkpoints import official
from model.energies.energy_model import EnergyModel

_DATA = Path(__file__).parents[2] / "data"
CHECKPOINT = _DATA / "official_tiny"


@cache
def golden() -> dict[str, npt.NDArray[np.float64]]:
    """Every array of the release's recorded run."""
    with np.load(_DATA / "official_tiny_golden.npz") as archive:
        return dict(archive)


def images(name: str) -> Tensor:
    """A recorded (…, H, W, C) array as (…, C, H, W)."""
    return torch.from_numpy(np.moveaxis(golden()[name], -1, -3).copy())


def release_model() -> EnergyModel:
    """The release's network (ch = 16, N = 1) with its averaged weights, T6 and b² = 2e-4."""
    return official.load(CHECKPOINT, image_size=16)
