"""Where the samples of a bulk job lie: `.npy` shards in order and, written last, a manifest of them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from worker.storage.artifacts import Artifacts, job_prefix

_NPY = "application/x-npy"


class Shard(BaseModel):
    """One file of samples."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_images: int


class Manifest(BaseModel):
    """What a bulk sampling made; images are uint8 pixels (N, C, H, W), anything else is float32 (N, *event)."""

    model_config = ConfigDict(frozen=True)

    model: str
    """id@step"""
    seed: int
    num_images: int
    event_shape: tuple[int, ...]
    num_steps: int | None
    """K, chain steps per level, where the job's spec named it"""
    start: str | None = None
    """where the chain of each level starts, where the job's spec named it"""
    noise_scale: float | None
    labels: tuple[Any, ...] = ()
    """what was asked of the samples' labels, which took them in turn: names of classes, or compositions of them"""
    guidance: float | None = None
    """of the labels"""
    gradient_evaluations: int
    """per sample"""
    shards: tuple[Shard, ...]


def shards_prefix(job_id: str) -> str:
    """The folder of everything that a bulk job makes."""
    return f"{job_prefix(job_id)}shards/"


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"{index:05d}.npy"


def put_shard(artifacts: Artifacts, job_id: str, index: int, npy: bytes) -> None:
    """Write a shard, whole or not at all."""
    artifacts.put_bytes(f"{shards_prefix(job_id)}{shard_name(index)}", npy, _NPY)


def get_shard(artifacts: Artifacts, job_id: str, index: int) -> bytes:
    """The content of a shard. Raises ArtifactMissing."""
    return artifacts.get_bytes(f"{shards_prefix(job_id)}{shard_name(index)}")


def list_shards(artifacts: Artifacts, job_id: str) -> set[int]:
    """The indices of the shards that are there."""
    names = (Path(key) for key, _, _ in artifacts.list_keys(shards_prefix(job_id)))
    return {int(name.stem) for name in names if name.suffix == ".npy" and name.stem.isdecimal()}


def put_manifest(artifacts: Artifacts, job_id: str, manifest: Manifest) -> None:
    """Store the manifest; its presence says that every shard is there."""
    artifacts.put_json(f"{shards_prefix(job_id)}manifest.json", manifest.model_dump(mode="json"))


def get_manifest(artifacts: Artifacts, job_id: str) -> Manifest:
    """The manifest of a bulk sampling. Raises ArtifactMissing until the job has ended well."""
    return Manifest.model_validate(artifacts.get_json(f"{shards_prefix(job_id)}manifest.json"))
