"""Named networks: a second one beside the energy is stored, read and resumed as exactly as the energy is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.checkpoints.checkpoint import ENERGY, load_model, read_snapshot
from model.config import ChainConfig, NetworkConfig, OptimizerConfig, TrainConfig
from model.data.datasets import Dataset
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError
from model.networks.layers import Dense
from model.spaces.affine import AffineSpace
from model.training.state import (
    TrainedNetwork,
    TrainState,
    load_networks,
    make_optimizer,
    resume,
    start,
    trained_networks,
)

_CONFIG = TrainConfig(
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1), chain=ChainConfig(num_steps=1), energy="gaussian"
)


def _dataset() -> Dataset:
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("points", points, points, AffineSpace.plain((2,)))


class _Initializer(nn.Module):
    """A tiny second network, with a spectral norm and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense(2, 2, spectral_norm=True)
        self.register_buffer("seen", torch.zeros(()))

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        y: Tensor = self.dense(x)
        return y


def _initializer(*, averaged: bool) -> TrainedNetwork[_Initializer]:
    torch.manual_seed(3)
    module = _Initializer()
    optimizer = make_optimizer(OptimizerConfig(beta1=0.5), module)
    return TrainedNetwork(module, optimizer, copy.deepcopy(module).requires_grad_(False) if averaged else None)


def _networks(*, averaged: bool) -> dict[str, TrainedNetwork[Any]]:
    return {
        **trained_networks(_CONFIG, EnergyModel(_CONFIG, (2,))),
        "initializer": _initializer(averaged=averaged),
    }


def _state(*, averaged: bool) -> TrainState:
    energy = start(_CONFIG, _dataset()).energy
    return TrainState(_CONFIG, {ENERGY: energy, "initializer": _initializer(averaged=averaged)})


def _step(state: TrainState) -> None:
    """Every network down a loss of its own, with a learning rate of its own."""
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(state.step))
    for name, learning_rate in ((ENERGY, 1e-3), ("initializer", 1e-2)):
        network = state.networks[name]
        network.optimizer.zero_grad()
        parameters = list(network.module.parameters())
        loss = sum((p**2).sum() for p in parameters)
        if name == "initializer":
            loss = (network.module(x) - x.flip(1)).square().mean()
        loss.backward()
        network.descend(learning_rate, 1.0)
        network.update_average(0.9)
    state.step += 1


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything in a state, under names of its own."""
    found: dict[str, Tensor] = {}
    for network, tensors in state.snapshot().networks.items():
        for kind in ("average", "weights", "moments"):
            found |= {f"{network} {kind} {name}": tensor for name, tensor in getattr(tensors, kind).items()}
    return found


@pytest.mark.parametrize("averaged", [True, False], ids=["with an average", "without"])
def test_a_state_of_two_networks_that_is_stored_and_read_goes_on_exactly(averaged: bool, tmp_path: Path) -> None:
    state = _state(averaged=averaged)
    for _ in range(3):
        _step(state)
    state.snapshot().write(tmp_path)
    snapshot = read_snapshot(tmp_path)
    networks = _networks(averaged=averaged)
    load_networks(networks, snapshot, "cpu")
    resumed = TrainState(_CONFIG, networks, snapshot.step)
    for _ in range(3):
        _step(state)
        _step(resumed)
    expected, found = _tensors(state), _tensors(resumed)
    assert found.keys() == expected.keys()
    assert any(name.startswith("initializer moments") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert (float(expected["initializer weights seen"]), resumed.step) == (6, 6)


def test_a_further_network_takes_names_of_its_own_and_leaves_the_energy_s_as_they_were(tmp_path: Path) -> None:
    def names(directory: Path) -> list[set[str]]:
        found = []
        for file in ("ema.safetensors", "state.safetensors"):
            with safe_open(directory / file, framework="pt") as tensors:
                found.append(set(tensors.keys()))
        return found

    both, alone = tmp_path / "both", tmp_path / "alone"
    state = _state(averaged=True)
    _step(state)
    for directory, networks in ((both, state.networks), (alone, {ENERGY: state.energy})):
        directory.mkdir()
        TrainState(_CONFIG, networks).snapshot().write(directory)
    (ema, moving), (ema_alone, moving_alone) = names(both), names(alone)
    assert ema_alone == set(state.model.state_dict())
    assert {name.split(".")[0] for name in moving_alone} == {"model", "optimizer"}
    assert {"model.network.head.weight", "model.step_size", "optimizer.0.exp_avg", "optimizer.0.step"} <= moving_alone
    assert {name for name in ema | moving if not name.startswith("initializer/")} == ema_alone | moving_alone
    assert {"initializer/dense.weight", "initializer/seen"} <= ema
    assert {"initializer/model.dense.weight", "initializer/optimizer.0.exp_avg"} <= moving


def test_the_energy_of_a_checkpoint_is_loaded_whatever_else_it_holds(tmp_path: Path) -> None:
    state = _state(averaged=True)
    state.snapshot().write(tmp_path)
    loaded = load_model(tmp_path).state_dict()
    for name, tensor in state.energy.averaged().state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_a_checkpoint_of_other_networks_than_the_training_s_is_refused(tmp_path: Path) -> None:
    _state(averaged=True).snapshot().write(tmp_path)
    with pytest.raises(CheckpointError, match="networks energy, initializer; this configuration trains energy"):
        resume(read_snapshot(tmp_path), _CONFIG)
