"""Writes TensorFlow checkpoints ("tensor bundles"), for tests of the reader, with which it shares no code."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}
_CASTAGNOLI = 0x82F63B78
_NO_BLOCK_COMPRESSION = 0


def write_bundle(
    prefix: Path,
    arrays: Mapping[str, Array],
    *,
    num_shards: int = 1,
    keys_per_block: int = 7,
    compression: int = _NO_BLOCK_COMPRESSION,
    change: Callable[[bytes], bytes] = bytes,
) -> None:
    """PREFIX.index and its data files, to which the arrays go in turn.

    `compression` only marks the blocks; `change` is applied to every entry before it gets its checksum.
    """
    shards = [bytearray() for _ in range(num_shards)]
    entries = {b"": _number(1, num_shards) + _part(3, _number(1, 1))}
    for index, (name, array) in enumerate(arrays.items()):
        number = index % num_shards
        data = np.ascontiguousarray(array).tobytes()
        entries[name.encode()] = change(_entry(array, number, len(shards[number]), data))
        shards[number] += data
    for number, shard in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}").write_bytes(shard)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_table(entries, keys_per_block, compression))


def _entry(array: Array, shard: int, offset: int, data: bytes) -> bytes:
    shape = b"".join(_part(2, _number(1, size)) for size in array.shape)
    where = _number(3, shard) + _number(4, offset) + _number(5, len(data))
    return _number(1, _TYPES[array.dtype.name]) + _part(2, shape) + where + b"\x35" + struct.pack("<I", _masked(data))


def _table(entries: Mapping[bytes, bytes], keys_per_block: int, compression: int) -> bytes:
    keys, out, handles = sorted(entries), bytearray(), {}
    for first in range(0, len(keys), keys_per_block):
        chosen = keys[first : first + keys_per_block]
        block = _block({key: entries[key] for key in chosen})
        handles[chosen[-1]] = _append(out, block, compression)
    filters = _append(out, _block({}), _NO_BLOCK_COMPRESSION)
    index = _append(out, _block(handles), _NO_BLOCK_COMPRESSION)
    return bytes(out) + (filters + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _append(out: bytearray, block: bytes, compression: int) -> bytes:
    """The block with its trailer; what names it."""
    handle = _varint(len(out)) + _varint(len(block))
    body = block + bytes([compression])
    out += body + struct.pack("<I", _masked(body))
    return handle


def _block(records: Mapping[bytes, bytes]) -> bytes:
    """Every third key is whole, and its place is in the table at the end."""
    out, whole, before = bytearray(), [0], b""
    for count, (key, value) in enumerate(records.items()):
        shared = 0
        if count % 3:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        elif count:
            whole.append(len(out))
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    return bytes(out) + struct.pack(f"<{len(whole) + 1}I", *whole, len(whole))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def _masked(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
