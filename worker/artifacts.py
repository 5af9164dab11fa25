"""S3 keys, and reads and writes of what must outlive every process: job records, checkpoints, sample grids.

    jobs/{job_id}/job.json   jobs/{job_id}/events.jsonl   jobs/{job_id}/samples/{step}.png
    models/{model_id}/model.json
    models/{model_id}/checkpoints/{step}/{sha256[:16]}.{name}   models/{model_id}/checkpoints/{step}/manifest.json
    models/{model_id}/calibration/{step}.json

A checkpoint is committed by its manifest, written last and only if there is none (If-None-Match): no manifest, no
checkpoint. Its files are named by their content, so that a late upload by a worker that lost its lease, or the rest of
an interrupted one, can never damage a committed checkpoint. Ids are checked by a pattern; user text is never a key.

This is the only file that knows boto3; its exceptions leave as ArtifactMissing or StorageUnavailable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.ids import ULID_PATTERN, checked_id
from worker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MANIFEST = "manifest.json"
_FILE_NAME = re.compile(r"[a-z0-9_]+\.[a-z]+\Z")
_ID = re.compile(ULID_PATTERN)
_MISSING = {"404", "NoSuchKey", "NotFound"}
_NOT_ABSENT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class ArtifactError(Exception):
    """Root of the errors of this file."""


class ArtifactMissing(ArtifactError):
    """Storage answered, and what was asked for is not there."""


class ArtifactDamaged(ArtifactError):
    """What storage holds differs from its manifest."""


class StorageUnavailable(ArtifactError):
    """Storage did not answer, or refused us; trying again later may help."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint."""

    model_id: str
    step: int
    size_bytes: int
    committed_at: datetime


def model_prefix(model_id: str) -> str:
    """The folder of a model. Raises InvalidId."""
    return f"models/{checked_id(model_id)}/"


def checkpoint_prefix(model_id: str, step: int) -> str:
    """The folder of one step's checkpoint. Raises InvalidId, ValueError."""
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    return f"{model_prefix(model_id)}checkpoints/{step:d}/"


def calibration_prefix(model_id: str) -> str:
    """The folder of a model's calibrations. Raises InvalidId."""
    return f"{model_prefix(model_id)}calibration/"


def calibration_key(model_id: str, step: int) -> str:
    """The calibration of one step's checkpoint. Raises InvalidId."""
    return f"{calibration_prefix(model_id)}{step:d}.json"


def job_prefix(job_id: str) -> str:
    """The folder of a job. Raises InvalidId."""
    return f"jobs/{checked_id(job_id)}/"


def sample_key(job_id: str, step: int) -> str:
    """The sample grid of one step. Raises InvalidId."""
    return f"{job_prefix(job_id)}samples/{step:d}.png"


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise ArtifactMissing(f"{what} is not in storage") from None
        raise StorageUnavailable(f"storage refused {what}: {code}") from error
    except (BotoCoreError, Boto3Error) as error:
        # Not the message itself: it may quote the endpoint with credentials.
        raise StorageUnavailable(f"storage did not answer for {what}: {type(error).__name__}") from error


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def connect_s3(settings: Settings) -> S3Client:
    """A boto3 client for these settings; safe to share among threads."""
    own_store = settings.s3_endpoint_url is not None
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key.get_secret_value() if settings.s3_access_key else None,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        config=Config(
            connect_timeout=3,
            read_timeout=20,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=16,
            # Since 1.36 boto3 sends checksums that stores other than AWS may refuse.
            request_checksum_calculation="when_required" if own_store else "when_supported",
            response_checksum_validation="when_required" if own_store else "when_supported",
            s3={"addressing_style": "path" if own_store else "auto"},
        ),
    )


