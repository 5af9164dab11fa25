"""Reads a CSV of numbers into one array (N, D) of float32. Errors name line and column, both counted from 1."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.errors import DataError, DataTooLarge
from model.intake.arrays import store_array
from model.intake.limits import ReadLimits, Summary, require_bytes, require_count, shortened

_MAX_LINE_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_MAX_NUMBER = float(np.finfo(np.float32).max)


def store_csv(source: Path, target: Path, *, name: str, limits: ReadLimits) -> Summary:
    """Write the rows of a CSV file to `target`, as an array (N, D).

    The file is in UTF-8 with numbers separated by commas; a first line without any number is a header. Raises
    DataError, naming line and column, and DataTooLarge.
    """
    raw = target.with_name(f"{target.name}.rows")
    try:
        count, width = _parse(source, raw, name, limits)
        require_count(name, count, limits)
        return store_array(np.memmap(raw, np.float32, "r", shape=(count, width)), target, name=name)
    finally:
        raw.unlink(missing_ok=True)


def _parse(source: Path, raw: Path, name: str, limits: ReadLimits) -> tuple[int, int]:
    """Write the numbers one after another into `raw`, and return how many (rows, columns) there are."""
    count, width, headings = 0, 0, list[str]()
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
            count += 1
            if count > limits.max_items:
                raise DataTooLarge(f"{name} has more than {limits.max_items:,} rows; split it")
            require_bytes(name, (count, width), 4, limits)
            array("f", [_number(cell, f"{name} line {line}", c, headings) for c, cell in enumerate(cells)]).tofile(file)
    return count, width


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
            try:
                yield (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{name} line {number} is not UTF-8 ({error.reason}); save it as UTF-8") from None


def _number(cell: str, where: str, column: int, headings: list[str]) -> float:
    at = f"{where}, column {column + 1}" + (f" ({shortened(headings[column])!r})" if headings else "")
    if not _is_number(cell):
        raise DataError(f"{at}: {shortened(cell)!r} is not a number; expected a table of numbers separated by commas")
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
