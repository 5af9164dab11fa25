"""Datasets: a name or a location -> float32 events, with a held-out split that never changes.

Images become (C, H, W) in [−1, 1]: 8-bit values v are v/127.5 − 1. Vectors are standardised per coordinate; the model
remembers by how much, so that samples and densities come back in the data's own units. Nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from model.errors import DataError
from model.noise import make_generator
from model.planar import PLANAR_DENSITIES

_SPLIT_SEED = 0
_PLANAR_COUNT = 50_000
_LOCATIONS = "a folder or .zip of images, or of a .npy, .npz or .csv file"
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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


def load(name: str) -> Dataset:
    """The built-in dataset of that name, or the one at that path: a folder or zip of images, .npy, .npz or .csv.

    Raises DataError naming the offending member.
    """
    if name == "digits":
        return _digits()
    if name in PLANAR_DENSITIES:
        return _planar(name)
    path = Path(name)
    if not path.exists():
        known = ", ".join(["digits", *PLANAR_DENSITIES])
        raise DataError(
            f"no dataset {name!r}; expected one of {known}, or the path of a folder, .zip, .npy, .npz or .csv"
        )
    return _from_file(path)


def _from_file(path: Path) -> Dataset:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".zip":
        return _image_dataset(path.name, _read_images(path))
    if suffix == ".npy":
        return _array_dataset(path.name, _read_npy(path, path.name))
    if suffix == ".npz":
        return _array_dataset(path.name, _read_npz(path))
    if suffix == ".csv":
        return _array_dataset(path.name, _read_csv(path))
    raise DataError(f"{path.name} is not a dataset: expected {_LOCATIONS}")


def _digits() -> Dataset:
    """scikit-learn's 1,797 8×8 digits: 900 to train on, 897 held out; values 0…16 become v/8 − 1."""
    from sklearn.datasets import load_digits  # a second to import, needed here only

    images = load_digits().images.astype(np.float32)[:, None] / 8 - 1
    return _split("digits", images, num_train=900, bin_width=1 / 8)


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
    if count < 2:
        raise DataError(f"{name} holds {count} items; expected at least 2, one to train on and one held out")
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    cut = num_train or count - max(1, count // 10)
    shuffled = torch.from_numpy(np.ascontiguousarray(events[order]))
    return Dataset(
        name, shuffled[:cut], shuffled[cut:], torch.as_tensor(mean).float(), torch.as_tensor(std).float(), bin_width
    )


def _image_dataset(name: str, images: npt.NDArray[np.uint8]) -> Dataset:
    """uint8 (N, C, H, W) -> [−1, 1]."""
    return _split(name, images.astype(np.float32) / 127.5 - 1, bin_width=1 / 127.5)


def _array_dataset(name: str, array: npt.NDArray[np.generic]) -> Dataset:
    """uint8 (N, H, W[, C]) or float (N, C, H, W) images, or (N, D) rows."""
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        pixels = array.astype(np.uint8, copy=False)
        return _image_dataset(name, pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, 3, 1))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} has dtype {array.dtype}; expected numbers: uint8 images, or float images or rows")
    events = array.astype(np.float32)
    if not np.isfinite(events).all():
        row = int(np.argwhere(~np.isfinite(events.reshape(len(events), -1)).all(1))[0, 0])
        raise DataError(f"{name} has a value that is not finite in item {row}; remove or fill it")
    if events.ndim == 4:
        if abs(events).max() > 1:
            raise DataError(
                f"{name} holds float images up to {abs(events).max():g}; expected values from −1 to 1, or uint8"
            )
        return _split(name, events)
    if events.ndim != 2:
        raise DataError(
            f"{name} has shape {array.shape}; expected (N, D) rows, (N, H, W[, C]) uint8 or (N, C, H, W) float"
        )
    mean, std = events.mean(0), events.std(0)
    if (std == 0).any():
        raise DataError(
            f"{name} has a constant column, {int(np.argmin(std))}; a density cannot be put on it. Remove it"
        )
    return _split(name, (events - mean) / std, mean=mean, std=std)


def _read_npy(file: Path | IO[bytes], name: str) -> npt.NDArray[np.generic]:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{name} is not a plain numpy array file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name} is not a .npy array file")
    return array


def _read_npz(path: Path) -> npt.NDArray[np.generic]:
    """The only array of the archive, or the one named `data`, `images` or `x`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive)
            wanted = names[:1] if len(names) == 1 else [n for n in ("data", "images", "x") if n in names]
            if not wanted:
                raise DataError(f"{path.name} holds {names}; expected one array, or one named data, images or x")
            return np.asarray(archive[wanted[0]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is not a plain .npz archive: {error}") from error


def _read_csv(path: Path) -> npt.NDArray[np.generic]:
    """Rows of numbers; a first line that is not numeric is a header."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline().split(",")
        header = 0 if all(_is_number(cell) for cell in first) else 1
        return np.loadtxt(path, delimiter=",", skiprows=header, ndmin=2, dtype=np.float32, encoding="utf-8")
    except ValueError as error:
        raise DataError(f"{path.name} is not a table of numbers: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_images(path: Path) -> npt.NDArray[np.uint8]:
    """Every image of a folder or zip: (N, C, H, W), one channel if all are grey, else three; one size for all."""
    images: list[npt.NDArray[np.uint8]] = []
    first_name = ""
    for name, file in _members(path):
        image = _read_image(name, file)
        if images and image.shape[:2] != images[0].shape[:2]:
            height, width = images[0].shape[:2]
            raise DataError(
                f"{name} is {image.shape[1]}×{image.shape[0]}, {first_name} is {width}×{height}; "
                "expected images of one size. Resize them first"
            )
        first_name = first_name or name
        images.append(image)
    if not images:
        raise DataError(f"{path.name} holds no images; expected files ending in {', '.join(sorted(_IMAGE_SUFFIXES))}")
    grey = all((i[..., 0] == i[..., 1]).all() and (i[..., 0] == i[..., 2]).all() for i in images)
    stacked = np.moveaxis(np.stack(images), 3, 1)
    return stacked[:, :1] if grey else stacked


def _read_image(name: str, file: IO[bytes]) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is not an image that can be read: {error}") from error


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open file) of every image of a folder or zip, in name order."""
    if path.is_dir():
        for member in sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and p.is_file()):
            with member.open("rb") as file:
                yield str(member.relative_to(path)), file
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path.name} is not a zip archive: {error}") from error
    with archive:
        for name in sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in _IMAGE_SUFFIXES):
            with archive.open(name) as file:
                yield name, file
