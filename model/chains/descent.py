"""Descents from x_T to x_0 that run side by side, each at its own level and step.

This is `model.chains.sampling.descend` cut into single evaluations, with the kernels and starts of
`model.chains.kernels` and `model.chains.starts`.

A row is one chain. Whatever a row does next, it waits for the same thing: the energy and score of
E_t(y) + precision |x_{t+1} − y|²/2 at its `point` y. One evaluation of all rows therefore serves rows that start a
level, are anywhere in a step of their kernel, or denoise, and none is wasted. Rows are compact and their arrays never
move, so that a captured graph can be replayed. The host counts what each row does next, so that nothing waits for the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.chains.kernels import KERNELS, Adjusted, Flight, State, choose
from model.chains.sampling import denoising_point
from model.chains.starts import STARTS, Start, expected_data
from model.composition import ANY_LABEL, Composition
from model.conditions import At, composed_rows
from model.config import SamplingConfig, TrainConfig, sampling_kernel
from model.energies.conditional import recovery_energy
from model.energies.energy import energy_and_score
from model.energies.energy_model import EnergyModel
from model.noise import NoiseRows
from model.schedule import expand

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_START_NAMES, _STARTS = tuple(STARTS), tuple(STARTS.values())
_EXACT_ROWS, _ROWS_MULTIPLE = 8, 4
_ACCEPT, _REJECT = np.float32(-1), np.float32(2)  # take the place of a uniform where the decision is known


class Waiting(IntEnum):
    """The reason why a row waits for an evaluation."""

    start = 0
    """the row is to start the chain of a level, and its start asked for a score"""
    launch = 1
    """the row is at the first state of a chain, which the chain's first step leaves"""
    flight = 2
    """the row is in a step of a chain; that of an unadjusted chain is already done"""
    denoise = 3
    """the row is at x_0 and is to become the expected data"""


@dataclass(frozen=True)
class Chain:
    """A descent that is to begin, which gives sample `index` of the stream `seed`."""

    seed: int
    index: int
    settings: SamplingConfig
    composition: Composition = ANY_LABEL
    """what is asked of the sample's label; `Composition.require_possible` was called"""


@dataclass(frozen=True)
class Arrivals:
    """The rows that reached a level in one step."""

    rows: Rows
    levels: Rows
    x: Tensor
    """(N, *event) the x_t that each row reached"""


@dataclass(frozen=True)
class Step:
    """The outcome of one evaluation of all rows."""

    arrivals: list[Arrivals]
    ended: Rows
    """the rows that are done, which the caller must remove before the next step"""
    samples: Tensor
    """(N, *event) the samples of these rows, in the data's units"""


def evaluations_per_sample(config: TrainConfig, settings: SamplingConfig) -> int:
    """Return the gradient evaluations that one descent takes, as `model.chains.sampling.sample` reports them."""
    num_levels, start = config.schedule.num_levels, STARTS[settings.start]
    starts = (num_levels - 1) * start.asks(settings.num_steps, False) + start.asks(settings.num_steps, True)
    kernel = KERNELS[sampling_kernel(config.chain, settings)]
    chain = kernel.num_evaluations(settings.num_steps) if settings.num_steps else 0
    return starts + num_levels * chain + settings.denoise


