"""Datasets: what a name or a location stands for becomes float32 events, with a held-out split that never changes.

Images become (C, H, W) in [−1, 1]. Vectors are standardised per coordinate; the dataset's space says by how much, and
the model keeps it, so that samples and densities come back in the data's own units. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.data.built_in import BUILT_IN, emoji
from model.data.dataset import SPLIT_SEED, Dataset, split
from model.data.events import StoredEvents
from model.errors import DataError
from model.event_kinds import pixels
from model.event_kinds.registry import kind_of
from model.intake.framing import ImageSize
from model.intake.labels import Labels
from model.intake.limits import ClassCount, ReadLimits, Summary
from model.intake.normalize import normalize
from model.intake.stored import StoredArray, open_as_stored, open_stored
from model.presets import EMOJI_FOLDER
from model.spaces.affine import AffineSpace

__all__ = ["Dataset", "load", "summary_of"]

Array = npt.NDArray[Any]

_MEMORY_BYTES = 2**30
"""A dataset that is larger as 32-bit numbers stays in its file."""

_NORMAL_CONSISTENCY = 1.4826
"""What makes the median distance from the median of normal data their standard deviation."""


def load(
    name: str,
    limits: ReadLimits | None = None,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
    *,
    max_deviation: float | None = None,
) -> Dataset:
    """Load the built-in dataset called `name`, or the dataset at that path.

    A path leads to a folder or zip of images, or to a .npy, .npz or .csv file. Images are cropped and resized to
    `image_size` if there is one. `label_column` names the column of a .csv, or the array of a .npz, that holds the
    class of each item. Vectors with a value further than `max_deviation` from its column's median, in robust standard
    deviations, are refused if that is given. Raises DataError naming the offending member.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](image_size)
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"no dataset {name!r}; expected one of {', '.join(BUILT_IN)}, or the path of a folder, .zip, .npy, .npz "
            "or .csv"
        )
    if path.match(EMOJI_FOLDER):
        return emoji(image_size, path)
    # Files are read through the checks of a stranger's upload, so that there is one reader of every format.
    if image_size is None and label_column is None and path.suffix.lower() in (".npy", ".npz"):
        as_stored = open_as_stored(path, limits or ReadLimits())
        if as_stored is not None:
            return _array_dataset(path.name, *as_stored, max_deviation)
    with tempfile.TemporaryDirectory(prefix="recovery-dataset-") as directory:
        target = Path(directory) / "data"
        normalize(path, target, limits=limits, image_size=image_size, label_column=label_column)
        return _array_dataset(path.name, *open_stored(target), max_deviation)


def summary_of(dataset: Dataset) -> Summary:
    """Return what a loaded dataset holds, training and held-out events together."""
    labels: tuple[ClassCount, ...] = ()
    if dataset.labels is not None:
        codes = torch.cat([dataset.labels.train, dataset.labels.held_out])
        counts = torch.bincount(codes, minlength=len(dataset.labels.names)).tolist()
        labels = tuple(
            ClassCount(name=name, count=count) for name, count in zip(dataset.labels.names, counts, strict=True)
        )
    return Summary(
        kind=kind_of(dataset.event_shape).name,
        count=len(dataset.train) + len(dataset.held_out),
        event_shape=dataset.event_shape,
        labels=labels,
    )


def _array_dataset(name: str, array: StoredArray, labels: Labels | None, max_deviation: float | None) -> Dataset:
    """Make a dataset of an array and labels that intake accepted.

    The array holds pixels (N, H, W, C) uint8, or float32 events (N, *event). Raises DataError for a column without
    variation, and for a value beyond `max_deviation`.
    """
    space, convert_fn = _coordinates(name, array, max_deviation)
    fits = array.size * np.dtype(np.float32).itemsize <= _MEMORY_BYTES
    events = convert_fn(array.block(0, len(array))) if fits else StoredEvents(array, convert_fn)
    return split(name, events, space, labels=labels)


