"""Recovery likelihood: the conditional it defines, and losses whose gradient vanishes at the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.chains.kernels import MALA, evaluate
from model.chains.starts import normal_approximation
from model.conditions import At
from model.config import ScheduleConfig
from model.energies.conditional import recovery_energy
from model.energies.energy import GaussianEnergy, MixtureEnergy, energy_and_score
from model.noise import SharedNoise
from model.schedule import Schedule, make_schedule
from model.training.losses import (
    contrastive_loss,
    dual_score_matching_loss,
    energy_penalty,
    marginal_score_matching_loss,
    noise_contrastive_loss,
    recovery_score_matching_loss,
)

_DATA = MixtureEnergy(
    torch.tensor([[-0.6], [0.9]], dtype=torch.float64),
    torch.tensor([0.25, 0.4], dtype=torch.float64),
    torch.tensor([0.35, 0.65], dtype=torch.float64),
)


def test_the_conditional_of_a_gaussian_is_the_known_gaussian() -> None:
    """N(0, 1) tethered to 2 with σ = 0.5: mean 2/(1 + σ²) = 1.6, variance σ²/(1 + σ²) = 0.2."""
    prior = GaussianEnergy(torch.zeros(1, dtype=torch.float64), 1.0)
    x_next = torch.full((5, 1), 2.0, dtype=torch.float64)
    conditional = recovery_energy(prior, x_next, torch.full((5,), 0.5**-2))
    y = torch.linspace(-1, 3, 5, dtype=torch.float64)[:, None]
    expected = GaussianEnergy(torch.tensor([1.6], dtype=torch.float64), math.sqrt(0.2))
    offset = conditional(y) - expected(y)
    torch.testing.assert_close(offset, offset[:1].expand(5))
    no_tether = recovery_energy(prior, x_next, torch.zeros(5))
    torch.testing.assert_close(no_tether(y), prior(y))


def test_the_normal_approximation_has_mean_and_width_of_the_formula() -> None:
    x_next, score = torch.full((100_000, 1), 1.5), torch.full((100_000, 1), -0.7)
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    y = normal_approximation(score, x_next, torch.full((100_000,), 0.3), noise)
    assert abs(float(y.mean()) - (1.5 - 0.3**2 * 0.7)) < 5 * 0.3 / math.sqrt(1e5)
    assert abs(float(y.std()) - 0.3) < 5 * 0.3 / math.sqrt(2e5)


def _level_energy(schedule: Schedule, t: int, shift: Tensor, sharpness: Tensor) -> MixtureEnergy:
    """The exact energy of y_t, moved by `shift` and sharpened around the origin by `sharpness`."""
    scale = float(schedule.scale[t])
    exact = _DATA.diffused(scale * float(schedule.alpha_bar[t]), scale * float(schedule.sigma_bar[t]))

    def energy(y: Tensor) -> Tensor:
        return exact(y - shift) * sharpness

    return energy  # type: ignore[return-value]


@pytest.mark.parametrize("t", [0, 3, 5])
def test_the_gradient_of_the_recovery_loss_vanishes_at_the_true_energy(t: int) -> None:
    """…and does not when x_next or y carry a wrong scale, which the mutation below makes."""
    assert all(abs(z) < 5 for z in _gradient_z_scores(t, alpha_factor=1.0))
    assert any(abs(z) > 5 for z in _gradient_z_scores(t, alpha_factor=1.1))


def _gradient_z_scores(t: int, *, alpha_factor: float) -> list[float]:
    """Mean over standard error of the loss's gradient in (shift, sharpness); `alpha_factor` is an error of scale."""
    schedule, count = make_schedule(ScheduleConfig()), 20_000
    noise = SharedNoise(torch.Generator().manual_seed(11 + t))
    x_data = _DATA.sample(count, noise.generator)
    level = torch.full((count,), t)
    x, x_next = schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    y_positive = float(schedule.scale[t]) * x * alpha_factor
    shift = torch.zeros(count, 1, dtype=torch.float64, requires_grad=True)
    sharpness = torch.ones(count, dtype=torch.float64, requires_grad=True)
    energy = _level_energy(schedule, t, shift, sharpness)
    frozen = _level_energy(schedule, t, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    target = recovery_energy(frozen, x_next, schedule.tether_precision[level])
    spread = schedule.scale[t] * schedule.sigma_bar[t]
    width = (spread**-2 + schedule.tether_precision[t]).rsqrt()
    state = evaluate(schedule.scale[t] * x, target)  # starts exact, so that it stays exact
    for _ in range(40):
        state, _ = MALA().step(state, target, (0.8 * width).expand(count), noise)
    losses = contrastive_loss(energy(y_positive), energy(state.position), torch.ones(count))
    scores = []
    for gradient in torch.autograd.grad(losses.sum(), [shift, sharpness]):
        per_sample = gradient.flatten()
        scores.append(float(per_sample.mean() / per_sample.std() * math.sqrt(count)))
    return scores


def _posterior(t: int, x_next: Tensor, schedule: Schedule, noise: SharedNoise) -> Tensor:
    """Exact draws of p(y_t | x_{t+1}): mixture times Gaussian is a mixture. Without the tether, of p(y_t)."""
    scale = float(schedule.scale[t])
    means = scale * float(schedule.alpha_bar[t]) * _DATA.means[:, 0]
    variances = (scale * float(schedule.alpha_bar[t]) * _DATA.stds) ** 2 + (scale * float(schedule.sigma_bar[t])) ** 2
    precision = float(schedule.tether_precision[t])
    total = variances if precision == 0 else variances + 1 / precision
    log_weights = torch.log(_DATA.weights).expand(len(x_next), -1)
    if precision > 0:
        log_weights = log_weights - (x_next - means) ** 2 / (2 * total) - torch.log(total) / 2
    part = torch.multinomial(torch.softmax(log_weights, dim=1), 1, generator=noise.generator)[:, 0]
    variance = 1 / (1 / variances + precision)
    mean = variance * (means / variances + precision * x_next)
    chosen = mean.gather(1, part[:, None]) if precision > 0 else means[part][:, None]
    return chosen + variance[part].sqrt()[:, None] * noise.normal(x_next)


def _pair_gradients(t: int, *, shared_noise: bool, chain: bool = True) -> list[Tensor]:
    """Of each pair's contrastive loss at the true energy in its shift and sharpness, (N,) each.

    Negatives come from an exact chain on p(y | x_{t+1}), or from one of no steps, x_{t+1} itself.
    """
    schedule, count = make_schedule(ScheduleConfig()), 100_000
    noise = SharedNoise(torch.Generator().manual_seed(21 + t))
    x_data, level = _DATA.sample(count, noise.generator), torch.full((count,), t)
    if shared_noise:
        x, x_next = schedule.diffuse_together(x_data, level, noise.normal(x_data))
    else:
        x, x_next = schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    shift = torch.zeros(count, 1, dtype=torch.float64, requires_grad=True)
    sharpness = torch.ones(count, dtype=torch.float64, requires_grad=True)
    energy = _level_energy(schedule, t, shift, sharpness)
    y_negative = _posterior(t, x_next, schedule, noise) if chain else x_next
    losses = contrastive_loss(energy(float(schedule.scale[t]) * x), energy(y_negative), torch.ones(count))
    return [gradient.flatten() for gradient in torch.autograd.grad(losses.sum(), [shift, sharpness])]


@pytest.mark.parametrize("t", [0, 3, 5])
@pytest.mark.parametrize("shared_noise", [False, True], ids=["two noises", "one noise"])
def test_pairs_of_one_noise_keep_the_recovery_loss_s_stationary_point(t: int, shared_noise: bool) -> None:
    for gradient in _pair_gradients(t, shared_noise=shared_noise):
        assert abs(float(gradient.mean() / gradient.std())) * math.sqrt(len(gradient)) < 5


@pytest.mark.parametrize("t", [1, 3])
def test_pairs_of_one_noise_leave_the_expected_gradient_as_it_is(t: int) -> None:
    """Also where it is not 0, since a chain has not converged: its negatives depend on x_{t+1} alone."""
    shared, separate = (_pair_gradients(t, shared_noise=one, chain=False)[1] for one in (True, False))
    error = ((shared.var() + separate.var()) / len(shared)).sqrt()
    assert abs(float(separate.mean())) > 10 * float(error)
    assert abs(float(shared.mean() - separate.mean())) < 5 * float(error)


def test_pairs_of_one_noise_lower_the_gradient_s_variance() -> None:
    """Against exact negatives, whose own variance stays; here by a quarter to a third, at levels 0 and 5 not at all."""
    pairs = [_pair_gradients(3, shared_noise=one) for one in (True, False)]
    for shared, separate in zip(*pairs, strict=True):
        assert float(shared.var()) < 0.8 * float(separate.var())


def test_the_energy_penalty_moves_the_constant_that_the_contrastive_loss_leaves_free() -> None:
    generator = torch.Generator().manual_seed(3)
    positive, negative, weight = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    constant = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    contrasts = contrastive_loss(positive + constant, negative + constant, weight)
    (contrastive,) = torch.autograd.grad(contrasts.sum(), constant)
    assert abs(float(contrastive)) < 1e-12
    (gradient,) = torch.autograd.grad(energy_penalty(positive + constant, negative + constant, weight).mean(), constant)
    expected = 2 * (weight**2 * (positive + negative + 2 * 0.7)).mean()
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def _all_losses(rows: slice) -> dict[str, Tensor]:
    """Of the same 6 events of two coordinates, (B,) for the chosen rows."""
    generator = torch.Generator().manual_seed(4)
    y, x_next, epsilon = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)[:, rows]
    positive, negative, weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)[:, rows]
    at, std = At(torch.tensor([0, 1, 2, 3, 4, 5])[rows]), weight.exp()

    def energy(x: Tensor, at: At) -> Tensor:
        return (x**4).sum(1) * (1 + at.level)

    return {
        "contrastive": contrastive_loss(positive, negative, weight),
        "penalty": energy_penalty(positive, negative, weight),
        "recovery": recovery_score_matching_loss(energy, y, x_next, at, std),
        "marginal": marginal_score_matching_loss(energy, y, epsilon, at, std),
        "dual": dual_score_matching_loss(energy, y, At(weight), epsilon),
        "contrast": noise_contrastive_loss(positive, negative),
    }


