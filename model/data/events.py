"""The events of a dataset, in memory or in a file that is larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.intake.stored import StoredArray


class Events(Protocol):
    """Events that are read by their rows; a tensor (N, *event) is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *event)"""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor: ...


class StoredEvents:
    """Events in a file, which become tensors on the CPU when they are asked for.

    Event i is `convert_fn` of the stored item `order[i]`; it takes items (B, …) and returns events (B, *event).
    """

    def __init__(
        self,
        array: StoredArray,
        convert_fn: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
        order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._array = array
        self._convert_fn = convert_fn
        self._order = np.arange(len(array)) if order is None else order
        self.shape: tuple[int, ...] = (len(self._order), *convert_fn(array.block(0, 1)).shape[1:])

    def taken(self, rows: npt.NDArray[np.int64]) -> StoredEvents:
        """Return the events at `rows` (B,), in their order, without reading them."""
        return StoredEvents(self._array, self._convert_fn, self._order[rows])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read the events of a slice, or at the indices (B,), as (B, *event) float32."""
        chosen = self._order[rows if isinstance(rows, slice) else rows.numpy()]
        return torch.from_numpy(self._convert_fn(self._array.rows(chosen)))
