"""Turns a folder or file from anybody into one validated .npy file, or raises a DataError naming the offending member.

The array is (N, H, W, C) uint8 or (N, C, H, W) float32 in [−1, 1] for images, (N, D) float32 for vectors, in the order
of the rows or of the names; that order, with the count, fixes which items are held out. Memory holds one member or
block at a time, and the disk no more than the limits allow. The service uses this on uploads, workers on what they
fetch, and `model.data` on paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from model.errors import DataError, DataTooLarge
from model.intake.archive import open_archive
from model.intake.arrays import store_npy, store_npz
from model.intake.framing import ImageSize, frame_stored
from model.intake.images import IMAGE_SUFFIXES, store_images
from model.intake.limits import ReadLimits, Summary, shortened
from model.intake.tables import store_csv

LOCATIONS = "a folder or .zip of images, or a .npy, .npz or .csv file"


class _Store(Protocol):
    def __call__(self, source: Path, target: Path, *, name: str, limits: ReadLimits) -> Summary: ...


def normalize(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    limits: ReadLimits | None = None,
    image_size: ImageSize | None = None,
) -> Summary:
    """Write the dataset at `source` to `target`, a new .npy file beside which there may be others for a while.

    Errors call the dataset `name`, whose ending decides how it is read. Images are brought to `image_size` if there is
    one. Raises DataError, DataTooLarge.
    """
    shown = shortened(name or source.name)
    limits = limits or ReadLimits()
    if source.is_dir():
        return _store_folder(source, target, name=shown, limits=limits, image_size=image_size)
    if (store_fn := store_fn_of(shown)) is _store_zip:
        return _store_zip(source, target, name=shown, limits=limits, image_size=image_size)
    summary = store_fn(source, target, name=shown, limits=limits)
    return summary if image_size is None else frame_stored(target, summary, image_size, name=shown, limits=limits)


def store_fn_of(name: str) -> _Store:
    """Return the function that reads files with the ending of `name`. Raises DataError if there is none."""
    try:
        return FORMATS[Path(name).suffix.lower()]
    except KeyError:
        raise DataError(f"{name} is not a dataset: expected {LOCATIONS}") from None


def _store_zip(
    source: Path, target: Path, *, name: str, limits: ReadLimits, image_size: ImageSize | None = None
) -> Summary:
    with open_archive(source, name, limits) as archive:
        members = archive.names(IMAGE_SUFFIXES)
        read_fn: Callable[[int], bytes] = lambda index: archive.read(members[index])  # noqa: E731
        return store_images(members, read_fn, target, name=name, limits=limits, image_size=image_size)


def _store_folder(
    source: Path, target: Path, *, name: str, limits: ReadLimits, image_size: ImageSize | None = None
) -> Summary:
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if len(paths) > limits.max_members:
        raise DataTooLarge(f"{name} holds {len(paths):,} images; expected at most {limits.max_members:,}")
    names = [str(path.relative_to(source)) for path in paths]
    read_fn: Callable[[int], bytes] = lambda index: paths[index].read_bytes()  # noqa: E731
    return store_images(names, read_fn, target, name=name, limits=limits, image_size=image_size)


FORMATS: dict[str, _Store] = {".zip": _store_zip, ".npy": store_npy, ".npz": store_npz, ".csv": store_csv}
