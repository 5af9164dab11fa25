"""Datasets: a name or a location -> float32 events, with a held-out split that never changes.

Images become (C, H, W) in [−1, 1]: 8-bit values v are v/127.5 − 1. Vectors are standardised per coordinate; the model
remembers by how much, so that samples and densities come back in the data's own units. Nothing is ever unpickled.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.planar import PLANAR_DENSITIES
from model.errors import DataError
from model.intake.framing import ImageSize, framed, require_images
from model.intake.limits import ReadLimits
from model.intake.normalize import normalize
from model.noise import make_generator

_SPLIT_SEED = 0
_PLANAR_COUNT = 50_000


@dataclass(frozen=True)
class Dataset:
    """Training and held-out events, scaled for the network."""

    name: str
    train: Tensor
    """(N, *event) float32"""
    held_out: Tensor
    """(M, *event) float32"""
    mean: Tensor
    """(*event) or scalar: what was subtracted, in the data's units"""
    std: Tensor
    """(*event) or scalar: what was divided by, in the data's units"""
    bin_width: float | None = None
    """Spacing of the values the data can take, in the scaled units; None for continuous data."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(C, H, W) of images, (D,) of vectors."""
        return tuple(self.train.shape[1:])


def load(name: str, limits: ReadLimits | None = None, image_size: ImageSize | None = None) -> Dataset:
    """The built-in dataset of that name, or the one at that path: a folder or zip of images, .npy, .npz or .csv.

    Images are cropped and resized to `image_size` if there is one. Raises DataError naming the offending member.
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
    return _from_file(path, limits, image_size)


def _from_file(path: Path, limits: ReadLimits | None, image_size: ImageSize | None) -> Dataset:
    """Through the same checks as a stranger's upload, so that there is one reader of every format."""
    with tempfile.TemporaryDirectory(prefix="recovery-dataset-") as directory:
        target = Path(directory) / "data.npy"
        normalize(path, target, limits=limits, image_size=image_size)
        return _array_dataset(path.name, np.load(target, allow_pickle=False))


def _digits(image_size: ImageSize | None) -> Dataset:
    """scikit-learn's 1,797 8×8 digits: 900 to train on, 897 held out; values 0…16 become v/8 − 1.

    Of another size they take values in between.
    """
    from sklearn.datasets import load_digits  # a second to import, needed here only

    images = load_digits().images.astype(np.float32)[:, None] / 8 - 1
    if image_size is None or image_size == images.shape[2:]:
        return _split("digits", images, num_train=900, bin_width=1 / 8)
    resized = np.stack([framed(image[0, ..., None], image_size)[..., 0] for image in images])
    return _split("digits", resized[:, None], num_train=900)


def _planar(name: str) -> Dataset:
    generator = make_generator(_SPLIT_SEED)
    points = PLANAR_DENSITIES[name]().sample(2 * _PLANAR_COUNT, generator).float()
    return Dataset(name, points[:_PLANAR_COUNT], points[_PLANAR_COUNT:], torch.zeros(()), torch.ones(()))


def _split(
    name: str,
    events: npt.NDArray[np.float32],
    *,
    num_train: int | None = None,
    mean: npt.NDArray[np.float32] | float = 0.0,
    std: npt.NDArray[np.float32] | float = 1.0,
    bin_width: float | None = None,
) -> Dataset:
    """Shuffle with the fixed seed, then cut; a tenth is held out unless `num_train` says otherwise."""
    count = len(events)
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    cut = num_train or count - max(1, count // 10)
    shuffled = torch.from_numpy(np.ascontiguousarray(events[order]))
    return Dataset(
        name, shuffled[:cut], shuffled[cut:], torch.as_tensor(mean).float(), torch.as_tensor(std).float(), bin_width
    )


def _array_dataset(name: str, array: npt.NDArray[np.generic]) -> Dataset:
    """What `model.intake.normalize` writes: (N, H, W, C) uint8, (N, C, H, W) float32 in [−1, 1], or (N, D) float32."""
    if array.dtype == np.uint8:
        pixels = np.ascontiguousarray(np.moveaxis(array, 3, 1), dtype=np.float32)
        pixels /= 127.5
        pixels -= 1
        return _split(name, pixels, bin_width=1 / 127.5)
    events = array.astype(np.float32, copy=False)
    if events.ndim == 4:
        return _split(name, events)
    # In 64 bits: squares of large values leave the range of 32.
    mean = events.mean(0, dtype=np.float64).astype(np.float32)
    std = events.std(0, dtype=np.float64).astype(np.float32)
    if (std == 0).any():
        raise DataError(f"{name} hardly varies in column {int(np.argmin(std))}; rescale it")
    return _split(name, (events - mean) / std, mean=mean, std=std)
