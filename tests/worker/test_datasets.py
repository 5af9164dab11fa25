"""Where a worker finds data: uploads, allowed buckets, the hub's column formats; what it keeps and what it refuses."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.data.datasets import load
from model.errors import DataError, DataTooLarge
from model.intake.limits import Summary
from model.presets import EMOJI_FOLDER
from tests.servers import BUCKET
from tests.service.hostile_files import npy, picture, rows
from worker.datasets.cache import DatasetCache
from worker.datasets.names import fetch_dataset, require_dataset, unread_column
from worker.ids import InvalidId, new_id
from worker.settings import Settings
from worker.storage import datasets
from worker.storage.artifacts import Artifacts
from worker.storage.bucket import ArtifactDamaged, ArtifactMissing, Bucket, StorageUnavailable
from worker.storage.datasets import DatasetStore, StoredDataset, Upload

PICTURES = "recovery-test-pictures"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a bucket and a folder of datasets."""
    (tmp_path / "sets").mkdir()
    return settings.model_copy(
        update={"dataset_buckets": f"{PICTURES}, absent-bucket", "datasets_dir": tmp_path / "sets"}
    )


@pytest.fixture
def pictures(s3: Artifacts) -> Iterator[Bucket]:
    """A bucket beside the service's own, emptied."""
    bucket = s3.other(PICTURES)
    bucket.ensure_bucket()
    yield bucket
    for key, _, _ in bucket.list_keys(""):
        bucket.delete(key)


def add(s3: Bucket, path: Path) -> StoredDataset:
    """An uploaded dataset of twenty rows."""
    np.save(path, rows().astype(np.float32))
    summary = Summary(kind="vectors", count=20, event_shape=(2,))
    return DatasetStore(s3).add(path, summary, Upload(name=None, file_name="x.npy", sha256="0" * 64, size_bytes=1))


def array_of(name: str, settings: Settings, s3: Bucket) -> np.ndarray[Any, Any]:
    """What a training would read."""
    return np.asarray(np.load(fetch_dataset(name, settings, s3), allow_pickle=False))


