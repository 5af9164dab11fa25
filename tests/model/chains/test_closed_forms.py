"""Starts, chains and whole descents on Gaussian data, where every draw is Gaussian with moments in closed form.

A silent network leaves the `gaussian` energy exact, so that y, x_{t+1} and x_data are jointly Gaussian at every level.
The expected moments are written here from precisions and from linear recursions, one eigenvector of the data's
covariance at a time, and share no code with the model. Mean and variance of 20,000 draws are compared by z-scores.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from model.chains.descent import Chain, Descents
from model.chains.sampling import descend, draw_conditional, sample
from model.chains.starts import STARTS, begin
from model.conditions import At
from model.config import ChainConfig, ChainStart, KernelKind, NetworkConfig, SamplingConfig, ScheduleConfig, TrainConfig
from model.energies.bases import GaussianBase
from model.energies.energy_model import EnergyModel
from model.noise import SharedNoise, make_generator

_COUNT = 20_000
_MAX_Z = 4.0
_MEAN = np.array([0.7, -1.2])  # along the eigenvectors, whose variances are the following
_VARIANCE = np.array([1.5, 0.05])
_ANGLE = 0.5  # of the eigenvectors, in radians
_SCHEDULES = {
    "published": ScheduleConfig(kind="published", num_levels=6),
    "log_snr": ScheduleConfig(kind="log_snr", num_levels=8, log_snr_max=6.0, log_snr_min=-4.0),
}


class _Silent(nn.Module):
    """A network that says nothing."""

    def forward(self, x: Tensor, at: At) -> Tensor:
        return 0 * x.flatten(1).sum(1) + 0 * at.level


def _model(
    schedule: str | ScheduleConfig, kernel: KernelKind = "mala", sampling: SamplingConfig | None = None
) -> EnergyModel:
    config = TrainConfig(
        schedule=_SCHEDULES[schedule] if isinstance(schedule, str) else schedule,
        network=NetworkConfig(kind="mlp", width=4, num_blocks=1, spectral_norm=False),
        energy="gaussian",
        chain=ChainConfig(kernel=kernel, num_steps=3, step_size=0.7),
        sampling=sampling or SamplingConfig(),
    )
    model = EnergyModel(config, (2,))
    model.network = _Silent()  # type: ignore[assignment]
    base = model.base
    assert isinstance(base, GaussianBase)
    assert base.rotation is not None
    base.rotation.copy_(_rotation())
    base.mean.copy_(_rotation() @ torch.from_numpy(_MEAN).float())
    base.variance.copy_(torch.from_numpy(_VARIANCE))
    return model


def _rotation() -> Tensor:
    cos, sin = math.cos(_ANGLE), math.sin(_ANGLE)
    return torch.tensor([[cos, -sin], [sin, cos]])


def _along_eigenvectors(x: Tensor) -> np.ndarray:
    return (x @ _rotation()).double().numpy()


_Linear = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(gain, offset, variance) of a y that, given x_{t+1}, is Gaussian with the mean gain · x_{t+1} + offset"""


