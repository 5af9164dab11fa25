"""Datasets of the Hugging Face hub: `hf://owner/name[:split[/column[/labels]]]`, of images or of lists of numbers.

Its labels are in the column that is named after it, or in the only one of classes, or in the one called `label`.

A folder owner/name below the folder of datasets takes the hub's place, for machines without a way out: one that
`datasets` saved, or one with files that it reads. Needs the extra `hf`. No code of a dataset is ever run: `datasets`
has given that up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import DataError
from model.intake.arrays import store_npy
from model.intake.framing import ImageSize, require_images
from model.intake.images import store_images
from model.intake.labels import LABEL_NAMES, Labels, store_labels
from model.intake.limits import ReadLimits, Summary, require_bytes, require_count, shortened
from model.intake.writer import ArrayWriter

if TYPE_CHECKING:
    import datasets

SCHEME = "hf://"
_NAME = re.compile(
    r"hf://(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(:(?P<split>\w[\w.-]{0,95})(/(?P<column>[^/\0]{1,95})"
    r"(/(?P<labels>[^/\0]{1,95}))?)?)?",
    re.ASCII,
)
_NUMBERS = ("float", "int", "uint")
_WORDS = ("string", "large_string", "int", "uint", "bool")
_BATCH = 1024


@dataclass(frozen=True)
class HubName:
    """A request to the hub. Parts that are None are chosen where there is only one choice."""

    repository: str
    split: str | None
    column: str | None
    labels: str | None


def parse_hub_name(name: str) -> HubName:
    """The parts of a name `hf://…`. Raises DataError for a name that cannot be read."""
    found = _NAME.fullmatch(name)
    if found is None or ".." in found["repository"]:
        raise DataError(
            f"dataset is {shortened(name)!r}; expected hf://owner/name, hf://owner/name:split/column/labels"
        )
    return HubName(found["repository"], found["split"], found["column"], found["labels"])


def store_hub_dataset(
    name: str, target: Path, *, mirror: Path | None, limits: ReadLimits, image_size: ImageSize | None = None
) -> Summary:
    """Read a column and its labels, and write them as a validated dataset, of images of `image_size` if there is one.

    Raises DataError.
    """
    wanted = parse_hub_name(name)
    rows = _split(name, wanted, _load(name, wanted, mirror))
    column, labels = wanted.column or _only_column(name, rows), wanted.labels or _label_column(rows)
    for one in (column, labels):
        if one is not None and one not in rows.column_names:
            raise DataError(f"{name} has no column {one!r}; there are {', '.join(rows.column_names)}")
    if _is_image(rows.features[column]):
        summary = _store_images(name, rows, column, target, limits, image_size)
    elif _is_vector(rows.features[column]):
        require_images(name, image_size is None)
        summary = _store_vectors(name, rows, column, target, limits)
    else:
        raise DataError(
            f"column {column!r} of {name} holds {rows.features[column]}; expected images, or lists of numbers"
        )
    if labels is None:
        return summary
    return store_labels(
        target,
        summary,
        lambda: _labels(name, rows, labels),
        name=name,
        source=f"column {labels!r}",
        is_asked=wanted.labels is not None,
        limits=limits,
    )


def _load(name: str, wanted: HubName, mirror: Path | None) -> Any:
    """All splits of a dataset, or the one of a dataset that has no splits."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} needs the package `datasets` on the trainer; install it with pip install 'recovery-likelihood[hf]'"
        ) from None
    datasets.disable_progress_bars()
    folder = mirror / wanted.repository if mirror is not None else None
    try:
        if folder is not None and folder.is_dir():
            is_saved = any((folder / one).exists() for one in ("state.json", "dataset_dict.json"))
            return datasets.load_from_disk(str(folder)) if is_saved else datasets.load_dataset(str(folder))
        if Path(wanted.repository).exists():  # which `datasets` would take for the dataset, whatever it is
            raise DataError(f"{name} is also a folder where this worker runs; start the worker in another one")
        return datasets.load_dataset(wanted.repository)
    except DataError:
        raise
    except Exception as error:  # of many packages: the hub's client, pyarrow, pandas; told, not hidden
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be loaded from the Hugging Face hub: {shortened(told)}") from error


