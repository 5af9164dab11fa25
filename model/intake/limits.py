"""How much a dataset may hold, what was found in it, and where the two are compared. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import DataError, DataTooLarge
from model.event_kinds.registry import KindName

MIN_SIDE = 4
"""Pixels; what is smaller is no picture, and halving it leaves a network nothing to look at."""
MAX_SIDE = 2048
"""Pixels, unless the limits say otherwise."""


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """What is accepted of a file or folder; beyond it DataTooLarge is raised."""

    max_array_bytes: int = 2 * 2**30
    """Of the array that a dataset becomes, and of all that is unpacked on the way."""
    max_members: int = 200_000
    """Of a zip, whatever they are, or images of a folder."""
    max_ratio: int = 200
    """Bytes that a compressed byte may become, once a member is larger than a megabyte."""
    max_side: int = MAX_SIDE
    """Pixels of an image in either direction."""
    max_items: int = 10_000_000
    max_columns: int = 4096


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a dataset turned out to be."""

    kind: KindName
    count: int
    event_shape: tuple[int, ...]
    """(C, H, W) of images, (D,) of vectors"""


def require_count(name: str, count: int, limits: ReadLimits) -> None:
    """Raises DataError for fewer than two items, DataTooLarge for too many."""
    if count < 2:
        raise DataError(f"{name} holds {count} items; expected at least 2, one to train on and one held out")
    if count > limits.max_items:
        raise DataTooLarge(f"{name} holds {count:,} items; expected at most {limits.max_items:,}")


def require_side(name: str, width: int, height: int, limits: ReadLimits) -> None:
    """Raises DataError for an image that is too small, DataTooLarge for one that is too large."""
    size = f"{name} is {width}×{height} pixels; expected {MIN_SIDE} to {limits.max_side} in each direction"
    if max(width, height) > limits.max_side:
        raise DataTooLarge(f"{size}. Resize or crop it first")
    if min(width, height) < MIN_SIDE:
        raise DataError(size)


def require_bytes(name: str, shape: Sequence[int], itemsize: int, limits: ReadLimits) -> None:
    """Raises DataTooLarge when an array of that shape would be larger than allowed."""
    size_bytes = math.prod(shape) * itemsize
    if size_bytes > limits.max_array_bytes:
        raise DataTooLarge(
            f"{name} would be {size_bytes:,} bytes as an array of shape {tuple(shape)}; "
            f"expected at most {limits.max_array_bytes:,}"
        )


def shortened(text: str) -> str:
    """A name from outside as it can stand in a sentence: no line breaks, no controls, not long."""
    plain = "".join(character if character.isprintable() else "�" for character in text)
    return plain if len(plain) <= 100 else f"{plain[:60]}…{plain[-39:]}"
