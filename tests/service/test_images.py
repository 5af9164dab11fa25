"""Arrays become pictures and archives that other programs read as they were meant."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from service.work import images


def _open(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


def test_minus_one_is_black_and_one_is_white_and_beyond_is_cut() -> None:
    image = np.array([[[-1, 1, 0, -3, 3]]], np.float32)

    assert _open(images.encode_png(image)).tolist() == [[0, 255, 128, 0, 255]]


def test_colour_planes_come_in_the_order_red_green_blue() -> None:
    red = np.stack([np.ones((2, 3)), -np.ones((2, 3)), -np.ones((2, 3))]).astype(np.float32)

    assert _open(images.encode_png(red))[0, 0].tolist() == [255, 0, 0]


def test_magnification_repeats_pixels_without_blending() -> None:
    image = np.array([[[-1, 1]]], np.float32)

    assert _open(images.encode_png(image, scale=3)).tolist() == [[0, 0, 0, 255, 255, 255]] * 3


def test_a_grid_is_filled_row_by_row() -> None:
    stack = np.linspace(-1, 1, 6, dtype=np.float32).reshape(6, 1, 1, 1)

    picture = _open(images.encode_grid(stack, num_columns=3))

    assert picture.shape == (3, 5)
    assert picture[::2, ::2].tolist() == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize(("count", "shape"), [(1, (8, 8)), (2, (8, 17)), (5, (17, 26)), (64, (71, 71))])
def test_a_grid_is_as_square_as_its_number_allows(count: int, shape: tuple[int, int]) -> None:
    assert _open(images.encode_grid(np.zeros((count, 1, 8, 8), np.float32))).shape == shape


def test_a_zip_lists_its_files_and_equal_samples_make_equal_bytes() -> None:
    stack = np.zeros((2, 1, 4, 4), np.float32)
    packed = images.encode_zip({"": stack, "level-0003/": stack}, {"seed": 7})

    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["seed"] == 7
        assert manifest["files"] == ["000.png", "001.png", "level-0003/000.png", "level-0003/001.png"]
        assert _open(archive.read("level-0003/001.png")).shape == (4, 4)
    assert packed == images.encode_zip({"": stack, "level-0003/": stack}, {"seed": 7})


def test_npy_is_float32_and_needs_no_pickle() -> None:
    array = np.linspace(-1, 1, 12).reshape(3, 4)

    found = np.load(io.BytesIO(images.encode_npy(array.astype(np.float32))), allow_pickle=False)

    assert found.dtype == np.float32
    assert found.tolist() == array.astype(np.float32).tolist()


@pytest.mark.parametrize(("shape", "shown"), [((1, 8, 8), True), ((3, 8, 8), True), ((2, 8, 8), False), ((2,), False)])
def test_events_are_images_when_a_picture_can_show_their_channels(shape: tuple[int, ...], shown: bool) -> None:
    assert images.is_image(shape) is shown
