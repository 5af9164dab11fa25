"""Writes a .npy file piece by piece. It does not use a memory map, which kills the process when the disk is full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayWriter:
    """A .npy file that is opened in a `with` block and appended to until `shape` is full.

    Raises OSError if the disk is full.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: Sequence[int]) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, items: npt.NDArray[Any]) -> None:
        """Write one item or several, of this file's dtype."""
        self._file.write(np.ascontiguousarray(items, self._dtype).data)
