"""A folder of images as one zip, for an upload. Images are compressed already, so the zip stores them as they are."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from model.intake.images import IMAGE_SUFFIXES


@contextlib.contextmanager
def zipped(folder: Path) -> Iterator[BinaryIO]:
    """Yield an open temporary zip of a folder's images at any depth. Raises FileNotFoundError when there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in paths:
                archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
        file.seek(0)
        yield file
