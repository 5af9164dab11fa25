"""Datasets in buckets that the settings allow: `s3://bucket/prefix`, a file or a folder of images."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from model.errors import DataError, DataTooLarge
from model.intake.framing import ImageSize
from model.intake.images import IMAGE_SUFFIXES
from model.intake.labels import refuse_label_column
from model.intake.limits import ReadLimits, Summary, shortened
from model.intake.normalize import FORMATS, LOCATIONS, normalize, store_image_files
from worker.datasets.cache import DatasetCache
from worker.settings import Settings
from worker.storage.bucket import ArtifactMissing, Bucket

SCHEME = "s3://"
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<path>[^/].*)", re.DOTALL)
_DOWNLOADS = 8
_READING = "with labels"
"""What is read of the objects; another text leaves behind what older versions have cached."""


@dataclass(frozen=True)
class _Object:
    key: str
    size_bytes: int
    written_at: str


def require_prefix(name: str, settings: Settings, own: Bucket) -> None:
    """Check a prefix. Raises DataError unless the bucket is allowed and there is something to train on."""
    bucket, path = _parse(name, settings)
    _chosen(name, _listing(name, own.other(bucket), path, settings.read_limits))


def fetch_prefix(
    name: str,
    settings: Settings,
    own: Bucket,
    cache: DatasetCache,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> Path:
    """The array of a file or folder of images, from the cache while nothing below the prefix has changed.

    Raises DataError naming the object, StorageUnavailable.
    """
    bucket_name, path = _parse(name, settings)
    bucket, limits = own.other(bucket_name), settings.read_limits
    chosen = _chosen(name, _listing(name, bucket, path, limits))
    asked = (_READING, bucket_name, chosen, limits, image_size, *([] if label_column is None else [label_column]))
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()
    return cache.fetch(digest, lambda target: _store(bucket, chosen, target, name, limits, image_size, label_column))


def _parse(name: str, settings: Settings) -> tuple[str, str]:
    """The bucket and the path of a name `s3://…`. Raises DataError."""
    found = _URL.fullmatch(name)
    if found is None or not name.isprintable():
        raise DataError(f"dataset is {shortened(name)!r}; expected s3://bucket/path of a file or a folder of images")
    allowed = [one.strip() for one in settings.dataset_buckets.split(",") if one.strip()]
    if found["bucket"] not in allowed:
        told = ", ".join(allowed) or "none"
        raise DataError(
            f"bucket {found['bucket']} is not open to datasets; allowed are: {told} (RECOVERY_DATASET_BUCKETS)"
        )
    return found["bucket"], found["path"].rstrip("/")


def _listing(name: str, bucket: Bucket, path: str, limits: ReadLimits) -> list[_Object]:
    """The object of that key, or all below that folder."""
    found: list[_Object] = []
    try:
        bucket.ping()
        for key, size_bytes, written_at in bucket.list_keys(path):
            if key == path or key.startswith(f"{path}/"):
                found.append(_Object(key, size_bytes, written_at.isoformat()))
            if len(found) > limits.max_members:
                raise DataTooLarge(f"{name} holds more than {limits.max_members:,} objects; name a smaller folder")
    except ArtifactMissing:
        raise DataError(f"there is no bucket {bucket.bucket}, though the settings allow it") from None
    exact = [one for one in found if one.key == path]
    return exact or found


def _chosen(name: str, found: Sequence[_Object]) -> list[_Object]:
    """One file of a known format, or all images. Raises DataError when there is neither."""
    images = [one for one in found if _suffix(one) in IMAGE_SUFFIXES]
    files = [one for one in found if _suffix(one) in FORMATS]
    if images and not files:
        return sorted(images, key=lambda one: one.key)
    if len(files) == 1 and not images:
        return files
    told = f"{len(images)} images and {len(files)} other datasets" if found else "nothing"
    raise DataError(f"{shortened(name)} holds {told}; expected {LOCATIONS}: only images, or one file")


def _suffix(one: _Object) -> str:
    return PurePosixPath(one.key).suffix.lower()


def _store(
    bucket: Bucket,
    chosen: Sequence[_Object],
    target: Path,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None,
    label_column: str | None,
) -> Summary:
    total_bytes = sum(one.size_bytes for one in chosen)
    if total_bytes > limits.max_array_bytes:
        raise DataTooLarge(f"{name} has {total_bytes:,} bytes; expected at most {limits.max_array_bytes:,}")
    with tempfile.TemporaryDirectory(prefix="objects-", dir=target.parent) as directory:
        paths = [Path(directory) / f"{index}{_suffix(one)}" for index, one in enumerate(chosen)]
        keys = [one.key for one in chosen]
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(bucket.download_file, keys, paths))
        if _suffix(chosen[0]) in FORMATS:
            file_name = PurePosixPath(keys[0]).name
            return normalize(
                paths[0], target, name=file_name, limits=limits, image_size=image_size, label_column=label_column
            )
        refuse_label_column(name, label_column)
        read_fn: Callable[[int], bytes] = lambda index: paths[index].read_bytes()  # noqa: E731
        return store_image_files(keys, read_fn, target, name=name, limits=limits, image_size=image_size)
