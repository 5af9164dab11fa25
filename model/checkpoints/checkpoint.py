"""Checkpoints: each is a directory of two safetensors files and one JSON file, and never a pickle.

    config.json          version, step, rollbacks, event shape, classes and held-out energies, training configuration
    ema.safetensors      averaged weights, which are all that sampling and densities need
    state.safetensors    `model.*` weights and `optimizer.*` moments, which resuming needs in addition

Both safetensors files hold every network of a training. The tensors of the energy have the names of its module; those
of a further network have its name and a slash before them. A directory is complete or refused: reading is strict about
versions, names, shapes and finiteness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import TrainConfig, from_dict, to_dict
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError, ConfigError
from model.intake.labels import MAX_CLASSES

VERSION = 1
CONFIG_FILE = "config.json"
EMA_FILE = "ema.safetensors"
STATE_FILE = "state.safetensors"
SAMPLING_FILES = (CONFIG_FILE, EMA_FILE)
"""The files that `load_model` reads, and all that it reads."""
ENERGY = "energy"
"""The name of the network that every training has."""
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")
_OF_THE_DATA = ("data_mean", "data_std")
"""The tensors whose shape the configuration does not give: () for images, (D,) for vectors."""


@dataclass(frozen=True)
class NetworkTensors:
    """Copies of the tensors that a checkpoint holds for one network."""

    average: dict[str, Tensor]
    """the averaged weights; the weights themselves if no average is kept"""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """the weights; empty if training cannot go on from this checkpoint"""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """the optimiser's moments, named `{index of the parameter}.{moment}`"""


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything that a checkpoint holds, which further training does not change."""

    step: int
    config: TrainConfig
    event_shape: tuple[int, ...]
    networks: Mapping[str, NetworkTensors]
    """the networks' tensors by the networks' names, ENERGY among them"""
    rollbacks: int = 0
    """how often the run had gone back after a divergence"""
    class_names: tuple[str, ...] = ()
    """what the labels 0, 1, … of a conditional model mean"""
    held_out_energies: tuple[float, ...] = ()
    """those of a conditional model, as `EnergyModel.held_out_energies`"""

    @property
    def energy(self) -> NetworkTensors:
        """The tensors of the energy network."""
        return self.networks[ENERGY]

    def write(self, directory: Path) -> None:
        """Write the three files into `directory`, which exists; the JSON file comes last."""
        ema: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for network, tensors in self.networks.items():
            prefix = "" if network == ENERGY else f"{network}/"
            ema |= {f"{prefix}{name}": tensor for name, tensor in tensors.average.items()}
            state |= {f"{prefix}model.{name}": tensor for name, tensor in tensors.weights.items()}
            state |= {f"{prefix}optimizer.{name}": tensor for name, tensor in tensors.moments.items()}
        safetensors.torch.save_file(ema, directory / EMA_FILE)
        safetensors.torch.save_file(state, directory / STATE_FILE)
        description = {
            "version": VERSION,
            "step": self.step,
            "rollbacks": self.rollbacks,
            "event_shape": list(self.event_shape),
            "classes": list(self.class_names),
            "held_out_energies": list(self.held_out_energies),
            "config": to_dict(self.config),
        }
        (directory / CONFIG_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")


def copy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies of `tensors` on the CPU."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def load_model(directory: Path, device: str = "cpu") -> EnergyModel:
    """Load the averaged model of the checkpoint in `directory`, ready for sampling. Raises CheckpointError."""
    about = _read_description(directory)
    model = EnergyModel(about.config, about.event_shape, about.class_names)
    model.held_out_energies = about.held_out_energies
    load_weights(model, _read_tensors(directory / EMA_FILE, like=model.state_dict()))
    return model.to(device).eval()


def read_snapshot(directory: Path) -> Snapshot:
    """Read everything that the checkpoint in `directory` holds. Raises CheckpointError."""
    about = _read_description(directory)
    averages, states = (_by_network(_read_tensors(directory / file)) for file in (EMA_FILE, STATE_FILE))
    networks = {
        network: NetworkTensors(
            average, _below("model.", states.get(network, {})), _below("optimizer.", states.get(network, {}))
        )
        for network, average in averages.items()
    }
    return Snapshot(
        about.step,
        about.config,
        about.event_shape,
        networks,
        about.rollbacks,
        about.class_names,
        about.held_out_energies,
    )


class _Description(NamedTuple):
    """What `config.json` says."""

    config: TrainConfig
    event_shape: tuple[int, ...]
    step: int
    rollbacks: int
    class_names: tuple[str, ...]
    held_out_energies: tuple[float, ...]


def _by_network(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort a file's tensors by the network that they belong to, and remove its name from theirs."""
    found: dict[str, dict[str, Tensor]] = {ENERGY: {}}
    for name, tensor in tensors.items():
        network, _, own = name.rpartition("/")
        found.setdefault(network or ENERGY, {})[own] = tensor
    return found


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into `model`, whose names and shapes they must match exactly. Raises CheckpointError."""
    for name in _OF_THE_DATA:
        if name in weights and weights[name].shape != getattr(model, name).shape:
            setattr(model, name, torch.empty_like(weights[name]))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not belong to this configuration: {error}") from error


def _read_description(directory: Path) -> _Description:
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
        event_shape = tuple(int(n) for n in description["event_shape"])
        rollbacks = int(description.get("rollbacks", 0))  # absent from checkpoints of 0.1.0
        classes = _class_names(config, description.get("classes", []))  # absent from checkpoints before labels
        energies = tuple(float(energy) for energy in description.get("held_out_energies", []))  # nor those before it
        return _Description(config, event_shape, int(description["step"]), rollbacks, classes, energies)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a model: {error}") from error


def _class_names(config: TrainConfig, names: Any) -> tuple[str, ...]:
    """Return the names of a description's classes. Raises ValueError if they are not those of such a model."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MAX_CLASSES:
        raise ValueError(f"classes are not a list of at most {MAX_CLASSES} names")
    if config.conditional != bool(names):
        raise ValueError(f"conditional is {config.conditional}, but there are {len(names)} classes")
    return tuple(names)


def _read_tensors(path: Path, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read all tensors of a file; with `like`, only those of the energy, whose state dict `like` is.

    Raises CheckpointError.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if like is None or "/" not in name]  # noqa: SIM118 (no dict)
            for name in names:  # judged by the header alone, before a tensor takes memory
                _require_meant(path, name, file.get_slice(name), like)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise CheckpointError(f"{path} has values that are not finite in {broken[0]}")
    return tensors


def _require_meant(path: Path, name: str, tensor: Any, like: Mapping[str, Tensor] | None) -> None:
    """Refuse a tensor whose entry in the header is not what a checkpoint can hold. Raises CheckpointError.

    When it opens a file, safetensors itself refuses a header that promises more than the file holds.
    """
    if tensor.get_dtype() not in _DTYPES:
        raise CheckpointError(f"{path} holds {name} as {tensor.get_dtype()}; expected {', '.join(_DTYPES)}")
    if like is None or name in _OF_THE_DATA:
        return
    shape = tensor.get_shape()
    if name not in like or list(like[name].shape) != shape:
        raise CheckpointError(f"the weights do not belong to this configuration: {path} holds {name} of shape {shape}")
