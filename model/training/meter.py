"""The meter of a training, which sums what the next StepEvent reports: means over steps, and over pairs by level."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from model.events import PerLevel, Phase, StepEvent
from model.training.ranks import Ranks


class Meter:
    """Sums over the steps since the last report, kept on the device; sums by level are over this rank's pairs alone."""

    _NAMES = ("positive_energy", "negative_energy", "displacement", "acceptance_rate")

    def __init__(self, num_levels: int, device: str) -> None:
        self._num_levels, self._device = num_levels, device
        self._reset()

    def _reset(self) -> None:
        self._steps, self._loss, self._gradient_norm, self._learning_rate = 0, 0.0, 0.0, 0.0
        self._sums = torch.zeros(len(self._NAMES), self._num_levels, device=self._device)
        self._counts = torch.zeros(self._num_levels, device=self._device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start the clock of the rate anew, so that what came after the last step, such as previews, does not count."""
        self._since, self._timed_steps = time.monotonic(), 0

    def add(self, *, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """Add the scalars of one step."""
        self._steps += 1
        self._timed_steps += 1
        self._loss += loss
        self._gradient_norm += gradient_norm
        self._learning_rate = learning_rate

    def add_levels(self, level: Tensor, values: Tensor) -> None:
        """Add the values (4, B), in the order of `_NAMES`, of pairs at the levels `level` (B,)."""
        self._sums.index_add_(1, level, values.float())
        self._counts.index_add_(0, level, torch.ones_like(level, dtype=torch.float32))

    def report(self, ranks: Ranks, *, step: int, total_steps: int, phase: Phase) -> StepEvent:
        """Return the means since the last report, and start anew. All ranks must call this together."""
        ranks.sum(self._sums)
        ranks.sum(self._counts)
        seen = (self._counts > 0).tolist()
        means = (self._sums / self._counts.clamp(min=1)).tolist()
        levels: dict[str, PerLevel] = {
            name: [value if has else None for value, has in zip(row, seen, strict=True)]
            for name, row in zip(self._NAMES, means, strict=True)
        }
        event = StepEvent(
            step=step,
            total_steps=total_steps,
            phase=phase,
            loss=self._loss / self._steps,
            learning_rate=self._learning_rate,
            gradient_norm=self._gradient_norm / self._steps,
            steps_per_second=self._timed_steps / max(1e-9, time.monotonic() - self._since),
            **levels,
        )
        self._reset()
        return event


def sums_by_level(values: Tensor, level: Tensor, num_levels: int) -> Tensor:
    """Return (2, T): for each level, the sum of the `values` (B,) at it, and their number."""
    both = torch.stack([values.detach().float(), torch.ones_like(values, dtype=torch.float32)])
    return torch.zeros(2, num_levels, device=values.device).index_add_(1, level, both)
