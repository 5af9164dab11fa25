"""The authors' release as data: weights of a tiny network, and what the TensorFlow code computed with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import ChainConfig, NetworkConfig, SamplingConfig, TrainConfig
from model.energy_model import EnergyModel

_DATA = Path(__file__).parent.parent / "data"
_BLOCK_NAMES = {
    "conv2d_1/conv": "map1",
    "conv2d_2/conv": "map2",
    "conv2d_shortcut/conv": "shortcut",
    "dense/dense": "level",
}
_OTHER_NAMES = {
    "conv2d_in/conv": "conv_in",
    "temb_dense_0/dense": "embedding.dense0",
    "temb_dense_1/dense": "embedding.dense1",
    "temb_dense_2/dense": "head",
}
_VARIABLES = {"w": "weight", "W": "weight", "layer/b": "bias", "b": "bias", "layer/g": "gain", "sn_u": "left_vector"}


@cache
def golden() -> dict[str, npt.NDArray[np.float64]]:
    """Every array of the release's recorded run."""
    with np.load(_DATA / "official_tiny_golden.npz") as archive:
        return dict(archive)


def images(name: str) -> Tensor:
    """A recorded (…, H, W, C) array as (…, C, H, W)."""
    return torch.from_numpy(np.moveaxis(golden()[name], -1, -3).copy())


def release_model() -> EnergyModel:
    """The release's network (ch = 16, N = 1), T6, b² = 2e-4 and 5 steps a level, with its averaged weights."""
    config = TrainConfig(
        network=NetworkConfig(width=16, num_blocks=1),
        chain=ChainConfig(num_steps=5),
        sampling=SamplingConfig(num_steps=5),
    )
    model = EnergyModel(config, (3, 16, 16))
    with np.load(_DATA / "official_tiny_weights.npz") as archive:
        weights = {_our_name(name): _our_layout(archive[name]) for name in archive}
    model.network.load_state_dict(weights)
    return model


def _our_name(name: str) -> str:
    for theirs, ours in _OTHER_NAMES.items():
        if name.startswith(theirs + "/"):
            return f"{ours}.{_VARIABLES[name[len(theirs) + 1 :]]}"
    _, resolution, block, rest = name.split("/", 3)
    for theirs, ours in _BLOCK_NAMES.items():
        if rest.startswith(theirs + "/"):
            return f"resolutions.{resolution}.{block}.{ours}.{_VARIABLES[rest[len(theirs) + 1 :]]}"
    raise KeyError(name)


def _our_layout(array: npt.NDArray[np.float32]) -> Tensor:
    """HWIO -> OIHW, (in, out) -> (out, in), (1, out) -> (out)."""
    tensor = torch.from_numpy(array.copy())
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.dim() == 2:
        return tensor[0] if len(tensor) == 1 else tensor.T.contiguous()
    return tensor
