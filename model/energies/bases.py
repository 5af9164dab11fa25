"""The base: the energy that x_t would have if the data were Gaussian, or a mixture of Gaussians.

In the forms `gaussian` and `log_snr` of `model.energies.energy_model`, the network corrects this energy. Where the data
have mean μ and covariance Σ, x_t has mean ᾱμ and covariance C = ᾱ²Σ + σ̄²I; both are kept in the eigenbasis of Σ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import FULL_COVARIANCE_MAX_DIM
from model.errors import ShapeError
from model.noise import NoiseSource
from model.schedule import Schedule

_MIN_VARIANCE = 1e-4  # the least variance along any direction of the data, in scaled units
_MIN_COMPONENT_VARIANCE = 1e-3  # is added to the variance of every direction of a mixture's component
_INPUT_STD = 1.5  # the standard deviation of the network's input: it reaches a little into the nonlinearity


class Whitening(NamedTuple):
    """A linear change of coordinates between x_t and z, both (B, *event)."""

    to_x: Callable[[Tensor], Tensor]
    to_z: Callable[[Tensor], Tensor]
    log_volume: float
    """log |dx_t/dz|, nats"""


class GaussianBase(nn.Module):
    """The energy that x_t would have if the data were Gaussian, computed in the eigenbasis of their covariance.

    The module's docstring gives the formula.
    """

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
        self.register_buffer("rotation", torch.eye(dim) if dim <= FULL_COVARIANCE_MAX_DIM else None)

    alpha_bar: Tensor
    sigma_bar: Tensor

    def fit(self, events: Tensor) -> None:
        """Set the mean and covariance of the base to those of `events` (N, *event).

        Where there are no more events than dimensions, the covariance is shrunk towards a multiple of the identity,
        since theirs is 0 in some directions. One event tells no spread, so that the variance is that of standardized
        data, 1.
        """
        flat = events.flatten(1).double().cpu()
        self.mean.copy_(flat.mean(0))
        if len(flat) == 1:
            self.variance.fill_(1.0)
            return
        if self.rotation is None:
            self.variance.fill_(float(flat.var(0).mean().clamp(min=_MIN_VARIANCE)))
            return
        variance, rotation = torch.linalg.eigh(_covariance(flat))
        self.variance.copy_(variance.clamp(min=_MIN_VARIANCE))
        self.rotation.copy_(rotation)

    def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (base energy (B,), network input (B, *event), output scale (B,)) at x = x_t."""
        alpha_bar, sigma_bar, variance = self._moments(level)
        energy, features = self._whitened(x, alpha_bar, variance)
        return energy, features, (alpha_bar / sigma_bar)[:, 0] / self._gain

    def normalized(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (energy (B,), network input (B, *event), ᾱ (B,), noise_std (B,)) at x = x_λ, for any log-SNR λ (B,).

        The energy is −log of the base's normalized density; noise_std is the part of the input's standard deviation
        that is noise.
        """
        alpha_bar, sigma_bar = torch.sigmoid(log_snr)[:, None].sqrt(), torch.sigmoid(-log_snr)[:, None].sqrt()
        variance = alpha_bar**2 * self.variance + sigma_bar**2
        energy, features = self._whitened(x, alpha_bar, variance)
        energy = energy + torch.log(2 * math.pi * variance).sum(1) / 2
        return energy, features, alpha_bar[:, 0], _INPUT_STD * sigma_bar[:, 0]

    def widened(
        self, log_snr: Tensor, like: Tensor, noise: NoiseSource, factor: float
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Draw from the base at λ (B,) with its standard deviations multiplied by `factor`.

        Returns the draws, in the shape of `like` (B, *event), and the function that gives −log of the widened density.
        """
        alpha_bar, sigma_bar = torch.sigmoid(log_snr)[:, None].sqrt(), torch.sigmoid(-log_snr)[:, None].sqrt()
        variance = factor**2 * (alpha_bar**2 * self.variance + sigma_bar**2)
        centred = self._rotate_back(variance.sqrt() * noise.normal(like).flatten(1))

        def energy(x: Tensor) -> Tensor:
            offset = self._rotate(x.flatten(1) - alpha_bar * self.mean)
            return (offset**2 / variance + torch.log(2 * math.pi * variance)).sum(1) / 2

        return (centred + alpha_bar * self.mean).reshape(like.shape), energy

    @property
    def _gain(self) -> Tensor:
        return _INPUT_STD / self.variance.mean().sqrt()

    def _whitened(self, x: Tensor, alpha_bar: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return (base energy (B,), network input (B, *event))."""
        centred = self._rotate(x.flatten(1) - alpha_bar * self.mean)
        features = self._rotate_back(self._gain * (self.variance / variance).sqrt() * centred)
        return (centred**2 / variance).sum(1) / 2, features.reshape(x.shape)

    def whitening(self, t: int) -> Whitening:
        """Return the change to the coordinates z in which the base of x_t is standard normal."""
        alpha_bar, _, variance = self._moments(torch.tensor([t], device=self.variance.device))
        centre, std = alpha_bar * self.mean, variance.sqrt()

        def to_x(z: Tensor) -> Tensor:
            return (self._rotate_back(std * z.flatten(1)) + centre).reshape(z.shape)

        def to_z(x: Tensor) -> Tensor:
            return (self._rotate(x.flatten(1) - centre) / std).reshape(x.shape)

        return Whitening(to_x, to_z, float(variance.double().log().sum()) / 2)

    def coloured(self, noise: Tensor, t: int) -> Tensor:
        """Give standard normals `noise` (B, *event) the mean and the covariance of x_t, by its symmetric root."""
        return self.whitening(t).to_x(self._rotate(noise.flatten(1)).reshape(noise.shape))

    def log_volume(self, level: Tensor) -> Tensor:
        """Return ½ log det C_t (B,), by which the base's energies become those of densities, to one constant."""
        return self._moments(level)[2].log().sum(1) / 2

    def whiten(self, residual: Tensor, level: Tensor, evenness: float = 1.0) -> Tensor:
        """Bring the residual σ̄_t ∇E − ε (B, *event) to the units of the network's part in it, along each eigenvector.

        The network has output scale ᾱ/σ̄ and input scale (λ/v)^½, so that its part has the scale s = ᾱ (λ/v)^½, by which
        all eigenvectors count alike. With `evenness` e they count as s^(2−2e), with the same sum at every level.
        Returns (B, D).
        """
        alpha_bar, _, variance = self._moments(level)
        scale = alpha_bar * (self.variance / variance).sqrt()
        mean = scale.pow(2 - 2 * evenness).mean(1, keepdim=True)
        return self._rotate(residual.flatten(1)) / (scale.pow(evenness) * mean.sqrt())

    def _moments(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (ᾱ_t (B, 1), σ̄_t (B, 1), eigenvalues of C_t (B, D))."""
        alpha_bar, sigma_bar = self.alpha_bar[level, None], self.sigma_bar[level, None]
        return alpha_bar, sigma_bar, alpha_bar**2 * self.variance + sigma_bar**2

    def _rotate(self, flat: Tensor) -> Tensor:
        return flat if self.rotation is None else flat @ self.rotation

    def _rotate_back(self, flat: Tensor) -> Tensor:
        return flat if self.rotation is None else flat @ self.rotation.T


def _covariance(flat: Tensor) -> Tensor:
    """Return the covariance (D, D) of events (N, D), shrunk where N ≤ D by the rule of Chen et al. 2010 (OAS)."""
    if len(flat) > flat.shape[1]:
        return torch.cov(flat.T).reshape(flat.shape[1], -1)
    from sklearn.covariance import oas  # takes a second to import and is needed here only

    return torch.from_numpy(oas(flat.numpy())[0])


class MixtureBase(GaussianBase):
    """A mixture of Gaussians of full covariance, fit by expectation maximization, for the form `log_snr`.

    It is a normalized density from which exact samples can be drawn at every λ. The network's input is scaled as it is
    for the single Gaussian.
    """

    log_weights: Tensor
    """(K,)"""
    means: Tensor
    """(K, D)"""
    variances: Tensor
    """(K, D) variances along the columns of `rotations`"""
    rotations: Tensor
    """(K, D, D)"""

    def __init__(self, schedule: Schedule, event_shape: tuple[int, ...], num_components: int) -> None:
        dim = torch.Size(event_shape).numel()
        if dim > FULL_COVARIANCE_MAX_DIM:
            raise ShapeError(
                f"base_components is {num_components} and the data have {dim} dimensions; a mixture holds a full "
                f"covariance for each component, up to {FULL_COVARIANCE_MAX_DIM} dimensions. Use base_components 1"
            )
        super().__init__(schedule, event_shape)
        self.register_buffer("log_weights", torch.full((num_components,), -math.log(num_components)))
        self.register_buffer("means", torch.zeros(num_components, dim))
        self.register_buffer("variances", torch.ones(num_components, dim))
        self.register_buffer("rotations", torch.eye(dim).repeat(num_components, 1, 1))

    def fit(self, events: Tensor) -> None:
        """Fit the moments and the mixture to `events` (N, *event).

        Where there are fewer events than components, several components are alike.
        """
        from sklearn.exceptions import ConvergenceWarning  # takes a second to import and is needed here only
        from sklearn.mixture import GaussianMixture

        super().fit(events)
        if len(events) == 1:
            self.means.copy_(self.mean)
            return
        num_found = min(len(self.log_weights), len(events))
        found = GaussianMixture(num_found, reg_covar=_MIN_COMPONENT_VARIANCE, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a base need not be the best mixture
            found.fit(events.flatten(1).double().cpu().numpy())
        index = torch.arange(len(self.log_weights)) % num_found
        self.log_weights.copy_((torch.from_numpy(found.weights_) / index.bincount())[index].log())
        self.means.copy_(torch.from_numpy(found.means_)[index])
        variances, rotations = torch.linalg.eigh(torch.from_numpy(found.covariances_))
        self.variances.copy_(variances[index])
        self.rotations.copy_(rotations[index])

    def normalized(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `GaussianBase.normalized` does, with the energy of the mixture."""
        _, features, alpha_bar, noise_std = super().normalized(x, log_snr)
        return self._energy(x, log_snr, 1.0), features, alpha_bar, noise_std

    def widened(
        self, log_snr: Tensor, like: Tensor, noise: NoiseSource, factor: float
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return what `GaussianBase.widened` does, with every component of the mixture widened."""
        cumulative = self.log_weights.exp().cumsum(0)
        uniform = noise.uniform(like.new_empty(len(like)))
        chosen = torch.searchsorted(cumulative, uniform).clamp(max=len(cumulative) - 1)
        alpha_bar, _, variances = self._component_moments(log_snr)
        variance = factor**2 * variances[torch.arange(len(chosen), device=chosen.device), chosen]
        centred = torch.einsum("be,bde->bd", variance.sqrt() * noise.normal(like).flatten(1), self.rotations[chosen])
        x = (centred + alpha_bar[:, 0] * self.means[chosen]).reshape(like.shape)
        return x, lambda x: self._energy(x, log_snr, factor)

    def _energy(self, x: Tensor, log_snr: Tensor, factor: float) -> Tensor:
        """Return −log (B,) of the mixture's density at λ (B,), with the components' standard deviations × `factor`."""
        alpha_bar, _, variances = self._component_moments(log_snr)
        variances = factor**2 * variances
        num_components, dim = self.means.shape
        columns = self.rotations.permute(1, 0, 2).reshape(dim, -1)  # one product for all components
        centres = torch.einsum("kd,kde->ke", self.means, self.rotations)
        centred = (x.flatten(1) @ columns).reshape(-1, num_components, dim) - alpha_bar * centres
        energies = (centred**2 / variances + torch.log(2 * math.pi * variances)).sum(2) / 2
        return -torch.logsumexp(self.log_weights - energies, 1)

    def _component_moments(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (ᾱ (B, 1, 1), σ̄ (B, 1, 1), variances of every component (B, K, D))."""
        alpha_bar = torch.sigmoid(log_snr)[:, None, None].sqrt()
        sigma_bar = torch.sigmoid(-log_snr)[:, None, None].sqrt()
        return alpha_bar, sigma_bar, alpha_bar**2 * self.variances + sigma_bar**2
