"""Noise schedules of the forward process, and the index convention of the whole project.

Source: Gao et al. 2021 (DRL) section 3 and its release; ARCHITECTURE.md has the notation. Arrays are float64 with T + 1
entries of index t = 0…T: `alpha[t]` and `sigma[t]` belong to the step that arrives at x_t, so the data take step 0 to
become x_0, and x_{t+1} = alpha[t+1] x_t + sigma[t+1] ε. Level t = 0…T−1 names the energy model of y_t = α_{t+1} x_t.

The last step is almost pure noise in every schedule here. The top level T−1 is therefore a plain marginal model: its
tether to x_T is off and its scale α_{t+1} is taken as 1 (`tether_precision` and `scale` below carry both rules).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.config import ScheduleConfig


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Give `values` (B,) trailing axes of length 1, and the dtype and device of `like` (B, *event)."""
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Schedule:
    """Scales and standard deviations of the forward process; see the module's index convention."""

    alpha: Tensor
    """(T+1,) factor by which the step that arrives at x_t scales x_{t−1}."""
    sigma: Tensor
    """(T+1,) standard deviation of the noise that this step adds."""
    alpha_bar: Tensor
    """(T+1,) cumulative scale from the data to x_t."""
    sigma_bar: Tensor
    """(T+1,) cumulative standard deviation from the data to x_t."""

    @property
    def num_levels(self) -> int:
        """The number T of noise levels."""
        return len(self.alpha) - 1

    @cached_property
    def scale(self) -> Tensor:
        """(T,) the α_{t+1} of y_t = α_{t+1} x_t, which is taken as 1 at the top level."""
        return torch.cat([self.alpha[1:-1], self.alpha.new_ones(1)])

    @cached_property
    def tether_precision(self) -> Tensor:
        """(T,) the 1/σ_{t+1}² of the tether |x_{t+1} − y|²/(2σ_{t+1}²), which is taken as 0 at the top level."""
        return torch.cat([self.sigma[1:-1] ** -2, self.sigma.new_zeros(1)])

    def map(self, array_fn: Callable[[Tensor], Tensor]) -> Schedule:
        """Return the schedule with every array passed through `array_fn`, which may move it to a device."""
        return Schedule(*map(array_fn, (self.alpha, self.sigma, self.alpha_bar, self.sigma_bar)))

    def diffuse(self, x_data: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = ᾱ_t x_data + σ̄_t ε for `level` (B,) in 0…T; `x_data` and `noise` are (B, *event)."""
        return expand(self.alpha_bar[level], x_data) * x_data + expand(self.sigma_bar[level], x_data) * noise

    def diffuse_pair(self, x_data: Tensor, level: Tensor, noise: Tensor, next_noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_t, x_{t+1}) for `level` (B,) in 0…T−1; `x_data` and both noises are (B, *event)."""
        x = self.diffuse(x_data, level, noise)
        return x, expand(self.alpha[level + 1], x) * x + expand(self.sigma[level + 1], x) * next_noise

    def diffuse_together(self, x_data: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_t, x_{t+1}) of one and the same ε for `level` (B,) in 0…T−1: right marginals without the joint.

        The contrastive loss needs no more: the expected energies of y⁺, and of the y⁻ that any chain draws given
        x_{t+1}, depend on one marginal each, so that the expected gradient is the same and only its variance falls (Zhu
        et al. 2024). Score matching of the conditional needs the joint.
        """
        return self.diffuse(x_data, level, noise), self.diffuse(x_data, level + 1, noise)

    def step_size(self, b: float) -> Tensor:
        """Return the Langevin step sizes s_t = b √(σ̄_t/σ̄_0) σ_{t+1}, (T,).

        Source: DRL section 3.4; c_t² = σ̄_t/σ̄_0 in the release.
        """
        return b * (self.sigma_bar[:-1] / self.sigma_bar[0]).sqrt() * self.sigma[1:]


def _from_alpha_bar(alpha_bar: Tensor) -> Schedule:
    alpha = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return Schedule(alpha=alpha, sigma=(1 - alpha**2).sqrt(), alpha_bar=alpha_bar, sigma_bar=(1 - alpha_bar**2).sqrt())


def _linear_betas_alpha_bar() -> Tensor:
    """Return the cumulative scales (1001,) of the 1000 betas from 1e-4 to 0.02 and a last beta of 1 (DRL release)."""
    betas = torch.cat([torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    return (1 - betas).sqrt().cumprod(0)


def _published(num_levels: int) -> Schedule:
    stride = 1000 // (2 * (num_levels - 1))
    cuts = [*range(0, num_levels * stride, stride), 999]
    return _from_alpha_bar(_linear_betas_alpha_bar()[cuts])


def _log_snr(num_levels: int, high: float, low: float) -> Schedule:
    """Return a schedule whose x_0 … x_{T−1} are evenly spaced in λ = log(ᾱ²/σ̄²) and whose x_T is pure noise."""
    log_snr = torch.linspace(high, low, num_levels, dtype=torch.float64)
    alpha_bar = torch.cat([torch.sigmoid(log_snr).sqrt(), torch.zeros(1, dtype=torch.float64)])
    return _from_alpha_bar(alpha_bar)


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Make the schedule that `config` describes, on the CPU and in float64."""
    if config.kind == "published":
        return _published(config.num_levels)
    if config.kind == "linear_betas":
        return _from_alpha_bar(_linear_betas_alpha_bar())
    return _log_snr(config.num_levels, config.log_snr_max, config.log_snr_min)
