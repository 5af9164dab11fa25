"""Datasets of the hub, in its own formats: columns, labels, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets as hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.datasets import load
from model.errors import DataError
from tests.service.hostile_files import picture, rows
from tests.worker.test_datasets import array_of, classes
from worker.datasets.names import fetch_dataset, require_dataset
from worker.settings import Settings
from worker.storage.artifacts import Artifacts


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a folder of datasets."""
    (tmp_path / "sets").mkdir()
    return settings.model_copy(update={"datasets_dir": tmp_path / "sets"})


@pytest.fixture
def saved(settings: Settings) -> Path:
    """A dataset of the hub's own format, where the hub would be asked for someone/things."""
    images = [{"bytes": picture(index, mode="RGB"), "path": None} for index in range(6)]
    table = hub.Dataset.from_dict(
        {"picture": images, "points": rows(6).tolist(), "label": ["x"] * 6},
        features=hub.Features(
            {"picture": hub.Image(), "points": hub.List(hub.Value("float32")), "label": hub.Value("string")}
        ),
    )
    assert settings.datasets_dir is not None
    folder = settings.datasets_dir / "someone" / "things"
    hub.DatasetDict(train=table, test=table.select(range(2))).save_to_disk(str(folder))
    return folder


def test_a_column_of_images_is_a_dataset(saved: Path, s3: Artifacts, settings: Settings) -> None:
    assert saved.is_dir()
    for name in ("hf://someone/things", "hf://someone/things:train/picture"):
        assert require_dataset(name, settings, s3) is None
        assert array_of(name, settings, s3)[:, 0, 0, 0].tolist() == list(range(6))
    assert len(array_of("hf://someone/things:test", settings, s3)) == 2
    assert len(list((settings.spool_dir / "datasets").iterdir())) == 2


def test_a_column_of_images_is_brought_to_a_size_and_one_of_lists_is_not(
    saved: Path, s3: Artifacts, settings: Settings
) -> None:
    assert saved.is_dir()
    name = "hf://someone/things:train"
    assert np.load(fetch_dataset(f"{name}/picture", settings, s3, (5, 7))).shape == (6, 5, 7, 3)
    with pytest.raises(DataError, match="image_size is for images"):
        fetch_dataset(f"{name}/points", settings, s3, (5, 7))


@pytest.fixture
def labelled(settings: Settings) -> Path:
    """Images with columns of classes, and one with a class that is missing."""
    images = [{"bytes": picture(index), "path": None} for index in range(6)]
    columns = {"picture": images, "animal": [0, 1, 0, 1, 0, 1], "label": ["x", "x", "x", "y", "y", "y"]}
    features = {"picture": hub.Image(), "animal": hub.ClassLabel(names=["dog", "cat"]), "label": hub.Value("string")}
    folder = (settings.datasets_dir or Path()) / "me" / "labelled"
    table = hub.Dataset.from_dict(columns, features=hub.Features(features))
    words = table.remove_columns("animal")
    unknown = table.map(lambda row: row | {"animal": -1 if row["animal"] else 0}, features=table.features)
    hub.DatasetDict(train=table, words=words, unknown=unknown).save_to_disk(str(folder))
    return folder


def test_a_column_of_classes_or_one_called_label_labels_a_column_of_images(
    labelled: Path, s3: Artifacts, settings: Settings
) -> None:
    assert labelled.is_dir()
    animals = {0: "dog", 1: "cat", 2: "dog", 3: "cat", 4: "dog", 5: "cat"}
    words = {0: "x", 1: "x", 2: "x", 3: "y", 4: "y", 5: "y"}
    for name, told in {
        "hf://me/labelled": animals,
        "hf://me/labelled:train/picture/animal": animals,
        "hf://me/labelled:train/picture/label": words,
        "hf://me/labelled:words": words,
    }.items():
        assert classes(fetch_dataset(name, settings, s3)) == told


def test_a_class_that_is_missing_in_the_hub_is_said_where_it_was_asked_for(
    labelled: Path, s3: Artifacts, settings: Settings
) -> None:
    assert labelled.is_dir()
    with pytest.raises(DataError, match=r"column 'animal' of .* has no label in row 1"):
        fetch_dataset("hf://me/labelled:unknown/picture/animal", settings, s3)
    with pytest.raises(DataError, match="no column 'colour'"):
        fetch_dataset("hf://me/labelled:train/picture/colour", settings, s3)
    assert load(fetch_dataset("hf://me/labelled:unknown", settings, s3)).labels is None


def test_a_column_of_lists_is_a_dataset(saved: Path, s3: Artifacts, settings: Settings) -> None:
    assert saved.is_dir()
    np.testing.assert_array_equal(
        array_of("hf://someone/things:train/points", settings, s3), rows(6).astype(np.float32)
    )


def test_a_folder_of_parquet_is_read_by_the_library_itself(
    s3: Artifacts, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert settings.datasets_dir is not None
    table = hub.Dataset.from_dict({"points": rows(30).tolist()})
    (settings.datasets_dir / "me" / "table").mkdir(parents=True)
    table.to_parquet(str(settings.datasets_dir / "me" / "table" / "train-00000.parquet"))
    assert array_of("hf://me/table", settings, s3).shape == (30, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://someone/things:valid", "no split 'valid'; there are train, test"),
        ("hf://someone/things:train/pixels", "no column 'pixels'; there are picture, points, label"),
        ("hf://someone/things:train/label", "expected images, or lists of numbers"),
        ("hf://someone", "expected hf://owner/name"),
        ("hf://someone/../things", "expected hf://owner/name"),
        ("hf://../someone/things", "expected hf://owner/name"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_line(
    name: str, words: str, saved: Path, s3: Artifacts, settings: Settings
) -> None:
    assert saved.is_dir()
    with pytest.raises(DataError, match=words) as caught:
        fetch_dataset(name, settings, s3)
    assert "\n" not in str(caught.value)


def test_a_name_nobody_has_is_said_in_a_line(
    s3: Artifacts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1, which is read early
    with pytest.raises(DataError, match="hf://someone/absent cannot be loaded from the Hugging Face hub") as caught:
        fetch_dataset("hf://someone/absent", settings, s3)
    assert "\n" not in str(caught.value)


def test_a_ragged_column_is_refused(s3: Artifacts, settings: Settings) -> None:
    assert settings.datasets_dir is not None
    hub.Dataset.from_dict({"points": [[1.0, 2.0], [3.0]]}).save_to_disk(str(settings.datasets_dir / "a" / "ragged"))
    with pytest.raises(DataError, match="expected 2 numbers in each"):
        fetch_dataset("hf://a/ragged", settings, s3)


def test_a_path_in_a_table_opens_no_file(
    s3: Artifacts, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "private.png").write_bytes(picture())
    paths = [{"bytes": None, "path": str(tmp_path / "private.png")}] * 2
    table = pa.table({"picture": paths}, schema=hub.Features({"picture": hub.Image()}).arrow_schema)
    assert settings.datasets_dir is not None
    (settings.datasets_dir / "a" / "paths").mkdir(parents=True)
    pq.write_table(table, settings.datasets_dir / "a" / "paths" / "train.parquet")
    with pytest.raises(DataError, match="row 0 of hf://a/paths has no image in it"):
        fetch_dataset("hf://a/paths", settings, s3)


def test_without_the_extra_the_way_out_is_named(
    s3: Artifacts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"recovery-likelihood\[hf\]"):
        fetch_dataset("hf://someone/things", settings, s3)
