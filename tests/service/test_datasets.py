"""/datasets: what an upload becomes, what lists and deletions answer, what a training makes of an id."""

from __future__ import annotations

import hashlib
import io
import resource
import signal
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from model.data.datasets import load
from model.presets import BUILT_IN_DATASETS
from service.app import create_app
from service.client.folder_zip import zipped
from service.settings import ServiceSettings
from tests.service.hostile_files import npy, npz, picture, rows
from tests.service.hostile_files import zip_of as zipped_all
from tests.service.hostile_files import zipped as zip_of
from worker.datasets.names import fetch_dataset
from worker.ids import new_id
from worker.jobs.records import RecordStore
from worker.storage.artifacts import Artifacts
from worker.storage.datasets import DatasetStore


@pytest.fixture
def service_settings(service_settings: ServiceSettings, tmp_path: Path) -> ServiceSettings:
    """With room for uploads, and a folder of datasets."""
    (tmp_path / "sets" / "pictures").mkdir(parents=True)
    return service_settings.model_copy(update={"max_dataset_bytes": 2_000_000, "datasets_dir": tmp_path / "sets"})


def post(client: TestClient, data: bytes, file_name: str, **fields: str) -> httpx2.Response:
    """The answer to an upload."""
    answer: httpx2.Response = client.post("/datasets", files={"file": (file_name, data)}, data=fields)
    return answer


def stored_array(dataset: dict[str, Any], settings: ServiceSettings, s3: Artifacts) -> np.ndarray[Any, Any]:
    """What a trainer fetches."""
    return np.asarray(np.load(fetch_dataset(dataset["id"], settings, s3), allow_pickle=False))


def test_a_zip_of_images_becomes_one_array_of_bytes(
    client: TestClient, service_settings: ServiceSettings, s3: Artifacts
) -> None:
    data = zip_of(("sub/c.png", picture(30)), (".hidden.png", b"junk"), ("__MACOSX/._a.png", b"junk"), ("notes", b"x"))

    answer = post(client, data, "pictures.zip", name="my pictures")
    dataset = answer.json()

    assert answer.status_code == 201
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert dataset.pop("created_at")
    assert dataset == {
        "id": dataset["id"],
        "name": "my pictures",
        "source": "uploaded",
        "kind": "images",
        "count": 3,
        "shape": [1, 8, 8],
        "labels": [],
        "notes": [
            "Not labelled by folders: pictures.zip has images at several places; expected all in folders side by "
            "side, one for each class"
        ],
        "sha256": hashlib.sha256(data).hexdigest(),
        "file_name": "pictures.zip",
        "size_bytes": len(data),
    }
    array = stored_array(dataset, service_settings, s3)
    assert (array.shape, array.dtype) == ((3, 8, 8, 1), np.uint8)
    assert array[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert client.get(f"/datasets/{dataset['id']}").json()["count"] == 3
    assert sorted(key for key, _, _ in s3.list_keys("datasets/")) == [
        f"datasets/{dataset['id']}/data.npy",
        f"datasets/{dataset['id']}/manifest.json",
    ]


def test_images_of_several_sizes_are_brought_to_the_one_asked_for(
    client: TestClient, service_settings: ServiceSettings, s3: Artifacts
) -> None:
    data = zip_of(("c.png", picture(30, (16, 9))))  # beside 8×8
    refused = post(client, data, "sizes.zip")
    assert refused.status_code == 422
    assert "image_size" in refused.json()["detail"]
    square, flat = (post(client, data, "sizes.zip", image_size=size).json() for size in ("6", "4x8"))
    assert (square["shape"], flat["shape"]) == ([1, 6, 6], [1, 4, 8])
    assert stored_array(square, service_settings, s3)[:, 0, 0, 0].tolist() == [10, 20, 30]
    again = post(client, data, "sizes.zip", image_size="6x6")
    assert (again.status_code, again.json()["id"]) == (200, square["id"])


@pytest.mark.parametrize("size", ["", "3", "64x", "x64", "64,64", "-8", "2049", "6４", "64x64x3"])
def test_a_size_that_is_none_is_refused(size: str, client: TestClient) -> None:
    answer = post(client, zip_of(("c.png", picture(30))), "sizes.zip", image_size=size)
    assert answer.status_code == 422
    assert "4 to 2048" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("file_name", "data"),
    [
        ("x.npy", npy(rows())),
        ("x.NPY", npy(rows())),
        ("x.npy", npy(np.asfortranarray(rows()))),
        ("x.npy", npy(rows().astype(">f8"))),
        ("x.npz", npz(data=rows(), labels=np.arange(20))),
        ("x.csv", b"\xef\xbb\xbfa,b\r\n" + "\r\n".join(f"{x!r},{y!r}" for x, y in rows().tolist()).encode()),
        ("x.csv", "\n".join(f' {x!r} ,"{y!r}"' for x, y in rows().tolist()).encode() + b"\n\n"),
    ],
)
def test_the_same_rows_in_any_form_are_the_same_float32(
    file_name: str, data: bytes, client: TestClient, service_settings: ServiceSettings, s3: Artifacts
) -> None:
    dataset = post(client, data, file_name).json()
    assert (dataset["kind"], dataset["count"], dataset["shape"]) == ("vectors", 20, [2])
    np.testing.assert_array_equal(stored_array(dataset, service_settings, s3), rows().astype(np.float32))


