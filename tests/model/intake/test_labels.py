"""Labels of items: where they are found, in what order classes stand, and what is no label."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError, DataTooLarge
from model.intake.labels import MAX_CLASSES, stored_suffix
from model.intake.limits import ClassCount, ReadLimits, Summary
from model.intake.normalize import normalize
from model.intake.stored import open_stored

ROWS = np.random.default_rng(0).normal(size=(6, 2))


def stored(source: Path, **options: Any) -> tuple[Summary, np.ndarray[Any, Any], list[str] | None]:
    """The summary, the items, and the name of every item's class."""
    target = source.with_name("stored")
    summary = normalize(source, target, **options)
    array, labels = open_stored(target)
    assert [path.name for path in source.parent.iterdir() if path.name.startswith("stored")] == ["stored"]
    return summary, array.block(0, len(array)), [labels.names[code] for code in labels.codes] if labels else None


def picture(value: int) -> bytes:
    """A grey PNG of 5×5 pixels."""
    packed = io.BytesIO()
    Image.new("L", (5, 5), value).save(packed, "PNG")
    return packed.getvalue()


def zipped(path: Path, *names: str) -> Path:
    """A zip in which picture i, whose pixels are i, has the i-th name."""
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, picture(value))
    return path


def table(path: Path, *lines: str) -> Path:
    """A CSV of these lines."""
    path.write_text("\n".join(lines))
    return path


def arrays(path: Path, **members: Any) -> Path:
    """A .npz of these arrays."""
    np.savez(path, **members)
    return path


CLASS_FOLDERS = ("pets/10/a.png", "pets/2/b.png", "pets/10/c.png", "pets/2/d.png", "pets/2/e.png")


def test_images_in_folders_side_by_side_are_labelled_by_them_in_a_zip_and_on_disk(tmp_path: Path) -> None:
    for value, name in enumerate(CLASS_FOLDERS):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(picture(value))
    for source in (zipped(tmp_path / "x.zip", *CLASS_FOLDERS), tmp_path / "folder"):
        summary, items, labels = stored(source)
        assert summary.labels == (ClassCount(name="2", count=3), ClassCount(name="10", count=2))
        assert summary.notes == ("Labelled by folders: 2 classes",)
        assert items[:, 0, 0, 0].tolist() == [0, 2, 1, 3, 4]  # in the order of their names, as without labels
        assert labels == ["10", "10", "2", "2", "2"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a.png", "b.png", "c.png"), None),
        (("pets/a.png", "pets/b.png"), None),
        (("a.png", "cat/b.png", "cat/c.png", "dog/d.png", "dog/e.png"), "several places"),
        (("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png"), "several places"),
        (("cat/a.png", "cat/b.png", "dog/c.png"), "one item of class 'dog'"),
        (("cat/a.png", "cat/b.png", "d og/c.png", " /d.png", " /e.png"), "empty name for the class of item"),
    ],
)
def test_other_folders_label_nothing_and_a_note_says_why(
    names: tuple[str, ...], reason: str | None, tmp_path: Path
) -> None:
    summary, items, labels = stored(zipped(tmp_path / "x.zip", *names))
    assert (len(items), labels, summary.labels) == (len(names), None, ())
    assert stored_suffix(tmp_path / "stored") == ".npy"
    if reason is None:
        assert summary.notes == ()
    else:
        [note] = summary.notes
        assert note.startswith("Not labelled by folders: x.zip")
        assert reason in note


def test_a_named_column_of_a_table_is_labels_and_no_feature(tmp_path: Path) -> None:
    rows = ("1,b 10,2", "8,c,5", "3, b 9 ,4", "5,b 10,7", "6,b 9,1", "7,c,9")
    summary, items, labels = stored(table(tmp_path / "x.csv", "size,kind,weight", *rows), label_column="kind")
    assert summary.event_shape == (2,)
    assert items.tolist() == [[1, 2], [8, 5], [3, 4], [5, 7], [6, 1], [7, 9]]
    assert labels == ["b 10", "c", "b 9", "b 10", "b 9", "c"]
    assert [one.name for one in summary.labels] == ["b 9", "b 10", "c"]


