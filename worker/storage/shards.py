"""Where the samples of a bulk job lie: `.npy` shards in order and, written last, a manifest of them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.storage.artifacts import Artifacts, job_prefix

_NPY = "application/x-npy"


def shards_prefix(job_id: str) -> str:
    """Of everything a bulk job makes."""
    return f"{job_prefix(job_id)}shards/"


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"{index:05d}.npy"


def put_shard(artifacts: Artifacts, job_id: str, index: int, npy: bytes) -> None:
    """Whole or not at all."""
    artifacts.put_bytes(f"{shards_prefix(job_id)}{shard_name(index)}", npy, _NPY)


def get_shard(artifacts: Artifacts, job_id: str, index: int) -> bytes:
    """Raises ArtifactMissing."""
    return artifacts.get_bytes(f"{shards_prefix(job_id)}{shard_name(index)}")


def list_shards(artifacts: Artifacts, job_id: str) -> set[int]:
    """Indices of those that are there."""
    names = (Path(key) for key, _, _ in artifacts.list_keys(shards_prefix(job_id)))
    return {int(name.stem) for name in names if name.suffix == ".npy" and name.stem.isdecimal()}


def put_manifest(artifacts: Artifacts, job_id: str, manifest: dict[str, Any]) -> None:
    """Its presence says that every shard is there."""
    artifacts.put_json(f"{shards_prefix(job_id)}manifest.json", manifest)


def get_manifest(artifacts: Artifacts, job_id: str) -> dict[str, Any]:
    """Raises ArtifactMissing until the job has ended well."""
    manifest: dict[str, Any] = artifacts.get_json(f"{shards_prefix(job_id)}manifest.json")
    return manifest
