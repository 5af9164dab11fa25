"""A dataset: events with a held-out part that never changes, and the classes of its events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.events import Events, StoredEvents
from model.intake.labels import Labels
from model.spaces.affine import AffineSpace

SPLIT_SEED = 0


@dataclass(frozen=True)
class SplitLabels:
    """The classes of training and held-out events: event i of `train` is of class `names[train[i]]`."""

    names: tuple[str, ...]
    train: Tensor
    """(N,) int64"""
    held_out: Tensor
    """(M,) int64"""


@dataclass(frozen=True)
class Dataset:
    """Training and held-out events, in the coordinates of their space."""

    name: str
    train: Events
    """(N, *event) float32"""
    held_out: Events
    """(M, *event) float32"""
    space: AffineSpace
    """The change of coordinates between these events and the data as they came."""
    labels: SplitLabels | None = None
    """None where nobody said what the events are."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event: (C, H, W) for images, (D,) for vectors."""
        return tuple(self.train.shape[1:])


def split(
    name: str,
    events: npt.NDArray[np.float32] | StoredEvents,
    space: AffineSpace,
    *,
    labels: Labels | None = None,
    num_train: int | None = None,
) -> Dataset:
    """Shuffle the events with the fixed seed, then cut them; a tenth is held out unless `num_train` says otherwise."""
    count = len(events)
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return cut(name, events, space, order, num_train or count - max(1, count // 10), labels)


def cut(
    name: str,
    events: npt.NDArray[np.float32] | StoredEvents,
    space: AffineSpace,
    order: npt.NDArray[np.int64],
    num_train: int,
    labels: Labels | None,
) -> Dataset:
    """Put the events and their labels into `order` (N,), and hold out all after the first `num_train`."""
    train, held_out = (_taken(events, rows) for rows in (order[:num_train], order[num_train:]))
    classes = None
    if labels is not None:
        codes = torch.from_numpy(labels.codes[order])
        classes = SplitLabels(labels.names, codes[:num_train], codes[num_train:])
    return Dataset(name, train, held_out, space, classes)


def _taken(events: npt.NDArray[np.float32] | StoredEvents, rows: npt.NDArray[np.int64]) -> Events:
    if isinstance(events, StoredEvents):
        return events.taken(rows)
    return torch.from_numpy(np.ascontiguousarray(events[rows]))
