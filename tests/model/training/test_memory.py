"""The batch that is chosen from measured memory, and that it stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from model.checkpoints.checkpoint import read_snapshot
from model.config import NetworkConfig, ScoreMatchingConfig, TrainConfig, from_dict, to_dict
from model.data.datasets import Dataset, load
from model.errors import ConfigError
from model.events import BatchEvent, CheckpointEvent, TrainEvent
from model.spaces.affine import AffineSpace
from model.training.loop import train
from model.training.memory import TrialStep, free_bytes, most_rows, with_rows
from tests.model.training.test_training import PAPER

_AUTO = replace(PAPER, batch_size="auto", sample_every=100, num_preview_samples=1, steps=2)


def test_rows_double_until_the_next_step_would_not_fit() -> None:
    tried: list[int] = []

    def peak(rows: int) -> float:
        tried.append(rows)
        return 100 + 10 * rows

    assert most_rows(peak, 500, 256) == (32, 10)
    assert tried == [1, 2, 4, 8, 16, 32]
    assert most_rows(peak, 10_000, 24) == (16, 10)
    assert most_rows(peak, 105, 256) == (0, 110)


def test_a_device_that_runs_out_of_memory_keeps_the_last_batch_that_ran() -> None:
    assert most_rows(lambda rows: float("inf") if rows > 8 else 10.0 * rows, 1e9, 256) == (8, 10)
    assert most_rows(lambda _: float("inf"), 1e9, 256)[0] == 0


@pytest.mark.parametrize(
    ("num_rows", "num_ranks", "expected"),
    [(256, 1, (256, None)), (128, 4, (256, None)), (64, 3, (128, None)), (16, 1, (64, 16)), (16, 4, (64, None))],
)
def test_a_batch_is_what_the_processes_hold_and_at_least_the_papers_smallest(
    num_rows: int, num_ranks: int, expected: tuple[int, int | None]
) -> None:
    decided = with_rows(TrainConfig(batch_size="auto"), num_rows, num_ranks)
    assert (decided.batch_size, decided.microbatch_size) == expected


def test_a_larger_batch_of_score_matching_is_cut_into_pieces_that_fit() -> None:
    matching = ScoreMatchingConfig(steps=10, batch_size=200)
    decided = with_rows(TrainConfig(batch_size="auto", score_matching=matching), 64, 1)
    assert (decided.batch_size, decided.microbatch_size) == (64, 64)


class _Kept:
    """A tensor that autograd keeps; `now` and `peak` are the bytes that all of them hold."""

    storages: ClassVar[Counter[int]] = Counter()
    now = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self._key = tensor, tensor.untyped_storage().data_ptr()
        self._count(1)

    def __del__(self) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        before = _Kept.storages[self._key] > 0
        _Kept.storages[self._key] += change
        after = _Kept.storages[self._key] > 0
        _Kept.now += (after - before) * self.tensor.untyped_storage().nbytes()
        _Kept.peak = max(_Kept.peak, _Kept.now)


def _measured() -> tuple[list[float], list[int], int]:
    """(peaks of 16, 32 and 64 rows, what autograd keeps of 16 and 32, free memory), all in bytes."""
    torch.set_num_threads(1)
    config = replace(PAPER, network=NetworkConfig(width=32, multipliers=(1, 2), num_blocks=2))
    images = torch.zeros(8, 3, 32, 32)
    step = TrialStep(config, Dataset("images", images, images, AffineSpace.plain((3, 32, 32))), "cpu")
    peaks, kept = [step.peak_bytes(rows) for rows in (16, 32, 64)], []
    for rows in (16, 32):
        _Kept.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda one: one.tensor):
            step.peak_bytes(rows)
        kept.append(_Kept.peak)
    return peaks, kept, free_bytes("cpu")


def test_what_a_row_adds_is_what_autograd_keeps_of_it_and_not_much_more() -> None:
    """Measured in a process of its own: one that ran other tests holds memory that it would use first."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peaks, kept, free = pool.submit(_measured).result()
    by_row = (kept[1] - kept[0]) / 16
    assert by_row > 2**20
    for count, before, after in ((16, *peaks[:2]), (32, *peaks[1:])):
        assert 0.8 * by_row < (after - before) / count < 2.2 * by_row  # more: what is there in passing
    assert free > peaks[2]


def _last_checkpoint(events: Iterator[TrainEvent] | list[TrainEvent], directory: Path) -> Path:
    directory.mkdir()
    checkpoints = [event for event in events if isinstance(event, CheckpointEvent)]
    checkpoints[-1].write(directory)
    return directory


def test_the_choice_is_told_and_kept_with_the_checkpoint(tmp_path: Path) -> None:
    digits = load("digits")
    first, *others = train(_AUTO, digits)
    assert isinstance(first, BatchEvent)
    assert (first.batch_size, first.microbatch_size) == (256, None)
    snapshot = read_snapshot(_last_checkpoint(others, tmp_path / "first"))
    assert snapshot.config.batch_size == 256
    smaller = replace(snapshot, config=replace(snapshot.config, batch_size=64, microbatch_size=16))
    resumed = list(train(replace(_AUTO, steps=4), digits, snapshot=smaller))
    assert not any(isinstance(event, BatchEvent) for event in resumed)
    again = read_snapshot(_last_checkpoint(resumed, tmp_path / "resumed"))
    assert (again.config.batch_size, again.config.microbatch_size) == (64, 16)


def test_auto_is_the_only_word_for_a_batch() -> None:
    assert from_dict(TrainConfig, to_dict(_AUTO)) == _AUTO
    for value, words in (
        ("large", "or 'auto'"),
        (0, "from 1 to 65536"),
        (1.5, "expected an integer"),
        (None, "integer"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_dict(TrainConfig, {"batch_size": value})