class _Level:
    """The closed forms of one level. Arrays (2,) belong to the eigenvectors of the data's covariance."""

    def __init__(self, schedule: str, t: int) -> None:
        alpha_bar = _alpha_bar(schedule)
        self.is_top = t == len(alpha_bar) - 2
        self.scale = 1.0 if self.is_top else alpha_bar[t + 1] / alpha_bar[t]
        self.sigma = math.sqrt(1 - (alpha_bar[t + 1] / alpha_bar[t]) ** 2)
        self.mean = self.scale * alpha_bar[t] * _MEAN  # of y
        self.variance = self.scale**2 * (alpha_bar[t] ** 2 * _VARIANCE + 1 - alpha_bar[t] ** 2)
        self.noise_variance = self.scale**2 * (1 - alpha_bar[t] ** 2)  # of y given the data
        self.next_mean = alpha_bar[t + 1] * _MEAN
        self.next_variance = alpha_bar[t + 1] ** 2 * _VARIANCE + 1 - alpha_bar[t + 1] ** 2
        self.next_alpha_bar = alpha_bar[t + 1]
        self.change = 0.0  # by which y follows the last change of the expected data
        if t + 2 < len(alpha_bar) - 1:
            signal_to_noise = alpha_bar[t : t + 3] / np.sqrt(1 - alpha_bar[t : t + 3] ** 2)
            step, last_step = np.log(signal_to_noise[:2] / signal_to_noise[1:])
            line = 2 * integrate.quad(lambda passed: passed * math.exp(-2 * (step - passed)), 0, step)[0]
            self.change = self.scale * alpha_bar[t] * line / last_step

    @property
    def tether(self) -> float:
        return 0.0 if self.is_top else self.sigma**-2

    def posterior(self) -> _Linear:
        """Return y given x_{t+1}."""
        variance = 1 / (1 / self.variance + self.tether)
        return variance * self.tether, variance * self.mean / self.variance, variance

    def expected_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return gain and offset of the expected data given x_{t+1}."""
        gain = self.next_alpha_bar * _VARIANCE / self.next_variance
        return gain, _MEAN - gain * self.next_mean

    def spread_given_data(self) -> float:
        """Return the variance of y given both x_{t+1} and the data."""
        return float(1 / (1 / self.noise_variance + self.tether))

    def started(self, start: ChainStart, num_steps: int) -> _Linear:
        """Return the start of a chain, with the gains of x_{t+1} and of the memory: the expected data of before."""
        one, zero = np.ones(2), np.zeros(2)
        if start != "neighbour" and self.is_top:
            return np.stack([one, zero]), zero, zero
        if start == "predictor":
            gain, offset, _ = self.posterior()
            return np.stack([gain, zero]), offset, self.spread_given_data() * one
        if start == "multistep":
            (gain, offset, variance), (expected, rest) = self.started("predictor", 0), self.expected_data()
            gain += self.change * np.stack([expected, -one])
            return gain, offset + self.change * rest, variance
        if num_steps:
            return np.stack([one, zero]), zero, zero
        shift = self.sigma**2 / self.variance
        return np.stack([1 - shift, zero]), shift * self.mean, self.sigma**2 * one

    def moved(self, draw: _Linear, step: float) -> _Linear:
        """Return `draw`, a start, after one step of unadjusted Langevin of step size `step`."""
        gain, offset, variance = draw
        half = step**2 / 2
        keep = 1 - half * (1 / self.variance + self.tether)
        offset = keep * offset + half * self.mean / self.variance
        pull = np.array([[half * self.tether], [0.0]])
        return keep * gain + pull, offset, keep**2 * variance + step**2


def _alpha_bar(schedule: str) -> np.ndarray:
    if schedule == "published":
        betas = np.append(np.linspace(1e-4, 0.02, 1000), 1.0)
        return np.sqrt(np.cumprod(1 - betas))[[0, 100, 200, 300, 400, 500, 999]]
    log_snr = np.linspace(6.0, -4.0, 8)
    return np.append(np.sqrt(1 / (1 + np.exp(-log_snr))), 0.0)


def _largest_z(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Return the largest z-score of the mean and the variance of `x` (N, 2)."""
    of_mean = (x.mean(0) - mean) / np.sqrt(variance / len(x))
    of_variance = ((x - mean) ** 2).mean(0) / variance - 1
    return float(np.abs(np.concatenate([of_mean, of_variance / math.sqrt(2 / len(x))])).max())


