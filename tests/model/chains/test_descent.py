"""Descents cut into evaluations: the same numbers and the same cost as in one piece, whoever comes and goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from model.chains.descent import Chain, Descents, evaluations_per_sample
from model.chains.sampling import sample
from model.composition import ANY_LABEL, Composition
from model.conditions import At
from model.config import (
    ChainConfig,
    ChainStart,
    KernelKind,
    NetworkConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.energies.energy_model import EnergyModel

_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=4, log_snr_max=5.0, log_snr_min=-4.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", num_steps=3, step_size=0.8),
    sampling=SamplingConfig(num_steps=3, denoise=True),
)


def _model(config: TrainConfig = _CONFIG) -> EnergyModel:
    torch.manual_seed(0)
    return EnergyModel(config, (3,))


def _finish(descents: Descents, names: list[int], found: dict[int, Tensor]) -> int:
    """One step; ended rows are handed to `found` by name and removed."""
    rows = descents.num_rows
    step = descents.step()
    for row, x in zip(step.ended, step.samples, strict=True):
        found[names[row]] = x
    moved = descents.remove(np.sort(step.ended))
    for source, target in moved:
        names[target] = names[source]
    del names[descents.num_rows :]
    return rows


CASES = [
    (kernel, start, num_steps, denoise)
    for kernel in ("langevin", "mala", "hmc")
    for start in get_args(ChainStart)
    for num_steps, denoise in ((3, True), (1, False), (0, True))
]


@pytest.mark.parametrize(("kernel", "start", "num_steps", "denoise"), CASES)
def test_staggered_descents_give_the_samples_of_whole_ones_at_their_cost(
    kernel: str, start: str, num_steps: int, denoise: bool
) -> None:
    """A chain joins at every step; rows end, move and are taken again."""
    config = replace(
        _CONFIG,
        chain=ChainConfig(kernel=kernel, num_steps=3, step_size=0.5),  # type: ignore[arg-type]
        sampling=SamplingConfig(num_steps=num_steps, start=start, denoise=denoise),  # type: ignore[arg-type]
    )
    model = _model(config)
    whole = sample(model, 12, seed=5, num_steps=num_steps)
    found: dict[int, Tensor] = {}
    names: list[int] = []
    evaluated, waiting = 0, list(range(12))
    with model.frozen():
        descents = Descents(model, 5)
        while waiting or names:
            if waiting and descents.num_rows < 5:
                names.append(waiting.pop(0))
                descents.add([Chain(5, names[-1], config.sampling)])
            evaluated += _finish(descents, names, found)
    torch.testing.assert_close(torch.stack([found[i] for i in range(12)]), whole.x, atol=1e-5, rtol=1e-5)
    assert evaluated == 12 * whole.gradient_evaluations
    assert evaluations_per_sample(config, config.sampling) == whole.gradient_evaluations


def test_every_row_has_its_own_number_of_steps_and_noise_scale() -> None:
    config = replace(_CONFIG, chain=ChainConfig(kernel="langevin", num_steps=3, step_size=0.5))
    model = _model(config)
    wanted = [SamplingConfig(num_steps=k, noise_scale=scale, denoise=True) for k, scale in ((1, 1.0), (4, 0.5), (0, 1))]
    found: dict[int, Tensor] = {}
    with model.frozen():
        descents = Descents(model, 3)
        for name, settings in enumerate(wanted):
            descents.add([Chain(9, name, settings)])
        names = [0, 1, 2]
        while names:
            _finish(descents, names, found)
    for name, settings in enumerate(wanted):
        alone = sample(model, 1, seed=9, first=name, num_steps=settings.num_steps, noise_scale=settings.noise_scale)
        torch.testing.assert_close(found[name], alone.x[0], atol=1e-5, rtol=1e-5)


_WANTED = [
    Composition.of_label(2),
    Composition.of_label(0, guidance=2.0),
    ANY_LABEL,
    Composition(any_of=(0, 1)),
    Composition(all_of=((2, 1.0), (0, -0.5)), guidance=0.5),
    Composition(any_of=(0, 1), all_of=((2, 0.5),)),
]


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
def test_rows_of_single_guided_and_composed_labels_draw_the_same_alone_and_in_company(kernel: KernelKind) -> None:
    """They come, end and move side by side; products are adjusted by a Metropolis test beside rows that are not."""
    config = replace(
        _CONFIG,
        conditional=True,
        chain=ChainConfig(kernel=kernel, num_steps=3, step_size=0.5),
        sampling=replace(_CONFIG.sampling, start="predictor"),
    )
    torch.manual_seed(0)
    model = EnergyModel(config, (3,), ("a", "b", "c"))
    model.get_parameter("network.head.weight").data.mul_(10)  # so that the classes differ
    settings = [replace(config.sampling, adjusted=True if one.is_product else None) for one in _WANTED]
    found: dict[int, Tensor] = {}
    names: list[int] = []
    waiting = list(range(6))
    evaluated = 0
    with model.frozen():
        descents = Descents(model, 3)
        while waiting or names:
            if waiting and descents.num_rows < 3:
                names.append(waiting.pop(0))
                descents.add([Chain(9, names[-1], settings[names[-1]], _WANTED[names[-1]])])
            evaluated += _finish(descents, names, found)
    assert evaluated == sum(evaluations_per_sample(config, one) for one in settings)
    for name in range(6):
        alone = sample(model, 1, seed=9, first=name, labels=[_WANTED[name]]).x
        torch.testing.assert_close(found[name], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], sample(model, 1, seed=9, first=2).x[0], atol=1e-5, rtol=1e-5)
    unlabelled = sample(model, 6, seed=9).x
    assert all(not torch.allclose(found[name], unlabelled[name], atol=1e-3) for name in (0, 1, 3, 4, 5))


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_unadjusted_rows_of_an_adjusted_kernel_are_langevin_chains(kernel: KernelKind) -> None:
    config = replace(_CONFIG, chain=ChainConfig(kernel=kernel, num_steps=3, step_size=0.5))
    model = _model(config)
    as_langevin = _model(replace(config, chain=ChainConfig(kernel="langevin", num_steps=3, step_size=0.5)))
    as_langevin.load_state_dict(model.state_dict())
    settings = replace(config.sampling, adjusted=False, noise_scale=0.5)
    with model.frozen():
        descents, names = Descents(model, 2), [0, 1]
        found: dict[int, Tensor] = {}
        descents.add([Chain(9, 0, config.sampling), Chain(9, 1, settings)])
        while names:
            _finish(descents, names, found)
    expected = sample(as_langevin, 1, seed=9, first=1, noise_scale=0.5).x[0]
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0], sample(model, 1, seed=9).x[0], atol=1e-5, rtol=1e-5)


def test_levels_are_told_as_they_are_reached() -> None:
    model = _model()
    whole = sample(model, 2, seed=3, levels=range(5))
    seen: list[int] = []
    with model.frozen():
        descents = Descents(model, 2)
        tops = [descents.add([Chain(3, i, _CONFIG.sampling)]) for i in range(2)]
        torch.testing.assert_close(torch.cat([top.x for [top] in tops]), whole.levels[4])
        ended = np.zeros(0, np.int64)
        while not len(ended):
            step = descents.step()
            ended = step.ended
            for arrivals in step.arrivals:
                assert arrivals.rows.tolist() == [0, 1]
                level = int(arrivals.levels[0])
                torch.testing.assert_close(arrivals.x, whole.levels[level], atol=1e-5, rtol=1e-5)
                seen.append(level)
    assert seen == [3, 2, 1, 0]


def test_removing_rows_disturbs_no_other(model: EnergyModel) -> None:
    found: dict[int, Tensor] = {}
    whole = sample(model, 6, seed=2).x
    descents = Descents(model, 6)
    for i in range(6):
        descents.add([Chain(2, i, _CONFIG.sampling)])
    names = list(range(6))
    for _ in range(5):
        _finish(descents, names, found)
    for source, target in descents.remove(np.array([0, 2, 5])):
        names[target] = names[source]
    del names[3:]
    assert sorted(names) == [1, 3, 4]
    while names:
        _finish(descents, names, found)
    for name, x in found.items():
        torch.testing.assert_close(x, whole[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", get_args(ChainStart))
def test_a_chain_that_diverged_leaves_nothing_to_the_next_one_in_its_row(start: ChainStart) -> None:
    model = _model(replace(_CONFIG, sampling=replace(_CONFIG.sampling, start=start)))
    assert model.base is not None
    whole, mean = sample(model, 3, seed=2).x, model.base.mean.clone()
    found: dict[int, Tensor] = {}
    with model.frozen():
        descents = Descents(model, 3)
        for broken in (True, False):
            model.base.mean.copy_(mean * math.nan if broken else mean)
            descents.add([Chain(2, i, model.config.sampling) for i in range(3)])
            names = [0, 1, 2]
            while names:
                _finish(descents, names, found)
            assert all(bool(x.isnan().all()) == broken for x in found.values())
    for name, x in found.items():
        torch.testing.assert_close(x, whole[name], atol=1e-5, rtol=1e-5)


@pytest.fixture
def model() -> Iterator[EnergyModel]:
    """A model that stays frozen, as in the engine."""
    found = _model()
    with found.frozen():
        yield found


def test_a_network_of_lower_precision_differs_a_little_and_its_gaussian_not_at_all() -> None:
    exact, lower = _model(), _model()
    lower.network.precision = "bfloat16"
    x, at = torch.randn(50, 3), At(torch.arange(50) % 4)
    with exact.frozen(), lower.frozen():
        difference = lower.energy(x, at) - exact.energy(x, at)
        assert 0 < float(difference.abs().max()) < 0.05 * float(exact.energy(x, at).std())
        assert exact.base is not None
        assert lower.base is not None
        torch.testing.assert_close(lower.base(x, at.level), exact.base(x, at.level), rtol=0, atol=0)
        samples = sample(lower, 4, seed=0).x
    assert samples.dtype == torch.float32
    assert not torch.equal(samples, sample(exact, 4, seed=0).x)


def test_rows_that_start_in_different_ways_are_as_if_each_were_alone() -> None:
    model = _model(replace(_CONFIG, sampling=SamplingConfig(num_steps=1, start="neighbour", denoise=True)))
    settings = [
        replace(model.config.sampling, start=start, num_steps=num_steps)
        for start in get_args(ChainStart)
        for num_steps in (0, 2)
    ]
    found: dict[int, Tensor] = {}
    names = list(range(len(settings)))
    with model.frozen():
        descents = Descents(model, len(settings))
        descents.add([Chain(5, index, one) for index, one in enumerate(settings)])
        while names:
            _finish(descents, names, found)
    for index, one in enumerate(settings):
        alone = sample(model, 1, seed=5, first=index, start=one.start, num_steps=one.num_steps)
        torch.testing.assert_close(found[index], alone.x[0], atol=1e-5, rtol=1e-5)
