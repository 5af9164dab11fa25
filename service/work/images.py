"""Samples as the bytes of an answer: PNGs, grids, zip archives, .npy. Images are (C, H, W) float32 in [−1, 1]."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.event_kinds import pixels
from model.event_kinds.pixels import FloatArray
from model.event_kinds.registry import KINDS

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold; since it is fixed, equal samples make equal bytes."""


def is_image(event_shape: Sequence[int]) -> bool:
    """Say whether an event of this shape can be answered as a picture: (C, H, W) with 1, 3 or 4 channels."""
    return any(kind.has_picture(event_shape) for kind in KINDS)


def encode_png(image: FloatArray, *, scale: int = 1) -> bytes:
    """Encode one image (C, H, W) as PNG, every pixel magnified to `scale` × `scale`."""
    return pixels.encode_png(pixels.picture(image), scale=scale)


def encode_grid(images: FloatArray, *, scale: int = 1, num_columns: int | None = None) -> bytes:
    """Encode images (N, C, H, W) as one PNG, row by row; by default the grid is as near to a square as N allows."""
    return pixels.encode_png(pixels.sheet(images, num_columns), scale=scale)


def by_label(count: int, num_labels: int) -> list[int]:
    """Return the order in which samples that take `num_labels` labels in turn lie label by label; 0 is no label."""
    return sorted(range(count), key=lambda index: index % max(1, num_labels))


def columns_by_label(count: int, num_labels: int) -> int | None:
    """Return the columns of a grid near a square whose rows have samples of one label each; None if there is none."""
    if num_labels == 0 or count % num_labels or num_labels == 1:
        return None
    of_each, square = count // num_labels, math.isqrt(count - 1) + 1
    columns = max(width for width in range(1, square + 1) if of_each % width == 0)
    return columns if 3 * columns >= square else None


def encode_zip(folders: Mapping[str, FloatArray], manifest: Mapping[str, Any], *, scale: int = 1) -> bytes:
    """Pack FOLDER/000.png, FOLDER/001.png … and manifest.json, which also lists the files, into a zip."""
    images = {
        f"{folder}{index:03d}.png": image for folder, stack in folders.items() for index, image in enumerate(stack)
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
        for name, image in images.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), encode_png(image, scale=scale))
        text = json.dumps({**manifest, "files": list(images)}, indent=2) + "\n"
        archive.writestr(zipfile.ZipInfo("manifest.json", _ZIP_EPOCH), text)
    return packed.getvalue()


def encode_npy(array: FloatArray) -> bytes:
    """Encode an array as a .npy file of float32."""
    packed = io.BytesIO()
    np.save(packed, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return packed.getvalue()
