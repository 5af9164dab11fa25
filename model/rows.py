"""The rows of a batch that are computed at once: one process's part of it, or with accumulation a part of that.

Whatever the parts are, they are parts of one batch: they have the same items, levels and noise as when one process
computes the whole batch at once (model.noise), so that their gradients add up to that of the whole.
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
        """Return all rows of a batch of `count`."""
        return cls(0, count, count)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def share(self) -> float:
        """The fraction of the batch that these rows are: the weight of their mean in the mean over all rows."""
        return len(self) / self.count

    def of(self, batch: Tensor) -> Tensor:
        """Return these rows of `batch` (count, …)."""
        return batch[self.start : self.stop]

    def part(self, index: int, num_parts: int) -> Rows:
        """Return part `index` of `num_parts` parts of these rows, whose lengths differ by at most one."""
        first, last = (self.start + len(self) * i // num_parts for i in (index, index + 1))
        return Rows(first, last, self.count)

    def pieces(self, size: int | None) -> list[Rows]:
        """Cut these rows into parts of at most `size` rows, or return them as one part without a size."""
        num_pieces = -(-len(self) // size) if size else 1
        return [self.part(index, num_pieces) for index in range(num_pieces)]

    def every(self, stride: int) -> Rows:
        """Return the rows of `batch[::stride]` that are among these rows."""
        return Rows(-(-self.start // stride), -(-self.stop // stride), -(-self.count // stride))
