"""The energies' Gaussian and mixture bases against torch.distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, distributions, nn

from model.conditions import At
from model.config import NetworkConfig, ScheduleConfig, TrainConfig
from model.densities.annealing import anneal
from model.densities.density import annealing_path
from model.energies.bases import GaussianBase, MixtureBase
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError, ShapeError
from model.noise import SharedNoise, make_generator
from model.schedule import make_schedule
from tests.model.densities.test_annealing import known

_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=4, log_snr_max=4.0, log_snr_min=-3.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="log_snr",
    base_components=2,
)
_WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
_MEANS = torch.tensor([[-2.0, 1.0, 0.0], [1.5, -0.5, 1.0]], dtype=torch.float64)
_FACTORS = torch.tensor(
    [[[0.5, 0, 0], [0.3, 0.4, 0], [0, 0.2, 0.6]], [[0.8, 0, 0], [-0.3, 0.3, 0], [0.1, 0, 0.5]]], dtype=torch.float64
)


def _truth(alpha_bar: float, sigma_bar: float, factor: float = 1.0) -> distributions.Distribution:
    """x_λ of the mixture, every component's standard deviations times `factor`."""
    covariances = factor**2 * (alpha_bar**2 * _FACTORS @ _FACTORS.mT + sigma_bar**2 * torch.eye(3))
    parts = distributions.MultivariateNormal(alpha_bar * _MEANS, covariances)
    return distributions.MixtureSameFamily(distributions.Categorical(_WEIGHTS), parts)


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    """With its base fit to draws of the mixture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        events = _truth(1.0, 0.0).sample((60_000,)).float()
    found = EnergyModel(_CONFIG, (3,))
    found.fit_base(events)
    return found


@pytest.mark.parametrize("log_snr", [4.0, 0.5, -3.0])
def test_the_mixture_is_normalized_at_every_noise_level(model: EnergyModel, log_snr: float) -> None:
    """Its energy is −log of the diffused mixture, up to what the fit leaves open; an error in the scale of the noise or
    of the means would be far larger."""
    assert isinstance(model.base, MixtureBase)
    alpha_bar, sigma_bar = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))
    truth = _truth(alpha_bar, sigma_bar)
    x = truth.sample((2000,)).float()
    energy = model.base.normalized(x, torch.full((2000,), log_snr))[0]
    difference = energy.double() + truth.log_prob(x.double())
    assert abs(float(difference.mean())) < 0.01
    assert float(difference.abs().max()) < 0.3


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_draws_of_the_base_have_the_density_it_gives_for_them(model: EnergyModel, factor: float) -> None:
    assert isinstance(model.base, MixtureBase)
    count, log_snr = 60_000, torch.full((60_000,), 1.0)
    like = torch.empty(count, 3)
    x, energy = model.base.widened(log_snr, like, SharedNoise(make_generator(3)), factor)
    alpha_bar, sigma_bar = math.sqrt(1 / (1 + math.exp(-1))), math.sqrt(1 / (1 + math.exp(1)))
    truth = _truth(alpha_bar, sigma_bar, factor)
    torch.testing.assert_close(x.double().mean(0), truth.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.double().var(0), truth.variance, atol=0.03, rtol=0.03)
    assert abs(float((energy(x).double() + truth.log_prob(x.double())).mean())) < 0.01


class _Tilt(nn.Module):
    """A network whose effect on log Z is known: it moves a Gaussian, or every component of a mixture."""

    def forward(self, features: Tensor, at: At, noise_std: Tensor) -> Tensor:
        return features.sum(1) + 0 * (at.level + noise_std)


def test_a_mixture_is_annealed_straight_to_the_model(model: EnergyModel) -> None:
    """The model is e^(ᾱ Σ h) times its base, h linear in x: log Z follows from the components' moments."""
    assert isinstance(model.base, MixtureBase)
    tilted = EnergyModel(replace(_CONFIG), (3,))
    tilted.load_state_dict(model.state_dict())
    tilted.network = _Tilt()  # type: ignore[assignment]
    assert isinstance(tilted.base, MixtureBase)
    path = annealing_path(tilted)
    assert len(path.energies) == 2
    walk = anneal(path, 4000, SharedNoise(make_generator(4)), num_bridges=8)
    x = tilted.base.widened(
        tilted.log_snr[:1].expand(10**6), torch.empty(10**6, 3), SharedNoise(make_generator(5)), 1.0
    )
    ratio = tilted.base.normalized(x[0], tilted.log_snr[:1].expand(10**6))
    exponent = (ratio[2] * ratio[1].sum(1)).double()
    expected = float(torch.logsumexp(exponent, 0)) - math.log(10**6)
    assert abs(walk.log_mean_weight - expected) < 4 * known(walk.std_error) + 0.02
    assert known(walk.std_error) < 0.05


