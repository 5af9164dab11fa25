"""Datasets: what is read, how it is scaled, and what is refused by name."""

from __future__ import annotations

import io
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import TrainConfig
from model.data.datasets import load
from model.data.planar import PLANAR_DENSITIES
from model.errors import DataError, DataTooLarge
from model.intake.images import decode
from model.intake.limits import ReadLimits, Summary
from model.intake.normalize import normalize


def _png(value: int, size: tuple[int, int] = (6, 5), mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    color = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    (path / "inner").mkdir(parents=True)
    for index in range(12):
        (path / ("inner" if index % 2 else ".") / f"{index}.png").write_bytes(_png(20 * index))
    (path / "notes.txt").write_text("not an image")
    return path


def test_digits_are_split_once_and_for_all() -> None:
    digits = load("digits")
    assert digits.train.shape == (900, 1, 8, 8)
    assert digits.held_out.shape == (897, 1, 8, 8)
    assert digits.train[:].min() == -1
    assert digits.train[:].max() == 1
    assert torch.equal(digits.train[:], load("digits").train[:])
    together = torch.cat([digits.train[:], digits.held_out[:]]).flatten(1)
    from sklearn.datasets import load_digits

    assert float(together.sum()) == pytest.approx(float((load_digits().data / 8 - 1).sum()))


def test_planar_densities_are_datasets_in_their_own_units() -> None:
    for name in PLANAR_DENSITIES:
        dataset = load(name)
        assert dataset.event_shape == (2,)
        assert float(dataset.space.std) == 1
        assert not torch.equal(dataset.train[:10], dataset.held_out[:10])


def test_a_folder_and_a_zip_of_it_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    from_folder, from_zip = load(str(folder)), load(str(tmp_path / "pictures.zip"))
    assert from_folder.event_shape == (1, 5, 6)
    assert len(from_folder.train) == 11
    assert torch.equal(from_folder.train[:], from_zip.train[:])
    values = sorted(
        set(((torch.cat([from_folder.train[:], from_folder.held_out[:]]) + 1) * 127.5).round().int().flatten().tolist())
    )
    assert values == [20 * index for index in range(12)]


def test_one_colour_image_makes_three_channels(folder: Path) -> None:
    (folder / "colour.png").write_bytes(_png(200, mode="RGB"))
    assert load(str(folder)).event_shape == (3, 5, 6)


def test_rows_are_standardised_and_the_model_can_undo_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal([5.0, -2.0], [3.0, 0.1], (500, 2)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b", comments="")
    np.savez(tmp_path / "rows.npz", data=rows, other=rows[:1])
    for name in ("rows.npy", "rows.csv", "rows.npz"):
        dataset = load(str(tmp_path / name))
        scaled = torch.cat([dataset.train[:], dataset.held_out[:]])
        torch.testing.assert_close(scaled.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        restored = dataset.space.decode(scaled)
        assert sorted(restored[:, 0].tolist()) == pytest.approx(sorted(rows[:, 0].tolist()), abs=1e-3)


def test_byte_images_in_an_array_are_scaled_like_files(tmp_path: Path) -> None:
    images = np.full((10, 4, 4, 3), 255, np.uint8)
    images[::2] = 0
    np.save(tmp_path / "images.npy", images)
    dataset = load(str(tmp_path / "images.npy"))
    assert dataset.event_shape == (3, 4, 4)
    assert set(dataset.train[:].flatten().tolist()) == {-1, 1}


def _bad_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _bad_nan(path: Path) -> None:
    np.save(path, np.array([[0.0, 1.0], [np.nan, 2.0], [1.0, 1.0]]))


def _bad_range(path: Path) -> None:
    np.save(path, np.full((4, 1, 4, 4), 7.0))


def _bad_shape(path: Path) -> None:
    np.save(path, np.zeros(5))


def _bad_dtype(path: Path) -> None:
    np.save(path, np.array(["a", "b"]))


def _bad_constant(path: Path) -> None:
    np.save(path, np.stack([np.arange(9.0), np.ones(9)], 1))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("x.npy", _bad_pickle, "never unpickled"),
        ("x.npy", _bad_nan, "not finite in item 1"),
        ("x.npy", _bad_range, "from −1 to 1"),
        ("x.npy", _bad_shape, "shape"),
        ("x.npy", _bad_dtype, "dtype"),
        ("x.npy", _bad_constant, "constant column: column 2 \\(from 1"),
        (
            "x.npy",
            lambda p: np.save(p, np.arange(9.0)[:, None] * ([0, 1] * 12)),
            r"12 constant columns: column 1, 3.*19, … \(",
        ),
        ("x.npy", lambda p: np.save(p, np.full((9, 2), 3.0)), "the same item 9 times; expected items that differ"),
        ("x.npy", lambda p: np.save(p, np.full((2, 1, 4, 4), 0.5)), "the same item 2 times"),
        ("x.csv", lambda p: p.write_text("1,2\n1,2\n1,2\n"), "the same item 3 times"),
        ("x.npy", lambda p: p.write_text("hello"), "plain numpy array"),
        ("x.npz", lambda p: p.write_text("hello"), "npz"),
        ("x.zip", lambda p: p.write_text("hello"), "not a zip"),
        ("x.csv", lambda p: p.write_text("a,b\n1,2\n3,x\n"), "table of numbers"),
        ("x.csv", lambda p: p.write_bytes(b"a,b\r1,2\r3,4\r"), "line 1 has lines that end in CR alone"),
        ("x.doc", lambda p: p.write_text("hello"), "expected a folder"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(name: str, write: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=words) as caught:
        load(str(path))
    assert name in str(caught.value)


def test_backslashes_in_the_names_of_a_zip_are_read_as_slashes(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.writestr("pictures\\" + str(path.relative_to(folder)).replace("/", "\\"), path.read_bytes())
    assert torch.equal(load(str(folder)).train[:], load(str(tmp_path / "pictures.zip")).train[:])


def test_a_bad_image_in_a_folder_is_named(folder: Path) -> None:
    (folder / "inner" / "broken.png").write_text("this is text")
    with pytest.raises(DataError, match=r"broken\.png is not an image"):
        load(str(folder))


def test_images_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(_png(7))
    with pytest.raises(DataError, match="the same item 3 times"):
        load(str(tmp_path))
    (tmp_path / "9.png").write_bytes(_png(8))
    assert len(load(str(tmp_path)).train) == 3


_FAR = np.random.default_rng(0).normal(size=(500, 3)) * [1, 100, 0.01] + [0, 1e6, 0]


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_value_far_from_all_others_is_named_with_its_distance(sign: int, tmp_path: Path) -> None:
    rows = _FAR.copy()
    rows[317, 2] = sign * 1000  # not the largest number of all, and 100,000 standard deviations of its column away
    np.save(tmp_path / "rows.npy", rows)
    words = rf"rows.npy has {sign * 1000} in row 317, column 2.* (9\d|10\d),\d{{3}} robust standard.* most 10,000\."
    with pytest.raises(DataError, match=words):
        load(str(tmp_path / "rows.npy"), max_deviation=1e4)
    assert load(str(tmp_path / "rows.npy"), max_deviation=2e5).event_shape == (3,)
    assert load(str(tmp_path / "rows.npy")).event_shape == (3,)


_RANDOM = np.random.default_rng(1)


@pytest.mark.parametrize(
    "column",
    [
        _RANDOM.standard_t(2, 100_000),
        _RANDOM.lognormal(0, 2, 100_000),
        np.arange(100_000) == 5,  # one exception among zeros
        np.where(_RANDOM.random(100_000) < 0.99, 0, _RANDOM.lognormal(5, 1, 100_000)),  # mostly zeros, as expenses are
        np.array([1e6, 1e6, 1e6 + 0.25, 1e6 - 0.25]),
        np.array([3e38, 2e38]),
    ],
    ids=["student t", "lognormal", "one exception", "mostly zero", "rounded", "huge"],
)
def test_honest_data_with_heavy_tails_are_taken_at_the_default_limit(column: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.asarray(column, np.float32)[:, None])
    taken = load(str(tmp_path / "rows.npy"), max_deviation=TrainConfig().max_deviation)
    assert len(taken.train) + len(taken.held_out) == len(column)


def test_images_of_mixed_sizes_are_named(folder: Path) -> None:
    (folder / "z_large.png").write_bytes(_png(0, size=(9, 9)))
    with pytest.raises(DataError, match=r"z_large\.png is 9×9"):
        load(str(folder))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="eight_gaussians"):
        load("nothing")


def test_the_held_out_items_are_fixed_by_the_content(folder: Path, tmp_path: Path) -> None:
    dataset = load(str(folder))
    images = np.stack([np.full((5, 6), 20 * index, np.uint8) for index in (0, 1, 10, 11, *range(2, 10))])
    by_name = sorted((f"inner/{i}.png" if i % 2 else f"{i}.png", i) for i in range(12))
    np.save(tmp_path / "same.npy", np.stack([np.full((5, 6), 20 * i, np.uint8) for _, i in by_name]))
    np.save(tmp_path / "other.npy", images)
    assert torch.equal(load(str(tmp_path / "same.npy")).held_out[:], dataset.held_out[:])
    assert torch.equal(load(str(tmp_path / "same.npy")).train[:], dataset.train[:])
    assert not torch.equal(load(str(tmp_path / "other.npy")).train[:], dataset.train[:])


def test_large_and_small_values_are_standardised_without_overflow(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3)) * [1e30, 1e-30, 1.0] + [0.0, 0.0, 1e6]
    np.save(tmp_path / "rows.npy", rows)
    dataset = load(str(tmp_path / "rows.npy"))
    scaled = torch.cat([dataset.train[:], dataset.held_out[:]])
    torch.testing.assert_close(scaled[:, :2].std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled[:, 2].std(0, correction=0), torch.ones(()), atol=0.1, rtol=0)


def test_nothing_is_left_of_reading(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    load(str(folder))
    with pytest.raises(DataTooLarge, match="expected at most 100"):
        load(str(folder), ReadLimits(max_array_bytes=100))
    with pytest.raises(DataTooLarge, match="12 images; expected at most 5"):
        load(str(folder), ReadLimits(max_members=5))
    assert list((tmp_path / "temporary").iterdir()) == []


_FORMS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("L", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in _FORMS.items() for mode in modes])
def test_pictures_of_every_usual_form_are_read(form: str, mode: str) -> None:
    grey = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(12, 20))
    buffer = io.BytesIO()
    grey.convert(mode).save(buffer, form)
    pixels = decode("x", buffer.getvalue(), ReadLimits())
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8
    if mode != "1":
        assert np.abs(pixels[..., 1].astype(int) - np.asarray(grey)).mean() < 5  # a palette of few colours


def test_a_table_is_read_in_one_pass_of_little_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", fmt="%.9g")
    tracemalloc.start()
    try:
        summary = normalize(tmp_path / "rows.csv", tmp_path / "data.npy")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary == Summary(kind="vectors", count=20_000, event_shape=(8,))
    np.testing.assert_array_equal(np.load(tmp_path / "data.npy"), rows)
    assert peak_bytes < 4_000_000
