"""What the two sides of log Z tell: a verdict is `converged` only where the interval holds the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.densities.annealing import anneal, tune
from model.densities.log_z import LogZ, bound_log_z
from model.energies.energy import GaussianEnergy, MixtureEnergy
from model.noise import NoiseSource, SharedNoise
from tests.model.densities.test_annealing import path_to

_KNOWN = LogZ(
    lower=-0.01,
    upper=0.02,
    lower_std_error=0.02,
    upper_std_error=0.01,
    lower_effective_sample_size=100.0,
    upper_effective_sample_size=100.0,
    acceptance_rate=0.7,
    num_chains=200,
    num_bridges=4,
    upper_start="chain",
)


def _noise(seed: int) -> SharedNoise:
    return SharedNoise(torch.Generator().manual_seed(seed))


def _two_modes(dim: int, weights: tuple[float, float], distance: float = 20.0) -> MixtureEnergy:
    """A normalized mixture, one of whose modes is where the path starts and one far away."""
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[1, 0] = distance
    return MixtureEnergy(means, torch.ones(2, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64))


def _bounds(target: MixtureEnergy, dim: int, *, with_data: bool, tolerance: float = 0.05) -> LogZ:
    def data(count: int, noise: NoiseSource) -> Tensor:
        mode = (noise.uniform(torch.empty(count, dtype=torch.float64)) > target.weights[0]).long()
        return target.means[mode] + noise.normal(torch.empty(count, dim, dtype=torch.float64))

    sample_data = data if with_data else None
    *_, last = bound_log_z(
        path_to(target, dim), _noise(1), num_chains=256, tolerance=tolerance, max_bridges=8, sample_data=sample_data
    )
    return last


@pytest.mark.parametrize(("dim", "weights"), [(2, (0.5, 0.5)), (64, (0.1, 0.9))])
def test_a_mode_that_both_sides_miss_is_told_by_chains_that_start_from_data(
    dim: int, weights: tuple[float, float]
) -> None:
    blind = _bounds(_two_modes(dim, weights), dim, with_data=False)
    assert blind.verdict(0.05) == "converged"  # and wrong: without data nothing tells
    assert blind.estimate == pytest.approx(math.log(weights[0]), abs=0.02)
    seen = _bounds(_two_modes(dim, weights), dim, with_data=True)
    assert seen.verdict(0.05) == "data_elsewhere"
    assert seen.data_upper is not None
    assert seen.data_upper > seen.upper + 0.5


def test_modes_that_the_chains_reach_are_not_said_to_be_missed() -> None:
    """Half the mass is two units away; data lie in both modes, as the chains do."""
    found = _bounds(_two_modes(2, (0.5, 0.5), distance=2.0), 2, with_data=True)
    assert found.verdict(0.05) == "converged"
    assert found.data_upper == pytest.approx(0.0, abs=0.1)


def test_data_that_their_chains_leave_say_why_an_error_is_not_known() -> None:
    """Data three standard deviations off the target fall by 4.5 nats a dimension; that alone refutes no log Z."""

    def bounds(std: float) -> list[LogZ]:
        def data(count: int, noise: NoiseSource) -> Tensor:
            return 3 * std + std * noise.normal(torch.empty(count, 64, dtype=torch.float64))

        path = path_to(GaussianEnergy(torch.zeros(64, dtype=torch.float64), std), 64)
        return list(bound_log_z(path, _noise(4), num_chains=256, tolerance=0.2, max_bridges=16, sample_data=data))

    hopeless, easy = bounds(0.02), bounds(0.9)
    assert [log_z.num_bridges for log_z in hopeless] == [16]
    assert hopeless[-1].verdict(0.2) == "data_elsewhere"
    assert replace(easy[-1], data_upper=None).verdict(0.2) == "converged"
    assert easy[-1].data_drift == pytest.approx(-4.5, abs=0.6)


def test_a_hopeless_walk_says_that_it_does_not_know() -> None:
    """The weights spread by hundreds of nats, and the truth is further away than any error of them says."""
    target = GaussianEnergy(torch.full((64,), 4.0, dtype=torch.float64), 0.3)
    (found,) = bound_log_z(path_to(target, 64), _noise(2), num_chains=256, tolerance=0.1, max_bridges=1)
    assert abs(found.estimate - target.log_z) > 100
    assert (found.std_error, found.interval, found.verdict(1e9)) == (None, None, "not_known")


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "std", "num_bridges"), [(2, 0.7, 4), (2, 0.2, 4), (16, 0.5, 8), (64, 0.3, 8)])
def test_the_error_of_a_walk_covers_the_truth_or_is_not_known(dim: int, std: float, num_bridges: int) -> None:
    """200 walks each, from easy to hopeless, chains drawn anew on the way."""
    target, noise, covered = GaussianEnergy(torch.full((dim,), 0.3, dtype=torch.float64), std), _noise(3), 0
    path = replace(path_to(target, dim), step_sizes=torch.tensor([0.7, 0.7 * std], dtype=torch.float64))
    path = replace(path, spreads=torch.tensor([[1 / std**2, 1.0]], dtype=torch.float64))
    for _ in range(200):
        walk = anneal(path, 256, noise, num_bridges=num_bridges)
        difference = abs(path.log_z_start + walk.log_mean_weight - target.log_z)
        covered += walk.std_error is None or difference <= 2 * walk.std_error
    assert covered >= 180


def test_sides_that_cross_by_chance_are_put_in_order() -> None:
    crossed = replace(_KNOWN, lower=0.02, upper=-0.01)
    assert crossed.sides_agree
    assert crossed.interval == pytest.approx((-0.03, 0.06))
    assert _KNOWN.interval == pytest.approx((-0.05, 0.04))


def test_sides_that_cross_by_more_than_chance_are_not_known_well() -> None:
    crossed = replace(_KNOWN, lower=0.5, upper=-0.5)
    assert not crossed.sides_agree
    assert crossed.verdict(0.1) == "sides_apart"


@pytest.mark.parametrize(
    ("data_upper", "std_error", "tolerance", "verdict"),
    [
        (0.05, 0.02, 0.04, "converged"),  # within the errors
        (0.5, 0.02, 0.04, "data_elsewhere"),
        (0.5, None, 0.04, "data_elsewhere"),  # the chains' sides are known, and data do not confirm them
        (0.5, None, 0.01, "sides_apart"),  # the sides are apart as it is, and the data say nothing certain
        (0.5, 0.02, 0.01, "data_elsewhere"),
        (0.03, None, 0.04, "converged"),
        (None, None, 0.04, "converged"),
    ],
)
def test_the_verdict_weighs_the_side_that_starts_from_data(
    data_upper: float | None, std_error: float | None, tolerance: float, verdict: str
) -> None:
    assert replace(_KNOWN, data_upper=data_upper, data_upper_std_error=std_error).verdict(tolerance) == verdict


def test_no_round_has_temperatures_at_which_the_weights_spread_by_more_than_a_nat() -> None:
    """From N(0, I) to a scale of s in d dimensions the spread integrates to √(d/2) · ln(1/s²) nats."""
    for dim, std, expected in ((64, 0.3, 16), (64, 0.9, 2), (2, 0.9, 1)):
        path = tune(path_to(GaussianEnergy(torch.zeros(dim, dtype=torch.float64), std), dim), 256, _noise(5))
        assert path.fewest_bridges == expected
        found = bound_log_z(path, _noise(6), num_chains=64, tolerance=1e-6, max_bridges=32, max_chains=64)
        assert next(found).num_bridges == expected