def _show(what: str, found: Mapping[int, float]) -> None:
    by_level = ", ".join(f"{t}: {z:.1f}" for t, z in found.items())
    sys.stdout.write(f"{what}: largest z of mean and variance by level {by_level}\n")  # pytest -rP shows it


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_the_predictor_has_the_posterior_s_mean_and_the_spread_of_y_given_the_data(schedule: str) -> None:
    model, noise, found = _model(schedule), SharedNoise(make_generator(0)), {}
    for t in range(model.num_levels):
        level, x_next = _Level(schedule, t), _x_next(schedule, t, noise)
        y = begin(STARTS["predictor"], model, x_next, At.same(t, x_next), noise).y
        (gain, _), offset, variance = level.started("predictor", 0)
        residual = _along_eigenvectors(y) - gain * _along_eigenvectors(x_next) - offset
        if level.is_top:
            assert np.abs(residual).max() < 1e-5
        else:
            found[t] = _largest_z(residual, np.zeros(2), variance)
    _show(f"predictor, {schedule}", found)
    assert max(found.values()) < _MAX_Z


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_step_sizes_are_in_units_of_the_spread_of_y_given_the_data(schedule: str) -> None:
    model = _model(schedule)
    spread = [math.sqrt(_Level(schedule, t).spread_given_data()) for t in range(model.num_levels)]
    np.testing.assert_allclose(model.step_size.numpy(), 0.7 * np.array(spread), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["mala", "hmc"])
@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_an_adjusted_chain_ends_in_the_conditional(schedule: str, kernel: KernelKind) -> None:
    model, noise, found = _model(schedule, kernel), SharedNoise(make_generator(1)), {}
    for t in range(model.num_levels):
        gain, offset, variance = _Level(schedule, t).posterior()
        model.step_size[t] = 0.5 * math.sqrt(variance.min())
        x_next = _x_next(schedule, t, noise)
        start: ChainStart = "predictor" if t < model.num_levels - 1 else "neighbour"
        steps = 200 if kernel == "mala" else 40
        y = draw_conditional(model, x_next, At.same(t, x_next), noise, num_steps=steps, start=start).y
        residual = _along_eigenvectors(y) - gain * _along_eigenvectors(x_next) - offset
        found[t] = _largest_z(residual, np.zeros(2), variance)
    _show(f"{kernel}, {schedule}", found)
    assert max(found.values()) < _MAX_Z


def _x_next(schedule: str, t: int, noise: SharedNoise) -> Tensor:
    """Draw x_{t+1} (N, 2) from its marginal."""
    level = _Level(schedule, t)
    along = torch.from_numpy(level.next_mean) + torch.from_numpy(np.sqrt(level.next_variance)) * noise.normal(
        torch.empty(_COUNT, 2, dtype=torch.float64)
    )
    return along.float() @ _rotation().T


_DESCENTS = [
    (schedule, start, kernel, num_steps)
    for schedule in _SCHEDULES
    for start in get_args(ChainStart)
    for kernel, num_steps in (("mala", 0), ("langevin", 2))
]


@pytest.mark.parametrize(("schedule", "start", "kernel", "num_steps"), _DESCENTS)
def test_whole_descents_have_the_moments_of_their_linear_recursion(
    schedule: str, start: ChainStart, kernel: KernelKind, num_steps: int
) -> None:
    """At every level, in the library and in the rows of the engine, down to the expected data."""
    model = _model(schedule, kernel, SamplingConfig(num_steps=num_steps, start=start, denoise=True))
    expected = _recursion(model, schedule, start, num_steps)
    whole = sample(model, _COUNT, seed=3, levels=range(model.num_levels))
    for what, found in (("library", {**whole.levels, -1: whole.x}), ("engine", _by_rows(model))):
        z = {t: _largest_z(_along_eigenvectors(found[t]), *expected[t]) for t in expected}
        _show(f"{what}, {schedule}, {start}, K={num_steps}", z)
        assert max(z.values()) < _MAX_Z


@pytest.mark.parametrize(("start", "order"), [("predictor", 1), ("multistep", 2)])
def test_the_error_of_the_variance_falls_with_the_order_of_the_start(start: ChainStart, order: int) -> None:
    """Doubled levels divide it by 2^order. The mean has no error, as the expected data are a martingale."""
    errors = [_error(start, num_levels) for num_levels in (21, 41, 81)]
    orders = -np.diff(np.log2(errors))
    sys.stdout.write(f"{start}: errors {errors} of the orders {orders.tolist()}\n")
    np.testing.assert_allclose(orders, order, atol=0.1)