def test_a_column_without_a_heading_is_named_by_its_number(tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv", "1,2,cat", "3,4,dog", "5,7,cat", "6,1,dog")
    assert stored(source, label_column="3")[2] == ["cat", "dog", "cat", "dog"]
    for name in ("0", "4", "kind", "٣"):
        with pytest.raises(DataError, match="by its number, 1 to 3"):
            stored(source, label_column=name)


def test_a_column_of_numbers_that_nobody_named_stays_a_feature(tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv", "size,label", "1,0", "2,1", "3,0", "4,1")
    assert stored(source)[0] == Summary(kind="vectors", count=4, event_shape=(2,))
    assert stored(source, label_column="label")[2] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("a,k", "1,x", "2,", "3,x"), r"x\.csv line 3 has no label in column 'k'"),
        (("a,k", "1,x", "2,x", "3,NaN"), r"x\.csv line 4 has no label in column 'k'"),
        (("a,k", "1,x", "2,x", "3,y"), "one item of class 'y'"),
        (("a,k", "1,x", "2,x", "3,x"), "names one class, 'x', for all items"),
        (("a,b", "1,2", "2,3"), "no column 'k'; there are a, b"),
        (("k,k", "1,2", "2,3"), "several columns 'k'"),
        (("k", "1", "1"), "no column beside 'k'"),
        (("a,k", *(f"{row},{row // 2}" for row in range(2 * MAX_CLASSES + 2))), "names 1,001 classes"),
        (("a,k", "1," + "x" * 101, "2," + "x" * 101, "3,y", "4,y"), "at most 100 characters"),
    ],
)
def test_a_column_that_cannot_be_labels_is_refused_in_a_sentence(
    lines: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        stored(table(tmp_path / "x.csv", *lines), label_column="k")


def test_a_word_where_numbers_are_expected_says_that_classes_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'cat' is not a number; .* label_column"):
        stored(table(tmp_path / "x.csv", "a,kind", "1,cat", "2,dog"))


@pytest.mark.parametrize("key", ["y", "label", "labels"])
@pytest.mark.parametrize(
    "values",
    [
        np.array([10, 9, 10, 9, 9, 10]),
        np.array([10, 9, 10, 9, 9, 10], np.uint8)[:, None],
        np.array([10, 9, 10, 9, 9, 10], ">f8"),
        np.array(["10", "9", "10", "9", "9", "10"]),
        np.array([b"10", b"9", b"10", b"9", b"9", b"10"]),
    ],
)
def test_an_array_beside_the_items_is_their_labels(key: str, values: np.ndarray[Any, Any], tmp_path: Path) -> None:
    summary, items, labels = stored(arrays(tmp_path / "x.npz", x=ROWS, **{key: values}))
    np.testing.assert_array_equal(items, ROWS.astype(np.float32))
    assert labels == ["10", "9", "10", "9", "9", "10"]
    assert summary.labels == (ClassCount(name="9", count=3), ClassCount(name="10", count=3))
    assert summary.notes == (f"Labelled by the array '{key}': 2 classes",)


def test_an_array_of_classes_names_what_the_labels_count(tmp_path: Path) -> None:
    source = arrays(tmp_path / "x.npz", x=ROWS, y=[2, 0, 2, 0, 0, 2], classes=["dog", "owl", "cat"])
    assert stored(source)[2] == ["cat", "dog", "cat", "dog", "dog", "cat"]
    source = arrays(tmp_path / "x.npz", x=ROWS, y=[3, 0, 3, 0, 0, 3], classes=["dog", "owl", "cat"])
    with pytest.raises(DataError, match=r"counts 0 to 3; classes\.npy in x\.npz has 3 names"):
        stored(source, label_column="y")


def test_of_several_arrays_the_only_one_of_images_is_taken_and_the_others_are_told(tmp_path: Path) -> None:
    pictures, digits = np.arange(150, dtype=np.uint8).reshape(6, 5, 5), np.array([1, 0, 1, 0, 0, 1])
    np.savez(tmp_path / "x.npz", pictures, digits)
    summary, items, labels = stored(tmp_path / "x.npz")
    np.testing.assert_array_equal(items[..., 0], pictures)
    assert (labels, summary.notes) == (None, ("Arrays left out: arr_1",))
    assert stored(tmp_path / "x.npz", label_column="arr_1")[2] == ["1", "0", "1", "0", "0", "1"]
    with pytest.raises(DataError, match="no array 'arr_2'; there are arr_0, arr_1"):
        stored(tmp_path / "x.npz", label_column="arr_2")
    np.savez(tmp_path / "x.npz", pictures, pictures)
    with pytest.raises(DataError, match="holds arr_0, arr_1; expected one array"):
        stored(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["y", "classes"])
def test_an_only_array_is_the_items_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    summary, items, labels = stored(arrays(tmp_path / "x.npz", **{name: ROWS}))
    assert (items.shape, labels, summary.notes) == ((6, 2), None, ())


def test_labelled_images_are_brought_to_a_size_with_their_labels(tmp_path: Path) -> None:
    pictures = np.repeat(np.arange(6, dtype=np.uint8), 64).reshape(6, 8, 8)
    _, items, labels = stored(arrays(tmp_path / "x.npz", x=pictures, y=[1, 0, 1, 0, 0, 1]), image_size=(4, 4))
    assert items.shape == (6, 4, 4, 1)
    assert items[:, 0, 0, 0].tolist() == list(range(6))
    assert labels == ["1", "0", "1", "0", "0", "1"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 0, 1, 0], r"shape \(5,\); expected one label for each of 6 items"),
        (np.eye(6), r"shape \(6, 6\); expected one label"),
        ([0, 1, 0, 1, 0, 2], "one item of class '2'"),
        ([0.0, 1, 0, 1, np.nan, 1], "no label for item 4"),
        ([0.5, 1, 0.5, 1, 1, 1], "fractions"),
        ([1e300, 1, 1e300, 1, 1, 1], "huge"),
        (["a", "b", "a", "", "", "b"], "empty name for the class of item 3"),
        (["a", "b\n", "a", "b\n", "a", "a"], "on one line"),
        ([b"\xff", b"a", b"\xff", b"a", b"a", b"a"], "text that cannot be read"),
        (np.zeros(6, complex), "dtype complex128; expected whole numbers or short text"),
        (["a" * 101] * 3 + ["b"] * 3, "dtype <U101; expected"),
    ],
)
def test_an_array_that_cannot_be_labels_is_refused_if_named_and_left_out_with_a_note_if_not(
    values: Any, words: str, tmp_path: Path
) -> None:
    source = arrays(tmp_path / "x.npz", x=ROWS, y=values)
    with pytest.raises(DataError, match=words) as caught:
        stored(source, label_column="y")
    summary, items, labels = stored(source)
    assert (items.shape, labels) == ((6, 2), None)
    assert summary.notes == (f"Not labelled by the array 'y': {caught.value}",)


