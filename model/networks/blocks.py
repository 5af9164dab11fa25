"""The parts that both networks are built of: activations, the level embedding, residual blocks and the head.

Source: DRL (Gao et al. 2021) appendix B.1 and release. A layer computes in the type of its input. The residual trunk
runs in `trunk_dtype`; the input layer, the level embedding, the sum over space and the head stay in the type of the
parameters, and so does everything that is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.conditions import At
from model.config import NetworkConfig, Precision
from model.networks.layers import Conv3x3, Dense

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "silu": F.silu,
}
ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaky_relu": lambda gradient, x: torch.ops.aten.leaky_relu_backward(gradient, x, 0.2, False),
    "silu": torch.ops.aten.silu_backward,
}
"""The gradient by the input of each activation, as a function of (gradient of the output, input)."""


def sinusoidal_embedding(level: Tensor, dim: int) -> Tensor:
    """Return (B, dim) the sines, then the cosines, of level · 10000^(−k/(dim/2 − 1)).

    Source: Vaswani et al. 2017, as in DDPM's code.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=level.device))
    angles = level[:, None].to(frequencies.dtype) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


def level_width_of(config: NetworkConfig) -> int:
    """The units of the level embedding: `level_width`, or four times `width` where that is 0 (DRL)."""
    return config.level_width or 4 * config.width


class LevelEmbedding(nn.Module):
    """Turns the conditions of a batch into vectors: two dense layers read a sinusoidal code of the level."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.width = config.width
        self.activation = ACTIVATIONS[config.activation]
        width = level_width_of(config)
        self.dense0 = Dense(config.width, width, spectral_norm=config.spectral_norm)
        self.dense1 = Dense(width, width, spectral_norm=config.spectral_norm)

    def forward(self, at: At) -> Tensor:
        """Return the embedding of each row's conditions: (B, `level_width`), or (B, 4 `width`) if that is 0."""
        code = sinusoidal_embedding(at.level, self.width).to(self.dense0.weight.dtype)
        embedding: Tensor = self.dense1(self.activation(self.dense0(code)))
        return embedding


class ResidualBlock(nn.Module):
    """Activation → map → + level → activation → near-zero map, added to a shortcut. Maps are convolutions or dense."""

    def __init__(
        self, layer: type[Conv3x3] | type[Dense], in_width: int, out_width: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        spectral_norm = config.spectral_norm
        self.activation = ACTIVATIONS[config.activation]
        self.activation_backward = ACTIVATION_BACKWARD[config.activation]
        self.map1 = layer(in_width, out_width, spectral_norm=spectral_norm, gain=1.4, bias_limit=0.5)
        self.level = Dense(level_width_of(config), out_width, spectral_norm=spectral_norm, gain=0.7)
        self.map2 = layer(out_width, out_width, spectral_norm=spectral_norm, bound_only=True, gain=0.5)
        self.shortcut = (
            layer(in_width, out_width, spectral_norm=spectral_norm, gain=0.9) if in_width != out_width else None
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        level = self.level(self.activation(embedding)).to(x.dtype)
        level = level.reshape(*level.shape, *[1] * (x.dim() - 2))
        if isinstance(self.map1, Conv3x3) and self.map1.is_frozen:
            y: Tensor = FrozenBlock.apply(x, level, self)  # type: ignore[no-untyped-call]
            return y
        h = self.map1(self.activation(x)) + level
        y = self.map2(self.activation(h)) + (x if self.shortcut is None else self.shortcut(x))
        return y


class FrozenInput(torch.autograd.Function):
    """The input layer with fixed weights: it computes in its own precision, and returns the precision of the trunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv3x3, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        y: Tensor = layer(x).to(dtype)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.transposed(gradient).to(ctx.dtype), None, None


class FrozenBlock(torch.autograd.Function):
    """A residual block of convolutions whose weights are fixed, with its gradient by the input written out.

    Two things make it faster on CPUs than autograd: the transposed convolutions run as plain convolutions with the
    turned kernel, and the two gradients of x are added into a new tensor (in place, bfloat16 takes four times as long).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: Tensor, block: ResidualBlock) -> Tensor:
        h = block.map1(block.activation(x)) + level
        ctx.save_for_backward(x, h)
        ctx.block = block
        y: Tensor = block.map2(block.activation(h)) + (x if block.shortcut is None else block.shortcut(x))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, h = ctx.saved_tensors
        block = ctx.block
        by_h = block.activation_backward(block.map2.transposed(gradient), h)
        by_x = block.activation_backward(block.map1.transposed(by_h), x)
        return by_x + (gradient if block.shortcut is None else block.shortcut.transposed(gradient)), None, None


class EnergyNetwork(nn.Module):
    """The part that both networks share: the level embedding, and the head, which reads features out against it.

    A network for `num_classes` classes has an output for each; without classes (0) it has one.
    """

    def __init__(self, config: NetworkConfig, out_width: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.activation = ACTIVATIONS[config.activation]
        self.embedding = LevelEmbedding(config)
        in_width = level_width_of(config)
        gain = (
            math.sqrt(2 * in_width / (in_width + out_width)) if config.spectral_norm else 0.5
        )  # DRL's release has the first; the second is ours
        self.head = Dense(in_width, max(1, num_classes) * out_width, spectral_norm=False, gain=gain)
        self.precision: Precision = "float32"

    def trunk_dtype(self, own: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else own

    def read_out(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return the outputs (B,) or, with classes, (B, K)."""
        weights: Tensor = self.head(self.activation(embedding))
        if self.num_classes == 0:
            return (features * weights).sum(1)
        return torch.einsum("bw,bkw->bk", features, weights.reshape(len(weights), self.num_classes, -1))
