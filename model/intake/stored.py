"""Reads the items of a dataset that is in a file as intake writes it: a .npy, or a .npz with labels (labels.py).

Items are read when they are asked for, so that a dataset may be larger than memory. They are read and not mapped: the
pages of a mapped file count as memory of the process, and a file that is cut short or a disk that fails kills it.
"""

from __future__ import annotations

import io
import math
import os
import struct
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import DataError
from model.intake.arrays import MAX_HEADER_BYTES, Extremes, read_header, require_layout
from model.intake.labels import CLASSES, ITEMS, LABELS, Labels, stored_suffix
from model.intake.layouts import LAYOUTS, layout_of
from model.intake.limits import ReadLimits, require_variation

_BLOCK_BYTES = 2**26
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The header of a member of a zip: its magic, and the lengths of the name and the extra field that follow it."""

Array = npt.NDArray[Any]


class StoredArray:
    """An array in a file, whose first axis counts the items. Reading raises DataError if the file has become shorter.

    The file stays open, and readable though it is removed, as long as this object lives.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._name = path.name
        self._offset = offset
        self._item_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of numbers."""
        return math.prod(self.shape)

    def rows(self, indices: npt.NDArray[np.int64]) -> Array:
        """Read the items at `indices` (B,), in their order."""
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for row, index in zip(found, indices.tolist(), strict=True):
            self._read(row, index)
        return found

    def block(self, start: int, stop: int) -> Array:
        """Read the items from `start` to `stop`, or to the end if that comes first."""
        found = np.empty((min(stop, len(self)) - start, *self.shape[1:]), self.dtype)
        self._read(found, start)
        return found

    def blocks(self) -> Iterator[Array]:
        """Read all items, some at a time."""
        count = max(1, _BLOCK_BYTES // self._item_bytes)
        for start in range(0, len(self), count):
            yield self.block(start, start + count)

    def _read(self, target: Array, index: int) -> None:
        left, position = target.data.cast("B"), self._offset + index * self._item_bytes
        while left:
            count = os.preadv(self._descriptor, [left], position)
            if count == 0:
                raise DataError(f"{self._name} has become shorter while it was read; start again with the whole file")
            left, position = left[count:], position + count


def open_stored(path: Path) -> tuple[StoredArray, Labels | None]:
    """Return the items of a file that intake wrote, and their labels if it has some. Raises DataError."""
    array = _array(path)
    assert array is not None
    return array, _labels(path)


def open_as_stored(path: Path, limits: ReadLimits) -> tuple[StoredArray, Labels | None] | None:
    """Check a file from anybody that is as intake would write it, and return what it holds; None if it is not.

    No copy is made. Of bytes as much is read as shows that two items differ; other numbers are all read. Raises
    DataError, DataTooLarge.
    """
    try:
        array = _array(path)
        labels = None if array is None else _labels(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, struct.error):  # the reader of strange files explains it
        return None
    if array is None or (labels is not None and not _is_labelling(labels, len(array))):
        return None
    require_layout(path.name, array.shape, array.dtype, limits)
    _check_values(array, path.name)
    return array, labels


def _check_values(array: StoredArray, name: str) -> None:
    layout, extremes = layout_of(name, array.shape, array.dtype), Extremes(name)
    for block in array.blocks():
        extremes.add(block)
        if array.dtype == np.uint8 and extremes.differ:  # no byte is out of range
            return
    layout.require_range(name, extremes.low, extremes.high)
    require_variation(name, len(array), differ=extremes.differ)


def _is_labelling(labels: Labels, count: int) -> bool:
    """Whether labels read from a file are such as intake writes for `count` items."""
    codes = labels.codes
    if codes.shape != (count,) or not 0 <= codes.min() <= codes.max() < len(labels.names):
        return False
    return Labels.of("", labels.names, codes).names == labels.names


def _array(path: Path) -> StoredArray | None:
    """Return the items of a file; None if it, or the array in it, has another form than intake gives them."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        start = _start_of_items(path) if is_zip else None if path.suffix == ".npz" else 0
        if start is None:
            return None
        file.seek(start)
        header = read_header(io.BytesIO(file.read(MAX_HEADER_BYTES + 12)), path.name)
    shape, offset = header.shape, start + header.size_bytes
    layout = next((one for one in LAYOUTS if one.fits(shape, header.dtype)), None)
    if layout is None or layout.dtype != header.dtype or header.is_fortran or 0 in shape:
        return None
    beyond_bytes = path.stat().st_size - offset - math.prod(shape) * header.dtype.itemsize
    if beyond_bytes < 0 or (beyond_bytes > 0 and not is_zip):  # it is damaged
        return None
    return StoredArray(path, offset, layout.stored_shape(shape), header.dtype)


def _start_of_items(path: Path) -> int | None:
    """Return where the member of the items begins in a .npz, in bytes; None if it is not as intake writes it."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = archive.infolist()
        if [one.filename for one in members] != [f"{name}.npy" for name in (ITEMS, LABELS, CLASSES)]:
            return None
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            return None
        file.seek(members[0].header_offset)
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return members[0].header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def _labels(path: Path) -> Labels | None:
    if stored_suffix(path) == ".npy":
        return None
    with np.load(path, allow_pickle=False) as found:
        return Labels(tuple(found[CLASSES].tolist()), found[LABELS].astype(np.int64))