def test_what_is_stored_reads_as_itself_and_is_the_same_file_every_time(tmp_path: Path) -> None:
    source = arrays(tmp_path / "x.npz", x=ROWS, y=["b", "a", "b", "a", "a", "b"])
    first, items, labels = stored(source)
    content = (tmp_path / "stored").read_bytes()
    (tmp_path / "copy.npz").write_bytes(content)
    again, same_items, same_labels = stored(tmp_path / "copy.npz")
    assert (again.labels, same_labels, same_items.tolist()) == (first.labels, labels, items.tolist())
    assert (tmp_path / "stored").read_bytes() == content
    assert stored_suffix(tmp_path / "stored") == ".npz"


def test_only_tables_and_archives_of_arrays_have_a_column_to_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "x.npy", zipped(tmp_path / "x.zip", "a.png", "b.png"), tmp_path / "folder"):
        with pytest.raises(DataError, match=r"label_column is for \.csv and \.npz"):
            stored(source, label_column="y")


def test_labels_count_against_the_limit_on_bytes(tmp_path: Path) -> None:
    source = arrays(tmp_path / "x.npz", x=ROWS, y=[1, 0, 1, 0, 0, 1])
    needed = 3 * 128 + 6 * 2 * 4 + 6 * 2 + 2 * 4  # three headers, the rows, the labels and the names "0" and "1"
    stored(source, limits=ReadLimits(max_array_bytes=needed))
    with pytest.raises(DataTooLarge, match="with its labels"):
        stored(source, limits=ReadLimits(max_array_bytes=needed - 1))
