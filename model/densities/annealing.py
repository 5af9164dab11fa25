"""Bounds of log Z from both sides by annealed importance sampling.

Source: Neal 2001 (annealed importance sampling), Grosse, Ghahramani & Adams 2015 (bidirectional Monte Carlo). Weights
are float64, log Z is in nats.

A path of energies runs from a closed form of known normalizer to the target; neighbours are joined by geometric
bridges (1 − β) U + β V, where β is the inverse temperature. The mean weight of chains that walk along the path is
unbiased for Z, so its logarithm is a stochastic LOWER bound of log Z. Chains that walk back from exact samples of the
target bound log Z from ABOVE; if they begin at the ends of long chains, that side is only as good as those chains.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from model.chains.kernels import HMC, Info, State, adapt_step_size, evaluate
from model.energies.energy import EnergyFn
from model.noise import NoiseSource

StopFn = Callable[[], bool]
_PILOT_CHAINS = 64  # enough to know the mean acceptance to 0.05


class WalkStopped(Exception):
    """Somebody asked to stop in the middle of a walk. An unfinished walk says nothing about log Z."""


def _go_on() -> bool:
    return False


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
    """(len(energies),) step size at each energy, interpolated on the logarithm between them; `tune` adapts them"""
    num_leapfrog: int = 1
    """gradient evaluations per move: 1 is MALA, more are HMC, which forgets faster in hundreds of dimensions"""


@dataclass(frozen=True)
class Walk:
    """The result of chains that walked along a path."""

    log_weights: Tensor
    """(N,) float64; the mean of their exponentials estimates Z_end/Z_begin"""
    position: Tensor
    """(N, *event) positions at which the chains ended"""
    acceptance_rate: float

    @property
    def log_mean_weight(self) -> float:
        """The logarithm of the mean weight, in nats."""
        return float(torch.logsumexp(self.log_weights, 0)) - math.log(len(self.log_weights))

    @property
    def std_error(self) -> float:
        """The standard error of `log_mean_weight` (delta method)."""
        relative = (self.log_weights - self.log_weights.max()).exp()
        return float(relative.std() / relative.mean()) / math.sqrt(len(relative))

    @property
    def effective_sample_size(self) -> float:
        """The number (Σ w)²/Σ w² of equally weighted chains that these are worth (Kong 1992)."""
        return math.exp(
            2 * float(torch.logsumexp(self.log_weights, 0)) - float(torch.logsumexp(2 * self.log_weights, 0))
        )


@dataclass(frozen=True)
class LogZ:
    """Bounds of log Z from both sides, in nats.

    In expectation lower ≤ log Z, and log Z ≤ upper if the backward walk starts from exact samples.
    """

    lower: float
    upper: float
    lower_std_error: float
    upper_std_error: float
    lower_effective_sample_size: float
    upper_effective_sample_size: float
    acceptance_rate: float
    num_chains: int
    num_bridges: int
    """number of temperatures between neighbouring energies of the path"""
    upper_start: Literal["exact", "chain"]
    """what the backward walk started from: exact samples of the target, or the ends of chains"""

    @property
    def estimate(self) -> float:
        """The value midway between the two sides."""
        return (self.lower + self.upper) / 2

    @property
    def std_error(self) -> float:
        """The error of `estimate`: half the gap between the sides, and the sides' own errors, added in quadrature."""
        own = (self.lower_std_error**2 + self.upper_std_error**2) / 4
        return math.sqrt(((self.upper - self.lower) / 2) ** 2 + own)

    @property
    def sides_agree(self) -> bool:
        """Whether the gap between the sides is within three of its standard errors."""
        return abs(self.upper - self.lower) <= 3 * math.hypot(self.lower_std_error, self.upper_std_error)


