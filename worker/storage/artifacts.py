"""S3 keys, and reads and writes of what must outlive every process: job records, checkpoints, sample grids.

    jobs/{job_id}/job.json   jobs/{job_id}/events.jsonl   jobs/{job_id}/samples/{step}.png
    models/{model_id}/model.json
    models/{model_id}/checkpoints/{step}/{sha256[:16]}.{name}   models/{model_id}/checkpoints/{step}/manifest.json
    models/{model_id}/checkpoints/{step}/frontier.json
    models/{model_id}/calibration/{step}.json
    deletions/{what is to be deleted}      see worker/jobs/deletion.py

A checkpoint is committed by its manifest, written last and only if there is none (If-None-Match): no manifest, no
checkpoint. Its files are named by their content, so that a late upload by a worker that lost its lease, or the rest of
an interrupted one, can never damage a committed checkpoint. Ids are checked by a pattern; user text is never a key.

Plain objects are bucket.py; datasets are dataset_store.py.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.ids import ULID_PATTERN, checked_id
from worker.storage.bucket import (
    ArtifactDamaged,
    ArtifactError,
    ArtifactMissing,
    Bucket,
    StorageUnavailable,
    sha256_of,
)
from worker.storage.bucket import packed as _packed

# What the bucket raises is part of this interface.
__all__ = ["ArtifactDamaged", "ArtifactError", "ArtifactMissing", "Artifacts", "Checkpoint", "StorageUnavailable"]

MANIFEST = "manifest.json"
_FRONTIER = "frontier.json"
_HEADS = ("job.json", "model.json", MANIFEST)
_TOMBSTONES = "deletions/"
_FILE_NAME = re.compile(r"[a-z0-9_]+\.[a-z]+\Z")
_ID = re.compile(ULID_PATTERN)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint."""

    model_id: str
    step: int
    size_bytes: int
    committed_at: datetime
    has_frontier: bool = False
    """whether what its samples cost was measured (`Artifacts.get_frontier`)"""


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


def _tombstone_key(folder: str) -> str:
    # One level: stores that keep files and folders apart could not hold a tombstone below another.
    return _TOMBSTONES + folder.strip("/").replace("/", ".")


def _folder_of(tombstone: str) -> str:
    return tombstone.removeprefix(_TOMBSTONES).replace(".", "/") + "/"


class Artifacts(Bucket):
    """The service's own bucket. Every method raises StorageUnavailable when storage is away or refuses us."""

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

    def has_model(self, model_id: str) -> bool:
        """Whether there is such a model."""
        return self.exists(f"{model_prefix(model_id)}model.json")

    def list_models(self) -> list[str]:
        """Ids of all models, newest first."""
        ids = sorted((name for name in self.list_folders("models/") if _ID.match(name)), reverse=True)
        # SeaweedFS keeps the folders of deleted models for a while.
        with ThreadPoolExecutor(8) as pool:
            there = pool.map(self.has_model, ids)
        return [model_id for model_id, is_there in zip(ids, there, strict=True) if is_there]

    def change_model(self, model_id: str, changes: Mapping[str, Any]) -> None:
        """Set fields of model.json, leaving the others as they are. Raises ArtifactMissing."""
        self.change_json(f"{model_prefix(model_id)}model.json", lambda description: {**description, **changes})

    # Deletion

    def delete_folder(self, folder: str) -> None:
        """Remove everything below a folder; may be repeated.

        What makes a job, a model or a checkpoint one goes first (job.json, model.json, then manifests), so that nobody
        takes what is left for a whole.
        """
        keys = [key for key, _, _ in self.list_keys(folder)]
        heads = [key for name in _HEADS for key in keys if key.endswith(f"/{name}")]
        for key in heads:
            self.delete(key)
        self.delete_all(set(keys) - set(heads))

    def put_tombstone(self, folder: str) -> None:
        """Write down that a folder is to be deleted, where a wiped Redis does not reach."""
        self.put_bytes(_tombstone_key(folder), b"")

    def has_tombstone(self, folder: str) -> bool:
        """Whether the folder is to be deleted."""
        return self.exists(_tombstone_key(folder))

    def list_tombstones(self) -> list[str]:
        """The folders that are to be deleted, in order."""
        return sorted(_folder_of(key) for key, _, _ in self.list_keys(_TOMBSTONES))

    def delete_tombstone(self, folder: str) -> None:
        """The folder has been deleted."""
        self.delete(_tombstone_key(folder))

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

    # Frontiers: beside the files of their checkpoints, with which they go

    def put_frontier(self, model_id: str, step: int, frontier: Mapping[str, Any]) -> None:
        """Write the frontier of a checkpoint, whole or not at all; a later one takes its place."""
        self.put_json(checkpoint_prefix(model_id, step) + _FRONTIER, dict(frontier))

    def get_frontier(self, model_id: str, step: int) -> dict[str, Any]:
        """The frontier of a checkpoint. Raises ArtifactMissing, ArtifactDamaged."""
        frontier = self.get_json(checkpoint_prefix(model_id, step) + _FRONTIER)
        if not isinstance(frontier, dict):
            raise ArtifactDamaged(f"the frontier of {model_id}@{step} is not an object")
        return frontier

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
        if self.has_checkpoint(model_id, step):
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
        self.upload_file(path, key)
        return {"key": key, "sha256": digest, "size_bytes": path.stat().st_size}

    def list_checkpoints(self, model_id: str) -> list[Checkpoint]:
        """Committed checkpoints in order of their step; empty for an unknown model."""
        prefix = f"{model_prefix(model_id)}checkpoints/"
        sizes: dict[int, int] = {}
        committed: dict[int, datetime] = {}
        tuned: set[int] = set()
        for key, size_bytes, written_at in self.list_keys(prefix):
            step_text, _, name = key.removeprefix(prefix).partition("/")
            if not step_text.isdecimal():
                continue
            step = int(step_text)
            if name == _FRONTIER:
                tuned.add(step)
                continue
            sizes[step] = sizes.get(step, 0) + size_bytes
            if name == MANIFEST:
                committed[step] = written_at
        return [
            Checkpoint(
                model_id=model_id,
                step=step,
                size_bytes=sizes[step],
                committed_at=committed[step],
                has_frontier=step in tuned,
            )
            for step in sorted(committed)
        ]

    def has_checkpoint(self, model_id: str, step: int) -> bool:
        """Whether a checkpoint of that step is committed."""
        return self.exists(checkpoint_prefix(model_id, step) + MANIFEST)

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
        self.download_file(entry["key"], path)
        if sha256_of(path) != entry["sha256"]:
            raise ArtifactDamaged(f"{entry['key']} does not have the sha256 its manifest names")
