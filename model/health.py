"""The health of a training, judged by its own reports: a level, a reason, what to do. This module imports no torch.

So far it looks at the acceptance rates of adjusted chains. Energies alone say nothing: the contrastive loss leaves a
constant of each level open, which drifts by 1e5 nats in the paper's own recipe too (decision 0101).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.config import TrainConfig
from model.events import HealthEvent, HealthLevel, PerLevel, StepEvent

LONG_STEPS = 100
"""The fewest steps of recovery likelihood that are judged."""
_LOWEST, _HIGHEST = 0.4, 0.95
"""The acceptance rates between which a level is healthy: below, many chains stay where they are; above, the steps are
so short that none gets far."""
_ALARMING = 0.1
"""An acceptance rate at which every second chain of six steps ends where it started."""
_BESIDE_TARGET = 0.1
"""How far a level may be from the target, if a person chose one near those bounds or beyond."""
_LEVELS: tuple[HealthLevel, ...] = ("green", "amber", "red")


@dataclass(frozen=True)
class _Stretch:
    """Successive steps, and of each level the sum of the acceptance rates and the number of steps with one."""

    steps: int
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    def __add__(self, other: _Stretch) -> _Stretch:
        return _Stretch(self.steps + other.steps, self.sums + other.sums, self.counts + other.counts)


class Health:
    """Judges a training that goes on from `step`, by one stretch of its steps after the other.

    A stretch lasts for at least `LONG_STEPS` and for a quarter of all steps of recovery likelihood so far, so that
    nobody is told of what passes by itself. While steps are adapted the first stretch is theirs to settle, and counts
    only at the end.
    """

    def __init__(self, config: TrainConfig, step: int) -> None:
        self._chain = config.chain
        self._first_step = config.score_matching.steps
        self._step = max(step, self._first_step)
        self._nothing = _Stretch(0, *np.zeros((2, config.schedule.num_levels)))
        self._last = self._present = self._nothing
        self._told: HealthLevel = "green"

    def add(self, report: StepEvent) -> HealthEvent | None:
        """Take in a report; return the verdict on the stretch that it ends, if it is worse than all before."""
        if report.phase != "recovery" or not self._chain.is_adjusted:
            return None
        self._present += _stretch(report.step - self._step, report.acceptance_rate)
        self._step = report.step
        if self._present.steps < max(LONG_STEPS, (report.step - self._first_step) // 4):
            return None
        settles = self._chain.adapts_to is not None and self._last is self._nothing
        self._last, self._present = self._present, self._nothing
        verdict = self._judged(self._last)
        if settles or _LEVELS.index(verdict.level) <= _LEVELS.index(self._told):
            return None
        self._told = verdict.level
        return verdict

    def verdict(self) -> HealthEvent | None:
        """Return the verdict on the latest `LONG_STEPS` or more; None if there were fewer, or no adjusted chains."""
        latest = self._present if self._present.steps >= LONG_STEPS else self._last + self._present
        return self._judged(latest) if latest.steps >= LONG_STEPS else None

    def _judged(self, stretch: _Stretch) -> HealthEvent:
        target = self._chain.adapts_to
        low, high = _LOWEST, _HIGHEST
        if target is not None:
            low, high = min(low, target - _BESIDE_TARGET), max(high, target + _BESIDE_TARGET)
        levels = np.flatnonzero(stretch.counts)
        rates = stretch.sums[levels] / stretch.counts[levels]
        too_low, too_high = rates < low, rates > high
        expected = f"over {stretch.steps} steps; expected {low:.2g} to {min(high, 1):.2g}"
        if not (too_low | too_high).any():
            reason = f"at every level chains accepted {_range(rates)} of their moves over {stretch.steps} steps"
            return HealthEvent(step=self._step, level="green", reason=reason)
        outside = [_at(levels[some], rates[some]) for some in (too_low, too_high) if some.any()]
        return HealthEvent(
            step=self._step,
            level="red" if (rates < min(low, _ALARMING)).any() else "amber",
            reason=f"chains accepted {' and '.join(outside)} of their moves {expected}",
            remedy=_remedy(target, is_low=bool(too_low.any())),
        )


def _stretch(steps: int, rates: PerLevel) -> _Stretch:
    found = np.array(rates, dtype=np.float64)  # None is NaN
    seen = np.isfinite(found)
    return _Stretch(steps, np.where(seen, found, 0) * steps, seen * float(steps))


def _remedy(target: float | None, *, is_low: bool) -> str:
    if target is None:
        return "set chain.target_acceptance to 'auto', which adapts the step of each level"
    if is_low:
        return "start from a smaller chain.step_size, or lower optimizer.learning_rate"
    return "train for more steps, since those of the chains still grow, or start from a larger chain.step_size"


def _at(levels: npt.NDArray[np.int64], rates: npt.NDArray[np.float64]) -> str:
    """Return words like `0.02 to 0.08 (levels 0–3, 7)`."""
    runs = np.split(levels, np.flatnonzero(np.diff(levels) > 1) + 1)
    told = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{_range(rates)} ({'level' if len(levels) == 1 else 'levels'} {told})"


def _range(rates: npt.NDArray[np.float64]) -> str:
    low, high = f"{rates.min():.2f}", f"{rates.max():.2f}"
    return low if low == high else f"{low} to {high}"
