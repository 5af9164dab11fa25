"""log p of data: exact where the model is exactly Gaussian, and both estimates agree with quadrature elsewhere."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.conditions import At
from model.config import CalibrationConfig, ChainConfig, NetworkConfig, ScheduleConfig, TrainConfig
from model.data.datasets import Dataset
from model.densities.annealing import anneal
from model.densities.calibration import Calibration, summarize
from model.densities.density import (
    annealing_path,
    bits_per_dim,
    calibrate,
    data_start,
    default_tolerance,
    level_energy,
    log_density,
    path_log_density,
)
from model.densities.log_z import bound_log_z
from model.energies.energy import MixtureEnergy
from model.energies.energy_model import EnergyModel
from model.errors import CalibrationError
from model.noise import SharedNoise
from model.spaces.affine import AffineSpace
from tests.model.densities.test_annealing import known

_DATA = MixtureEnergy(
    torch.tensor([[-0.8, 0.0], [0.9, 0.4]], dtype=torch.float64),
    torch.tensor([0.4, 0.3], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64),
)
_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=10, log_snr_max=6.0, log_snr_min=-6.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", num_steps=1, step_size=0.8),
)


def _noise(seed: int) -> SharedNoise:
    return SharedNoise(torch.Generator().manual_seed(seed))


class _Exact(EnergyModel):
    """The exact energies of `_DATA` at every level, plus a constant that log Z has to find."""

    offset = 2.5

    def energy(self, y: Tensor, at: At) -> Tensor:
        values = torch.empty(len(y), dtype=torch.float64)
        for t in range(self.num_levels):
            scale = float(self.schedule.scale[t])
            chosen = at.level == t
            exact = _DATA.diffused(scale * float(self.schedule.alpha_bar[t]), scale * float(self.schedule.sigma_bar[t]))
            values[chosen] = exact(y[chosen].double())
        return values + self.offset


@pytest.fixture
def model() -> EnergyModel:
    exact = _Exact(_CONFIG, (2,))
    assert exact.base is not None
    exact.base.fit(_DATA.sample(20_000, torch.Generator().manual_seed(0)))
    return exact


def _true_log_density(model: EnergyModel, x_data: Tensor) -> Tensor:
    blur = float(model.schedule.sigma_bar[0] / model.schedule.alpha_bar[0])
    return -_DATA.diffused(1.0, blur)(x_data.double())


def _log_z(model: EnergyModel) -> float:
    """Exact log Z_0 in the coordinates of x_0: the density is normalized in y, and y = α_1 x."""
    return -_Exact.offset - 2 * math.log(float(model.schedule.scale[0]))


def test_annealing_through_the_levels_finds_log_z(model: EnergyModel) -> None:
    *_, log_z = bound_log_z(annealing_path(model), _noise(1), num_chains=1500, tolerance=0.03, max_bridges=8)
    assert abs(log_z.lower - _log_z(model)) < 4 * known(log_z.lower_std_error) + 0.01
    assert abs(log_z.upper - _log_z(model)) < 4 * known(log_z.upper_std_error) + 0.01
    assert known(log_z.std_error) < 0.05


def test_a_schedule_index_off_by_one_is_seen_in_the_energies(model: EnergyModel) -> None:
    """e_t is normalized over x_t up to the constant and the scale: quadrature at every level."""
    axis = torch.linspace(-6, 6, 481)
    grid = torch.cartesian_prod(axis, axis)
    for t in range(model.num_levels):
        mass = float(torch.exp(-level_energy(model, t)(grid)).sum()) * 0.025**2
        expected = math.exp(-_Exact.offset) / float(model.schedule.scale[t]) ** 2
        assert mass == pytest.approx(expected, rel=1e-2)


def test_log_density_is_that_of_the_blurred_data_in_their_own_units(model: EnergyModel) -> None:
    x_data = _DATA.sample(500, torch.Generator().manual_seed(2)).float()
    torch.testing.assert_close(
        log_density(model, x_data, _log_z(model)), _true_log_density(model, x_data), atol=1e-4, rtol=1e-5
    )
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    model.space = AffineSpace.standardized((2,), mean, std)
    moved = x_data * std + mean  # |dx| = 2 · 0.5 = 1 by coordinate scale, so check another
    torch.testing.assert_close(
        log_density(model, moved, _log_z(model)), _true_log_density(model, x_data), atol=1e-4, rtol=1e-5
    )
    model.space = AffineSpace.standardized((2,), mean, torch.tensor([2.0, 2.0]))
    moved = x_data * 2 + mean
    torch.testing.assert_close(
        log_density(model, moved, _log_z(model)),
        _true_log_density(model, x_data) - math.log(4),
        atol=1e-4,
        rtol=1e-5,
    )


@pytest.mark.slow
def test_the_path_estimate_agrees_without_log_z(model: EnergyModel) -> None:
    x_data = _DATA.sample(300, torch.Generator().manual_seed(3)).float()
    estimate = path_log_density(model, x_data, seed=4, num_paths=4, num_inner=128)
    truth = _true_log_density(model, x_data)
    difference = estimate.log_density - truth
    assert abs(float(difference.mean())) < 0.05
    assert float(estimate.spread.mean()) < 0.5


def test_an_item_s_path_estimate_does_not_depend_on_the_rest_of_its_batch(model: EnergyModel) -> None:
    x_data = _DATA.sample(5, torch.Generator().manual_seed(3)).float()
    together = path_log_density(model, x_data, seed=4, num_paths=2, num_inner=8)
    alone = path_log_density(model, x_data[:1], seed=4, num_paths=2, num_inner=8)
    torch.testing.assert_close(together.log_density[:1], alone.log_density)


class _Silent(nn.Module):
    def forward(self, x: Tensor, at: At) -> Tensor:
        return 0 * x.flatten(1).sum(1) + 0 * at.level


def test_where_only_the_base_speaks_one_bridge_gives_its_normalizer_exactly() -> None:
    """In the base's own coordinates nothing is left to anneal; a wrong log-volume or centre would show."""
    model = EnergyModel(_CONFIG, (1, 2, 2))
    model.network = _Silent()  # type: ignore[assignment]
    events = _correlated(4000).reshape(-1, 1, 2, 2)
    assert model.base is not None
    model.base.fit(events)
    walk = anneal(annealing_path(model), 50, _noise(5), num_bridges=1)
    alpha_bar, sigma_bar = float(model.schedule.alpha_bar[0]), float(model.schedule.sigma_bar[0])
    covariance = alpha_bar**2 * torch.cov(events.flatten(1).double().T) + sigma_bar**2 * torch.eye(4)
    exact = float(torch.logdet(2 * math.pi * covariance)) / 2
    assert annealing_path(model).log_z_start + walk.log_mean_weight == pytest.approx(exact, abs=1e-3)
    assert known(walk.std_error) < 1e-3


