"""Training of data and labels together: labels stay with their events, and what is learned is drawn and classified."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.chains.sampling import sample
from model.checkpoints.checkpoint import load_model
from model.conditions import NO_LABEL, At
from model.config import (
    ChainConfig,
    EnergyForm,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    ScoreMatchingForm,
    TrainConfig,
)
from model.data.dataset import Dataset, SplitLabels
from model.densities.classification import classify
from model.errors import CheckpointError, ConfigError
from model.events import CheckpointEvent, Phase
from model.noise import SharedNoise, make_generator
from model.rows import Rows
from model.spaces.affine import AffineSpace
from model.training.loop import _Data, train
from model.training.objective import recovery_losses, score_matching_losses
from model.training.state import start

_CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=6, log_snr_max=5.0, log_snr_min=-4.0),
    network=NetworkConfig(kind="mlp", width=32, num_blocks=1, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", start="predictor", num_steps=4, step_size=0.7),
    sampling=SamplingConfig(num_steps=6, start="predictor"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, max_gradient_norm=1.0, ema_decay=0.98),
    score_matching=ScoreMatchingConfig(
        steps=400, batch_size=64, form="marginal", learning_rate=5e-3, recovery_weight=1.0
    ),
    steps=450,
    batch_size=64,
    shared_noise=False,
    conditional=True,
    sample_every=1000,
    checkpoint_every=1000,
    num_preview_samples=1,
)


def _clusters() -> Dataset:
    """Class 0 has three quarters of the data and lies on two sides; class 1 lies between. No line tells them apart."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(1000, generator=generator) < 0.25).long()
    side = torch.randint(2, (1000,), generator=generator) * 2.0 - 1
    centre = torch.stack([side * (1 - label), label * 0.0], dim=1)
    events = centre + 0.15 * torch.randn(1000, 2, generator=generator)
    names = ("outer", "inner")
    return Dataset(
        "clusters", events[:800], events[800:], AffineSpace.plain((2,)), SplitLabels(names, label[:800], label[800:])
    )


@pytest.fixture(scope="module")
def clusters() -> Dataset:
    return _clusters()


def _numbered() -> Dataset:
    """The label of an event is its value."""
    label = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    names = tuple(map(str, range(23)))
    return Dataset(
        "numbered",
        label[:, None].float(),
        label[:2, None].float(),
        AffineSpace.plain((1,)),
        SplitLabels(names, label, label[:2]),
    )


def test_every_batch_has_the_labels_of_its_events() -> None:
    data = _Data.of(_numbered(), replace(_CONFIG, score_matching=ScoreMatchingConfig(steps=3, batch_size=5)), "cpu")
    seen = Counter[int]()
    for step in range(6):  # in either phase, and over the ends of epochs
        events, labels = data.batch(replace(_CONFIG, batch_size=10), step)
        assert labels is not None
        assert labels.tolist() == events[:, 0].tolist()
        seen.update(labels.tolist())
    assert len(seen) == 23
    without = _Data.of(_numbered(), replace(_CONFIG, conditional=False), "cpu")
    assert without.batch(_CONFIG, 0)[1] is None


@pytest.mark.parametrize("phase", ["score_matching", "recovery"])
def test_the_rows_of_a_part_keep_their_labels(phase: Phase) -> None:
    """The parts' losses add up to the whole's, which other labels would change."""
    state = start(replace(_CONFIG, classification_weight=10.0), _clusters())
    x_data, level = torch.randn(12, 2), torch.arange(12) % 6
    label = (torch.arange(12) % 3 == 0).long()
    at = At(level, label)
    noise = SharedNoise(make_generator(0))

    def loss(rows: Rows, at: At) -> float:
        return float(state.objective(rows, x_data, at, noise, phase).loss.detach())

    whole = loss(Rows.all_of(12), at)
    assert sum(loss(Rows.all_of(12).part(index, 5), at) for index in range(5)) == pytest.approx(whole, rel=1e-4)
    assert abs(loss(Rows.all_of(12), replace(at, label=label.roll(1))) - whole) > 1e-2


