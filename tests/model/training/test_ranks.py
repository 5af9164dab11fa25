"""Several processes train as one does, and accumulated gradients are those of the whole batch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from model.checkpoints.checkpoint import read_snapshot
from model.config import TrainConfig
from model.data.datasets import Dataset, load
from model.errors import ConfigError
from model.events import CheckpointEvent, SampleEvent, StepEvent
from model.rows import Rows
from model.training.loop import train
from model.training.ranks import Ranks, joined
from tests.model.training.test_training import ADJUSTED, PAPER
from tests.servers import free_ports

_ADJUSTED = replace(
    ADJUSTED, score_matching=replace(ADJUSTED.score_matching, steps=3, recovery_weight=1.0, batch_size=5), batch_size=11
)
"""Rows that two ranks cannot share evenly, and a loss on every second of them."""
_DUAL = replace(
    ADJUSTED,
    energy="log_snr",
    base_components=2,
    affine_jitter=0.0,
    horizontal_flips=False,
    score_matching=replace(ADJUSTED.score_matching, steps=3, form="dual", noise_contrast=0.5),
)
_CONDITIONAL = replace(_ADJUSTED, conditional=True, classification_weight=1.0)
_CONFIGS = {
    name: replace(config, steps=6, num_preview_samples=1, sample_every=100)
    for name, config in {
        "paper": PAPER,
        "adjusted": _ADJUSTED,
        "dual": _DUAL,
        "conditional": _CONDITIONAL,
        "conditional dual": replace(_DUAL, conditional=True),
    }.items()
}


def _few_digits() -> Dataset:
    digits = load("digits")
    assert digits.labels is not None
    labels = replace(digits.labels, train=digits.labels.train[:300])
    return replace(digits, train=digits.train[:300], labels=labels)


def _run(config: TrainConfig, dataset: Dataset, directory: Path, ranks: Ranks) -> list[StepEvent]:
    """Train; the steps that were told. The leading rank leaves the last checkpoint in `directory`."""
    told = []
    for event in train(config, dataset, ranks=ranks):
        if isinstance(event, StepEvent):
            told.append(event)
        assert ranks.leads or not isinstance(event, SampleEvent)
        if isinstance(event, CheckpointEvent) and ranks.leads and event.step == config.steps:
            directory.mkdir()
            event.write(directory)
    return told


def _rank(index: int, port: int, directory: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    digits = _few_digits()
    with joined(index, 2, "cpu", leads_node=index == 0) as ranks:
        for name, config in _CONFIGS.items():
            steps = _run(config, digits, directory / f"{name}-two", ranks)
            torch.save([_figures(event) for event in steps], directory / f"{name}-{index}.pt")


def _figures(event: StepEvent) -> list[float]:
    """What was told of steps, as numbers."""
    per_level = [*event.positive_energy, *event.displacement, *event.acceptance_rate]
    return [event.loss, event.gradient_norm, *(-1.0 if value is None else value for value in per_level)]


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_gradient_accumulated_over_three_rows_at_a_time_is_that_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    config, digits = _CONFIGS[name], _few_digits()
    whole = _run(config, digits, tmp_path / "whole", Ranks())
    pieces = _run(replace(config, microbatch_size=3), digits, tmp_path / "pieces", Ranks())
    _require_same_weights(tmp_path / "whole", tmp_path / "pieces")
    for one, other in zip(whole, pieces, strict=True):
        assert _figures(other) == pytest.approx(_figures(one), rel=1e-3, abs=1e-3)


def test_fewer_rows_than_ranks_are_refused() -> None:
    events = train(replace(PAPER, batch_size=2), load("digits"), ranks=Ranks(0, 3))
    with pytest.raises(ConfigError, match="batch_size is 2; expected at least 3"):
        next(events)


def test_rows_are_cut_without_a_gap_and_pieces_are_no_larger_than_asked_for() -> None:
    batch = torch.arange(11)
    parts = [Rows.all_of(11).part(index, 3) for index in range(3)]
    assert torch.cat([rows.of(batch) for rows in parts]).tolist() == batch.tolist()
    assert sum(rows.share for rows in parts) == pytest.approx(1)
    for rows in parts:
        pieces = rows.pieces(2)
        assert torch.cat([piece.of(batch) for piece in pieces]).tolist() == rows.of(batch).tolist()
        assert max(len(piece) for piece in pieces) <= 2
    assert torch.cat([rows.every(2).of(batch[::2]) for rows in parts]).tolist() == batch[::2].tolist()


def _require_same_weights(one: Path, other: Path) -> None:
    """To rounding, which Adam brings up to a fraction of the learning rate where a gradient is nearly zero."""
    first, second = read_snapshot(one).energy, read_snapshot(other).energy
    assert first.weights.keys() == second.weights.keys()
    assert first.moments.keys() == second.moments.keys()
    for name, tensor in first.weights.items():
        torch.testing.assert_close(second.weights[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spawn(_rank, (port, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    digits = _few_digits()
    for name, config in _CONFIGS.items():
        alone = _run(config, digits, tmp_path / name, Ranks())
        _require_same_weights(tmp_path / name, tmp_path / f"{name}-two")
        for index in range(2):
            for event, told in zip(alone, torch.load(tmp_path / f"{name}-{index}.pt"), strict=True):
                assert told == pytest.approx(_figures(event), rel=1e-3, abs=1e-3)
