"""Bounds of log Z from both sides, and what they tell.

Source: Grosse, Ghahramani & Adams 2015 (bidirectional Monte Carlo).

The mean weight of chains that walk along a path is unbiased for Z, so its logarithm is a stochastic LOWER bound of
log Z. Chains that walk back from exact samples of the target bound log Z from ABOVE; if they begin at the ends of long
chains, that side is only as good as those chains, and both sides can miss the same mode. A second walk back therefore
starts from data, where there are any: if its side disagrees, the data lie where the chains do not go.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from model.densities.annealing import (
    AnnealingPath,
    StopFn,
    Walk,
    WalkStopped,
    anneal,
    anneal_backwards,
    resample,
    settle,
    tune,
)
from model.densities.verdict import Verdict
from model.noise import NoiseSource

SampleFn = Callable[[int, NoiseSource], Tensor]
"""Draws `count` positions (count, *event)."""
_PILOT_CHAINS = 64  # enough to know the mean acceptance to 0.05
_LARGEST_DRIFT = (
    0.25  # nats a dimension; −0.14 is what overfitting does to held-out digits, −0.9 energies that run away
)
_ENOUGH_TO_GIVE_UP = 4  # bridges
_WORTH_MORE_CHAINS = 1.0  # the gap, in nats, up to which more chains may tell an error that is not known yet


@dataclass(frozen=True)
class LogZ:
    """Bounds of log Z from both sides, in nats.

    In expectation lower ≤ log Z, and log Z ≤ upper if the backward walk starts from exact samples. A standard error is
    None where the weights do not tell it.
    """

    lower: float
    upper: float
    lower_std_error: float | None
    upper_std_error: float | None
    lower_effective_sample_size: float
    upper_effective_sample_size: float
    acceptance_rate: float
    num_chains: int
    num_bridges: int
    """number of temperatures between neighbouring energies of the path, on average"""
    upper_start: Literal["exact", "chain"]
    """what the backward walk started from: exact samples of the target, or the ends of chains"""
    data_upper: float | None = None
    """the upper side of a walk that started from data; None if there was none"""
    data_upper_std_error: float | None = None
    data_drift: float | None = None
    """by how much the mean energy of chains that start from data changes while they move under the target, in nats a
    dimension: near 0 if the data are like the target's own samples"""

    @property
    def estimate(self) -> float:
        """The value midway between the two sides."""
        return (self.lower + self.upper) / 2

    @property
    def std_error(self) -> float | None:
        """The error of `estimate`: half the gap between the sides, and the sides' own errors, added in quadrature."""
        if self.lower_std_error is None or self.upper_std_error is None:
            return None
        own = math.hypot(self.lower_std_error, self.upper_std_error) / 2
        return math.hypot((self.upper - self.lower) / 2, own)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two sides, each with two of its standard errors further out; None if an error is not known.

        Sides that cross by chance are put in order.
        """
        if self.lower_std_error is None or self.upper_std_error is None:
            return None
        sides = ((self.lower, 2 * self.lower_std_error), (self.upper, 2 * self.upper_std_error))
        return min(side - error for side, error in sides), max(side + error for side, error in sides)

    @property
    def sides_agree(self) -> bool:
        """Whether the gap between the sides is within three of its standard errors."""
        return _agree(self.lower, self.lower_std_error, self.upper, self.upper_std_error)

    @property
    def data_leave(self) -> bool:
        """Whether chains that start from data leave them for other energies, as they do if these are wrong there."""
        return self.data_drift is not None and abs(self.data_drift) > _LARGEST_DRIFT

    def verdict(self, tolerance: float) -> Verdict:
        """Say what the sides tell, where log Z is wanted to an error of `tolerance` nats.

        `converged`: it is known to that error. `sides_apart`: the error is larger. `not_known`: the weights do not tell
        an error. `data_elsewhere`: chains that start from data find another upper side, or the weights do not tell an
        error and these chains leave the data for other energies, which says why.
        """
        if self.std_error is None or not math.isfinite(self.estimate):
            return "data_elsewhere" if self.data_leave else "not_known"
        apart = self.std_error > tolerance
        if self.data_upper is not None and abs(self.data_upper - self.upper) > tolerance:
            agree = _agree(self.data_upper, self.data_upper_std_error, self.upper, self.upper_std_error)
            if not agree and not (apart and self.data_upper_std_error is None):
                return "data_elsewhere"
        return "sides_apart" if apart else "converged"


def _agree(one: float, one_std_error: float | None, other: float, other_std_error: float | None) -> bool:
    """Return whether two values differ by three standard errors of their difference at most."""
    if one_std_error is None or other_std_error is None:
        return False
    return abs(one - other) <= 3 * math.hypot(one_std_error, other_std_error)


def bound_log_z(
    path: AnnealingPath,
    noise: NoiseSource,
    *,
    num_chains: int,
    tolerance: float,
    max_bridges: int,
    max_chains: int | None = None,
    sample_target: SampleFn | None = None,
    sample_data: SampleFn | None = None,
    stop_fn: StopFn = lambda: False,
) -> Iterator[LogZ]:
    """Bound log Z from both sides in rounds of more and more work, until the sides meet within `tolerance` nats.

    The first round has as many bridges as the spread of the weights asks for (`AnnealingPath.fewest_bridges`). Every
    further round doubles them, up to `max_bridges`, and begins anew. If the sides then agree, and only their own
    errors are too large, a round walks as many chains again as there are and pools their weights, up to `max_chains`
    (None: `num_chains`); at most `num_chains` are walked at once. More chains cannot close a gap that is not due to
    chance. Yields the result of every round; the last is the answer. Without `sample_target` the backward walk starts
    where the forward chains ended, resampled by weight and moved on. A round that would be the last also walks back
    from `sample_data`, moved on in the same way. If the data are left by these moves, and 4 bridges tell no error, more
    bridges are in vain. `stop_fn` is asked before every move; a round that it stops is lost.
    """
    most = num_chains if max_chains is None else max_chains
    with contextlib.suppress(WalkStopped):
        path = tune(path, min(num_chains, _PILOT_CHAINS), noise, stop_fn=stop_fn)
        bounds = _Bounds(path, noise, num_chains, sample_target, stop_fn)
        data = None if sample_data is None else bounds.settled(sample_data(num_chains, noise))
        num_bridges = min(path.fewest_bridges, max_bridges)
        walked = [bounds.there_and_back(num_bridges)]
        while True:
            log_z = bounds.log_z(walked, num_bridges, data)
            more = 0
            if num_bridges == max_bridges and _worth_more_chains(log_z, tolerance):
                more = max(0, min(len(walked), most // num_chains - len(walked)))
            in_vain = log_z.std_error is None and log_z.data_leave and num_bridges >= _ENOUGH_TO_GIVE_UP
            at_end = in_vain or (num_bridges == max_bridges and not more)
            if data is not None and (at_end or log_z.verdict(tolerance) == "converged"):
                log_z = bounds.with_data(log_z, data)
            yield log_z
            if at_end or log_z.verdict(tolerance) == "converged" or stop_fn():
                return
            if more:
                walked += [bounds.there_and_back(num_bridges) for _ in range(more)]
            else:
                num_bridges = min(2 * num_bridges, max_bridges)
                walked = [bounds.there_and_back(num_bridges)]


def _worth_more_chains(log_z: LogZ, tolerance: float) -> bool:
    if log_z.std_error is None:
        return abs(log_z.upper - log_z.lower) <= max(tolerance, _WORTH_MORE_CHAINS)
    return log_z.sides_agree


_ThereAndBack = tuple[Walk, Walk]


class _Settled(NamedTuple):
    """Data that moved on under the target, and the change of their mean energy, in nats a dimension."""

    position: Tensor
    drift: float


@dataclass(frozen=True)
class _Bounds:
    """The walks that bound log Z of a path."""

    path: AnnealingPath
    noise: NoiseSource
    num_chains: int
    sample_target: SampleFn | None
    stop_fn: StopFn

    def settled(self, position: Tensor) -> _Settled:
        """Return `position` (N, *event) moved on under the target. Raises WalkStopped."""
        moved = settle(self.path, position, self.noise, stop_fn=self.stop_fn)
        with torch.no_grad():
            before, after = (self.path.energies[-1](x).double().mean() for x in (position, moved))
        return _Settled(moved, float(after - before) / position[0].numel())

    def there_and_back(self, num_bridges: int) -> _ThereAndBack:
        """Walk once forwards and once backwards. Raises WalkStopped."""
        forward = anneal(self.path, self.num_chains, self.noise, num_bridges=num_bridges, stop_fn=self.stop_fn)
        if self.sample_target is None:
            ends = resample(self.path, forward, self.noise, stop_fn=self.stop_fn)
        else:
            ends = self.sample_target(self.num_chains, self.noise)
        return forward, self._back(ends, num_bridges)

    def log_z(self, walked: Sequence[_ThereAndBack], num_bridges: int, data: _Settled | None) -> LogZ:
        """Return the bounds that walks of the same number of bridges give together, with the drift of `data`."""
        forward, backward = (_pooled(walks) for walks in zip(*walked, strict=True))
        return LogZ(
            lower=self.path.log_z_start + forward.log_mean_weight,
            upper=self.path.log_z_start - backward.log_mean_weight,
            lower_std_error=forward.std_error,
            upper_std_error=backward.std_error,
            lower_effective_sample_size=forward.effective_sample_size,
            upper_effective_sample_size=backward.effective_sample_size,
            acceptance_rate=(forward.acceptance_rate + backward.acceptance_rate) / 2,
            num_chains=len(forward.log_weights),
            num_bridges=num_bridges,
            upper_start="chain" if self.sample_target is None else "exact",
            data_drift=None if data is None else data.drift,
        )

    def with_data(self, log_z: LogZ, data: _Settled) -> LogZ:
        """Add the side of a walk from data. Raises WalkStopped."""
        walk = self._back(data.position, log_z.num_bridges)
        data_upper = self.path.log_z_start - walk.log_mean_weight
        return replace(log_z, data_upper=data_upper, data_upper_std_error=walk.std_error)

    def _back(self, position: Tensor, num_bridges: int) -> Walk:
        return anneal_backwards(self.path, position, self.noise, num_bridges=num_bridges, stop_fn=self.stop_fn)


def _pooled(walks: Sequence[Walk]) -> Walk:
    """Join walks of the same length and number of chains into one walk of all their chains."""
    return Walk(
        torch.cat([walk.log_weights for walk in walks]),
        torch.cat([walk.position for walk in walks]),
        torch.cat([walk.end_log_weights for walk in walks]),
        sum(walk.acceptance_rate for walk in walks) / len(walks),
    )