def _split(name: str, wanted: HubName, found: Any) -> datasets.Dataset:
    splits = dict(found) if isinstance(found, dict) else {wanted.split or "train": found}
    split = wanted.split or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; there are {', '.join(splits)}")
    rows: datasets.Dataset = splits[split]
    return rows


def _only_column(name: str, rows: datasets.Dataset) -> str:
    fitting = [column for column, kind in rows.features.items() if _is_image(kind)]
    fitting = fitting or [column for column, kind in rows.features.items() if _is_vector(kind)]
    if len(fitting) == 1:
        return str(fitting[0])
    told = "several columns" if fitting else "no column"
    raise DataError(
        f"{name} has {told} of images or lists of numbers among {', '.join(rows.column_names)}; "
        "name one: hf://owner/name:split/column"
    )


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image)


def _is_vector(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.List | datasets.LargeList) and str(
        getattr(feature.feature, "dtype", "")
    ).startswith(_NUMBERS)


def _label_column(rows: datasets.Dataset) -> str | None:
    """The column that says it holds classes, if there is one and no other does."""
    import datasets

    fitting = [column for column, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    fitting = fitting or [column for column in rows.column_names if column in LABEL_NAMES]
    return fitting[0] if len(fitting) == 1 else None


def _labels(name: str, rows: datasets.Dataset, column: str) -> Labels:
    """The classes in a column of classes, words, whole numbers or truth values. Raises DataError."""
    import datasets

    where, feature = f"column {column!r} of {name}", rows.features[column]
    if not str(getattr(feature, "dtype", "")).startswith(_WORDS):
        raise DataError(f"{where} holds {feature}; expected classes, words or whole numbers")
    values, names = rows[column][:], feature.names if isinstance(feature, datasets.ClassLabel) else None
    missing = (None, -1) if names else (None,)  # classes write −1 for a row that nobody has labelled
    if (without := next((row for row, value in enumerate(values) if value in missing), None)) is not None:
        raise DataError(f"{where} has no label in row {without}; fill it, or leave the row out")
    return Labels.of_items(where, [names[value] if names else str(value) for value in values])


def _store_images(
    name: str,
    rows: datasets.Dataset,
    column: str,
    target: Path,
    limits: ReadLimits,
    image_size: ImageSize | None,
) -> Summary:
    import datasets

    encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names = [f"row {index} of {name}" for index in range(len(encoded))]
    read_fn: Callable[[int], bytes] = lambda index: _image_bytes(encoded[index][column], names[index])  # noqa: E731
    return store_images(names, read_fn, target, name=name, limits=limits, image_size=image_size)


def _image_bytes(image: Any, name: str) -> bytes:
    """The bytes of an image that lies in the table itself. A path in a table from outside must not open a file here."""
    data = image and image["bytes"]
    if not isinstance(data, bytes):
        raise DataError(f"{name} has no image in it; expected a dataset that holds its images, as Parquet or Arrow")
    return data


def _store_vectors(name: str, rows: datasets.Dataset, column: str, target: Path, limits: ReadLimits) -> Summary:
    require_count(name, len(rows), limits)
    width = len(rows[0][column] or ())
    require_bytes(name, (len(rows), width), 8, limits)
    raw = target.with_name(f"{target.name}.column")
    try:
        with ArrayWriter(raw, np.float64, (len(rows), width)) as file:
            done = 0
            for batch in rows.select_columns([column]).iter(_BATCH):
                file.append(_numbers(batch[column], width, f"{name}, rows {done} to {done + _BATCH - 1}"))
                done += _BATCH
        return store_npy(raw, target, name=name, limits=limits)
    finally:
        raw.unlink(missing_ok=True)


def _numbers(lists: Any, width: int, where: str) -> Any:
    try:
        numbers = np.array(lists, np.float64)
    except (ValueError, TypeError):
        numbers = np.empty(0)
    if numbers.ndim != 2 or numbers.shape[1] != width:
        raise DataError(f"{where}: expected {width} numbers in each, as in the first row")
    return numbers
