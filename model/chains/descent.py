"""Descents from x_T to x_0 side by side, each at its own level and step.

This is `model.chains.sampling.descend` cut into single evaluations.

A row is one chain. Whatever a row does next, it waits for the same thing: the energy and score of
E_t(y) + precision |x_{t+1} − y|²/2 at its `point` y. One evaluation of all rows therefore serves rows that start a
level, propose, predict or denoise, and none is wasted. Rows are compact and their arrays never move, so that a captured
graph can be replayed. What a row does when is counted on the host: nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.chains.kernels import State, langevin_move, mala_choice, metropolis_choice
from model.chains.sampling import NUM_LEAPFROG, expected_data, predicted_start
from model.chains.starts import normal_approximation
from model.config import SamplingConfig, TrainConfig
from model.energies.conditional import recovery_energy, squared_norm
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.noise import NoiseRows
from model.schedule import expand

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_EXACT_ROWS, _ROWS_MULTIPLE = 8, 4
_ACCEPT, _REJECT = np.float32(-1), np.float32(2)  # in place of a uniform


class Waiting(IntEnum):
    """What the evaluation of a row is for."""

    start = 0
    """the state at the start of a level's chain (adjusted kernels)"""
    move = 1
    """a step of the chain"""
    predict = 2
    """the Gaussian that the chain starts from"""
    approximate = 3
    """K = 0: the normal approximation of the conditional"""
    denoise = 4
    """the expected data"""


@dataclass(frozen=True)
class Chain:
    """A descent to begin: sample `index` of the stream `seed`."""

    seed: int
    index: int
    settings: SamplingConfig


@dataclass(frozen=True)
class Arrivals:
    """Rows that reached a level in one step."""

    rows: Rows
    levels: Rows
    x: Tensor
    """(N, *event) x_t of each"""


@dataclass(frozen=True)
class Step:
    """What one evaluation brought about."""

    arrivals: list[Arrivals]
    ended: Rows
    """Rows that are done; they must be removed before the next step."""
    samples: Tensor
    """(N, *event) theirs, in the data's units"""


def evaluations_per_sample(config: TrainConfig, settings: SamplingConfig) -> int:
    """Gradient evaluations of one descent, the same as `model.chains.sampling.sample` reports."""
    num_levels = config.schedule.num_levels
    predictions = num_levels - 1 if settings.start == "predictor" else 0
    if settings.num_steps == 0:
        chains = 0 if predictions else num_levels
    else:
        per_step = NUM_LEAPFROG if config.chain.kernel == "hmc" else 1
        chains = num_levels * (settings.num_steps * per_step + (config.chain.kernel != "langevin"))
    return predictions + chains + settings.denoise


