"""Sequential Monte Carlo along a path of energies, there and back.

Source: Neal 2001 (annealed importance sampling), Del Moral, Doucet & Jasra 2006 (drawing anew on the way), Chan & Lai
2013 (the error from lines of descent). Weights are float64, log Z is in nats.

A path runs from a closed form of known normalizer to the target; neighbouring energies are joined by geometric bridges
(1 − β) U + β V, where β is the inverse temperature. `model.densities.log_z` makes bounds of log Z from such walks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from model.chains.kernels import HMC, Info, State, adapt_step_size, choose, evaluate
from model.densities.weights import effective_sample_size, log_mean, log_mean_std_error
from model.energies.energy import EnergyFn
from model.noise import NoiseSource

StopFn = Callable[[], bool]
P = ParamSpec("P")
T = TypeVar("T")
Pieces = Generator[None, None, T]
"""A computation that can be interrupted at every `yield`, and that returns its result."""
_EQUAL = 1e-3  # ratios as near as this to 1 are taken as 1
_RESAMPLE_BELOW = 0.5  # the usual share of effective chains below which chains are drawn anew


class WalkStopped(Exception):
    """Somebody asked to stop in the middle of a walk. An unfinished walk says nothing about log Z."""


def _go_on() -> bool:
    return False


def finished(pieces: Pieces[T]) -> T:
    """Return the result of a computation in pieces, done in one go."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def whole(pieces_fn: Callable[P, Pieces[T]]) -> Callable[P, T]:
    """Return the function that does a computation of `pieces_fn` in one go."""

    @functools.wraps(pieces_fn)
    def done(*args: P.args, **kwargs: P.kwargs) -> T:
        return finished(pieces_fn(*args, **kwargs))

    return done


@dataclass(frozen=True)
class AnnealingPath:
    """A sequence of energies that leads from a start in closed form to the target, whose normalizer is wanted."""

    energies: Sequence[EnergyFn]
    """the start first, the target last"""
    log_z_start: float
    """log Z of the start, nats"""
    sample_start: Callable[[int, NoiseSource], Tensor]
    """draws `count` exact samples (count, *event) of the start"""
    step_sizes: Tensor
    """(len(energies),) step size at each energy; `tune` adapts them"""
    num_leapfrog: int = 1
    """gradient evaluations per move: 1 is MALA, more are HMC, which forgets faster in hundreds of dimensions"""
    spreads: Tensor | None = None
    """(len(energies) − 1, 2) standard deviation of U − V, in nats, at both ends of each pair U, V of neighbours; `tune`
    measures it, and temperatures are spaced by it"""

    @property
    def lengths(self) -> Tensor:
        """(len(energies) − 1,) float64 ∫ std(U − V) dβ of each pair of neighbours, in nats, as `tune` measured it.

        The inverse of the standard deviation is taken as linear in β.
        """
        assert self.spreads is not None
        ratios = _ratios(self.spreads)
        factor = torch.where((ratios - 1).abs() < _EQUAL, 1.0, ratios.log() / (ratios - 1))
        return self.spreads[:, 0].double() * factor

    def temperatures(self, num_bridges: int) -> list[list[float]]:
        """Return the β of each pair of neighbours, ascending to 1: `num_bridges` on average, and one at least.

        They are spaced so that the weights spread by the same amount at each. Between the two ends the inverse of the
        standard deviation of U − V is taken as linear in β, which it is for Gaussians of one centre.
        """
        if self.spreads is None:
            return [_geometric(1.0, num_bridges)] * (len(self.energies) - 1)
        ratios, lengths = _ratios(self.spreads), self.lengths
        numbers = (lengths / lengths.sum() * num_bridges * len(lengths)).round().clamp(min=1).long()
        return [_geometric(ratio, number) for ratio, number in zip(ratios.tolist(), numbers.tolist(), strict=True)]

    @property
    def fewest_bridges(self) -> int:
        """The power of 2 from which on, as `tune` measured, weights spread by at most a nat at each temperature."""
        return 1 if self.spreads is None else 1 << max(0, math.ceil(math.log2(self.lengths.mean())))


