"""Energies with labels against closed forms: two classes of Gaussian data on a line, whose exact energies take the
place of the network, and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from model.chains.sampling import draw_conditional, sample
from model.composition import ANY_LABEL, Composition
from model.conditions import NO_LABEL, At, composed_rows
from model.config import ChainConfig, NetworkConfig, SamplingConfig, ScheduleConfig, TrainConfig
from model.densities.classification import classify
from model.densities.density import data_energy
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError
from model.noise import SharedNoise, make_generator
from model.schedule import Schedule

_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=4, log_snr_max=4.0, log_snr_min=-1.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="step_size",
    chain=ChainConfig(kernel="mala", num_steps=10, step_size=0.5),
    sampling=SamplingConfig(num_steps=40),
    conditional=True,
)
_WEIGHTS, _MEANS, _STDS = torch.tensor([0.3, 0.7]), torch.tensor([-0.8, 0.6]), torch.tensor([0.4, 0.7])
_GRID = torch.linspace(-7, 7, 4001)[:, None]


class _Exact(nn.Module):
    """The network whose energies are −log p(y_t, k), whatever the step sizes are."""

    def __init__(self, schedule: Schedule, step_size: Tensor) -> None:
        super().__init__()
        self.schedule, self.step_size = schedule, step_size

    def forward(self, y: Tensor, at: At) -> Tensor:
        log_joint = _log_joint(y[:, 0], self.schedule, at.level)
        return (log_joint + math.log(2)) * self.step_size[at.level, None] ** 2


def _log_joint(y: Tensor, schedule: Schedule, level: Tensor) -> Tensor:
    """log p(y_t, k) (B, 2)."""
    scale, alpha_bar, sigma_bar = (
        one[level, None].float() for one in (schedule.scale, schedule.alpha_bar[:-1], schedule.sigma_bar[:-1])
    )
    std = scale * (alpha_bar**2 * _STDS**2 + sigma_bar**2).sqrt()
    return _WEIGHTS.log() + _log_normal(y[:, None], scale * alpha_bar * _MEANS, std)


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -(((x - mean) / std) ** 2) / 2 - torch.log(std * math.sqrt(2 * math.pi))


@pytest.fixture
def model() -> EnergyModel:
    found = EnergyModel(_CONFIG, (1,), ("left", "right"))
    found.network = _Exact(found.schedule, found.step_size)  # type: ignore[assignment]
    return found


def _at(t: int, label: int, guidance: float = 0.0) -> At:
    at = At.same(t, _GRID)
    return replace(at, label=torch.full_like(at.level, label), guidance=torch.full((len(_GRID),), guidance))


@pytest.mark.parametrize("t", range(4))
def test_the_energies_are_those_of_the_joint_and_of_the_marginal(model: EnergyModel, t: int) -> None:
    log_joint = _log_joint(_GRID[:, 0], model.schedule, At.same(t, _GRID).level)
    for label in range(2):
        torch.testing.assert_close(model.energy(_GRID, _at(t, label)), -log_joint[:, label])
    marginal = -torch.logsumexp(log_joint, 1)
    for at in (At.same(t, _GRID), _at(t, NO_LABEL, guidance=3.0)):
        torch.testing.assert_close(model.energy(_GRID, at), marginal, atol=1e-5, rtol=1e-5)
    assert float(torch.trapezoid((-model.energy(_GRID, At.same(t, _GRID))).exp(), _GRID[:, 0])) == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
def test_guidance_sharpens_the_joint_by_the_posterior(model: EnergyModel, guidance: float) -> None:
    log_joint = _log_joint(_GRID[:, 0], model.schedule, At.same(1, _GRID).level)
    posterior = torch.softmax(log_joint, 1)[:, 1]
    expected = -log_joint[:, 1] - guidance * posterior.log()
    torch.testing.assert_close(model.energy(_GRID, _at(1, 1, guidance)), expected, atol=1e-4, rtol=1e-4)


_COMPOSITIONS = [
    (Composition.of_label(1), lambda log_p, log_k: log_p + log_k[:, 1]),
    (Composition.of_label(1, guidance=0.5), lambda log_p, log_k: log_p + 1.5 * log_k[:, 1]),
    (Composition(any_of=(0,)), lambda log_p, log_k: log_p + log_k[:, 0]),
    (Composition(any_of=(0, 1)), lambda log_p, _: log_p),
    (Composition(all_of=((0, 1.0), (1, 1.0))), lambda log_p, log_k: log_p + log_k.sum(1)),
    (
        Composition(all_of=((0, 2.0), (1, -0.5)), guidance=1.0),
        lambda log_p, log_k: log_p + 4 * log_k[:, 0] - log_k[:, 1],
    ),
    (ANY_LABEL, lambda log_p, _: log_p),
]


@pytest.mark.parametrize(("composition", "log_density_fn"), _COMPOSITIONS)
def test_a_composition_multiplies_the_marginal_by_its_factors(
    model: EnergyModel, composition: Composition, log_density_fn: Callable[[Tensor, Tensor], Tensor]
) -> None:
    log_joint = _log_joint(_GRID[:, 0], model.schedule, At.same(1, _GRID).level)
    expected = log_density_fn(torch.logsumexp(log_joint, 1), torch.log_softmax(log_joint, 1))
    guidance, composed = composed_rows([composition], 2, _GRID)
    at = replace(At.same(1, _GRID), guidance=guidance.expand(len(_GRID)), composed=composed.expand(len(_GRID), 2, 2))
    torch.testing.assert_close(model.energy(_GRID, at), -expected, atol=1e-4, rtol=1e-4)


def test_only_products_of_several_experts_need_adjusted_chains() -> None:
    """A mixture of diffused classes is the diffused mixture; a product is not."""
    products = [Composition(all_of=((0, 1.0), (1, 1.0))), Composition(all_of=((0, 2.0),))]
    others = [ANY_LABEL, Composition.of_label(0, guidance=1.0), Composition(any_of=(0, 1))]
    assert [one.is_product for one in (*products, *others)] == [True, True, False, False, False]
    plain = EnergyModel(
        replace(_CONFIG, chain=ChainConfig(num_steps=2), sampling=SamplingConfig(num_steps=2)), (1,), ("a", "b")
    )
    assert sample(plain, 1, seed=0, labels=products[:1]).gradient_evaluations == 4 * 3
    assert sample(plain, 1, seed=0, labels=others[2:]).gradient_evaluations == 4 * 2
    assert sample(plain, 1, seed=0, labels=products[:1], adjusted=False).gradient_evaluations == 4 * 2
    with pytest.raises(ConfigError, match="the kernel of this request 'mala' is adjusted"):
        sample(plain, 1, seed=0, labels=products[:1], noise_scale=0.5)


def test_samples_of_a_mixture_of_labels_are_draws_of_both(model: EnergyModel) -> None:
    x = sample(model, 2000, seed=5, labels=[Composition(any_of=(0, 1))] * 2000).x[:, 0]
    alpha_bar, sigma_bar = float(model.schedule.alpha_bar[0]), float(model.schedule.sigma_bar[0])
    stds = (alpha_bar**2 * _STDS**2 + sigma_bar**2).sqrt().tolist()

    def cdf(values: Any) -> Any:
        parts = zip(_WEIGHTS.tolist(), (alpha_bar * _MEANS).tolist(), stds, strict=True)
        return sum(weight * stats.norm(mean, std).cdf(values) for weight, mean, std in parts)

    assert stats.kstest(x.numpy(), cdf).pvalue > 0.01


@pytest.mark.parametrize(("label", "guidance"), [(0, 0.0), (1, 1.0), (0, 3.0), (NO_LABEL, 0.0)])
def test_a_chain_draws_from_the_guided_energy(model: EnergyModel, label: int, guidance: float) -> None:
    """The top level has no tether: long chains there draw from exp(−E_w), whose integral is taken on a grid."""
    count = 2000
    generator = make_generator(3)
    x_top = torch.randn(count, 1, generator=generator)
    model.step_size.fill_(0.8)
    at = At(torch.full((count,), 3), torch.full((count,), label), torch.full((count,), guidance))
    with model.frozen():
        y = draw_conditional(model, x_top, at, SharedNoise(generator), num_steps=150, start="neighbour").y
    log_joint = _log_joint(_GRID[:, 0], model.schedule, At.same(3, _GRID).level)
    log_p = torch.logsumexp(log_joint, 1)
    if label != NO_LABEL:
        log_p = log_joint[:, label] + guidance * torch.log_softmax(log_joint, 1)[:, label]
    cumulative = log_p.exp().cumsum(0) / log_p.exp().sum()
    result = stats.kstest(y[:, 0].numpy(), lambda x: np.interp(x, _GRID[:, 0].numpy(), cumulative.numpy()))
    assert result.pvalue > 0.01


def test_samples_of_a_label_are_draws_of_its_class(model: EnergyModel) -> None:
    """In one batch: half of it of either class, in alternation."""
    labels = [index % 2 for index in range(2000)]
    x = sample(model, 2000, seed=5, labels=labels).x[:, 0]
    alpha_bar, sigma_bar = float(model.schedule.alpha_bar[0]), float(model.schedule.sigma_bar[0])
    for label in range(2):
        mean, std = alpha_bar * float(_MEANS[label]), math.hypot(alpha_bar * float(_STDS[label]), sigma_bar)
        assert stats.kstest(x[label::2].numpy(), stats.norm(mean, std).cdf).pvalue > 0.01


@pytest.mark.parametrize("t", [0, 2])
def test_data_are_classified_as_bayes_says_at_the_noise_that_they_hold(model: EnergyModel, t: int) -> None:
    x_data = torch.linspace(-2, 2, 9)[:, None]
    noise_std = float(model.schedule.sigma_bar[t] / model.schedule.alpha_bar[t])
    variance = _STDS**2 + noise_std**2
    log_joint = _WEIGHTS.log() + _log_normal(x_data, _MEANS, variance.sqrt())
    found = classify(model, x_data, noise_std=noise_std)
    torch.testing.assert_close(found, torch.log_softmax(log_joint, 1), atol=1e-4, rtol=1e-4)
    if t == 0:
        assert torch.equal(classify(model, x_data), found)


def test_the_density_of_data_is_that_of_the_marginal(model: EnergyModel) -> None:
    x_data = torch.linspace(-2, 2, 9)[:, None]
    x_0 = float(model.schedule.alpha_bar[0]) * x_data
    at = At.same(0, x_data)
    expected = -torch.logsumexp(_log_joint(model.schedule.scale[0].float() * x_0[:, 0], model.schedule, at.level), 1)
    torch.testing.assert_close(data_energy(model, x_data), expected.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("energy", ["step_size", "gaussian", "log_snr"])
def test_equal_outputs_make_the_energy_of_a_model_without_labels(energy: str) -> None:
    config = replace(_CONFIG, energy=energy)  # type: ignore[arg-type]
    torch.manual_seed(0)
    plain = EnergyModel(replace(config, conditional=False), (3,))
    labelled = EnergyModel(config, (3,), ("a", "b", "c"))
    weights = plain.state_dict()
    for name in ("network.head.weight", "network.head.bias"):
        weights[name] = weights[name].repeat(3, *[1] * (weights[name].dim() - 1))
    labelled.load_state_dict(weights)
    y, at = torch.randn(6, 3), At(torch.arange(6) % 4)
    expected = plain.energy(y, at)
    torch.testing.assert_close(labelled.energy(y, at), expected, rtol=1e-4, atol=1e-4)
    with_labels = replace(at, label=torch.arange(6) % 3, guidance=torch.zeros(6))
    torch.testing.assert_close(labelled.energy(y, with_labels), expected + math.log(3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classify(labelled, y), torch.full((6, 3), -math.log(3)), rtol=1e-4, atol=1e-4)


def test_a_model_has_classes_if_it_is_conditional_and_only_then() -> None:
    with pytest.raises(ConfigError, match="conditional is True, but the model has 0 classes"):
        EnergyModel(_CONFIG, (1,))
    plain = replace(_CONFIG, conditional=False)
    with pytest.raises(ConfigError, match="conditional is False, but the model has 2 classes"):
        EnergyModel(plain, (1,), ("left", "right"))
    with pytest.raises(ConfigError, match="knows no classes"):
        classify(EnergyModel(plain, (1,)), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("labels", "guidance", "words"),
    [
        ([0, 2], 0.0, "label is 2; expected a number from 0 to 1"),
        ([0, -3], 0.0, "label is -3"),
        ([0], 0.0, "labels has 1 entries; expected one for each of 2"),
        ([0, 1], [1.0], "guidance has 1 entries"),
        ([0, 1], -0.5, "guidance is -0.5; expected a number from 0 to 100"),
        ([0, 1], math.nan, "guidance is nan"),
        (None, 1.0, "guidance is 1, but no label is asked for"),
        ([Composition(any_of=(0, 2))] * 2, 0.0, "label is 2; expected a number from 0 to 1"),
        ([Composition(any_of=(0,), all_of=((0, 1.0),))] * 2, 0.0, "names a label twice"),
        ([Composition(all_of=((0, 1000.0),))] * 2, 0.0, "weight of a label is 1000; expected a number from -100 to"),
        ([Composition(all_of=((0, math.nan),))] * 2, 0.0, "weight of a label is nan"),
        ([0, NO_LABEL], 1.0, "no label is asked for"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(
    model: EnergyModel, labels: list[int | Composition] | None, guidance: float | list[float], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        sample(model, 2, seed=0, labels=labels, guidance=guidance)


def test_a_model_without_labels_refuses_labels_and_guidance() -> None:
    plain = EnergyModel(replace(_CONFIG, conditional=False), (1,))
    with pytest.raises(ConfigError, match="label is 0, but this model was not trained with conditional"):
        sample(plain, 1, seed=0, labels=[0])
    with pytest.raises(ConfigError, match="guidance is 2, but this model was not trained with conditional"):
        sample(plain, 1, seed=0, guidance=2.0)
