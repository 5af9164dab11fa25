"""Datasets: what a name or a location stands for becomes float32 events, with a held-out split that never changes.

Images become (C, H, W) in [−1, 1]. Vectors are standardised per coordinate; the dataset's space says by how much, and
the model keeps it, so that samples and densities come back in the data's own units. Nothing is ever unpickled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.data.built_in import BUILT_IN, emoji
from model.data.dataset import Dataset, split
from model.errors import DataError
from model.event_kinds import pixels
from model.event_kinds.registry import kind_of
from model.intake.framing import ImageSize
from model.intake.labels import Labels, read_stored
from model.intake.limits import ClassCount, ReadLimits, Summary
from model.intake.normalize import normalize
from model.presets import EMOJI_FOLDER
from model.spaces.affine import AffineSpace

__all__ = ["Dataset", "load", "summary_of"]

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
    with tempfile.TemporaryDirectory(prefix="recovery-dataset-") as directory:
        target = Path(directory) / "data"
        normalize(path, target, limits=limits, image_size=image_size, label_column=label_column)
        return _array_dataset(path.name, *read_stored(target), max_deviation)


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


def _array_dataset(name: str, array: npt.NDArray[Any], labels: Labels | None, max_deviation: float | None) -> Dataset:
    """Make a dataset of an array and labels that `model.intake.normalize` wrote.

    The array holds pixels (N, H, W, C) uint8, or float32 events (N, *event). Raises DataError for a column without
    variation, and for a value beyond `max_deviation`.
    """
    if array.dtype == np.uint8:
        images = pixels.from_bytes(np.moveaxis(array, 3, 1))
        return split(name, images, AffineSpace.discrete(images.shape[1:], pixels.BIN_WIDTH), labels=labels)
    events = array.astype(np.float32, copy=False)
    shape, axes = events.shape[1:], kind_of(events.shape[1:]).standardized_over
    if not axes:
        return split(name, events, AffineSpace.plain(shape), labels=labels)
    if max_deviation is not None:
        _require_near(name, events, max_deviation)
    # The moments are computed in 64 bits, because squares of large values leave the range of 32 bits.
    mean, std = (fn(axes, dtype=np.float64, keepdims=True)[0].astype(np.float32) for fn in (events.mean, events.std))
    if (std == 0).any():
        raise DataError(f"{name} hardly varies in column {int(np.argmin(std))}; rescale it")
    space = AffineSpace.standardized(shape, torch.from_numpy(mean), torch.from_numpy(std))
    return split(name, (events - mean) / std, space, labels=labels)


def _require_near(name: str, rows: npt.NDArray[np.float32], max_deviation: float) -> None:
    """Refuse rows (N, D) with a value far from the median of its column. Raises DataError, which names the value.

    The distance is in robust standard deviations, 1.4826 times the median distance (Rousseeuw & Croux 1993). The values
    that equal the median are left out of the latter, for a column may consist of one value and exceptions.
    """
    for column in range(rows.shape[1]):
        values = rows[:, column].astype(np.float64)
        median = np.median(values)
        distance = np.abs(values - median)
        row = int(np.argmax(distance))
        deviation = distance[row] / (_NORMAL_CONSISTENCY * np.median(distance[distance > 0]))
        if deviation > max_deviation:
            raise DataError(
                f"{name} has {values[row]:g} in row {row}, column {column}, counted from 0: {deviation:,.0f} robust "
                f"standard deviations from the column's median {median:g}; expected at most {max_deviation:,.0f}. "
                "Correct or remove the row, or train on the column's logarithm; if it is meant, raise max_deviation"
            )