class Artifacts:
    """One bucket. Every method raises StorageUnavailable when storage is away or refuses us."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self.bucket = bucket

    @classmethod
    def connect(cls, settings: Settings) -> Artifacts:
        """The bucket these settings name; nothing is sent yet."""
        return cls(connect_s3(settings), settings.s3_bucket)

    # Plain objects

    def ping(self) -> None:
        """Raises ArtifactMissing when the bucket does not exist."""
        with _translated(f"bucket {self.bucket}"):
            self._client.head_bucket(Bucket=self.bucket)

    def ensure_bucket(self) -> None:
        """Create the bucket unless it exists."""
        try:
            self.ping()
        except ArtifactMissing:
            with _translated(f"bucket {self.bucket}"):
                self._client.create_bucket(Bucket=self.bucket)

    def put_bytes(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write an object, whole or not at all."""
        with _translated(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)

    def put_bytes_if_absent(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Write an object unless there is one; of several writers exactly one gets True."""
        with _translated(key):
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ContentType=content_type, IfNoneMatch="*"
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code", "") in _NOT_ABSENT:
                    return False
                raise
        return True

    def put_json(self, key: str, value: object) -> None:
        """Write an object as JSON."""
        self.put_bytes(key, _packed(value), "application/json")

    def get_bytes(self, key: str) -> bytes:
        """An object's content. Raises ArtifactMissing."""
        with _translated(key):
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def get_json(self, key: str) -> Any:
        """An object's JSON value. Raises ArtifactMissing, ArtifactDamaged."""
        try:
            return json.loads(self.get_bytes(key))
        except ValueError as error:
            raise ArtifactDamaged(f"{key} is not JSON") from error

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            with _translated(key):
                self._client.head_object(Bucket=self.bucket, Key=key)
        except ArtifactMissing:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        with _translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def list_keys(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """(key, size in bytes, time of writing) of all objects below a prefix."""
        with _translated(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield item["Key"], item["Size"], item["LastModified"]

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Names directly below a prefix that ends in '/'."""
        with _translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                for item in page.get("CommonPrefixes", []):
                    yield item["Prefix"].removeprefix(prefix).rstrip("/")

    # Jobs

    def list_jobs(self) -> list[str]:
        """Ids of all jobs ever stored, oldest first; a store that keeps empty folders also names deleted ones."""
        return sorted(name for name in self.list_folders("jobs/") if _ID.match(name))

    def put_sample_grid(self, job_id: str, step: int, png: bytes) -> str:
        """Write the grid of one step; returns its key."""
        key = sample_key(job_id, step)
        self.put_bytes(key, png, "image/png")
        return key

    def list_sample_grids(self, job_id: str) -> list[int]:
        """Steps that have a grid, in order."""
        names = (Path(key).stem for key, _, _ in self.list_keys(f"{job_prefix(job_id)}samples/"))
        return sorted(int(name) for name in names if name.isdecimal())

    def get_sample_grid(self, job_id: str, step: int | None = None) -> bytes:
        """A PNG; the newest when `step` is None. Raises ArtifactMissing."""
        if step is None:
            steps = self.list_sample_grids(job_id)
            if not steps:
                raise ArtifactMissing(f"job {job_id} has no sample grid yet")
            step = steps[-1]
        return self.get_bytes(sample_key(job_id, step))

    # Models

    def put_model(self, model_id: str, description: Mapping[str, Any]) -> None:
        """Write model.json: name, dataset, config, job_id, created_at."""
        self.put_json(f"{model_prefix(model_id)}model.json", dict(description))

    def get_model(self, model_id: str) -> dict[str, Any]:
        """model.json. Raises ArtifactMissing."""
        description = self.get_json(f"{model_prefix(model_id)}model.json")
        if not isinstance(description, dict):
            raise ArtifactDamaged(f"model.json of {model_id} is not an object")
        return description

    def list_models(self) -> list[str]:
        """Ids of all models, newest first."""
        ids = sorted((name for name in self.list_folders("models/") if _ID.match(name)), reverse=True)
        # SeaweedFS keeps the folders of deleted models for a while.
        with ThreadPoolExecutor(8) as pool:
            there = pool.map(lambda model_id: self.exists(f"{model_prefix(model_id)}model.json"), ids)
        return [model_id for model_id, is_there in zip(ids, there, strict=True) if is_there]

    def delete_model(self, model_id: str) -> None:
        """Remove a model and its checkpoints: manifests first, so that no checkpoint is ever seen half."""
        keys = [key for key, _, _ in self.list_keys(model_prefix(model_id))]
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
            self.delete(key)

    # Calibrations

    def put_calibration(self, model_id: str, step: int, calibration: Mapping[str, Any]) -> None:
        """Write the calibration of a checkpoint, whole or not at all; a later one takes its place."""
        self.put_json(calibration_key(model_id, step), dict(calibration))

    def get_calibration(self, model_id: str, step: int) -> dict[str, Any]:
        """The calibration of a checkpoint. Raises ArtifactMissing, ArtifactDamaged."""
        calibration = self.get_json(calibration_key(model_id, step))
        if not isinstance(calibration, dict):
            raise ArtifactDamaged(f"the calibration of {model_id}@{step} is not an object")
        return calibration

    def list_calibrations(self, model_id: str) -> list[int]:
        """Steps of the calibrated checkpoints, in order."""
        names = (Path(key).stem for key, _, _ in self.list_keys(calibration_prefix(model_id)))
        return sorted(int(name) for name in names if name.isdecimal())

    # Checkpoints

    def commit_checkpoint(
        self,
        model_id: str,
        step: int,
        directory: Path,
        *,
        extra: Mapping[str, Any] | None = None,
        confirm_fn: Callable[[], None] = lambda: None,
    ) -> bool:
        """Upload the files of a directory and commit them; False when this step was committed before, by anyone.

        Nothing is visible to readers until the manifest is there; `confirm_fn`, called right before it is written, may
        raise to keep it from being. Repeating a call that was interrupted is safe.
        """
        prefix = checkpoint_prefix(model_id, step)
        if self.exists(prefix + MANIFEST):
            return False
        files = {path.name: self._upload(prefix, path) for path in sorted(directory.iterdir())}
        manifest = {
            "version": 1,
            "model_id": model_id,
            "step": step,
            "created_at": datetime.now(UTC).isoformat(),
            "files": files,
            **(extra or {}),
        }
        confirm_fn()
        return self.put_bytes_if_absent(prefix + MANIFEST, _packed(manifest), "application/json")

    def _upload(self, prefix: str, path: Path) -> dict[str, Any]:
        if not _FILE_NAME.match(path.name):
            raise ValueError(f"a checkpoint may not hold a file named {path.name[:60]!r}")
        digest = sha256_of(path)
        key = f"{prefix}{digest[:16]}.{path.name}"
        with _translated(key):
            self._client.upload_file(str(path), self.bucket, key)
        return {"key": key, "sha256": digest, "size_bytes": path.stat().st_size}

    def list_checkpoints(self, model_id: str) -> list[Checkpoint]:
        """Committed checkpoints in order of their step; empty for an unknown model."""
        prefix = f"{model_prefix(model_id)}checkpoints/"
        sizes: dict[int, int] = {}
        committed: dict[int, datetime] = {}
        for key, size_bytes, written_at in self.list_keys(prefix):
            step_text, _, name = key.removeprefix(prefix).partition("/")
            if not step_text.isdecimal():
                continue
            step = int(step_text)
            sizes[step] = sizes.get(step, 0) + size_bytes
            if name == MANIFEST:
                committed[step] = written_at
        return [
            Checkpoint(model_id=model_id, step=step, size_bytes=sizes[step], committed_at=committed[step])
            for step in sorted(committed)
        ]

    def newest_step(self, model_id: str) -> int | None:
        """Step of the newest committed checkpoint, or None."""
        checkpoints = self.list_checkpoints(model_id)
        return checkpoints[-1].step if checkpoints else None

    def get_manifest(self, model_id: str, step: int) -> dict[str, Any]:
        """What a committed checkpoint consists of. Raises ArtifactMissing."""
        manifest: dict[str, Any] = self.get_json(checkpoint_prefix(model_id, step) + MANIFEST)
        return manifest

    def fetch_checkpoint(
        self, model_id: str, step: int | None, directory: Path, *, names: Collection[str] | None = None
    ) -> int:
        """Download a checkpoint (None: the newest) as the files of `directory`, which appears whole or not at all.

        Returns its step. Only the files in `names` when given. Raises ArtifactMissing, and ArtifactDamaged when a
        file's sha256 is not the manifest's.
        """
        if step is None:
            step = self.newest_step(model_id)
        if step is None:
            raise ArtifactMissing(f"model {model_id} has no checkpoint yet")
        files = self.get_manifest(model_id, step)["files"]
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory.parent))
        try:
            for name, entry in files.items():
                if names is None or name in names:
                    self._download(entry, partial, name)
            partial.replace(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return step

    def _download(self, entry: Mapping[str, Any], directory: Path, name: str) -> None:
        if not _FILE_NAME.match(name):
            raise ArtifactDamaged(f"a manifest names the file {name[:60]!r}")
        path = directory / name
        with _translated(entry["key"]):
            self._client.download_file(self.bucket, entry["key"], str(path))
        if sha256_of(path) != entry["sha256"]:
            raise ArtifactDamaged(f"{entry['key']} does not have the sha256 its manifest names")


def _packed(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1).encode()