@pytest.mark.parametrize(("energy", "form"), [("gaussian", "marginal"), ("gaussian", "recovery"), ("log_snr", "dual")])
def test_rows_without_a_label_have_the_loss_of_the_marginal(
    energy: EnergyForm, form: ScoreMatchingForm, clusters: Dataset
) -> None:
    config = replace(_CONFIG, energy=energy, score_matching=replace(_CONFIG.score_matching, form=form))
    model = start(config, clusters).model
    x_data, at = clusters.train[:6], At(torch.arange(6))
    bare, partly, weightless = (
        score_matching_losses(model, x_data, replace(at, label=label), SharedNoise(make_generator(0)))
        for label in (None, torch.tensor([0, NO_LABEL] * 3), torch.full((6,), NO_LABEL))
    )
    torch.testing.assert_close(weightless, bare)
    torch.testing.assert_close(partly[1::2], bare[1::2])
    assert (partly[::2] - bare[::2]).abs().min() > 1e-4


@pytest.mark.parametrize("form", ["marginal", "recovery", None])
def test_the_class_is_asked_where_the_data_are(form: ScoreMatchingForm | None, clusters: Dataset) -> None:
    """In score matching and (None) in recovery: at y⁺, and neither at its noisier neighbour nor where chains end."""
    model = start(_CONFIG, clusters).model
    x_data, at = clusters.train[:6], At(torch.arange(6), torch.tensor([0, 1] * 3))

    def losses(weight: float) -> Tensor:
        matching = replace(_CONFIG.score_matching, form=form or "marginal")
        model.config = replace(_CONFIG, classification_weight=weight, score_matching=matching)
        noise = SharedNoise(make_generator(0))
        if form is None:
            return recovery_losses(model, x_data, at, noise)[0]
        return score_matching_losses(model, x_data, at, noise)

    epsilon = SharedNoise(make_generator(0)).normal(x_data)
    x = model.schedule.diffuse(x_data, at.level, epsilon)
    _, correction = model.parts(model.schedule.scale[at.level].float()[:, None] * x, at)
    assert at.label is not None
    expected = -torch.log_softmax(correction, 1)[torch.arange(6), at.label]
    torch.testing.assert_close((losses(100.0) - losses(0.0)) / 100, expected, rtol=1e-3, atol=1e-4)


def test_noise_is_told_from_data_whatever_their_labels(clusters: Dataset) -> None:
    config = replace(_CONFIG, energy="log_snr", score_matching=replace(_CONFIG.score_matching, form="dual"))
    model = start(config, clusters).model
    x_data, at = clusters.train[:6], At(torch.arange(6), torch.tensor([0, 1] * 3))

    def losses(at: At, weight: float) -> Tensor:
        model.config = replace(config, score_matching=replace(config.score_matching, noise_contrast=weight))
        return score_matching_losses(model, x_data, at, SharedNoise(make_generator(0)))

    added, expected = (losses(one, 100.0) - losses(one, 0.0) for one in (at, At(at.level)))
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("energy", "form"), [("gaussian", "marginal"), ("log_snr", "dual")])
def test_a_training_learns_what_every_class_is(
    energy: EnergyForm, form: ScoreMatchingForm, clusters: Dataset, tmp_path: Path
) -> None:
    config = replace(_CONFIG, energy=energy, score_matching=replace(_CONFIG.score_matching, form=form))
    assert clusters.labels is not None
    *_, checkpoint, _ = train(config, clusters)
    assert isinstance(checkpoint, CheckpointEvent)
    checkpoint.write(tmp_path)
    model = load_model(tmp_path)
    found = classify(model, clusters.held_out[:])
    assert float((found.argmax(1) == clusters.labels.held_out).float().mean()) > 0.97

    def is_outer(x: Tensor) -> float:
        return float((x[:, 0].abs() > 0.5).float().mean())

    drawn = sample(model, 400, seed=1, labels=[i % 2 for i in range(400)]).x
    assert is_outer(drawn[::2]) > 0.93
    assert is_outer(drawn[1::2]) < 0.07
    assert float((drawn[::2, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.12)
    marginal = sample(model, 400, seed=1).x
    assert is_outer(marginal) == pytest.approx(0.75, abs=0.1)


def test_a_conditional_model_needs_labels(clusters: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"conditional is true, but nobody said .* 'clusters'"):
        next(train(_CONFIG, replace(clusters, labels=None)))


def test_a_training_does_not_go_on_with_other_classes(clusters: Dataset) -> None:
    snapshot = start(_CONFIG, clusters).snapshot()
    assert clusters.labels is not None
    others = replace(clusters, labels=replace(clusters.labels, names=("inner", "outer")))
    with pytest.raises(CheckpointError, match=r"classes are 'outer', 'inner', but those .* are 'inner', 'outer'"):
        next(train(_CONFIG, others, snapshot=snapshot))
    with pytest.raises(CheckpointError, match="of this training are none"):
        next(train(replace(_CONFIG, conditional=False), clusters, snapshot=snapshot))
