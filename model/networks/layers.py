"""Convolutional and dense layers with a spectral norm, whose weights can be fixed for the length of a Markov chain.

Spectral norm (Miyato et al. 2018) divides a weight by an estimate of its largest singular value. A layer computes in
the type of its input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.networks import winograd

_INITIAL_POWER_ITERATIONS = 15  # a random vector underestimates the singular value: the first outputs would be huge


class Weighted(nn.Module):
    """A linear map with an optional spectral norm; subclasses define how the weight is applied.

    `bound_only` is the rule of DRL's release for near-zero-initialised weights: W/(s + 1e-6) · min(s + 1e-6, 1), which
    leaves small weights as they are and only bounds the singular value from above.

    With a spectral norm, initial weights follow the release. Without it they are normal with standard deviation
    `gain`/√fan_in, and biases are uniform up to ±`bias_limit`: starting near zero only delays learning there
    (measured on a mixture: two to four times the score error after 500 steps).
    """

    kernel: tuple[int, ...] = ()
    """the trailing axes of the weight (out, in, *kernel)"""

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        spectral_norm: bool,
        bound_only: bool = False,
        gain: float = 1.0,
        bias_limit: float = 0.0,
    ) -> None:
        super().__init__()
        shape = (out_width, in_width, *self.kernel)
        self.spectral_norm = spectral_norm
        self.bound_only = bound_only
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_width))
        self.gain = nn.Parameter(torch.ones(out_width)) if bound_only and self.kernel else None
        self._frozen: dict[torch.dtype, tuple[Tensor, Tensor]] | None = None
        self._kernels: dict[tuple[torch.dtype, bool, bool], Tensor] = {}
        receptive = math.prod(shape[2:])
        if not spectral_norm:
            nn.init.normal_(self.weight, std=gain / math.sqrt(shape[1] * receptive))
            nn.init.uniform_(self.bias, -bias_limit, bias_limit)
            return
        scale = 1e-10 if bound_only else 1.0  # variance scaling, fan average, uniform (release: default_init)
        limit = math.sqrt(3 * scale / ((shape[0] + shape[1]) * receptive / 2))
        nn.init.uniform_(self.weight, -limit, limit)
        self.register_buffer("left_vector", F.normalize(torch.randn(shape[0]), dim=0))
        self.iterate_power(_INITIAL_POWER_ITERATIONS)

    left_vector: Tensor
    """(out,) estimate of the leading left singular vector by power iteration"""

    def iterate_power(self, num_iterations: int = 1) -> None:
        """Bring `left_vector` nearer to the weight's leading singular vector, in place."""
        if not self.spectral_norm:
            return
        with torch.no_grad():
            matrix = self.weight.flatten(1)
            for _ in range(num_iterations):
                right = F.normalize(matrix.T @ self.left_vector, dim=0, eps=1e-12)
                self.left_vector.copy_(F.normalize(matrix @ right, dim=0, eps=1e-12))

    def normalized_weight(self) -> Tensor:
        """Return the weight over its spectral norm; gradients pass through the singular value but not its vectors."""
        if not self.spectral_norm:
            return self.weight
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(matrix.T @ self.left_vector, dim=0, eps=1e-12)
            # The release's rule. An averaged `left_vector` does not have length 1, so it is not used as it is.
            left = F.normalize(matrix @ right, dim=0, eps=1e-12)
        singular_value = left @ matrix @ right
        if self.bound_only:
            singular_value = singular_value + 1e-6
            return self.weight / singular_value * singular_value.clamp(max=1)
        return self.weight / singular_value

    def applied(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the (weight, bias) that act on inputs of type `dtype`, with the learned scale included."""
        if self._frozen is not None and dtype in self._frozen:
            return self._frozen[dtype]
        weight: Tensor = self.normalized_weight()
        bias: Tensor = self.bias
        if self.gain is not None:
            weight, bias = weight * self.gain[:, None, None, None], bias * self.gain
        if weight.dim() == 4:
            # oneDNN and cuDNN then keep activations in this layout too, in which their convolutions are fastest.
            weight = weight.contiguous(memory_format=torch.channels_last)
        weight, bias = weight.to(dtype), bias.to(dtype)
        if self._frozen is not None:
            self._frozen[dtype] = weight.detach(), bias.detach()
        return weight, bias

    @property
    def is_frozen(self) -> bool:
        """Whether the applied weight is fixed at the moment."""
        return self._frozen is not None

    @property
    def frozen_bytes(self) -> int:
        """The bytes of memory that the fixed forms of the weight take in addition to the parameters."""
        applied = [tensor for pair in list((self._frozen or {}).values()) for tensor in pair]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*applied, *list(self._kernels.values())))

    def freeze(self) -> None:
        """Fix the applied weight and bias, without gradient, until `unfreeze`."""
        self._frozen, self._kernels = {}, {}

    def unfreeze(self) -> None:
        """Go back to computing the applied weight and bias from the parameters."""
        self._frozen, self._kernels = None, {}


class Conv3x3(Weighted):
    """A 3×3 convolution with stride 1 and zero padding; `bound_only` adds the release's learned scale per channel."""

    kernel = (3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_frozen and winograd.pays(x, self.weight.shape[0]):
            return winograd.convolve(x, self._kernel(torch.float32, tiled=True), self.applied(torch.float32)[1])
        return F.conv2d(x, *self.applied(x.dtype), padding=1)

    def transposed(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the input, given the gradient by the output. The layer must be frozen."""
        if winograd.pays(gradient, self.weight.shape[1]):
            return winograd.convolve(gradient, self._kernel(torch.float32, turned=True, tiled=True), None)
        return F.conv2d(gradient, self._kernel(gradient.dtype, turned=True), padding=1)

    def _kernel(self, dtype: torch.dtype, *, turned: bool = False, tiled: bool = False) -> Tensor:
        """Return the fixed weight, `turned` for the transposed convolution or `tiled` for `winograd.convolve`.

        Each form is made once and kept until the layer is unfrozen.
        """
        assert self.is_frozen
        key = dtype, turned, tiled
        if key not in self._kernels:
            kernel = self.applied(dtype)[0]
            if turned:
                kernel = kernel.flip(2, 3).transpose(0, 1)
            self._kernels[key] = (
                winograd.transform_kernel(kernel) if tiled else kernel.contiguous(memory_format=torch.channels_last)
            )
        return self._kernels[key]


class Dense(Weighted):
    """An affine map of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.applied(x.dtype))