def _ratios(spreads: Tensor) -> Tensor:
    """Return the ratio of the first to the last of each pair of `spreads`, float64."""
    return (spreads[:, 0] / spreads[:, 1]).double()


def _geometric(ratio: float, number: int) -> list[float]:
    """Return β_k = (r^(k/n) − 1)/(r − 1), k = 1 … n, for the `ratio` r of the first spread to the last."""
    if abs(ratio - 1) < _EQUAL:
        return [k / number for k in range(1, number + 1)]
    return [(ratio ** (k / number) - 1) / (ratio - 1) for k in range(1, number)] + [1.0]


@dataclass(frozen=True)
class Walk:
    """The result of chains that walked along a path, in lines of descent that each begin at one starting point."""

    log_weights: Tensor
    """(N,) float64; the mean of their exponentials estimates Z_end/Z_begin. A line's weight is that of all the chains
    that descend from its start, so that lines are independent; it is −∞ if none does"""
    position: Tensor
    """(N, *event) positions at which the chains ended"""
    end_log_weights: Tensor
    """(N,) float64 logarithms of the weights that the positions have, up to a common factor"""
    acceptance_rate: float

    @property
    def log_mean_weight(self) -> float:
        """The logarithm of the mean weight, in nats."""
        return log_mean(self.log_weights)

    @property
    def std_error(self) -> float | None:
        """The standard error of `log_mean_weight`, or None if the weights do not tell it."""
        return log_mean_std_error(self.log_weights)

    @property
    def effective_sample_size(self) -> float:
        """The number of equally weighted lines that these are worth."""
        return effective_sample_size(self.log_weights)


class _Walker:
    """Chains on the bridges of a path. Both directions use it, so that they mirror each other.

    Chains whose weights have become too unequal are drawn anew by their weight (systematic resampling). The mean weight
    up to then is kept as a factor, and every chain remembers the line that it descends from. The energies and scores of
    both neighbours are kept where the chains are: a move evaluates each once, and a change of temperature neither.
    """

    def __init__(
        self, path: AnnealingPath, position: Tensor, noise: NoiseSource, stop_fn: StopFn, share: float
    ) -> None:
        self._path, self._noise, self._stop_fn, self._share = path, noise, stop_fn, share
        self._position = position
        self._known: dict[int, State] = {}
        self._log_weights = torch.zeros(len(position), dtype=torch.float64, device=position.device)
        self._log_factor = 0.0
        self._line = torch.arange(len(position), device=position.device)
        self._acceptance, self._moves = 0.0, 0

    def weigh(self, index: int, change: float) -> None:
        """Weigh a change of β by `change` between energies `index` and `index + 1`: add change · (U − V)."""
        u, v = (self._state(i).energy.double() for i in (index, index + 1))
        self._log_weights += change * (u - v)
        if effective_sample_size(self._log_weights) < self._share * len(self._position):
            self._resample()

    def _resample(self) -> None:
        self._log_factor += log_mean(self._log_weights)
        chosen = systematic(self._log_weights, self._noise)
        self._position, self._line = self._position[chosen], self._line[chosen]
        self._known = {i: State(*(tensor[chosen] for tensor in state)) for i, state in self._known.items()}
        self._log_weights = torch.zeros_like(self._log_weights)

    def move(self, index: int, beta: float) -> None:
        """Make one move at `beta` between energies `index` and `index + 1`. Raises WalkStopped."""
        if self._stop_fn():
            raise WalkStopped
        kernel, shares = HMC(self._path.num_leapfrog), {index: 1 - beta, index + 1: beta}
        shares = {i: share for i, share in shares.items() if share > 0}
        first, last = self._path.step_sizes[index : index + 2]
        # A chain's step goes with the inverse root of the curvature, and curvatures add.
        step_size = ((1 - beta) / first**2 + beta / last**2).rsqrt().expand(len(self._position))
        here = {i: self._state(i) for i in shares}
        flight = kernel.launch(_bridged(here, shares), step_size, self._noise.normal(self._position))
        for _ in range(kernel.num_leaps - 1):
            flight = kernel.leap(flight, _bridged(self._evaluated(flight.point, shares), shares), step_size)
        there = self._evaluated(flight.point, shares)
        end = _bridged(there, shares)
        state, info = kernel.land(flight, end, step_size, self._noise.uniform(end.energy))
        self._position = state.position
        self._known = {i: _chosen(info.accepted, there[i], here[i]) for i in shares}
        self._acceptance += float(info.acceptance_probability.mean())
        self._moves += 1

    def _state(self, index: int) -> State:
        """Return the chains' state under energy `index`, which is evaluated if it is not known where they are."""
        if index not in self._known:
            self._known |= self._evaluated(self._position, [index])
        return self._known[index]

    def _evaluated(self, position: Tensor, indices: Iterable[int]) -> dict[int, State]:
        return {index: evaluate(position, self._path.energies[index]) for index in indices}

    def walk(self) -> Walk:
        """Return the finished walk."""
        most = self._log_weights.max()
        weights = torch.zeros_like(self._log_weights).index_add(0, self._line, (self._log_weights - most).exp())
        log_weights = weights.log() + most + self._log_factor
        return Walk(log_weights, self._position, self._log_weights, self._acceptance / max(1, self._moves))


