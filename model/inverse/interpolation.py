"""The way from one sample to another: spherical between their starting noises, with all later noise shared.

Source: DRL section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.chains.sampling import Samples, chosen_settings, descend
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import ChainNoise


def interpolate(model: EnergyModel, one: int, other: int, *, num_samples: int, seed: int = 0) -> Samples:
    """Return `num_samples` samples on the way from sample `one` of the stream `seed` to sample `other`.

    The first is sample `one` itself. The last begins where sample `other` begins, and then has the noise of `one`.
    Raises ConfigError for fewer than two samples.
    """
    if num_samples < 2:
        raise ConfigError(f"num_samples is {num_samples}; expected two at least, the ends of the way")
    like = torch.empty(2, *model.event_shape, device=model.step_size.device)
    ends = ChainNoise(seed, [one, other]).normal(like)
    noise = ChainNoise(seed, [one] * num_samples)
    noise.normal(like[:1].expand(num_samples, *model.event_shape))  # the start of sample `one`, which is in `ends`
    x_top = spherical(ends[0], ends[1], torch.linspace(0, 1, num_samples).to(like))
    return descend(model, x_top, noise, chosen_settings(model, num_steps=None, noise_scale=None, levels=()))


def spherical(one: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    """Return the points (N, *event) at `shares` (N,) of the arc from `one` to `other`, both (*event).

    They are (sin((1 − u) ω) a + sin(u ω) b)/sin ω, where ω is the angle between a and b (Shoemake 1985).
    """
    cosine = (one * other).sum() / (one.norm() * other.norm())
    angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    weights = torch.stack([torch.sin((1 - shares) * angle), torch.sin(shares * angle)], 1) / torch.sin(angle)
    return torch.einsum("nk,k...->n...", weights, torch.stack([one, other]))
