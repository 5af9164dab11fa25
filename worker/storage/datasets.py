"""Uploaded datasets in storage: one validated array each, with its labels if it has some, committed by its manifest.

    datasets/{dataset_id}/data.npy (or data.npz)   datasets/{dataset_id}/manifest.json

The manifest is written last and removed first: without one there is no dataset, whatever else lies below its id. What a
client called its file is in the manifest only, never in a key.
"""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.event_kinds.registry import KindName
from model.intake.framing import ImageSize
from model.intake.limits import ClassCount, Summary
from worker.ids import ULID_PATTERN, checked_id, new_id
from worker.storage.bucket import ArtifactDamaged, ArtifactError, ArtifactMissing, Bucket, sha256_of

_ROOT = "datasets/"
_MANIFEST, _DATA, _LABELLED_DATA = "manifest.json", "data.npy", "data.npz"
_VERSION: Literal[2] = 2
"""Version 1 did not look for labels."""
_ID = re.compile(ULID_PATTERN)
_ABANDONED = timedelta(days=1)
"""An upload to storage that has no manifest for so long has lost its process."""

log = structlog.get_logger(__name__)


class StoredDataset(BaseModel):
    """A manifest: what was uploaded, and the array it became."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1, 2] = 1
    id: str
    name: str | None
    kind: KindName
    count: int
    event_shape: tuple[int, ...] = Field(description="(C, H, W) or (D,)")
    file_name: str = Field(description="What the client called its file; for people")
    sha256: str = Field(description="Of the uploaded file")
    size_bytes: int = Field(description="Of the uploaded file")
    data_sha256: str
    data_size_bytes: int
    image_size: tuple[int, int] | None = Field(None, description="(height, width) that its images were brought to")
    label_column: str | None = Field(None, description="Column or array that the client named for the labels")
    labels: tuple[ClassCount, ...] = Field((), description="Classes in natural order; none without labels")
    notes: tuple[str, ...] = Field((), description="What a person should know of how the file was read")
    created_at: datetime

    @property
    def summary(self) -> Summary:
        """What the array holds."""
        return Summary(
            kind=self.kind, count=self.count, event_shape=self.event_shape, labels=self.labels, notes=self.notes
        )

    @property
    def data_key(self) -> str:
        """The key of the array."""
        return dataset_prefix(self.id) + (_LABELLED_DATA if self.labels else _DATA)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file from a client: what it called it, and what came."""

    name: str | None
    file_name: str
    sha256: str
    size_bytes: int
    image_size: ImageSize | None = None
    label_column: str | None = None


def dataset_prefix(dataset_id: str) -> str:
    """The folder of a dataset. Raises InvalidId."""
    return f"{_ROOT}{checked_id(dataset_id)}/"


def is_dataset_id(text: str) -> bool:
    """Whether `text` has the form of an uploaded dataset's id."""
    return bool(_ID.fullmatch(text))


class DatasetStore:
    """The datasets of a bucket. Every method raises StorageUnavailable when storage is away or refuses us."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def list(self) -> list[StoredDataset]:
        """All datasets, newest first; damaged manifests are left out."""
        ids = sorted(filter(is_dataset_id, self._bucket.list_folders(_ROOT)), reverse=True)
        with ThreadPoolExecutor(8) as pool:
            return [found for found in pool.map(self._find, ids) if found is not None]

    def get(self, dataset_id: str) -> StoredDataset:
        """One dataset. Raises InvalidId, ArtifactMissing, ArtifactDamaged."""
        key = dataset_prefix(dataset_id) + _MANIFEST
        try:
            return StoredDataset.model_validate(self._bucket.get_json(key))
        except ValidationError as error:
            raise ArtifactDamaged(f"{key} is no manifest of a dataset") from error

    def find_upload(self, upload: Upload) -> StoredDataset | None:
        """The oldest dataset that came from the same file and was read in the same way."""
        for found in reversed(self.list()):
            if (found.version, found.sha256, found.image_size, found.label_column) == (
                _VERSION,
                upload.sha256,
                upload.image_size,
                upload.label_column,
            ):
                return found
        return None

    def add(self, data: Path, summary: Summary, upload: Upload) -> StoredDataset:
        """Store a validated array; nothing is left behind when that fails."""
        dataset = StoredDataset(
            version=_VERSION,
            id=new_id(),
            name=upload.name,
            kind=summary.kind,
            count=summary.count,
            event_shape=summary.event_shape,
            file_name=upload.file_name,
            sha256=upload.sha256,
            size_bytes=upload.size_bytes,
            image_size=upload.image_size,
            label_column=upload.label_column,
            labels=summary.labels,
            notes=summary.notes,
            data_sha256=sha256_of(data),
            data_size_bytes=data.stat().st_size,
            created_at=datetime.now(UTC),
        )
        prefix = dataset_prefix(dataset.id)
        try:
            self._bucket.upload_file(data, dataset.data_key)
            self._bucket.put_json(prefix + _MANIFEST, dataset.model_dump(mode="json"))
        except ArtifactError:
            with contextlib.suppress(ArtifactError):  # then `remove_abandoned` does
                self.delete(dataset.id)
            raise
        return dataset

    def delete(self, dataset_id: str) -> None:
        """Remove a dataset; nothing happens when there is none."""
        prefix = dataset_prefix(dataset_id)
        for name in (_MANIFEST, _DATA, _LABELLED_DATA):
            self._bucket.delete(prefix + name)

    def fetch(self, dataset_id: str, path: Path) -> StoredDataset:
        """Download the array to `path`. Raises ArtifactMissing, and ArtifactDamaged when its sha256 is another."""
        dataset = self.get(dataset_id)
        self._bucket.download_file(dataset.data_key, path)
        if sha256_of(path) != dataset.data_sha256:
            raise ArtifactDamaged(f"{dataset.data_key} does not have the sha256 its manifest names")
        return dataset

    def remove_abandoned(self) -> None:
        """Remove what processes that died between array and manifest left behind."""
        written = {key: at for key, _, at in self._bucket.list_keys(_ROOT)}
        for key, at in written.items():
            folder = key.rpartition("/")[0]
            if f"{folder}/{_MANIFEST}" not in written and datetime.now(UTC) - at > _ABANDONED:
                log.warning("abandoned_upload_removed", key=key)
                self._bucket.delete(key)

    def _find(self, dataset_id: str) -> StoredDataset | None:
        try:
            return self.get(dataset_id)
        except ArtifactMissing:  # half uploaded, or deleted a moment ago
            return None
        except ArtifactDamaged as error:
            log.warning("dataset_skipped", error=str(error))
            return None
