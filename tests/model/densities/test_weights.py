"""The mean of importance weights: its error covers the truth, or says that it is not known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.densities.weights import effective_sample_size, log_mean, log_mean_std_error, pareto_k

_REPETITIONS = 200
Array = np.ndarray
Draw = Callable[[np.random.Generator, int], Array]


def _log_normal(spread: float) -> Draw:
    """log w ~ N(−s²/2, s²), so that the mean weight is 1."""
    return lambda rng, count: rng.normal(-(spread**2) / 2, spread, count)


def _gaussian(dim: int, excess: float) -> Draw:
    """The weights of N(0, I) as a proposal for N(0, (1 + excess) I): their variance is infinite for excess ≥ 1."""

    def draw(rng: np.random.Generator, count: int) -> Array:
        squared = rng.chisquare(dim, count)
        return excess / (1 + excess) * squared / 2 - dim * math.log1p(excess) / 2

    return draw


_TARGETS: dict[str, Draw] = {
    **{f"log-normal {spread:g}": _log_normal(spread) for spread in (0.1, 0.5, 1, 1.5, 2, 3, 8, 76)},
    **{
        f"{dim}-D Gaussian {excess:g}": _gaussian(dim, excess)
        for dim, excess in ((2, 0.5), (2, 2), (10, 0.5), (64, 0.1))
    },
}


@pytest.mark.parametrize("count", [256, 1024])
@pytest.mark.parametrize("name", _TARGETS)
def test_two_standard_errors_cover_the_truth_or_are_not_known(name: str, count: int) -> None:
    """The mean weight is 1 for all of them, from easy to hopeless."""
    rng, known, covered = np.random.default_rng(0), 0, 0
    for _ in range(_REPETITIONS):
        log_weights = torch.from_numpy(_TARGETS[name](rng, count))
        error = log_mean_std_error(log_weights)
        known += error is not None
        covered += error is None or abs(log_mean(log_weights)) <= 2 * error
    assert covered >= 0.9 * _REPETITIONS
    if name in ("log-normal 0.1", "log-normal 0.5", "log-normal 1", "2-D Gaussian 0.5", "64-D Gaussian 0.1"):
        assert known >= 0.8 * _REPETITIONS  # it would be easy never to know
    if name in ("log-normal 8", "log-normal 76"):
        assert known == 0


def test_the_error_of_light_weights_is_that_of_the_delta_method() -> None:
    weights = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    error = log_mean_std_error(weights.log())
    assert error == pytest.approx(float(weights.std() / weights.mean()) / math.sqrt(4000), rel=0.15)


def test_weights_of_zero_count_as_weights() -> None:
    """Half of 2,000 lines have died out: the mean is half of the others', and its error that of a coin as well."""
    log_weights = torch.zeros(2000, dtype=torch.float64)
    log_weights[::2] = -math.inf
    assert log_mean(log_weights) == pytest.approx(-math.log(2))
    assert effective_sample_size(log_weights) == pytest.approx(1000)
    assert log_mean_std_error(log_weights) == pytest.approx(math.sqrt(1 / 2000), rel=0.15)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_tail_s_shape_is_found(shape: float) -> None:
    """Pareto weights u^(−k): the fit is drawn to 1/2 by the weight of ten values, out of 300."""
    uniform = torch.rand(10_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert pareto_k(-shape * uniform.log()) == pytest.approx(shape, abs=0.12)


@pytest.mark.parametrize("values", [[0.0], [math.nan, 0.0, 0.0], [-math.inf] * 30, [math.inf] + [0.0] * 40])
def test_weights_without_a_finite_mean_have_no_error(values: list[float]) -> None:
    assert log_mean_std_error(torch.tensor(values, dtype=torch.float64)) is None
