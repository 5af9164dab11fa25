"""Decodes image files into one array (N, H, W, C) of bytes.

The array is grey if all images are. They must be of one size, unless they are brought to one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.errors import DataError, DataTooLarge
from model.event_kinds.images import IMAGES
from model.intake.framing import ImageSize, framed
from model.intake.limits import (
    ReadLimits,
    Summary,
    require_bytes,
    require_count,
    require_side,
    require_variation,
    shortened,
)
from model.intake.writer import ArrayWriter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Formats are told by content, not by name. Without this list Pillow would start Ghostscript for a file that claims to
# be EPS.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_BLOCK = 256
"""The number of images that are converted at once."""

Pixels = npt.NDArray[np.uint8]


def store_images(
    names: Sequence[str],
    read_fn: Callable[[int], bytes],
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None = None,
) -> Summary:
    """Decode the images `read_fn(0)`, `read_fn(1)`, … into the .npy file `target`, one at a time.

    Each is brought to `image_size` if there is one; transparency is dropped. Raises DataError, naming the file that is
    not an image or is of another size, and DataTooLarge.
    """

    def image(index: int) -> Pixels:
        pixels = decode(names[index], read_fn(index), limits)
        return pixels if image_size is None else framed(pixels, image_size)

    if not names:
        raise DataError(f"{name} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    first = image(0)
    require_count(name, len(names), limits)
    require_bytes(name, (len(names), *first.shape), 1, limits)
    shape = (len(names), *first.shape)
    colours = target.with_name(f"{target.name}.colour")
    is_grey, differ = True, False
    with ArrayWriter(colours, np.uint8, shape) as file:
        for index, one in enumerate(names):
            pixels = image(index) if index else first
            _require_same_size(one, pixels, names[0], first)
            is_grey = is_grey and bool((pixels == pixels[..., :1]).all())
            differ = differ or bool((pixels != first).any())
            file.append(pixels)
    require_variation(name, len(names), differ=differ)
    if is_grey:
        _store_first_channel(colours, target)
        colours.unlink()
    else:
        colours.rename(target)
    height, width, _ = first.shape
    return Summary(kind=IMAGES.name, count=len(names), event_shape=(1 if is_grey else 3, height, width))


def decode(name: str, data: bytes, limits: ReadLimits) -> Pixels:
    """Decode one image file into pixels (H, W, 3). Raises DataError and DataTooLarge, which name it."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            require_side(shortened(name), image.width, image.height, limits)  # before anything is unpacked
            _require_plain(name, image)
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataTooLarge(
            f"{shortened(name)} promises more pixels than any picture; expected at most {limits.max_side} "
            "in each direction"
        ) from None
    except Exception as error:  # Pillow's decoders raise whatever hostile bytes lead them to; the file is named
        reason = str(error) or type(error).__name__
        if "BytesIO" in reason:  # the message quotes its argument, which means nothing to a person
            reason = f"it is none of {', '.join(_FORMATS)}"
        raise DataError(f"{shortened(name)} is not an image that can be read: {reason}") from error


def _require_plain(name: str, image: Image.Image) -> None:
    if image.mode not in _MODES:
        raise DataError(
            f"{shortened(name)} has pixels of type {image.mode}; expected 8 bits a channel. Convert it first"
        )
    if getattr(image, "is_animated", False):
        raise DataError(f"{shortened(name)} has several frames; expected one. Save them as images of their own")


def _require_same_size(name: str, image: Pixels, first_name: str, first: Pixels) -> None:
    if image.shape != first.shape:
        (height, width, _), (first_height, first_width, _) = image.shape, first.shape
        raise DataError(
            f"{shortened(name)} is {width}×{height}, {shortened(first_name)} is {first_width}×{first_height}; "
            "expected images of one size. Resize them first, or give an image_size to bring them to"
        )


def _store_first_channel(colours: Path, target: Path) -> None:
    pixels = np.load(colours, mmap_mode="r", allow_pickle=False)
    with ArrayWriter(target, np.uint8, (*pixels.shape[:3], 1)) as file:
        for start in range(0, len(pixels), _BLOCK):
            file.append(pixels[start : start + _BLOCK, ..., :1])
