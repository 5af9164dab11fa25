"""Telling neighbouring levels apart by their energies gives modes that are far apart their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints.checkpoint import load_model
from model.conditions import At
from model.config import (
    ChainConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
)
from model.data.dataset import Dataset
from model.densities.density import level_energy
from model.energies.energy import MixtureEnergy
from model.energies.energy_model import EnergyModel
from model.events import CheckpointEvent
from model.noise import SharedNoise, make_generator
from model.spaces.affine import AffineSpace
from model.training.loop import train
from model.training.losses import level_classification_loss, marginal_score_matching_loss
from model.training.state import start

_WEIGHTS = (0.8, 0.2)
_MODES = MixtureEnergy(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.full((2,), 0.25), torch.tensor(_WEIGHTS))
_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=12, log_snr_max=5.0, log_snr_min=-6.0),
    network=NetworkConfig(kind="mlp", width=48, num_blocks=2, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=2),
    optimizer=OptimizerConfig(beta2=0.99, warmup_steps=50, cosine_decay=True, ema_decay=0.99),
    score_matching=ScoreMatchingConfig(steps=700, batch_size=256, form="marginal", learning_rate=5e-3),
    steps=700,
    batch_size=256,
    shared_noise=False,
    num_preview_samples=1,
)


def _dataset() -> Dataset:
    x = _MODES.sample(20_000, make_generator(0)).float()
    return Dataset("two modes", x[:19_000], x[19_000:], AffineSpace.plain((2,)))


def _weighted(weight: float) -> TrainConfig:
    return replace(_CONFIG, score_matching=replace(_CONFIG.score_matching, level_classification_weight=weight))


def test_the_weights_of_modes_cost_nothing_in_score_matching_and_something_in_classification() -> None:
    schedule, count = start(_CONFIG, _dataset()).model.schedule, 20_000
    noise = SharedNoise(make_generator(1))
    level = torch.full((count,), 3)
    x_data, epsilon = _MODES.sample(count, noise.generator), noise.normal(torch.empty(count, 2))
    x, sigma_bar = schedule.diffuse(x_data, level, epsilon), schedule.sigma_bar[level].float()
    above = schedule.diffuse(x_data, level + 1, epsilon)

    def energy(t: int, first_weight: float) -> MixtureEnergy:
        modes = replace(_MODES, weights=torch.tensor([first_weight, 1 - first_weight]))
        return modes.diffused(float(schedule.alpha_bar[t]), float(schedule.sigma_bar[t]))

    def losses(first_weight: float) -> tuple[float, float]:
        own, other = energy(3, first_weight), energy(4, _WEIGHTS[0])
        told = level_classification_loss(own(x), other(x)) + level_classification_loss(other(above), own(above))
        matched = marginal_score_matching_loss(lambda y, _: own(y), x, epsilon, At(level), sigma_bar)
        return float(told.mean()), float(matched.detach().mean())

    told, matched = losses(_WEIGHTS[0])
    for wrong in (0.5, 0.95):
        assert losses(wrong)[0] > told + 0.01
        assert losses(wrong)[1] == pytest.approx(matched, abs=1e-3)


def _difference_of_modes(model: EnergyModel) -> float:
    """E_0 at the lighter mode less that at the heavier one."""
    with torch.no_grad():
        heavy, light = level_energy(model, 0)(float(model.schedule.alpha_bar[0]) * _MODES.means).tolist()
    return float(light - heavy)


def _trained(config: TrainConfig, directory: Path) -> EnergyModel:
    for event in train(config, _dataset()):
        if isinstance(event, CheckpointEvent):
            event.write(directory)
    return load_model(directory)


@pytest.mark.slow
def test_a_training_learns_the_weights_of_modes_with_it_and_not_without(tmp_path: Path) -> None:
    """The truth is log 4."""

    def error(weight: float) -> float:
        return abs(_difference_of_modes(_trained(_weighted(weight), tmp_path)) - math.log(4))

    assert error(1.0) < 0.3 < error(0.0)
