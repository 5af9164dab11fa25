"""Training: resumes exactly, learns what it should, and says when it fails."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.chains.sampling import sample
from model.checkpoints.checkpoint import Snapshot, load_model, read_snapshot
from model.conditions import At
from model.config import (
    ChainConfig,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
)
from model.data.augmentation import jittered
from model.data.datasets import Dataset, load
from model.energies.energy import MixtureEnergy, energy_and_score
from model.energies.energy_model import EnergyModel
from model.errors import DivergenceError
from model.events import (
    CheckpointEvent,
    DoneEvent,
    SampleEvent,
    StepEvent,
    TrainEvent,
)
from model.noise import SharedNoise
from model.presets import override, preset
from model.spaces.affine import AffineSpace
from model.training.loop import train
from model.training.state import start
from tests.bench.train import BENCH_CONFIG, PlainTraining, noise_dataset

PAPER = TrainConfig(
    network=NetworkConfig(width=8, multipliers=(1, 2), num_blocks=1),
    chain=ChainConfig(num_steps=3),
    sampling=SamplingConfig(num_steps=2),
    optimizer=OptimizerConfig(warmup_steps=4, max_gradient_norm=None),
    steps=12,
    batch_size=8,
    shared_noise=False,
    log_every=3,
    sample_every=6,
    checkpoint_every=4,
    num_preview_samples=3,
    horizontal_flips=True,
    affine_jitter=0.3,
)
ADJUSTED = replace(
    PAPER,
    energy="gaussian",
    schedule=ScheduleConfig(kind="log_snr", num_levels=7),
    network=NetworkConfig(width=8, multipliers=(1, 2), num_blocks=1, activation="silu", spectral_norm=False),
    chain=ChainConfig(kernel="mala", num_steps=3, step_size=0.8, target_acceptance=0.7),
    score_matching=ScoreMatchingConfig(steps=6, batch_size=16, form="marginal"),
)
_STABLE = replace(
    PAPER,
    network=replace(PAPER.network, activation="silu"),
    optimizer=OptimizerConfig(warmup_steps=4, max_gradient_norm=0.1),
    shared_noise=True,
    energy_penalty=0.1,
)
_T1K = replace(
    PAPER,
    schedule=ScheduleConfig(kind="linear_betas", num_levels=1000),
    chain=ChainConfig(num_steps=0),
    sampling=SamplingConfig(num_steps=0),
    sample_every=100,
    num_preview_samples=1,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def run_to_end(config: TrainConfig, dataset: Dataset, directory: Path) -> list[TrainEvent]:
    events = list(train(config, dataset))
    for event in events:
        if isinstance(event, CheckpointEvent):
            path = directory / str(event.step)
            path.mkdir(parents=True)
            event.write(path)
    return events


@pytest.mark.parametrize("config", [PAPER, ADJUSTED, _STABLE], ids=["paper", "adjusted", "stable"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_ends_with_exactly_the_weights_of_one_never_stopped(
    config: TrainConfig, step: int, digits: Dataset, tmp_path: Path
) -> None:
    run_to_end(config, digits, tmp_path)
    *_, last, _ = train(config, digits, snapshot=read_snapshot(tmp_path / str(step)))
    assert isinstance(last, CheckpointEvent)
    (tmp_path / "resumed").mkdir()
    last.write(tmp_path / "resumed")
    for file in ("ema.safetensors", "state.safetensors"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "12" / file).read_bytes()


def _first_step(config: TrainConfig, dataset: Dataset, directory: Path) -> tuple[StepEvent, Snapshot]:
    directory.mkdir()
    event, _, checkpoint, *_ = train(replace(config, steps=1, log_every=1, checkpoint_every=1), dataset)
    assert isinstance(event, StepEvent)
    assert isinstance(checkpoint, CheckpointEvent)
    checkpoint.write(directory)
    return event, read_snapshot(directory)


def _first_moments(snapshot: Snapshot) -> Tensor:
    """Adam's, of all parameters, over what it takes of the first gradient: the gradient that it saw."""
    moments = [t.flatten() for n, t in snapshot.energy.moments.items() if n.endswith(".exp_avg")]
    return torch.cat(moments) / (1 - snapshot.config.optimizer.beta1)


