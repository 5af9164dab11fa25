"""The paper's network: the encoder half of a DDPM U-Net without normalisation layers (DRL appendix B.1 and release).

Every convolution and dense layer has a spectral norm, except the last projection of the level. The noise level is given
for each row, so that chains at different levels can share one evaluation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.conditions import At
from model.config import NetworkConfig
from model.networks.blocks import EnergyNetwork, FrozenInput, ResidualBlock
from model.networks.layers import Conv3x3, Dense


class ResNetEnergy(EnergyNetwork):
    """The paper's network, which maps images (B, C, H, W) and their conditions to (B,), or (B, K) with classes."""

    def __init__(self, config: NetworkConfig, event_shape: tuple[int, ...], num_classes: int = 0) -> None:
        channels, height, width = event_shape
        widths = [config.width * m for m in config.multipliers]
        super().__init__(config, config.head_width or widths[-1], num_classes)
        self.conv_in = Conv3x3(
            channels + 2 * config.coordinates, config.width, spectral_norm=config.spectral_norm, bias_limit=0.5
        )
        inputs = [config.width, *widths[:-1]]
        self.resolutions = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(Conv3x3, before if block == 0 else after, after, config)
                for block in range(config.num_blocks)
            )
            for before, after in zip(inputs, widths, strict=True)
        )
        if config.coordinates:
            rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
            self.register_buffer("grid", torch.stack(torch.meshgrid(rows, columns, indexing="ij")), persistent=False)
        if config.head_width:
            halvings = 2 ** (len(widths) - 1)
            positions = math.ceil(height / halvings) * math.ceil(width / halvings)
            self.dense_out = Dense(
                positions * widths[-1], config.head_width, spectral_norm=config.spectral_norm, gain=1.4, bias_limit=0.5
            )
            self.block_out = ResidualBlock(Dense, config.head_width, config.head_width, config)

    grid: Tensor
    """(2, H, W) row and column of every pixel, from −1 to 1"""

    def forward(self, x: Tensor, at: At, _noise_std: Tensor | None = None) -> Tensor:
        embedding = self.embedding(at)
        return self.read_features(self.encoded(x, embedding)[-1], embedding)

    def encoded(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the features (B, width, H, W) at each resolution, the full one first."""
        if self.config.coordinates:
            x = torch.cat([x, self.grid.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        if self.conv_in.is_frozen:
            h: Tensor = FrozenInput.apply(x, self.conv_in, self.trunk_dtype(x.dtype))  # type: ignore[no-untyped-call]
        else:
            h = self.conv_in(x).to(self.trunk_dtype(x.dtype))
        scales = []
        for index, blocks in enumerate(self.resolutions):
            if index > 0:
                h = F.avg_pool2d(h, 2, ceil_mode=True)  # odd sizes keep their last row and column
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
            scales.append(h)
        return scales

    def read_features(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return what the head reads from the features `h` at the last resolution: (B,), or (B, K) with classes."""
        if self.config.head_width:
            h = self.block_out(self.dense_out(self.activation(h).flatten(1)), embedding)
            return self.read_out(self.activation(h).to(embedding.dtype), embedding)
        # DRL sums a ReLU over space; the smooth SiLU keeps the network twice differentiable for score matching.
        h = F.relu(h) if self.config.activation == "leaky_relu" else F.silu(h)
        return self.read_out(h.sum((2, 3), dtype=embedding.dtype), embedding)