def test_every_loss_is_one_value_for_each_row_whatever_the_others_are() -> None:
    whole, first, second = _all_losses(slice(0, 6)), _all_losses(slice(0, 2)), _all_losses(slice(2, 6))
    for name, losses in whole.items():
        assert losses.shape == (6,), name
        torch.testing.assert_close(torch.cat([first[name], second[name]]), losses, rtol=1e-12, atol=1e-12)


def test_marginal_score_matching_is_least_at_the_true_energy() -> None:
    schedule, t, count = make_schedule(ScheduleConfig()), 2, 50_000
    noise = SharedNoise(torch.Generator().manual_seed(5))
    x_data = _DATA.sample(count, noise.generator)
    level, epsilon = torch.full((count,), t), noise.normal(x_data)
    scale = schedule.scale[level]
    y = scale[:, None] * schedule.diffuse(x_data, level, epsilon)

    def loss(shift: float, sharpness: float) -> float:
        energy = _level_energy(
            schedule, t, torch.tensor(shift, dtype=torch.float64), torch.tensor(sharpness, dtype=torch.float64)
        )
        value = marginal_score_matching_loss(
            lambda y, _: energy(y), y, epsilon, At(level), scale * schedule.sigma_bar[level]
        )
        return float(value.detach().mean())

    least = loss(0.0, 1.0)
    for shift, sharpness in ((0.15, 1.0), (-0.15, 1.0), (0.0, 0.8), (0.0, 1.2), (0.0, -1.0)):
        assert loss(shift, sharpness) > least


