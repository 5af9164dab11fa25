"""Pixels, which are bytes 0…255 in files and pictures and numbers in [−1, 1] everywhere else.

Images are (C, H, W), as networks take them; pictures are (H, W, C), as files hold them. This module imports neither
torch nor matplotlib.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

BIN_WIDTH = 1 / 127.5
"""The distance between neighbouring bytes in [−1, 1]."""
_HALF_RANGE = np.float32(127.5)
_GAP = 1
"""The pixels between neighbours in a sheet, before it is magnified."""
_GAP_GREY = 128


def from_bytes(pixels: ByteArray) -> FloatArray:
    """Map bytes v in 0…255 to v/127.5 − 1 in [−1, 1], as a new array."""
    values = np.ascontiguousarray(pixels, dtype=np.float32)
    values /= _HALF_RANGE  # in place: datasets fill much of the memory
    values -= 1
    return values


def to_bytes(images: FloatArray) -> ByteArray:
    """Map [−1, 1] to bytes 0…255, rounded; values outside are clipped."""
    rounded: FloatArray = np.rint((images + 1) * _HALF_RANGE)
    return rounded.clip(0, 255).astype(np.uint8)


def picture(image: FloatArray) -> ByteArray:
    """Return one image (C, H, W) as a picture (H, W, C)."""
    return np.moveaxis(to_bytes(image), 0, -1)


def sheet(images: FloatArray, num_columns: int | None = None) -> ByteArray:
    """Lay images (N, C, H, W) out row by row as one picture (H, W, C).

    Without `num_columns` the grid is as near to a square as N allows. Gaps and missing places are mid-grey.
    """
    count, channels, height, width = images.shape
    num_columns = num_columns or math.ceil(math.sqrt(count))
    num_rows = math.ceil(count / num_columns)
    step_y, step_x = height + _GAP, width + _GAP
    pixels = np.full((num_rows * step_y - _GAP, num_columns * step_x - _GAP, channels), _GAP_GREY, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        top, left = row * step_y, column * step_x
        pixels[top : top + height, left : left + width] = picture(image)
    return pixels


def encode_png(picture: ByteArray, *, scale: int = 1, optimize: bool = False) -> bytes:
    """Encode a picture (H, W, 1, 3 or 4) as a PNG that is grey, RGB or RGB with alpha.

    Every pixel is magnified to `scale` × `scale`. `optimize` spends time on a smaller file, for pictures that are
    stored.
    """
    magnified = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    packed = io.BytesIO()
    image = Image.fromarray(magnified[..., 0] if magnified.shape[-1] == 1 else magnified)
    image.save(packed, "png", optimize=optimize)
    return packed.getvalue()
