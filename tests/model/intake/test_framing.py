"""Images brought to one size: which part is kept, how it is scaled, and that every way in does the same."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from model.data.datasets import load
from model.errors import DataError, DataTooLarge
from model.intake.framing import crop, framed
from model.intake.limits import ReadLimits


def _release_square(height: int, width: int) -> tuple[slice, slice]:
    """The rule for LSUN, in the words of the release."""
    side = min(height, width)
    return slice((height - side) // 2, (height + side) // 2), slice((width - side) // 2, (width + side) // 2)


def test_a_square_is_cut_as_the_release_cuts_celeba_and_lsun() -> None:
    assert crop(218, 178, (64, 64)) == (slice(20, 198), slice(0, 178))
    for height, width in ((256, 341), (341, 256), (256, 257), (7, 4), (5, 5)):
        assert crop(height, width, (128, 128)) == _release_square(height, width)


def test_other_proportions_keep_the_largest_centred_part() -> None:
    assert crop(100, 100, (48, 40)) == (slice(0, 100), slice(8, 91))
    assert crop(200, 40, (48, 40)) == (slice(76, 124), slice(0, 40))


def _triangle_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source): bilinear interpolation whose triangle widens when it shrinks, pixel centres at halves."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(1, keepdims=True))


@pytest.mark.parametrize("size", [(16, 16), (10, 24), (90, 70), (5, 4)])
def test_resizing_is_bilinear_with_antialiasing(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (45, 37, 2)).astype(np.float32)
    rows, columns = crop(45, 37, size)
    part = image[rows, columns]
    expected = np.einsum(
        "ih,hwc,jw->ijc", _triangle_weights(part.shape[0], size[0]), part, _triangle_weights(part.shape[1], size[1])
    )
    np.testing.assert_allclose(framed(image, size), expected, atol=2e-6)
    as_bytes = ((image + 1) * 127.5).round().astype(np.uint8)
    assert np.abs(framed(as_bytes, size) - (expected + 1) * 127.5).max() < 2  # rounded before and after


def test_a_fourth_channel_is_not_taken_for_opacity() -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    image[..., 3] = 0
    np.testing.assert_array_equal(framed(image, (6, 6))[..., :3], framed(image[..., :3], (6, 6)))


def _picture(height: int, width: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sizes."""
    path = tmp_path / "pictures"
    path.mkdir()
    for index, (height, width) in enumerate([(21, 17), (16, 16), (20, 33), (8, 9)]):
        (path / f"{index}.png").write_bytes(_picture(height, width, index))
    return path


def test_pictures_of_several_sizes_are_read_at_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png is 16×16, 0\.png is 17×21.*image_size"):
        load(str(folder))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    from_folder = load(str(folder), image_size=(12, 10))
    assert from_folder.event_shape == (3, 12, 10)
    assert from_folder.space.bin_width == 1 / 127.5
    assert torch.equal(from_folder.train[:], load(str(tmp_path / "pictures.zip"), image_size=(12, 10)).train[:])


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_are_framed_like_files(kind: type, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
    stored = images if kind is np.uint8 else np.moveaxis(images.astype(np.float32) / 127.5 - 1, 3, 1)
    np.save(tmp_path / "images.npy", stored)
    dataset = load(str(tmp_path / "images.npy"), image_size=(8, 8))
    assert dataset.event_shape == (3, 8, 8)
    found = torch.cat([dataset.train[:], dataset.held_out[:]]).numpy()
    order = np.random.default_rng(0).permutation(6)
    expected = np.stack([framed(images[index], (8, 8)) for index in order]).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(found, np.moveaxis(expected, 3, 1), atol=1.1 / 127.5)


def test_a_size_that_is_there_already_changes_nothing(folder: Path, tmp_path: Path) -> None:
    first = load(str(folder), image_size=(12, 12))
    pixels = ((torch.cat([first.train[:], first.held_out[:]]) + 1) * 127.5).round().byte().movedim(1, 3).numpy()
    np.save(tmp_path / "same.npy", pixels)
    for size in (None, (12, 12)):
        dataset = load(str(tmp_path / "same.npy"), image_size=size)
        assert set(map(bytes, torch.cat([dataset.train[:], dataset.held_out[:]]).numpy())) == set(
            map(bytes, torch.cat([first.train[:], first.held_out[:]]).numpy())
        )
    assert torch.equal(load("digits", image_size=(8, 8)).train[:], load("digits").train[:])
    assert load("digits", image_size=(8, 8)).space.bin_width == 1 / 8


def test_digits_come_in_any_size() -> None:
    dataset = load("digits", image_size=(28, 28))
    assert dataset.event_shape == (1, 28, 28)
    assert dataset.space.bin_width == 0  # values in between
    small, large = load("digits").train[:].mean(), dataset.train[:].mean()
    assert float(large) == pytest.approx(float(small), abs=0.02)


def test_rows_have_no_image_size(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(20, 2)))
    for name in (str(tmp_path / "rows.npy"), "two_moons"):
        with pytest.raises(DataError, match="image_size is for images"):
            load(name, image_size=(8, 8))


def test_the_limit_on_bytes_counts_the_images_as_they_become(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3))
    for name in (folder, tmp_path / "images.npy"):
        load(str(name), ReadLimits(max_array_bytes=4 * 3 * 36), image_size=(6, 6))
        with pytest.raises(DataTooLarge, match="expected at most 432"):
            load(str(name), ReadLimits(max_array_bytes=4 * 3 * 36), image_size=(6, 7))
