"""Validated datasets on a worker's disk, kept for the next job until others need the room.

Their names are `{digest}.npy`, or `{digest}.npz` where the items have labels.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from model.intake.labels import stored_suffix
from worker.storage.bucket import sha256_of

_ABANDONED_S = 86_400.0
"""A folder of a fetch that old has lost its process."""


class DatasetCache:
    """A folder that several processes share: a file appears whole, and its time of writing is that of its last use."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def fetch(self, digest: str, write_fn: Callable[[Path], object]) -> Path:
        """The file of that digest, written by `write_fn(path)` unless it is there. Raises what `write_fn` raises."""
        for path in (self._directory / f"{digest}.npy", self._directory / f"{digest}.npz"):
            if path.exists():
                path.touch()
                return path
        return self._write(write_fn, lambda _path: digest)

    def add(self, write_fn: Callable[[Path], object]) -> Path:
        """The file that `write_fn(path)` writes, under the digest of its content."""
        return self._write(write_fn, sha256_of)

    def _write(self, write_fn: Callable[[Path], object], digest_fn: Callable[[Path], str]) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._directory) as partial:
            written = Path(partial) / "data"
            write_fn(written)
            path = written.replace(self._directory / f"{digest_fn(written)}{stored_suffix(written)}")
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        """Remove the least recently used beyond the limit; never the newest, which is about to be read."""
        for partial in self._directory.glob(".partial-*"):
            with contextlib.suppress(OSError):  # its own process is quicker
                if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(partial)
        files = sorted(self._directory.glob("*.np[yz]"), key=_last_use, reverse=True)
        total_bytes = newest.stat().st_size
        for path in files:
            if path == newest:
                continue
            with contextlib.suppress(FileNotFoundError):  # another process made room too
                total_bytes += path.stat().st_size
                if total_bytes > self._max_bytes:
                    path.unlink()


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