def _correlated(count: int) -> Tensor:
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0)) @ mixing + 1


def test_bits_per_dim_of_eight_bit_data_is_the_usual_formula() -> None:
    """−log p/(D ln 2) + log2(127.5) for pixels scaled to [−1, 1]."""
    value = bits_per_dim(torch.tensor([-100.0], dtype=torch.float64), 64, 1 / 127.5)
    assert float(value) == pytest.approx(100 / (64 * math.log(2)) + math.log2(127.5))
    uniform = torch.tensor([-64 * math.log(2.0)], dtype=torch.float64)  # uniform on [−1, 1]^64: 8 bits a pixel, less ε
    assert float(bits_per_dim(uniform, 64, 2 / 256)) == pytest.approx(8)


@pytest.mark.slow
def test_calibration_runs_until_the_sides_meet_and_repeats_with_its_seed(model: EnergyModel) -> None:
    rounds = list(calibrate(model, num_leapfrog=1, seed=1, num_chains=400, tolerance=0.05, max_bridges=8))
    again = list(calibrate(model, num_leapfrog=1, seed=1, num_chains=400, tolerance=0.05, max_bridges=8))
    other = next(calibrate(model, num_leapfrog=1, seed=2, num_chains=400, max_bridges=1))
    assert [log_z.num_bridges for log_z in rounds] == [2**n for n in range(len(rounds))]
    assert known(rounds[-1].std_error) <= 0.05
    assert abs(rounds[-1].estimate - _log_z(model)) < 4 * known(rounds[-1].std_error)
    assert rounds == again
    assert other != rounds[0]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_chains_that_start_from_data_find_the_same_log_z(model: EnergyModel) -> None:
    own = _DATA.sample(2000, torch.Generator().manual_seed(6)).float()
    *_, told = calibrate(
        model, num_leapfrog=1, num_chains=256, tolerance=0.1, max_bridges=2, max_chains=256, x_data=own
    )
    assert told.verdict(0.1) == "converged"
    assert told.data_upper == pytest.approx(_log_z(model), abs=0.1)


