"""The counterpart of the paper's network for vectors: residual blocks of dense layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.conditions import At
from model.config import NetworkConfig
from model.networks.blocks import EnergyNetwork, ResidualBlock
from model.networks.layers import Dense


class MLPEnergy(EnergyNetwork):
    """Residual blocks of dense layers: they map events (B, *event) of any shape, flattened, and conditions to (B,)."""

    def __init__(self, config: NetworkConfig, event_shape: tuple[int, ...], num_classes: int = 0) -> None:
        super().__init__(config, config.width, num_classes)
        dim, count = math.prod(event_shape), config.fourier_features
        self.dense_in = Dense(dim + 2 * count, config.width, spectral_norm=config.spectral_norm)
        if count:
            magnitude = config.max_frequency ** torch.rand(count)
            self.register_buffer("frequencies", F.normalize(torch.randn(dim, count), dim=0) * magnitude)
        self.blocks = nn.ModuleList(
            ResidualBlock(Dense, config.width, config.width, config) for _ in range(config.num_blocks)
        )

    frequencies: Tensor
    """(D, `fourier_features`) wave vectors"""

    def forward(self, x: Tensor, at: At, noise_std: Tensor | None = None) -> Tensor:
        """Return the network's output (B,), or (B, K) with classes, at the input `x` (B, *event) under conditions `at`.

        `noise_std` (B,) is the standard deviation of the noise in the input. It damps a wave of frequency ω by
        exp(−(ω std)²/2), which is the mean of the wave over the noise (Barron et al. 2021).
        """
        embedding = self.embedding(at)
        h = x.flatten(1)
        if self.config.fourier_features:
            phase = h @ self.frequencies
            waves = torch.cat([phase.sin(), phase.cos()], dim=1)
            if noise_std is not None:
                damping = torch.exp(-(noise_std[:, None] ** 2) * (self.frequencies**2).sum(0) / 2)
                waves = waves * damping.repeat(1, 2)
            h = torch.cat([h, waves], dim=1)
        h = self.dense_in(h)
        h = h.to(self.trunk_dtype(h.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.read_out(self.activation(h).to(embedding.dtype), embedding)