def classes(location: str) -> dict[int, str]:
    """The class of every image of a fetched dataset, by the value of its first pixel."""
    dataset = load(location)
    assert dataset.labels is not None
    values = ((torch.cat([dataset.train[:], dataset.held_out[:]])[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    codes = torch.cat([dataset.labels.train, dataset.labels.held_out]).tolist()
    return {value: dataset.labels.names[code] for value, code in zip(values, codes, strict=True)}


def test_an_upload_is_fetched_once_and_found_again(s3: Artifacts, settings: Settings, tmp_path: Path) -> None:
    dataset = add(s3, tmp_path / "x.npy")
    first = fetch_dataset(dataset.id, settings, s3)
    s3.delete(f"datasets/{dataset.id}/data.npy")
    assert fetch_dataset(dataset.id, settings, s3) == first
    assert Path(first).name == f"{dataset.data_sha256}.npy"
    np.testing.assert_array_equal(np.load(first), rows().astype(np.float32))
    assert require_dataset(dataset.id, settings, s3) == Summary(kind="vectors", count=20, event_shape=(2,))


def test_a_manifest_of_the_version_before_is_an_unlabelled_dataset(
    s3: Artifacts, settings: Settings, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", rows().astype(np.float32))
    dataset_id, data = new_id(), (tmp_path / "x.npy").read_bytes()
    older = {
        "version": 1,
        "id": dataset_id,
        "name": None,
        "kind": "vectors",
        "count": 20,
        "event_shape": [2],
        "file_name": "x.npy",
        "sha256": "0" * 64,
        "size_bytes": 1,
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "data_size_bytes": len(data),
        "image_size": None,
        "created_at": "2026-11-24T12:00:00Z",
    }
    s3.put_bytes(f"datasets/{dataset_id}/data.npy", data)
    s3.put_json(f"datasets/{dataset_id}/manifest.json", older)
    assert require_dataset(dataset_id, settings, s3) == Summary(kind="vectors", count=20, event_shape=(2,))
    assert load(fetch_dataset(dataset_id, settings, s3)).labels is None


def test_a_damaged_upload_is_never_trained_on(s3: Artifacts, settings: Settings, tmp_path: Path) -> None:
    dataset = add(s3, tmp_path / "x.npy")
    s3.put_bytes(f"datasets/{dataset.id}/data.npy", npy(rows() + 1))
    with pytest.raises(ArtifactDamaged, match="sha256"):
        fetch_dataset(dataset.id, settings, s3)
    assert list((settings.spool_dir / "datasets").iterdir()) == []
    s3.put_bytes(f"datasets/{dataset.id}/manifest.json", b'{"id": 1}')
    with pytest.raises(ArtifactDamaged, match="manifest"):
        DatasetStore(s3).get(dataset.id)
    assert DatasetStore(s3).list() == []


def test_a_deleted_dataset_says_so(s3: Artifacts, settings: Settings, tmp_path: Path) -> None:
    dataset = add(s3, tmp_path / "x.npy")
    DatasetStore(s3).delete(dataset.id)
    for call in (fetch_dataset, require_dataset):
        with pytest.raises(DataError, match="deleted"):
            call(dataset.id, settings, s3)
    with pytest.raises(ArtifactMissing):
        DatasetStore(s3).get(dataset.id)
    for text in ("..", "../x", dataset.id.lower(), ""):
        with pytest.raises(InvalidId):
            DatasetStore(s3).delete(text)


def test_what_a_dead_process_left_goes_after_a_day(
    s3: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, abandoned = add(s3, tmp_path / "x.npy"), f"datasets/{new_id()}/data.npy"
    s3.put_bytes(abandoned, b"array")
    DatasetStore(s3).remove_abandoned()
    assert s3.exists(abandoned)
    monkeypatch.setattr(datasets, "datetime", _Tomorrow)
    DatasetStore(s3).remove_abandoned()
    assert not s3.exists(abandoned)
    assert DatasetStore(s3).get(kept.id) == kept


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz or UTC) + timedelta(days=2)


def test_the_cache_drops_what_was_used_least_recently(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path / "cache", max_bytes=25)

    def use(digest: str) -> Path:
        return cache.fetch(digest, lambda path: path.write_bytes(bytes(10)))

    for age, digest in enumerate(("c", "b", "a")):
        used = time.time() - 100 * (3 - age)
        os.utime(use(digest), (used, used)) if digest != "a" else use(digest)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.npy", "b.npy"]
    use("b")
    os.utime(tmp_path / "cache" / "a.npy", (1, 1))
    use("d")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["b.npy", "d.npy"]
    with pytest.raises(ZeroDivisionError):
        cache.fetch("e", lambda path: path.write_bytes(bytes(1 // 0)))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["b.npy", "d.npy"]


def test_a_prefix_of_images_in_an_allowed_bucket_is_a_dataset(
    s3: Artifacts, settings: Settings, pictures: Bucket
) -> None:
    for index, name in enumerate(("b.png", "a/c.png", "a/d.png")):
        pictures.put_bytes(f"sets/one/{name}", picture(10 * index))
    pictures.put_bytes("sets/one/readme.txt", b"hello")
    pictures.put_bytes("sets/one-more/x.png", picture(99))
    name = f"s3://{PICTURES}/sets/one/"
    assert require_dataset(name, settings, s3) is None
    assert array_of(name, settings, s3)[:, 0, 0, 0].tolist() == [10, 20, 0]
    first = fetch_dataset(name, settings, s3)
    assert fetch_dataset(f"s3://{PICTURES}/sets/one", settings, s3) == first
    pictures.put_bytes("sets/one/z.png", picture(70))
    assert array_of(name, settings, s3)[:, 0, 0, 0].tolist() == [10, 20, 0, 70]
    assert load(first).event_shape == (1, 8, 8)


def test_images_in_class_folders_of_a_bucket_are_labelled(s3: Artifacts, settings: Settings, pictures: Bucket) -> None:
    for index in range(6):
        pictures.put_bytes(f"sets/pets/{'dog' if index % 2 else 'cat'}/{index}.png", picture(index))
    location = fetch_dataset(f"s3://{PICTURES}/sets/pets", settings, s3)
    assert fetch_dataset(f"s3://{PICTURES}/sets/pets", settings, s3) == location
    assert (Path(location).suffix, classes(location)) == (
        ".npz",
        {0: "cat", 1: "dog", 2: "cat", 3: "dog", 4: "cat", 5: "dog"},
    )
    # Labels are part of what the cache's limit counts and removes.
    cache = DatasetCache(settings.spool_dir / "datasets", max_bytes=10)
    cache.fetch("other", lambda path: path.write_bytes(bytes(10)))
    assert [path.name for path in (settings.spool_dir / "datasets").iterdir()] == ["other.npy"]


def test_the_column_of_a_table_that_holds_classes_is_named(s3: Artifacts, settings: Settings, pictures: Bucket) -> None:
    """In a bucket, where it is read on the way, and in the folder of datasets, where loading reads it."""
    table = "height,kind,width\n" + "".join(f"{i}.5,{'ab'[i % 2]},{i * i}\n" for i in range(20))
    pictures.put_bytes("tables/kinds.csv", table.encode())
    assert settings.datasets_dir is not None
    settings.datasets_dir.mkdir(exist_ok=True)
    (settings.datasets_dir / "kinds.csv").write_text(table)
    for name in (f"s3://{PICTURES}/tables/kinds.csv", "kinds.csv"):
        location = fetch_dataset(name, settings, s3, label_column="kind")
        assert fetch_dataset(name, settings, s3, label_column="kind") == location
        dataset = load(location, label_column=unread_column(name, "kind"))
        assert dataset.labels is not None
        heights = dataset.space.decode(torch.cat([dataset.train[:], dataset.held_out[:]]))[:, 0]
        codes = torch.cat([dataset.labels.train, dataset.labels.held_out])
        assert dataset.labels.names == ("a", "b")
        assert (heights.round(decimals=1) - 0.5).round().int().remainder(2).tolist() == codes.tolist()
        require_dataset(name, settings, s3, "kind")
    with pytest.raises(DataError, match="no column 'colour'"):
        fetch_dataset(f"s3://{PICTURES}/tables/kinds.csv", settings, s3, label_column="colour")
    uploaded = add(s3, settings.datasets_dir / "rows.npy").id
    with pytest.raises(DataError, match="named when a dataset is uploaded; leave it out"):
        require_dataset(uploaded, settings, s3, "kind")


def test_a_file_in_an_allowed_bucket_is_a_dataset(s3: Artifacts, settings: Settings, pictures: Bucket) -> None:
    pictures.put_bytes("tables/rows.npy", npy(rows()))
    for name in (f"s3://{PICTURES}/tables/rows.npy", f"s3://{PICTURES}/tables"):
        np.testing.assert_array_equal(array_of(name, settings, s3), rows().astype(np.float32))


def test_images_of_several_sizes_in_a_bucket_become_one_size(
    s3: Artifacts, settings: Settings, pictures: Bucket
) -> None:
    for index in range(3):
        pictures.put_bytes(f"sizes/{index}.png", picture(10 * index, (8 + index, 9)))
    name = f"s3://{PICTURES}/sizes"
    with pytest.raises(DataError, match="image_size"):
        fetch_dataset(name, settings, s3)
    paths = [fetch_dataset(name, settings, s3, size) for size in ((6, 6), (6, 5), (6, 6))]
    assert paths[0] == paths[2] != paths[1]
    assert load(paths[0], image_size=(6, 6)).event_shape == (1, 6, 6)
    assert np.load(paths[1])[:, 0, 0, 0].tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"s3://{BUCKET}/jobs", "not open to datasets"),
        ("s3://absent-bucket/x", "no bucket absent-bucket"),
        (f"s3://{PICTURES}/nothing", "holds nothing"),
        (f"s3://{PICTURES}/mixed", "1 images and 1 other"),
        (f"s3://{PICTURES}/", "expected s3://"),
        (f"s3://{PICTURES}", "expected s3://"),
        ("s3://UPPER/x", "expected s3://"),
    ],
)
def test_other_prefixes_are_refused_before_a_job_exists(
    name: str, words: str, s3: Artifacts, settings: Settings, pictures: Bucket
) -> None:
    pictures.put_bytes("mixed/a.png", picture())
    pictures.put_bytes("mixed/a.csv", b"1,2\n3,4\n")
    for call in (require_dataset, fetch_dataset):
        with pytest.raises(DataError, match=words):
            call(name, settings, s3)


def test_the_same_checks_hold_in_a_bucket(s3: Artifacts, settings: Settings, pictures: Bucket) -> None:
    pictures.put_bytes("bad/a.png", picture())
    pictures.put_bytes("bad/b.png", b"hello")
    pictures.put_bytes("many/rows.npy", npy(rows(100)))
    with pytest.raises(DataError, match=r"bad/b\.png is not an image"):
        fetch_dataset(f"s3://{PICTURES}/bad", settings, s3)
    small = settings.model_copy(update={"dataset_max_array_bytes": 1024})
    with pytest.raises(DataTooLarge, match="1,024"):
        fetch_dataset(f"s3://{PICTURES}/many/rows.npy", small, s3)
    assert list((settings.spool_dir / "datasets").iterdir()) == []
    away = Bucket(Artifacts.connect(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))._client, "x")
    with pytest.raises(StorageUnavailable):
        fetch_dataset(f"s3://{PICTURES}/many/rows.npy", settings, away)


def test_emoji_may_lie_in_the_folder_of_datasets(s3: Artifacts, settings: Settings) -> None:
    assert fetch_dataset("emoji", settings, s3) == "emoji"
    assert settings.datasets_dir is not None
    installed = settings.datasets_dir / EMOJI_FOLDER
    installed.mkdir(parents=True)
    assert fetch_dataset("emoji", settings, s3) == str(installed)
