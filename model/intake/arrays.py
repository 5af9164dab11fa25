"""Reads arrays in .npy files: the header is judged before any data are read, and nothing is ever unpickled."""

from __future__ import annotations

import io
import math
import struct
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from model.errors import DataError, DataTooLarge
from model.intake.framing import ImageSize, frame_stored
from model.intake.labels import refuse_label_column
from model.intake.layouts import Array, layout_of
from model.intake.limits import ReadLimits, Summary, require_bytes, require_count, require_variation, shortened
from model.intake.writer import ArrayWriter

_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
_MAX_ITEM_BYTES = 8
_BLOCK_BYTES = 2**24
"""The bytes of an array that are converted at once."""
# numpy reads a header as Python does, and falls back to its tokenizer.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    RecursionError,
)


@dataclass(frozen=True)
class Header:
    """What the header of a .npy file says about its array."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    size_bytes: int
    """The length of the header itself, in bytes."""


def store_npy(
    source: Path,
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> Summary:
    """Check the array of a .npy file and write it to `target` as bytes or float32. Raises DataError, DataTooLarge."""
    refuse_label_column(name, label_column)
    with source.open("rb") as file:
        header = read_header(file, name)
    _require_numbers(name, header.dtype)
    require_layout(name, header.shape, header.dtype, limits)
    data_bytes = math.prod(header.shape) * header.dtype.itemsize
    there = source.stat().st_size - header.size_bytes
    if there != data_bytes:
        raise DataError(
            f"{name} holds {there:,} bytes of data; its header promises {data_bytes:,}. It is damaged: save it again"
        )
    order = "F" if header.is_fortran else "C"
    array: Array = np.memmap(source, header.dtype, "r", header.size_bytes, header.shape, order)  # type: ignore[call-overload]
    summary = store_array(array, target, name=name)
    return summary if image_size is None else frame_stored(target, summary, image_size, name=name, limits=limits)


def read_header(file: IO[bytes], name: str) -> Header:
    """Read the header at the beginning of `file`. Raises DataError, DataTooLarge for one that is too long."""
    start = file.read(8)
    if len(start) < 8 or not start.startswith(_MAGIC):
        raise DataError(
            f"{name} is not a plain numpy array file: it does not begin as a .npy file does. Use numpy.save"
        )
    form = "<H" if start[6] == 1 else "<I"
    length_field = file.read(struct.calcsize(form))
    if start[6] not in (1, 2, 3) or len(length_field) < struct.calcsize(form):
        raise DataError(
            f"{name} is not a plain numpy array file: its format {start[6]}.{start[7]} is not known. Use numpy.save"
        )
    (length,) = struct.unpack(form, length_field)
    if length > MAX_HEADER_BYTES:
        raise DataTooLarge(f"{name} has a header of {length:,} bytes; expected at most {MAX_HEADER_BYTES:,}")
    text = length_field + file.read(length)
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(io.BytesIO(text))
    except _UNREADABLE as error:
        told = str(error).partition(":")[0]  # what follows the colon quotes the header
        raise DataError(
            f"{name} is not a plain numpy array file: its header cannot be read ({told}). Use numpy.save"
        ) from error
    return Header(shape, is_fortran, dtype, 8 + len(text))


def _require_numbers(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise pickled(name)
    if dtype.kind not in "fiu" or dtype.itemsize > _MAX_ITEM_BYTES:
        raise DataError(
            f"{name} has dtype {shortened(str(dtype))}; expected numbers: uint8 images, float images or rows"
        )


def pickled(name: str) -> DataError:
    """The refusal of an array that would have to be unpickled."""
    return DataError(f"{name} holds pickled objects, which are never unpickled; expected an array of plain numbers")


def require_layout(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], limits: ReadLimits) -> None:
    """Check what the header of an array says of it. Raises DataError, DataTooLarge."""
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise DataError(f"{name} has the impossible shape {shape}; save it with numpy.save")
    layout = layout_of(name, shape, dtype)
    layout.require_shape(name, shape, limits)
    require_count(name, shape[0], limits)
    require_bytes(name, shape, max(dtype.itemsize, layout.dtype.itemsize), limits)


def store_array(array: Array, target: Path, *, name: str) -> Summary:
    """Write an array of an accepted layout to `target`, a block at a time.

    uint8 images become (N, H, W, C) uint8, everything else float32 as it is shaped. Raises DataError.
    """
    layout = layout_of(name, array.shape, array.dtype)
    stored = array.reshape(layout.stored_shape(array.shape))
    extremes = _copy(stored, target, layout.dtype, name)
    layout.require_range(name, extremes.low, extremes.high)
    require_variation(name, len(array), differ=extremes.differ)
    return Summary(kind=layout.kind.name, count=len(array), event_shape=layout.event_shape(stored.shape))


class Extremes:
    """The least and the greatest value of every coordinate of the items seen so far. The dataset is called `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self.low: Array = np.empty(0)
        self.high: Array = np.empty(0)

    def add(self, items: Array) -> None:
        """Take in the next items (B, …). Raises DataError for a value that is not finite, which names the item."""
        finite = np.isfinite(items.reshape(len(items), -1)).all(1)
        if not finite.all():
            index = self._count + int(np.argmin(finite))
            raise DataError(
                f"{self._name} has a value that is not finite in item {index}, as a 32-bit number; remove or fill it"
            )
        low, high = items.min(0), items.max(0)
        self.low, self.high = (np.minimum(self.low, low), np.maximum(self.high, high)) if self._count else (low, high)
        self._count += len(items)

    @property
    def differ(self) -> bool:
        """Whether two items differ."""
        return bool((self.low < self.high).any())


def _copy(array: Array, target: Path, dtype: np.dtype[Any], name: str) -> Extremes:
    """Write a .npy file of `dtype`; return the extremes of what was written. Raises DataError."""
    block = max(1, _BLOCK_BYTES // (math.prod(array.shape[1:]) * array.dtype.itemsize))
    extremes = Extremes(name)
    with ArrayWriter(target, dtype, array.shape) as file:
        for start in range(0, len(array), block):
            with np.errstate(over="ignore", invalid="ignore"):  # such a value becomes inf, and is refused
                items = array[start : start + block].astype(dtype)
            extremes.add(items)
            file.append(items)
    return extremes
