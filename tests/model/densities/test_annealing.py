"""log Z from both sides, against Gaussians of known normalizer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.densities.annealing import AnnealingPath, anneal, anneal_backwards, tune
from model.densities.log_z import LogZ, bound_log_z
from model.energies.energy import EnergyFn, GaussianEnergy, MixtureEnergy
from model.noise import NoiseSource, SharedNoise


def _noise(seed: int) -> SharedNoise:
    return SharedNoise(torch.Generator().manual_seed(seed))


def known(error: float | None) -> float:
    """Return a standard error that has to be known."""
    assert error is not None
    return error


def path_to(target: EnergyFn, dim: int, *, start_std: float = 1.0) -> AnnealingPath:
    """From N(0, start_std²) straight to the target."""
    start = GaussianEnergy(torch.zeros(dim, dtype=torch.float64), start_std)

    def sample_start(count: int, noise: NoiseSource) -> Tensor:
        return start_std * noise.normal(torch.empty(count, dim, dtype=torch.float64))

    return AnnealingPath([start, target], start.log_z, sample_start, torch.full((2,), 0.5, dtype=torch.float64))


def _shifted(dim: int) -> GaussianEnergy:
    return GaussianEnergy(torch.linspace(-0.6, 0.9, dim, dtype=torch.float64), 0.7)


def _bounds(dim: int, num_bridges: int, num_chains: int) -> LogZ:
    target = _shifted(dim)

    def exact(count: int, noise: NoiseSource) -> Tensor:
        return target.mean + target.std * noise.normal(torch.empty(count, dim, dtype=torch.float64))

    *_, last = bound_log_z(
        path_to(target, dim),
        _noise(dim),
        num_chains=num_chains,
        tolerance=0.0,
        max_bridges=num_bridges,
        sample_target=exact,
    )
    return last


@pytest.mark.parametrize(("dim", "num_bridges", "tolerance"), [(2, 16, 0.05), (64, 256, 0.1)])
def test_both_sides_close_in_on_a_gaussian_s_normalizer(dim: int, num_bridges: int, tolerance: float) -> None:
    log_z, truth = _bounds(dim, num_bridges, 1000), _shifted(dim).log_z
    assert abs(log_z.lower - truth) < 4 * known(log_z.lower_std_error) + 1e-9
    assert abs(log_z.upper - truth) < 4 * known(log_z.upper_std_error) + 1e-9
    assert abs(log_z.lower - truth) < tolerance
    assert abs(log_z.upper - truth) < tolerance
    assert log_z.acceptance_rate == pytest.approx(0.7, abs=0.15)
    assert log_z.upper_start == "exact"


def test_too_few_bridges_leave_the_truth_between_the_sides() -> None:
    """The lower side is low and the upper side high; a wrong sign of either weight would swap them."""
    log_z, truth = _bounds(64, 2, 200), _shifted(64).log_z
    assert log_z.lower < truth - 1
    assert log_z.upper > truth + 1
    assert log_z.std_error is None
    assert log_z.verdict(0.1) == "not_known"


def test_the_mean_weight_is_unbiased() -> None:
    """Z itself, not log Z, is estimated without bias at any number of bridges."""
    target = GaussianEnergy(torch.tensor([0.5, -0.5], dtype=torch.float64), 0.8)
    path = path_to(target, 2)
    walk = anneal(path, 40_000, _noise(0), num_bridges=2, resample_below=0)
    relative = (walk.log_weights + path.log_z_start - target.log_z).exp()
    assert abs(float(relative.mean()) - 1) < 5 * float(relative.std()) / 200


def test_drawing_chains_anew_leaves_the_mean_weight_unbiased() -> None:
    """The mean of Z over 400 small walks; a lost factor, or a chain in a wrong line, would show."""
    target = GaussianEnergy(torch.tensor([1.5, -0.5], dtype=torch.float64), 0.5)
    path, noise = path_to(target, 2), _noise(0)
    walks = [anneal(path, 64, noise, num_bridges=4, resample_below=1.1) for _ in range(400)]
    relative = torch.tensor([math.exp(walk.log_mean_weight + path.log_z_start - target.log_z) for walk in walks])
    assert abs(float(relative.mean()) - 1) < 4 * float(relative.std()) / 20
    errors = [walk.std_error for walk in walks if walk.std_error is not None]
    assert float(relative.log().std()) < 2 * float(torch.tensor(errors).median())
    assert all((walk.log_weights == -math.inf).any() for walk in walks)  # some lines have died out


def test_drawing_chains_anew_narrows_what_unequal_weights_spread() -> None:
    path, noise = path_to(_shifted(16), 16), _noise(3)
    plain, anew = (
        [anneal(tune(path, 64, noise), 256, noise, num_bridges=12, resample_below=share) for _ in range(20)]
        for share in (0, 0.5)
    )
    spreads = [torch.tensor([walk.log_mean_weight for walk in walks]).std() for walks in (plain, anew)]
    assert spreads[1] < 0.8 * spreads[0]


def test_temperatures_spread_the_weights_by_the_same_amount_at_each() -> None:
    """From N(0, I) to a narrow Gaussian: evenly spaced β would make the first change the whole work."""
    path = tune(path_to(GaussianEnergy(torch.zeros(4, dtype=torch.float64), 0.05), 4), 256, _noise(5))
    [betas] = path.temperatures(20)
    assert (len(betas), betas[-1]) == (20, 1.0)
    variances = [1 / (1 + 399 * beta) for beta in (0.0, *betas[:-1])]  # of the bridge before the change
    changes = [b - a for a, b in itertools.pairwise([0.0, *betas])]
    spreads = [change * 399 * variance * math.sqrt(2) for change, variance in zip(changes, variances, strict=True)]
    assert max(spreads) < 1.5 * min(spreads)


def test_forward_and_backward_weights_obey_crooks_relation() -> None:
    """E_forward[w f(log w)] = Z E_backward[f(−log w)] for any f (Crooks 1999)."""
    target = GaussianEnergy(torch.tensor([1.0], dtype=torch.float64), 0.6)
    path, count = path_to(target, 1), 60_000
    forward = anneal(path, count, _noise(1), num_bridges=3, resample_below=0)
    start = target.mean + target.std * _noise(2).normal(torch.empty(count, 1, dtype=torch.float64))
    backward = anneal_backwards(path, start, _noise(3), num_bridges=3, resample_below=0)
    log_ratio = target.log_z - path.log_z_start
    left = (forward.log_weights - log_ratio).exp() * torch.tanh(forward.log_weights)
    right = torch.tanh(-backward.log_weights)
    error = math.sqrt(float(left.var() + right.var()) / count)
    assert abs(float(left.mean() - right.mean())) < 5 * error
    assert abs(float(left.mean())) > 10 * error


def test_a_mixture_s_normalizer_is_found_without_exact_samples() -> None:
    mixture = MixtureEnergy(
        torch.tensor([[-1.5, 0.0], [1.5, 0.5]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
        torch.tensor([0.4, 0.6], dtype=torch.float64),
    )
    path = path_to(lambda x: mixture(x) + 3.0, 2, start_std=1.6)  # Z = exp(−3)
    rounds = list(bound_log_z(path, _noise(4), num_chains=2000, tolerance=0.02, max_bridges=256))
    assert rounds[-1].verdict(0.02) == "converged"
    assert rounds[-1].upper_start == "chain"
    assert abs(rounds[-1].estimate + 3) < 0.06
    assert [r.num_bridges for r in rounds] == [4 * 2**n for n in range(len(rounds))]


def test_tuning_brings_every_energy_to_the_acceptance_target() -> None:
    path = path_to(GaussianEnergy(torch.zeros(20, dtype=torch.float64), 0.05), 20)
    tuned = tune(path, 500, _noise(5), num_steps=40)
    assert float(tuned.step_sizes[1]) == pytest.approx(0.05 * float(tuned.step_sizes[0]), rel=0.25)


def test_a_walk_that_is_stopped_yields_no_half_round() -> None:
    path = path_to(_shifted(2), 2)
    rounds = bound_log_z(path, _noise(6), num_chains=10, tolerance=0.0, max_bridges=1024, stop_fn=lambda: True)
    assert list(rounds) == []


def test_long_trajectories_find_the_normalizer_too() -> None:
    """HMC on the bridges; leapfrogs of the wrong step, or a momentum not drawn anew, would bias both sides."""
    target = _shifted(64)
    path = tune(replace(path_to(target, 64), num_leapfrog=5), 64, _noise(7))
    forward = anneal(path, 500, _noise(8), num_bridges=64)
    start = target.mean + target.std * _noise(9).normal(torch.empty(500, 64, dtype=torch.float64))
    backward = anneal_backwards(path, start, _noise(10), num_bridges=64)
    assert abs(path.log_z_start + forward.log_mean_weight - target.log_z) < 4 * known(forward.std_error) + 0.02
    assert abs(path.log_z_start - backward.log_mean_weight - target.log_z) < 4 * known(backward.std_error) + 0.02
    assert forward.acceptance_rate == pytest.approx(0.7, abs=0.15)
    short = tune(path_to(target, 64), 64, _noise(7))
    far, near = (anneal(one, 500, _noise(8), num_bridges=64, resample_below=0) for one in (short, path))
    assert near.log_weights.std() < 0.8 * far.log_weights.std()