def _bridged(states: Mapping[int, State], shares: Mapping[int, float]) -> State:
    """Return the state under Σ share · energy, at the one position of all `states`."""
    energy = sum(share * states[i].energy for i, share in shares.items())
    score = sum(share * states[i].score for i, share in shares.items())
    return State(next(iter(states.values())).position, torch.as_tensor(energy), torch.as_tensor(score))


def _chosen(accepted: Tensor, new: State, old: State) -> State:
    return State(*(choose(accepted, one, other) for one, other in zip(new, old, strict=True)))


def systematic(log_weights: Tensor, noise: NoiseSource) -> Tensor:
    """Draw N indices by weights (N,) with one uniform: index i is drawn N w_i/Σw times, rounded up or down."""
    count = len(log_weights)
    cumulative = torch.softmax(log_weights, 0).cumsum(0)
    offset = noise.uniform(cumulative[:1])
    places = (torch.arange(count, device=cumulative.device) + offset) / count
    return torch.searchsorted(cumulative, places.to(cumulative)).clamp(max=count - 1)


def _move(
    state: State, target: EnergyFn, step_size: Tensor, num_leapfrog: int, noise: NoiseSource, stop_fn: StopFn
) -> tuple[State, Info]:
    """Make one adjusted move, before which `stop_fn` is asked. Raises WalkStopped if it is true."""
    if stop_fn():
        raise WalkStopped
    return HMC(num_leapfrog).step(state, target, step_size, noise)


def _bridge(start: EnergyFn, end: EnergyFn, beta: float) -> EnergyFn:
    """Return the energy (1 − β) U + β V; at β = 1 it is the end itself, which saves half the evaluation."""
    if beta == 1:
        return end

    def energy(x: Tensor) -> Tensor:
        return (1 - beta) * start(x) + beta * end(x)

    return energy


def annealing(
    path: AnnealingPath,
    count: int,
    noise: NoiseSource,
    *,
    num_bridges: int,
    stop_fn: StopFn = _go_on,
    resample_below: float = _RESAMPLE_BELOW,
) -> Pieces[Walk]:
    """Walk `count` chains from exact samples of the start to the target.

    At every temperature they weigh, then move; E[w] = Z/Z_start. Chains are drawn anew once their effective number is
    below the share `resample_below` of theirs; with 0 this is annealed importance sampling. Raises WalkStopped once
    `stop_fn()` is true, before the next move.
    """
    walker = _Walker(path, path.sample_start(count, noise), noise, stop_fn, resample_below)
    for index, betas in enumerate(path.temperatures(num_bridges)):
        for before, beta in itertools.pairwise([0.0, *betas]):
            walker.weigh(index, beta - before)
            walker.move(index, beta)
            yield
    return walker.walk()


anneal = whole(annealing)