def test_chains_start_from_data_as_x_0_in_the_coordinates_of_the_path(model: EnergyModel) -> None:
    """One item in the data's own units: ᾱ_0 x in the model's, with the noise of level 0."""
    model.space = AffineSpace.standardized((2,), torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5]))
    draw = data_start(model, torch.tensor([[5.0, -2.0]]))
    assert model.base is not None
    x = model.base.whitening(0).to_x(draw(20_000, _noise(7)))
    alpha_bar, sigma_bar = float(model.schedule.alpha_bar[0]), float(model.schedule.sigma_bar[0])
    torch.testing.assert_close(x.mean(0), alpha_bar * torch.tensor([1.0, -2.0]), atol=4 * sigma_bar / 141, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2,), sigma_bar), atol=0, rtol=0.02)


@pytest.mark.slow
def test_once_the_bridges_are_at_their_most_the_chains_double_and_are_pooled(model: EnergyModel) -> None:
    rounds = list(calibrate(model, num_leapfrog=1, seed=1, num_chains=100, tolerance=1e-6, max_bridges=2))
    assert [log_z.num_bridges for log_z in rounds] == [1, 2, 2, 2]
    assert [log_z.num_chains for log_z in rounds] == [100, 100, 200, 400]
    config = CalibrationConfig(num_chains=100, max_bridges=2)
    assert config.max_rounds == len(rounds)
    assert [config.work(n) for n in range(1, 5)] == [1, 1 + 2, 1 + 4, 1 + 8]
    errors = [known(log_z.lower_std_error) for log_z in rounds[1:]]
    assert errors[2] / errors[0] == pytest.approx(4**-0.5, rel=0.35)  # weights thrown away would leave it as it is
    assert rounds[-1].lower_effective_sample_size > 2 * rounds[1].lower_effective_sample_size
    assert abs(rounds[-1].estimate - _log_z(model)) < 4 * known(rounds[-1].std_error)


def test_chains_are_not_added_to_sides_that_disagree(model: EnergyModel) -> None:
    path = replace(annealing_path(model), log_z_start=0.0)
    far = replace(
        path, energies=[path.energies[0], lambda z: 200 * path.energies[-1](z)], step_sizes=path.step_sizes[:2]
    )
    rounds = list(bound_log_z(far, _noise(2), num_chains=64, tolerance=1e-3, max_bridges=1, max_chains=512))
    assert not rounds[-1].sides_agree
    assert len(rounds) == 1


@pytest.mark.slow
def test_a_calibration_stops_before_its_next_move_and_forgets_the_round(model: EnergyModel) -> None:
    calls = itertools.count()
    assert len(list(calibrate(model, num_leapfrog=1, num_chains=16, max_bridges=1, max_chains=16))) == 1
    assert list(calibrate(model, num_leapfrog=1, num_chains=16, max_bridges=1, stop_fn=lambda: next(calls) >= 30)) == []
    assert next(calls) == 31  # the call that stopped it was the last