def test_images_in_class_folders_are_labelled_and_the_trainer_gets_the_labels(
    client: TestClient, service_settings: ServiceSettings, s3: Artifacts
) -> None:
    pictures = [(f"pets/{index % 2 + 9}/{index}.png", picture(10 * index)) for index in range(20)]
    dataset = post(client, zipped_all(*pictures), "pets.zip").json()
    assert dataset["labels"] == [{"name": "9", "count": 10}, {"name": "10", "count": 10}]
    assert dataset["notes"] == ["Labelled by folders: 2 classes"]
    assert client.get(f"/datasets/{dataset['id']}").json() == dataset
    assert client.get("/datasets").json()["datasets"][0] == dataset

    loaded = load(fetch_dataset(dataset["id"], service_settings, s3))
    assert loaded.labels is not None
    assert loaded.labels.names == ("9", "10")
    for events, codes in ((loaded.train, loaded.labels.train), (loaded.held_out, loaded.labels.held_out)):
        pixels = ((events[:, 0, 0, 0] + 1) * 127.5).round().int() // 10
        assert (pixels % 2).tolist() == codes.tolist()

    assert client.delete(f"/datasets/{dataset['id']}").status_code == 204
    assert list(s3.list_keys("datasets/")) == []


def test_a_column_is_labels_only_where_it_is_named_and_that_makes_another_dataset(client: TestClient) -> None:
    table = b"size,kind\n1,0\n2,1\n3,0\n4,1\n"
    plain = post(client, table, "x.csv").json()
    labelled = post(client, table, "x.csv", label_column="kind")
    again = post(client, table, "x.csv", label_column="kind")
    assert (plain["shape"], plain["labels"]) == ([2], [])
    assert (labelled.json()["shape"], labelled.json()["labels"]) == (
        [1],
        [{"name": "0", "count": 2}, {"name": "1", "count": 2}],
    )
    assert (again.status_code, again.json()) == (200, labelled.json())
    refused = post(client, table, "x.csv", label_column="colour")
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:recovery:problem:invalid-dataset")
    assert refused.json()["detail"] == "x.csv has no column 'colour'; there are size, kind"
    assert post(client, table, "x.csv", label_column="").status_code == 422


def test_a_file_that_was_uploaded_before_there_were_labels_is_read_again(client: TestClient, s3: Artifacts) -> None:
    data = npz(x=rows(), y=np.arange(20) % 2)
    dataset_id = post(client, data, "x.npz").json()["id"]
    key = f"datasets/{dataset_id}/manifest.json"
    older = s3.get_json(key) | {"version": 1}
    s3.put_json(key, {name: older[name] for name in older if name not in ("label_column", "labels", "notes")})
    found = client.get(f"/datasets/{dataset_id}").json()
    assert (found["count"], found["labels"], found["notes"]) == (20, [], [])
    again = post(client, data, "x.npz")
    assert again.status_code == 201
    assert len(again.json()["labels"]) == 2


def test_arrays_of_images_keep_their_pixels(
    client: TestClient, service_settings: ServiceSettings, s3: Artifacts
) -> None:
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (4, 6, 5, 3), np.uint8)
    dataset = post(client, npy(colour), "x.npy").json()
    assert dataset["shape"] == [3, 6, 5]
    np.testing.assert_array_equal(stored_array(dataset, service_settings, s3), colour)
    floats = generator.uniform(-1, 1, (4, 1, 6, 5))
    dataset = post(client, npy(floats), "x.npy").json()
    assert (dataset["kind"], dataset["shape"]) == ("images", [1, 6, 5])
    np.testing.assert_array_equal(stored_array(dataset, service_settings, s3), floats.astype(np.float32))


def test_the_same_file_again_is_the_dataset_that_exists(client: TestClient, s3: Artifacts) -> None:
    first = post(client, npy(rows()), "a.npy", name="first")
    again = post(client, npy(rows()), "b.npy", name="second")
    other = post(client, npy(rows() + 1), "a.npy")
    assert [answer.status_code for answer in (first, again, other)] == [201, 200, 201]
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert other.json()["id"] != first.json()["id"]
    assert len(DatasetStore(s3).list()) == 2


