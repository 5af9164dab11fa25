"""Kernels: moments of skewed and correlated targets, exact ratios, and the cost in gradient evaluations."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from scipy import stats
from torch import Tensor

from model.chains.kernels import HMC, KERNELS, MALA, Adjusted, Kernel, Langevin, adapt_step_size
from model.chains.starts import STARTS
from model.config import ChainStart, KernelKind
from model.energies.energy import GaussianEnergy, MixtureEnergy, energy_and_score
from model.noise import ScaledNoise, SharedNoise

_CHAINS = 4000
_ADJUSTED = pytest.mark.parametrize("kernel", [MALA(), HMC(4)], ids=["mala", "hmc"])


def _noise(seed: int) -> SharedNoise:
    return SharedNoise(torch.Generator().manual_seed(seed))


def _gumbel(y: Tensor) -> Tensor:
    """E(y) = y + exp(−y): the Gumbel density, skewed, of mean γ and variance π²/6; a sign error shows."""
    return (y + torch.exp(-y)).sum(1)


@_ADJUSTED
def test_adjusted_kernels_leave_a_skewed_density_invariant(kernel: Adjusted) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = -torch.log(-torch.log(torch.rand(_CHAINS, 1, generator=generator, dtype=torch.float64)))
    state, noise = kernel.init(exact, _gumbel), _noise(1)
    step_size = torch.full((_CHAINS,), 1.1, dtype=torch.float64)  # large: unadjusted Langevin would be visibly off
    for _ in range(30):
        state, info = kernel.step(state, _gumbel, step_size, noise)
    assert 0.3 < float(info.acceptance_probability.mean()) < 0.98
    assert stats.kstest(state.position[:, 0].numpy(), stats.gumbel_r.cdf).pvalue > 0.01


@_ADJUSTED
def test_adjusted_kernels_reach_a_mixture_from_far_away(kernel: Adjusted) -> None:
    mixture = MixtureEnergy(
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
        torch.tensor([0.6, 0.8], dtype=torch.float64),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
    )
    state, noise = kernel.init(torch.full((_CHAINS, 2), 4.0, dtype=torch.float64), mixture), _noise(2)
    step_size = torch.full((_CHAINS,), 0.7, dtype=torch.float64)
    for _ in range(150):
        state, _ = kernel.step(state, mixture, step_size, noise)
    exact = mixture.sample(_CHAINS, torch.Generator().manual_seed(3))
    for axis in range(2):
        assert stats.ks_2samp(state.position[:, axis].numpy(), exact[:, axis].numpy()).pvalue > 0.01


def test_langevin_has_the_stationary_variance_of_its_own_discretisation() -> None:
    """On E = y²/2: y' = (1 − s²/2) y + s ε has variance 1/(1 − s²/4); noise off by √2 or a step off by 2 would show."""
    target = GaussianEnergy(torch.zeros(1, dtype=torch.float64), 1.0)
    step_size, noise = torch.full((20_000,), 0.8, dtype=torch.float64), _noise(4)
    state = Langevin().init(torch.zeros(20_000, 1, dtype=torch.float64), target)
    for _ in range(40):
        state, _ = Langevin().step(state, target, step_size, noise)
    expected = 1 / (1 - 0.8**2 / 4)
    assert abs(float(state.position.var()) - expected) < 5 * expected * math.sqrt(2 / 20_000)


def test_langevin_moves_down_the_energy_without_noise() -> None:
    target = GaussianEnergy(torch.tensor([3.0]), 1.0)
    state = Langevin().init(torch.zeros(1, 1), target)
    state, _ = Langevin().step(state, target, torch.tensor([0.2]), ScaledNoise(_noise(0), 0.0))
    assert float(state.position) == pytest.approx(0.5 * 0.2**2 * 3.0)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_a_chain_costs_the_gradient_evaluations_that_its_kernel_tells(kernel: Kernel) -> None:
    calls = 0

    def counted(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (y**2).sum(1) / 2

    step_size = torch.full((3,), 0.1)
    state = kernel.init(torch.zeros(3, 2), counted)
    for _ in range(5):
        state, _ = kernel.step(state, counted, step_size, _noise(0))
    assert calls == kernel.num_evaluations(5)


def test_an_unadjusted_chain_wastes_no_evaluation() -> None:
    assert [kernel.num_evaluations(5) for kernel in (Langevin(), MALA(), HMC(4))] == [5, 6, 21]


def test_one_leap_of_hmc_is_a_step_of_mala() -> None:
    target, step_size = GaussianEnergy(torch.tensor([0.5, -1.0], dtype=torch.float64), 0.7), torch.full((500,), 0.6)
    y = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = [kernel.step(kernel.init(y, target), target, step_size, _noise(2)) for kernel in (MALA(), HMC(1))]
    torch.testing.assert_close(moved[0][0], moved[1][0])
    torch.testing.assert_close(moved[0][1].acceptance_probability, moved[1][1].acceptance_probability)


def test_every_name_that_a_configuration_may_give_has_its_kernel_or_start() -> None:
    assert set(KERNELS) == set(get_args(KernelKind))
    assert set(STARTS) == set(get_args(ChainStart))


def test_chains_with_their_own_step_sizes_do_not_mix() -> None:
    target = GaussianEnergy(torch.zeros(2), 1.0)
    state = Langevin().init(torch.ones(2, 2), target)
    moved, _ = Langevin().step(state, target, torch.tensor([0.0, 0.5]), _noise(0))
    assert torch.equal(moved.position[0], state.position[0])
    assert not torch.equal(moved.position[1], state.position[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_proposal_of_non_finite_energy_is_a_rejection(bad: float) -> None:
    def wall(y: Tensor) -> Tensor:
        return torch.where(y[:, 0] > 0, torch.full_like(y[:, 0], bad), (y**2).sum(1))

    state = MALA().init(torch.full((500, 1), -0.1), wall)
    for _ in range(5):
        state, info = MALA().step(state, wall, torch.full((500,), 0.5), _noise(6))
        assert torch.isfinite(info.acceptance_probability).all()
    assert float(state.position.max()) <= 0
    assert torch.isfinite(state.energy).all()
    assert not info.accepted.all()


def test_the_score_is_the_negative_gradient_of_the_energy() -> None:
    target = GaussianEnergy(torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5)
    y = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy, score = energy_and_score(target, y)
    torch.testing.assert_close(score, -(y - target.mean) / 0.25)
    torch.testing.assert_close(energy, ((y - target.mean) ** 2).sum(1) / 0.5)
    assert not score.requires_grad


def test_step_sizes_adapt_to_the_acceptance_target() -> None:
    target, noise = GaussianEnergy(torch.zeros(16), 1.0), _noise(7)
    step_size, state = torch.full((200,), 0.05), MALA().init(torch.zeros(200, 16), target)
    for _ in range(300):
        state, info = MALA().step(state, target, step_size, noise)
        step_size = adapt_step_size(step_size, info.acceptance_probability.mean().expand(200), target=0.7)
    acceptances = []
    for _ in range(50):
        state, info = MALA().step(state, target, step_size, noise)
        acceptances.append(float(info.acceptance_probability.mean()))
    assert sum(acceptances) / 50 == pytest.approx(0.7, abs=0.05)
