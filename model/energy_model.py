"""An energy model: one network, a schedule and the scales that turn the network's output into energies in nats.

Two forms of E_t(y), y = α_{t+1} x_t:

`step_size` (DRL release): −net(y, t)/s_t², so that the network's gradient enters a Langevin step with the same
coefficient at every level.

`gaussian`: ½ (x − ᾱ_t μ)ᵀ C_t⁻¹ (x − ᾱ_t μ) − (ᾱ_t/σ̄_t) net(g h, t)/g with x = y/α_{t+1}, C_t = ᾱ_t² Σ + σ̄_t² I,
h = C_t^(−½) Σ^½ (x − ᾱ_t μ) and a gain g that sets the input's scale. The first term is exact where the data are
Gaussian of mean μ and covariance Σ; the network carries the rest, with an input of the data's covariance at every level
and an output of order one (the preconditioning of Karras et al. 2022, for an energy and with the full covariance).

`log_snr`: ½ (x − ᾱμ)ᵀ C⁻¹ (x − ᾱμ) + ½ log det 2πC − ᾱ net(h, λ), a function of x and a continuous log-SNR λ. The first
two terms are normalized, and so is the whole once ∂E/∂λ is right (Guth et al. 2025, dual score matching). Its output
scale suits densities, whose energy stays finite as the noise vanishes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from model.annealing import Transport
from model.config import TrainConfig
from model.data import Dataset
from model.energy import EnergyFn
from model.networks import Autocast, frozen, make_network
from model.recovery import recovery_energy
from model.schedule import Schedule, expand, make_schedule

_FULL_COVARIANCE_MAX_DIM = 1024  # above it one variance for all coordinates: the eigenvectors would outgrow the network
_MIN_VARIANCE = 1e-4  # of a data direction, in scaled units
_INPUT_STD = 1.5  # of the network's input: a little into the nonlinearity


class EnergyModel(nn.Module):
    """Energies of every level, with their schedule and step sizes."""

    schedule: Schedule
    step_size: Tensor
    """(T,) float32 Langevin step of each level, in the units of y; adapted in training when asked for"""
    loss_weight: Tensor
    """(T,) w_t of the contrastive loss, which brings energies back to the network's output scale"""
    data_mean: Tensor
    data_std: Tensor
    bin_width: Tensor
    """spacing of the values that the data can take, in [−1, 1] then; 0 for continuous data"""

    def __init__(self, config: TrainConfig, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.event_shape = event_shape
        self.schedule = make_schedule(config.schedule)
        self.network = make_network(config.network, event_shape)
        step_size, loss_weight = _step_sizes(config, self.schedule)
        self.register_buffer("step_size", step_size.float())
        self.register_buffer("loss_weight", loss_weight.float())
        self.register_buffer("data_mean", torch.zeros(()))
        self.register_buffer("data_std", torch.ones(()))
        self.register_buffer("bin_width", torch.zeros(()))
        self.base = GaussianBase(self.schedule, event_shape) if config.energy != "step_size" else None
        alpha_bar, sigma_bar = self.schedule.alpha_bar[:-1], self.schedule.sigma_bar[:-1]
        self.register_buffer("log_snr", 2 * (alpha_bar / sigma_bar).log().float(), persistent=False)

    @property
    def num_levels(self) -> int:
        """T."""
        return self.schedule.num_levels

    def fit_units(self, dataset: Dataset) -> None:
        """Take the units that the data came in."""
        self.data_mean = dataset.mean.to(self.step_size).clone()
        self.data_std = dataset.std.to(self.step_size).clone()
        self.bin_width.fill_(dataset.bin_width or 0.0)

    def fit_base(self, events: Tensor) -> None:
        """Give the Gaussian base, where there is one, the mean and covariance of `events` (N, *event)."""
        if self.base is not None:
            self.base.fit(events)

    def net_output(self, y: Tensor, level: Tensor) -> Tensor:
        """The network's bare output at y (B, *event), level (B,): (B,)."""
        output: Tensor = self.network(y, level)
        return output

    def energy(self, y: Tensor, level: Tensor) -> Tensor:
        """E_t(y) in nats: (B,)."""
        if self.base is None:
            return -self.net_output(y, level) / self.step_size[level] ** 2
        x = y / expand(self.schedule.scale[level], y)
        if self.config.energy == "log_snr":
            return self.energy_at(x, self.log_snr[level])
        base_energy, features, output_scale = self.base(x, level)
        energy: Tensor = base_energy - output_scale * self.net_output(features, level)
        return energy

    def energy_at(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Form `log_snr`: −log p of x = x_λ at any λ (B,), up to what training left of log Z: (B,)."""
        assert self.base is not None
        energy, features, alpha_bar, noise_std = self.base.normalized(x, log_snr)
        output: Tensor = energy - alpha_bar * self.network(features, log_snr, noise_std)
        return output

    log_snr: Tensor
    """(T,) log(ᾱ²/σ̄²) of the levels"""

    def conditional(self, x_next: Tensor, level: Tensor) -> EnergyFn:
        """E_t(y | x_{t+1}) as a function of y, for `x_next` (B, *event) and `level` (B,)."""
        precision = self.schedule.tether_precision[level]
        return recovery_energy(lambda y: self.energy(y, level), x_next, precision)

    def in_data_units(self, x: Tensor) -> Tensor:
        """Undo the dataset's scaling; images are clipped to their range."""
        x = x * self.data_std + self.data_mean
        return x.clamp(-1, 1) if self.bin_width > 0 else x

    def lower_precision(self) -> None:
        """From now on the network computes in bfloat16; the Gaussian, the chain and the weights stay float32."""
        self.network = Autocast(self.network)  # type: ignore[assignment]

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Fix the network's weights while a chain runs; see `model.networks.frozen`."""
        return frozen(self.network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the schedule along with the parameters (`nn.Module.to`, `.cuda`, …)."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.schedule = self.schedule.map(fn)
        return self

    def weigh_residual(self, residual: Tensor, level: Tensor) -> Tensor:
        """A score-matching residual (in units of ε) brought to the scale at which the network has to learn it."""
        return residual if self.base is None else self.base.whiten(residual, level)


def _step_sizes(config: TrainConfig, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """(step_size, loss_weight) of both forms, (T,) each."""
    if config.energy == "step_size":
        step_size = schedule.step_size(config.chain.step_size)
        return step_size, step_size**2 * schedule.sigma[1] / schedule.sigma[1:]
    spread = schedule.scale * schedule.sigma_bar[:-1]  # of y around its mean given the data
    width = (spread**-2 + schedule.tether_precision).rsqrt()
    if config.energy == "log_snr":
        return config.chain.step_size * width, torch.ones_like(width)
    # the network's output scale ᾱ/σ̄ undone, but for levels noisier than their signal: there it would only amplify noise
    return config.chain.step_size * width, (schedule.sigma_bar[:-1] / schedule.alpha_bar[:-1]).clamp(max=1)


class GaussianBase(nn.Module):
    """The energy of x_t if the data were Gaussian, in the eigenbasis of their covariance; see the module's formula."""

    mean: Tensor
    variance: Tensor
    rotation: Tensor | None

    def __init__(self, schedule: Schedule, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        dim = torch.Size(event_shape).numel()
        self.register_buffer("alpha_bar", schedule.alpha_bar[:-1].float(), persistent=False)
        self.register_buffer("sigma_bar", schedule.sigma_bar[:-1].float(), persistent=False)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("rotation", torch.eye(dim) if dim <= _FULL_COVARIANCE_MAX_DIM else None)

    alpha_bar: Tensor
    sigma_bar: Tensor

    def fit(self, events: Tensor) -> None:
        """Moments of `events` (N, *event)."""
        flat = events.flatten(1).double().cpu()
        self.mean.copy_(flat.mean(0))
        if self.rotation is None:
            self.variance.fill_(float(flat.var(0).mean().clamp(min=_MIN_VARIANCE)))
            return
        variance, rotation = torch.linalg.eigh(torch.cov(flat.T).reshape(flat.shape[1], -1))
        self.variance.copy_(variance.clamp(min=_MIN_VARIANCE))
        self.rotation.copy_(rotation)

    def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(base energy (B,), network input (B, *event), output scale (B,)) at x = x_t."""
        alpha_bar, sigma_bar, variance = self._moments(level)
        energy, features = self._whitened(x, alpha_bar, variance)
        return energy, features, (alpha_bar / sigma_bar)[:, 0] / self._gain

    def normalized(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(−log of the base's density (B,), network input (B, *event), ᾱ (B,), the part of the input's standard
        deviation that is noise (B,)) at x = x_λ of any λ (B,)."""
        alpha_bar, sigma_bar = torch.sigmoid(log_snr)[:, None].sqrt(), torch.sigmoid(-log_snr)[:, None].sqrt()
        variance = alpha_bar**2 * self.variance + sigma_bar**2
        energy, features = self._whitened(x, alpha_bar, variance)
        energy = energy + torch.log(2 * math.pi * variance).sum(1) / 2
        return energy, features, alpha_bar[:, 0], _INPUT_STD * sigma_bar[:, 0]

    def widened(self, log_snr: Tensor, noise: Tensor, factor: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Draws of the base at λ (B,) with standard deviations times `factor`, and −log of their density."""
        alpha_bar, sigma_bar = torch.sigmoid(log_snr)[:, None].sqrt(), torch.sigmoid(-log_snr)[:, None].sqrt()
        variance = factor**2 * (alpha_bar**2 * self.variance + sigma_bar**2)
        centred = variance.sqrt() * noise.flatten(1)
        if self.rotation is not None:
            centred = centred @ self.rotation.T

        def energy(x: Tensor) -> Tensor:
            offset = self._rotate(x.flatten(1) - alpha_bar * self.mean)
            return (offset**2 / variance + torch.log(2 * math.pi * variance)).sum(1) / 2

        return (centred + alpha_bar * self.mean).reshape(noise.shape), energy

    @property
    def _gain(self) -> Tensor:
        return _INPUT_STD / self.variance.mean().sqrt()

    def _whitened(self, x: Tensor, alpha_bar: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(base energy (B,), network input (B, *event))"""
        centred = self._rotate(x.flatten(1) - alpha_bar * self.mean)
        features = self._gain * (self.variance / variance).sqrt() * centred
        if self.rotation is not None:
            features = features @ self.rotation.T
        return (centred**2 / variance).sum(1) / 2, features.reshape(x.shape)

    def log_z(self, t: int) -> float:
        """log of the normalizer of the base energy at level t, in the coordinates of x_t."""
        _, _, variance = self._moments(torch.tensor([t], device=self.variance.device))
        return float((2 * math.pi * variance.double()).log().sum()) / 2

    def sample(self, level: Tensor, noise: Tensor) -> Tensor:
        """Exact samples of the base at `level` (B,), from standard normals (B, *event)."""
        alpha_bar, _, variance = self._moments(level)
        centred = variance.sqrt() * noise.flatten(1)
        if self.rotation is not None:
            centred = centred @ self.rotation.T
        return (centred + alpha_bar * self.mean).reshape(noise.shape)

    def transport(self, t_from: int, t_to: int) -> Transport:
        """The linear map from the base of x_{t_from} to that of x_{t_to}, along the eigenvectors."""
        alpha_from, _, variance_from = self._moments(torch.tensor([t_from], device=self.mean.device))
        alpha_to, _, variance_to = self._moments(torch.tensor([t_to], device=self.mean.device))
        ratio = (variance_to / variance_from).sqrt()

        def carry(x: Tensor, mean: Tensor, factor: Tensor, new_mean: Tensor) -> Tensor:
            scaled = self._rotate(x.flatten(1) - mean) * factor
            if self.rotation is not None:
                scaled = scaled @ self.rotation.T
            return (scaled + new_mean).reshape(x.shape)

        mean_from, mean_to = alpha_from * self.mean, alpha_to * self.mean
        return Transport(
            lambda x: carry(x, mean_from, ratio, mean_to),
            lambda x: carry(x, mean_to, 1 / ratio, mean_from),
            float(ratio.double().log().sum()),
        )

    def whiten(self, residual: Tensor, level: Tensor) -> Tensor:
        """σ̄_t ∇E − ε (B, *event) -> (B, D), in units of what the network contributes along each eigenvector: with
        output scale ᾱ/σ̄ and input scale (λ/v)^½ that is ᾱ (λ/v)^½."""
        alpha_bar, _, variance = self._moments(level)
        return self._rotate(residual.flatten(1)) / (alpha_bar * (self.variance / variance).sqrt())

    def _moments(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(ᾱ_t, σ̄_t, eigenvalues of C_t), (B, 1) and (B, D)."""
        alpha_bar, sigma_bar = self.alpha_bar[level, None], self.sigma_bar[level, None]
        return alpha_bar, sigma_bar, alpha_bar**2 * self.variance + sigma_bar**2

    def _rotate(self, flat: Tensor) -> Tensor:
        return flat if self.rotation is None else flat @ self.rotation
