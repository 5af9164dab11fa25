"""The labels of a dataset stay with their items, whatever is shuffled, cut or resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model.data.dataset import Dataset
from model.data.datasets import load


def _classes(dataset: Dataset) -> list[tuple[torch.Tensor, list[str]]]:
    """The events, and the name of each one's class, of both parts."""
    assert dataset.labels is not None
    assert dataset.labels.train.dtype == dataset.labels.held_out.dtype == torch.int64
    pairs = ((dataset.train[:], dataset.labels.train), (dataset.held_out[:], dataset.labels.held_out))
    names = dataset.labels.names
    return [(events, [names[code] for code in codes.tolist()]) for events, codes in pairs]


def test_every_image_keeps_its_label_through_the_split(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=np.broadcast_to(values[:, None, None], (100, 4, 4)), y=values // 10)
    parts = _classes(load(str(tmp_path / "x.npz")))
    assert [len(events) for events, _ in parts] == [90, 10]
    for events, names in parts:
        pixels = ((events[:, 0, 0, 0] + 1) * 127.5).round().int()
        assert names == [str(value // 10) for value in pixels.tolist()]


def test_every_row_of_a_table_keeps_its_label_through_the_split(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    lines = [f"{x},{'right' if x > 0 else 'left'},{y}" for x, y in rows.tolist()]
    (tmp_path / "x.csv").write_text("\n".join(["x,side,y", *lines]))
    dataset = load(str(tmp_path / "x.csv"), label_column="side")
    for events, names in _classes(dataset):
        assert names == ["right" if x > 0 else "left" for x in dataset.space.decode(events)[:, 0].tolist()]


def test_labels_change_nothing_about_which_items_are_held_out(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 5), np.uint8)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(50) % 2)
    without, labelled = load(str(tmp_path / "x.npy")), load(str(tmp_path / "x.npz"))
    assert without.labels is None
    assert torch.equal(labelled.train[:], without.train[:])
    assert torch.equal(labelled.held_out[:], without.held_out[:])
