"""A mixture of Gaussians as a trained model, whose every posterior is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ScheduleConfig, TrainConfig
from model.densities.density import blur_std
from model.energies.bases import MixtureBase
from model.energies.energy_model import EnergyModel
from model.inverse.operators import Operator


class _Nothing(nn.Module):
    """A network that corrects nothing, so that the energy is its base's."""

    def forward(self, features: Tensor, *_conditions: object) -> Tensor:
        return features.new_zeros(len(features))


def mixture_model(events: Tensor, num_components: int, *, num_levels: int = 14) -> EnergyModel:
    """Return the model whose energies are those of a mixture that is fit to `events` (N, *event)."""
    schedule = ScheduleConfig(kind="log_snr", num_levels=num_levels, log_snr_max=7.0, log_snr_min=-5.0)
    config = TrainConfig(energy="log_snr", base_components=num_components, schedule=schedule, dataset="digits")
    model = EnergyModel(config, tuple(events.shape[1:]))
    model.fit_base(events)
    model.network = _Nothing()  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Posterior:
    """The posterior of the item that a mixture model's density is of, given a measurement; float64."""

    shares: Tensor
    """(K,)"""
    means: Tensor
    """(K, D)"""
    covariances: Tensor
    """(K, D, D)"""
    log_evidence: float

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.shares @ self.means

    @property
    def variance(self) -> Tensor:
        """(D,)"""
        second = self.covariances.diagonal(dim1=1, dim2=2) + self.means**2
        return self.shares @ second - self.mean**2


def components(model: EnergyModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return (log shares (K,), means (K, D), covariances (K, D, D)) of the model's density; float64."""
    base = model.base
    assert isinstance(base, MixtureBase)
    rotations = base.rotations.double()
    blurred = base.variances.double() + blur_std(model) ** 2
    covariances = (rotations * blurred[:, None, :]) @ rotations.transpose(1, 2)
    return base.log_weights.double().log_softmax(0), base.means.double(), covariances


def posterior(model: EnergyModel, operator: Operator, measured: Tensor, noise_std: float) -> Posterior:
    """Return the posterior by Bayes' rule, component by component."""
    log_shares, means, covariances = components(model)
    rows, b = operator.matrix, measured.double().flatten()
    spread = rows @ covariances @ rows.T + noise_std**2 * torch.eye(len(rows), dtype=torch.float64)
    gain = torch.linalg.solve(spread, rows @ covariances).transpose(1, 2)
    residual = b - means @ rows.T
    whitened = torch.linalg.solve(spread, residual[..., None])[..., 0]
    log_likelihood = -((residual * whitened).sum(1) + torch.logdet(spread) + len(rows) * math.log(2 * math.pi)) / 2
    joint = log_shares + log_likelihood
    return Posterior(
        joint.softmax(0),
        means + (gain @ residual[..., None])[..., 0],
        covariances - gain @ rows @ covariances,
        float(torch.logsumexp(joint, 0)),
    )


def draw(model: EnergyModel, count: int, seed: int) -> Tensor:
    """Draw items (count, *event) from the model's density, float64."""
    log_shares, means, covariances = components(model)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(log_shares.exp(), count, replacement=True, generator=generator)
    noise = torch.randn(count, means.shape[1], generator=generator, dtype=torch.float64)
    x = means[chosen] + (torch.linalg.cholesky(covariances)[chosen] @ noise[..., None])[..., 0]
    return torch.as_tensor(x.reshape(count, *model.event_shape))
