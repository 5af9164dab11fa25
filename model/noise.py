"""Where random numbers come from: always an argument, never a global state.

A `NoiseSource` hands out standard normals and uniforms. `SharedNoise` draws a whole batch from one generator
(training); `ChainNoise` keeps one stream per chain, so that sample i of a seed does not depend on its
batch-mates (sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NoiseSource(Protocol):
    """What a kernel draws from."""

    def normal(self, like: Tensor) -> Tensor:
        """Standard normals in the shape, dtype and device of `like` (B, *event)."""

    def uniform(self, like: Tensor) -> Tensor:
        """Uniforms on [0, 1) in the shape, dtype and device of `like` (B,)."""


def derive_seed(*words: int) -> int:
    """A 63-bit seed from non-negative integers; different words give independent streams (numpy SeedSequence)."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` seeded from `words`."""
    return torch.Generator(device).manual_seed(derive_seed(*words))


class SharedNoise:
    """One generator for the whole batch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, like: Tensor) -> Tensor:
        """Standard normals in the shape, dtype and device of `like`."""
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniforms on [0, 1) in the shape, dtype and device of `like`."""
        return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)


class ChainNoise:
    """One stream of normals and one of uniforms per chain, drawn on the CPU a block of steps at a time.

    Chain k is seeded from (`seed`, `indices[k]`) alone. Blocks only save the overhead of many small draws: their
    length is fixed, so it is not something a result could depend on.
    """

    _BLOCK_NUMBERS = 2048  # normals drawn at once per chain; at least one event

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._normal_generators = [make_generator(seed, index, 0) for index in indices]
        self._uniform_generators = [make_generator(seed, index, 1) for index in indices]
        self._block: Tensor | None = None
        self._used = 0

    def normal(self, like: Tensor) -> Tensor:
        """Standard normals of shape (B, *event), row k from the stream of chain k."""
        if self._block is None or self._used == len(self._block):
            event = like.shape[1:]
            length = max(1, self._BLOCK_NUMBERS // event.numel())
            rows = [torch.randn(length, *event, generator=g) for g in self._normal_generators]
            self._block, self._used = torch.stack(rows, dim=1), 0
        noise = self._block[self._used]
        self._used += 1
        return noise.to(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniforms on [0, 1) of shape (B,), entry k from the stream of chain k."""
        return torch.stack([torch.rand((), generator=g) for g in self._uniform_generators]).to(like)
