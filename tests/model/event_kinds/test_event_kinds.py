"""Kinds of events: told by their shape, drawn as what they are; bytes and numbers of pixels."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from model.config import NetworkKind
from model.errors import ShapeError
from model.event_kinds import pixels
from model.event_kinds.images import IMAGES
from model.event_kinds.registry import KINDS, kind_of, taken_by
from model.event_kinds.vectors import VECTORS
from model.presets import PRESETS


def _opened(png: bytes) -> tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.mode, np.asarray(picture)


def test_the_number_of_axes_says_what_an_event_is() -> None:
    assert kind_of((3, 32, 32)) is IMAGES
    assert kind_of((2,)) is VECTORS
    assert len({len(kind.axes) for kind in KINDS}) == len({kind.name for kind in KINDS}) == len(KINDS)
    with pytest.raises(ShapeError, match=r"shape \(2, 3\); expected images \(C, H, W\) or vectors \(D,\)"):
        kind_of((2, 3))


def test_every_network_takes_a_kind_and_every_kind_begins_with_a_preset_that_takes_it() -> None:
    assert all(taken_by(network) for network in get_args(NetworkKind))
    for kind in KINDS:
        assert PRESETS[kind.preset].network.kind in kind.networks


def test_all_bytes_survive_the_way_to_numbers_and_back() -> None:
    values = np.arange(256, dtype=np.uint8)
    numbers = pixels.from_bytes(values)
    assert (numbers.dtype, numbers.min(), numbers.max()) == (np.dtype(np.float32), -1, 1)
    np.testing.assert_allclose(np.diff(numbers), pixels.BIN_WIDTH, rtol=1e-5)
    assert (pixels.to_bytes(numbers) == values).all()
    assert pixels.to_bytes(np.array([-3, 3, 0.3 * pixels.BIN_WIDTH], np.float32)).tolist() == [0, 255, 128]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_of_every_number_of_channels_that_files_hold_are_drawn_in_their_colours(
    channels: int, mode: str
) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (4, channels, 5, 6)).astype(np.float32)
    sheet = IMAGES.sheet(images)
    found, picture = _opened(pixels.encode_png(sheet))
    assert (found, picture.shape[:2]) == (mode, (11, 13))
    last = picture[6:, 7:].reshape(5, 6, channels)
    assert (np.moveaxis(last, -1, 0) == pixels.to_bytes(images[3])).all()


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_no_file_holds_together_are_drawn_side_by_side_in_grey(channels: int) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (1, channels, 4, 4)).astype(np.float32)
    mode, picture = _opened(pixels.encode_png(IMAGES.sheet(images)))
    assert (mode, picture.shape) == ("L", (4, 4 * channels))
    np.testing.assert_array_equal(np.hsplit(picture, channels), pixels.to_bytes(images[0]))
    assert not IMAGES.has_picture((channels, 4, 4))


def test_what_is_known_of_events_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, model.event_kinds.registry, model.intake.normalize; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "matplotlib", "scipy", "sklearn"} & set(loaded)
