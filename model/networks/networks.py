"""Energy networks: net(y, level) of shape (B,), whose scaled negative is the energy.

`ResNetEnergy` is the paper's network (DRL appendix B.1 and release): the encoder half of a DDPM U-Net without
normalisation layers, spectral norm on every convolution and dense layer except the last level projection.
`MLPEnergy` is its counterpart for vectors. Both take the noise level as a vector, so chains at different levels share
one evaluation.

Spectral norm (Miyato et al. 2018) divides a weight by an estimate of its largest singular value from one power
iteration. `frozen` fixes the normalised weights for the length of a Markov chain, during which they cannot change.

Precision: a layer computes in the type of its input. The residual trunk runs in `compute_dtype`; the input layer, the
level embedding, the sum over space and the head stay in the parameters' type, and so does all that is returned.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.config import NetworkConfig, Precision
from model.errors import ShapeError
from model.networks.layers import Conv3x3, Dense, Weighted

_ACTIVATIONS_PER_THREAD = 150_000

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "silu": F.silu,
}
_ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaky_relu": lambda gradient, x: torch.ops.aten.leaky_relu_backward(gradient, x, 0.2, False),
    "silu": torch.ops.aten.silu_backward,
}
"""(gradient of the output, input) -> gradient of the input"""


def sinusoidal_embedding(level: Tensor, dim: int) -> Tensor:
    """(B, dim) sines then cosines of level · 10000^(−k/(dim/2 − 1)) (Vaswani et al. 2017, as in DDPM's code)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=level.device))
    angles = level[:, None].to(frequencies.dtype) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


def _level_width(config: NetworkConfig) -> int:
    return config.level_width or 4 * config.width


class _LevelEmbedding(nn.Module):
    """Sinusoidal code of the level through two dense layers: (B,) -> (B, 4 width or `level_width`)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.width = config.width
        self.activation = _ACTIVATIONS[config.activation]
        width = _level_width(config)
        self.dense0 = Dense(config.width, width, spectral_norm=config.spectral_norm)
        self.dense1 = Dense(width, width, spectral_norm=config.spectral_norm)

    def forward(self, level: Tensor) -> Tensor:
        code = sinusoidal_embedding(level, self.width).to(self.dense0.weight.dtype)
        embedding: Tensor = self.dense1(self.activation(self.dense0(code)))
        return embedding


class _ResidualBlock(nn.Module):
    """Activation → map → + level → activation → near-zero map, beside a shortcut; convolutions or dense layers."""

    def __init__(
        self, layer: type[Conv3x3] | type[Dense], in_width: int, out_width: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        spectral_norm = config.spectral_norm
        self.activation = _ACTIVATIONS[config.activation]
        self.activation_backward = _ACTIVATION_BACKWARD[config.activation]
        self.map1 = layer(in_width, out_width, spectral_norm=spectral_norm, gain=1.4, bias_limit=0.5)
        self.level = Dense(_level_width(config), out_width, spectral_norm=spectral_norm, gain=0.7)
        self.map2 = layer(out_width, out_width, spectral_norm=spectral_norm, bound_only=True, gain=0.5)
        self.shortcut = (
            layer(in_width, out_width, spectral_norm=spectral_norm, gain=0.9) if in_width != out_width else None
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        level = self.level(self.activation(embedding)).to(x.dtype)
        level = level.reshape(*level.shape, *[1] * (x.dim() - 2))
        if isinstance(self.map1, Conv3x3) and self.map1.is_frozen:
            y: Tensor = _FrozenBlock.apply(x, level, self)  # type: ignore[no-untyped-call]
            return y
        h = self.map1(self.activation(x)) + level
        y = self.map2(self.activation(h)) + (x if self.shortcut is None else self.shortcut(x))
        return y


class _FrozenInput(torch.autograd.Function):
    """The fixed input layer in its own precision, its output and the gradient in the trunk's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv3x3, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        y: Tensor = layer(x).to(dtype)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.transposed(gradient).to(ctx.dtype), None, None


class _FrozenBlock(torch.autograd.Function):
    """A residual block of convolutions whose weights are fixed, with its gradient by the input written out.

    Two things make it faster on CPUs than what autograd does: the transposed convolutions run as plain ones of the
    turned kernel, and the two gradients of x are added into a new tensor (bfloat16 in place takes four times as long).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: Tensor, block: _ResidualBlock) -> Tensor:
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


class _EnergyNetwork(nn.Module):
    """What both networks share: the level embedding and the head's dot product with it."""

    def __init__(self, config: NetworkConfig, out_width: int) -> None:
        super().__init__()
        self.config = config
        self.activation = _ACTIVATIONS[config.activation]
        self.embedding = _LevelEmbedding(config)
        in_width = _level_width(config)
        gain = (
            math.sqrt(2 * in_width / (in_width + out_width)) if config.spectral_norm else 0.5
        )  # the release's or ours
        self.head = Dense(in_width, out_width, spectral_norm=False, gain=gain)
        self.precision: Precision = "float32"

    def _trunk_dtype(self, own: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else own

    def _head(self, features: Tensor, embedding: Tensor) -> Tensor:
        output: Tensor = (features * self.head(self.activation(embedding))).sum(1)
        return output


class ResNetEnergy(_EnergyNetwork):
    """The paper's network: images (B, C, H, W) and levels (B,) -> (B,)."""

    def __init__(self, config: NetworkConfig, event_shape: tuple[int, ...]) -> None:
        if len(event_shape) != 3:
            raise ShapeError(f"network 'resnet' needs images (C, H, W); the data have shape {event_shape}. Use 'mlp'")
        channels, height, width = event_shape
        widths = [config.width * m for m in config.multipliers]
        super().__init__(config, config.head_width or widths[-1])
        self.conv_in = Conv3x3(
            channels + 2 * config.coordinates, config.width, spectral_norm=config.spectral_norm, bias_limit=0.5
        )
        inputs = [config.width, *widths[:-1]]
        self.resolutions = nn.ModuleList(
            nn.ModuleList(
                _ResidualBlock(Conv3x3, before if block == 0 else after, after, config)
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
            self.block_out = _ResidualBlock(Dense, config.head_width, config.head_width, config)

    grid: Tensor
    """(2, H, W) rows and columns from −1 to 1"""

    def forward(self, x: Tensor, level: Tensor, _noise_std: Tensor | None = None) -> Tensor:
        embedding = self.embedding(level)
        if self.config.coordinates:
            x = torch.cat([x, self.grid.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        if self.conv_in.is_frozen:
            h: Tensor = _FrozenInput.apply(x, self.conv_in, self._trunk_dtype(x.dtype))  # type: ignore[no-untyped-call]
        else:
            h = self.conv_in(x).to(self._trunk_dtype(x.dtype))
        for index, blocks in enumerate(self.resolutions):
            if index > 0:
                h = F.avg_pool2d(h, 2, ceil_mode=True)  # odd sizes keep their last row and column
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        if self.config.head_width:
            h = self.block_out(self.dense_out(self.activation(h).flatten(1)), embedding)
            return self._head(self.activation(h).to(embedding.dtype), embedding)
        # DRL: ReLU then the sum over space; the smooth counterpart keeps score matching twice differentiable
        h = F.relu(h) if self.config.activation == "leaky_relu" else F.silu(h)
        return self._head(h.sum((2, 3), dtype=embedding.dtype), embedding)


class MLPEnergy(_EnergyNetwork):
    """Residual blocks of dense layers: events of any shape (B, *event), flattened, and levels (B,) -> (B,)."""

    def __init__(self, config: NetworkConfig, event_shape: tuple[int, ...]) -> None:
        super().__init__(config, config.width)
        dim, count = math.prod(event_shape), config.fourier_features
        self.dense_in = Dense(dim + 2 * count, config.width, spectral_norm=config.spectral_norm)
        if count:
            magnitude = config.max_frequency ** torch.rand(count)
            self.register_buffer("frequencies", F.normalize(torch.randn(dim, count), dim=0) * magnitude)
        self.blocks = nn.ModuleList(
            _ResidualBlock(Dense, config.width, config.width, config) for _ in range(config.num_blocks)
        )

    frequencies: Tensor
    """(D, `fourier_features`) wave vectors"""

    def forward(self, x: Tensor, level: Tensor, noise_std: Tensor | None = None) -> Tensor:
        """`noise_std` (B,): what of the input is noise; it damps a wave of frequency ω by exp(−(ω std)²/2), the mean
        of the wave over the noise (Barron et al. 2021)."""
        embedding = self.embedding(level)
        h = x.flatten(1)
        if self.config.fourier_features:
            phase = h @ self.frequencies
            waves = torch.cat([phase.sin(), phase.cos()], dim=1)
            if noise_std is not None:
                damping = torch.exp(-(noise_std[:, None] ** 2) * (self.frequencies**2).sum(0) / 2)
                waves = waves * damping.repeat(1, 2)
            h = torch.cat([h, waves], dim=1)
        h = self.dense_in(h)
        h = h.to(self._trunk_dtype(h.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self._head(self.activation(h).to(embedding.dtype), embedding)


def make_network(config: NetworkConfig, event_shape: tuple[int, ...]) -> ResNetEnergy | MLPEnergy:
    """The network a configuration describes, randomly initialised from torch's global generator."""
    return (ResNetEnergy if config.kind == "resnet" else MLPEnergy)(config, event_shape)


def useful_threads(config: NetworkConfig, event_shape: tuple[int, ...], batch_size: int) -> int:
    """How many CPU threads a batch can keep busy; small layers run slower on several, and spoil them for neighbours.

    Measured on two cores: the digits preset trains 17 % (score matching) and 32 % (recovery) faster with the second
    thread alone on the machine, and at a tenth of its rate at times beside other busy processes.
    """
    positions = math.prod(event_shape[1:]) if config.kind == "resnet" else 1
    return max(1, batch_size * positions * config.width // _ACTIVATIONS_PER_THREAD)


def iterate_power(network: nn.Module, num_iterations: int = 1) -> None:
    """Power iterations of every spectral norm in `network`, in place: one a training step (DRL), more to converge."""
    for module in network.modules():
        if isinstance(module, Weighted):
            module.iterate_power(num_iterations)


@contextlib.contextmanager
def frozen(network: nn.Module, precision: Precision | None = None) -> Iterator[None]:
    """Fix every weight and its spectral norm while a chain runs: gradients then flow to positions only.

    The trunk computes in `precision`, or in the network's own without one. Within another `frozen` of the same network
    nothing else changes.
    """
    networks = [(m, m.precision) for m in network.modules() if isinstance(m, _EnergyNetwork)]
    parameters = [p for p in network.parameters() if p.requires_grad]
    weighted = [m for m in network.modules() if isinstance(m, Weighted) and not m.is_frozen]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for module in weighted:
        module.freeze()
    for one, own in networks:
        one.precision = precision or own
    try:
        yield
    finally:
        for one, own in networks:
            one.precision = own
        for module in weighted:
            module.unfreeze()
        for parameter in parameters:
            parameter.requires_grad_(True)
