"""A U-Net whose energy has the shape of a denoiser's: ½|x|² of the base, and an image f(x) that stands against x.

The output is ⟨x, f(x, t)⟩ − ½|f(x, t)|² + g(x, t), where f is what the decoder draws and g is read from the encoder's
features like the paper's network. Its gradient in x contains f itself, so that the network learns to draw the expected
data and need not spell them by its derivative alone (Salimans & Ho 2021, "Should EBMs model the energy or the score?").
With classes there is a g for each of them.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.conditions import At
from model.config import NetworkConfig
from model.networks.blocks import ResidualBlock
from model.networks.layers import Conv3x3
from model.networks.resnet import ResNetEnergy

_SKIP_GAIN = 0.5**0.5
"""keeps the variance of a sum of two"""


class UNetEnergy(ResNetEnergy):
    """The paper's network with a decoder, which maps images (B, C, H, W) and conditions to (B,), or (B, K)."""

    def __init__(self, config: NetworkConfig, event_shape: tuple[int, ...], num_classes: int = 0) -> None:
        super().__init__(config, event_shape, num_classes)
        widths = [config.width * m for m in config.multipliers]
        self.decoder = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(Conv3x3, coarse if block == 0 else fine, fine, config)
                for block in range(config.num_blocks)
            )
            for coarse, fine in reversed(list(zip(widths[1:], widths[:-1], strict=True)))
        )
        self.conv_out = Conv3x3(config.width, event_shape[0], spectral_norm=config.spectral_norm, gain=0.3)

    def forward(self, x: Tensor, at: At, _noise_std: Tensor | None = None) -> Tensor:
        embedding = self.embedding(at)
        scales = self.encoded(x, embedding)
        output = self.read_features(scales[-1], embedding)
        h = scales.pop()
        for blocks in self.decoder:
            finer = scales.pop()
            for index, block in enumerate(blocks.children()):
                h = block(h, embedding)
                if index == 0:  # narrowed before it is enlarged, where that is cheaper
                    h = _SKIP_GAIN * (F.interpolate(h, size=finer.shape[2:]) + finer)
        drawn: Tensor = self.conv_out(self.activation(h)).to(x.dtype)
        agreement = (drawn * (x - drawn / 2)).flatten(1).sum(1)
        return output + (agreement if self.num_classes == 0 else agreement[:, None])
