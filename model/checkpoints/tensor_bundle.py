"""Reads TensorFlow's checkpoint format, the "tensor bundle", without TensorFlow.

    PREFIX.index                     a LevelDB table: name -> where the value lies (BundleEntryProto); "" -> the header
    PREFIX.data-00000-of-00001 …     the values, raw and little-endian

A table consists of blocks of sorted keys, in which each key leaves out what it shares with the one before, then a block
that lists the others, then a footer of 48 bytes. Every block and every value carries a masked crc32c, which is checked
when it is read. Every length is compared with what is there before anything is allocated.

Sources: tensorflow/core/util/tensor_bundle, tensorflow/core/protobuf/tensor_bundle.proto, LevelDB's table_format.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from model.errors import CheckpointError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # at the end of a block: one byte says how it is compressed, four are its crc32c
_MAX_INDEX_BYTES = 64 << 20  # a thousand variables take about 100 kB
_MAX_DIMENSIONS = 8
_MAX_VARINT_BYTES = 10
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}
"""The types of TensorFlow's types.proto that weights and counters have, as types of numpy."""


class _Malformed(Exception):
    """The bytes are not what the format asks for; the message does not name the file."""


class TensorBundle:
    """The index of a checkpoint; values are read one at a time. Raises CheckpointError unless the index is whole."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        path = _beside(prefix, ".index")
        try:
            entries = {key: _Message.parse(value) for key, value in _table(_index_bytes(path))}
            self._num_shards = _num_shards(entries.pop(b"", None))
            self._entries = {key.decode(): _Entry.parse(message) for key, message in entries.items()}
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no {path}; expected the prefix of a TensorFlow checkpoint, without .index or .data-…"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except (_Malformed, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not the index of a whole TensorFlow checkpoint: {error}") from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every value, by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one value. Raises CheckpointError if it is absent, cut off, damaged or not an array of numbers."""
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self._prefix} has no variable {name}")
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or entry.is_sliced or len(entry.shape) > _MAX_DIMENSIONS:
            raise CheckpointError(
                f"{name} in {self._prefix} is of TensorFlow type {entry.dtype}{' in slices' * entry.is_sliced} "
                f"and {len(entry.shape)} dimensions; expected float or integer arrays in one piece"
            )
        if math.prod(entry.shape) * np.dtype(dtype).itemsize != entry.size or entry.shard >= self._num_shards:
            raise CheckpointError(f"{self._prefix}.index contradicts itself about {name}; fetch the checkpoint again")
        return np.frombuffer(self._bytes(name, entry), dtype).reshape(entry.shape)

    def _bytes(self, name: str, entry: _Entry) -> bytes:
        path = _beside(self._prefix, f".data-{entry.shard:05d}-of-{self._num_shards:05d}")
        try:
            present = path.stat().st_size
            if entry.offset + entry.size > present:
                raise CheckpointError(
                    f"{path} is cut off: {name} ends at byte {entry.offset + entry.size}, the file at {present}; "
                    "fetch it again"
                )
            with path.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}; the index names it") from error
        if _masked_crc(data) != entry.crc:
            raise CheckpointError(f"{path} is damaged: {name} does not have the crc32c of the index; fetch it again")
        return data


@dataclass(frozen=True)
class _Message:
    """A protocol buffer message: its numbers and its parts of bytes, by field number."""

    numbers: dict[int, int] = field(default_factory=dict)
    parts: dict[int, list[bytes]] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> _Message:
        message, cursor = cls(), _Cursor(data)
        while not cursor.at_end:
            tag = cursor.varint()
            match tag & 7:
                case 0:
                    message.numbers[tag >> 3] = cursor.varint()
                case 1:
                    message.numbers[tag >> 3] = int.from_bytes(cursor.take(8), "little")
                case 2:
                    message.parts.setdefault(tag >> 3, []).append(cursor.take(cursor.varint()))
                case 5:
                    message.numbers[tag >> 3] = int.from_bytes(cursor.take(4), "little")
                case other:
                    raise _Malformed(f"an entry has a field of wire type {other}")
        return message

    def children(self, number: int) -> list[_Message]:
        """Return the sub-messages of a field."""
        return [_Message.parse(part) for part in self.parts.get(number, [])]


@dataclass(frozen=True)
class _Entry:
    """A BundleEntryProto, which says where a value lies and what it is."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool

    @classmethod
    def parse(cls, message: _Message) -> _Entry:
        dtype, shard, offset, size, crc = (message.numbers.get(number, 0) for number in (1, 3, 4, 5, 6))
        dimensions = [dimension for shape in message.children(2) for dimension in shape.children(2)]
        shape = tuple(dimension.numbers.get(1, 0) for dimension in dimensions)
        return cls(dtype, shape, shard, offset, size, crc, is_sliced=7 in message.parts)


class _Cursor:
    """Reads forward through bytes and never past their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise _Malformed("a length in it reaches past its end")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self) -> int:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value
        raise _Malformed("a number in it does not end")


def _index_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MAX_INDEX_BYTES:
        raise _Malformed(f"it has {size} bytes; expected at most {_MAX_INDEX_BYTES}")
    return path.read_bytes()


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key, value) of a LevelDB table, in order."""
    if int.from_bytes(data[-8:], "little") != _MAGIC or len(data) < _FOOTER_BYTES:
        raise _Malformed("it does not end in the mark of one; it is cut off, or another kind of file")
    footer = _Cursor(data[-_FOOTER_BYTES:])
    _handle(footer)  # this is the block of filters, which TensorFlow leaves empty
    for _, where in _records(_block(data, *_handle(footer))):
        yield from _records(_block(data, *_handle(_Cursor(where))))


def _handle(cursor: _Cursor) -> tuple[int, int]:
    """Read the (offset, size) of a block."""
    return cursor.varint(), cursor.varint()


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER_BYTES > len(data):
        raise _Malformed("a block reaches past its end")
    end = offset + size
    if _masked_crc(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little"):
        raise _Malformed("a block does not have its crc32c; the file is damaged")
    if data[end] != 0:
        raise _Malformed("it is compressed, which TensorFlow's own writer never does; save the checkpoint again")
    return data[offset:end]


def _records(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key, value) of a block.

    The tail of a block is an array of offsets for binary search, then its length, in numbers of four bytes.
    """
    tail = 4 + 4 * int.from_bytes(block[-4:], "little")
    if tail > len(block):
        raise _Malformed("a block is shorter than its own table of offsets")
    cursor, key = _Cursor(block[:-tail]), b""
    while not cursor.at_end:
        shared, rest, size = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key):
            raise _Malformed("a key shares more with the one before than that has")
        key = key[:shared] + cursor.take(rest)
        yield key, cursor.take(size)


def _num_shards(header: _Message | None) -> int:
    """Return the number of files of values, which the BundleHeaderProto gives."""
    if header is None:
        raise _Malformed("it has no header entry")
    if header.numbers.get(2, 0) != 0:
        raise _Malformed("its values are big-endian; expected little-endian")
    return header.numbers.get(1, 0)


def _masked_crc(data: bytes) -> int:
    """Return LevelDB's masked crc32c, rotated and shifted so that the crc of data that hold a crc is not trivial."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _beside(prefix: Path, suffix: str) -> Path:
    return Path(f"{prefix}{suffix}")
