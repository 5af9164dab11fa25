"""Telling neighbouring levels apart by their energies fixes the weights of modes that are far apart, and of levels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.conditions import At
from model.config import NetworkConfig, ScheduleConfig, ScoreMatchingConfig, TrainConfig
from model.energies.energy import MixtureEnergy
from model.energies.energy_model import EnergyModel
from model.noise import SharedNoise, make_generator
from model.schedule import expand
from model.training.objective import score_matching_losses

_HEAVY = 0.8
_MODES = MixtureEnergy(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.full((2,), 0.25), torch.tensor([_HEAVY, 0.2]))
_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=12, log_snr_max=5.0, log_snr_min=-6.0),
    network=NetworkConfig(kind="mlp", width=4, num_blocks=1, spectral_norm=False),
    energy="gaussian",
    score_matching=ScoreMatchingConfig(form="marginal"),
)
_WRONG_BELOW = 4
"""The levels below have the weights of the modes and the constant that a test gives them, the others the true ones."""


class _KnownModel(EnergyModel):
    """The exact energies of the two modes at every level, but for what the clean levels have wrong."""

    def __init__(self, classification_weight: float, heavy: float, constant: float) -> None:
        matching = replace(_CONFIG.score_matching, level_classification_weight=classification_weight)
        super().__init__(replace(_CONFIG, score_matching=matching), (2,))
        self.fit_base(_MODES.sample(10_000, make_generator(0)))
        self.heavy, self.constant = heavy, constant

    def parts(self, y: Tensor, at: At) -> tuple[Tensor, Tensor]:
        assert self.base is not None
        x, alpha_bar, sigma_bar = (
            one.to(y) for one in (y / expand(self.schedule.scale[at.level], y), *self._scales(at.level))
        )
        is_wrong = at.level < _WRONG_BELOW
        heavy = torch.where(is_wrong, self.heavy, _HEAVY)
        variance = alpha_bar**2 * _MODES.stds[0] ** 2 + sigma_bar**2
        squared = (x[:, None] - alpha_bar[:, None, None] * _MODES.means).square().sum(2) / (2 * variance[:, None])
        log_density = torch.logsumexp(torch.stack([heavy, 1 - heavy], 1).log() - squared, 1) - variance.log()
        return y.new_zeros(()), log_density + self.base.log_volume(at.level) + is_wrong * self.constant

    def _scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.alpha_bar[level], self.schedule.sigma_bar[level]


def _loss(classification_weight: float, heavy: float = _HEAVY, constant: float = 0.0) -> float:
    count, noise = 24_000, SharedNoise(make_generator(1))
    x_data = _MODES.sample(count, noise.generator)
    model = _KnownModel(classification_weight, heavy, constant)
    losses = score_matching_losses(model, x_data, At(torch.arange(count) % model.num_levels), noise)
    return float(losses.detach().mean())


@pytest.mark.parametrize(("heavy", "constant"), [(0.5, 0.0), (0.95, 0.0), (_HEAVY, 0.5), (_HEAVY, -0.5)])
def test_wrong_weights_of_far_modes_and_levels_cost_nothing_until_levels_are_told_apart(
    heavy: float, constant: float
) -> None:
    assert _loss(0.0, heavy, constant) == pytest.approx(_loss(0.0), abs=1e-4)
    assert _loss(1.0, heavy, constant) > _loss(1.0) + 0.001


def test_the_loss_of_a_level_s_own_neighbours_is_that_of_a_fair_choice_where_energies_are_true() -> None:
    """A level beyond the ends is the level itself, where nothing is told: log 2 of a choice between equals."""
    told = _loss(1.0) - _loss(0.0)
    assert 0 < told < math.log(2)
