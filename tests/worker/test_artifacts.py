from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.servers import BUCKET
from worker.ids import InvalidId, new_id
from worker.settings import Settings
from worker.storage.artifacts import (
    ArtifactDamaged,
    ArtifactMissing,
    Artifacts,
    StorageUnavailable,
    checkpoint_prefix,
    job_prefix,
    model_prefix,
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "ema.safetensors").write_bytes(b"weights" * 1000)
    (directory / "config.json").write_text("{}")
    return directory


def test_a_checkpoint_comes_back_as_it_was_committed(s3: Artifacts, files: Path, tmp_path: Path) -> None:
    model_id = new_id()
    assert s3.commit_checkpoint(model_id, 10, files)
    assert s3.fetch_checkpoint(model_id, None, tmp_path / "back") == 10
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in files.iterdir()
    }
    s3.fetch_checkpoint(model_id, 10, tmp_path / "part", names=["config.json"])
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["config.json"]


def test_a_half_uploaded_checkpoint_is_never_offered(s3: Artifacts, files: Path, tmp_path: Path) -> None:
    model_id = new_id()
    s3.commit_checkpoint(model_id, 10, files)
    s3.commit_checkpoint(model_id, 20, files)
    s3.delete(f"{checkpoint_prefix(model_id, 20)}manifest.json")  # as if the worker died just before writing it
    assert [checkpoint.step for checkpoint in s3.list_checkpoints(model_id)] == [10]
    assert s3.newest_step(model_id) == 10
    with pytest.raises(ArtifactMissing):
        s3.fetch_checkpoint(model_id, 20, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert s3.commit_checkpoint(model_id, 20, files)
    assert s3.newest_step(model_id) == 20


def test_steps_are_ordered_as_numbers(s3: Artifacts, files: Path) -> None:
    model_id = new_id()
    for step in (100, 9, 1000):
        s3.commit_checkpoint(model_id, step, files)
    assert [checkpoint.step for checkpoint in s3.list_checkpoints(model_id)] == [9, 100, 1000]


def test_of_many_writers_of_one_step_one_commits_and_its_files_stay(s3: Artifacts, tmp_path: Path) -> None:
    model_id = new_id()
    won: list[int] = []

    def commit(writer: int) -> None:
        directory = tmp_path / f"writer{writer}"
        directory.mkdir()
        (directory / "ema.safetensors").write_bytes(b"%d" % writer)
        if s3.commit_checkpoint(model_id, 10, directory):
            won.append(writer)

    threads = [threading.Thread(target=commit, args=[writer]) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    s3.fetch_checkpoint(model_id, 10, tmp_path / "back")
    assert (tmp_path / "back" / "ema.safetensors").read_bytes() == b"%d" % won[0]


def test_a_damaged_file_is_refused_and_leaves_nothing(s3: Artifacts, files: Path, tmp_path: Path) -> None:
    model_id = new_id()
    s3.commit_checkpoint(model_id, 10, files)
    s3.put_bytes(s3.get_manifest(model_id, 10)["files"]["ema.safetensors"]["key"], b"something else")
    with pytest.raises(ArtifactDamaged, match="sha256"):
        s3.fetch_checkpoint(model_id, 10, tmp_path / "back")
    assert list(tmp_path.iterdir()) == [files]


def test_a_deleted_model_is_gone(s3: Artifacts, files: Path) -> None:
    kept, deleted = new_id(), new_id()
    for model_id in (kept, deleted):
        s3.put_model(model_id, {"name": "a name"})
        s3.commit_checkpoint(model_id, 1, files)
    assert s3.list_models() == [deleted, kept]
    s3.delete_folder(model_prefix(deleted))
    assert s3.list_models() == [kept]
    assert s3.get_model(kept) == {"name": "a name"}
    with pytest.raises(ArtifactMissing):
        s3.get_model(deleted)


def test_the_newest_sample_grid_is_found_by_its_step(s3: Artifacts) -> None:
    job_id = new_id()
    with pytest.raises(ArtifactMissing, match="no sample grid"):
        s3.get_sample_grid(job_id)
    for step in (9, 100):
        s3.put_sample_grid(job_id, step, b"%d" % step)
    assert s3.list_sample_grids(job_id) == [9, 100]
    assert s3.get_sample_grid(job_id) == b"100"
    assert s3.get_sample_grid(job_id, 9) == b"9"


@pytest.mark.parametrize(
    "text", ["", "x", "../../secrets", "01ARZ3NDEKTSV4RRFFQ69G5FAV/..", "01ARZ3NDEKTSV4RRFFQ69G5FAV\n"]
)
def test_nothing_but_an_id_becomes_part_of_a_key(text: str) -> None:
    for key in (model_prefix, job_prefix):
        with pytest.raises(InvalidId):
            key(text)


def test_storage_that_is_away_and_a_refused_secret_are_said_so_without_secrets(settings: Settings) -> None:
    away = Artifacts.connect(settings.model_copy(update={"s3_endpoint_url": "http://user:hunter2@127.0.0.1:9"}))
    with pytest.raises(StorageUnavailable) as raised:
        away.get_bytes("key")
    assert "hunter2" not in str(raised.value)
    refused = Artifacts.connect(settings.model_copy(update={"s3_access_key": settings.s3_secret_key}))
    with pytest.raises(StorageUnavailable, match="refused"):
        refused.put_bytes("key", b"")


def test_a_missing_bucket_is_made_once_asked_for(settings: Settings) -> None:
    artifacts = Artifacts.connect(settings.model_copy(update={"s3_bucket": f"{BUCKET}-new"}))
    with pytest.raises(ArtifactMissing):
        artifacts.ping()
    artifacts.ensure_bucket()
    artifacts.ensure_bucket()
    artifacts.ping()
