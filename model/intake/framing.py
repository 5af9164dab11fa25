"""Brings images of any size to one size: crops the middle to the wanted proportions, then resizes it. Without torch.

Source: DRL's release (`datasets.py`). It takes the largest centred square of an LSUN image, and rows 20 to 197 of the
218 × 178 of CelebA, which is the same; then `tf.image.resize` bilinearly with antialiasing, as Pillow's BILINEAR does.
Pixels are rounded to bytes here, which the release does not do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.errors import DataError
from model.event_kinds.images import IMAGES
from model.intake.limits import ReadLimits, Summary, require_bytes
from model.intake.writer import ArrayWriter

ImageSize = tuple[int, int]
"""The (height, width) of images, in pixels."""

Pixel = TypeVar("Pixel", np.uint8, np.float32)


def framed(image: npt.NDArray[Pixel], size: ImageSize) -> npt.NDArray[Pixel]:
    """Crop an image (H, W, C) to the largest centred part with the proportions of `size`, and resize it: (*size, C)."""
    rows, columns = crop(image.shape[0], image.shape[1], size)
    cropped = image[rows, columns]
    if cropped.shape[:2] == size:
        return cropped
    # Channels are resized one by one, because Pillow would multiply the others by a fourth one as if it were opacity.
    channels = [_resized(cropped[..., channel], size) for channel in range(cropped.shape[2])]
    return np.stack(channels, axis=-1)


def frame_stored(path: Path, summary: Summary, size: ImageSize, *, name: str, limits: ReadLimits) -> Summary:
    """Bring the images of a validated .npy file to `size`, and replace the file.

    Raises DataError if it holds vectors, DataTooLarge.
    """
    require_images(name, summary.kind == IMAGES.name)
    channels, *found = summary.event_shape
    if tuple(found) == size:
        return summary
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    is_bytes = images.dtype == np.uint8  # (N, H, W, C); floats are (N, C, H, W)
    shape = (len(images), *size, channels) if is_bytes else (len(images), channels, *size)
    require_bytes(name, shape, images.itemsize, limits)
    framed_path = path.with_name(f"{path.name}.framed")
    with ArrayWriter(framed_path, images.dtype, shape) as file:
        for image in images:
            file.append(framed(image, size) if is_bytes else np.moveaxis(framed(np.moveaxis(image, 0, 2), size), 2, 0))
    framed_path.replace(path)
    return replace(summary, event_shape=(channels, *size))


def require_images(name: str, are_images: bool) -> None:
    """Refuse an image size for data that are no images. Raises DataError."""
    if not are_images:
        raise DataError(f"{name} holds rows of numbers; image_size is for images. Leave it out")


def crop(height: int, width: int, size: ImageSize) -> tuple[slice, slice]:
    """Return the (rows, columns) of the largest centred part of an image that has the proportions of `size`."""
    wanted_height, wanted_width = size
    if height * wanted_width >= width * wanted_height:  # too tall, or just right
        kept_height, kept_width = max(1, round(width * wanted_height / wanted_width)), width
    else:
        kept_height, kept_width = height, max(1, round(height * wanted_width / wanted_height))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return slice(top, top + kept_height), slice(left, left + kept_width)


def _resized(channel: npt.NDArray[Pixel], size: ImageSize) -> npt.NDArray[Pixel]:
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
