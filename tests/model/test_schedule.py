"""Schedules: closed forms, and the index convention."""

from __future__ import annotations

import math

import pytest
import torch

from model.config import ScheduleConfig
from model.errors import ConfigError
from model.schedule import Schedule, make_schedule

_KINDS = [
    ScheduleConfig(),
    ScheduleConfig(num_levels=37),
    ScheduleConfig(kind="linear_betas", num_levels=1000),
    ScheduleConfig(kind="log_snr", num_levels=12, log_snr_max=6.0, log_snr_min=-5.0),
]


@pytest.mark.parametrize("config", _KINDS, ids=lambda c: f"{c.kind}-{c.num_levels}")
def test_every_step_preserves_variance_and_cumulates(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    assert schedule.num_levels == config.num_levels
    torch.testing.assert_close(
        schedule.alpha**2 + schedule.sigma**2, torch.ones_like(schedule.alpha), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(schedule.alpha.cumprod(0), schedule.alpha_bar, atol=1e-12, rtol=0)
    variance = torch.zeros((), dtype=torch.float64)
    for alpha, sigma, sigma_bar in zip(schedule.alpha, schedule.sigma, schedule.sigma_bar, strict=True):
        variance = alpha**2 * variance + sigma**2
        torch.testing.assert_close(variance.sqrt(), sigma_bar, atol=1e-12, rtol=0)


def test_published_values_are_those_of_the_paper_s_six_levels() -> None:
    schedule = make_schedule(ScheduleConfig())
    expected = [0.99995, 0.94617, 0.85629, 0.77480, 0.70092, 0.63396, 0.02278]
    torch.testing.assert_close(schedule.alpha, torch.tensor(expected, dtype=torch.float64), atol=5e-6, rtol=0)


def test_linear_betas_are_the_thousand_steps_and_pure_noise() -> None:
    schedule = make_schedule(ScheduleConfig(kind="linear_betas", num_levels=1000))
    torch.testing.assert_close(schedule.sigma[0] ** 2, torch.tensor(1e-4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(schedule.sigma[999] ** 2, torch.tensor(0.02, dtype=torch.float64), atol=1e-12, rtol=0)
    assert schedule.sigma[1000] == 1


def test_log_snr_levels_are_evenly_spaced_between_the_ends() -> None:
    schedule = make_schedule(ScheduleConfig(kind="log_snr", num_levels=5, log_snr_max=4.0, log_snr_min=-4.0))
    log_snr = 2 * (schedule.alpha_bar[:-1].log() - schedule.sigma_bar[:-1].log())
    torch.testing.assert_close(log_snr, torch.tensor([4.0, 2, 0, -2, -4], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("config", _KINDS, ids=lambda c: f"{c.kind}-{c.num_levels}")
def test_the_top_level_has_no_tether_and_scale_one(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    assert schedule.tether_precision[-1] == 0
    assert schedule.scale[-1] == 1
    torch.testing.assert_close(schedule.tether_precision[:-1], schedule.sigma[1:-1] ** -2)
    torch.testing.assert_close(schedule.scale[:-1], schedule.alpha[1:-1])


def test_step_size_is_the_release_s_formula() -> None:
    schedule, b_squared = make_schedule(ScheduleConfig()), 2e-4
    for t in range(6):
        c_squared = schedule.sigma_bar[t] / schedule.sigma_bar[0]
        expected = c_squared * b_squared * schedule.sigma[t + 1] ** 2
        torch.testing.assert_close(schedule.step_size(math.sqrt(b_squared))[t] ** 2, expected, atol=0, rtol=1e-12)


def _pairs(schedule: Schedule, t: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    x_data = torch.full((count, 1), 0.5, dtype=torch.float64)
    noises = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    return schedule.diffuse_pair(x_data, torch.full((count,), t), noises[0], noises[1])


@pytest.mark.parametrize("t", [0, 2, 5])
def test_pairs_have_the_moments_of_the_forward_process(t: int) -> None:
    schedule, count = make_schedule(ScheduleConfig()), 200_000
    x, x_next = _pairs(schedule, t, count)
    for values, index in ((x, t), (x_next, t + 1)):
        standard_error = float(schedule.sigma_bar[index]) / math.sqrt(count)
        assert abs(float(values.mean()) - 0.5 * float(schedule.alpha_bar[index])) < 5 * standard_error
        assert abs(float(values.std()) - float(schedule.sigma_bar[index])) < 5 * standard_error
    residual = x_next - schedule.alpha[t + 1] * x
    assert abs(float(residual.std()) - float(schedule.sigma[t + 1])) < 5 * float(schedule.sigma[t + 1]) / math.sqrt(
        count
    )
    assert abs(float((residual * x).mean() - residual.mean() * x.mean())) < 5 / math.sqrt(count)


@pytest.mark.parametrize("t", [0, 2, 5])
def test_pairs_of_one_noise_have_the_same_marginals(t: int) -> None:
    schedule, count = make_schedule(ScheduleConfig()), 200_000
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    x_data, level = torch.full((count, 1), 0.5, dtype=torch.float64), torch.full((count,), t)
    for values, index in zip(schedule.diffuse_together(x_data, level, noise), (t, t + 1), strict=True):
        standard_error = float(schedule.sigma_bar[index]) / math.sqrt(count)
        assert abs(float(values.mean()) - 0.5 * float(schedule.alpha_bar[index])) < 5 * standard_error
        assert abs(float(values.std()) - float(schedule.sigma_bar[index])) < 5 * standard_error
        unit_noise = (values - schedule.alpha_bar[index] * x_data) / schedule.sigma_bar[index]
        torch.testing.assert_close(unit_noise, noise)


def test_a_level_count_the_published_rule_cannot_make_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="linear_betas"):
        ScheduleConfig(num_levels=502)
    make_schedule(ScheduleConfig(num_levels=501))