def _error(start: ChainStart, num_levels: int) -> float:
    """Return the largest error of the variance of x_0, without that of chance, from the x_{T−1} that the start has.

    Every chain but one has a single 1 among its noise. As all is linear, its x_0 without that of the chain of no noise
    is the standard deviation that this noise adds.
    """
    schedule = ScheduleConfig(kind="log_snr", num_levels=num_levels, log_snr_max=4.0, log_snr_min=-2.0)
    model, noise = _model(schedule, sampling=SamplingConfig(num_steps=0, start=start)), _Impulses()
    x_top = noise.normal(torch.empty(num_levels + 1, 2))
    *moved, still = _along_eigenvectors(descend(model, x_top, noise, model.config.sampling).x)
    (near, near_noise), (far, far_noise) = ((float(a), 1 - float(a) ** 2) for a in model.schedule.alpha_bar[[0, -2]])
    far_variance = far**2 * _VARIANCE + far_noise
    top_mean, top_variance = (far * _MEAN, far_variance) if start == "multistep" else (0 * _MEAN, 1)
    gain = (near * far * _VARIANCE + far / near * near_noise) / far_variance
    np.testing.assert_allclose(still, near * _MEAN + gain * (top_mean - far * _MEAN), atol=1e-5)
    exact = near**2 * _VARIANCE + near_noise + gain**2 * (top_variance - far_variance)
    return float(np.abs(((np.stack(moved) - still) ** 2).sum(0) - exact).max())


class _Impulses:
    """Noise that is 0 but in one row of each draw, which is the n-th row in the n-th draw."""

    def __init__(self) -> None:
        self._count = 0

    def normal(self, like: Tensor) -> Tensor:
        drawn = torch.zeros_like(like)
        drawn[self._count] = _rotation() @ torch.ones(2)
        self._count += 1
        return drawn

    def uniform(self, like: Tensor) -> Tensor:
        raise AssertionError(f"nothing here draws uniforms, but {len(like)} were drawn")


def _recursion(
    model: EnergyModel, schedule: str, start: ChainStart, num_steps: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return mean and variance of x_t at every level, and of the expected data as level −1."""
    mean, covariance = np.zeros((2, 2)), np.zeros((2, 2, 2))  # of x_{t+1} and the memory, for each eigenvector
    far = _alpha_bar(schedule)[model.num_levels - 1]
    covariance[0, 0] = 1
    if start == "multistep":
        mean[0], covariance[0, 0] = far * _MEAN, far**2 * _VARIANCE + 1 - far**2  # the top level's own
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for t in range(model.num_levels - 1, -1, -1):
        level = _Level(schedule, t)
        draw = level.started(start, num_steps)
        for _ in range(num_steps):
            draw = level.moved(draw, float(model.step_size[t]))
        gain, offset, own = draw
        expected, rest = level.expected_data()
        matrix = np.stack([gain / level.scale, np.stack([expected, np.zeros(2)])])
        mean = np.einsum("abe,be->ae", matrix, mean) + np.stack([offset / level.scale, rest])
        covariance = np.einsum("abe,cde,bde->ace", matrix, matrix, covariance)
        covariance[0, 0] += own / level.scale**2
        found[t] = mean[0], covariance[0, 0]
    alpha_bar = _alpha_bar(schedule)[0]
    shrink = alpha_bar * _VARIANCE / (alpha_bar**2 * _VARIANCE + 1 - alpha_bar**2)
    mean_0, variance_0 = found[0]
    found[-1] = _MEAN + shrink * (mean_0 - alpha_bar * _MEAN), shrink**2 * variance_0
    return found


def _by_rows(model: EnergyModel) -> dict[int, Tensor]:
    """Return what the rows of the engine's descents find at every level, and the samples as level −1."""
    with model.frozen():
        descents = Descents(model, _COUNT)
        arrived = descents.add([Chain(7, index, model.config.sampling) for index in range(_COUNT)])
        found = {int(arrivals.levels[0]): arrivals.x for arrivals in arrived}
        while -1 not in found:
            step = descents.step()
            found |= {int(arrivals.levels[0]): arrivals.x for arrivals in step.arrivals}
            if len(step.ended):
                found[-1] = step.samples
    return found
