"""An energy model: one network, a schedule and the scales that turn the network's output into energies in nats.

E_t(y), with y = α_{t+1} x_t, has one of three forms:

`step_size` (DRL release): −net(y, t)/s_t², so that the network's gradient enters a Langevin step with the same
coefficient at every level.

`gaussian`: ½ (x − ᾱ_t μ)ᵀ C_t⁻¹ (x − ᾱ_t μ) − (ᾱ_t/σ̄_t) net(g h, t)/g with x = y/α_{t+1}, C_t = ᾱ_t² Σ + σ̄_t² I,
h = C_t^(−½) Σ^½ (x − ᾱ_t μ) and a gain g that sets the input's scale. The first term is exact where the data are
Gaussian of mean μ and covariance Σ; the network carries the rest, with an input of the data's covariance at every level
and an output of order one (the preconditioning of Karras et al. 2022, for an energy and with the full covariance).

`log_snr`: ½ (x − ᾱμ)ᵀ C⁻¹ (x − ᾱμ) + ½ log det 2πC − ᾱ net(h, λ), a function of x and a continuous log-SNR λ. The first
two terms are normalized, and so is the whole once ∂E/∂λ is right (Guth et al. 2025, dual score matching). Its output
scale suits densities, whose energy stays finite as the noise vanishes. With `base_components` they are −log of a
mixture of Gaussians in place of one.

A conditional model has an output of the network for each class; `model.energies.labels` says which energies those make.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from model.conditions import At
from model.config import Precision, TrainConfig
from model.energies.bases import GaussianBase, MixtureBase
from model.energies.conditional import recovery_energy
from model.energies.energy import EnergyFn
from model.energies.labels import chosen
from model.errors import ConfigError
from model.networks.freezing import frozen
from model.networks.layers import Weighted
from model.networks.registry import make_network
from model.schedule import Schedule, expand, make_schedule
from model.spaces.affine import AffineSpace
from model.spaces.space import Space


class EnergyModel(nn.Module):
    """The energies of all noise levels, given by one network, together with their schedule and step sizes."""

    schedule: Schedule
    step_size: Tensor
    """(T,) float32 step size of each level's chain, in the units of y; training adapts it if the configuration asks"""
    loss_weight: Tensor
    """(T,) weight w_t of the contrastive loss, which brings energies back to the network's output scale"""
    data_mean: Tensor
    data_std: Tensor
    bin_width: Tensor
    """`data_mean`, `data_std` and `bin_width` are the tensors of `space`: they move and are stored with the model's."""

    def __init__(self, config: TrainConfig, event_shape: tuple[int, ...], class_names: tuple[str, ...] = ()) -> None:
        """Make a model whose label k means `class_names[k]`; one that is not conditional has no classes."""
        super().__init__()
        if config.conditional != bool(class_names):
            raise ConfigError(
                f"conditional is {config.conditional}, but the model has {len(class_names)} classes; "
                "expected classes of a conditional model, and none of others",
                field="conditional",
            )
        self.config = config
        self.event_shape = event_shape
        self.class_names = class_names
        self.held_out_energies: tuple[float, ...] = ()
        """quantiles, evenly spaced from the least to the largest, of E_0 of held-out data; empty if not known"""
        self.schedule = make_schedule(config.schedule)
        self.network = make_network(config.network, event_shape, len(class_names))
        step_size, loss_weight = _step_sizes(config, self.schedule)
        self.register_buffer("step_size", step_size.float())
        self.register_buffer("loss_weight", loss_weight.float())
        self.register_buffer("data_mean", torch.zeros(()))
        self.register_buffer("data_std", torch.ones(()))
        self.register_buffer("bin_width", torch.zeros(()))
        self.base = _make_base(config, self.schedule, event_shape)
        alpha_bar, sigma_bar = self.schedule.alpha_bar[:-1], self.schedule.sigma_bar[:-1]
        self.register_buffer("log_snr", 2 * (alpha_bar / sigma_bar).log().float(), persistent=False)

    @property
    def num_levels(self) -> int:
        """The number of levels T."""
        return self.schedule.num_levels

    @property
    def space(self) -> Space:
        """The change of coordinates between the data and the x of the energies."""
        return AffineSpace(self.event_shape, self.data_mean, self.data_std, self.bin_width)

    @space.setter
    def space(self, space: AffineSpace) -> None:
        self.data_mean = space.mean.to(self.step_size).clone()
        self.data_std = space.std.to(self.step_size).clone()
        self.bin_width.copy_(space.bin_width)

    def fit_base(self, events: Tensor) -> None:
        """Fit the base, where there is one, to `events` (N, *event)."""
        if self.base is not None:
            self.base.fit(events)

    def from_noise(self, noise: Tensor) -> Tensor:
        """Return where the chains of the top level start, (B, *event), given standard normals `noise`, the x_T.

        x_T tells nothing of x_{T−1}. Of the data there is little left, but the larger the events, the further it is
        from a standard normal in the directions in which they vary most. With a base, the noise is brought to the
        mean and covariance of x_{T−1}; without one it is returned as it is.
        """
        return noise if self.base is None else self.base.coloured(noise, self.num_levels - 1)

    def net_output(self, y: Tensor, at: At) -> Tensor:
        """Return the network's bare output (B,), or (B, K) with classes, at y (B, *event)."""
        output: Tensor = self.network(y, at)
        return output

    def energy(self, y: Tensor, at: At) -> Tensor:
        """Return E_t(y) (B,), in nats, at y (B, *event); of a conditional model, that of the rows' labels."""
        base_energy, correction = self.parts(y, at)
        return base_energy - chosen(correction, at)

    def parts(self, y: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Return the two parts of the energy at y (B, *event), in nats: (the base's energy, the correction).

        The first is (B,), or () where there is no base; the network takes the second from it, which is (B,), or (B, K)
        with one for each class.
        """
        if self.base is None:
            output = self.net_output(y, at)
            return y.new_zeros(()), output / expand(self.step_size[at.level] ** 2, output)
        x = y / expand(self.schedule.scale[at.level], y)
        if self.config.energy == "log_snr":
            return self.continuous_parts(x, at.on(self.log_snr[at.level]))
        base_energy, features, output_scale = self.base(x, at.level)
        output = self.net_output(features, at)
        return base_energy, expand(output_scale, output) * output

    def continuous_energy(self, x: Tensor, at: At) -> Tensor:
        """Return −log p (B,) of x = x_λ, up to what training left of log Z, where `at.level` is any log-SNR λ.

        Only the form `log_snr` has this energy.
        """
        base_energy, correction = self.continuous_parts(x, at)
        return base_energy - chosen(correction, at)

    def continuous_parts(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Return the `parts` of `continuous_energy`."""
        assert self.base is not None
        base_energy, features, alpha_bar, noise_std = self.base.normalized(x, at.level)
        output: Tensor = self.network(features, at, noise_std)
        return base_energy, expand(alpha_bar, output) * output

    log_snr: Tensor
    """(T,) log-SNR log(ᾱ²/σ̄²) of each level"""

    def marginal(self, at: At) -> EnergyFn:
        """Return E_t(y) as a function of y."""
        return lambda y: self.energy(y, at)

    def conditional(self, x_next: Tensor, at: At) -> EnergyFn:
        """Return E_t(y | x_{t+1}) as a function of y, for `x_next` = x_{t+1} (B, *event)."""
        return recovery_energy(self.marginal(at), x_next, self.schedule.tether_precision[at.level])

    def frozen(self, precision: Precision | None = None) -> contextlib.AbstractContextManager[None]:
        """Fix the network's weights while a chain runs; see `model.networks.freezing.frozen`."""
        return frozen(self.network, precision)

    @property
    def memory_bytes(self) -> int:
        """The bytes that the weights take, with the other forms of them that are kept while they are frozen."""
        own = sum(tensor.numel() * tensor.element_size() for tensor in (*self.parameters(), *self.buffers()))
        return own + sum(module.frozen_bytes for module in self.network.modules() if isinstance(module, Weighted))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the schedule along with the parameters (`nn.Module.to`, `.cuda`, …)."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.schedule = self.schedule.map(fn)
        return self

    def weigh_residual(self, residual: Tensor, level: Tensor) -> Tensor:
        """Bring a score-matching residual, which is in units of ε, to the scale at which the network learns it."""
        return residual if self.base is None else self.base.whiten(residual, level, self.config.score_matching.evenness)


def _make_base(config: TrainConfig, schedule: Schedule, event_shape: tuple[int, ...]) -> GaussianBase | None:
    if config.energy == "step_size":
        return None
    if config.base_components == 1:
        return GaussianBase(schedule, event_shape)
    return MixtureBase(schedule, event_shape, config.base_components)


def _step_sizes(config: TrainConfig, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return (step_size, loss_weight), each (T,), for the form of energy that `config` names."""
    if config.energy == "step_size":
        step_size = schedule.step_size(config.chain.step_size)
        return step_size, step_size**2 * schedule.sigma[1] / schedule.sigma[1:]
    spread = schedule.scale * schedule.sigma_bar[:-1]  # the standard deviation of y given the data
    width = (spread**-2 + schedule.tether_precision).rsqrt()
    if config.energy == "log_snr":
        return config.chain.step_size * width, torch.ones_like(width)
    # The weight undoes the network's output scale ᾱ/σ̄, except at levels noisier than their signal, where it would
    # only amplify noise.
    return config.chain.step_size * width, (schedule.sigma_bar[:-1] / schedule.alpha_bar[:-1]).clamp(max=1)