def test_a_step_of_the_papers_recipe_is_that_of_the_plain_implementation_it_is_timed_against() -> None:
    """The two share no code. Few power iterations have run at the start, so that one too many or too few shows."""
    network = replace(BENCH_CONFIG.network, width=16, num_blocks=1)
    config = replace(BENCH_CONFIG, network=network, chain=ChainConfig(num_steps=3))
    plain_loss, plain_gradient_norm = next(PlainTraining(config, noise_dataset()))
    step = next(event for event in train(config, noise_dataset()) if isinstance(event, StepEvent))
    assert step.loss == pytest.approx(plain_loss, rel=1e-4)
    assert step.gradient_norm == pytest.approx(plain_gradient_norm, rel=1e-4)


def test_clipping_scales_the_whole_gradient_to_the_norm(digits: Dataset, tmp_path: Path) -> None:
    free, before = _first_step(PAPER, digits, tmp_path / "free")
    gradient = _first_moments(before)
    assert float(gradient.norm()) == pytest.approx(free.gradient_norm, rel=1e-5)
    for factor in (0.5, 2.0):
        limit = factor * free.gradient_norm
        clipped = replace(PAPER, optimizer=replace(PAPER.optimizer, max_gradient_norm=limit))
        event, after = _first_step(clipped, digits, tmp_path / str(factor))
        assert event.gradient_norm == free.gradient_norm  # as it was
        torch.testing.assert_close(_first_moments(after), gradient * min(1.0, factor), rtol=1e-4, atol=1e-7)


def test_the_energy_penalty_is_added_with_its_weight(digits: Dataset, tmp_path: Path) -> None:
    events = [
        _first_step(replace(PAPER, energy_penalty=weight), digits, tmp_path / str(weight))[0]
        for weight in (0.0, 1.0, 3.0)
    ]
    added = [event.loss - events[0].loss for event in events]
    assert added[1] > 0
    assert added[2] == pytest.approx(3 * added[1], rel=1e-3)
    assert events[2].negative_energy == events[0].negative_energy  # the chain does not know


def test_one_noise_for_a_pair_moves_only_its_noisier_half(digits: Dataset, tmp_path: Path) -> None:
    """Both draw the same first noise, so y⁺ is the same and what the chain starts from is not."""
    separate, shared = (
        _first_step(replace(PAPER, shared_noise=one), digits, tmp_path / str(one))[0] for one in (False, True)
    )
    assert shared.positive_energy == separate.positive_energy
    assert all(a != b for a, b in zip(shared.negative_energy, separate.negative_energy, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_the_average_forgets_at_its_rate_and_faster_at_the_start(decay: float, digits: Dataset, tmp_path: Path) -> None:
    config = replace(PAPER, steps=4, checkpoint_every=1, optimizer=OptimizerConfig(warmup_steps=2, ema_decay=decay))
    rates = [
        e.learning_rate for e in run_to_end(replace(config, log_every=1), digits, tmp_path) if isinstance(e, StepEvent)
    ]
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4, 1e-4])  # linear warm-up
    snapshots = [read_snapshot(tmp_path / str(step)) for step in range(1, 5)]
    name = "network.head.weight"  # without a spectral norm, which the average brings to convergence
    for index in range(1, 4):
        used = min(decay, (1 + index) / (10 + index))
        before, now = snapshots[index - 1].energy.average[name], snapshots[index].energy.weights[name]
        torch.testing.assert_close(snapshots[index].energy.average[name], used * before + (1 - used) * now)


def test_events_come_when_they_were_asked_for(digits: Dataset) -> None:
    events = list(train(PAPER, digits))
    steps = {
        kind: [e.step for e in events if isinstance(e, kind)] for kind in (StepEvent, SampleEvent, CheckpointEvent)
    }
    assert steps == {StepEvent: [3, 6, 9, 12], SampleEvent: [6, 12], CheckpointEvent: [4, 8, 12]}
    assert events[-1] == DoneEvent(step=12, stopped=False)
    first = next(e for e in events if isinstance(e, StepEvent))
    assert len(first.displacement) == 6
    assert first.acceptance_rate == [1.0] * 6
    assert all(d is not None and 0 < d < 2 for d in first.displacement)
    samples = next(e for e in events if isinstance(e, SampleEvent)).samples
    assert samples.shape == (3, 1, 8, 8)


