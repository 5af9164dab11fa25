"""What an energy is asked under: a noise level for every row, and a label where a model knows labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class At:
    """The conditions of a batch of rows. Rows are selected, joined and moved with all their conditions together."""

    level: Tensor
    """(B,) int64 index t of the noise level; a floating-point log-SNR λ where an energy is continuous in it"""
    label: Tensor | None = None
    """(B,) int64 class of each row; None without labels"""

    @classmethod
    def same(cls, level: int, like: Tensor) -> At:
        """One level for every row of `like` (B, …), on its device."""
        return cls(torch.full((len(like),), level, device=like.device))

    @classmethod
    def joined(cls, parts: Sequence[At]) -> At:
        """The rows of `parts`, one after another. Either all of them have labels or none has."""
        labels = [part.label for part in parts if part.label is not None]
        return cls(torch.cat([part.level for part in parts]), torch.cat(labels) if labels else None)

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, rows: slice | Tensor | NDArray[Any]) -> At:
        return self.map(lambda one: one[rows])

    def on(self, level: Tensor) -> At:
        """The same conditions at another `level` (B,)."""
        return replace(self, level=level)

    def map(self, tensor_fn: Callable[[Tensor], Tensor]) -> At:
        """The conditions with every tensor passed through `tensor_fn`."""
        return At(tensor_fn(self.level), None if self.label is None else tensor_fn(self.label))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The conditions that there are, as tensors whose first axis is the rows."""
        return (self.level,) if self.label is None else (self.level, self.label)
