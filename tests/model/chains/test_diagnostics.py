"""R-hat and effective sample size on series of known correlation; long runs on a model whose energies are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.chains.diagnostics import effective_sample_size, run_long, split_r_hat
from model.conditions import At
from model.config import ChainConfig, NetworkConfig, ScheduleConfig, TrainConfig
from model.energies.energy_model import EnergyModel


def _autoregressive(correlation: float, steps: int, chains: int) -> Tensor:
    """x' = ρ x + √(1−ρ²) ε from its stationary law."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(chains, generator=generator, dtype=torch.float64)
    values = []
    for _ in range(steps):
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        x = correlation * x + (1 - correlation**2) ** 0.5 * noise
        values.append(x)
    return torch.stack(values)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_effective_sample_size_of_an_autoregressive_series_is_n_times_1_minus_rho_over_1_plus_rho(
    correlation: float,
) -> None:
    values = _autoregressive(correlation, 4000, 4)
    expected = values.numel() * (1 - correlation) / (1 + correlation)
    assert float(effective_sample_size(values)) == pytest.approx(expected, rel=0.2)


def test_r_hat_is_one_for_chains_that_agree_and_shows_both_shifted_and_drifting_ones() -> None:
    values = _autoregressive(0.5, 2000, 4)
    assert float(split_r_hat(values)) == pytest.approx(1, abs=0.01)
    assert float(split_r_hat(values + torch.tensor([0.0, 0.0, 0.0, 1.5]))) > 1.1
    assert (
        float(split_r_hat(values + torch.linspace(0, 3, 2000)[:, None])) > 1.2
    )  # all chains alike: only halves differ


def test_diagnostics_keep_what_comes_after_steps_and_chains_apart() -> None:
    one, other = _autoregressive(0.0, 500, 4), 3 * _autoregressive(0.9, 500, 4) + 1
    both = torch.stack([one, other], dim=2)
    for function in (split_r_hat, effective_sample_size):
        torch.testing.assert_close(function(both), torch.stack([function(one), function(other)]))


class _Tilted(EnergyModel):
    """The exact base of Gaussian data, tilted at level 0."""

    tilt = 0.0

    def energy(self, y: Tensor, at: At) -> Tensor:
        assert self.base is not None
        x = y / self.schedule.scale[at.level].to(y)[:, None]
        energy: Tensor = self.base(x, at.level)[0] + self.tilt * y.sum(1) * (at.level == 0)
        return energy


@pytest.mark.parametrize("tilt", [0.0, 6.0])
def test_long_chains_stay_at_the_data_s_energies_if_and_only_if_the_model_is_right(tilt: float) -> None:
    config = TrainConfig(
        schedule=ScheduleConfig(kind="log_snr", num_levels=3, log_snr_max=2.0, log_snr_min=-3.0),
        network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
        energy="gaussian",
        chain=ChainConfig(kernel="mala", start="predictor", num_steps=10, step_size=0.8),
    )
    model = _Tilted(config, (2,))
    data = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.3])
    model.fit_base(data)
    model.tilt = tilt
    runs = run_long(model, data, num_steps=400, seed=0)
    assert [run.level for run in runs] == [0, 1, 2]
    assert all(run.split_r_hat < 1.05 and 0.5 < run.acceptance_rate <= 1 for run in runs)
    assert all(run.effective_sample_size > 40 for run in runs)
    agree = [abs(run.energy_drift) < 5 * run.drift_std_error for run in runs]
    assert agree == [tilt == 0, True, True]