def test_stopping_ends_within_a_step_on_a_checkpoint(digits: Dataset) -> None:
    polls = itertools.count()
    *_, checkpoint, done = train(PAPER, digits, stop_fn=lambda: next(polls) >= 5)
    assert done == DoneEvent(step=5, stopped=True)
    assert isinstance(checkpoint, CheckpointEvent)
    assert checkpoint.step == 5


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(digits: Dataset) -> None:
    def last_loss(config: TrainConfig) -> float:
        return [e.loss for e in train(config, digits) if isinstance(e, StepEvent)][-1]

    assert last_loss(PAPER) == last_loss(PAPER)
    assert last_loss(PAPER) != last_loss(replace(PAPER, seed=1))


@pytest.mark.parametrize("config", [PAPER, ADJUSTED], ids=["paper", "adjusted"])
def test_training_in_bfloat16_has_the_losses_of_float32_and_keeps_float32_weights(
    config: TrainConfig, digits: Dataset, tmp_path: Path
) -> None:
    exact = [e for e in train(config, digits) if isinstance(e, StepEvent)]
    rounded = [
        e for e in run_to_end(replace(config, precision="bfloat16"), digits, tmp_path) if isinstance(e, StepEvent)
    ]
    for one, other in zip(exact, rounded, strict=True):
        assert other.loss != one.loss
        assert other.loss == pytest.approx(one.loss, rel=0.05, abs=0.02)
    energy = read_snapshot(tmp_path / "12").energy
    assert all(t.dtype == torch.float32 for n, t in energy.weights.items() if "weight" in n)
    assert all(t.dtype == torch.float32 for t in energy.moments.values())
    assert load_model(tmp_path / "12").network.precision == "float32"


def test_phases_follow_each_other_and_adapt_the_steps(digits: Dataset, tmp_path: Path) -> None:
    events = run_to_end(ADJUSTED, digits, tmp_path)
    assert [e.phase for e in events if isinstance(e, StepEvent)] == ["score_matching"] * 2 + ["recovery"] * 2
    before, after = (load_model(tmp_path / str(step)).step_size for step in (4, 12))
    assert not torch.equal(before, after)


def test_a_thousand_levels_without_a_chain_train_on_the_normal_approximation(digits: Dataset) -> None:
    losses = [e.loss for e in train(_T1K, digits) if isinstance(e, StepEvent)]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 48, 40), (4, 5, 11)])
@pytest.mark.parametrize("steps_of_matching", [0, 1])
def test_images_of_any_size_and_channels_train_and_are_drawn(
    shape: tuple[int, int, int], steps_of_matching: int, tmp_path: Path
) -> None:
    events = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = replace(
        PAPER,
        network=replace(PAPER.network, multipliers=(1, 2, 2, 2)),
        chain=ChainConfig(num_steps=1),
        sampling=SamplingConfig(num_steps=1),
        score_matching=ScoreMatchingConfig(steps=steps_of_matching, batch_size=2),
        steps=2,
        batch_size=2,
        log_every=1,
        num_preview_samples=1,
    )
    found = run_to_end(config, Dataset("noise", events[:8], events[8:], AffineSpace.plain(shape)), tmp_path)
    assert all(math.isfinite(event.loss) for event in found if isinstance(event, StepEvent))
    drawn = sample(load_model(tmp_path / "2"), 2, seed=0).x
    assert drawn.shape == (2, *shape)
    assert bool(torch.isfinite(drawn).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "event_shape"),
    [
        ("density-2d", (1,)),
        ("density-2d", (20,)),
        ("digits", (1, 8, 8)),
        ("digits", (3, 32, 32)),
        ("digits-t6", (3, 32, 32)),
    ],
)
@pytest.mark.parametrize("count", [2, 3])
def test_a_preset_trains_on_two_items_and_three(
    name: str, event_shape: tuple[int, ...], count: int, tmp_path: Path
) -> None:
    config = preset(name)
    items = np.random.default_rng(0).uniform(-1, 1, (count, *event_shape))
    np.save(tmp_path / "few.npy", items.astype(np.float32))
    tiny = override(
        config,
        network=replace(config.network, width=8, num_blocks=1),
        chain=replace(config.chain, num_steps=min(2, config.chain.num_steps)),
        sampling=replace(config.sampling, num_steps=min(1, config.sampling.num_steps)),
        score_matching=replace(config.score_matching, steps=min(2, config.score_matching.steps), batch_size=4),
        steps=4,
        batch_size=4,
        microbatch_size=None,
        log_every=1,
        num_preview_samples=1,
    )
    dataset = load(str(tmp_path / "few.npy"), max_deviation=config.max_deviation)
    losses = [event.loss for event in train(tiny, dataset) if isinstance(event, StepEvent)]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


