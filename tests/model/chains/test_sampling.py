"""Sampling: exact models give the data back, one image does not depend on another, costs are counted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from model.chains.sampling import descend, draw_conditional, sample
from model.conditions import At
from model.config import ChainConfig, NetworkConfig, SamplingConfig, ScheduleConfig, TrainConfig
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import ChainNoise, SharedNoise
from model.spaces.affine import AffineSpace

_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=8, log_snr_max=5.0, log_snr_min=-5.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", num_steps=20, step_size=0.9),
    sampling=SamplingConfig(num_steps=20),
)
_MEAN, _STD = torch.tensor([0.4, -0.3]), torch.tensor([0.3, 0.8])


class _Silent(nn.Module):
    """A network without an opinion: the model is then exactly its Gaussian base."""

    def forward(self, x: Tensor, at: At) -> Tensor:
        return 0 * x.flatten(1).sum(1) + 0 * at.level


def _gaussian_model(config: TrainConfig = _CONFIG) -> EnergyModel:
    """The exact energies of data N(mean, diag(std²)) at every level."""
    model = EnergyModel(config, (2,))
    model.network = _Silent()  # type: ignore[assignment]
    assert model.base is not None
    model.base.mean.copy_(_MEAN)
    model.base.variance.copy_(_STD**2)
    return model


def _assert_is_the_data(x: Tensor, extra_std: float) -> None:
    for axis in range(2):
        std = math.hypot(float(_STD[axis]), extra_std)
        assert stats.kstest(x[:, axis].numpy(), stats.norm(float(_MEAN[axis]), std).cdf).pvalue > 0.01


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
@pytest.mark.parametrize("start", ["neighbour", "predictor", "multistep"])
def test_an_exact_model_gives_the_data_back(kernel: str, start: str) -> None:
    """x_0 of the exact energies is N(ᾱ_0 mean, ᾱ_0² std² + σ̄_0²): an index off by one level would show."""
    step_size = 0.9 if kernel == "mala" else 0.5
    config = replace(
        _CONFIG,
        chain=ChainConfig(kernel=kernel, num_steps=20, step_size=step_size),  # type: ignore[arg-type]
        sampling=SamplingConfig(num_steps=20, start=start),  # type: ignore[arg-type]
    )
    model = _gaussian_model(config)
    x = sample(model, 3000, seed=1).x / float(model.schedule.alpha_bar[0])
    _assert_is_the_data(x, float(model.schedule.sigma_bar[0] / model.schedule.alpha_bar[0]))


def test_every_intermediate_level_has_the_marginal_of_the_forward_process() -> None:
    model = _gaussian_model()
    levels = sample(model, 3000, seed=2, levels=range(9)).levels
    for t, x in levels.items():
        alpha_bar, sigma_bar = float(model.schedule.alpha_bar[t]), float(model.schedule.sigma_bar[t])
        std = math.hypot(alpha_bar * float(_STD[1]), sigma_bar)
        assert stats.kstest(x[:, 1].numpy(), stats.norm(alpha_bar * float(_MEAN[1]), std).cdf).pvalue > 1e-3


def test_one_normal_draw_a_level_suffices_when_steps_are_many() -> None:
    """K = 0 (T1k): the normal approximation is right to first order in σ²; 400 levels leave little to see."""
    schedule = ScheduleConfig(kind="log_snr", num_levels=400, log_snr_max=6.0, log_snr_min=-6.0)
    model = _gaussian_model(replace(_CONFIG, schedule=schedule))
    samples = sample(model, 2000, seed=3, num_steps=0)
    assert samples.gradient_evaluations == 400
    for axis in range(2):
        assert abs(float(samples.x[:, axis].mean() - _MEAN[axis])) < 5 * float(_STD[axis]) / math.sqrt(2000) + 0.01
        assert float(samples.x[:, axis].std()) == pytest.approx(float(_STD[axis]), rel=0.08)


@pytest.mark.slow
def test_the_expected_data_are_less_noisy_than_x_0() -> None:
    config = replace(_CONFIG, schedule=replace(_CONFIG.schedule, log_snr_max=0.5))
    noisy = _gaussian_model(config)
    denoised = _gaussian_model(replace(config, sampling=SamplingConfig(num_steps=20, denoise=True)))
    x, mean = sample(noisy, 3000, seed=4).x, sample(denoised, 3000, seed=4).x
    alpha_bar, sigma_bar = float(noisy.schedule.alpha_bar[0]), float(noisy.schedule.sigma_bar[0])
    variance = alpha_bar**2 * _STD**2 + sigma_bar**2
    shrunk = _MEAN + alpha_bar * _STD**2 / variance * (x - alpha_bar * _MEAN)
    torch.testing.assert_close(mean, shrunk, atol=1e-4, rtol=1e-4)


def test_a_sample_depends_on_its_seed_and_index_alone() -> None:
    model = _gaussian_model()
    together = sample(model, 5, seed=7).x
    torch.testing.assert_close(sample(model, 1, seed=7).x[0], together[0])
    torch.testing.assert_close(sample(model, 2, seed=7, first=3).x, together[3:])
    assert not torch.allclose(sample(model, 1, seed=8).x[0], together[0])
    assert not torch.allclose(together[0], together[1])


def test_chain_noise_is_standard_and_independent_between_chains() -> None:
    noise = ChainNoise(0, range(50))
    draws = torch.stack([noise.normal(torch.empty(50, 3)) for _ in range(2000)])
    assert abs(float(draws.mean())) < 5 / math.sqrt(draws.numel())
    assert abs(float(draws.std()) - 1) < 5 / math.sqrt(2 * draws.numel())
    correlation = torch.corrcoef(draws.permute(1, 0, 2).reshape(50, -1)) - torch.eye(50)
    assert float(correlation.abs().max()) < 6 / math.sqrt(6000)
    assert len(torch.unique(noise.uniform(torch.empty(50)))) == 50


def test_gradient_evaluations_are_counted_and_levels_kept() -> None:
    model = _gaussian_model()
    samples = sample(model, 2, seed=0, num_steps=4, levels=[8, 3, 0])
    assert samples.gradient_evaluations == 8 * (1 + 4)
    assert sorted(samples.levels) == [0, 3, 8]
    torch.testing.assert_close(samples.levels[0], samples.x)


def test_data_units_are_restored() -> None:
    model = _gaussian_model()
    plain = sample(model, 2, seed=0).x
    mean, std = torch.tensor([10.0, 0.0]), torch.tensor([2.0, 5.0])
    model.space = AffineSpace.standardized((2,), mean, std)
    torch.testing.assert_close(sample(model, 2, seed=0).x, plain * std + mean)


def test_values_out_of_range_are_refused_with_the_range() -> None:
    model = _gaussian_model()
    with pytest.raises(ConfigError, match="from 0 to 8"):
        sample(model, 1, seed=0, levels=[9])
    with pytest.raises(ConfigError, match="noise_scale"):
        sample(model, 1, seed=0, noise_scale=0.5)


def test_noise_scale_narrows_the_samples_of_an_unadjusted_chain() -> None:
    config = replace(_CONFIG, chain=ChainConfig(kernel="langevin", num_steps=20, step_size=0.5))
    model = _gaussian_model(config)
    assert sample(model, 1000, seed=0, noise_scale=0.5).x.std() < 0.9 * sample(model, 1000, seed=0).x.std()


def test_the_top_level_is_drawn_without_a_tether() -> None:
    """Its chain forgets where it starts: with a tether to x_T the mean would follow the start."""
    model = _gaussian_model(replace(_CONFIG, schedule=replace(_CONFIG.schedule, log_snr_min=-3.0)))
    noise = SharedNoise(torch.Generator().manual_seed(0))
    far = torch.full((2000, 2), 4.0)
    draw = draw_conditional(model, far, At.same(7, far), noise, num_steps=200, start="neighbour")
    alpha_bar = float(model.schedule.alpha_bar[7])
    assert float(draw.y.mean(0)[0]) == pytest.approx(alpha_bar * 0.4, abs=0.15)
    assert descend(model, far, noise, model.config.sampling).x.shape == (2000, 2)
