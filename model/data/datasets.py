"""Datasets: what a name or a location stands for becomes float32 events, with a held-out split that never changes.

Images become (C, H, W) in [−1, 1]. Vectors are standardised per coordinate; the dataset's space says by how much, and
the model keeps it, so that samples and densities come back in the data's own units. Nothing is ever unpickled.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.planar import PLANAR_DENSITIES
from model.errors import DataError
from model.event_kinds import pixels
from model.event_kinds.registry import kind_of
from model.intake.framing import ImageSize, framed, require_images
from model.intake.limits import ReadLimits
from model.intake.normalize import normalize
from model.noise import make_generator
from model.spaces.affine import AffineSpace

_SPLIT_SEED = 0
_PLANAR_COUNT = 50_000
_NORMAL_CONSISTENCY = 1.4826
"""What makes the median distance from the median of normal data their standard deviation."""


@dataclass(frozen=True)
class Dataset:
    """Training and held-out events, in the coordinates of their space."""

    name: str
    train: Tensor
    """(N, *event) float32"""
    held_out: Tensor
    """(M, *event) float32"""
    space: AffineSpace
    """The change of coordinates between these events and the data as they came."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event: (C, H, W) for images, (D,) for vectors."""
        return tuple(self.train.shape[1:])


def load(
    name: str,
    limits: ReadLimits | None = None,
    image_size: ImageSize | None = None,
    *,
    max_deviation: float | None = None,
) -> Dataset:
    """Load the built-in dataset called `name`, or the dataset at that path.

    A path leads to a folder or zip of images, or to a .npy, .npz or .csv file. Images are cropped and resized to
    `image_size` if there is one. Vectors with a value further than `max_deviation` from its column's median, in robust
    standard deviations, are refused if that is given. Raises DataError naming the offending member.
    """
    if name == "digits":
        return _digits(image_size)
    if name in PLANAR_DENSITIES:
        require_images(name, image_size is None)
        return _planar(name)
    path = Path(name)
    if not path.exists():
        known = ", ".join(["digits", *PLANAR_DENSITIES])
        raise DataError(
            f"no dataset {name!r}; expected one of {known}, or the path of a folder, .zip, .npy, .npz or .csv"
        )
    return _from_file(path, limits, image_size, max_deviation)


def _from_file(
    path: Path, limits: ReadLimits | None, image_size: ImageSize | None, max_deviation: float | None
) -> Dataset:
    """Read a file through the checks of a stranger's upload, so that there is one reader of every format."""
    with tempfile.TemporaryDirectory(prefix="recovery-dataset-") as directory:
        target = Path(directory) / "data.npy"
        normalize(path, target, limits=limits, image_size=image_size)
        return _array_dataset(path.name, np.load(target, allow_pickle=False), max_deviation)


def _digits(image_size: ImageSize | None) -> Dataset:
    """Load scikit-learn's 1,797 8×8 digits, of which 897 are held out; values v in 0…16 become v/8 − 1.

    Digits that are resized to `image_size` also take values in between, so that their space is continuous.
    """
    from sklearn.datasets import load_digits  # takes a second to import and is needed here only

    images = load_digits().images.astype(np.float32)[:, None] / 8 - 1
    if image_size is None or image_size == images.shape[2:]:
        return _split("digits", images, AffineSpace.discrete(images.shape[1:], 1 / 8), num_train=900)
    resized = np.stack([framed(image[0, ..., None], image_size)[..., 0] for image in images])[:, None]
    return _split("digits", resized, AffineSpace.plain(resized.shape[1:]), num_train=900)


def _planar(name: str) -> Dataset:
    generator = make_generator(_SPLIT_SEED)
    points = PLANAR_DENSITIES[name]().sample(2 * _PLANAR_COUNT, generator).float()
    return Dataset(name, points[:_PLANAR_COUNT], points[_PLANAR_COUNT:], AffineSpace.plain((2,)))


def _split(name: str, events: npt.NDArray[np.float32], space: AffineSpace, *, num_train: int | None = None) -> Dataset:
    """Shuffle the events with the fixed seed, then cut them; a tenth is held out unless `num_train` says otherwise."""
    count = len(events)
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    cut = num_train or count - max(1, count // 10)
    shuffled = torch.from_numpy(np.ascontiguousarray(events[order]))
    return Dataset(name, shuffled[:cut], shuffled[cut:], space)


def _array_dataset(name: str, array: npt.NDArray[Any], max_deviation: float | None) -> Dataset:
    """Make a dataset of an array that `model.intake.normalize` wrote.

    It holds pixels (N, H, W, C) uint8, or float32 events (N, *event). Raises DataError for a column without variation
    and for a value beyond `max_deviation`.
    """
    if array.dtype == np.uint8:
        images = pixels.from_bytes(np.moveaxis(array, 3, 1))
        return _split(name, images, AffineSpace.discrete(images.shape[1:], pixels.BIN_WIDTH))
    events = array.astype(np.float32, copy=False)
    shape, axes = events.shape[1:], kind_of(events.shape[1:]).standardized_over
    if not axes:
        return _split(name, events, AffineSpace.plain(shape))
    if max_deviation is not None:
        _require_near(name, events, max_deviation)
    # The moments are computed in 64 bits, because squares of large values leave the range of 32 bits.
    mean, std = (fn(axes, dtype=np.float64, keepdims=True)[0].astype(np.float32) for fn in (events.mean, events.std))
    if (std == 0).any():
        raise DataError(f"{name} hardly varies in column {int(np.argmin(std))}; rescale it")
    space = AffineSpace.standardized(shape, torch.from_numpy(mean), torch.from_numpy(std))
    return _split(name, (events - mean) / std, space)


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