def test_divergence_is_an_error_with_the_step_and_the_remedy(digits: Dataset) -> None:
    wild = replace(
        PAPER,
        steps=200,
        network=replace(PAPER.network, spectral_norm=False),
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=0, max_gradient_norm=None),
    )
    events: list[TrainEvent] = []
    with pytest.raises(DivergenceError, match=r"learning rate.* went back to a checkpoint 3 times") as caught:
        events.extend(train(wild, digits))
    assert 1 <= caught.value.step <= 200


_MIXTURE = MixtureEnergy(
    torch.tensor([[-1.0, -0.5], [0.8, 0.6], [0.9, -0.9]], dtype=torch.float64),
    torch.tensor([0.35, 0.3, 0.4], dtype=torch.float64),
    torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64),
)


def _fisher_error(model: EnergyModel) -> list[float]:
    """Per level: E |∇E_t − true gradient|² · spread² per coordinate, over exact samples of y_t."""
    errors = []
    for t in range(model.num_levels):
        scale = float(model.schedule.scale[t])
        spread = scale * float(model.schedule.sigma_bar[t])
        truth = _MIXTURE.diffused(scale * float(model.schedule.alpha_bar[t]), spread)
        y = truth.sample(2000, torch.Generator().manual_seed(t)).float()
        _, score = energy_and_score(lambda y, t=t: model.energy(y, At.same(t, y)), y)  # type: ignore[misc]
        _, true_score = energy_and_score(truth, y.double())
        errors.append(float(((score - true_score) ** 2).mean()) * spread**2)
    return errors


@pytest.mark.slow
def test_recovery_likelihood_alone_learns_the_energy_of_every_level(tmp_path: Path) -> None:
    """From the Gaussian fit towards a mixture of three: the score's error falls below half wherever there is one."""
    config = TrainConfig(
        schedule=ScheduleConfig(kind="log_snr", num_levels=5, log_snr_max=3.0, log_snr_min=-3.0),
        network=NetworkConfig(kind="mlp", width=64, num_blocks=2, activation="silu", spectral_norm=False),
        energy="gaussian",
        chain=ChainConfig(kernel="mala", num_steps=15, step_size=0.9),
        sampling=SamplingConfig(num_steps=1),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=20, cosine_decay=True, ema_decay=0.98),
        steps=500,
        batch_size=512,
        checkpoint_every=10_000,
        num_preview_samples=1,
    )
    points = _MIXTURE.sample(50_000, torch.Generator().manual_seed(0)).float()
    dataset = Dataset("mixture", points, points[:100], AffineSpace.plain((2,)))
    before = _fisher_error(start(config, dataset).model)
    checkpoint = next(e for e in train(config, dataset) if isinstance(e, CheckpointEvent))
    checkpoint.write(tmp_path)
    after = _fisher_error(load_model(tmp_path))
    for error, base_error in zip(after, before, strict=True):
        assert error < max(base_error / 2, 0.003)


def test_jitter_moves_images_by_the_pixels_asked_for() -> None:
    """The centre of mass of a blob moves by at most the shift, and does move; half a pixel is half a pixel."""
    axis = torch.arange(16.0) - 7.5
    blob = 2 * torch.exp(-(axis[:, None] ** 2 + axis**2) / 8) - 1
    images = blob.expand(200, 1, 16, 16)
    moved = jittered(images, 0.5, SharedNoise(torch.Generator().manual_seed(0)))[:, 0] + 1
    centre = (moved * axis).sum((1, 2)) / moved.sum((1, 2))
    assert 0.4 < float(centre.abs().max()) < 0.6
    assert float(moved.max()) <= 2
