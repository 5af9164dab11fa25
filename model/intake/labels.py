"""The classes of a dataset's items: found in folders, columns and arrays, checked, and kept in one file with the items.

A labelled dataset is a .npz, stored and not compressed, of three arrays: the items `x`, as an unlabelled one's .npy has
them, `labels` (N,) of whole numbers, and `classes` (K,), the names that the numbers count.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from model.errors import DataError, DataTooLarge
from model.intake.limits import ClassCount, ReadLimits, Summary, shortened

MAX_CLASSES = 1000
MAX_NAME = 100
"""The most characters of a class's name."""
LABEL_NAMES = ("labels", "label", "y")
"""The names of arrays and columns that say what they hold."""
ITEMS, LABELS, CLASSES = "x", "labels", "classes"
"""The arrays of a stored dataset with labels."""

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """The class of every item: item i is of class `names[codes[i]]`."""

    names: tuple[str, ...]
    codes: Codes
    """(N,)"""

    @classmethod
    def of(cls, where: str, names: Sequence[str], codes: Codes) -> Labels:
        """Check classes and put their names in natural order, "2" before "10"; item i is of class `names[codes[i]]`.

        Raises DataError, which says `where` the labels lie.
        """
        _require_names(where, names, codes)
        counts = np.bincount(codes, minlength=len(names))
        if (counts == 1).any():
            alone = shortened(names[int(np.argmax(counts == 1))])
            raise DataError(f"{where} has one item of class {alone!r}; expected at least 2. Add some, or remove it")
        if len(names) < 2:
            raise DataError(f"{where} names one class, {names[0]!r}, for all items; expected at least 2")
        order = sorted(range(len(names)), key=lambda code: _natural(names[code]))
        return cls(tuple(names[code] for code in order), np.argsort(order)[codes])

    @classmethod
    def of_items(cls, where: str, items: Sequence[str]) -> Labels:
        """Make labels of the name of every item's class. Raises DataError as `of` does."""
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(one, len(numbers)) for one in items), np.int64, len(items))
        return cls.of(where, list(numbers), codes)

    @property
    def counts(self) -> tuple[ClassCount, ...]:
        """The name and the number of items of every class."""
        counts = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return tuple(ClassCount(name=name, count=count) for name, count in zip(self.names, counts, strict=True))


def store_labels(
    target: Path,
    summary: Summary,
    find_fn: Callable[[], Labels],
    *,
    name: str,
    source: str,
    is_asked: bool,
    limits: ReadLimits,
) -> Summary:
    """Put the labels that `find_fn` returns into one file with the items at `target`, and say so in the summary.

    Labels that nobody asked for and that cannot be classes leave the dataset without labels, and a note says why.
    Raises DataError for those that were asked for, DataTooLarge.
    """
    try:
        labels = find_fn()
    except DataError as error:
        if is_asked:
            raise
        return replace(summary, notes=(*summary.notes, f"Not labelled by {source}: {error}"))
    _pack(target, labels, name, limits)
    note = f"Labelled by {source}: {len(labels.names)} classes"
    return replace(summary, labels=labels.counts, notes=(*summary.notes, note))


def stored_suffix(path: Path) -> str:
    """Return the ending that a stored dataset's name should have: .npz with labels, .npy without."""
    with path.open("rb") as file:
        return ".npz" if file.read(2) == b"PK" else ".npy"


def has_class_folders(paths: Sequence[str]) -> bool:
    """Whether files at these paths, separated by /, lie in several folders."""
    return len({PurePosixPath(path).parent for path in paths}) > 1


def folder_labels(where: str, paths: Sequence[str]) -> Labels:
    """Return the labels of files that all lie directly in the class folders of one folder. Raises DataError."""
    parents = [PurePosixPath(path).parent for path in paths]
    above = {parent.parent if parent.parts else None for parent in parents}
    if len(above) > 1:
        raise DataError(
            f"{where} has images at several places; expected all in folders side by side, one for each class"
        )
    return Labels.of_items(where, [parent.name for parent in parents])


def refuse_label_column(name: str, label_column: str | None) -> None:
    """Refuse the name of a column for data that have no columns with names. Raises DataError."""
    if label_column is not None:
        raise DataError(
            f"{name} has neither columns nor arrays with names; label_column is for .csv and .npz files. Leave it out, "
            "or put images into a folder for each class"
        )


def _require_names(where: str, names: Sequence[str], codes: Codes) -> None:
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where} names {len(names):,} classes; expected at most {MAX_CLASSES:,}. Are they classes?")
    for code, one in enumerate(names):
        if not one.strip():
            item = int(np.argmax(codes == code))
            raise DataError(f"{where} has an empty name for the class of item {item}; fill it, or remove the item")
        if len(one) > MAX_NAME or not one.isprintable():
            raise DataError(
                f"{where} names a class {shortened(one)!r}; expected at most {MAX_NAME} characters on one line"
            )
    if twice := [one for one, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where} names two classes {twice[0]!r}; rename one")


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key by which names sort as people count: their digits as numbers, and letters without their case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _pack(path: Path, labels: Labels, name: str, limits: ReadLimits) -> None:
    """Replace a .npy file by a .npz of its array and the labels, the same bytes for the same content."""
    packed = path.with_name(f"{path.name}.packed")
    with zipfile.ZipFile(packed, "w") as archive:
        with archive.open(zipfile.ZipInfo(f"{ITEMS}.npy"), "w", force_zip64=True) as member, path.open("rb") as file:
            shutil.copyfileobj(file, member)
        for array_name, array in ((LABELS, labels.codes.astype(np.uint16)), (CLASSES, np.array(labels.names))):
            with archive.open(zipfile.ZipInfo(f"{array_name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        size_bytes = sum(member.file_size for member in archive.infolist())
    if size_bytes > limits.max_array_bytes:
        packed.unlink()
        raise DataTooLarge(
            f"{name} would be {size_bytes:,} bytes with its labels; expected at most {limits.max_array_bytes:,}"
        )
    packed.replace(path)