class _Walker:
    """Chains on the bridges of a path. Both directions use it, so that they mirror each other."""

    def __init__(
        self, path: AnnealingPath, position: Tensor, noise: NoiseSource, *, num_bridges: int, stop_fn: StopFn
    ) -> None:
        self._path, self._noise, self._num_bridges, self._stop_fn = path, noise, num_bridges, stop_fn
        self.position = position
        self.log_weights = torch.zeros(len(position), dtype=torch.float64, device=position.device)
        self._acceptance, self._moves = 0.0, 0

    def weigh(self, index: int, sign: int) -> None:
        """Weigh a change by one temperature between energies `index` and `index + 1`: add ± (U − V)/num_bridges."""
        start, end = self._path.energies[index : index + 2]
        with torch.no_grad():
            difference = start(self.position).double() - end(self.position).double()
        self.log_weights += sign * difference / self._num_bridges

    def move(self, index: int, bridge: int) -> None:
        """Make one move at β = bridge/num_bridges between energies `index` and `index + 1`."""
        start, end = self._path.energies[index : index + 2]
        beta = bridge / self._num_bridges
        steps = self._path.step_sizes
        step_size = (steps[index] ** (1 - beta) * steps[index + 1] ** beta).expand(len(self.position))
        target = _bridge(start, end, beta)
        state = evaluate(self.position, target)
        state, info = _move(state, target, step_size, self._path.num_leapfrog, self._noise, self._stop_fn)
        self.position = state.position
        self._acceptance += float(info.acceptance_probability.mean())
        self._moves += 1

    def walk(self) -> Walk:
        """Return the finished walk."""
        return Walk(self.log_weights, self.position, self._acceptance / max(1, self._moves))


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


def anneal(path: AnnealingPath, count: int, noise: NoiseSource, *, num_bridges: int, stop_fn: StopFn = _go_on) -> Walk:
    """Walk `count` chains from exact samples of the start to the target.

    At every temperature they weigh, then move; E[w] = Z/Z_start. Raises WalkStopped once `stop_fn()` is true, before
    the next move.
    """
    walker = _Walker(path, path.sample_start(count, noise), noise, num_bridges=num_bridges, stop_fn=stop_fn)
    for index in range(len(path.energies) - 1):
        for bridge in range(1, num_bridges + 1):
            walker.weigh(index, +1)
            walker.move(index, bridge)
    return walker.walk()


def anneal_backwards(
    path: AnnealingPath, position: Tensor, noise: NoiseSource, *, num_bridges: int, stop_fn: StopFn = _go_on
) -> Walk:
    """Walk chains from samples of the target, `position` (N, *event), to the start: `anneal` reversed.

    At every temperature they move, then weigh; E[w] = Z_start/Z if the samples are exact. Raises WalkStopped as
    `anneal` does.
    """
    walker = _Walker(path, position, noise, num_bridges=num_bridges, stop_fn=stop_fn)
    for index in range(len(path.energies) - 2, -1, -1):
        for bridge in range(num_bridges, 0, -1):
            walker.move(index, bridge)
            walker.weigh(index, -1)
    return walker.walk()