def test_recovery_score_matching_is_least_at_the_energy_of_the_noisier_neighbour() -> None:
    """E|y⁺ − x_next + σ²∇E(x_next)|²/(2σ²) is least where ∇E is that of x_{t+1}'s marginal (Tweedie)."""
    schedule, t, count = make_schedule(ScheduleConfig()), 2, 100_000
    noise = SharedNoise(torch.Generator().manual_seed(6))
    x_data = _DATA.sample(count, noise.generator)
    level = torch.full((count,), t)
    x, x_next = schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    y = schedule.scale[t] * x
    neighbour = _DATA.diffused(float(schedule.alpha_bar[t + 1]), float(schedule.sigma_bar[t + 1]))

    def loss(factor: float) -> float:
        value = recovery_score_matching_loss(
            lambda z, _: factor * neighbour(z), y, x_next, At(level), schedule.sigma[level + 1]
        )
        return float(value.detach().mean())

    assert loss(1.0) < min(loss(0.85), loss(1.15), loss(-1.0), loss(2**0.5))
    # at the minimum the loss is the conditional variance of y⁺ over 2σ²
    _, score = energy_and_score(neighbour, x_next)
    residual = y - x_next - schedule.sigma[t + 1] ** 2 * score
    assert loss(1.0) == pytest.approx(float((residual**2).mean() / (2 * schedule.sigma[t + 1] ** 2)))


