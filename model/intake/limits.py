"""How much a dataset may hold, what was found in it, and the checks that compare the two. Without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import DataError, DataTooLarge
from model.event_kinds.registry import KindName

MIN_SIDE = 4
"""The least side of an image, in pixels, because a network halves it more than once."""
MAX_SIDE = 2048
"""The greatest side of an image, in pixels, unless the limits say otherwise."""


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """How much of a file or folder is accepted; DataTooLarge is raised for more."""

    max_array_bytes: int = 2 * 2**30
    """The largest array that a dataset may become, in bytes, and the most bytes that are unpacked on the way."""
    max_members: int = 200_000
    """The largest number of members of a zip, whatever they are, or of images in a folder."""
    max_ratio: int = 200
    """The most bytes that a compressed byte may become, once a member is larger than a megabyte."""
    max_side: int = MAX_SIDE
    """The largest height and the largest width of an image, in pixels."""
    max_items: int = 10_000_000
    """The largest number of events."""
    max_columns: int = 4096
    """The largest number of columns of vectors."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """A class of a labelled dataset, and how many of its events are of it."""

    name: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a dataset holds: the kind, the number and the shape of its events, and their classes."""

    kind: KindName
    count: int
    event_shape: tuple[int, ...]
    """(C, H, W) for images, (D,) for vectors"""
    labels: tuple[ClassCount, ...] = ()
    """The classes in natural order, "2" before "10"; none if the dataset has no labels."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the data were read, a sentence each."""


def require_count(name: str, count: int, limits: ReadLimits) -> None:
    """Check the number of items. Raises DataError for fewer than two, DataTooLarge for too many."""
    if count < 2:
        raise DataError(f"{name} holds {count} items; expected at least 2, one to train on and one held out")
    if count > limits.max_items:
        raise DataTooLarge(f"{name} holds {count:,} items; expected at most {limits.max_items:,}")


def require_variation(name: str, count: int, *, differ: bool) -> None:
    """Refuse a dataset whose items do not `differ`. Raises DataError."""
    if not differ:
        raise DataError(f"{name} holds the same item {count:,} times; expected items that differ. Add others")


def require_side(name: str, width: int, height: int, limits: ReadLimits) -> None:
    """Check the size of an image. Raises DataError if it is too small, DataTooLarge if it is too large."""
    size = f"{name} is {width}×{height} pixels; expected {MIN_SIDE} to {limits.max_side} in each direction"
    if max(width, height) > limits.max_side:
        raise DataTooLarge(f"{size}. Resize or crop it first")
    if min(width, height) < MIN_SIDE:
        raise DataError(size)


def require_bytes(name: str, shape: Sequence[int], itemsize: int, limits: ReadLimits) -> None:
    """Check how large an array of that shape would be. Raises DataTooLarge."""
    size_bytes = math.prod(shape) * itemsize
    if size_bytes > limits.max_array_bytes:
        raise DataTooLarge(
            f"{name} would be {size_bytes:,} bytes as an array of shape {tuple(shape)}; "
            f"expected at most {limits.max_array_bytes:,}"
        )


def shortened(text: str) -> str:
    """Make a name from outside fit for a sentence: replace line breaks and control characters, and shorten it."""
    plain = "".join(character if character.isprintable() else "�" for character in text)
    return plain if len(plain) <= 100 else f"{plain[:60]}…{plain[-39:]}"
