"""Where a chain on p(y | x_{t+1}) starts."""

from __future__ import annotations

from torch import Tensor

from model.schedule import expand


def normal_approximation(score: Tensor, x_next: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """A draw from N(x_next − σ_{t+1}² ∇E_t(x_next), σ_{t+1}² I), the conditional's first-order form (DRL eq. 15).

    `score` is −∇E_t(x_next); `sigma` (B,) is σ_{t+1}.
    """
    s = expand(sigma, x_next)
    return x_next + s**2 * score + s * noise
