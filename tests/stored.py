"""A model in storage without a training: for tests of what happens after one, and for benchmarks of its speed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from model import data
from model.checkpoints.checkpoint import ENERGY, NetworkTensors, Snapshot, copy_tensors
from model.config import TrainConfig, to_dict
from model.energies.energy_model import EnergyModel
from worker.ids import new_id
from worker.storage.artifacts import Artifacts

STEP = 20


def untrained(config: TrainConfig, seed: int = 0) -> EnergyModel:
    """A model that knows its data's units and Gaussian; its network is as it was initialised."""
    torch.manual_seed(seed)
    dataset = data.load(config.dataset)
    model = EnergyModel(config, tuple(dataset.train.shape[1:]))
    model.space = dataset.space
    model.fit_base(dataset.train[:])
    return model


def store_untrained(artifacts: Artifacts, config: TrainConfig, seed: int = 0) -> str:
    """Id of such a model, with a checkpoint of step STEP."""
    model, model_id = untrained(config, seed), new_id()
    tensors = NetworkTensors(copy_tensors(model.state_dict()), {"step": torch.tensor(STEP)})
    snapshot = Snapshot(STEP, config, tuple(model.event_shape), {ENERGY: tensors})
    artifacts.put_model(model_id, {"dataset": config.dataset, "config": to_dict(config), "job_id": new_id()})
    with tempfile.TemporaryDirectory() as directory:
        snapshot.write(Path(directory))
        artifacts.commit_checkpoint(model_id, STEP, Path(directory))
    return model_id