def _coordinates(
    name: str, array: StoredArray, max_deviation: float | None
) -> tuple[AffineSpace, Callable[[Array], npt.NDArray[np.float32]]]:
    """Return the space of an array's events, and the function of stored items (B, …) that returns events (B, *event).

    Raises DataError.
    """
    if array.dtype == np.uint8:
        event_shape = (array.shape[3], *array.shape[1:3])
        return AffineSpace.discrete(event_shape, pixels.BIN_WIDTH), lambda x: pixels.from_bytes(np.moveaxis(x, 3, 1))
    shape, axes = array.shape[1:], kind_of(array.shape[1:]).standardized_over
    if not axes:
        return AffineSpace.plain(shape), lambda x: x
    if max_deviation is not None:
        _require_near(name, array, max_deviation)
    mean, std = _moments(array, axes)
    if (std == 0).any():
        raise DataError(f"{name} hardly varies in column {int(np.argmin(std))}; rescale it")
    space = AffineSpace.standardized(shape, torch.from_numpy(mean), torch.from_numpy(std))
    return space, lambda x: (x - mean) / std


def _moments(array: StoredArray, axes: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean and the standard deviation over `axes`, in two passes over the file.

    They are computed in 64 bits, because squares of large values leave the range of 32 bits.
    """
    count = math.prod(array.shape[axis] for axis in axes)
    mean = sum(x.sum(axes, np.float64, keepdims=True) for x in array.blocks()) / count
    variance = sum(((x - mean) ** 2).sum(axes, keepdims=True) for x in array.blocks()) / count
    return mean[0].astype(np.float32), np.sqrt(variance)[0].astype(np.float32)


def _require_near(name: str, rows: StoredArray, max_deviation: float) -> None:
    """Refuse rows (N, D) with a value far from the median of its column. Raises DataError, which names the value.

    The distance is in robust standard deviations, 1.4826 times the median distance (Rousseeuw & Croux 1993). The values
    that equal the median are left out of the latter, for a column may consist of one value and exceptions. Of more rows
    than fit into memory a fixed random part gives the medians; what is compared with them are all.
    """
    found = np.array([_median_and_std(column) for column in _some_rows(rows).T])
    medians, stds, columns = found[:, 0], found[:, 1], np.arange(len(found))
    farthest, at, values = np.zeros(len(found)), np.zeros(len(found), np.int64), np.zeros(len(found))
    start = 0
    for block in rows.blocks():
        distance = np.abs(block - medians)
        row = distance.argmax(0)
        worse = distance[row, columns] > farthest
        farthest[worse], at[worse] = distance[row, columns][worse], start + row[worse]
        values[worse] = block[row, columns][worse]
        start += len(block)
    if (farthest > max_deviation * stds).any():
        column = int(np.argmax(farthest > max_deviation * stds))
        raise DataError(
            f"{name} has {values[column]:g} in row {at[column]}, column {column}, counted from 0: "
            f"{farthest[column] / stds[column]:,.0f} robust standard deviations from the column's median "
            f"{medians[column]:g}; expected at most {max_deviation:,.0f}. "
            "Correct or remove the row, or train on the column's logarithm; if it is meant, raise max_deviation"
        )


def _median_and_std(column: Array) -> tuple[float, float]:
    """Return the median of a column and its robust standard deviation, infinite if all values are the same."""
    values = column.astype(np.float64)
    median = float(np.median(values))
    distance = np.abs(values - median)
    return median, float(_NORMAL_CONSISTENCY * np.median(distance[distance > 0])) if distance.any() else math.inf


def _some_rows(rows: StoredArray) -> Array:
    """Return all rows, or a quarter of what memory holds if that is less, drawn with the fixed seed in one pass."""
    share = _MEMORY_BYTES / (rows.size * rows.dtype.itemsize)
    if share >= 1:
        return rows.block(0, len(rows))
    generator = np.random.default_rng(SPLIT_SEED)
    return np.concatenate([block[generator.random(len(block)) < share / 4] for block in rows.blocks()])