class Descents:
    """Up to `capacity` descents of one model, which the caller keeps frozen. Not safe to share among threads."""

    def __init__(self, model: EnergyModel, capacity: int) -> None:
        device, event = model.step_size.device, model.event_shape
        self.model = model
        self.capacity = capacity
        self.num_rows = 0
        self._kernel = {"langevin": self._langevin, "mala": self._mala, "hmc": self._hmc}[model.config.chain.kernel]
        self._noise = NoiseRows(capacity, event, device)
        schedule = model.schedule
        self._scale = schedule.scale.float().to(device)
        self._tether_precision = schedule.tether_precision.float().to(device)

        def rows(*shape: int) -> Tensor:
            return torch.zeros(capacity, *shape, device=device)

        self._point, self._x_next, self._position, self._score = (rows(*event) for _ in range(4))
        self._epsilon, self._momentum = rows(*event), rows(*event)
        self._energy, self._precision, self._step_size, self._noise_scale = (rows() for _ in range(4))
        self._network_level = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._level, self._num_steps, self._left, self._leaps = (np.zeros(capacity, np.int64) for _ in range(4))
        self._waiting = np.zeros(capacity, np.int64)
        self._tensors = (
            *(self._point, self._x_next, self._position, self._score, self._epsilon, self._momentum),
            *(self._energy, self._precision, self._step_size, self._noise_scale, self._network_level),
        )
        self._counters = (self._level, self._num_steps, self._left, self._leaps, self._waiting)
        self._arrivals: list[Arrivals] = []
        self._ended: list[tuple[Rows, Tensor]] = []

    def add(self, chains: Sequence[Chain]) -> list[Arrivals]:
        """Begin `chains` in the next rows; their arrival at level T, pure noise."""
        rows = np.arange(self.num_rows, self.num_rows + len(chains))
        self.num_rows += len(chains)
        for row, chain in zip(rows, chains, strict=True):
            self._noise.append(chain.seed, chain.index)
            self._num_steps[row] = chain.settings.num_steps
            self._noise_scale[row] = chain.settings.noise_scale
        self._level[rows] = self.model.num_levels - 1
        x_top = self._noise.normal(rows)
        self._arrivals = [Arrivals(rows, np.full(len(rows), self.model.num_levels), x_top)]
        self._enter_level(rows, x_top)
        return self._arrivals

    def remove(self, rows: Rows) -> list[tuple[int, int]]:
        """Take rows out; the last ones move into their places: [(from, to), …]."""
        left = self.num_rows - len(rows)
        targets = rows[rows < left]
        sources = np.setdiff1d(np.arange(left, self.num_rows), rows)
        self._noise.move(sources, targets, left)
        if len(sources):
            for tensor in self._tensors:
                tensor[targets] = tensor[sources]
            for counter in self._counters:
                counter[targets] = counter[sources]
        self.num_rows = left
        return list(zip(sources.tolist(), targets.tolist(), strict=True))

    def evaluate(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """(energies (N,), scores (N, *event)) at the points of the first rows: one gradient evaluation."""
        shape = min(_padded(num_rows), self.capacity)
        level = self._network_level[:shape]
        conditional = recovery_energy(
            lambda y: self.model.energy(y, level), self._x_next[:shape], self._precision[:shape]
        )
        energy, score = energy_and_score(conditional, self._point[:shape])
        return energy[:num_rows], score[:num_rows]

    def step(self) -> Step:
        """One gradient evaluation of all rows, and every row one step on."""
        waiting = self._waiting[: self.num_rows].copy()
        energy, score = self.evaluate(self.num_rows)
        self._arrivals, self._ended = [], []
        reached = self._kernel(waiting, energy, score)
        for what, resume in (
            (Waiting.predict, self._predicted),
            (Waiting.approximate, self._approximated),
            (Waiting.denoise, self._denoised),
        ):
            rows = np.flatnonzero(waiting == what)
            if len(rows):
                resume(rows, score[rows])
        rows = np.flatnonzero(reached)
        if len(rows):
            self._arrive(rows, self._position[rows])
        return self._progress()

    def _progress(self) -> Step:
        if not self._ended:
            return Step(self._arrivals, np.zeros(0, np.int64), self._point[:0])
        ended = np.concatenate([rows for rows, _ in self._ended])
        samples = torch.cat([x for _, x in self._ended])
        return Step(self._arrivals, ended, self.model.space.decode(samples))

    def _langevin(self, waiting: Rows, _energy: Tensor, score: Tensor) -> Mask:
        """Rows whose chain at this level has ended, as with every kernel."""
        n, moving = len(waiting), waiting == Waiting.move
        point = self._point[:n]
        self._draw(moving)
        noise_scale = expand(self._noise_scale[:n], point)
        moved = langevin_move(point, score, self._step_size[:n], self._epsilon[:n], noise_scale=noise_scale)
        self._position[:n] = moved
        self._point[:n] = moved
        self._left[:n] -= moving
        return _both(moving, self._left[:n] == 0)

    def _mala(self, waiting: Rows, energy: Tensor, score: Tensor) -> Mask:
        n, starting, moving = len(waiting), waiting == Waiting.start, waiting == Waiting.move
        step_size = self._step_size[:n]
        uniform = self._decisions(starting, moving)
        proposal = State(self._point[:n], energy, score)
        state, _ = mala_choice(self._state(n), proposal, step_size, self._epsilon[:n], uniform)
        self._keep(state)
        self._left[:n] -= moving
        reached = _both(moving, self._left[:n] == 0)
        self._draw((starting | moving) & ~reached)
        self._point[:n] = langevin_move(state.position, state.score, step_size, self._epsilon[:n])
        self._waiting[:n][starting] = Waiting.move
        return reached

    def _hmc(self, waiting: Rows, energy: Tensor, score: Tensor) -> Mask:
        n, starting, moving = len(waiting), waiting == Waiting.start, waiting == Waiting.move
        self._leaps[:n] -= moving
        leapt = moving & (self._leaps[:n] == 0)
        point, s = self._point[:n], expand(self._step_size[:n], self._point)
        momentum = self._momentum[:n] + 0.5 * s * score
        before = self._state(n)
        log_ratio = before.energy - energy + (squared_norm(self._epsilon[:n]) - squared_norm(momentum)) / 2
        decisions = self._decisions(starting, leapt)
        state, _ = metropolis_choice(before, State(point, energy, score), log_ratio, decisions)
        self._keep(state)
        self._left[:n] -= leapt
        reached = _both(leapt, self._left[:n] == 0)
        launching = (starting | leapt) & ~reached
        self._draw(launching)
        launched = expand(torch.from_numpy(launching).to(point.device), point) > 0
        momentum = torch.where(launched, self._epsilon[:n], momentum)
        half = momentum + 0.5 * s * torch.where(launched, state.score, score)
        self._momentum[:n] = half
        self._point[:n] = torch.where(launched, state.position, point) + s * half
        self._leaps[:n][launching] = NUM_LEAPFROG
        self._waiting[:n][starting] = Waiting.move
        return reached

    def _state(self, n: int) -> State:
        return State(self._position[:n], self._energy[:n], self._score[:n])

    def _keep(self, state: State) -> None:
        n = len(state.energy)
        self._position[:n], self._energy[:n], self._score[:n] = state

    def _draw(self, drawing: Mask) -> None:
        """New noise for these rows; the others keep theirs."""
        rows = np.flatnonzero(drawing)
        self._epsilon[rows] = self._noise.normal(rows)

    def _decisions(self, starting: Mask, deciding: Mask) -> Tensor:
        """Uniforms for the rows that decide; a start takes the state it has just evaluated, others keep theirs."""
        uniform = np.where(starting, _ACCEPT, _REJECT)
        uniform[deciding] = self._noise.uniform(np.flatnonzero(deciding))
        return torch.from_numpy(uniform).to(self._energy.device)

    def _enter_level(self, rows: Rows, x_next: Tensor) -> None:
        """Begin the chains of the rows' levels from x_{t+1}."""
        self._x_next[rows] = x_next
        level = torch.from_numpy(self._level[rows]).to(x_next.device)
        self._step_size[rows] = self.model.step_size[level]
        predicts = np.full(len(rows), self.model.config.sampling.start == "predictor")
        predicts &= self._level[rows] < self.model.num_levels - 1
        if not predicts.all():
            self._begin_chain(rows[~predicts], x_next[~predicts])
        if predicts.any():
            rows, x_next, level = rows[predicts], x_next[predicts], level[predicts] + 1
            self._wait(rows, Waiting.predict, expand(self._scale[level], x_next) * x_next, level)

    def _begin_chain(self, rows: Rows, position: Tensor) -> None:
        """The chain at the rows' levels, from `position`."""
        level = torch.from_numpy(self._level[rows]).to(position.device)
        still = self._num_steps[rows] == 0
        if still.any():
            self._skip_chain(rows[still], position[still], level[still])
            rows, position, level = rows[~still], position[~still], level[~still]
            if not len(rows):
                return
        first = Waiting.move if self.model.config.chain.kernel == "langevin" else Waiting.start
        self._wait(rows, first, position, level)
        self._precision[rows] = self._tether_precision[level]
        self._left[rows] = self._num_steps[rows]

    def _skip_chain(self, rows: Rows, position: Tensor, level: Tensor) -> None:
        """K = 0: what the chain would have started from, or a draw of the normal approximation."""
        if self.model.config.sampling.start == "predictor":
            self._arrive(rows, position)
        else:
            self._wait(rows, Waiting.approximate, position, level)

    def _wait(self, rows: Rows, what: Waiting, point: Tensor, level: Tensor) -> None:
        """For the marginal energy at `point`; a chain adds its tether."""
        self._point[rows] = point
        self._network_level[rows] = level
        self._precision[rows] = 0.0
        self._waiting[rows] = what

    def _predicted(self, rows: Rows, score: Tensor) -> None:
        level = torch.from_numpy(self._level[rows]).to(score.device)
        epsilon = self._noise.normal(rows)
        marginal_score = expand(self._scale[level + 1], score) * score
        start = predicted_start(self.model, self._x_next[rows], marginal_score, level, epsilon)
        self._begin_chain(rows, start)

    def _approximated(self, rows: Rows, score: Tensor) -> None:
        level = torch.from_numpy(self._level[rows]).to(score.device)
        sigma = self.model.schedule.sigma[level + 1]
        epsilon = self._noise.normal(rows)
        self._arrive(rows, normal_approximation(score, self._x_next[rows], sigma, epsilon))

    def _denoised(self, rows: Rows, score: Tensor) -> None:
        self._ended.append((rows, expected_data(self.model, self._x_next[rows], self._scale[0] * score)))

    def _arrive(self, rows: Rows, y: Tensor) -> None:
        """x_t = y/α_{t+1}, and on to the level below."""
        levels = self._level[rows]
        x = y / expand(self._scale[torch.from_numpy(levels).to(y.device)], y)
        self._arrivals.append(Arrivals(rows, levels, x))
        self._level[rows] -= 1
        down = levels == 0
        if not down.all():
            self._enter_level(rows[~down], x[~down])
        if down.any():
            self._touch_down(rows[down], x[down])

    def _touch_down(self, rows: Rows, x: Tensor) -> None:
        """At x_0."""
        if not self.model.config.sampling.denoise:
            self._ended.append((rows, x))
            return
        self._x_next[rows] = x
        self._wait(rows, Waiting.denoise, self._scale[0] * x, torch.zeros(len(rows), dtype=torch.int64).to(x.device))


def _padded(num_rows: int) -> int:
    """Up to three spare rows: the convolution library keeps memory for every batch size it has ever seen (100 MB for
    the sizes to 128 of the digits' network)."""
    return num_rows if num_rows <= _EXACT_ROWS else -(-num_rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE


def _both(first: Mask, second: Mask) -> Mask:
    return np.logical_and(first, second)
