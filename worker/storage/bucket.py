"""One S3 bucket: plain objects, whole or not at all.

This is the only file that knows boto3; its exceptions leave as ArtifactMissing or StorageUnavailable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MISSING = {"404", "NoSuchKey", "NotFound"}
_DELETIONS_AT_ONCE = 8
_CONDITION_FAILED = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class ArtifactError(Exception):
    """Root of the errors of this file."""


class ArtifactMissing(ArtifactError):
    """Storage answered, and what was asked for is not there."""


class ArtifactDamaged(ArtifactError):
    """What storage holds differs from its manifest."""


class StorageUnavailable(ArtifactError):
    """Storage did not answer, or refused us; trying again later may help."""


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


class Bucket:
    """One bucket. Every method raises StorageUnavailable when storage is away or refuses us."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self.bucket = bucket

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """The bucket these settings name; nothing is sent yet."""
        return cls(connect_s3(settings), settings.s3_bucket)

    def close(self) -> None:
        """Close the connections; for a client that a process does not keep to its end."""
        self._client.close()

    def other(self, bucket: str) -> Bucket:
        """Another bucket of the same store."""
        return Bucket(self._client, bucket)

    def ping(self) -> None:
        """Ask whether the bucket is there. Raises ArtifactMissing when it does not exist."""
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
                if error.response.get("Error", {}).get("Code", "") in _CONDITION_FAILED:
                    return False
                raise
        return True

    def put_json(self, key: str, value: object) -> None:
        """Write an object as JSON."""
        self.put_bytes(key, packed(value), "application/json")

    def change_json(self, key: str, change_fn: Callable[[Any], object]) -> Any:
        """Replace an object by what `change_fn` makes of its JSON value, and return that.

        Nobody's change is lost: it is made again while others write in between. Raises ArtifactMissing, also when the
        object is deleted meanwhile, and ArtifactDamaged.
        """
        while True:
            with _translated(key):
                found = self._client.get_object(Bucket=self.bucket, Key=key)
                content = found["Body"].read()
            changed = change_fn(_parsed(key, content))
            if self._put_if_match(key, packed(changed), found["ETag"]):
                return changed

    def _put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        with _translated(key):
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ContentType="application/json", IfMatch=etag
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code", "") in _CONDITION_FAILED:
                    return False
                raise
        return True

    def get_bytes(self, key: str) -> bytes:
        """An object's content. Raises ArtifactMissing."""
        with _translated(key):
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def get_json(self, key: str) -> Any:
        """An object's JSON value. Raises ArtifactMissing, ArtifactDamaged."""
        return _parsed(key, self.get_bytes(key))

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

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove objects, several at a time and in no order; those that are not there do no harm."""
        with ThreadPoolExecutor(_DELETIONS_AT_ONCE) as pool:
            list(pool.map(self.delete, keys))

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

    def upload_file(self, path: Path, key: str) -> None:
        """Write a file as an object, in parts if it is large; nothing is visible until all of it is there."""
        with _translated(key):
            self._client.upload_file(str(path), self.bucket, key)

    def download_file(self, key: str, path: Path) -> None:
        """Write an object to a file. Raises ArtifactMissing."""
        with _translated(key):
            self._client.download_file(self.bucket, key, str(path))


def _parsed(key: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ArtifactDamaged(f"{key} is not JSON") from error


def packed(value: object) -> bytes:
    """A value as JSON that people can read too. It refuses what JSON has not: NaN and the infinities."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1).encode()
