"""Turns a folder or file from anybody into one validated file, or raises a DataError naming the offending member.

It is a .npy file, or a .npz where the items have labels (`model.intake.labels`). The array is (N, H, W, C) uint8 or
(N, C, H, W) float32 in [−1, 1] for images, (N, D) float32 for vectors, in the order of the rows or of the names; that
order, with the count, fixes which items are held out. Memory holds one member or block at a time, and the disk no more
than the limits allow. The service uses this on uploads, workers on what they fetch, and `model.data` on paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from model.errors import DataError, DataTooLarge
from model.intake.archive import open_archive
from model.intake.arrays import store_npy
from model.intake.framing import ImageSize
from model.intake.images import IMAGE_SUFFIXES, store_images
from model.intake.labels import folder_labels, has_class_folders, refuse_label_column, store_labels
from model.intake.limits import ReadLimits, Summary, shortened
from model.intake.npz import store_npz
from model.intake.tables import store_csv

LOCATIONS = "a folder or .zip of images, or a .npy, .npz or .csv file"


class _Store(Protocol):
    def __call__(
        self,
        source: Path,
        target: Path,
        *,
        name: str,
        limits: ReadLimits,
        image_size: ImageSize | None,
        label_column: str | None,
    ) -> Summary: ...


def normalize(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    limits: ReadLimits | None = None,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> Summary:
    """Write the dataset at `source` to `target`, a new file beside which there may be others for a while.

    Errors call the dataset `name`, whose ending decides how it is read. Images are brought to `image_size` if there is
    one. `label_column` names the column of a .csv, or the array of a .npz, that holds the class of each item; images in
    a folder for each class need no such name. Raises DataError, DataTooLarge.
    """
    shown = shortened(name or source.name)
    store_fn = _store_folder if source.is_dir() else store_fn_of(shown)
    return store_fn(
        source,
        target,
        name=shown,
        limits=limits or ReadLimits(),
        image_size=image_size,
        label_column=label_column,
    )


def store_fn_of(name: str) -> _Store:
    """Return the function that reads files with the ending of `name`. Raises DataError if there is none."""
    try:
        return FORMATS[Path(name).suffix.lower()]
    except KeyError:
        raise DataError(f"{name} is not a dataset: expected {LOCATIONS}") from None


def store_image_files(
    paths: Sequence[str],
    read_fn: Callable[[int], bytes],
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None,
) -> Summary:
    """Store the images `read_fn(0)`, … of files at `paths`, separated by /, labelled if they lie in class folders.

    Raises DataError, DataTooLarge.
    """
    summary = store_images(paths, read_fn, target, name=name, limits=limits, image_size=image_size)
    if not has_class_folders(paths):
        return summary
    return store_labels(
        target,
        summary,
        lambda: folder_labels(name, paths),
        name=name,
        source="folders",
        is_asked=False,
        limits=limits,
    )


def _store_zip(
    source: Path,
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None,
    label_column: str | None,
) -> Summary:
    refuse_label_column(name, label_column)
    with open_archive(source, name, limits) as archive:
        members = archive.names(IMAGE_SUFFIXES)
        read_fn: Callable[[int], bytes] = lambda index: archive.read(members[index])  # noqa: E731
        return store_image_files(members, read_fn, target, name=name, limits=limits, image_size=image_size)


def _store_folder(
    source: Path,
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None,
    label_column: str | None,
) -> Summary:
    refuse_label_column(name, label_column)
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if len(paths) > limits.max_members:
        raise DataTooLarge(f"{name} holds {len(paths):,} images; expected at most {limits.max_members:,}")
    names = [path.relative_to(source).as_posix() for path in paths]
    read_fn: Callable[[int], bytes] = lambda index: paths[index].read_bytes()  # noqa: E731
    return store_image_files(names, read_fn, target, name=name, limits=limits, image_size=image_size)


FORMATS: dict[str, _Store] = {".zip": _store_zip, ".npy": store_npy, ".npz": store_npz, ".csv": store_csv}
