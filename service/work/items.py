"""Items that a client sends to be scored, read into one float32 array (N, *event).

Items that cannot be scored are a Problem 422 that says what was expected.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from model.event_kinds.pixels import FloatArray, from_bytes
from model.event_kinds.registry import kind_of
from service.http.errors import Problem, field_problem
from service.settings import MAX_ITEMS
from service.work.images import is_image

_FORMATS = ("PNG", "JPEG")
_NPY_MAGIC = b"\x93NUMPY"


def from_lists(x: list[Any], event_shape: Sequence[int]) -> FloatArray:
    """Read nested lists of numbers into an array. Raises Problem."""
    location = ["body", "x"]
    try:
        array = np.array(x)
    except (ValueError, OverflowError):  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise field_problem(
            location, f"these are not nested lists of numbers of one length; expected {_expected(event_shape)}"
        )
    return _checked(array, event_shape, location)


def from_files(files: Sequence[tuple[str, bytes]], event_shape: Sequence[int]) -> FloatArray:
    """Read image files with one item each, or one .npy file with all items. Raises Problem."""
    if not files:
        raise field_problem(["body", "files"], "there is no file; send images (PNG, JPEG), or one .npy")
    if len(files) == 1 and (files[0][1].startswith(_NPY_MAGIC) or files[0][0].lower().endswith(".npy")):
        return _from_npy(files[0][1], event_shape)
    if len(files) > MAX_ITEMS:
        raise _too_many(len(files), ["body", "files"])
    if not is_image(event_shape):
        raise field_problem(
            ["body", "files"],
            f"this model scores {kind_of(event_shape).name} that no image file holds; send one .npy of "
            f"{_expected(event_shape)}, or JSON",
        )
    return np.stack([_from_image(name, data, event_shape) for name, data in files])


def to_npy(array: FloatArray) -> bytes:
    """Pack the items into the .npy bytes that travel to a sampler."""
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=False)
    return packed.getvalue()


def _from_npy(data: bytes, event_shape: Sequence[int]) -> FloatArray:
    location = ["body", "files"]
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError):  # MemoryError, when the header promises too much
        array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise field_problem(
            location,
            f"the file is not a plain .npy array of numbers (nothing is unpickled); expected {_expected(event_shape)}",
        )
    if array.dtype == np.uint8 and is_image(event_shape):
        array = from_bytes(array)
    return _checked(array, event_shape, location)


def _checked(array: npt.NDArray[Any], event_shape: Sequence[int], location: Sequence[str]) -> FloatArray:
    if array.ndim == 0 or array.shape[1:] != tuple(event_shape) or len(array) == 0:
        raise field_problem(location, f"the shape is {array.shape}; expected {_expected(event_shape)}")
    if len(array) > MAX_ITEMS:
        raise _too_many(len(array), location)
    with np.errstate(over="ignore"):  # such a number becomes inf, which is refused below
        values = array.astype(np.float32)
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        raise field_problem(
            [*location, int(np.argmin(finite))], "a value is not a finite float32; remove the item, or fill the value"
        )
    return values


def _from_image(name: str, data: bytes, event_shape: Sequence[int]) -> FloatArray:
    """Read an image file into (C, H, W). Raises Problem."""
    channels, height, width = event_shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are refused below before anything is unpacked
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.size != (width, height):
            raise _refused(name, f"is {image.width}×{image.height} pixels", event_shape)
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            raise _refused(name, f"has pixels of type {image.mode}", event_shape)
        pixels = np.asarray(image.convert("RGBA" if channels == 4 else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise _refused(name, "is no image that can be read", event_shape) from None
    if channels == 1:
        if (pixels != pixels[..., :1]).any():
            raise _refused(name, "is in colour", event_shape)
        pixels = pixels[..., :1]
    return from_bytes(np.moveaxis(pixels, -1, 0))


def _refused(name: str, what: str, event_shape: Sequence[int]) -> Problem:
    channels, height, width = event_shape
    kind = {1: "grey", 3: "colour", 4: "colour with alpha"}[channels]
    return field_problem(
        ["body", "files", name[:100]], f"{what}; expected 8-bit PNG or JPEG in {kind} of {width}×{height} pixels"
    )


def _too_many(count: int, location: Sequence[str]) -> Problem:
    return field_problem(
        location, f"there are {count} items; expected at most {MAX_ITEMS}. Send them in several requests"
    )


def _expected(event_shape: Sequence[int]) -> str:
    return f"shape (N, {', '.join(map(str, event_shape))}) with N from 1 to {MAX_ITEMS}"
