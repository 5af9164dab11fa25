"""Trained models for benchmarks: two trainings at a time on one thread each, kept where they can be found again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from model import data, training
from model.checkpoints.checkpoint import CONFIG_FILE, load_model
from model.config import TrainConfig
from model.energies.energy_model import EnergyModel
from model.events import CheckpointEvent

FOLDER = Path("bench-results/models")
_SECONDS_FILE = "cpu_s"
_NEVER = 10**8


def train_all(wanted: Mapping[str, TrainConfig], tell_fn: Callable[[str], None]) -> None:
    """Train what `wanted` has by name and FOLDER has not, and tell the end of each training."""
    missing = {name: config for name, config in wanted.items() if not (FOLDER / name / _SECONDS_FILE).exists()}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_train, config, FOLDER / name) for name, config in missing.items()]):
            tell_fn(f"trained {future.result()}")


def load_trained(name: str) -> EnergyModel:
    """Return the model that FOLDER has under `name`."""
    return load_model(FOLDER / name)


def training_s(name: str) -> float:
    """Return the CPU seconds that this model's training took."""
    return float((FOLDER / name / _SECONDS_FILE).read_text())


def _train(config: TrainConfig, folder: Path) -> str:
    torch.set_num_threads(1)
    began_s = time.process_time()
    quiet = replace(config, sample_every=_NEVER, checkpoint_every=_NEVER, num_preview_samples=1)
    folder.mkdir(parents=True, exist_ok=True)
    for event in training.train(quiet, data.load(config.dataset)):
        if isinstance(event, CheckpointEvent):
            event.write(folder)
    elapsed_s = time.process_time() - began_s
    assert (folder / CONFIG_FILE).exists()
    (folder / _SECONDS_FILE).write_text(f"{elapsed_s:.1f}")
    return f"{folder.name}: {config.steps:,} steps, {elapsed_s:.0f} CPU seconds"
