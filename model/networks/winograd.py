"""3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3) on CPUs (Lavin & Gray 2016).

The input is cut into 6×6 tiles that overlap by two. A fixed linear map turns each tile into 36 numbers per channel;
each of these is multiplied over the channels by its own part of the kernel; another linear map turns the 36 products
into 4×4 outputs. An output takes 2.25 multiplications per pair of channels where the sum of nine products takes 9, and
the computation becomes a few large matrix products.

In float32 the result is rounded ten times as coarsely as the plain sum (1e-5 of the largest output), which is why only
Markov chains and evaluations of fixed weights use it. In float64 both agree to rounding.
"""

from __future__ import annotations

import functools
import math
import threading

import torch
from torch import Tensor

_OUT, _IN = 4, 6
"""The side of a tile of outputs, and of the tile of inputs that it depends on, in pixels."""
_CHUNK_BYTES = 8_000_000
"""The bytes of images that are transformed at once, whatever the batch: two such buffers stay in the cores' caches."""
_LEAST_CHANNELS = {torch.float32: 96, torch.bfloat16: 64}
_LEAST_TILES = 8

_INPUT_MAP = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL_MAP = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT_MAP = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""The matrices Bᵀ, G and Aᵀ for one dimension (Lavin & Gray 2016, section 4.3); `_planar` makes those for two."""


@functools.cache
def _planar(one_dimension: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """Return the matrix that maps flattened tiles as `one_dimension` maps their rows and their columns."""
    matrix = torch.tensor(one_dimension, dtype=torch.float64)
    return torch.kron(matrix, matrix).to(dtype)


@functools.cache
def bfloat16_is_slow() -> bool:
    """Whether this CPU computes bfloat16 without matrix instructions, at half of float32's rate or less.

    Only x86-64 was measured; for other processors this is false.
    """
    has = torch.cpu.get_capabilities()
    return has.get("architecture") == "x86_64" and not has.get("amx_bf16")


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether `convolve` is faster than the plain convolution of `x` (B, C, H, W), and no gradient is wanted.

    Measured with AVX-512: with fewer channels or tiles the maps cost what they save; with 128 channels it is 1.6 times
    as fast, with 256 channels twice; in bfloat16 without AMX, two to three times from 96 channels on.
    """
    batch, channels, height, width = x.shape
    return (
        x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and min(channels, out_channels) >= _LEAST_CHANNELS.get(x.dtype, math.inf)
        and batch * -(-height // _OUT) * -(-width // _OUT) >= _LEAST_TILES
        and (x.dtype == torch.float32 or bfloat16_is_slow())
    )


def transform_kernel(weight: Tensor) -> Tensor:
    """Return the form of a kernel (O, C, 3, 3) that `convolve` takes: (36, C, O), four times its size."""
    out_channels, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_planar(_KERNEL_MAP, weight.dtype) @ taps).view(_IN**2, channels, out_channels)


class _Workspace(threading.local):
    """Two buffers that each thread keeps: to get memory from the system again and again costs more than the maps."""

    def __init__(self) -> None:
        self._buffers = {0: torch.empty(0), 1: torch.empty(0)}

    def take(self, which: int, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return buffer `which`, 0 or 1, in the given shape and type. Its content is arbitrary."""
        numel, buffer = math.prod(shape), self._buffers[which]
        if buffer.dtype != dtype or buffer.numel() < numel:
            buffer = self._buffers[which] = torch.empty(numel, dtype=dtype)
        return buffer[:numel].view(shape)


_workspace = _Workspace()


@torch.no_grad()
def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.conv2d(x, weight, bias, padding=1)`, without gradient, given `kernel = transform_kernel(weight)`.

    `x` (B, C, H, W) may have any size. The result (B, O, H, W) has the type of `x` and the memory format
    `channels_last`; everything in between is computed in the type of `kernel`.
    """
    (batch, _, height, width), out_channels = x.shape, kernel.shape[2]
    y = torch.empty((batch, out_channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    tiles = -(-height // _OUT) * -(-width // _OUT)
    image_bytes = _IN**2 * tiles * max(kernel.shape[1:]) * kernel.element_size()
    at_once = max(1, _CHUNK_BYTES // image_bytes)
    images, outputs = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    for start in range(0, batch, at_once):
        _convolve(images[start : start + at_once], kernel, bias, outputs[start : start + at_once])
    return y


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Convolve the images `x` (N, H, W, C) and write the result into `y` (N, H, W, O)."""
    (count, height, width, channels), out_channels, dtype = x.shape, kernel.shape[2], kernel.dtype
    rows, columns = -(-height // _OUT), -(-width // _OUT)
    num_tiles = count * rows * columns

    padded = _workspace.take(0, dtype, count, _OUT * rows + 2, _OUT * columns + 2, channels)
    padded[:, :1], padded[:, height + 1 :], padded[:, :, :1], padded[:, :, width + 1 :] = 0, 0, 0, 0
    padded[:, 1 : height + 1, 1 : width + 1] = x
    tiles = _workspace.take(1, dtype, _IN, _IN, count, rows, columns, channels)
    tiles.copy_(padded.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3))

    mapped = _workspace.take(0, dtype, _IN**2, num_tiles * channels)
    torch.mm(_planar(_INPUT_MAP, dtype), tiles.view(_IN**2, -1), out=mapped)
    products = _workspace.take(1, dtype, _IN**2, num_tiles, out_channels)
    torch.bmm(mapped.view(_IN**2, num_tiles, channels), kernel, out=products)
    outputs = _workspace.take(0, dtype, _OUT**2, num_tiles * out_channels)
    torch.mm(_planar(_OUTPUT_MAP, dtype), products.view(_IN**2, -1), out=outputs)

    placed = outputs.view(_OUT, _OUT, count, rows, columns, out_channels).permute(2, 3, 0, 4, 1, 5)
    if height % _OUT or width % _OUT:
        placed = placed.reshape(count, _OUT * rows, _OUT * columns, out_channels)[:, :height, :width]
    else:
        y = y.view(count, rows, _OUT, columns, _OUT, out_channels)
    torch.add(placed, 0 if bias is None else bias, out=y)
