"""Arrays to bytes: PNG, grids, zip archives, .npy. Pillow and numpy; images are (C, H, W) float32 in [−1, 1]."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

_CHANNELS = (1, 3, 4)
"""grey, RGB, RGB with alpha"""
_GRID_GAP = 1
"""pixels of the image between neighbours, magnified with it"""
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""the earliest a zip can hold; a fixed time makes equal samples equal bytes"""


def is_image(event_shape: Sequence[int]) -> bool:
    """Whether events of this shape can be shown: (C, H, W) with 1, 3 or 4 channels."""
    return len(event_shape) == 3 and event_shape[0] in _CHANNELS


def to_bytes(images: FloatArray) -> ByteArray:
    """[−1, 1] -> 0…255, rounded; what lies outside is cut."""
    rounded: FloatArray = np.rint((images + 1) * np.float32(127.5))
    return rounded.clip(0, 255).astype(np.uint8)


def encode_png(image: FloatArray, *, scale: int = 1) -> bytes:
    """One (C, H, W) image as PNG, every pixel `scale` × `scale`."""
    return _png(np.moveaxis(to_bytes(image), 0, -1), scale)


def encode_grid(images: FloatArray, *, scale: int = 1, num_columns: int | None = None) -> bytes:
    """(N, C, H, W) as one PNG, row by row; by default as near to a square as N allows."""
    return _png(grid(to_bytes(images), num_columns or math.ceil(math.sqrt(len(images)))), scale)


def grid(images: ByteArray, num_columns: int) -> ByteArray:
    """(N, C, H, W) -> (rows·H + gaps, columns·W + gaps, C); gaps and missing places are mid-grey."""
    count, channels, height, width = images.shape
    num_rows = math.ceil(count / num_columns)
    step_y, step_x = height + _GRID_GAP, width + _GRID_GAP
    sheet = np.full((num_rows * step_y - _GRID_GAP, num_columns * step_x - _GRID_GAP, channels), 128, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        top, left = row * step_y, column * step_x
        sheet[top : top + height, left : left + width] = np.moveaxis(image, 0, -1)
    return sheet


def encode_zip(folders: Mapping[str, FloatArray], manifest: Mapping[str, Any], *, scale: int = 1) -> bytes:
    """A zip of FOLDER/000.png, FOLDER/001.png … and manifest.json, which also lists the files."""
    images = {
        f"{folder}{index:03d}.png": image for folder, stack in folders.items() for index, image in enumerate(stack)
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for name, image in images.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), encode_png(image, scale=scale))
        text = json.dumps({**manifest, "files": list(images)}, indent=2) + "\n"
        archive.writestr(zipfile.ZipInfo("manifest.json", _ZIP_EPOCH), text)
    return packed.getvalue()


def encode_npy(array: FloatArray) -> bytes:
    """The array as a .npy file, float32."""
    packed = io.BytesIO()
    np.save(packed, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return packed.getvalue()


def _png(pixels: ByteArray, scale: int) -> bytes:
    """(H, W, C) bytes as PNG."""
    magnified = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    packed = io.BytesIO()
    Image.fromarray(magnified[..., 0] if magnified.shape[-1] == 1 else magnified).save(packed, "png")
    return packed.getvalue()
