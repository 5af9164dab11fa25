"""A training that diverges goes back to a checkpoint, and one whose chains do not move well says so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints.checkpoint import read_snapshot
from model.config import ChainConfig, NetworkConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from model.data.datasets import load
from model.events import CheckpointEvent, DoneEvent, HealthEvent, RollbackEvent, StepEvent
from model.training.loop import train
from tests.model.training.test_training import run_to_end

_UNSTABLE = TrainConfig(
    energy="gaussian",
    dataset="eight_gaussians",
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, spectral_norm=False),
    schedule=ScheduleConfig(kind="log_snr", num_levels=3),
    chain=ChainConfig(num_steps=1, step_size=0.1),
    optimizer=OptimizerConfig(learning_rate=0.007, warmup_steps=0, max_gradient_norm=None),
    shared_noise=False,
    steps=60,
    batch_size=16,
    log_every=1,
    sample_every=1000,
    checkpoint_every=30,
    num_preview_samples=1,
)
"""Diverges at step 45, and again at half the learning rate; a quarter of it is low enough."""


def test_a_run_that_diverges_goes_back_to_its_checkpoint_with_other_noise_and_a_lower_learning_rate() -> None:
    events = list(train(_UNSTABLE, load("eight_gaussians")))
    rollbacks = [event for event in events if isinstance(event, RollbackEvent)]
    assert [(event.to_step, event.rollbacks, event.learning_rate_factor) for event in rollbacks] == [
        (30, 1, 0.5),
        (30, 2, 0.25),
    ]
    assert all(30 < event.step <= 60 and "diverged at step" in event.reason for event in rollbacks)
    steps = [event for event in events if isinstance(event, StepEvent)]
    after = [event for event in steps if event.step == 31]
    assert [event.learning_rate for event in after] == pytest.approx([0.007, 0.0035, 0.00175])
    assert len({event.loss for event in after}) == 3
    assert events[-1] == DoneEvent(step=60, stopped=False)


@pytest.mark.parametrize("num_steps", [40, 60], ids=["before", "after"])
def test_a_run_interrupted_before_or_after_it_went_back_ends_with_the_same_weights(
    num_steps: int, tmp_path: Path
) -> None:
    dataset = load("eight_gaussians")
    run_to_end(_UNSTABLE, dataset, tmp_path)
    polls = itertools.count()
    *_, interrupted, done = train(_UNSTABLE, dataset, stop_fn=lambda: next(polls) >= num_steps)
    assert isinstance(interrupted, CheckpointEvent)
    assert done == DoneEvent(step=40 if num_steps == 40 else interrupted.step, stopped=True)
    for name in ("interrupted", "resumed"):
        (tmp_path / name).mkdir()
    interrupted.write(tmp_path / "interrupted")
    snapshot = read_snapshot(tmp_path / "interrupted")
    assert snapshot.rollbacks == (0 if num_steps == 40 else 1)
    *_, last, _ = train(
        _UNSTABLE, dataset, snapshot=snapshot, earlier_fn=lambda step: read_snapshot(tmp_path / str(step))
    )
    assert isinstance(last, CheckpointEvent)
    last.write(tmp_path / "resumed")
    for file in ("ema.safetensors", "state.safetensors", "config.json"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "60" / file).read_bytes()


_PLANAR = replace(
    _UNSTABLE,
    optimizer=OptimizerConfig(),
    chain=ChainConfig(kernel="mala", num_steps=2, step_size=1.0),
    steps=210,
    log_every=10,
    checkpoint_every=1000,
)


@pytest.mark.parametrize(
    ("chain", "verdicts", "remedy"),
    [
        ({}, [(210, "green")], None),
        ({"kernel": "hmc"}, [(210, "green")], None),
        ({"target_acceptance": None, "step_size": 0.01}, [(100, "amber"), (210, "amber")], "target_acceptance"),
        ({"target_acceptance": None, "step_size": 10.0}, [(100, "red"), (210, "red")], "target_acceptance"),
        ({"step_size": 0.01}, [(200, "amber"), (210, "amber")], "larger chain.step_size"),
        ({"kernel": "langevin"}, [], None),
    ],
)
def test_a_training_tells_of_steps_that_are_far_too_long_or_short_once_and_at_its_end(
    chain: dict[str, object], verdicts: list[tuple[int, str]], remedy: str | None
) -> None:
    config = replace(_PLANAR, chain=replace(_PLANAR.chain, **chain))  # type: ignore[arg-type]
    told = [event for event in train(config, load("eight_gaussians")) if isinstance(event, HealthEvent)]
    assert [(event.step, event.level) for event in told] == verdicts
    assert all((event.remedy is None) if remedy is None else (remedy in (event.remedy or "")) for event in told)


def test_a_resumed_run_ends_with_its_own_verdict(tmp_path: Path) -> None:
    config = replace(
        _PLANAR, chain=replace(_PLANAR.chain, target_acceptance=None, step_size=10.0), checkpoint_every=100
    )
    run_to_end(config, load("eight_gaussians"), tmp_path)
    resumed = train(config, load("eight_gaussians"), snapshot=read_snapshot(tmp_path / "100"))
    assert [event.step for event in resumed if isinstance(event, HealthEvent)] == [200, 210]
