"""Measures what a step of each phase costs, by taking real ones on a model that is thrown away."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import get_args

import torch

from model.config import TrainConfig
from model.data.datasets import Dataset
from model.events import Phase, StepEvent
from model.training.loop import train
from model.training.ranks import ALONE, Ranks

_SET_UP_STEPS = 2
"""The first steps are not counted, since libraries set themselves up in them."""
_MOST_STEPS = 1_000_000


def measure_pace(
    config: TrainConfig, dataset: Dataset, device: str = "cpu", ranks: Ranks = ALONE, *, seconds: float
) -> dict[Phase, float]:
    """Return the seconds that a step of each phase takes, measured in about `seconds` in total.

    All ranks must call this together; the leading one's clock counts.
    """
    phases: tuple[Phase, ...] = get_args(Phase)
    return {phase: _step_s(config, dataset, device, ranks, phase, seconds / len(phases)) for phase in phases}


def _step_s(config: TrainConfig, dataset: Dataset, device: str, ranks: Ranks, phase: Phase, seconds: float) -> float:
    matching = replace(config.score_matching, steps=_MOST_STEPS if phase == "score_matching" else 0)
    trial = replace(
        config,
        steps=_MOST_STEPS,
        score_matching=matching,
        log_every=1,
        sample_every=_MOST_STEPS,
        checkpoint_every=_MOST_STEPS,
    )
    ends: list[float] = []

    def is_measured() -> bool:
        return ranks.leads and len(ends) > _SET_UP_STEPS + 1 and ends[-1] - ends[0] > seconds

    for event in train(trial, dataset, device=device, ranks=ranks, stop_fn=is_measured):
        if isinstance(event, StepEvent):  # whose numbers wait for the device
            ends.append(time.monotonic())
    counted = ends[_SET_UP_STEPS:]
    return float(ranks.sum(torch.tensor((counted[-1] - counted[0]) / (len(counted) - 1) if ranks.leads else 0.0)))
