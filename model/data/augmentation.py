"""Random changes of training data, which leave their distribution about as it is or give it a density."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.config import TrainConfig
from model.noise import NoiseSource
from model.spaces.space import Space


def augment(x_data: Tensor, config: TrainConfig, space: Space, noise: NoiseSource) -> Tensor:
    """Return `x_data` (B, *event) as one training step sees it: flipped, jittered and dequantized as `config` asks."""
    if config.horizontal_flips:
        flip = noise.uniform(x_data.new_empty(len(x_data))) < 0.5
        x_data = torch.where(flip.reshape(-1, *[1] * (x_data.dim() - 1)), x_data.flip(-1), x_data)
    if config.affine_jitter > 0:
        x_data = jittered(x_data, config.affine_jitter, noise)
    return space.dequantized(x_data, noise) if config.dequantize else x_data


def jittered(x_data: Tensor, pixels: float, noise: NoiseSource) -> Tensor:
    """Apply a random affine map to each of the images (B, C, H, W).

    A map shifts by up to `pixels`, turns by up to 0.3 rad per pixel, and stretches and shears by up to 0.2 per pixel.
    """
    count, _, height, width = x_data.shape
    uniform = 2 * noise.uniform(x_data.new_empty(6, count)) - 1
    angle, (shear, stretch_x, stretch_y) = 0.3 * pixels * uniform[0], 0.2 * pixels * uniform[1:4]
    shift_x, shift_y = 2 * pixels / width * uniform[4], 2 * pixels / height * uniform[5]  # a grid spans two units
    first = torch.stack([(1 + stretch_x) * angle.cos(), shear - angle.sin(), shift_x], dim=1)
    second = torch.stack([angle.sin(), (1 + stretch_y) * angle.cos(), shift_y], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(x_data.shape), align_corners=False)
    moved = F.grid_sample(x_data, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.clamp(-1, 1)