def tune(
    path: AnnealingPath,
    count: int,
    noise: NoiseSource,
    *,
    target: float = 0.7,
    num_steps: int = 60,
    stop_fn: StopFn = _go_on,
) -> AnnealingPath:
    """Return the path with every energy's step size adapted to the acceptance rate `target`.

    `count` chains make a pilot walk, whose weights are not used, of `num_steps` moves for every energy. The first half
    of the moves goes over bridges and lets the step size only shrink: chains that are still on their way down accept
    everything, and would leave a step that is far too long.
    """
    position, step_sizes = path.sample_start(count, noise), path.step_sizes.clone()
    for index, energy in enumerate(path.energies):
        start, end = path.energies[max(0, index - 1)], energy
        for step in range(-num_steps // 2, num_steps // 2):
            bridge = _bridge(start, end, min(1.0, 1 + (step + 1) / (num_steps // 2)))
            state, info = _move(
                evaluate(position, bridge), bridge, step_sizes[index].expand(count), path.num_leapfrog, noise, stop_fn
            )
            position = state.position
            acceptance = info.acceptance_probability.mean()
            if step < 0:
                acceptance = acceptance.clamp(max=target)
            rate = 2.0 / (1 + max(0, step) / 4)  # adapts coarsely first, then finely (Robbins & Monro 1951)
            step_sizes[index] = adapt_step_size(step_sizes[index], acceptance, target=target, rate=rate)
        if index + 1 < len(step_sizes):
            step_sizes[index + 1] = torch.minimum(step_sizes[index + 1], 2 * step_sizes[index])
    return replace(path, step_sizes=step_sizes)


def bound_log_z(
    path: AnnealingPath,
    noise: NoiseSource,
    *,
    num_chains: int,
    tolerance: float,
    max_bridges: int,
    max_chains: int | None = None,
    sample_target: Callable[[int, NoiseSource], Tensor] | None = None,
    stop_fn: StopFn = _go_on,
) -> Iterator[LogZ]:
    """Bound log Z from both sides in rounds of more and more work, until the sides meet within `tolerance` nats.

    Every round doubles the bridges, up to `max_bridges`, and begins anew. If the sides then agree, and only their own
    errors are too large, a round walks as many chains again as there are and pools their weights, up to `max_chains`
    (None: `num_chains`); at most `num_chains` are walked at once. More chains cannot close a gap that is not due to
    chance. Yields the result of every round; the last is the answer. Without `sample_target` the backward walk starts
    where the forward chains ended, resampled by weight and moved on. `stop_fn` is asked before every move; a round that
    it stops is lost.
    """
    most = num_chains if max_chains is None else max_chains
    upper_start: Literal["exact", "chain"] = "chain" if sample_target is None else "exact"
    with contextlib.suppress(WalkStopped):
        path, num_bridges = tune(path, min(num_chains, _PILOT_CHAINS), noise, stop_fn=stop_fn), 1

        def walk() -> _ThereAndBack:
            return _there_and_back(path, noise, num_chains, num_bridges, sample_target, stop_fn)

        walked = [walk()]
        while True:
            log_z = _log_z(path, walked, num_bridges, upper_start)
            yield log_z
            if log_z.std_error <= tolerance or stop_fn():
                return
            if num_bridges < max_bridges:
                num_bridges = min(2 * num_bridges, max_bridges)
                walked = [walk()]
            elif log_z.sides_agree and (more := min(len(walked), most // num_chains - len(walked))) > 0:
                walked += [walk() for _ in range(more)]
            else:
                return


_ThereAndBack = tuple[Walk, Walk]


def _there_and_back(
    path: AnnealingPath,
    noise: NoiseSource,
    num_chains: int,
    num_bridges: int,
    sample_target: Callable[[int, NoiseSource], Tensor] | None,
    stop_fn: StopFn,
) -> _ThereAndBack:
    """Walk once forwards and once backwards. Raises WalkStopped."""
    forward = anneal(path, num_chains, noise, num_bridges=num_bridges, stop_fn=stop_fn)
    if sample_target is None:
        ends = resample(path, forward, noise, stop_fn=stop_fn)
    else:
        ends = sample_target(num_chains, noise)
    return forward, anneal_backwards(path, ends, noise, num_bridges=num_bridges, stop_fn=stop_fn)


def _pooled(walks: Sequence[Walk]) -> Walk:
    """Join walks of the same length and number of chains into one walk of all their chains."""
    return Walk(
        torch.cat([walk.log_weights for walk in walks]),
        torch.cat([walk.position for walk in walks]),
        sum(walk.acceptance_rate for walk in walks) / len(walks),
    )


def _log_z(
    path: AnnealingPath, walked: Sequence[_ThereAndBack], num_bridges: int, upper_start: Literal["exact", "chain"]
) -> LogZ:
    forward, backward = (_pooled(walks) for walks in zip(*walked, strict=True))
    return LogZ(
        lower=path.log_z_start + forward.log_mean_weight,
        upper=path.log_z_start - backward.log_mean_weight,
        lower_std_error=forward.std_error,
        upper_std_error=backward.std_error,
        lower_effective_sample_size=forward.effective_sample_size,
        upper_effective_sample_size=backward.effective_sample_size,
        acceptance_rate=(forward.acceptance_rate + backward.acceptance_rate) / 2,
        num_chains=len(forward.log_weights),
        num_bridges=num_bridges,
        upper_start=upper_start,
    )


def resample(
    path: AnnealingPath, walk: Walk, noise: NoiseSource, *, num_steps: int = 50, stop_fn: StopFn = _go_on
) -> Tensor:
    """Draw positions (N, *event) by weight from the end of a walk, then move them `num_steps` times under the target.

    The draw is a systematic resampling. Raises WalkStopped once `stop_fn()` is true.
    """
    count = len(walk.position)
    weights = torch.softmax(walk.log_weights, 0).cumsum(0)
    offset = noise.uniform(weights[:1])
    places = (torch.arange(count, device=weights.device) + offset) / count
    chosen = torch.searchsorted(weights, places.to(weights)).clamp(max=count - 1)
    target, step_size = path.energies[-1], path.step_sizes[-1].expand(count)
    state = evaluate(walk.position[chosen], target)
    for _ in range(num_steps):
        state, _ = _move(state, target, step_size, path.num_leapfrog, noise, stop_fn)
    return state.position
