"""A plain PyTorch port of DRL's network, training step and sampler, with which `make bench-train` compares.

It is written as the paper's release is: every evaluation divides its weights by their singular values, convolutions run
on torch's default layout in float32, gradients come from autograd. It has the parameters of
`model.networks.resnet.ResNetEnergy` under the same names, so that both compute from the same weights; it shares no code
with it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.noise import NoiseSource
from model.schedule import Schedule


class Layer(nn.Module):
    """A convolution (kernel 3) or dense layer (kernel 0) with spectral norm; `bound` for near-zero weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0, *, bound: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.kernel, self.bound, self.norm = kernel, bound, norm
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, *[kernel] * 2 if kernel else ()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = nn.Parameter(torch.ones(outputs)) if bound and kernel else None
        if norm:
            self.register_buffer("left_vector", torch.zeros(outputs))

    left_vector: Tensor

    def normalized(self) -> Tensor:
        """Return the weight divided by its singular value."""
        if not self.norm:
            return self.weight
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(matrix.T @ self.left_vector, dim=0)
            left = F.normalize(matrix @ right, dim=0)
        value = left @ matrix @ right
        return self.weight / (value + 1e-6) * (value + 1e-6).clamp(max=1) if self.bound else self.weight / value

    def iterate_power(self) -> None:
        """Do one power iteration."""
        if self.norm:
            with torch.no_grad():
                matrix = self.weight.flatten(1)
                right = F.normalize(matrix.T @ self.left_vector, dim=0)
                self.left_vector.copy_(F.normalize(matrix @ right, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the layer at x."""
        if not self.kernel:
            return F.linear(x, self.normalized(), self.bias)
        y = F.conv2d(x, self.normalized(), self.bias, padding=1)
        return y if self.gain is None else y * self.gain[:, None, None]


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, level_width: int) -> None:
        super().__init__()
        self.map1 = Layer(inputs, outputs, 3)
        self.level = Layer(level_width, outputs)
        self.map2 = Layer(outputs, outputs, 3, bound=True)
        self.shortcut = Layer(inputs, outputs, 3) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Evaluate the block at x."""
        h = self.map1(F.leaky_relu(x, 0.2)) + self.level(F.leaky_relu(embedding, 0.2))[:, :, None, None]
        y: Tensor = self.map2(F.leaky_relu(h, 0.2)) + self.shortcut(x)
        return y


class PlainNetwork(nn.Module):
    """DRL's network: images (B, C, H, W), levels (B,) -> (B,)."""

    def __init__(self, channels: int, width: int, multipliers: tuple[int, ...], num_blocks: int) -> None:
        super().__init__()
        self.width, level_width = width, 4 * width
        widths = [width * m for m in multipliers]
        self.embedding = nn.ModuleDict({"dense0": Layer(width, level_width), "dense1": Layer(level_width, level_width)})
        self.head = Layer(level_width, widths[-1], norm=False)
        self.conv_in = Layer(channels, width, 3)
        self.resolutions = nn.ModuleList(
            nn.ModuleList(Block(before if i == 0 else after, after, level_width) for i in range(num_blocks))
            for before, after in zip([width, *widths[:-1]], widths, strict=True)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the network's bare output."""
        half = self.width // 2
        angles = level[:, None] * torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        code = torch.cat([angles.sin(), angles.cos()], dim=1)
        embedding = self.embedding["dense1"](F.leaky_relu(self.embedding["dense0"](code), 0.2))
        h = self.conv_in(x)
        for index, blocks in enumerate(self.resolutions):
            h = F.avg_pool2d(h, 2) if index else h
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        output: Tensor = (F.relu(h).sum((2, 3)) * self.head(F.leaky_relu(embedding, 0.2))).sum(1)
        return output


class PlainModel:
    """The training step and the sampler around `PlainNetwork`."""

    def __init__(self, network: PlainNetwork, schedule: Schedule, step_size: Tensor, loss_weight: Tensor) -> None:
        self.network, self.schedule, self.step_size, self.loss_weight = network, schedule, step_size, loss_weight
        self.average = copy.deepcopy(network)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-7)  # the first step of a warm-up of 1,000

    def chain(self, x_next: Tensor, level: Tensor, noise: NoiseSource, num_steps: int) -> Tensor:
        """Take K Langevin steps on p(y | x_{t+1})."""
        s = self.step_size[level][:, None, None, None]
        precision = self.schedule.tether_precision[level].float()[:, None, None, None]
        y = x_next
        for _ in range(num_steps):
            y = y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(y, level).sum(), y)
            y = y.detach()
            score = gradient / s**2 - precision * (y - x_next)
            y = y + 0.5 * s**2 * score + s * noise.normal(x_next)
        return y

    def train_step(self, x_data: Tensor, level: Tensor, noise: NoiseSource, num_steps: int) -> tuple[float, float]:
        """Take one step of DRL's algorithm 1, and return (loss, norm of its gradient)."""
        for module in self.network.modules():
            if isinstance(module, Layer):
                module.iterate_power()
        x, x_next = self.schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
        y = self.schedule.scale[level].float()[:, None, None, None] * x
        negative = self.chain(x_next, level, noise, num_steps)
        difference = (self.network(negative, level) - self.network(y, level)) / self.step_size[level] ** 2
        loss = (self.loss_weight[level] * difference).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in self.network.parameters() if p.grad is not None]).norm()
        self.optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True):
                averaged.mul_(0.999).add_(parameter, alpha=0.001)
        return float(loss.detach()), float(norm)

    def sample(self, x_top: Tensor, noise: NoiseSource, num_steps: int) -> Tensor:
        """Draw samples by the progressive descent (DRL algorithm 2)."""
        x = x_top
        for t in range(self.schedule.num_levels - 1, -1, -1):
            level = torch.full((len(x),), t)
            x = self.chain(x, level, noise, num_steps) / self.schedule.scale[t].float()
        return x


def plain_copy(model: Any, channels: int) -> PlainModel:
    """Return the plain implementation with the weights of an `EnergyModel` of DRL's form."""
    config = model.config.network
    network = PlainNetwork(channels, config.width, config.multipliers, config.num_blocks)
    network.load_state_dict(model.network.state_dict())
    return PlainModel(network, model.schedule, model.step_size, model.loss_weight)
