"""Reads a CSV of numbers into one array (N, D) of float32. Errors name line and column, both counted from 1."""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.errors import DataError, DataTooLarge
from model.intake.arrays import store_array
from model.intake.framing import ImageSize, require_images
from model.intake.labels import Labels, store_labels
from model.intake.limits import ReadLimits, Summary, require_bytes, require_count, shortened

_MAX_LINE_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_MAX_NUMBER = float(np.finfo(np.float32).max)
_MISSING = ("", "nan")
"""What programs write where a row has no label, in any case."""


def store_csv(
    source: Path,
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> Summary:
    """Write the rows of a CSV file to `target`, as an array (N, D), and with it the labels in `label_column`.

    The file is in UTF-8 with numbers separated by commas; a first line without any number is a header. The column of
    labels, whose cells may be any text, is named by its heading, or by its number, from 1, in a file without headings.
    Raises DataError, naming line and column, and DataTooLarge.
    """
    require_images(name, image_size is None)
    raw = target.with_name(f"{target.name}.rows")
    try:
        count, width, classes = _parse(source, raw, name, limits, label_column)
        require_count(name, count, limits)
        summary = store_array(np.memmap(raw, np.float32, "r", shape=(count, width)), target, name=name)
    finally:
        raw.unlink(missing_ok=True)
    if label_column is None:
        return summary
    where = f"column {shortened(label_column)!r}"
    return store_labels(
        target,
        summary,
        lambda: Labels.of_items(f"{where} of {name}", classes),
        name=name,
        source=where,
        is_asked=True,
        limits=limits,
    )


def _parse(
    source: Path, raw: Path, name: str, limits: ReadLimits, label_column: str | None
) -> tuple[int, int, list[str]]:
    """Write the numbers one after another into `raw`; return how many (rows, columns) there are, and the labels."""
    count, width, headings = 0, 0, list[str]()
    label, classes = -1, list[str]()
    with raw.open("wb") as file:
        for line, cells in _rows(source, name):
            width = width or len(cells)
            if len(cells) != width:
                raise DataError(f"{name} line {line} has {len(cells)} columns, the first has {width}; expected as many")
            if width > limits.max_columns:
                raise DataTooLarge(f"{name} has {width:,} columns; expected at most {limits.max_columns:,}")
            if not headings and not count and not any(map(_is_number, cells)):
                headings = cells
                continue
            if label_column is not None:
                label = _label_index(name, label_column, headings, width) if label < 0 else label
                classes.append(_class(cells[label], f"{name} line {line}", label_column))
            count += 1
            if count > limits.max_items:
                raise DataTooLarge(f"{name} has more than {limits.max_items:,} rows; split it")
            require_bytes(name, (count, width), 4, limits)
            where = f"{name} line {line}"
            numbers = [_number(cell, where, c, headings) for c, cell in enumerate(cells) if c != label]
            array("f", numbers).tofile(file)
    return count, width - (label_column is not None), classes


def _label_index(name: str, label_column: str, headings: Sequence[str], width: int) -> int:
    """Return the index of the column of labels. Raises DataError if there is none, or no other column."""
    if headings:
        found = [index for index, heading in enumerate(headings) if heading.strip() == label_column]
        told = f"there are {', '.join(map(shortened, headings[:10]))}"
    else:
        is_index = label_column.isascii() and label_column.isdecimal() and 1 <= int(label_column) <= width
        found = [int(label_column) - 1] if is_index else []
        told = f"it has no line of headings: name the column by its number, 1 to {width}"
    if len(found) != 1:
        raise DataError(f"{name} has {'several columns' if found else 'no column'} {shortened(label_column)!r}; {told}")
    if width < 2:
        raise DataError(f"{name} has no column beside {shortened(label_column)!r}; expected numbers too")
    return found[0]


def _class(cell: str, where: str, label_column: str) -> str:
    """Return the name of a row's class, as one object however many rows are of it."""
    text = cell.strip()
    if text.lower() in _MISSING:
        raise DataError(f"{where} has no label in column {shortened(label_column)!r}; fill it, or remove the row")
    return sys.intern(text)


def _rows(source: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line that is not empty."""
    reader = csv.reader(_lines(source, name), strict=True)
    try:
        for cells in reader:
            if cells and cells != [""]:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num} is not a table of numbers: {error}") from error


def _lines(source: Path, name: str) -> Iterator[str]:
    with source.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise DataTooLarge(f"{name} line {number} is longer than {_MAX_LINE_BYTES:,} bytes; is it a CSV?")
            if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
                raise DataError(f"{name} line {number} has lines that end in CR alone; save it as CSV with LF or CR LF")
            try:
                yield (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{name} line {number} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def _number(cell: str, where: str, column: int, headings: list[str]) -> float:
    at = f"{where}, column {column + 1}" + (f" ({shortened(headings[column])!r})" if headings else "")
    if not _is_number(cell):
        raise DataError(
            f"{at}: {shortened(cell)!r} is not a number; expected a table of numbers separated by commas, in which "
            "label_column may name one of classes"
        )
    value = float(cell)
    if not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        raise DataError(f"{at}: {shortened(cell)} is not finite as a 32-bit number; remove the row, or fill it")
    return value


def _is_number(cell: str) -> bool:
    """Whether float() takes a cell, except that underscores and the digits of other scripts are refused."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell
