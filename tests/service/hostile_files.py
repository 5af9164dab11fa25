"""Files for uploads: such as people send, and such as nobody sends by mistake."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(value: int = 0, size: tuple[int, int] = (8, 8), *, form: str = "PNG", mode: str = "L") -> bytes:
    """An image file of one grey."""
    packed = io.BytesIO()
    Image.new(mode, size, value).save(packed, form)
    return packed.getvalue()


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these, and of two pictures that nothing is wrong with."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in (("a.png", picture(10)), ("b.png", picture(20)), *members):
            archive.writestr(name, data)
    return packed.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    """As numpy saves it."""
    packed = io.BytesIO()
    np.save(packed, array, **options)
    return packed.getvalue()


def npy_of_header(text: str, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    """A .npy file with any header."""
    header = text.encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def header(shape: str, dtype: str = "<f4") -> str:
    """The text that a .npy file says about itself."""
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def rows(count: int = 20, width: int = 2) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows that nothing is wrong with."""
    return np.random.default_rng(0).normal(size=(count, width))


def npz(**arrays: Any) -> bytes:
    """As numpy saves several."""
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=True, **arrays)
    return packed.getvalue()


def member(name: str, **attributes: Any) -> zipfile.ZipInfo:
    """A directory entry with that name, however odd."""
    member = zipfile.ZipInfo("placeholder.png")
    member.filename = member.orig_filename = name
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member


def with_raw_name(name: bytes, *, flag: int = 0) -> bytes:
    """A zip whose member has these bytes as its name, which zipfile would not write."""
    plain = zipped((member("x" * len(name)), picture(5)))
    renamed = plain.replace(b"x" * len(name), name)
    return with_flags(renamed, name, flag) if flag else renamed


def with_flags(data: bytes, name: bytes, flag: int) -> bytes:
    """Set flag bits of a member, in its own header (6 bytes in) and in the directory (8 bytes in)."""
    changed = bytearray(data)
    for signature, offset, name_at in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        at = data.find(signature)
        while at >= 0:
            if data[at + name_at : at + name_at + len(name)] == name:
                changed[at + offset : at + offset + 2] = struct.pack("<H", flag)
            at = data.find(signature, at + 1)
    return bytes(changed)


def with_understated_size() -> bytes:
    """The bomb says that it is small."""
    bomb = zipped(("bomb.png", bytes(3_000_000)))
    return bomb.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 300))


def crowded(count: int) -> bytes:
    """A zip of so many empty members."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index in range(count):
            archive.writestr(f"{index}.png", b"")
    return packed.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, and a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animation() -> bytes:
    """A GIF of three frames."""
    packed = io.BytesIO()
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    frames[0].save(packed, "GIF", save_all=True, append_images=frames[1:])
    return packed.getvalue()


def overlapping() -> bytes:
    """Many directory entries for one and the same picture, which takes a few hundred bytes in the file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000.png", picture(0, (256, 256)))
        first = archive.infolist()[0]
        for index in range(1, 50):
            copy = zipfile.ZipInfo(f"{index:03d}.png")
            for attribute in ("compress_type", "compress_size", "file_size", "CRC", "header_offset", "flag_bits"):
                setattr(copy, attribute, getattr(first, attribute))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    return packed.getvalue()


def eps() -> bytes:
    """PostScript that would read a file."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n%%EOF\n"


def with_nan(value: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows with that value among them."""
    array = rows()
    array[7, 1] = value
    return array


class _Evil:
    """Would leave a file behind if it were ever unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, ("/tmp/recovery-was-unpickled",)


def objects() -> np.ndarray[Any, Any]:
    """An array that only pickle can hold."""
    return np.array([[_Evil(), 1], [2, 3]], dtype=object)


def zip_of(*members: tuple[str, bytes]) -> bytes:
    """A zip of these members."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return packed.getvalue()


def many_pictures(count: int, side: int) -> list[tuple[str, bytes]]:
    """Members of a zip: square pictures, each of another grey."""
    return [(f"{index}.png", picture(index, (side, side))) for index in range(count)]


def damaged(data: bytes) -> bytes:
    """One byte in the middle is another; the members at both ends are untouched."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0xFF
    return bytes(changed)
