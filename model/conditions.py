"""The conditions under which an energy is evaluated: for every row a noise level, and a label if the model has any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.composition import Composition

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
    composed: Tensor | None = None
    """(B, 2, K) what is asked of the classes of rows without a label (`model.composition`): 0 for those of which a row
    may be and −inf for the others, then the weights of those of which it is to be; None where nothing is"""

    @classmethod
    def same(cls, level: int, like: Tensor) -> At:
        """Return conditions at the same `level` for every row of `like` (B, …), on its device."""
        return cls(torch.full((len(like),), level, device=like.device))

    @classmethod
    def joined(cls, parts: Sequence[At]) -> At:
        """Return the rows of `parts`, one after another. The parts must have the same kinds of conditions."""

        def join(ones: Iterable[Tensor | None]) -> Tensor | None:
            there = [one for one in ones if one is not None]
            return torch.cat(there) if there else None

        level, *others = (join(ones) for ones in zip(*(part._all for part in parts), strict=True))
        assert level is not None
        return cls(level, *others)

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, rows: slice | Tensor | NDArray[Any]) -> At:
        return self.map(lambda one: one[rows])

    def on(self, level: Tensor) -> At:
        """Return the same conditions at another `level` (B,)."""
        return replace(self, level=level)

    def map(self, tensor_fn: Callable[[Tensor], Tensor]) -> At:
        """Return the conditions with every tensor passed through `tensor_fn`."""
        return At(tensor_fn(self.level), *(None if one is None else tensor_fn(one) for one in self._all[1:]))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The conditions that are not None, as tensors whose first axis is the rows."""
        return tuple(one for one in self._all if one is not None)

    @property
    def _all(self) -> tuple[Tensor | None, ...]:
        return self.level, self.label, self.guidance, self.composed


def composed_rows(compositions: Sequence[Composition], num_classes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (guidance (B,), composed (B, 2, K)) of rows for which `compositions` ask, on the device of `like`."""
    composed = torch.zeros(len(compositions), 2, num_classes)
    for row, one in zip(composed, compositions, strict=True):
        if one.any_of:
            row[0] = -torch.inf
            row[0, list(one.any_of)] = 0.0
        for label, weight in one.all_of:
            row[1, label] = weight
    return torch.tensor([one.guidance for one in compositions]).to(like), composed.to(like)
