"""Reads .npz files: which of several arrays holds the items, and which their labels. Nothing is ever unpickled."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from model.errors import DataError
from model.event_kinds.images import IMAGES
from model.intake.archive import Archive, open_archive
from model.intake.arrays import MAX_HEADER_BYTES, Header, pickled, read_header, store_npy
from model.intake.framing import ImageSize
from model.intake.labels import CLASSES, LABEL_NAMES, MAX_CLASSES, MAX_NAME, Labels, store_labels
from model.intake.layouts import LAYOUTS, Array
from model.intake.limits import ReadLimits, Summary, shortened

_MEMBERS = ("data", "images", "x")
_HEAD_BYTES = MAX_HEADER_BYTES + 12
"""The bytes at the beginning of a .npy file that hold the longest header."""
_MAX_WHOLE = 2.0**53
"""Beyond it, floating-point numbers skip whole ones."""


def store_npz(
    source: Path,
    target: Path,
    *,
    name: str,
    limits: ReadLimits,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> Summary:
    """Write one array of a .npz file to `target`, and with it its labels.

    The items are the only array, or the one named `data`, `images` or `x`, or the only one of images or of rows. The
    labels are the array called `label_column`, or else `labels`, `label` or `y`; an array `classes` names what they
    count. Other arrays are not stored, but none may be pickled either. Raises DataError, DataTooLarge.
    """
    with open_archive(source, name, limits) as archive:
        headers = _headers(archive)
        known = next((one for one in LABEL_NAMES if one in headers), None)
        labels = label_column or (known if len(headers) > 1 else None)
        if labels is not None and labels not in headers:
            raise DataError(f"{name} has no array {shortened(labels)!r}; there are {_told(headers)}")
        about_labels = {labels, CLASSES} if labels else set()
        items = _items(name, {one: headers[one] for one in headers if one not in about_labels}, headers)
        summary = _store_member(archive, items, target, limits, image_size)
        if left_out := [one for one in headers if one not in about_labels | {items}]:
            summary = replace(summary, notes=(f"Arrays left out: {_told(left_out)}",))
        if labels is None:
            return summary
        return store_labels(
            target,
            summary,
            lambda: _labels(archive, labels, headers, summary.count),
            name=name,
            source=f"the array {shortened(labels)!r}",
            is_asked=label_column is not None,
            limits=limits,
        )


def _headers(archive: Archive) -> dict[str, Header]:
    """Return the headers of the arrays of a .npz file by their names. Raises DataError if one is pickled."""
    headers: dict[str, Header] = {}
    for file_name in archive.names({".npy"}):
        member = file_name.removesuffix(".npy")
        header = read_header(io.BytesIO(archive.head(file_name, _HEAD_BYTES)), _in(archive, member))
        if header.dtype.hasobject:
            raise pickled(_in(archive, member))
        headers[member] = header
    return headers


def _items(name: str, candidates: Mapping[str, Header], headers: Mapping[str, Header]) -> str:
    """Return which of several arrays holds the items. Raises DataError if that is not clear."""
    if len(candidates) == 1:
        return next(iter(candidates))
    if known := [member for member in _MEMBERS if member in candidates]:
        return known[0]
    kinds = {
        member: layout.kind
        for member, header in candidates.items()
        for layout in LAYOUTS
        if layout.fits(header.shape, header.dtype)
    }
    for fitting in ([one for one, kind in kinds.items() if kind is IMAGES], list(kinds)):
        if len(fitting) == 1:
            return fitting[0]
    raise DataError(f"{name} holds {_told(headers)}; expected one array, or one named {', '.join(_MEMBERS)}")


def _store_member(
    archive: Archive, member: str, target: Path, limits: ReadLimits, image_size: ImageSize | None
) -> Summary:
    unpacked = target.with_name(f"{target.name}.member")
    try:
        with unpacked.open("wb") as file:
            archive.unpack(f"{member}.npy", file)
        return store_npy(unpacked, target, name=_in(archive, member), limits=limits, image_size=image_size)
    finally:
        unpacked.unlink(missing_ok=True)


def _labels(archive: Archive, member: str, headers: Mapping[str, Header], count: int) -> Labels:
    """Return the labels of `count` items, from an array of whole numbers or text. Raises DataError."""
    where, header = _in(archive, member), headers[member]
    if header.shape[0:1] != (count,) or math.prod(header.shape) != count:
        raise DataError(f"{where} has shape {header.shape}; expected one label for each of {count:,} items")
    values = _read_plain(archive, member, header).reshape(count)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(
                f"{where} has no label for item {int(np.argmin(np.isfinite(values)))}; fill it, or remove it"
            )
        if ((values != np.floor(values)) | (np.abs(values) > _MAX_WHOLE)).any():
            raise DataError(f"{where} holds numbers with fractions, or huge ones; expected whole numbers or text")
        values = values.astype(np.int64)
    found, codes = np.unique(values, return_inverse=True)
    if len(found) > MAX_CLASSES:
        raise DataError(f"{where} names {len(found):,} classes; expected at most {MAX_CLASSES:,}. Are they classes?")
    if CLASSES in headers and found.dtype.kind in "iu":
        names = _read_plain(archive, CLASSES, headers[CLASSES]).reshape(-1)
        if found[0] < 0 or found[-1] >= len(names):
            raise DataError(f"{where} counts {found[0]} to {found[-1]}; {_in(archive, CLASSES)} has {len(names)} names")
        found = names[found]
    return Labels.of(where, [str(one) for one in found.tolist()], codes)


def _read_plain(archive: Archive, member: str, header: Header) -> Array:
    """Read an array of one axis of numbers, truth values or short text. Raises DataError."""
    where = _in(archive, member)
    if header.dtype.kind not in "iubfSU" or header.dtype.itemsize > np.dtype(f"U{MAX_NAME}").itemsize:
        raise DataError(f"{where} has dtype {shortened(str(header.dtype))}; expected whole numbers or short text")
    content = archive.read(f"{member}.npy")
    if len(content) - header.size_bytes != math.prod(header.shape) * header.dtype.itemsize:
        raise DataError(f"{where} is damaged: it is not as long as its header promises. Save it again")
    values: Array = np.frombuffer(content, header.dtype, offset=header.size_bytes)
    try:
        if values.dtype.kind == "S":
            return np.char.decode(values, "utf-8")
        return np.array(values.tolist()) if values.dtype.kind == "U" else values
    except ValueError as error:  # bytes that are no text
        raise DataError(f"{where} holds text that cannot be read: {error}") from error


def _told(members: Iterable[str]) -> str:
    return ", ".join(map(shortened, islice(members, 10))) or "no arrays"


def _in(archive: Archive, member: str) -> str:
    return f"{shortened(member)}.npy in {archive.name}"
