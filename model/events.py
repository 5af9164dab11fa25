"""The typed events that `model.training.loop.train` yields while it runs. This module imports no torch.

Lists by level have T entries; an entry is None if no training pair fell on that level since the last event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Phase = Literal["score_matching", "recovery"]
PerLevel = list[float | None]
HealthLevel = Literal["green", "amber", "red"]


@dataclass(frozen=True, kw_only=True)
class BatchEvent:
    """`batch_size` 'auto' was decided by a measurement, before the first step."""

    batch_size: int
    microbatch_size: int | None
    """rows that a process computes at once; None if it computes all of its rows at once"""
    row_bytes: int
    """bytes that one more row adds to the memory of a step"""
    free_bytes: int
    """bytes of memory that were free for a process"""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """Means over the training steps since the last StepEvent."""

    step: int
    total_steps: int
    phase: Phase
    loss: float
    learning_rate: float
    gradient_norm: float
    """norm of the gradient before clipping"""
    steps_per_second: float
    positive_energy: PerLevel
    """E_t(y⁺), nats; None in score matching"""
    negative_energy: PerLevel
    """E_t(y⁻), nats"""
    displacement: PerLevel
    """root mean square of y⁻ − x_{t+1} per coordinate, data units"""
    acceptance_rate: PerLevel
    """mean acceptance rate of the chain's proposals; 1 for unadjusted kernels"""


@dataclass(frozen=True, kw_only=True)
class SampleEvent:
    """Samples were drawn from the averaged weights, always with the same seed."""

    step: int
    samples: npt.NDArray[np.float32]
    """(N, *event)"""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent:
    """A snapshot was taken. `write(directory)` stores it, and may be called later and from another thread."""

    step: int
    write: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class RollbackEvent:
    """Training diverged and goes on from an earlier checkpoint, with other noise and a lower learning rate."""

    step: int
    """step at which training diverged"""
    to_step: int
    """step from which training goes on"""
    rollbacks: int
    """number of rollbacks so far, this one included"""
    learning_rate_factor: float
    """factor by which the configured learning rate is multiplied from here on"""
    reason: str


@dataclass(frozen=True, kw_only=True)
class HealthEvent:
    """How healthy the training is, as `model.health` judges; told when it becomes worse, and at the end."""

    step: int
    """step after which it was judged"""
    level: HealthLevel
    reason: str
    """what was measured, in words"""
    remedy: str | None = None
    """what to do; None if nothing"""


@dataclass(frozen=True, kw_only=True)
class DoneEvent:
    """Training ended. This is always the last event, and comes after a CheckpointEvent of the same step."""

    step: int
    stopped: bool
    """whether `stop_fn` ended the run before its last step"""


TrainEvent = BatchEvent | StepEvent | SampleEvent | CheckpointEvent | RollbackEvent | HealthEvent | DoneEvent