class Descents:
    """Up to `capacity` descents of one model, which the caller keeps frozen. Threads must not share an instance."""

    def __init__(self, model: EnergyModel, capacity: int) -> None:
        device, event = model.step_size.device, model.event_shape
        self.model = model
        self.capacity = capacity
        self.num_rows = 0
        self._kernel = _adjusted_kernel(model.config)
        self._noise = NoiseRows(capacity, event, device)

        def rows(*shape: int) -> Tensor:
            return torch.zeros(capacity, *shape, device=device)

        self._point, self._x_next, self._epsilon, self._memory = (rows(*event) for _ in range(4))
        self._flight = Flight(State(rows(*event), rows(), rows(*event)), self._point, rows(*event), rows())
        self._precision, self._step_size, self._noise_scale = (rows() for _ in range(3))
        level, num_classes = torch.zeros(capacity, dtype=torch.int64, device=device), len(model.class_names)
        self._at = At(level, guidance=rows(), composed=rows(2, num_classes)) if num_classes else At(level)
        self._level, self._num_steps, self._left, self._leaps = (np.zeros(capacity, np.int64) for _ in range(4))
        self._waiting, self._start = (np.zeros(capacity, np.int64) for _ in range(2))
        self._adjusted = np.zeros(capacity, np.bool_)
        self._tensors = (
            *(self._x_next, self._memory, self._precision, self._step_size, self._noise_scale, *self._at.tensors),
            *(*self._flight.origin, *self._flight[1:]),
        )
        counters = (self._level, self._num_steps, self._left, self._leaps, self._waiting)
        self._counters = (*counters, self._start, self._adjusted)
        self._arrivals: list[Arrivals] = []
        self._ended: list[tuple[Rows, Tensor]] = []

    def add(self, chains: Sequence[Chain]) -> list[Arrivals]:
        """Begin `chains` in the next rows, and return their arrival at level T, which is pure noise."""
        rows = np.arange(self.num_rows, self.num_rows + len(chains))
        self.num_rows += len(chains)
        for row, chain in zip(rows, chains, strict=True):
            self._noise.append(chain.seed, chain.index)
            self._num_steps[row] = chain.settings.num_steps
            self._start[row] = _START_NAMES.index(chain.settings.start)
            self._adjusted[row] = sampling_kernel(self.model.config.chain, chain.settings) != "langevin"
            self._noise_scale[row] = 1.0 if self._adjusted[row] else chain.settings.noise_scale
        if self._at.guidance is not None and self._at.composed is not None:
            compositions = [chain.composition for chain in chains]
            self._at.guidance[rows], self._at.composed[rows] = composed_rows(
                compositions, len(self.model.class_names), self._point
            )
        self._level[rows] = self.model.num_levels - 1
        self._memory[rows] = 0.0
        x_top = self._noise.normal(rows)
        self._arrivals = [Arrivals(rows, np.full(len(rows), self.model.num_levels), x_top)]
        brought = torch.tensor([chain.settings.start == "multistep" for chain in chains], device=x_top.device)
        self._enter_level(rows, choose(brought, self.model.from_noise(x_top), x_top))
        return self._arrivals

    def remove(self, rows: Rows) -> list[tuple[int, int]]:
        """Take rows out. The last rows move into their places; the moves are returned as [(from, to), …]."""
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
        """Return (energies (N,), scores (N, *event)) at the points of the first `num_rows` rows.

        This takes one gradient evaluation.
        """
        shape = min(_padded(num_rows), self.capacity)
        marginal = self.model.marginal(self._at[:shape])
        conditional = recovery_energy(marginal, self._x_next[:shape], self._precision[:shape])
        energy, score = energy_and_score(conditional, self._point[:shape])
        return energy[:num_rows], score[:num_rows]

    def step(self) -> Step:
        """Evaluate the gradient of all rows once, and bring every row as far as that evaluation takes it."""
        n = self.num_rows
        waiting = self._waiting[:n].copy()
        here = State(self._point[:n], *self.evaluate(n))
        self._arrivals, self._ended = [], []
        reached, ends = self._fly(waiting, here)
        if len(rows := np.flatnonzero(waiting == Waiting.start)):
            self._answer(rows, here.score[rows])
        if len(rows := np.flatnonzero(waiting == Waiting.denoise)):
            level = self._at.level[rows]
            self._ended.append((rows, expected_data(self.model, self._x_next[rows], here.score[rows], level)))
        if len(rows := np.flatnonzero(reached)):
            self._arrive(rows, ends[rows])
        return self._progress()

    def _progress(self) -> Step:
        if not self._ended:
            return Step(self._arrivals, np.zeros(0, np.int64), self._point[:0])
        ended = np.concatenate([rows for rows, _ in self._ended])
        samples = torch.cat([x for _, x in self._ended])
        return Step(self._arrivals, ended, self.model.space.decode(samples))

    def _fly(self, waiting: Rows, here: State) -> tuple[Mask, Tensor]:
        """Bring every chain on by the evaluation `here`.

        Returns which rows' chains have ended, and the positions (N, *event) of all rows. What this writes into rows
        that are in no chain is overwritten as soon as they are given something to do.
        """
        n, kernel = len(waiting), self._kernel
        starting, flying = waiting == Waiting.launch, waiting == Waiting.flight
        self._leaps[:n] -= flying
        landing = flying & (self._leaps[:n] == 0)
        buffers = Flight(State(*(one[:n] for one in self._flight.origin)), *(one[:n] for one in self._flight[1:]))
        step_size = self._step_size[:n]
        state, _ = kernel.land(buffers, here, step_size, self._decisions(starting, landing))
        launching = (starting | landing) & (self._left[:n] > 0)
        self._launch(launching)
        noise = expand(self._noise_scale[:n], self._epsilon) * self._epsilon[:n]
        flight = kernel.launch(state, step_size, noise)
        if kernel.num_leaps > 1:
            first, leapt = torch.from_numpy(launching).to(self._point.device), kernel.leap(buffers, here, step_size)
            merged = (choose(first, *both) for both in zip(flight[1:], leapt[1:], strict=True))
            flight = Flight(state, *merged)
        for buffer, new in zip((*buffers.origin, *buffers[1:]), (*flight.origin, *flight[1:]), strict=True):
            buffer.copy_(new)
        # An adjusted chain ends where its last step was evaluated, an unadjusted one where its last step leads.
        landed, done = (starting | landing) & ~launching, launching & ~self._adjusted[:n] & (self._left[:n] == 0)
        return landed | done, choose(torch.from_numpy(done).to(self._point.device), self._point[:n], state.position)

    def _launch(self, launching: Mask) -> None:
        """Begin a step for the rows marked in `launching`, with new noise in their places of `_epsilon`."""
        n, rows = len(launching), np.flatnonzero(launching)
        self._epsilon[rows] = self._noise.normal(rows)
        self._left[:n] -= launching
        self._leaps[rows] = np.where(self._adjusted[rows], self._kernel.num_leaps, 1)
        self._waiting[rows] = Waiting.flight

    def _decisions(self, starting: Mask, landing: Mask) -> Tensor:
        """Return a number (N,) for each row that decides whether it takes the state it was evaluated at.

        It is a uniform for rows that land. Starting rows, and unadjusted ones, always take the state, and all other
        rows keep their own.
        """
        uniform = np.where(starting | (landing & ~self._adjusted[: len(landing)]), _ACCEPT, _REJECT)
        tested = landing & self._adjusted[: len(landing)]
        uniform[tested] = self._noise.uniform(np.flatnonzero(tested))
        return torch.from_numpy(uniform).to(self._point.device)

    def _conditions(self, rows: Rows) -> At:
        """Return the conditions of the rows' chains, whatever the rows are asking for at the moment."""
        return self._at[rows].on(torch.from_numpy(self._level[rows]).to(self._point.device))

    def _enter_level(self, rows: Rows, x_next: Tensor) -> None:
        """Begin the chains of the rows' levels from x_{t+1}."""
        self._x_next[rows] = x_next
        at, top = self._conditions(rows), self.model.num_levels - 1
        self._step_size[rows] = self.model.step_size[at.level]
        begun = zip(*(one[rows].tolist() for one in (self._start, self._num_steps, self._level)), strict=True)
        asks = np.array([_STARTS[name].asks(num_steps, level == top) for name, num_steps, level in begun], np.bool_)
        for start, mine in self._by_start(rows[asks]):
            asking = np.flatnonzero(asks)[mine]
            self._wait(rows[asking], Waiting.start, *start.ask(self.model, x_next[asking], at[asking]))
        if not asks.all():
            self._begin_chain(rows[~asks], x_next[~asks])

    def _by_start(self, rows: Rows) -> list[tuple[Start, Rows]]:
        """Return each start that some of the rows have, and the places of those in `rows`."""
        starts = self._start[rows]
        return [(_STARTS[index], np.flatnonzero(starts == index)) for index in np.unique(starts)]

    def _answer(self, rows: Rows, score: Tensor) -> None:
        for start, mine in self._by_start(rows):
            asked = rows[mine]
            x_next, epsilon, memory = self._x_next[asked], self._noise.normal(asked), self._memory[asked]
            answer = start.answer(self.model, x_next, self._conditions(asked), score[mine], epsilon, memory)
            if answer.memory is not None:
                self._memory[asked] = answer.memory
            self._begin_chain(asked, answer.y)

    def _begin_chain(self, rows: Rows, y: Tensor) -> None:
        """Begin the chains at the rows' levels from `y`; a chain of no steps ends there at once."""
        still = self._num_steps[rows] == 0
        if still.any():
            self._arrive(rows[still], y[still])
            rows, y = rows[~still], y[~still]
        if len(rows):
            at = self._conditions(rows)
            self._wait(rows, Waiting.launch, y, at)
            self._precision[rows] = self.model.schedule.tether_precision[at.level].to(y)
            self._left[rows] = self._num_steps[rows]

    def _wait(self, rows: Rows, what: Waiting, point: Tensor, at: At) -> None:
        """Make the rows wait for the marginal energy at `point`; a chain adds its tether."""
        self._point[rows] = point
        self._at.level[rows] = at.level
        self._precision[rows] = 0.0
        self._waiting[rows] = what

    def _arrive(self, rows: Rows, y: Tensor) -> None:
        """Record the arrival of the rows at x_t = y/α_{t+1}, and send them on to the level below."""
        levels = self._level[rows]
        x = y / expand(self.model.schedule.scale[self._conditions(rows).level], y)
        self._arrivals.append(Arrivals(rows, levels, x))
        self._level[rows] -= 1
        down = levels == 0
        if not down.all():
            self._enter_level(rows[~down], x[~down])
        if down.any():
            self._touch_down(rows[down], x[down])

    def _touch_down(self, rows: Rows, x: Tensor) -> None:
        """End the rows at x_0 = `x`, or make them wait for the evaluation that denoises it."""
        if not self.model.config.sampling.denoise:
            self._ended.append((rows, x))
            return
        self._x_next[rows] = x
        self._wait(rows, Waiting.denoise, *denoising_point(self.model, x, self._at[rows]))


def _adjusted_kernel(config: TrainConfig) -> Adjusted:
    """Return the kernel of the model's adjusted chains; unadjusted ones take each of its steps, the last one unseen."""
    kernel = KERNELS[sampling_kernel(config.chain, SamplingConfig(adjusted=True))]
    assert isinstance(kernel, Adjusted)
    return kernel


def _padded(num_rows: int) -> int:
    """Return the number of rows to evaluate for `num_rows`, which includes up to three spare ones.

    The convolution library keeps memory for every batch size that it has ever seen: 100 MB for all sizes up to 128 of
    the digits' network. Spare rows make the sizes fewer.
    """
    return num_rows if num_rows <= _EXACT_ROWS else -(-num_rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