def test_a_file_name_from_outside_is_only_ever_shown(client: TestClient, s3: Artifacts) -> None:
    dataset = post(client, npy(rows()), "../../etc\\passwd/evil‮.npy").json()
    assert dataset["file_name"] == "evil�.npy"
    assert all(key.startswith(f"datasets/{dataset['id']}/") for key, _, _ in s3.list_keys(""))


def test_the_list_has_uploaded_built_in_and_folder_datasets(client: TestClient) -> None:
    old, new = (post(client, npy(rows() + shift), "x.npy").json()["id"] for shift in (0, 1))
    found = client.get("/datasets").json()["datasets"]
    assert [one["id"] for one in found] == [new, old, *BUILT_IN_DATASETS, "pictures"]
    assert [one["source"] for one in found] == ["uploaded"] * 2 + ["built-in"] * len(BUILT_IN_DATASETS) + ["folder"]


@pytest.mark.parametrize("name", BUILT_IN_DATASETS)
def test_what_is_known_of_built_in_datasets_is_said(name: str, client: TestClient) -> None:
    told, known = client.get(f"/datasets/{name}").json(), BUILT_IN_DATASETS[name]
    assert (told["kind"], told["count"], told["shape"]) == (known.kind, known.count, list(known.event_shape))
    assert [(one["name"], one["count"]) for one in told["labels"]] == [(one.name, one.count) for one in known.labels]


def test_a_half_uploaded_dataset_is_never_offered(client: TestClient, s3: Artifacts) -> None:
    dataset_id = post(client, npy(rows()), "x.npy").json()["id"]
    s3.delete(f"datasets/{dataset_id}/manifest.json")  # as if the process had died before writing it
    assert dataset_id not in [one["id"] for one in client.get("/datasets").json()["datasets"]]
    assert client.get(f"/datasets/{dataset_id}").status_code == 404
    assert client.post("/jobs/train", json={"preset": "density-2d", "dataset": dataset_id}).status_code == 422
    assert post(client, npy(rows()), "x.npy").status_code == 201


def test_a_dataset_goes_once_no_job_uses_it(client: TestClient, store: RecordStore, s3: Artifacts) -> None:
    dataset_id = post(client, npy(rows()), "x.npy").json()["id"]
    job = client.post("/jobs/train", json={"preset": "density-2d", "dataset": dataset_id}).json()

    refused = client.delete(f"/datasets/{dataset_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:recovery:problem:dataset-in-use")
    assert job["id"] in refused.json()["detail"]
    lease = store.acquire_lease(job["id"], "a@worker")
    assert lease is not None
    assert client.delete(f"/datasets/{dataset_id}").status_code == 409

    store.cancel(lease)
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert list(s3.list_keys("datasets/")) == []
    assert client.delete(f"/datasets/{dataset_id}").status_code == 404


def test_a_training_takes_an_id_and_refuses_what_the_network_cannot_take(client: TestClient) -> None:
    vectors = post(client, npy(rows()), "x.npy").json()["id"]
    images = post(client, zip_of(), "x.zip").json()["id"]
    accepted = client.post("/jobs/train", json={"preset": "digits", "dataset": images})
    assert (accepted.status_code, accepted.json()["dataset"]) == (202, images)
    refused = client.post("/jobs/train", json={"preset": "digits", "dataset": vectors})
    assert refused.status_code == 422
    assert "density-2d" in refused.json()["detail"]
    unknown = client.post("/jobs/train", json={"preset": "digits", "dataset": new_id()})
    assert "GET /datasets" in unknown.json()["errors"][0]["message"]


def test_a_store_that_is_away_leaves_nothing_of_an_upload(
    service_settings: ServiceSettings, s3: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    away = service_settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    with TestClient(create_app(away), raise_server_exceptions=False) as client:
        answer = post(client, npy(rows()), "x.npy")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:recovery:problem:storage-unavailable")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list(s3.list_keys("")) == []


def test_a_full_disk_is_said_plainly(client: TestClient) -> None:
    # The kernel's limit on the size of a file stands for the disk.
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        answer = post(client, npy(rows(10_000)), "x.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:recovery:problem:insufficient-storage")


def test_the_same_folder_is_the_same_zip(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for index, name in enumerate(("b.png", "sub/a.png")):
        (tmp_path / "pictures" / name).write_bytes(picture(index))
    (tmp_path / "pictures" / "notes.txt").touch()
    with zipped(tmp_path / "pictures") as once, zipped(tmp_path / "pictures") as twice:
        content = once.read()
        assert content == twice.read()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["b.png", "sub/a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"), zipped(tmp_path / "empty"):
        pass