def test_the_tolerance_grows_with_the_dimension_and_not_below_the_noise_of_the_chains() -> None:
    assert default_tolerance(2) == 0.02
    assert default_tolerance(3072) == pytest.approx(6.144)


def _dataset() -> Dataset:
    x = _DATA.sample(3000, torch.Generator().manual_seed(8)).float()
    return Dataset("mixture", x[:2000], x[2000:], AffineSpace.plain((2,)))


def _small_dataset(bin_width: float) -> Dataset:
    """The part of the data that is in [−1, 1], where discrete data are."""
    train, held_out = (x[(x.abs() <= 1).all(1)] for x in (_dataset().train[:], _dataset().held_out[:]))
    return Dataset("mixture", train, held_out, AffineSpace.discrete((2,), bin_width))


def test_a_calibration_scores_the_data_and_survives_json(model: EnergyModel) -> None:
    (log_z,) = calibrate(model, num_leapfrog=1, num_chains=400, max_bridges=1, max_chains=400)
    found = summarize(model, _dataset(), log_z, CalibrationConfig(num_chains=400, max_bridges=1), step=7)
    back = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back == found
    truth = float(_true_log_density(model, _dataset().held_out[:]).mean()) + _log_z(model) - log_z.estimate
    assert found.held_out_log_density == pytest.approx(truth, abs=1e-4)
    assert (found.num_held_out, found.held_out_bits_per_dim, found.bin_width, found.step) == (1000, None, None, 7)
    quantiles = [quantile.log_density for quantile in found.train_quantiles]
    assert quantiles == sorted(quantiles)
    median = float(log_density(model, _dataset().train[:], log_z.estimate).median())
    assert quantiles[3] == pytest.approx(median, abs=0.01)
    assert found.blur_std == pytest.approx(math.exp(-3), rel=1e-4)


def test_discrete_data_are_dequantized_before_they_are_scored(model: EnergyModel) -> None:
    (log_z,) = calibrate(model, num_leapfrog=1, num_chains=64, max_bridges=1, max_chains=64)
    found = summarize(model, _small_dataset(bin_width=0.5), log_z, CalibrationConfig(), step=7)
    continuous = summarize(model, _small_dataset(bin_width=0.0), log_z, CalibrationConfig(), step=7)
    assert found.held_out_log_density is not None
    assert continuous.held_out_log_density is not None
    assert found.held_out_bits_per_dim == pytest.approx(
        -found.held_out_log_density / (2 * math.log(2)) - math.log2(0.5), rel=1e-6
    )
    assert found.held_out_log_density < continuous.held_out_log_density


def test_a_model_of_unknown_data_is_calibrated_without_scores(model: EnergyModel) -> None:
    (log_z,) = calibrate(model, num_leapfrog=1, num_chains=64, max_bridges=1, max_chains=64)
    model.space = AffineSpace.discrete((2,), 0.5)
    found = summarize(model, None, log_z, CalibrationConfig(), step=7)
    assert (found.num_held_out, found.held_out_log_density, found.held_out_bits_per_dim) == (0, None, None)
    assert (found.bin_width, found.train_quantiles, found.log_z) == (0.5, (), log_z)
    assert Calibration.from_dict(found.to_dict()) == found


def test_a_calibration_of_another_version_is_refused() -> None:
    with pytest.raises(CalibrationError, match="Calibrate again"):
        Calibration.from_dict({"version": 2})


def test_a_log_z_that_is_not_finite_is_an_error(model: EnergyModel) -> None:
    (log_z,) = calibrate(model, num_leapfrog=1, num_chains=16, max_bridges=1, max_chains=16)
    with pytest.raises(CalibrationError, match="expected a finite number"):
        summarize(model, _dataset(), replace(log_z, lower=math.nan), CalibrationConfig(), step=7)
