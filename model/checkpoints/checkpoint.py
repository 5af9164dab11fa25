"""Checkpoints: a directory of safetensors and one JSON file, never pickle.

    config.json          version, step, rollbacks, event shape, training configuration
    ema.safetensors      averaged weights, which is all that sampling and densities need
    state.safetensors    weights and optimiser moments, which resuming needs besides

A directory is complete or refused: reading is strict about versions, names, shapes and finiteness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import TrainConfig, from_dict, to_dict
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError, ConfigError

VERSION = 1
CONFIG_FILE = "config.json"
EMA_FILE = "ema.safetensors"
STATE_FILE = "state.safetensors"
SAMPLING_FILES = (CONFIG_FILE, EMA_FILE)
"""All that `load_model` reads."""
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")
_OF_THE_DATA = ("data_mean", "data_std")
"""scalar for images, (D,) for vectors; the configuration does not say which"""


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything a checkpoint holds; independent of further training."""

    step: int
    config: TrainConfig
    event_shape: tuple[int, ...]
    ema: dict[str, Tensor]
    state: dict[str, Tensor]
    """`model.*` weights and `optimizer.*` moments"""
    rollbacks: int = 0
    """How often the run had gone back after a divergence"""

    def write(self, directory: Path) -> None:
        """Write the three files into `directory`, which exists; the JSON file comes last."""
        safetensors.torch.save_file(self.ema, directory / EMA_FILE)
        safetensors.torch.save_file(self.state, directory / STATE_FILE)
        description = {
            "version": VERSION,
            "step": self.step,
            "rollbacks": self.rollbacks,
            "event_shape": list(self.event_shape),
            "config": to_dict(self.config),
        }
        (directory / CONFIG_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")


def copy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def load_model(directory: Path, device: str = "cpu") -> EnergyModel:
    """The averaged model of a checkpoint, ready for sampling. Raises CheckpointError."""
    config, event_shape, _, _ = _read_description(directory)
    model = EnergyModel(config, event_shape)
    load_weights(model, _read_tensors(directory / EMA_FILE, like=model.state_dict()))
    return model.to(device).eval()


def read_snapshot(directory: Path) -> Snapshot:
    """Everything a checkpoint holds. Raises CheckpointError."""
    config, event_shape, step, rollbacks = _read_description(directory)
    ema, state = _read_tensors(directory / EMA_FILE), _read_tensors(directory / STATE_FILE)
    return Snapshot(step, config, event_shape, ema, state, rollbacks)


def load_weights(model: EnergyModel, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into `model`, whose names and shapes they must match exactly. Raises CheckpointError."""
    for name in _OF_THE_DATA:
        if name in weights and weights[name].shape != getattr(model, name).shape:
            setattr(model, name, torch.empty_like(weights[name]))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not belong to this configuration: {error}") from error


def _read_description(directory: Path) -> tuple[TrainConfig, tuple[int, ...], int, int]:
    path = directory / CONFIG_FILE
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} holds no {CONFIG_FILE}: not a checkpoint, or one half written") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {description.get('version')!r}; this release reads version {VERSION}"
        )
    try:
        config = from_dict(TrainConfig, description["config"])
        rollbacks = int(description.get("rollbacks", 0))  # absent from checkpoints of 0.1.0
        return config, tuple(int(n) for n in description["event_shape"]), int(description["step"]), rollbacks
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a model: {error}") from error


def _read_tensors(path: Path, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    try:
        _check_header(path, like)
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise CheckpointError(f"{path} has values that are not finite in {broken[0]}")
    return tensors


def _check_header(path: Path, like: Mapping[str, Tensor] | None) -> None:
    """Refuse by its header alone what cannot be meant, before a tensor takes memory. Raises CheckpointError.

    safetensors itself refuses, when it opens a file, a header that promises more than the file holds.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no dict)
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in _DTYPES:
                raise CheckpointError(f"{path} holds {name} as {tensor.get_dtype()}; expected {', '.join(_DTYPES)}")
            if like is None or name in _OF_THE_DATA:
                continue
            if name not in like or list(like[name].shape) != tensor.get_shape():
                shape = tensor.get_shape()
                raise CheckpointError(
                    f"the weights do not belong to this configuration: {path} holds {name} of shape {shape}"
                )
