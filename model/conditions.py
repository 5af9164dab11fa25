"""The conditions under which an energy is evaluated: for every row a noise level, and a label if the model has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

NO_LABEL = -1
"""Stands for the label of a row that has none."""


@dataclass(frozen=True)
class At:
    """The conditions of a batch of rows. Selecting, joining or moving rows keeps all their conditions together."""

    level: Tensor
    """(B,) int64 index t of the noise level, or floating-point log-SNR λ for an energy that is continuous in it"""
    label: Tensor | None = None
    """(B,) int64 class of each row, or NO_LABEL; None where no row has a label"""
    guidance: Tensor | None = None
    """(B,) weight w with which each row's label is exaggerated (`model.energies.labels`); None is 0 for all"""

    @classmethod
    def same(cls, level: int, like: Tensor) -> At:
        """Return conditions at the same `level` for every row of `like` (B, …), on its device."""
        return cls(torch.full((len(like),), level, device=like.device))

    @classmethod
    def joined(cls, parts: Sequence[At]) -> At:
        """Return the rows of `parts`, one after another. The parts must have the same kinds of conditions."""
        labels = [part.label for part in parts if part.label is not None]
        weights = [part.guidance for part in parts if part.guidance is not None]
        return cls(
            torch.cat([part.level for part in parts]),
            torch.cat(labels) if labels else None,
            torch.cat(weights) if weights else None,
        )

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, rows: slice | Tensor | NDArray[Any]) -> At:
        return self.map(lambda one: one[rows])

    def on(self, level: Tensor) -> At:
        """Return the same conditions at another `level` (B,)."""
        return replace(self, level=level)

    def map(self, tensor_fn: Callable[[Tensor], Tensor]) -> At:
        """Return the conditions with every tensor passed through `tensor_fn`."""
        label, guidance = (None if one is None else tensor_fn(one) for one in (self.label, self.guidance))
        return At(tensor_fn(self.level), label, guidance)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The conditions that are not None, as tensors whose first axis is the rows."""
        return tuple(one for one in (self.level, self.label, self.guidance) if one is not None)
