"""The ways to start a chain on p(y | x_{t+1}). Each of them is written here and nowhere else.

A start may ask for the score of a marginal energy at a point of its choice (`ask`) and make y from it (`answer`).
`begin` does so for a whole batch; `model.chains.descent` calls the same functions for rows that come to their levels at
different times. A new start is one class and one entry of `STARTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from model.conditions import At
from model.config import ChainStart
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.noise import NoiseSource
from model.schedule import Schedule, expand


class Start(Protocol):
    """A way to start chains of a model, from x_{t+1} `x_next` (B, *event) at the conditions `at` of the level t."""

    def asks(self, num_steps: int, is_top: bool, /) -> bool:
        """Whether a chain of `num_steps` takes a gradient evaluation to start; if not, y is x_{t+1}.

        `is_top` says whether the chain is at the top level.
        """

    def ask(self, model: EnergyModel, x_next: Tensor, at: At, /) -> tuple[Tensor, At]:
        """Return where the model's marginal energy is to be evaluated: a position y' (B, *event) and its conditions."""

    def answer(self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor) -> Tensor:
        """Return y, given the score −∇E(y') and standard normals ε; all are (B, *event)."""


def begin(start: Start, model: EnergyModel, x_next: Tensor, at: At, noise: NoiseSource) -> Tensor:
    """Return the y (B, *event) of a start that asks for a score. This takes one gradient evaluation."""
    point, asked = start.ask(model, x_next, at)
    _, score = energy_and_score(model.marginal(asked), point)
    return start.answer(model, x_next, at, score, noise.normal(x_next))


class Neighbour:
    """The start y = x_{t+1} (DRL). A chain of no steps draws from the conditional's normal approximation (DRL T1k)."""

    def asks(self, num_steps: int, _is_top: bool, /) -> bool:
        return num_steps == 0

    def ask(self, _model: EnergyModel, x_next: Tensor, at: At, /) -> tuple[Tensor, At]:
        return x_next, at

    def answer(self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor) -> Tensor:
        return normal_approximation(score, x_next, model.schedule.sigma[at.level + 1], epsilon)


class Predictor:
    """The start that draws y from the Gaussian that the score at x_{t+1} predicts.

    The mean is the posterior's, x_{t+1} + σ_{t+1}² ∇ log p(x_{t+1}) (Tweedie), and the standard deviation is
    `predicted_std`. At the top level, which has no tether to x_T, y is x_T itself.
    """

    def asks(self, _num_steps: int, is_top: bool, /) -> bool:
        return not is_top

    def ask(self, model: EnergyModel, x_next: Tensor, at: At, /) -> tuple[Tensor, At]:
        above = at.on(_level_above(model, at))
        return expand(model.schedule.scale[above.level], x_next) * x_next, above

    def answer(self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor) -> Tensor:
        scale, sigma = model.schedule.scale[_level_above(model, at)], model.schedule.sigma[at.level + 1]
        mean = x_next + expand(sigma**2, x_next) * (expand(scale, x_next) * score)
        drawn = mean + expand(predicted_std(model.schedule, at.level), x_next) * epsilon
        return torch.where(expand(at.level, x_next) == model.num_levels - 1, x_next, drawn)


STARTS: Mapping[ChainStart, Start] = MappingProxyType({"neighbour": Neighbour(), "predictor": Predictor()})
"""The starts by the names that configurations give them."""


def predicted_std(schedule: Schedule, level: Tensor) -> Tensor:
    """Return the standard deviation α_{t+1} σ_{t+1} σ̄_t/σ̄_{t+1} (B,) of the predictor's Gaussian, `level` in 0…T−1.

    It is that of y given x_{t+1} and x_data. Ho et al. 2020 (eq. 7) give that of x_t, which y = α_{t+1} x_t scales.
    """
    return schedule.scale[level] * schedule.sigma[level + 1] * schedule.sigma_bar[level] / schedule.sigma_bar[level + 1]


def _level_above(model: EnergyModel, at: At) -> Tensor:
    """Return t + 1 for each row, or the top level again for rows at the top, where the value is not used."""
    return (at.level + 1).clamp(max=model.num_levels - 1)


def normal_approximation(score: Tensor, x_next: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Draw from N(x_next − σ_{t+1}² ∇E_t(x_next), σ_{t+1}² I), the conditional to first order (DRL eq. 15).

    `score` is −∇E_t(x_next); `sigma` (B,) is σ_{t+1}; `noise` is standard normal.
    """
    s = expand(sigma, x_next)
    return x_next + s**2 * score + s * noise