def test_several_components_are_refused_where_they_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match="need energy 'log_snr'"):
        replace(_CONFIG, energy="gaussian")
    with pytest.raises(ShapeError, match="Use base_components 1"):
        MixtureBase(make_schedule(_CONFIG.schedule), (3, 32, 32), 4)


@pytest.mark.parametrize("num_components", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_base_of_few_events_is_a_normalized_density(num_components: int, count: int) -> None:
    """Its energy is −log of a density: over points on a grid the density sums to 1."""
    model = EnergyModel(replace(_CONFIG, base_components=num_components), (2,))
    model.fit_base(torch.randn(count, 2, generator=torch.Generator().manual_seed(count)))
    assert model.base is not None
    axis = torch.arange(-8, 8, 0.05)
    grid = torch.cartesian_prod(axis, axis)
    energy = model.base.normalized(grid, torch.full((len(grid),), 3.0))[0]
    assert float((-energy.double()).exp().sum() * 0.05**2) == pytest.approx(1, abs=1e-3)


def test_fewer_events_than_dimensions_leave_no_direction_without_spread() -> None:
    """Truth N(0, I) in 30 dimensions: the shrunk covariance of 10 events gives other draws a density near the truth."""
    generator = torch.Generator().manual_seed(0)
    model = EnergyModel(replace(_CONFIG, base_components=1), (30,))
    model.fit_base(torch.randn(10, 30, generator=generator))
    assert model.base is not None
    x = torch.randn(500, 30, generator=generator)  # as x_λ is at every λ
    energy = model.base.normalized(x, torch.full((500,), 4.0))[0]
    truth = (x**2).sum(1) / 2 + 15 * math.log(2 * math.pi)
    assert 0 < float((energy - truth).mean()) < 3


def test_one_event_in_many_dimensions_has_the_spread_of_standardized_data() -> None:
    model = EnergyModel(replace(_CONFIG, base_components=1), (3072,))
    model.fit_base(torch.full((1, 3072), 0.5))
    assert model.base is not None
    assert float(model.base.variance.min()) == float(model.base.variance.max()) == 1


def test_errors_count_by_directions_alike_or_as_pixels_do_with_the_same_sum() -> None:
    """The residual that the base alone leaves, σ̄∇E − ε of data that are not Gaussian, has variance s² along each."""
    torch.manual_seed(0)
    base = GaussianBase(make_schedule(_CONFIG.schedule), (3,))
    base.fit(torch.randn(5000, 3) * torch.tensor([3.0, 1.0, 0.1]))
    level, residual = torch.tensor([2, 2]), torch.randn(2, 3)
    assert base.rotation is not None
    rotated = residual @ base.rotation
    alpha_bar, sigma_bar = base.alpha_bar[2], base.sigma_bar[2]
    scale = alpha_bar * (base.variance / (alpha_bar**2 * base.variance + sigma_bar**2)).sqrt()
    alike, as_pixels = (base.whiten(residual, level, evenness) for evenness in (1.0, 0.0))
    torch.testing.assert_close(alike, rotated / scale)
    torch.testing.assert_close(as_pixels, rotated / scale.square().mean().sqrt())
    for evenness in (0.0, 0.4, 1.0):  # residuals of the variance s² give a loss of 1
        assert float(base.whiten(scale * torch.ones(2, 3) @ base.rotation.T, level, evenness).square().mean()) == (
            pytest.approx(1, rel=1e-5)
        )
