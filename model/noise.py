"""The sources of random numbers, which are always passed as arguments and never a global state.

A `NoiseSource` hands out standard normals and uniforms. For training, `SharedNoise` draws for a whole batch from one
generator and hands out the rows that the caller computes. For sampling, `ChainNoise` and `NoiseRows` keep one stream
per chain, so that sample i of a seed does not depend on the other samples in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.rows import Rows


class NoiseSource(Protocol):
    """The source from which a kernel draws its random numbers."""

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normals in the shape, dtype and device of `like` (B, *event)."""

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniforms on [0, 1) in the shape, dtype and device of `like` (B,)."""


def derive_seed(*words: int) -> int:
    """Return a 63-bit seed made of non-negative integers; different words give independent streams (SeedSequence)."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device` that is seeded from `words`."""
    return torch.Generator(device).manual_seed(derive_seed(*words))


class SharedNoise:
    """Draws for a whole batch from one generator and hands out the given `rows`, or all rows without them."""

    def __init__(self, generator: torch.Generator, rows: Rows | None = None) -> None:
        self.generator = generator
        self._rows = rows

    def at(self, rows: Rows) -> SharedNoise:
        """Return a source that hands out the given `rows` of what this source would draw next.

        This source itself does not advance.
        """
        return SharedNoise(self.generator.clone_state(), rows)

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normals in the shape, dtype and device of `like`."""
        return self._draw(torch.randn, like)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniforms on [0, 1) in the shape, dtype and device of `like`."""
        return self._draw(torch.rand, like)

    def spread(self, like: Tensor) -> Tensor:
        """Draw one uniform and spread it evenly over the batch: (B,) numbers on [0, 1).

        They have the dtype and device of `like` (B, …).
        """
        rows = self._rows or Rows.all_of(len(like))
        offset = torch.rand(1, dtype=like.dtype, device=like.device, generator=self.generator)
        return rows.of((offset + torch.arange(rows.count, device=like.device) / rows.count) % 1)

    def _draw(self, draw_fn: Callable[..., Tensor], like: Tensor) -> Tensor:
        rows = self._rows or Rows.all_of(len(like))
        shape = (rows.count, *like.shape[1:])
        return rows.of(draw_fn(shape, dtype=like.dtype, device=like.device, generator=self.generator))


@dataclass(frozen=True)
class ScaledNoise:
    """A source whose normals are multiplied by `factor`."""

    source: NoiseSource
    factor: float

    def normal(self, like: Tensor) -> Tensor:
        """Draw normals of standard deviation `factor` in the shape, dtype and device of `like` (B, *event)."""
        return self.factor * self.source.normal(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw the uniforms of the source, which are not scaled."""
        return self.source.uniform(like)


_NORMALS_AT_ONCE = 2048
"""The number of normals drawn at once per chain, though at least one event, which saves the overhead of many small
draws. It is fixed because the draws depend on it: torch fills long and short arrays differently."""
_UNIFORMS_AT_ONCE = 512
"""The number of uniforms drawn at once per chain. Uniforms do not depend on it."""


def _normal_block(generator: torch.Generator, event_shape: Sequence[int]) -> Tensor:
    """Draw the next block (L, *event) of a chain's normals."""
    length = max(1, _NORMALS_AT_ONCE // torch.Size(event_shape).numel())
    return torch.randn(length, *event_shape, generator=generator)


class ChainNoise:
    """One stream of normals and one of uniforms per chain, drawn on the CPU a block of steps at a time.

    Chain k is seeded from (`seed`, `indices[k]`) alone.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._normal_generators = [make_generator(seed, index, 0) for index in indices]
        self._uniform_generators = [make_generator(seed, index, 1) for index in indices]
        self._block: Tensor | None = None
        self._used = 0

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normals of shape (B, *event), with row k from the stream of chain k."""
        if self._block is None or self._used == len(self._block):
            rows = [_normal_block(g, like.shape[1:]) for g in self._normal_generators]
            self._block, self._used = torch.stack(rows, dim=1), 0
        noise = self._block[self._used]
        self._used += 1
        return noise.to(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniforms on [0, 1) of shape (B,), with entry k from the stream of chain k."""
        return torch.stack([torch.rand((), generator=g) for g in self._uniform_generators]).to(like)


class NoiseRows:
    """The streams of `ChainNoise` for chains that come and go and are not at the same step. Each chain is a row.

    Normals lie on `device`, uniforms on the host, where decisions are prepared. A row owns a slot of both, so that rows
    can change places without a copy.
    """

    def __init__(self, capacity: int, event_shape: Sequence[int], device: torch.device) -> None:
        self._event_shape = tuple(event_shape)
        length = max(1, _NORMALS_AT_ONCE // torch.Size(event_shape).numel())
        self._normals = torch.zeros(capacity, length, *event_shape, device=device)
        self._uniforms = np.zeros((capacity, _UNIFORMS_AT_ONCE), np.float32)
        self._used_normals = np.zeros(capacity, np.int64)
        self._used_uniforms = np.zeros(capacity, np.int64)
        self._generators: dict[int, tuple[torch.Generator, torch.Generator]] = {}
        self._slots = np.arange(capacity)
        self._num_rows = 0

    def append(self, seed: int, index: int) -> None:
        """Put chain `index` of `seed` into the next row."""
        slot = int(self._slots[self._num_rows])
        self._num_rows += 1
        self._generators[slot] = make_generator(seed, index, 0), make_generator(seed, index, 1)
        self._used_normals[slot], self._used_uniforms[slot] = self._normals.shape[1], _UNIFORMS_AT_ONCE

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64], num_rows: int) -> None:
        """Move the rows `sources` to the places of `targets`, then keep only the first `num_rows`."""
        freed = self._slots[targets]
        self._slots[targets] = self._slots[sources]
        self._slots[sources] = freed
        self._num_rows = num_rows

    def normal(self, rows: NDArray[np.int64]) -> Tensor:
        """Draw the next normals (len(rows), *event) of these rows."""
        slots, length = self._slots[rows], self._normals.shape[1]
        for slot in slots[self._used_normals[slots] == length].tolist():
            self._normals[slot] = _normal_block(self._generators[slot][0], self._event_shape)
            self._used_normals[slot] = 0
        at = torch.from_numpy(slots * length + self._used_normals[slots]).to(self._normals.device)
        self._used_normals[slots] += 1
        return self._normals.flatten(0, 1).index_select(0, at)

    def uniform(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Draw the next uniforms (len(rows),) on [0, 1) of these rows."""
        slots = self._slots[rows]
        for slot in slots[self._used_uniforms[slots] == _UNIFORMS_AT_ONCE].tolist():
            self._uniforms[slot] = torch.rand(_UNIFORMS_AT_ONCE, generator=self._generators[slot][1]).numpy()
            self._used_uniforms[slot] = 0
        at = self._used_uniforms[slots]
        self._used_uniforms[slots] += 1
        return self._uniforms[slots, at]
