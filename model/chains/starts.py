"""The ways to start a chain on p(y | x_{t+1}). Each of them is written here and nowhere else.

A start may ask for the score of a marginal energy at a point of its choice (`ask`) and make y from it (`answer`).
`begin` does so for a whole batch; `model.chains.descent` calls the same functions for rows that come to their levels at
different times. A descent hands what a start remembers from one level to the next. A new start is one class and one
entry of `STARTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.conditions import At
from model.config import ChainStart
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.noise import NoiseSource
from model.schedule import Schedule, expand


class Answer(NamedTuple):
    """How the chains of a level begin."""

    y: Tensor
    """(B, *event) their first positions"""
    memory: Tensor | None = None
    """(B, *event) what the answer at the level below is to be given; None if nothing"""


class Start(Protocol):
    """A way to start chains of a model, from x_{t+1} `x_next` (B, *event) at the conditions `at` of the level t."""

    def asks(self, num_steps: int, is_top: bool, /) -> bool:
        """Whether a chain of `num_steps` takes a gradient evaluation to start; if not, y is x_{t+1}.

        `is_top` says whether the chain is at the top level.
        """

    def ask(self, model: EnergyModel, x_next: Tensor, at: At, /) -> tuple[Tensor, At]:
        """Return where the model's marginal energy is to be evaluated: a position y' (B, *event) and its conditions."""

    def answer(
        self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor, memory: Tensor | None, /
    ) -> Answer:
        """Return y, given the score −∇E(y') and standard normals ε; all are (B, *event).

        `memory` is that of the answer at the level above, which is None in training, where no level is sampled but one.
        In a batch of which only some rows had such an answer, it is 0 for the others.
        """


def begin(
    start: Start, model: EnergyModel, x_next: Tensor, at: At, noise: NoiseSource, memory: Tensor | None = None
) -> Answer:
    """Return the `answer` of a start that asks for a score. This takes one gradient evaluation."""
    point, asked = start.ask(model, x_next, at)
    _, score = energy_and_score(model.marginal(asked), point)
    return start.answer(model, x_next, at, score, noise.normal(x_next), memory)


class Neighbour:
    """The start y = x_{t+1} (DRL). A chain of no steps draws from the conditional's normal approximation (DRL T1k)."""

    def asks(self, num_steps: int, _is_top: bool, /) -> bool:
        return num_steps == 0

    def ask(self, _model: EnergyModel, x_next: Tensor, at: At, /) -> tuple[Tensor, At]:
        return x_next, at

    def answer(
        self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor, _memory: Tensor | None, /
    ) -> Answer:
        return Answer(normal_approximation(score, x_next, model.schedule.sigma[at.level + 1], epsilon))


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

    def answer(
        self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor, _memory: Tensor | None, /
    ) -> Answer:
        scale, sigma = model.schedule.scale[_level_above(model, at)], model.schedule.sigma[at.level + 1]
        mean = x_next + expand(sigma**2, x_next) * (expand(scale, x_next) * score)
        drawn = mean + expand(predicted_std(model.schedule, at.level), x_next) * epsilon
        return Answer(torch.where(expand(at.level, x_next) == model.num_levels - 1, x_next, drawn))


class Multistep(Predictor):
    """The predictor of second order, which extrapolates the expected data from the two last levels to the next.

    It is SDE-DPM-Solver++(2M) (Lu et al. 2022) on the levels of the model, with the extrapolation integrated exactly,
    and remembers the expected data given x_{t+1}. Without a level above, it is the predictor of first order.
    """

    def answer(
        self, model: EnergyModel, x_next: Tensor, at: At, score: Tensor, epsilon: Tensor, memory: Tensor | None, /
    ) -> Answer:
        y = super().answer(model, x_next, at, score, epsilon, memory).y
        expected = expected_data(model, x_next, score, _level_above(model, at))
        if memory is not None:
            y = y + expand(extrapolation(model.schedule)[at.level], y) * (expected - memory)
        return Answer(y, expected)


STARTS: Mapping[ChainStart, Start] = MappingProxyType(
    {"neighbour": Neighbour(), "predictor": Predictor(), "multistep": Multistep()}
)
"""The starts by the names that configurations give them."""


def predicted_std(schedule: Schedule, level: Tensor) -> Tensor:
    """Return the standard deviation α_{t+1} σ_{t+1} σ̄_t/σ̄_{t+1} (B,) of the predictor's Gaussian, `level` in 0…T−1.

    It is that of y given x_{t+1} and x_data. Ho et al. 2020 (eq. 7) give that of x_t, which y = α_{t+1} x_t scales.
    """
    return schedule.scale[level] * schedule.sigma[level + 1] * schedule.sigma_bar[level] / schedule.sigma_bar[level + 1]


def extrapolation(schedule: Schedule) -> Tensor:
    """Return the factor (T,) of the last change of the expected data that is added to the mean of y for second order.

    With h_t = λ_t − λ_{t+1}, the step in λ = log(ᾱ/σ̄), and expected data that go on changing by 1/h_{t+1} of their last
    change for each unit of λ, the integral over the step is ᾱ_{t+1} (h_t − (1 − e^{−2h_t})/2)/h_{t+1} of that change,
    where 1 − e^{−2h_t} = σ_{t+1}²/σ̄_{t+1}². The last step to x_T = pure noise is infinitely long, so that the factor is
    0 at level T−2; so it is at the top level, which has no level above.
    """
    step = -(schedule.alpha_bar / schedule.sigma_bar).log().diff()
    forgotten = (schedule.sigma[1:-1] / schedule.sigma_bar[1:-1]) ** 2
    followed = schedule.alpha_bar[1:-1] * (step[:-1] - forgotten / 2) / step[1:]
    return torch.cat([followed, step.new_zeros(1)])


def expected_data(model: EnergyModel, x: Tensor, score: Tensor, level: Tensor) -> Tensor:
    """Return E[x_data | x_t] = (x_t + σ̄_t² ∇ log p(x_t))/ᾱ_t (Tweedie) at the levels t = `level` (B,).

    `score` is −∇E_t(α_{t+1} x_t), that of y_t. `x`, it and the result are (B, *event).
    """
    schedule = model.schedule
    marginal_score = expand(schedule.scale[level], x) * score
    return (x + expand(schedule.sigma_bar[level] ** 2, x) * marginal_score) / expand(schedule.alpha_bar[level], x)


def _level_above(model: EnergyModel, at: At) -> Tensor:
    """Return t + 1 for each row, or the top level again for rows at the top, where the value is not used."""
    return (at.level + 1).clamp(max=model.num_levels - 1)


def normal_approximation(score: Tensor, x_next: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Draw from N(x_next − σ_{t+1}² ∇E_t(x_next), σ_{t+1}² I), the conditional to first order (DRL eq. 15).

    `score` is −∇E_t(x_next); `sigma` (B,) is σ_{t+1}; `noise` is standard normal.
    """
    s = expand(sigma, x_next)
    return x_next + s**2 * score + s * noise
