"""Datasets larger than memory: what stays in the file, what is read of it, and that nothing else is different."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ChainConfig, NetworkConfig, ScoreMatchingConfig, TrainConfig
from model.data import datasets
from model.data.datasets import load
from model.data.events import StoredEvents
from model.densities.calibration import continuous
from model.errors import DataError
from model.intake import stored
from model.presets import preset
from model.training.loop import train

ROOT = Path(__file__).resolve().parents[3]
RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "rows": (RANDOM.normal(size=(500, 3)) * [1, 100, 0.01] + [0, 1e3, 0]).astype(np.float32),
    "bytes": RANDOM.integers(0, 256, (60, 8, 8, 3), np.uint8),
    "grey": RANDOM.integers(0, 256, (60, 8, 8), np.uint8),
    "floats": RANDOM.uniform(-1, 1, (60, 1, 8, 8)).astype(np.float32),
}


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dataset of a test is larger than memory, and read in several blocks."""
    monkeypatch.setattr(datasets, "_MEMORY_BYTES", 2000)
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 1000)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("form", ["as stored", "converted", "labelled"])
def test_a_file_that_is_read_as_it_goes_has_the_events_of_one_that_is_read_at_once(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, path = ARRAYS[name], tmp_path / f"x.{'npz' if form == 'labelled' else 'npy'}"
    match form:
        case "as stored":
            np.save(path, array)
        case "converted":
            np.save(path, np.asfortranarray(array))
        case "labelled":
            np.savez(path, x=array, y=np.arange(len(array)) % 3)
    at_once = load(str(path))
    monkeypatch.setattr(datasets, "_MEMORY_BYTES", 2000)
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 1000)
    as_it_goes = load(str(path))
    assert isinstance(at_once.train, torch.Tensor)
    assert isinstance(as_it_goes.train, StoredEvents)
    assert as_it_goes.event_shape == at_once.event_shape
    assert (as_it_goes.labels is None) == (form != "labelled")
    if as_it_goes.labels is not None and at_once.labels is not None:
        assert torch.equal(as_it_goes.labels.train, at_once.labels.train)
    for found, expected in ((as_it_goes.train, at_once.train), (as_it_goes.held_out, at_once.held_out)):
        some = torch.tensor([len(expected) - 1, 0, 2, 2])
        for rows in (slice(None), slice(1, 4), some):
            torch.testing.assert_close(found[rows], expected[rows], rtol=1e-6, atol=1e-6 if name == "rows" else 0)
        torch.testing.assert_close(
            continuous(as_it_goes, found), continuous(at_once, expected), rtol=1e-5, atol=1e-5 if name == "rows" else 0
        )


def test_a_training_takes_the_same_steps_from_a_file_as_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", ARRAYS["bytes"])
    config = replace(
        preset("digits"),
        network=NetworkConfig(kind="resnet", width=8, num_blocks=1),
        chain=ChainConfig(num_steps=1, step_size=0.1),
        score_matching=ScoreMatchingConfig(steps=2, batch_size=8),
        batch_size=8,
        steps=4,
        horizontal_flips=True,
        num_preview_samples=2,
        calibrate=False,
    )

    def weights() -> dict[str, torch.Tensor]:
        *_, checkpoint, _ = train(config, load(str(tmp_path / "x.npy")))
        checkpoint.write(tmp_path)  # type: ignore[union-attr]
        from model.checkpoints.checkpoint import read_snapshot

        return dict(read_snapshot(tmp_path).energy.average)

    before = weights()
    monkeypatch.setattr(datasets, "_MEMORY_BYTES", 2000)
    after = weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("small_memory")
def test_a_value_far_from_all_others_is_found_in_a_file_too(tmp_path: Path) -> None:
    rows = ARRAYS["rows"].copy()
    rows[317, 2] = -1000
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match=r"rows.npy has -1000 in row 317, column 2.* robust standard"):
        load(str(tmp_path / "rows.npy"), max_deviation=1e4)
    assert isinstance(load(str(tmp_path / "rows.npy"), max_deviation=1e6).train, StoredEvents)


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[np.zeros(9, int)], "the same item 9 times"),
        (lambda x: np.where(np.arange(500)[:, None] == 400, np.nan, x), "not finite in item 400"),
        (lambda x: x * [1, 1, 0], "a constant column: column 3"),
    ],
    ids=["the same", "not finite", "constant"],
)
def test_a_file_that_is_read_as_it_goes_is_checked_like_any(change: Any, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", change(ARRAYS["rows"]).astype(np.float32))
    with pytest.raises(DataError, match=words):
        load(str(tmp_path / "rows.npy"))


@pytest.mark.usefixtures("small_memory")
def test_a_file_may_be_removed_while_it_is_read_and_one_that_is_cut_short_is_told(tmp_path: Path) -> None:
    for name in ("removed.npy", "cut.npy"):
        np.save(tmp_path / name, ARRAYS["bytes"])
    removed, cut = (load(str(tmp_path / name)) for name in ("removed.npy", "cut.npy"))
    (tmp_path / "removed.npy").unlink()
    assert removed.train[:].shape == (54, 3, 8, 8)
    os.truncate(tmp_path / "cut.npy", 500)
    with pytest.raises(DataError, match=r"cut\.npy has become shorter"):
        cut.train[:]


LARGE = """
import sys, time
from dataclasses import replace
from tests.model.data.test_large import large_config, peak_bytes
from model.data.datasets import load
from model.intake.limits import ReadLimits
from model.training.loop import train
began_at = time.monotonic()
dataset = load(sys.argv[1], ReadLimits(max_array_bytes=2**40))
loaded_s = time.monotonic() - began_at
steps = [event.step for event in train(large_config(), dataset) if hasattr(event, "loss")]
print(len(dataset.train), loaded_s, steps[-1], peak_bytes())
"""


def large_config() -> TrainConfig:
    """A training of a few steps on pictures of 32×32 pixels, with a base that is fit to the data."""
    return replace(
        preset("digits"),
        network=NetworkConfig(kind="resnet", width=8, num_blocks=1),
        chain=ChainConfig(num_steps=1, step_size=0.1),
        score_matching=ScoreMatchingConfig(steps=2, batch_size=64),
        batch_size=64,
        steps=4,
        log_every=1,
        affine_jitter=0,
        num_preview_samples=2,
        calibrate=False,
    )


def peak_bytes() -> int:
    """The most memory that this process ever had resident, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.slow
def test_a_training_on_a_file_larger_than_its_memory_starts_at_once_and_stays_small(tmp_path: Path) -> None:
    count = 500_000  # 1.5 GB as bytes, 6 GB as 32-bit numbers; the file is sparse
    header = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (count, 32, 32, 3))
    header[:2000] = RANDOM.integers(0, 256, (2000, 32, 32, 3), np.uint8)
    header.flush()
    assert (tmp_path / "x.npy").stat().st_size > 1.5e9
    run = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "x.npy")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    num_train, loaded_s, step, peak = map(float, run.stdout.split())
    assert (num_train, step) == (0.9 * count, 4)
    assert peak < 800e6
    assert loaded_s < 30  # a pass over it all takes minutes where the file is not in the cache
