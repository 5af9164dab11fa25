"""The layouts that arrays in files may have, by kind of event: their shapes, their checks, and how they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import DataError, DataTooLarge
from model.event_kinds.images import CHANNELS, IMAGES
from model.event_kinds.kind import EventKind
from model.event_kinds.vectors import VECTORS
from model.intake.limits import ReadLimits, require_side

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_MAX_TOLD = 10
"""The largest number of columns that one error names."""


class Layout(ABC):
    """One way in which events lie in an array, whose first axis counts the events."""

    kind: EventKind
    told: str
    """The layout as errors and documents write it."""
    dtype: np.dtype[Any] = np.dtype(np.float32)
    """The dtype of the array that is stored."""

    @abstractmethod
    def fits(self, shape: Shape, dtype: np.dtype[Any]) -> bool:
        """Whether an array of that shape and dtype has this layout."""

    @abstractmethod
    def require_shape(self, name: str, shape: Shape, limits: ReadLimits) -> None:
        """Check the shape, before any data are read. Raises DataError, DataTooLarge."""

    @abstractmethod
    def require_range(self, name: str, low: Array, high: Array) -> None:
        """Check the least and the greatest value of every coordinate. Raises DataError."""

    def stored_shape(self, shape: Shape) -> Shape:
        """Return the shape in which an array of that shape is stored."""
        return shape

    def event_shape(self, stored_shape: Shape) -> Shape:
        """Return the shape of one event in an array that is stored."""
        return stored_shape[1:]


class Rows(Layout):
    """The layout of vectors: each row is one."""

    kind = VECTORS
    told = "(N, D) rows"

    def fits(self, shape: Shape, dtype: np.dtype[Any]) -> bool:  # noqa: ARG002
        """An array of two axes holds vectors, one in each row."""
        return len(shape) == 2

    def require_shape(self, name: str, shape: Shape, limits: ReadLimits) -> None:
        """Check that there are columns, and not too many. Raises DataError, DataTooLarge."""
        if shape[1] < 1:
            raise DataError(f"{name} has rows of no columns; expected at least one")
        if shape[1] > limits.max_columns:
            raise DataTooLarge(f"{name} has {shape[1]:,} columns; expected at most {limits.max_columns:,}")

    def require_range(self, name: str, low: Array, high: Array) -> None:
        """Check that no column is constant beside others, since each is divided by its spread. Raises DataError."""
        with np.errstate(over="ignore"):
            spread = high - low
        if 0 < len(constant := np.flatnonzero(spread == 0)) < len(spread):
            told = "a constant column" if len(constant) == 1 else f"{len(constant)} constant columns"
            columns = ", ".join(str(1 + column) for column in constant[:_MAX_TOLD]) + (
                ", …" if len(constant) > _MAX_TOLD else ""
            )
            raise DataError(
                f"{name} has {told}: column {columns} (from 1, labels aside); a density cannot be put on it. Remove it"
            )
        if not np.isfinite(spread).all():
            column = 1 + int(np.argmin(np.isfinite(spread)))
            raise DataError(
                f"{name} spreads beyond 32-bit numbers in column {column} (from 1, labels aside); rescale it"
            )


class ByteImages(Layout):
    """The layout of images whose pixels are bytes, as files hold them; grey images may have no axis of channels."""

    kind = IMAGES
    told = "(N, H, W[, C]) uint8 images"
    dtype = np.dtype(np.uint8)

    def fits(self, shape: Shape, dtype: np.dtype[Any]) -> bool:
        """An array of bytes with three or four axes holds such images."""
        return dtype == np.uint8 and len(shape) in (3, 4)

    def require_shape(self, name: str, shape: Shape, limits: ReadLimits) -> None:
        """Check the number of channels, and the sides against the limits. Raises DataError, DataTooLarge."""
        _, height, width, channels = (*shape, 1)[:4]
        _require_picture(name, shape, channels, "(N, H, W, C) of uint8", height, width, limits)

    def require_range(self, name: str, low: Array, high: Array) -> None:
        """Every byte is a valid pixel, so that nothing is checked."""

    def stored_shape(self, shape: Shape) -> Shape:
        """Return (N, H, W, C)."""
        return (*shape, 1) if len(shape) == 3 else shape

    def event_shape(self, stored_shape: Shape) -> Shape:
        """Return the shape (C, H, W) of one event."""
        _, height, width, channels = stored_shape
        return channels, height, width


class FloatImages(Layout):
    """The layout of images whose values are numbers in [−1, 1] already."""

    kind = IMAGES
    told = "(N, C, H, W) float images"

    def fits(self, shape: Shape, dtype: np.dtype[Any]) -> bool:
        """An array of four axes whose numbers are not bytes holds such images."""
        return dtype != np.uint8 and len(shape) == 4

    def require_shape(self, name: str, shape: Shape, limits: ReadLimits) -> None:
        """Check the number of channels, and the sides against the limits. Raises DataError, DataTooLarge."""
        _, channels, height, width = shape
        _require_picture(name, shape, channels, "(N, C, H, W) of floats", height, width, limits)

    def require_range(self, name: str, low: Array, high: Array) -> None:
        """Check that values are from −1 to 1. Raises DataError."""
        if (largest := max(-low.min(), high.max())) > 1:
            raise DataError(f"{name} holds float images up to ±{largest:g}; expected values from −1 to 1, or uint8")


LAYOUTS: tuple[Layout, ...] = (Rows(), ByteImages(), FloatImages())


def layout_of(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Layout:
    """Return the layout of an array of that shape and dtype. Raises DataError if it has none of the known ones."""
    for layout in LAYOUTS:
        if layout.fits(tuple(shape), dtype):
            return layout
    *others, last = (layout.told for layout in LAYOUTS)
    raise DataError(f"{name} has shape {tuple(shape)}; expected {', '.join(others)} or {last}")


def _require_picture(
    name: str, shape: Shape, channels: int, told: str, height: int, width: int, limits: ReadLimits
) -> None:
    if channels not in CHANNELS:
        raise DataError(f"{name} has shape {shape}, {channels} channels as {told}; expected 1, 3 or 4. Move the axis")
    require_side(f"an image of {name}", width, height, limits)
