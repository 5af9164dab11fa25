"""The Gaussian guide: how likely a measurement is, seen from every noise level, if the data were Gaussian.

Restored is u = x_0/ᾱ_0, the item that the model's density is of, from b = A u + s ε. Given u, x_t has mean ᾱ_t u and
variance r_t² = σ̄_t² − (ᾱ_t/ᾱ_0)² σ̄_0². If u had the prior N(μ, Σ) then u | b ~ N(m, P), x_t | b ~ N(ᾱ_t m, Q_t) and
x_t ~ N(ᾱ_t μ, C_t) with Q_t = ᾱ_t² P + r_t² I and C_t = ᾱ_t² Σ + r_t² I, so that by Bayes' rule

    g_t(x) = p(b | x_t = x) = p(b) N(x; ᾱ_t m, Q_t) / N(x; ᾱ_t μ, C_t).

r_0 = 0 makes g_0(x) = N(b; A x/ᾱ_0, s²I) the true likelihood, whatever the prior is: sequential Monte Carlo along
exp(−e_t) g_t ends at the posterior and at its normalizer, and the guide only decides how well it gets there. In the
coordinates z of x = ᾱ_t m + Q_t^½ z the energy of exp(−e_t) g_t is

    U_t(z) = e_t(x) + log N(x; ᾱ_t μ, C_t) + |z|²/2,

up to log p(b) − (D/2) log 2π, which is the same at every level. Where the data are Gaussian it is |z|²/2 at each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.densities.annealing import AnnealingPath
from model.densities.density import blur_std, level_energy
from model.energies.conditional import squared_norm
from model.energies.energy import EnergyFn
from model.energies.energy_model import EnergyModel
from model.inverse.operators import Operator, standardized

_FIRST_STEP = 0.5  # the step size of a chain before it is tuned


@dataclass(frozen=True)
class Guide:
    """A measurement, seen from every noise level of a model. Its matrices are float64."""

    model: EnergyModel
    prior_mean: Tensor
    """(D,) μ"""
    prior_variance: Tensor
    """(D,) eigenvalues of Σ"""
    prior_rotation: Tensor | None
    """(D, D) their eigenvectors as columns; None stands for the identity"""
    mean: Tensor
    """(D,) m"""
    variance: Tensor
    """(D,) eigenvalues of P"""
    rotation: Tensor
    """(D, D) their eigenvectors as columns"""
    log_evidence: float
    """log p(b) if the data were Gaussian, nats"""

    @classmethod
    def of(cls, model: EnergyModel, operator: Operator, measured: Tensor, noise_std: float) -> Guide:
        """Return the guide of `measured` (*measurement), taken with noise of `noise_std` in the data's units.

        The Gaussian is that of the model's base; a model without one is given N(0, I) in scaled units.
        """
        mean, variance, rotation = _moments(model)
        precision = torch.diag(1 / variance)
        if rotation is not None:
            precision = rotation / variance @ rotation.T
        operator, target = standardized(model, operator, measured)
        rows, target = operator.matrix.to(mean.device), target.to(mean).flatten()
        values, vectors = torch.linalg.eigh(precision + rows.T @ rows / noise_std**2)
        residual = target - rows @ mean
        gained = vectors @ ((rows @ vectors).T @ residual / values) / noise_std**2
        covariance = rows @ torch.linalg.solve(precision, rows.T) + noise_std**2 * torch.eye(len(rows)).to(rows)
        root = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(root, residual[:, None], upper=False)
        log_evidence = -float((whitened**2).sum() + torch.log(2 * math.pi * root.diagonal() ** 2).sum()) / 2
        return cls(model, mean, variance, rotation, mean + gained, 1 / values, vectors, log_evidence)

    def path(self) -> AnnealingPath:
        """Return the path from N(0, I) over the levels to the posterior, in the coordinates z.

        With W the mean weight of a walk along it, log p(b) = `log_evidence` + log W − log Z_0, where log Z_0 is that
        of the model's level 0. The caller freezes the model.
        """
        dim = len(self.mean)
        energies = [self._energy(t) for t in range(self.model.num_levels - 1, -1, -1)]
        return AnnealingPath(
            [lambda z: squared_norm(z) / 2, *energies],
            dim * math.log(2 * math.pi) / 2,
            lambda count, noise: noise.normal(self.model.step_size.new_empty(count, *self.model.event_shape)),
            torch.full((len(energies) + 1,), _FIRST_STEP),
        )

    def to_data(self, z: Tensor) -> Tensor:
        """Return the items u (B, *event), in the data's units, at the coordinates z of the posterior."""
        like = self.model.step_size
        flat = z.flatten(1) * self.variance.sqrt().to(like) @ self.rotation.T.to(like) + self.mean.to(like)
        return self.model.space.decode(flat.reshape(z.shape))

    def _energy(self, t: int) -> EnergyFn:
        """Return U_t(z)."""
        schedule, like, energy = self.model.schedule, self.model.step_size, level_energy(self.model, t)
        scale = float(schedule.alpha_bar[t])
        added = max(0.0, float(schedule.sigma_bar[t]) ** 2 - (scale * blur_std(self.model)) ** 2)
        columns = (self.rotation * (scale**2 * self.variance + added).sqrt()).T.to(like)
        centre, prior_centre = (scale * self.mean).to(like), (scale * self.prior_mean).to(like)
        prior_variance = scale**2 * self.prior_variance + added
        log_volume = float(torch.log(2 * math.pi * prior_variance).sum()) / 2
        whitening = prior_variance.rsqrt().to(like)
        if self.prior_rotation is not None:
            whitening = (self.prior_rotation * prior_variance.rsqrt()).to(like)

        def guided(z: Tensor) -> Tensor:
            x = z.flatten(1) @ columns + centre
            offset = x - prior_centre
            prior = offset * whitening if whitening.dim() == 1 else offset @ whitening
            return energy(x.reshape(z.shape)) - squared_norm(prior) / 2 - log_volume + squared_norm(z) / 2

        return guided


def _moments(model: EnergyModel) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the mean, the eigenvalues and the eigenvectors of u's covariance, in scaled units and float64."""
    blur = blur_std(model) ** 2
    if model.base is None:
        zeros = model.step_size.new_zeros(math.prod(model.event_shape)).double()
        return zeros, zeros + 1, None
    rotation = None if model.base.rotation is None else model.base.rotation.double()
    return model.base.mean.double(), model.base.variance.double() + blur, rotation