def anneal_backwards(
    path: AnnealingPath,
    position: Tensor,
    noise: NoiseSource,
    *,
    num_bridges: int,
    stop_fn: StopFn = _go_on,
    resample_below: float = _RESAMPLE_BELOW,
) -> Walk:
    """Walk chains from samples of the target, `position` (N, *event), to the start: `anneal` reversed.

    At every temperature they move, then weigh; E[w] = Z_start/Z if the samples are exact. Raises WalkStopped as
    `anneal` does.
    """
    walker = _Walker(path, position, noise, stop_fn, resample_below)
    for index, betas in reversed(list(enumerate(path.temperatures(num_bridges)))):
        for beta, before in itertools.pairwise([*reversed(betas), 0.0]):
            walker.move(index, beta)
            walker.weigh(index, before - beta)
    return walker.walk()


def tuning(
    path: AnnealingPath,
    count: int,
    noise: NoiseSource,
    *,
    target_acceptance: float = 0.7,
    num_steps: int | None = None,
    stop_fn: StopFn = _go_on,
) -> Pieces[AnnealingPath]:
    """Return the path with every energy's step size adapted to `target_acceptance`, and its spreads measured.

    `count` chains make a pilot walk, whose weights are not used, of `num_steps` moves for every energy: of 60 MALA
    moves unless told, or of 30 moves of several leaps. The first half of the moves goes over bridges and lets the step
    size only shrink: chains that are still on their way down accept everything, and would leave a step that is far too
    long.
    """
    if num_steps is None:
        num_steps = 60 if path.num_leapfrog == 1 else 30
    position, step_sizes = path.sample_start(count, noise), path.step_sizes.clone()
    spreads = torch.zeros(len(path.energies) - 1, 2, dtype=torch.float64)
    for index, energy in enumerate(path.energies):
        for step in range(-num_steps // 2, num_steps // 2):
            target = energy
            if step < -1:
                target = _bridge(path.energies[max(0, index - 1)], energy, 1 + (step + 1) / (num_steps // 2))
            if step < 0:
                state = evaluate(position, target)
            state, info = _move(state, target, step_sizes[index].expand(count), path.num_leapfrog, noise, stop_fn)
            position = state.position
            acceptance = info.acceptance_probability.mean()
            if step < 0:
                acceptance = acceptance.clamp(max=target_acceptance)
            rate = 2.0 / (1 + max(0, step) / 4)  # adapts coarsely first, then finely (Robbins & Monro 1951)
            step_sizes[index] = adapt_step_size(step_sizes[index], acceptance, target=target_acceptance, rate=rate)
            yield
        if index + 1 < len(step_sizes):
            step_sizes[index + 1] = torch.minimum(step_sizes[index + 1], 2 * step_sizes[index])
        for pair, end in ((index - 1, 1), (index, 0)):
            if 0 <= pair < len(spreads):
                spreads[pair, end] = _spread(path.energies[pair], path.energies[pair + 1], position)
    return replace(path, step_sizes=step_sizes, spreads=spreads)


tune = whole(tuning)


def _spread(start: EnergyFn, end: EnergyFn, position: Tensor) -> Tensor:
    """Return the standard deviation of U − V over `position` (N, *event), in nats, between bounds of no meaning."""
    with torch.no_grad():
        return torch.nan_to_num((start(position) - end(position)).double().std(), 1e3, 1e3).clamp(1e-3, 1e3)


def settling(path: AnnealingPath, position: Tensor, noise: NoiseSource, *, stop_fn: StopFn = _go_on) -> Pieces[Tensor]:
    """Return `position` (N, *event) after 50 leaps, or 10 moves, under the target. Raises WalkStopped."""
    target, step_size = path.energies[-1], path.step_sizes[-1].expand(len(position))
    state = evaluate(position, target)
    for _ in range(max(10, 50 // path.num_leapfrog)):
        state, _ = _move(state, target, step_size, path.num_leapfrog, noise, stop_fn)
        yield
    return state.position


settle = whole(settling)


def resample(path: AnnealingPath, walk: Walk, noise: NoiseSource, *, stop_fn: StopFn = _go_on) -> Tensor:
    """Draw positions (N, *event) by weight from the end of a walk, then `settle` them. Raises WalkStopped."""
    return settle(path, walk.position[systematic(walk.end_log_weights, noise)], noise, stop_fn=stop_fn)