def _exact_energy_at(x: Tensor, log_snr: Tensor) -> Tensor:
    """−log p_λ(x) of the diffused mixture, differentiable in x and λ."""
    alpha_bar, sigma_bar = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
    means, variances = alpha_bar * _DATA.means[:, 0], alpha_bar**2 * _DATA.stds**2 + sigma_bar**2
    log_parts = torch.log(_DATA.weights) - (x - means) ** 2 / (2 * variances) - torch.log(2 * math.pi * variances) / 2
    return -torch.logsumexp(log_parts, dim=1)


def test_dual_score_matching_is_least_at_the_normalized_energy_of_every_noise_level() -> None:
    """An energy off by a function of λ alone has the right score and the wrong ∂E/∂λ: only the dual term sees it."""
    count = 100_000
    noise = SharedNoise(torch.Generator().manual_seed(9))
    x_data = _DATA.sample(count, noise.generator)
    log_snr = torch.linspace(-4, 5, count, dtype=torch.float64)
    epsilon = noise.normal(x_data)

    def loss(scale: float, drift: float, shift: float) -> float:
        def energy(x: Tensor, at: At) -> Tensor:
            return scale * _exact_energy_at(x - shift, at.level) + drift * at.level

        return float(dual_score_matching_loss(energy, x_data, At(log_snr), epsilon).detach().mean())

    least = loss(1.0, 0.0, 0.0)
    for changed in ((1.0, 0.1, 0.0), (1.0, -0.1, 0.0), (0.9, 0.0, 0.0), (1.1, 0.0, 0.0), (1.0, 0.0, 0.1)):
        assert loss(*changed) > least
    assert loss(-1.0, 0.0, 0.0) > 1.5 * least


def test_noise_contrast_is_least_at_the_true_log_ratio() -> None:
    noise = SharedNoise(torch.Generator().manual_seed(10))
    data, other = _DATA.sample(100_000, noise.generator), 1.5 * noise.normal(torch.empty(100_000, 1).double())
    widened = GaussianEnergy(torch.zeros(1, dtype=torch.float64), 1.5)

    def log_ratio(x: Tensor, offset: float) -> Tensor:
        return widened(x) + widened.log_z - _DATA(x) + offset

    def loss(offset: float) -> float:
        return float(noise_contrastive_loss(log_ratio(data, offset), log_ratio(other, offset)).mean())

    assert loss(0.0) < min(loss(-0.1), loss(0.1))
