"""Rows of a batch that somebody computes: a process of several its part, accumulation a part of that.

Whatever the parts, they are parts of one batch: the same items, levels and noise as when one process computes all of it
at once (model.noise), so that their gradients add up to that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows `start` … `stop` − 1 of a batch of `count`."""

    start: int
    stop: int
    count: int

    @classmethod
    def all_of(cls, count: int) -> Rows:
        """The whole batch."""
        return cls(0, count, count)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def share(self) -> float:
        """The fraction of the batch that these rows are: the weight of their mean in the mean over all rows."""
        return len(self) / self.count

    def of(self, batch: Tensor) -> Tensor:
        """These rows of `batch` (count, …)."""
        return batch[self.start : self.stop]

    def part(self, index: int, num_parts: int) -> Rows:
        """Part `index` of `num_parts` whose lengths differ by at most one."""
        first, last = (self.start + len(self) * i // num_parts for i in (index, index + 1))
        return Rows(first, last, self.count)

    def pieces(self, size: int | None) -> list[Rows]:
        """Parts of at most `size` rows; one without a size."""
        num_pieces = -(-len(self) // size) if size else 1
        return [self.part(index, num_pieces) for index in range(num_pieces)]

    def every(self, stride: int) -> Rows:
        """Which rows of `batch[::stride]` are among these."""
        return Rows(-(-self.start // stride), -(-self.stop // stride), -(-self.count // stride))
