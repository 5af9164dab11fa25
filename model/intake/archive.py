"""Reads a zip from anybody: its directory is checked before anything is unpacked, and bytes are counted, not believed.

Nothing is ever written under a member's name. Names that would matter if it were (`../`, absolute, NUL,
symbolic links) are refused all the same, because they are no accident.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from model.errors import DataError, DataTooLarge
from model.intake.limits import ReadLimits, shortened

_DIRECTORY_ENTRY = b"PK\x01\x02"
_DIRECTORY_BYTES = 256
"""The bytes of the directory that are read for each member that is allowed."""
_MAX_NAME = 500
_FREE_BYTES = 2**20
"""A member may unpack to this size whatever its ratio, as small pictures of one colour do."""
_PIECE_BYTES = 2**20
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, NotImplementedError)


class Archive:
    """The members of a zip that hold data, by name. What is read counts against the limits."""

    def __init__(self, zip_file: zipfile.ZipFile, name: str, limits: ReadLimits) -> None:
        self.name = name
        self._zip = zip_file
        self._limits = limits
        self._unpacked_bytes = 0
        self._members = _checked_members(zip_file, name, limits)

    def names(self, suffixes: Collection[str]) -> list[str]:
        """Return the names of the members that end in one of `suffixes`, sorted."""
        return sorted(name for name in self._members if PurePosixPath(name).suffix.lower() in suffixes)

    def read(self, name: str) -> bytes:
        """Unpack a member and return its content. Raises DataError, DataTooLarge."""
        unpacked = io.BytesIO()
        self.unpack(name, unpacked)
        return unpacked.getvalue()

    def unpack(self, name: str, target: IO[bytes]) -> None:
        """Write a member's content to an open file. Raises DataError, DataTooLarge."""
        member = self._members[name]
        allowed_bytes = _FREE_BYTES + self._limits.max_ratio * member.compress_size
        size_bytes = 0
        try:
            with self._zip.open(member) as file:
                while piece := file.read(_PIECE_BYTES):
                    size_bytes += len(piece)
                    self._count(name, len(piece), size_bytes > allowed_bytes)
                    target.write(piece)
        except _UNREADABLE as error:
            if isinstance(error, DataError):
                raise
            raise self._damaged(name, error) from error

    def head(self, name: str, num_bytes: int) -> bytes:
        """Unpack the first bytes of a member and no more. Raises DataError."""
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(num_bytes)
        except _UNREADABLE as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{shortened(name)} in {self.name} cannot be unpacked: {error}")

    def _count(self, name: str, num_bytes: int, is_bomb: bool) -> None:
        self._unpacked_bytes += num_bytes
        if is_bomb:
            raise DataTooLarge(
                f"{shortened(name)} in {self.name} unpacks to more than {self._limits.max_ratio} times its compressed "
                "size; expected a plain archive of data"
            )
        if self._unpacked_bytes > self._limits.max_array_bytes:
            raise DataTooLarge(
                f"{self.name} unpacks to more than {self._limits.max_array_bytes:,} bytes, counted up to "
                f"{shortened(name)}; split it, or leave members out"
            )


@contextlib.contextmanager
def open_archive(path: Path, name: str, limits: ReadLimits) -> Iterator[Archive]:
    """Open a zip and check all its members. Raises DataError, naming the offending member, and DataTooLarge."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_GuardedFile(path, name, limits))
        try:
            zip_file = stack.enter_context(zipfile.ZipFile(file))
        except _UNREADABLE as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name} is not a zip archive that can be read: {error}") from error
        yield Archive(zip_file, name, limits)


class _GuardedFile(io.FileIO):
    """A file of a zip that refuses to read a very long directory, which zipfile reads in one piece before it checks."""

    def __init__(self, path: Path, name: str, limits: ReadLimits) -> None:
        super().__init__(path)
        self._name = name
        self._max_members = limits.max_members

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PIECE_BYTES + self._max_members * _DIRECTORY_BYTES:
            raise DataTooLarge(f"{self._name} has a directory of {size:,} bytes; {self._expected}")
        found = super().read(size) or b""
        if found.count(_DIRECTORY_ENTRY) > self._max_members:
            raise DataTooLarge(f"{self._name} has {found.count(_DIRECTORY_ENTRY):,} members; {self._expected}")
        return found

    @property
    def _expected(self) -> str:
        return f"expected at most {self._max_members:,} members with names of ordinary length"


def _checked_members(zip_file: zipfile.ZipFile, name: str, limits: ReadLimits) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in zip_file.infolist():
        member.filename = _path(member)
        if reason := _objection(member):
            raise DataError(f"{shortened(member.orig_filename)!r} in {name} {reason}")
        if member.is_dir() or _is_ignored(member.filename):
            continue
        if member.filename in members:
            raise DataError(f"{shortened(member.filename)} is in {name} twice; keep one of them")
        members[member.filename] = member
        if len(members) > limits.max_members:
            raise DataTooLarge(f"{name} has more than {limits.max_members:,} members; put fewer into it")
    return members


def _path(member: zipfile.ZipInfo) -> str:
    """Return a member's name as it was packed, with the backslashes that some programs on Windows write as slashes."""
    return member.orig_filename.replace("\\", "/")


def _objection(member: zipfile.ZipInfo) -> str | None:
    """Say what is wrong with a member, judged by its directory entry alone; None if nothing is."""
    name = _path(member)
    file_type = stat.S_IFMT(member.external_attr >> 16)
    if not name or not name.isprintable() or len(name) > _MAX_NAME:
        return f"has a name with control characters, or none, or one longer than {_MAX_NAME} characters; rename it"
    if name.startswith("/") or name[1:2] == ":":
        return "has an absolute path; pack it with names relative to a folder"
    if ".." in name.split("/"):
        return "has a path that leaves the archive; pack it without '..'"
    if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or a device; pack the file itself"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted; pack it without a password"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type}; pack it stored or deflated"
    return None


def _is_ignored(name: str) -> bool:
    """Whether a member is one of those that operating systems leave beside the files."""
    return any(part == "__MACOSX" or (part.startswith(".") and part != ".") for part in name.split("/"))
