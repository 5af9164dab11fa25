"""What training says while it runs: typed events, produced by `model.training.loop.train`. Needs no torch.

Per-level lists have T entries; None where no training pair fell on that level since the last event.
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


@dataclass(frozen=True, kw_only=True)
class BatchEvent:
    """What `batch_size` 'auto' became, before the first step."""

    batch_size: int
    microbatch_size: int | None
    """rows a process computes at once; None for all of its part"""
    row_bytes: int
    """that one more row adds to a step's memory"""
    free_bytes: int
    """that were free for a process"""


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """Means over the steps since the last one."""

    step: int
    total_steps: int
    phase: Phase
    loss: float
    learning_rate: float
    gradient_norm: float
    """before clipping"""
    steps_per_second: float
    positive_energy: PerLevel
    """E_t(y⁺), nats; None in score matching"""
    negative_energy: PerLevel
    """E_t(y⁻), nats"""
    displacement: PerLevel
    """root mean square of y⁻ − x_{t+1} per coordinate, data units"""
    acceptance_rate: PerLevel
    """of the chain's proposals; 1 for unadjusted kernels"""


@dataclass(frozen=True, kw_only=True)
class SampleEvent:
    """Samples from the averaged weights, always of the same seed."""

    step: int
    samples: npt.NDArray[np.float32]
    """(N, *event)"""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent:
    """A snapshot is taken; `write(directory)` stores it, also later and from another thread."""

    step: int
    write: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class RollbackEvent:
    """Training diverged and goes on from an earlier checkpoint, with other noise and a lower learning rate."""

    step: int
    """of the divergence"""
    to_step: int
    rollbacks: int
    """so far, this one included"""
    learning_rate_factor: float
    """from here on, on what the configuration asks for"""
    reason: str


@dataclass(frozen=True, kw_only=True)
class DoneEvent:
    """Always the last event; a CheckpointEvent of the same step came before it."""

    step: int
    stopped: bool
    """True when `stop_fn` ended the run before its last step"""


TrainEvent = BatchEvent | StepEvent | SampleEvent | CheckpointEvent | RollbackEvent | DoneEvent
