"""The way of an uploaded dataset from the form to storage: it is spooled, hashed, checked and stored.

A dataset that is refused leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.datastructures import FormData, UploadFile

from model.intake.framing import ImageSize
from model.intake.limits import MAX_SIDE, MIN_SIDE, shortened
from model.intake.normalize import FORMATS, normalize
from service.http.errors import Problem, field_problem
from service.stores import Stores
from worker.storage.datasets import StoredDataset, Upload

MAX_NAME = 100
_FIELDS = {"file", "name", "image_size", "label_column"}
IMAGE_SIZE_PATTERN = r"[0-9]{1,4}(x[0-9]{1,4})?"
_PIECE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class UploadForm:
    """What a client asks: a file, its name for people, and how it is to be read."""

    file: UploadFile
    name: str | None
    image_size: ImageSize | None
    label_column: str | None


def read_form(form: FormData) -> UploadForm:
    """Read the fields of a form. Raises Problem 415 or 422."""
    if unknown := sorted(set(form) - _FIELDS):
        raise field_problem(
            ["body", shortened(unknown[0])],
            "unknown field; expected `file`, and `name`, `image_size` and `label_column` if you like",
        )
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        raise field_problem(["body", "file"], f"there is no file; expected one of {', '.join(FORMATS)} with its name")
    if Path(file.filename).suffix.lower() not in FORMATS:
        raise Problem(
            415,
            "unsupported-media-type",
            f"{shortened(file.filename)} ends in none of {', '.join(FORMATS)}; send a zip of images, an array or a CSV",
        )
    return UploadForm(
        file=file,
        name=_read_text(form, "name"),
        image_size=_read_image_size(form.getlist("image_size")),
        label_column=_read_text(form, "label_column"),
    )


def _read_text(form: FormData, field: str) -> str | None:
    given = form.getlist(field)
    if not given:
        return None
    text = given[0]
    if len(given) > 1 or not isinstance(text, str) or not 1 <= len(text) <= MAX_NAME or not text.isprintable():
        raise field_problem(["body", field], f"expected one text of 1 to {MAX_NAME} characters on one line")
    return text


def _read_image_size(given: list[UploadFile | str]) -> ImageSize | None:
    if not given:
        return None
    text = given[0]
    if len(given) == 1 and isinstance(text, str) and re.fullmatch(IMAGE_SIZE_PATTERN, text, re.ASCII):
        height, _, width = text.partition("x")
        size = int(height), int(width or height)
        if min(size) >= MIN_SIDE and max(size) <= MAX_SIDE:
            return size
    raise field_problem(
        ["body", "image_size"],
        f"expected one size, 64 or 48x64 (height x width), of {MIN_SIDE} to {MAX_SIDE} pixels in each direction",
    )


def store_upload(stores: Stores, form: UploadForm) -> tuple[StoredDataset, bool]:
    """Store an upload; return the dataset and whether it is new, since a file that is read the same is stored once.

    This takes processor time. Raises DataError, DataTooLarge, StorageUnavailable, Problem 507.
    """
    datasets = stores.datasets
    with room_on_disk(), tempfile.TemporaryDirectory(prefix="recovery-upload-") as directory:
        source, target = Path(directory) / "upload", Path(directory) / "data"
        received = _received(form.file.file, source, form.file.filename or "", form.name)
        upload = replace(received, image_size=form.image_size, label_column=form.label_column)
        if (existing := datasets.find_upload(upload)) is not None:
            return existing, False
        limits = stores.settings.read_limits
        summary = normalize(
            source,
            target,
            name=upload.file_name,
            limits=limits,
            image_size=upload.image_size,
            label_column=upload.label_column,
        )
        datasets.remove_abandoned()
        return datasets.add(target, summary, upload), True


def _received(file: IO[bytes], path: Path, file_name: str, name: str | None) -> Upload:
    digest = hashlib.sha256()
    with path.open("wb") as copy:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            copy.write(piece)
    base_name = PurePosixPath(file_name.replace("\\", "/")).name
    return Upload(name=name, file_name=shortened(base_name), sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


@contextlib.contextmanager
def room_on_disk() -> Iterator[None]:
    """Raise Problem 507 when the disk, or the part of it that this process may use, is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Problem(507, "insufficient-storage", "the server's disk is full; try again later, or send less") from None
